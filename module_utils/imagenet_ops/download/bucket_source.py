"""An object of a bucket, as a listing showed it, as a source of bytes for `transfer`."""

from __future__ import annotations

import threading
from typing import Any

from ansible.module_utils.imagenet_ops.aws.errors import sdk_errors
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket
from ansible.module_utils.imagenet_ops.download.source import Facts, PassingError, Session, Source, Stream


class StoppedError(Exception):
    """Something else failed, so this was given up."""


class BucketSource(Source):
    """The object under ``key`` of ``bucket``, as long as it has ``facts``; nothing is read once ``stop`` is set."""

    parallel = True

    def __init__(self, bucket: Bucket, key: str, facts: Facts, stop: threading.Event) -> None:
        self.bucket = bucket
        self.key = key
        self.facts = facts
        self.stop = stop
        self.name = bucket.uri(key)

    def session(self) -> Session:
        """Return a reader; the connections are those of the bucket's client, which keeps them alive."""
        return _BucketSession(self)


class _BucketSession(Session):
    def __init__(self, source: BucketSource) -> None:
        self._source = source

    def facts(self) -> Facts:
        """Return what the listing of the bucket said."""
        return self._source.facts

    def open(self, start: int, end: int, facts: Facts) -> Stream:
        """Ask for the bytes from ``start`` to ``end`` of the version that ``facts`` describes."""
        if self._source.stop.is_set():
            raise StoppedError
        return _BucketStream(self._source, self._source.bucket.open(self._source.key, start, end, facts.validator))

    def close(self) -> None:
        """Do nothing: the connections belong to the client."""

    def abort(self) -> None:
        """Do nothing: a read ends by itself, after the client's time-out at the latest."""


class _BucketStream(Stream):
    def __init__(self, source: BucketSource, body: Any) -> None:
        self._source = source
        self._body = body

    def read(self, limit: int) -> bytes:
        """Return the next bytes."""
        if self._source.stop.is_set():
            raise StoppedError
        try:
            block: bytes = self._body.read(limit)
        except sdk_errors() as error:
            raise PassingError(f"{type(error).__name__}: {error}") from error
        return block

    def close(self) -> None:
        """Let go of the connection; one that was not read to its end is closed by that."""
        self._body.close()
