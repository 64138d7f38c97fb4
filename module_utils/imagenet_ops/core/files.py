"""State on disk that survives a kill and a power cut: atomic files, one writer at a time, progress for people."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any


def fsync_directory(path: str) -> None:
    """Make the names in directory ``path`` durable (a rename is not until its directory is synced)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_durably(path: str) -> None:
    """Remove a file, where it is there, for good."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        fsync_directory(os.path.dirname(path) or ".")


def write_atomic(path: str, content: bytes, durable: bool = True) -> None:
    """Replace file ``path`` by ``content``: a reader, or a restart, sees the old bytes or the new, never a mixture.

    With ``durable`` the bytes and the name are on disk when this returns. Without, the replacement is atomic for
    readers but may be lost with the power: for progress that people read, not for resume points.
    """
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    os.replace(temporary, path)
    if durable:
        fsync_directory(os.path.dirname(path) or ".")


def write_json(path: str, value: Any, durable: bool = True) -> None:
    """Write ``value`` as canonical JSON (sorted keys, one space of indent, final newline) with `write_atomic`."""
    write_atomic(path, canonical_json(value), durable)


def canonical_json(value: Any) -> bytes:
    """Return the one JSON form of ``value`` that the project hashes: sorted keys, indent 1, UTF-8, final newline."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


@contextlib.contextmanager
def exclusive(lock_path: str) -> Iterator[None]:
    """Hold the lock file ``lock_path`` for the duration of the block, waiting for whoever holds it.

    A controller that died leaves its job running on the host; the next run waits here until that job has ended and then
    finds its work done. The kernel drops the lock with the process, however it ends.
    """
    with open(lock_path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
