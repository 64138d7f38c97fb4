"""Writes many small files fast: several threads, large batches, bounded memory, synced on request."""

from __future__ import annotations

import errno
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from ansible.module_utils.imagenet_ops.core.disk import sync_filesystem

# The work of a thread at a time; handing over each small file would cost as much as writing it.
_BATCH_BYTES = 1024 * 1024
_BATCH_FILES = 64
# Bytes that may wait to be written; this bounds the memory.
_WAITING_BYTES = 32 * 1024 * 1024
# More threads only wait for each other, in Python and in the filesystem.
_THREADS = 2


class _File(NamedTuple):
    path: str
    content: bytes


class TreeWriter:
    """Writes files below ``root``. A context manager; all files are written only after `flush` or `sync`.

    An existing file is replaced: a run that resumes after a kill writes some files again.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._pool = ThreadPoolExecutor(max_workers=_THREADS)
        self._directories: set[str] = set()
        self._batch: list[_File] = []
        self._batch_bytes = 0
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._waiting_bytes = 0

    def __enter__(self) -> TreeWriter:  # noqa: PYI034 (Self is newer than Python 3.9)
        """Return the writer."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait for the threads; files that were not handed over are dropped."""
        self._pool.shutdown(wait=True)

    def make_directory(self, name: str) -> None:
        """Create the directory ``name`` in the root if it is missing; cheap to call for every file. Raises OSError."""
        if name not in self._directories:
            os.makedirs(os.path.join(self.root, name), mode=0o755, exist_ok=True)
            self._directories.add(name)

    def write(self, directory: str, name: str, content: bytes) -> None:
        """Write ``content`` to the file ``name`` in ``directory``, soon. Raises the OSError of any earlier file."""
        self._batch.append(_File(os.path.join(self.root, directory, name), content))
        self._batch_bytes += len(content)
        if self._batch_bytes >= _BATCH_BYTES or len(self._batch) >= _BATCH_FILES:
            self._hand_over()

    def _hand_over(self) -> None:
        while self._waiting and self._waiting_bytes + self._batch_bytes > _WAITING_BYTES:
            self._await_oldest()
        self._waiting.append((self._pool.submit(_write_all, self._batch), self._batch_bytes))
        self._waiting_bytes += self._batch_bytes
        self._batch, self._batch_bytes = [], 0

    def _await_oldest(self) -> None:
        future, size = self._waiting.popleft()
        self._waiting_bytes -= size
        future.result()

    def flush(self) -> None:
        """Return when everything is written (not necessarily durable). Raises OSError."""
        self._hand_over()
        while self._waiting:
            self._await_oldest()

    def sync(self) -> None:
        """Return when everything is written and durable. Raises OSError."""
        self.flush()
        sync_filesystem(self.root)


def _write_all(batch: list[_File]) -> None:
    for path, content in batch:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            _preallocate(descriptor, len(content))
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)


def _preallocate(descriptor: int, size_bytes: int) -> None:
    """Allocate the space of a file at once, if the filesystem can: one extent, however many threads write.

    A full disk then fails before any byte of the file is written.
    """
    if size_bytes:
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            # glibc writes zeros where a filesystem cannot; other C libraries say so.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
