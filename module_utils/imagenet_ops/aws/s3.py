"""A bucket, with every object checked on its way: what is stored is proved by checksums, never by dates.

Each object carries its SHA-256 in its metadata (``x-amz-meta-sha256``). CRC32 goes along with every part and, for the
object as a whole, with the end of the upload (``ChecksumType`` FULL_OBJECT, S3 User Guide "Checking object integrity"),
so that S3 itself refuses bytes that were damaged on the way.
"""

from __future__ import annotations

import base64
import contextlib
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Union

from ansible.module_utils.imagenet_ops.aws.errors import (
    error_code,
    error_message,
    explain,
    is_transient,
    sdk_errors,
)
from ansible.module_utils.imagenet_ops.core.errors import OpsError, SourceChangedError, TransientError
from ansible.module_utils.imagenet_ops.core.retry import Attempts

SHA256_METADATA = "sha256"
NOT_FOUND_CODES = ("404", "NoSuchKey", "NotFound")
# Some refusals come without a code but the HTTP status, since a HEAD has no body.
DENIED_CODES = ("403", "AccessDenied")
# What a request for a range of the object with a certain ETag gets where there is another.
CHANGED_CODES = ("PreconditionFailed", "412", "InvalidRange", "416")
# How the credentials of the instance profile are asked for. botocore tries once, for a second: on a host that packs on
# all cores the metadata service may take longer, and the backup would end with NoCredentialsError.
METADATA_SERVICE = {"metadata_service_num_attempts": 5, "metadata_service_timeout": 5}
# How often a range is requested again that breaks off, beside what botocore does about a refused request.
_READ_RETRIES = 8
# A part lies in a buffer that is used again and again, or is bytes where it does not fill one.
Buffer = Union[bytes, bytearray]


class StoredObject(NamedTuple):
    """An object in the bucket; ``sha256`` and ``crc32`` (base64, of the whole object) are "" where it has none.

    ``etag`` (without quotes) is what a listing shows too, and another once the object is overwritten.
    """

    size_bytes: int
    sha256: str
    crc32: str
    etag: str


class ListedObject(NamedTuple):
    """An object as a listing shows it: ``etag`` without quotes, ``modified_seconds`` since 1970 when it was stored."""

    size_bytes: int
    etag: str
    modified_seconds: float


class StoredPart(NamedTuple):
    """A part of an upload that was not completed; ``crc32`` is in base64, "" where the server did not keep it."""

    etag: str
    size_bytes: int
    crc32: str


class Upload(NamedTuple):
    """A multipart upload that was begun and neither completed nor aborted."""

    key: str
    upload_id: str


def crc32_text(crc32: int) -> str:
    """Return a CRC32 as S3 writes it: four bytes, big endian, in base64."""
    return base64.b64encode(crc32.to_bytes(4, "big")).decode()


