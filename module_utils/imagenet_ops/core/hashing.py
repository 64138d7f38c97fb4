"""The SHA-256 of a file that another thread is still writing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator

from ansible.module_utils.imagenet_ops.core.errors import OpsError

_BLOCK_BYTES = 1 << 20


class FollowingHash:
    """Hashes file ``path`` from its beginning in a thread of its own, up to where the writer says that it has written.

    A SHA-256 cannot be put aside in a journal, so a restarted job must hash again what an earlier run wrote. This way
    it does so beside the new work, at the speed of the disk, and in an undisturbed run the blocks are still in the page
    cache.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._available = 0
        self._complete = False
        self._abandoned = False
        self._changed = threading.Condition()
        self._failure: OSError | OpsError | None = None
        self._hash = hashlib.sha256()
        self._thread = threading.Thread(target=self._follow, name="following-hash", daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[FollowingHash]:
        """Hold the thread for the duration of the block; it ends with it, finished or not."""
        self._thread.start()
        try:
            yield self
        finally:
            with self._changed:
                self._abandoned = True
                self._changed.notify()
            self._thread.join()

    def advance(self, size_bytes: int) -> None:
        """Say that the file's first ``size_bytes`` are written and will not change."""
        with self._changed:
            self._available = size_bytes
            self._changed.notify()

    def finish(self) -> str:
        """Wait for the end of what `advance` announced and return its SHA-256 in hex."""
        with self._changed:
            self._complete = True
            self._changed.notify()
        self._thread.join()
        if self._failure:
            raise self._failure
        return self._hash.hexdigest()

    def _follow(self) -> None:
        try:
            with open(self.path, "rb", buffering=0) as file:
                self._hash_as_it_grows(file.fileno())
        except (OSError, OpsError) as error:
            self._failure = error

    def _hash_as_it_grows(self, descriptor: int) -> None:
        block = memoryview(bytearray(_BLOCK_BYTES))
        done = 0
        while (available := self._wait_beyond(done)) > done:
            count = os.preadv(descriptor, [block[: available - done]], done)
            if count == 0:
                raise OpsError(
                    f"File {self.path}",
                    f"it ends at byte {done}, but {available} were written",
                    "Something else changes it; stop that, then run again",
                )
            self._hash.update(block[:count])
            done += count

    def _wait_beyond(self, done: int) -> int:
        """Wait for more than ``done`` bytes and return how many there are; ``done`` when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._available > done or self._complete or self._abandoned)
            return done if self._abandoned else self._available
