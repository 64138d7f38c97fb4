"""One tar of a tree out of a bucket, hashed as it comes, over as many requests as it takes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from ansible.module_utils.imagenet_ops.archive.member import DamagedArchiveError
from ansible.module_utils.imagenet_ops.core.errors import CancelledError, TransientError
from ansible.module_utils.imagenet_ops.core.retry import Attempts
from ansible.module_utils.imagenet_ops.download.s3 import S3Source
from ansible.module_utils.imagenet_ops.download.source import Stream

# One request asks for no more than this: a server that waits for a slow disk hangs up in the end.
_RANGE_BYTES = 64 << 20
_READ_BYTES = 1 << 20
_RETRIES = 8


class ShardStream:
    """The bytes of an object, forwards and hashed; requested again from where they broke off."""

    def __init__(self, source: S3Source, size_bytes: int, report: Callable[[int], None]) -> None:
        """Read the ``size_bytes`` of ``source``; ``report`` is called with how many bytes more have come."""
        self.position = 0
        self.sha256 = hashlib.sha256()
        self._source = source
        self._size_bytes = size_bytes
        self._report = report
        self._attempts = Attempts(_RETRIES)
        self._stream: Stream | None = None
        self._stream_end = 0
        self._fetched = 0
        self._rest = memoryview(b"")

    def read(self, count: int) -> bytes:
        """Return exactly ``count`` bytes. Raises DamagedArchiveError where the object has fewer."""
        pieces = []
        left = count
        while left:
            if not self._rest:
                self._rest = memoryview(self._next_block())
            pieces.append(self._rest[:left])
            self._rest = self._rest[left:]
            left -= len(pieces[-1])
        self.position += count
        return b"".join(pieces)

    def skip_to(self, position: int) -> None:
        """Read on to ``position``, and forget what was between."""
        while self.position < position:
            self.read(min(_READ_BYTES, position - self.position))

    def _next_block(self) -> bytes:
        if self._fetched == self._size_bytes:
            raise DamagedArchiveError(self._fetched, "it ends too early")
        while True:
            try:
                block = self._fetch()
            except TransientError as error:  # noqa: PERF203 (each turn is a request over the network)
                self.close()
                pause = self._attempts.failed(self._source.name, error, self._fetched)
                if self._source.stop.wait(pause):
                    raise CancelledError from error
            else:
                break
        self._attempts.succeeded()
        self.sha256.update(block)
        self._fetched += len(block)
        self._report(len(block))
        if self._fetched == self._stream_end:
            self.close()
        return block

    def _fetch(self) -> bytes:
        if self._stream is None:
            self._stream_end = min(self._fetched + _RANGE_BYTES, self._size_bytes)
            session = self._source.session()
            self._stream = session.open(self._fetched, self._stream_end, session.facts())
        block = self._stream.read(min(_READ_BYTES, self._stream_end - self._fetched))
        if not block:
            raise TransientError(f"connection closed early: got {self._fetched} of {self._stream_end} bytes")
        return block

    def close(self) -> None:
        """Release the connection."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
