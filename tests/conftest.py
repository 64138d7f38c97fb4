"""Puts library/ and module_utils/ where Ansible puts them, for every test."""

from __future__ import annotations

import sys
from pathlib import Path

import ansible.module_utils
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT / "library"))
sys.path.insert(0, str(ROOT))
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

# A busy machine is slow, not wrong.
settings.register_profile("imagenet_ops", deadline=None)
settings.load_profile("imagenet_ops")
