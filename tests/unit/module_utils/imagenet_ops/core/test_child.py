"""What a function does to its process costs the child alone, and the error names the reason."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.child import ChildError, in_child

SECONDS = 20
MEMORY_MIB = 512


def reason(work: Any, seconds: int = SECONDS) -> str:
    with pytest.raises(ChildError) as caught:
        in_child(work, seconds, MEMORY_MIB)
    return str(caught.value)


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def fail() -> None:
    raise ValueError("no such thing")


def test_what_it_returns_is_returned() -> None:
    assert in_child(lambda: {"a": [1, "ü" * 100_000, None]}, SECONDS, MEMORY_MIB) == {"a": [1, "ü" * 100_000, None]}
    assert in_child(os.getpid, SECONDS, MEMORY_MIB) != os.getpid()


def test_why_there_is_no_result() -> None:
    assert reason(die) == "the process that reads it was ended by SIGSEGV"
    assert reason(fail) == "ValueError: no such thing"
    assert reason(lambda: os._exit(3)) == "the process that reads it was ended with status 3"
    assert reason(lambda: bytearray(4 << 30)) == "MemoryError: "
    assert reason(lambda: time.sleep(1000), seconds=1) == "the process that reads it was ended by SIGALRM"
    assert reason(object).startswith("TypeError: ")


def test_what_this_process_has_does_not_count() -> None:
    held = bytearray(MEMORY_MIB << 20)
    assert in_child(lambda: len(bytearray(MEMORY_MIB << 19)), SECONDS, MEMORY_MIB) == len(held) // 2


def test_where_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    assert reason(os.getpid) == "no process can be started: Resource temporarily unavailable"


def children() -> set[str]:
    """The processes that this one has started and not waited for; other tests may have some."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def test_no_descriptor_and_no_child_is_left() -> None:
    before, others = sorted(os.listdir("/proc/self/fd")), children()
    in_child(lambda: 1, SECONDS, MEMORY_MIB)
    reason(die)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert children() == others
