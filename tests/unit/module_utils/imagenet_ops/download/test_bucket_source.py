"""An object in S3 as a source: ranges of one version, and errors by what they mean."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

import boto3
import pytest
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.download.bucket_source import BucketSource, StoppedError
from ansible.module_utils.imagenet_ops.download.source import Facts, PassingError, SourceChangedError
from botocore.config import Config

from tests.fakes.s3_server import BUCKET, Cut, Refusal, S3Server

CONTENT = bytes(range(250)) * 10
FACTS = Facts(len(CONTENT), ranges=True, validator=hashlib.md5(CONTENT).hexdigest())


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server({"key": CONTENT}) as running:
        yield running


@pytest.fixture
def source(server: S3Server) -> BucketSource:
    client = boto3.client(
        "s3",
        region_name="us-east-1",
        endpoint_url=server.url,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        config=Config(retries={"total_max_attempts": 1}),
    )
    return BucketSource(Bucket(client, BUCKET), "key", FACTS, threading.Event())


def test_parts_of_the_object(source: BucketSource) -> None:
    session = source.session()
    assert (source.name, session.facts()) == (f"s3://{BUCKET}/key", FACTS)
    for start, end in ((0, len(CONTENT)), (10, 300), (2499, 2500)):
        stream = session.open(start, end, FACTS)
        assert stream.read(7) + stream.read(5_000) == CONTENT[start:end]
        assert stream.read(1) == b""
        stream.close()
    session.abort()
    session.close()


def test_another_version_is_refused(source: BucketSource, server: S3Server) -> None:
    server.objects["key"] = b"other"
    with pytest.raises(SourceChangedError, match="the object was changed while it was read"):
        source.session().open(0, 5, FACTS)
    del server.objects["key"]
    with pytest.raises(SourceChangedError, match="is none"):
        source.session().open(0, 5, FACTS)


@pytest.mark.parametrize(
    "refusal", [Refusal(503, "SlowDown"), Refusal(500, "InternalError"), Refusal(400, "RequestTimeout")]
)
def test_what_may_pass(source: BucketSource, server: S3Server, refusal: Refusal) -> None:
    server.fault = lambda *_: refusal
    with pytest.raises(PassingError, match=rf"{refusal.code}: No"):
        source.session().open(0, 5, FACTS)


def test_what_does_not_pass(source: BucketSource, server: S3Server) -> None:
    server.fault = lambda *_: Refusal(403, "InvalidAccessKeyId", "Who?")
    with pytest.raises(OpsError, match=rf"s3://{BUCKET}/key: InvalidAccessKeyId: Who\?\. Check the access key"):
        source.session().open(0, 5, FACTS)


def test_a_connection_that_ends_early(source: BucketSource, server: S3Server) -> None:
    server.fault = lambda *_: Cut(100)
    stream = source.session().open(0, 1000, FACTS)
    assert stream.read(1000) == CONTENT[:100]
    with pytest.raises(PassingError, match="IncompleteRead"):
        stream.read(900)
    stream.close()


def test_no_server(source: BucketSource, server: S3Server) -> None:
    server.server_close()
    with pytest.raises(PassingError):
        source.session().open(0, 5, FACTS)


def test_once_something_else_failed_nothing_is_read(source: BucketSource, server: S3Server) -> None:
    stream = source.session().open(0, 5, FACTS)
    source.stop.set()
    with pytest.raises(StoppedError):
        stream.read(5)
    with pytest.raises(StoppedError):
        source.session().open(0, 5, FACTS)
    assert len(server.requests) == 1