def s3_client(
    region: str,
    endpoint_url: str,
    connections: int,
    addressing_style: str = "auto",
    ca_bundle: str = "",
    keys: tuple[str, str, str] = ("", "", ""),
) -> Any:
    """Return a boto3 client for S3.

    ``keys`` are access key and secret key, both or neither, and the session token of temporary ones; without them the
    credentials are those of boto3's default chain (on a host of EC2, its instance profile).
    "" for ``region``, ``endpoint_url`` and ``ca_bundle`` (a file of certificates) leaves them to the environment.
    ``addressing_style`` is auto, path or virtual. Raises OpsError without boto3 or a Region, with one key alone, and
    where ``ca_bundle`` holds no certificate.
    """
    try:
        import boto3  # noqa: PLC0415 - a host without it is told so
        import botocore.session  # noqa: PLC0415 - likewise
        from botocore.config import Config  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise OpsError(
            "The Python package boto3",
            f"{sys.executable} cannot import it ({error})",
            "Run the role python_environment on this host and set ansible_python_interpreter to its interpreter",
        ) from error
    if bool(keys[0]) != bool(keys[1]):
        raise OpsError(
            "The credentials for S3",
            "one of the two keys is missing",
            "Set both data_s3_access_key and data_s3_secret_key, or neither",
        )
    if ca_bundle:
        _check_certificates(ca_bundle)
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 10},
        max_pool_connections=connections,
        connect_timeout=10,
        read_timeout=60,
        s3={"addressing_style": addressing_style},
    )
    errors: tuple[type[Exception], ...] = (*sdk_errors(), ValueError)
    try:
        core = botocore.session.get_session()
        for name, least in METADATA_SERVICE.items():
            core.set_config_variable(name, max(least, core.get_config_variable(name)))
        credentials = [key or None for key in keys]
        session = boto3.Session(*credentials, region_name=region or None, botocore_session=core)
        client = session.client("s3", endpoint_url=endpoint_url or None, verify=ca_bundle or None, config=config)
    except errors as error:
        raise explain(error, "S3") from error
    # Over plain HTTP the signature covers a SHA-256 of every body, the only thing there that withstands an attacker.
    # TLS does that already, and the signature covers our CRC32. botocore would leave the hash out by itself, had it
    # computed the checksum.
    client.meta.config.s3["payload_signing_enabled"] = not client.meta.endpoint_url.startswith("https:")
    return client


def _check_certificates(path: str) -> None:
    """Raise OpsError where ``path`` is no file with certificates: the SDK would tell so of each request, late."""
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        raise OpsError(
            f"Certificates in {path}",
            f"they cannot be read ({error.strerror})",
            "Name a file on this host with the authorities' certificates in PEM format (data_s3_ca_bundle)",
        ) from error


def bare_etag(etag: str) -> str:
    """Return an ETag without its quotes, which some servers leave out in a listing."""
    return etag.strip('"')


