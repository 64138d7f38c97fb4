from __future__ import annotations

import hashlib
import io
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.session
import pytest
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, StoredObject, StoredPart, crc32_text, s3_client
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from moto import mock_aws
from urllib3 import HTTPResponse

from tests.fakes.s3 import FaultyClient, refused

MIB = 1 << 20
SHA256 = "0" * 64


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyClient]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        real = boto3.client("s3", region_name="us-east-1")
        real.create_bucket(Bucket="imagenet-backup")
        yield FaultyClient(real)


@pytest.fixture
def bucket(client: FaultyClient) -> Bucket:
    return Bucket(client, "imagenet-backup", "123456789012")


def checksum(data: bytes) -> str:
    return crc32_text(zlib.crc32(data))


def test_checksums_are_written_as_s3_writes_them() -> None:
    # The check value of CRC-32: that of the digits 1 to 9 is cbf43926.
    assert checksum(b"123456789") == "y/Q5Jg=="


def test_an_object_is_stored_with_its_sha256(bucket: Bucket) -> None:
    bucket.put("a/b", b"bytes", SHA256, checksum(b"bytes"))
    found = bucket.stored("a/b")
    assert found is not None
    assert (found.size_bytes, found.sha256) == (5, SHA256)
    assert bucket.stored("a") is None
    assert bucket.uri("a/b") == "s3://imagenet-backup/a/b"


def test_an_object_in_parts(bucket: Bucket) -> None:
    data = [bytes(5 * MIB), b"the rest"]
    upload_id = bucket.begin_upload("large", SHA256)
    parts = {
        number: bucket.put_part("large", upload_id, number, part, checksum(part)) for number, part in enumerate(data, 1)
    }
    assert bucket.stored("large") is None
    assert [(upload.key, upload.upload_id) for upload in bucket.uploads("lar")] == [("large", upload_id)]
    assert bucket.uploads("small") == []
    assert {number: part.etag for number, part in bucket.parts("large", upload_id).items()} == {
        number: part.etag for number, part in parts.items()
    }
    bucket.complete_upload("large", upload_id, parts, checksum(b"".join(data)))
    stored = bucket.stored("large")
    assert stored == StoredObject(5 * MIB + 8, SHA256, checksum(b"".join(data)), bucket.objects("large")["large"].etag)
    assert bucket.uploads("") == []


