"""Objects of S3 arrive in parts, as the version that they were at first; refusals say what to do."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket
from ansible.module_utils.imagenet_ops.core.errors import CancelledError, OpsError, SourceChangedError, TransientError
from ansible.module_utils.imagenet_ops.download.fetch import FetchRequest, Wanted, fetch
from ansible.module_utils.imagenet_ops.download.s3 import S3Source, named_object
from ansible.module_utils.imagenet_ops.download.source import Facts
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectTimeoutError, IncompleteReadError, NoCredentialsError, SSLError
from moto import mock_aws

from tests.fakes.s3 import FaultyClient, refused
from tests.fakes.s3_server import BUCKET, Cut, Refusal, S3Server

CONTENT = bytes(range(256)) * 4000
URL = "s3://datasets/imagenet/val.tar"
# What a server has whose listing was read.
LISTED = bytes(range(250)) * 10
LISTED_FACTS = Facts(len(LISTED), ranges=True, validator=hashlib.md5(LISTED).hexdigest())


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyClient]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        real = boto3.client("s3", region_name="us-east-1")
        real.create_bucket(Bucket="datasets")
        real.put_object(Bucket="datasets", Key="imagenet/val.tar", Body=CONTENT)
        yield FaultyClient(real)


def source(client: Any = None, url: str = URL) -> S3Source:
    return named_object(url, client, 10)


def always(error: Exception) -> Callable[[str, dict[str, Any]], None]:
    def fault(_operation: str, _request: dict[str, Any]) -> None:
        raise error

    return fault


def answered(status: int, code: str, message: str = "No.") -> ClientError:
    error: ClientError = refused("GetObject", code, message)
    error.response["ResponseMetadata"] = {
        "HTTPStatusCode": status, "RequestId": "", "HostId": "", "HTTPHeaders": {}, "RetryAttempts": 0,
    }  # fmt: skip
    return error


def test_a_part_of_an_object(client: FaultyClient) -> None:
    session = source(client).session()
    facts = session.facts()
    assert (facts.size_bytes, facts.ranges) == (len(CONTENT), True)
    with contextlib.closing(session.open(5, 1000, facts)) as stream:
        assert b"".join(iter(lambda: stream.read(100), b"")) == CONTENT[5:1000]
    operation, request = client.calls[-1]
    assert (operation, request["Range"], request["IfMatch"]) == ("get_object", "bytes=5-999", facts.validator)


def test_a_version_of_an_object(client: FaultyClient) -> None:
    client.client.put_bucket_versioning(Bucket="datasets", VersioningConfiguration={"Status": "Enabled"})
    old = client.client.put_object(Bucket="datasets", Key="imagenet/val.tar", Body=b"old")["VersionId"]
    client.client.put_object(Bucket="datasets", Key="imagenet/val.tar", Body=b"newest")
    assert source(client).session().facts().size_bytes == 6
    assert source(client, f"{URL}?versionId={old}").session().facts().size_bytes == 3


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("url", ["s3://datasets", "s3://datasets/", "s3://Upper/key", "s3://d/k?versionId="])
def test_what_is_no_object(url: str) -> None:
    with pytest.raises(OpsError) as caught:
        source(url=url)
    assert str(caught.value) == f"Source {url}: is no s3://bucket/key. Correct it and run again"


def test_an_object_that_is_replaced_meanwhile(client: FaultyClient) -> None:
    session = source(client).session()
    facts = session.facts()
    client.client.put_object(Bucket="datasets", Key="imagenet/val.tar", Body=CONTENT[::-1])
    with pytest.raises(SourceChangedError) as caught:
        session.open(0, 10, facts)
    assert str(caught.value) == (
        f"{URL}: the object was changed while it was read: its ETag was {facts.validator.strip(chr(34))} and is now"
        " another. Find out what writes to it, then rerun: this file starts over"
    )


def test_a_part_that_is_another_than_asked_for(client: FaultyClient) -> None:
    session = source(client).session()
    facts = session.facts()
    other = Facts(len(CONTENT) + 1, ranges=True, validator=facts.validator)
    with pytest.raises(TransientError, match="requested bytes 0-9, and S3 sent bytes 0-9/1024000"):
        session.open(0, 10, other)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (answered(404, "404"), "there is no such object. Check bucket, key and Region"),
        (
            answered(400, "ExpiredToken", "The provided token has expired."),
            (
                "ExpiredToken: The provided token has expired. Renew the credentials (instance profile, `aws sso"
                " login`, session token) and rerun; completed work is kept"
            ),
        ),
        (
            answered(403, "403", "Forbidden"),
            "403: Forbidden. Allow the action to this user or role (docs/permissions.md lists all) and rerun",
        ),
        (
            NoCredentialsError(),
            (
                "NoCredentialsError: Unable to locate credentials. Give the host an instance profile, or set"
                " AWS_PROFILE or AWS_ACCESS_KEY_ID for this run"
            ),
        ),
        (
            SSLError(endpoint_url="https://s3", error="bad certificate"),
            (
                "SSLError: SSL validation failed for https://s3 bad certificate. Check the certificate of the endpoint."
                " If its authority is your own, set the file with the authority's certificate (data_s3_ca_bundle"
                " for S3, else AWS_CA_BUNDLE)"
            ),
        ),
    ],
)
def test_refusals(client: FaultyClient, error: Exception, why: str) -> None:
    client.fault = always(error)
    with pytest.raises(OpsError) as caught:
        source(client).session().facts()
    assert str(caught.value) == f"{URL}: {why}"


@pytest.mark.parametrize(
    "error",
    [
        answered(503, "SlowDown"),
        answered(500, "InternalError"),
        answered(400, "RequestTimeout"),
        ConnectTimeoutError(endpoint_url="https://s3"),
    ],
)
def test_what_may_pass(client: FaultyClient, error: Exception) -> None:
    client.fault = always(error)
    with pytest.raises(TransientError):
        source(client).session().facts()


class _Body:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, limit: int) -> bytes:
        block, self.content = self.content[:limit], self.content[limit:]
        if not block:
            raise IncompleteReadError(actual_bytes=1, expected_bytes=2)
        return block

    def close(self) -> None:
        pass


def test_a_body_that_ends_too_early_is_asked_for_again(
    client: FaultyClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ansible.module_utils.imagenet_ops.core.retry._FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("ansible.module_utils.imagenet_ops.download.fetch.s3_client", lambda *_: client)
    real_open = client.client.get_object
    cuts = iter([100, 0, 7])

    def get_object(**request: Any) -> Any:
        answer = real_open(**request)
        cut = next(cuts, None)
        return answer if cut is None else {**answer, "Body": _Body(answer["Body"].read()[:cut])}

    monkeypatch.setattr(client.client, "get_object", get_object)
    dest = tmp_path / "val.tar"
    state_dir = str(tmp_path / ".state")
    wanted = Wanted(size_bytes=len(CONTENT))
    result = fetch(FetchRequest([URL], str(dest), state_dir, wanted, connections=3, region="us-east-1"))
    assert dest.read_bytes() == CONTENT
    assert result["downloaded_bytes"] == len(CONTENT)
    assert next(cuts, None) is None


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server({"key": LISTED}) as running:
        yield running


@pytest.fixture
def listed(server: S3Server) -> S3Source:
    client = boto3.client(
        "s3",
        region_name="us-east-1",
        endpoint_url=server.url,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        config=Config(retries={"total_max_attempts": 1}),
    )
    return S3Source(Bucket(client, BUCKET), "key", facts=LISTED_FACTS)


def test_parts_of_the_object(listed: S3Source) -> None:
    session = listed.session()
    assert (listed.name, session.facts()) == (f"s3://{BUCKET}/key", LISTED_FACTS)
    for start, end in ((0, len(LISTED)), (10, 300), (2499, 2500)):
        stream = session.open(start, end, LISTED_FACTS)
        assert stream.read(7) + stream.read(5_000) == LISTED[start:end]
        assert stream.read(1) == b""
        stream.close()
    session.abort()
    session.close()


def test_another_version_is_refused(listed: S3Source, server: S3Server) -> None:
    server.objects["key"] = b"other"
    with pytest.raises(SourceChangedError, match="the object was changed while it was read"):
        listed.session().open(0, 5, LISTED_FACTS)
    del server.objects["key"]
    with pytest.raises(SourceChangedError, match="is now none"):
        listed.session().open(0, 5, LISTED_FACTS)


@pytest.mark.parametrize(
    "refusal", [Refusal(503, "SlowDown"), Refusal(500, "InternalError"), Refusal(400, "RequestTimeout")]
)
def test_what_may_pass_of_a_listed_object(listed: S3Source, server: S3Server, refusal: Refusal) -> None:
    server.fault = lambda *_: refusal
    with pytest.raises(TransientError, match=rf"{refusal.code}: No"):
        listed.session().open(0, 5, LISTED_FACTS)


def test_what_does_not_pass_of_a_listed_object(listed: S3Source, server: S3Server) -> None:
    server.fault = lambda *_: Refusal(403, "InvalidAccessKeyId", "Who?")
    with pytest.raises(OpsError, match=rf"s3://{BUCKET}/key: InvalidAccessKeyId: Who\?\. Check the access key"):
        listed.session().open(0, 5, LISTED_FACTS)


def test_a_connection_that_ends_early(listed: S3Source, server: S3Server) -> None:
    server.fault = lambda *_: Cut(100)
    stream = listed.session().open(0, 1000, LISTED_FACTS)
    assert stream.read(1000) == LISTED[:100]
    with pytest.raises(TransientError, match="IncompleteRead"):
        stream.read(900)
    stream.close()


def test_no_server(listed: S3Source, server: S3Server) -> None:
    server.server_close()
    with pytest.raises(TransientError):
        listed.session().open(0, 5, LISTED_FACTS)


def test_once_something_else_failed_nothing_is_read(listed: S3Source, server: S3Server) -> None:
    stream = listed.session().open(0, 5, LISTED_FACTS)
    listed.stop.set()
    with pytest.raises(CancelledError):
        stream.read(5)
    with pytest.raises(CancelledError):
        listed.session().open(0, 5, LISTED_FACTS)
    assert len(server.requests) == 1