class Bucket:
    """One bucket; every method raises OpsError naming the object where S3 refuses."""

    def __init__(self, client: Any, name: str, owner: str = "", storage_class: str = "") -> None:
        """Keep ``client``, the bucket's name and, where given, the account that it must belong to.

        New objects are stored in ``storage_class``; "" leaves it to the bucket.
        """
        self.client = client
        self.name = name
        self.owner = owner
        self._new_object = {"StorageClass": storage_class} if storage_class else {}

    def uri(self, key: str) -> str:
        """Return the name of an object for people."""
        return f"s3://{self.name}/{key}"

    def stored(self, key: str) -> StoredObject | None:
        """Return what is stored under ``key``, or None."""
        try:
            return self._head(key, "")
        except sdk_errors() as error:
            raise self._explained(error, self.uri(key)) from error

    def find(self, key: str, version_id: str) -> StoredObject | None:
        """Return what `stored` does, of the version ``version_id`` ("": the latest).

        Raises TransientError where asking again may help, and OpsError where S3 refuses.
        """
        try:
            return self._head(key, version_id)
        except sdk_errors() as error:
            raise self.failure(error, key) from error

    def _head(self, key: str, version_id: str) -> StoredObject | None:
        try:
            answer = self._request("head_object", Key=key, ChecksumMode="ENABLED", **_version(version_id))
        except sdk_errors() as error:
            if error_code(error) in NOT_FOUND_CODES:
                return None
            raise
        whole = answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
        metadata = {name.lower(): value for name, value in answer["Metadata"].items()}  # some servers write Sha256
        return StoredObject(
            size_bytes=answer["ContentLength"],
            sha256=metadata.get(SHA256_METADATA, ""),
            crc32=answer.get("ChecksumCRC32", "") if whole else "",
            etag=bare_etag(answer["ETag"]),
        )

    def objects(self, prefix: str) -> dict[str, ListedObject]:
        """Return every object whose key begins with ``prefix``, by key."""
        return {
            entry["Key"]: ListedObject(entry["Size"], bare_etag(entry["ETag"]), entry["LastModified"].timestamp())
            for page in self._pages("list_objects_v2", prefix)
            for entry in page.get("Contents", [])
        }

    def open(self, key: str, start: int, end: int, etag: str, version_id: str = "", size_bytes: int = 0) -> Any:
        """Return a body that gives the bytes from ``start`` to ``end`` (exclusive) of the object that has ``etag``.

        ``size_bytes`` is that of the whole object (0: not known), which S3 sends with the bytes. Raises TransientError
        where a retry may help, SourceChangedError where the object is another by now, and OpsError where S3 refuses.
        """
        try:
            request = {"Range": f"bytes={start}-{end - 1}", "IfMatch": f'"{etag}"', **_version(version_id)}
            answer = self._request("get_object", Key=key, **request)
        except sdk_errors() as error:
            if error_code(error) in CHANGED_CODES:
                raise self._changed(key, etag, "another") from error
            if error_code(error) in NOT_FOUND_CODES:
                raise self._changed(key, etag, "none") from error
            raise self.failure(error, key) from error
        found = bare_etag(answer["ETag"])
        if found != etag:  # some servers do not know If-Match
            raise self._changed(key, etag, found)
        sent = answer.get("ContentRange", "")
        if not sent.startswith(f"bytes {start}-{end - 1}/") or (size_bytes and not sent.endswith(f"/{size_bytes}")):
            answer["Body"].close()
            raise TransientError(f"requested bytes {start}-{end - 1}, and S3 sent {sent or 'the whole object'}")
        return answer["Body"]

    def failure(self, error: Exception, key: str) -> Exception:
        """Return what an error of the SDK about an object means: TransientError where it may pass, else OpsError."""
        if is_transient(error):
            return TransientError(f"{error_code(error)}: {error_message(error)}")
        return self._explained(error, self.uri(key))

    def _changed(self, key: str, before: str, after: str) -> SourceChangedError:
        return SourceChangedError(
            self.uri(key),
            f"the object was changed while it was read: its ETag was {before} and is now {after}",
            "Find out what writes to it, then rerun: this file starts over",
        )

    def read(self, key: str, start: int, end: int, etag: str, pause: Callable[[float], object] | None = None) -> bytes:
        """Return the bytes from ``start`` to ``end`` (exclusive) of the object that has ``etag``, retrying if cut.

        ``pause`` waits for so many seconds instead of sleeping. Raises SourceChangedError where the object is another
        by now, and OpsError where S3 refuses or keeps failing.
        """
        attempts = Attempts(_READ_RETRIES)
        while True:
            try:
                return self._read_once(key, start, end, etag)
            except TransientError as error:  # noqa: PERF203 (each turn is a request over the network)
                (pause or time.sleep)(attempts.failed(self.uri(key), error, done_bytes=0))

    def _read_once(self, key: str, start: int, end: int, etag: str) -> bytes:
        with contextlib.closing(self.open(key, start, end, etag)) as body:
            try:
                data: bytes = body.read()
            except sdk_errors() as error:  # the request itself had succeeded
                raise self.failure(error, key) from error
        if len(data) != end - start:
            raise TransientError(f"connection closed early: got {len(data)} of {end - start} bytes")
        return data

    def put(self, key: str, data: Buffer, sha256: str, crc32: str) -> None:
        """Store ``data`` in one request."""
        metadata = {SHA256_METADATA: sha256}
        self._call("put_object", Key=key, Body=data, Metadata=metadata, ChecksumCRC32=crc32, **self._new_object)

    def put_new(self, key: str, data: bytes, sha256: str, crc32: str) -> bool:
        """Store ``data`` unless there is an object under ``key``; say whether it was stored."""
        request = {"Key": key, "Body": data, "Metadata": {SHA256_METADATA: sha256}, "ChecksumCRC32": crc32}
        try:
            self._request("put_object", IfNoneMatch="*", **request, **self._new_object)
        except sdk_errors() as error:
            if error_code(error) == "PreconditionFailed":
                return False
            raise self._explained(error, self.uri(key)) from error
        return True

    def uploads(self, prefix: str) -> list[Upload]:
        """Return the unfinished multipart uploads of keys that begin with ``prefix``."""
        return [
            Upload(entry["Key"], entry["UploadId"])
            for page in self._pages("list_multipart_uploads", prefix)
            for entry in page.get("Uploads", [])
        ]

    def parts(self, key: str, upload_id: str) -> dict[int, StoredPart]:
        """Return the parts of an unfinished upload that S3 has already, by part number."""
        request = {**self._address(), "Key": key, "UploadId": upload_id}
        try:
            return {
                part["PartNumber"]: StoredPart(part["ETag"], part["Size"], part.get("ChecksumCRC32", ""))
                for page in self.client.get_paginator("list_parts").paginate(**request)
                for part in page.get("Parts", [])
            }
        except sdk_errors() as error:
            raise self._explained(error, self.uri(key)) from error

    def begin_upload(self, key: str, sha256: str = "") -> str:
        """Begin a multipart upload and return its id; ``sha256`` is "" where it is not known before all is read."""
        answer = self._call(
            "create_multipart_upload",
            Key=key,
            Metadata={SHA256_METADATA: sha256} if sha256 else {},
            ChecksumAlgorithm="CRC32",
            ChecksumType="FULL_OBJECT",
            **self._new_object,
        )
        return str(answer["UploadId"])

    def put_part(self, key: str, upload_id: str, number: int, data: Buffer, crc32: str) -> StoredPart:
        """Store part ``number`` (from 1) of an upload."""
        request = {"Key": key, "UploadId": upload_id, "PartNumber": number, "Body": data, "ChecksumCRC32": crc32}
        answer = self._call("upload_part", **request)
        return StoredPart(answer["ETag"], len(data), crc32)

    def complete_upload(self, key: str, upload_id: str, parts: dict[int, StoredPart], crc32: str) -> None:
        """Make an object of the parts; ``crc32`` is that of the whole, which S3 compares."""
        self._call(
            "complete_multipart_upload",
            Key=key,
            UploadId=upload_id,
            MultipartUpload={
                "Parts": [
                    {"PartNumber": number, "ETag": part.etag, "ChecksumCRC32": part.crc32}
                    for number, part in sorted(parts.items())
                ]
            },
            ChecksumCRC32=crc32,
            ChecksumType="FULL_OBJECT",
            MpuObjectSize=sum(part.size_bytes for part in parts.values()),
        )

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Drop an upload with its parts, which would be paid for else."""
        self._call("abort_multipart_upload", Key=key, UploadId=upload_id)

    def _pages(self, operation: str, prefix: str) -> Iterator[dict[str, Any]]:
        pages = self.client.get_paginator(operation).paginate(**self._address(), Prefix=prefix)
        try:
            yield from pages
        except sdk_errors() as error:
            if error_code(error) == "NoSuchUpload":
                return  # how some servers other than AWS say that there is none
            raise self._explained(error, f"Bucket {self.name}") from error

    def _call(self, operation: str, **request: Any) -> dict[str, Any]:
        try:
            return self._request(operation, **request)
        except sdk_errors() as error:
            raise self._explained(error, self.uri(request["Key"])) from error

    def _request(self, operation: str, **request: Any) -> dict[str, Any]:
        answer: dict[str, Any] = getattr(self.client, operation)(**self._address(), **request)
        return answer

    def _address(self) -> dict[str, str]:
        return {"Bucket": self.name, **({"ExpectedBucketOwner": self.owner} if self.owner else {})}

    def _explained(self, error: Exception, what: str) -> OpsError:
        explained = explain(error, what)
        if self.owner and error_code(error) in DENIED_CODES:
            explained = OpsError(
                what,
                f"{explained.why}: the bucket does not belong to account {self.owner}, or the action is not allowed",
                "Check whose bucket it is (names are shared by all accounts of the world) and the policies of the role "
                "(docs/permissions.md lists them)",
            )
        return explained


def _version(version_id: str) -> dict[str, str]:
    return {"VersionId": version_id} if version_id else {}