def test_parts_of_more_than_a_page(bucket: Bucket, client: FaultyClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def list_parts(**request: Any) -> dict[str, Any]:
        number = request.get("PartNumberMarker", 0) + 1
        part = {"PartNumber": number, "ETag": f"e{number}", "Size": 7, "ChecksumCRC32": "c"}
        return {"Parts": [part], "IsTruncated": number < 3, "NextPartNumberMarker": number}

    monkeypatch.setattr(client.client, "list_parts", list_parts)
    assert bucket.parts("k", "u") == {number: StoredPart(f"e{number}", 7, "c") for number in (1, 2, 3)}


def test_an_aborted_upload_is_gone(bucket: Bucket) -> None:
    bucket.abort_upload("large", bucket.begin_upload("large", SHA256))
    assert bucket.uploads("") == []


def test_a_server_that_answers_an_empty_list_with_an_error(
    bucket: Bucket, client: FaultyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Paginator:
        def paginate(self, **_: str) -> Iterator[dict[str, Any]]:
            raise refused("ListMultipartUploads", "NoSuchUpload")
            yield {}

    monkeypatch.setattr(client.client, "get_paginator", lambda _: Paginator())
    assert bucket.uploads("v1/") == []


def test_only_a_new_object_is_put(bucket: Bucket) -> None:
    assert bucket.put_new("manifest", b"one", SHA256, checksum(b"one")) is True
    assert bucket.put_new("manifest", b"two!", SHA256, checksum(b"two!")) is False
    assert bucket.objects("")["manifest"].size_bytes == 3


def test_a_checksum_of_parts_is_not_taken_for_one_of_the_object(
    bucket: Bucket, client: FaultyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"ContentLength": 1, "Metadata": {}, "ChecksumCRC32": "abc=-2", "ChecksumType": "COMPOSITE", "ETag": '"e"'}
    monkeypatch.setattr(client.client, "head_object", lambda **_: answer)
    assert bucket.stored("k") == StoredObject(1, "", "", "e")


def test_every_request_names_the_owner(bucket: Bucket, client: FaultyClient) -> None:
    bucket.put("k", b"", SHA256, checksum(b""))
    bucket.stored("k")
    assert {request["ExpectedBucketOwner"] for _, request in client.calls} == {"123456789012"}


def test_a_bucket_of_someone_else(bucket: Bucket, client: FaultyClient) -> None:
    def deny(operation: str, _: dict[str, Any]) -> None:
        raise refused(operation, "AccessDenied", "Access Denied")

    client.fault = deny
    with pytest.raises(OpsError) as caught:
        bucket.put("k", b"", SHA256, checksum(b""))
    assert str(caught.value) == (
        "s3://imagenet-backup/k: AccessDenied: Access Denied: the bucket does not belong to account 123456789012, or "
        "the action is not allowed. Check whose bucket it is (names are shared by all accounts of the world) and the "
        "policies of the role (docs/permissions.md lists them)"
    )
    with pytest.raises(OpsError, match="does not belong to account 123456789012"):
        bucket.put_new("k", b"", SHA256, checksum(b""))
    with pytest.raises(OpsError, match="does not belong to account 123456789012"):
        bucket.stored("k")
    with pytest.raises(OpsError, match=r"AccessDenied: Access Denied\. Allow the action to this user or role"):
        Bucket(client, "imagenet-backup").stored("k")


def test_no_such_bucket(client: FaultyClient) -> None:
    with pytest.raises(OpsError) as caught:
        Bucket(client, "imagenet-none").objects("v1/")
    assert str(caught.value) == (
        "Bucket imagenet-none: NoSuchBucket: The specified bucket does not exist. "
        "Create the bucket (playbooks/prepare.yml does) or correct its name and Region"
    )


def test_the_client_reaches_the_endpoint_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert s3_client("", "", 4).meta.endpoint_url == "https://s3.eu-west-1.amazonaws.com"
    client = s3_client("us-east-1", "http://aws.lab:14566", 4)
    assert (client.meta.endpoint_url, client.meta.region_name) == ("http://aws.lab:14566", "us-east-1")
    with pytest.raises(OpsError, match="Invalid endpoint"):
        s3_client("us-east-1", "not a url", 4)


def test_the_client_takes_the_keys_that_are_given_and_not_one_of_them_alone() -> None:
    client = s3_client("us-east-1", "", 4, keys=("AKEXAMPLE", "not-shown", ""))
    assert client._request_signer._credentials.get_frozen_credentials()[::2] == ("AKEXAMPLE", None)
    client = s3_client("us-east-1", "", 4, keys=("ASEXAMPLE", "not-shown", "the-token"))
    assert client._request_signer._credentials.get_frozen_credentials()[::2] == ("ASEXAMPLE", "the-token")
    for one in (("AKEXAMPLE", "", ""), ("", "not-shown", "")):
        with pytest.raises(OpsError, match="one of the two keys is missing") as caught:
            s3_client("us-east-1", "", 4, keys=one)
        assert "not-shown" not in str(caught.value)


def test_credentials_of_a_busy_host_are_asked_for_five_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore's one try of one second is too little on a host that packs; more than five, if set, stay."""
    core = botocore.session.get_session()
    monkeypatch.setattr("botocore.session.get_session", lambda: core)
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "9")
    s3_client("us-east-1", "http://127.0.0.1:9", 1)
    names = ("metadata_service_num_attempts", "metadata_service_timeout")
    assert [core.get_config_variable(name) for name in names] == [5, 9]


def test_a_host_without_boto3_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(OpsError) as caught:
        s3_client("us-east-1", "", 4)
    assert str(caught.value).startswith(f"The Python package boto3: {sys.executable} cannot import it (")
    assert caught.value.todo == (
        "Run the role python_environment on this host and set ansible_python_interpreter to its interpreter"
    )


@pytest.mark.parametrize(
    ("endpoint", "payload"),
    [
        ("http://127.0.0.1:1", hashlib.sha256(b"bytes").hexdigest()),
        ("https://127.0.0.1:1", "UNSIGNED-PAYLOAD"),
        ("", "UNSIGNED-PAYLOAD"),
    ],
)
def test_a_body_is_hashed_for_the_signature_only_where_tls_does_not_protect_it(
    endpoint: str, payload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    client = s3_client("us-east-1", endpoint, 1, "path", keys=("key", "secret", ""))
    sent: list[dict[str, str]] = []

    def answer(request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        headers = request.headers.items()  # of either type
        sent.append({name: value if isinstance(value, str) else value.decode() for name, value in headers})
        return AWSResponse(request.url, 200, {"ETag": '"etag"'}, HTTPResponse(io.BytesIO()))

    client.meta.events.register("before-send.s3.PutObject", answer)
    Bucket(client, "imagenet-backup").put("key", bytearray(b"bytes"), SHA256, checksum(b"bytes"))
    assert [headers["X-Amz-Content-SHA256"] for headers in sent] == [payload]
    assert "x-amz-checksum-crc32" in sent[0]["Authorization"]  # so that nobody can exchange the checksum
