"""MD5 and SHA-256 of the same bytes in one pass, on two processors, and the CRC32 of each piece."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from ansible.module_utils.imagenet_ops.core.hashing import BLOCK_BYTES
from ansible.module_utils.imagenet_ops.download.pieces import PIECE_BYTES, Pieces

# How many blocks MD5 may be behind SHA-256.
_BLOCKS_AHEAD = 2


class Digests(NamedTuple):
    """What was computed of a file: MD5 and SHA-256 of the whole in lower-case hex, and its pieces."""

    md5: str
    sha256: str
    pieces: Pieces


class Hashes:
    """The hashes of what `update` was given; hashlib lets other threads run while it computes.

    The piece that was given last can be taken back (`rewind`), as long as no byte of the next was given.
    """

    def __init__(self, piece_bytes: int = PIECE_BYTES) -> None:
        # Not for security: MD5 is what the publishers of archives give. A host in FIPS mode wants to be told.
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()
        self._piece_bytes = piece_bytes
        self._crc32s: list[int] = []
        # Of the current piece: its bytes so far, their CRC32, and the hashes of the whole as they were before it.
        self._in_piece = 0
        self._crc32 = 0
        self._md5_before, self._sha256_before = self._md5.copy(), self._sha256.copy()
        self._second: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    @contextlib.contextmanager
    def running(self) -> Iterator[Hashes]:
        """Hold the second thread for the duration of the block, in which `update` may be called."""
        with ThreadPoolExecutor(max_workers=1) as self._second:
            yield self
            self._settle()
        self._second = None

    def update(self, block: bytes) -> None:
        """Take ``block`` in; blocks of megabytes keep both processors busy."""
        rest = memoryview(block)
        while rest:
            if self._in_piece == self._piece_bytes:
                self._end_piece()
            part = rest[: self._piece_bytes - self._in_piece]
            self._update(part)
            rest = rest[len(part) :]

    def _update(self, part: memoryview) -> None:
        assert self._second is not None, "update() outside of running()"  # noqa: S101 (a fault of ours)
        # MD5 is the slower of the two: it must never wait for the other.
        self._settle(_BLOCKS_AHEAD)
        self._pending.append(self._second.submit(self._update_md5, part))
        self._sha256.update(part)
        self._crc32 = zlib.crc32(part, self._crc32)
        self._in_piece += len(part)

    def _update_md5(self, part: memoryview) -> None:
        self._md5.update(part)

    def _keep_md5(self) -> None:
        self._md5_before = self._md5.copy()

    def _settle(self, still_running: int = 0) -> None:
        while len(self._pending) > still_running:
            self._pending.popleft().result()

    def _end_piece(self) -> None:
        assert self._second is not None, "update() outside of running()"  # noqa: S101 (a fault of ours)
        self._crc32s.append(self._crc32)
        self._pending.append(self._second.submit(self._keep_md5))
        self._sha256_before = self._sha256.copy()
        self._in_piece = self._crc32 = 0

    @property
    def piece(self) -> tuple[int, int]:
        """The number of the piece that was given last, counted from 0, and the CRC32 of what was given of it."""
        return len(self._crc32s), self._crc32

    def rewind(self) -> None:
        """Forget what was given of the last piece."""
        self._settle()
        self._md5, self._sha256 = self._md5_before.copy(), self._sha256_before.copy()
        self._in_piece = self._crc32 = 0

    def digests(self) -> Digests:
        """Return the hashes of all that was given."""
        self._settle()
        crc32s = (*self._crc32s, self._crc32) if self._in_piece else tuple(self._crc32s)
        return Digests(self._md5.hexdigest(), self._sha256.hexdigest(), Pieces(self._piece_bytes, crc32s))


class Sha256(Hashes):
    """The SHA-256 alone, for whoever needs no other: MD5 takes three times as long."""

    @contextlib.contextmanager
    def running(self) -> Iterator[Sha256]:
        """Do nothing: there is no second thread."""
        yield self

    def update(self, block: bytes) -> None:
        """Take ``block`` in."""
        self._sha256.update(block)

    def digests(self) -> Digests:
        """Return the SHA-256 of all that was given, with nothing for the others."""
        return Digests("", self._sha256.hexdigest(), Pieces(self._piece_bytes, ()))


def hash_file(path: str, report: Callable[[int], None], piece_bytes: int = PIECE_BYTES) -> Digests:
    """Return the hashes of the file at ``path``; ``report`` is told the bytes read so far."""
    position = 0
    with Hashes(piece_bytes).running() as hashes, open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while block := file.read(BLOCK_BYTES):
            hashes.update(block)
            position += len(block)
            report(position)
    return hashes.digests()
