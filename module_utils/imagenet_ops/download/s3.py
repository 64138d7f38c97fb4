"""Objects of S3 as sources of bytes, read in parts with the credentials that boto3 finds.

`S3Source` is an archive that a user names, `BucketSource` an object of a bucket as a listing showed it.
"""

from __future__ import annotations

import re
import threading
from typing import Any

from ansible.module_utils.imagenet_ops.aws.errors import (
    error_code,
    error_message,
    explain,
    is_transient,
    sdk_errors,
)
from ansible.module_utils.imagenet_ops.aws.s3 import NOT_FOUND_CODES, Bucket
from ansible.module_utils.imagenet_ops.core.errors import CancelledError, OpsError, SourceChangedError, TransientError
from ansible.module_utils.imagenet_ops.download.source import Facts, Session, Source, StallWatch, Stream


class S3Source(Source):
    """The object that ``s3://bucket/key`` or ``s3://bucket/key?versionId=...`` names.

    ``client`` is that of `s3_client`, with a connection for each session. ``timeout_seconds`` is how long the server
    may say next to nothing.
    """

    parallel = True

    def __init__(self, url: str, client: Any, timeout_seconds: float) -> None:
        match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+?)(?:\?versionId=([^?&]+))?", url)
        if match is None:
            raise OpsError(f"Source {url}", "is no s3://bucket/key", "Correct it and run again")
        bucket, key, version = match.groups()
        self.name = url
        self.address = {"Bucket": bucket, "Key": key, **({"VersionId": version} if version else {})}
        self.timeout_seconds = timeout_seconds
        self.client = client

    def session(self) -> Session:
        """Return a reader; the connections are those of the client's pool."""
        return _S3Session(self)

    def explained(self, error: Exception) -> Exception:
        """Return what ``error`` of the SDK means for the download: a TransientError or an OpsError."""
        answer: dict[str, Any] = getattr(error, "response", None) or {}
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error_code(error)
        what = f"Download from {self.name}"
        if status in (412, 416) or code == "InvalidRange":
            return SourceChangedError(
                what,
                "the object was replaced while it was downloaded",
                "Run again: the download starts anew, as parts of two files must not be mixed",
            )
        if is_transient(error):
            return TransientError(f"{code}: {error_message(error)}")
        if code in NOT_FOUND_CODES:
            return OpsError(what, f"there is no such object ({code})", "Check bucket, key and Region")
        return explain(error, what)


class _S3Session(Session):
    def __init__(self, source: S3Source) -> None:
        self._source = source

    def facts(self) -> Facts:
        """Ask for size and ETag."""
        answer = self._call("head_object")
        return Facts(size_bytes=answer["ContentLength"], ranges=True, validator=answer["ETag"])

    def open(self, start: int, end: int, facts: Facts) -> Stream:
        """Ask for the bytes from ``start`` to ``end``, of the object with that ETag and no other."""
        answer = self._call("get_object", Range=f"bytes={start}-{end - 1}", IfMatch=facts.validator)
        text = answer.get("ContentRange", "")
        if text != f"bytes {start}-{end - 1}/{facts.size_bytes}":
            answer["Body"].close()
            raise TransientError(f"asked for bytes {start}-{end - 1} it sent Content-Range {text!r}")
        return _S3Stream(self._source, answer["Body"])

    def _call(self, operation: str, **request: str) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._source.client, operation)(**self._source.address, **request)
        except sdk_errors() as error:
            raise self._source.explained(error) from error
        return answer

    def close(self) -> None:
        """Do nothing: connections belong to the client's pool."""

    def abort(self) -> None:
        """Do nothing: a read that hangs ends with the client's own timeout."""


class _S3Stream(Stream):
    def __init__(self, source: S3Source, body: Any) -> None:
        self._source = source
        self._body = body
        self._watch = StallWatch(source.timeout_seconds)

    def read(self, limit: int) -> bytes:
        """Return the next bytes."""
        try:
            return self._watch.read(lambda: bytes(self._body.read(limit)))
        except sdk_errors() as error:
            raise self._source.explained(error) from error

    def close(self) -> None:
        """Give the connection back."""
        self._body.close()


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
            raise CancelledError
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
            raise CancelledError
        try:
            block: bytes = self._body.read(limit)
        except sdk_errors() as error:
            raise TransientError(f"{type(error).__name__}: {error}") from error
        return block

    def close(self) -> None:
        """Let go of the connection; one that was not read to its end is closed by that."""
        self._body.close()
