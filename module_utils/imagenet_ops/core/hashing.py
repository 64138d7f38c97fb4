"""SHA-256 of files, also of one that another thread still writes; the CRC32 of a whole from those of its parts."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
from collections.abc import Iterator

from ansible.module_utils.imagenet_ops.core.errors import OpsError

# What a thread hashes at a time: of megabytes, so that hashlib lets other threads run while it computes.
BLOCK_BYTES = 4 << 20
# What is read at a time of a file that is hashed alone.
_READ_BYTES = 1 << 20
# The polynomial of CRC-32 (ISO/IEC 3309) as zlib has it: reflected, the highest power in the lowest bit.
_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31


def hash_file(path: str) -> str:
    """Return the SHA-256 of the file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


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
        block = memoryview(bytearray(_READ_BYTES))
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


def combine_crc32(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC32 of bytes with CRC32 ``first`` and then ``second_bytes`` more with CRC32 ``second``."""
    return _multiply(_shift(second_bytes), first) ^ second


@functools.lru_cache(maxsize=8)
def _shift(size_bytes: int) -> int:
    """Return what multiplies a CRC32 when so many bytes come behind it: x to the power of their bits."""
    power, square = _ONE, _ONE >> 8  # x^0, and x^8 for one byte
    while size_bytes:
        if size_bytes & 1:
            power = _multiply(power, square)
        square = _multiply(square, square)
        size_bytes >>= 1
    return power


def _multiply(one: int, other: int) -> int:
    """Return the product of two polynomials over GF(2), modulo that of the CRC."""
    product = 0
    while one:
        if one & _ONE:
            product ^= other
        one = (one << 1) & 0xFFFFFFFF
        other = (other >> 1) ^ (_POLYNOMIAL if other & 1 else 0)
    return product
