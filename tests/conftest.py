"""Puts library/ and module_utils/ where Ansible puts them, for every test."""

from __future__ import annotations

import os
import shutil
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


# Where temporary files are in memory, and how much of it must be free.
MEMORY = Path("/dev/shm")
MEMORY_BYTES = 4 * 1024**3


def pytest_configure(config: pytest.Config) -> None:
    """Keep temporary files in memory where that is large: a kill loses nothing there either, and no sync waits."""
    is_chosen = config.option.basetemp or "PYTEST_DEBUG_TEMPROOT" in os.environ
    if not is_chosen and MEMORY.is_dir() and min(shutil.disk_usage(MEMORY).free, _free_bytes()) > MEMORY_BYTES:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)


def _free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long bytes by their number: those of a zip hold the time, and test processes compare the names of tests."""
    return f"{argname}-{len(val)}-bytes" if isinstance(val, bytes) and len(val) > 40 else None


# Of several test processes (bin/test) each has a lab of its own. They take the files of tests/integration first, the
# longest before the others, and then all other tests one by one, so that they are busy to the end.
LONGEST_FIRST = (
    "main_job",
    "restore",
    "bad_input",
    "strict_s3",
    "neighbours",
    "launch_template",
    "share",
    "other_data_set",
    "lab",
    "retire",
)


def _chain(nodeid: str) -> str | None:
    """Return the name of a file of tests/integration, whose tests build on each other; None for other tests."""
    file = nodeid.split("::", maxsplit=1)[0]
    return file.removeprefix("tests/integration/test_") if file.startswith("tests/integration/") else None


def _place(item: pytest.Item) -> int:
    chain = _chain(item.nodeid)
    order = [f"{name}.py" for name in LONGEST_FIRST]
    return len(order) + 1 if chain is None else order.index(chain) if chain in order else len(order)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests into the order in which processes take them, where there are several."""
    if hasattr(config, "workerinput"):
        items.sort(key=_place)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file of tests/integration in one process where pytest has several."""
    from xdist.scheduler import LoadScopeScheduling

    class Chains(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _chain(nodeid) or nodeid

    config.option.loadscopereorder = False  # they are in order
    return Chains(config, log)
