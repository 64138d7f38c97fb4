"""A journal of how far appended files are good, written beside the work: sync first, then say so."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Generic, TypeVar

# About as much work as a kill costs, and as many seconds of writing as are left for the sync at the end: the kernel
# begins to write by itself only after half a minute.
JOURNAL_INTERVAL_SECONDS = 2.0

_Position = TypeVar("_Position")


class SyncJournal(Generic[_Position]):
    """Calls ``sync`` and then ``write`` with a position, at most once in `JOURNAL_INTERVAL_SECONDS`.

    ``sync`` makes durable what was appended before the position was offered; it runs beside the appending.
    """

    def __init__(self, write: Callable[[_Position], None], sync: Callable[[], None]) -> None:
        self._write = write
        self._make_durable = sync
        self._last = time.monotonic()
        self._running: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1)

    @contextlib.contextmanager
    def running(self) -> Iterator[SyncJournal[_Position]]:
        """Hold the thread that syncs for the duration of the block."""
        with self._pool:
            yield self

    def offer(self, position: _Position) -> None:
        """Keep ``position`` if it is time to; raises what the syncing before failed with."""
        busy = self._running is not None and not self._running.done()
        if busy or time.monotonic() - self._last < JOURNAL_INTERVAL_SECONDS:
            return
        self._raise_failure()
        self._last = time.monotonic()
        self._running = self._pool.submit(self._sync, position)

    def close(self, position: _Position) -> None:
        """Keep the last ``position`` in any case."""
        self._raise_failure()
        self._sync(position)

    def _sync(self, position: _Position) -> None:
        self._make_durable()
        self._write(position)

    def _raise_failure(self) -> None:
        if self._running is not None:
            self._running.result()
            self._running = None


def sync_all(descriptors: Iterable[int]) -> None:
    """Make durable what was written to open files. Raises OSError."""
    for descriptor in descriptors:
        os.fdatasync(descriptor)


@contextlib.contextmanager
def open_part(path: str, size_bytes: int) -> Iterator[int]:
    """Open ``path`` for appending after its first ``size_bytes``; what an earlier run wrote beyond is cut off."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.ftruncate(descriptor, size_bytes)
        yield descriptor
    finally:
        os.close(descriptor)
