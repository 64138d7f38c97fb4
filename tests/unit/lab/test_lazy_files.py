"""What lazily loaded volumes need is named where it is missing; that they work, the tests in the lab show."""

from __future__ import annotations

import ctypes.util
import os

import pytest

from lab.lazy_files import missing_for_lazy_files


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda _: False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda _: None)
    assert missing_for_lazy_files() == ["/dev/fuse (kernel module fuse)", "libfuse3 (Debian package libfuse3-3)"]
