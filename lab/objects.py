"""S3: bodies that must match their checksums, buckets that have owners, and callers that must be allowed."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import unescape

from moto.core.authorization import ActionAuthenticatorMixin
from moto.iam.access_control import PermissionResult
from moto.s3.models import FakeBucket, s3_backends
from moto.s3.responses import S3Response

from lab.access import Callers, Calls
from lab.authorization import request_of_s3, s3_operation
from lab.patching import error_answer, wrap
from lab.policies import Decision, Request, decide
from lab.rules import ApiError

CHECKSUM = "x-amz-checksum-"
_DELETED = re.compile(r"<Object>(.*?)</Object>", re.DOTALL)
_DELETED_KEY = re.compile(r"<Key>(.*?)</Key>", re.DOTALL)
_RESULTS = {
    Decision.ALLOWED: PermissionResult.PERMITTED,
    Decision.NOT_ALLOWED: PermissionResult.NEUTRAL,
    Decision.DENIED: PermissionResult.DENIED,
}


class ObjectStore:
    """The patches of S3."""

    def __init__(self, calls: Calls, callers: Callers) -> None:
        self._calls = calls
        self._callers = callers

    def install(self) -> None:
        """Change moto."""
        wrap(S3Response, "bucket_response")(_answer)
        wrap(S3Response, "key_response")(_answer)
        wrap(S3Response, "put_object")(_checked_body)
        wrap(S3Response, "upload_part")(_checked_body)
        wrap(FakeBucket, "get_permission")(_permission)
        wrap(S3Response, "_key_response_post")(_checked_upload)
        wrap(ActionAuthenticatorMixin, "_authenticate_and_authorize_s3_action")(self._authorize)

    def _authorize(self, _: Any, response: Any, bucket_name: str | None = None, key_name: str | None = None) -> None:
        query = parse_qs(response.parsed_url.query, keep_blank_values=True)
        operation = s3_operation(response.method, bucket_name or "", key_name or "", query)
        self._calls.add(f"s3:{operation}")
        if bucket_name is not None and not response.headers.get("Authorization"):
            _check_bucket_exists(bucket_name)
        asked = [(key_name or "", list(query))]
        if operation == "DeleteObjects":  # what it deletes is in its body
            asked = [
                (unescape(key), ["versionId"] if "<VersionId>" in entry else [])
                for entry in _DELETED.findall(response.body.decode())
                for key in _DELETED_KEY.findall(entry)
            ]
        self._callers.check(response, [request_of_s3(operation, bucket_name or "", key, names) for key, names in asked])
        if bucket_name is not None:
            _check_bucket_owner(response, bucket_name, operation)


def checksums_of(body: bytes) -> dict[str, str]:
    """Return the checksums of ``body`` that are cheap to know, by the names of their headers, in base64."""
    return {
        "content-md5": _text(hashlib.md5(body, usedforsecurity=False).digest()),
        f"{CHECKSUM}crc32": _text(zlib.crc32(body).to_bytes(4, "big")),
        f"{CHECKSUM}sha1": _text(hashlib.sha1(body, usedforsecurity=False).digest()),
        f"{CHECKSUM}sha256": _text(hashlib.sha256(body).digest()),
    }


def check_body(body: bytes, headers: Any) -> None:
    """Raise BadDigest where a checksum in ``headers`` is not that of ``body``."""
    known = ("content-md5", f"{CHECKSUM}crc32", f"{CHECKSUM}sha1", f"{CHECKSUM}sha256")
    wanted = {name: headers[name] for name in known if headers.get(name)}
    if not wanted:
        return
    found = checksums_of(body)
    wrong = sorted(name for name, value in wanted.items() if value != found[name])
    if wrong:
        raise ApiError("BadDigest", f"The {wrong[0]} you specified did not match what we received.")


def _text(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _permission(original: Any, bucket: Any, action: str, resource: str) -> Any:
    if bucket.policy is None:
        return original(bucket, action, resource)
    return _RESULTS[decide([bucket.policy.decode()], Request(action, resource, {"aws:SecureTransport": "true"}))]


def _answer(original: Any, response: Any, *arguments: Any) -> Any:
    try:
        return original(response, *arguments)
    except ApiError as error:
        return error_answer(response, error)


def _checked_body(original: Any, response: Any) -> Any:
    check_body(response.body or b"", response.headers)
    return original(response)


def _checked_upload(original: Any, response: Any, request: Any, body: bytes, bucket: str, query: Any, key: str) -> Any:
    """Before an upload is completed, compare its parts with the checksum of the whole that the caller announced."""
    whole = response.headers.get(f"{CHECKSUM}crc32")
    if whole and query.get("uploadId") and response.headers.get(f"{CHECKSUM}type") == "FULL_OBJECT":
        upload = response.backend.get_bucket(bucket).multiparts.get(query["uploadId"][0])
        crc32 = 0
        for number, _ in response._complete_multipart_body(body) if upload else []:  # noqa: SLF001 - moto's own reader
            if number in upload.parts:
                crc32 = zlib.crc32(upload.parts[number].value, crc32)
        if upload and _text(crc32.to_bytes(4, "big")) != whole:
            raise ApiError("BadDigest", "The CRC32 you specified did not match the calculated checksum.")
    return original(response, request, body, bucket, query, key)


def _check_bucket_exists(bucket_name: str) -> None:
    """Raise NoSuchBucket if the bucket does not exist: S3 reports that even for unsigned requests."""
    if bucket_name not in s3_backends.bucket_accounts:
        raise ApiError("NoSuchBucket", "The specified bucket does not exist", 404)


def _check_bucket_owner(response: Any, bucket_name: str, action: str) -> None:
    """Raise AccessDenied where the bucket is another account's, or not that of the account the caller expects."""
    _, owner = s3_backends.bucket_accounts.get(bucket_name, (None, None))
    if owner is None:
        return
    expected = response.headers.get("x-amz-expected-bucket-owner", owner)
    # Who creates a bucket whose name is taken hears BucketAlreadyExists, from moto.
    if expected != owner or (owner != response.current_account and action != "CreateBucket"):
        raise ApiError("AccessDenied", "Access Denied", 403)
