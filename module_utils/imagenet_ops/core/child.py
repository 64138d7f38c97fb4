"""Calls a function in a child of this process: a library that crashes on damaged data ends the child alone."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import warnings
from typing import Any, Callable

_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
_MIB = 1024 * 1024


class ChildError(Exception):
    """The child has no result; ``str()`` says why: the exception in it, or how it ended."""


def in_child(work: Callable[[], Any], seconds: int, memory_mib: int) -> Any:
    """Return what ``work`` returns, a value of JSON.

    It may take ``seconds`` of the clock, and ``memory_mib`` beside what this process has already.
    Raises ChildError where it raises an exception, crashes or exceeds its limits, and where there can be no child.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python warns of a fork beside threads. The child uses none of what theirs may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            child = os.fork()
        except OSError as error:
            os.close(reader)
            os.close(writer)
            raise ChildError(f"no process can be started: {error.strerror}") from error
    if child == 0:
        os.close(reader)
        _answer(work, writer, seconds, memory_mib)
    os.close(writer)
    with open(reader, "rb") as file:
        content = file.read()
    status = os.waitpid(child, 0)[1]
    if status:
        end = f"by {signal.Signals(status & 0x7F).name}" if status & 0x7F else f"with status {status >> 8}"
        raise ChildError(f"the process that reads it was ended {end}")
    answer = json.loads(content)
    if "error" in answer:
        raise ChildError(answer["error"])
    return answer["result"]


def _taken_bytes() -> int:
    """Return what counts for the limit already: the libraries of a large machine have memory for each processor."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[5]) * resource.getpagesize()  # proc(5): data and stack, in pages


def _answer(work: Callable[[], Any], writer: int, seconds: int, memory_mib: int) -> None:
    """Do ``work`` in the child, write what came of it, and end."""
    status = 1
    with contextlib.suppress(BaseException):
        for number in (*_FAULTS, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        wanted = _taken_bytes() + memory_mib * _MIB
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))
        signal.alarm(seconds)
        try:
            answer = json.dumps({"result": work()})
        except Exception as error:  # noqa: BLE001  the parent raises it
            answer = json.dumps({"error": f"{type(error).__name__}: {error}"})
        with open(writer, "w", encoding="ascii") as file:
            file.write(answer)
        status = 0
    os._exit(status)
