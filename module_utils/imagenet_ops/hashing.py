"""MD5 and SHA-256 of the same bytes in one pass, on two processors."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

BLOCK_BYTES = 4 * 1024 * 1024


class Hashes:
    """MD5 and SHA-256 of what `update` was given; hashlib lets another thread run while it computes."""

    def __init__(self) -> None:
        # Not for security: MD5 is what the publishers of archives give. A host in FIPS mode wants to be told.
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()
        self._second: ThreadPoolExecutor | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[Hashes]:
        """Hold the second thread for the duration of the block, in which `update` may be called."""
        with ThreadPoolExecutor(max_workers=1) as self._second:
            yield self
        self._second = None

    def update(self, block: bytes) -> None:
        """Take ``block`` in; blocks of megabytes keep both processors busy."""
        assert self._second is not None, "update() outside of running()"  # noqa: S101 (a fault of ours)
        other = self._second.submit(self._md5.update, block)
        self._sha256.update(block)
        other.result()

    def hexdigests(self) -> tuple[str, str]:
        """Return MD5 and SHA-256 in lower-case hex."""
        return self._md5.hexdigest(), self._sha256.hexdigest()


def hash_file(path: str, report: Callable[[int], None]) -> tuple[str, str]:
    """Return MD5 and SHA-256 of the file at ``path``; ``report`` is told the bytes read so far."""
    position = 0
    with Hashes().running() as hashes, open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while block := file.read(BLOCK_BYTES):
            hashes.update(block)
            position += len(block)
            report(position)
    return hashes.hexdigests()
