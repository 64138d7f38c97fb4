"""Puts library/ and module_utils/ where Ansible puts them, for every test."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT / "library"))
sys.path.insert(0, str(ROOT))
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

# A busy machine is slow, not wrong.
settings.register_profile("imagenet_ops", deadline=None)
settings.load_profile("imagenet_ops")


@pytest.hookimpl(optionalhook=True)  # xdist is not installed under Python 3.9
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of the lab in one process where pytest has several (bin/test): a machine holds one lab."""
    from xdist.scheduler import LoadScopeScheduling

    class OneLab(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "lab" if nodeid.startswith("tests/integration/") else nodeid

    return OneLab(config, log)
