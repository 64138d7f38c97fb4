"""Objects of S3 as sources of bytes, read in parts with the credentials that boto3 finds."""

from __future__ import annotations

import re
import threading
from typing import Any

from ansible.module_utils.imagenet_ops.aws.errors import sdk_errors
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, bare_etag
from ansible.module_utils.imagenet_ops.core.errors import CancelledError, OpsError
from ansible.module_utils.imagenet_ops.download.source import Facts, Session, Source, StallWatch, Stream


class S3Source(Source):
    """The object under ``key`` of ``bucket``, or its version ``version_id``.

    ``facts`` is what a listing of the bucket said of it; without, a session asks. Nothing is read once ``stop`` is set.
    ``timeout_seconds`` is how long the server may say next to nothing.
    """

    parallel = True

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        *,
        version_id: str = "",
        facts: Facts | None = None,
        stop: threading.Event | None = None,
        timeout_seconds: float = 60,
    ) -> None:
        self.name = bucket.uri(key) + (f"?versionId={version_id}" if version_id else "")
        self.bucket = bucket
        self.key = key
        self.version_id = version_id
        self.facts = facts
        self.stop = stop or threading.Event()
        self.timeout_seconds = timeout_seconds

    def session(self) -> Session:
        """Return a reader; the connections are those of the bucket's client, which keeps them alive."""
        return _S3Session(self)


def named_object(url: str, client: Any, timeout_seconds: float) -> S3Source:
    """Return the object that ``s3://bucket/key`` or ``s3://bucket/key?versionId=...`` names.

    ``client`` is that of `s3_client`, with a connection for each session. Raises OpsError for another URL.
    """
    match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+?)(?:\?versionId=([^?&]+))?", url)
    if match is None:
        raise OpsError(f"Source {url}", "is no s3://bucket/key", "Correct it and run again")
    bucket, key, version_id = match.groups()
    return S3Source(Bucket(client, bucket), key, version_id=version_id or "", timeout_seconds=timeout_seconds)


class _S3Session(Session):
    def __init__(self, source: S3Source) -> None:
        self._source = source

    def facts(self) -> Facts:
        """Return what a listing said, or else query size and ETag."""
        source = self._source
        if source.facts is not None:
            return source.facts
        found = source.bucket.find(source.key, source.version_id)
        if found is None:
            raise OpsError(source.name, "there is no such object", "Check bucket, key and Region")
        # With quotes, as earlier versions wrote it into their checkpoints.
        return Facts(size_bytes=found.size_bytes, ranges=True, validator=f'"{found.etag}"')

    def open(self, start: int, end: int, facts: Facts) -> Stream:
        """Request the bytes from ``start`` to ``end``, of the object that ``facts`` describes and no other."""
        source = self._source
        if source.stop.is_set():
            raise CancelledError
        body = source.bucket.open(
            source.key, start, end, bare_etag(facts.validator), source.version_id, facts.size_bytes or 0
        )
        return _S3Stream(source, body)

    def close(self) -> None:
        """Do nothing: the connections belong to the client."""

    def abort(self) -> None:
        """Do nothing: a read ends by itself, after the client's time-out at the latest."""


class _S3Stream(Stream):
    def __init__(self, source: S3Source, body: Any) -> None:
        self._source = source
        self._body = body
        self._watch = StallWatch(source.timeout_seconds)

    def read(self, limit: int) -> bytes:
        """Return the next bytes."""
        if self._source.stop.is_set():
            raise CancelledError
        try:
            return self._watch.read(lambda: bytes(self._body.read(limit)))
        except sdk_errors() as error:
            raise self._source.bucket.failure(error, self._source.key) from error

    def close(self) -> None:
        """Release the connection; one that was not read to its end is closed by that."""
        self._body.close()
