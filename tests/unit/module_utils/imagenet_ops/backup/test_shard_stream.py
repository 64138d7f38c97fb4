from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable

import pytest
from ansible.module_utils.imagenet_ops.archive.member import DamagedArchiveError
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket
from ansible.module_utils.imagenet_ops.backup import shard_stream
from ansible.module_utils.imagenet_ops.backup.shard_stream import ShardStream
from ansible.module_utils.imagenet_ops.core import retry
from ansible.module_utils.imagenet_ops.core.errors import CancelledError, OpsError, TransientError
from ansible.module_utils.imagenet_ops.download.s3 import S3Source
from ansible.module_utils.imagenet_ops.download.source import Facts

CONTENT = random.Random(1).randbytes(10_000)


class Body:
    def __init__(self, content: bytes, broken_after: int | None) -> None:
        self.content = content
        self.left = len(content) if broken_after is None else broken_after
        self.is_broken = broken_after is not None

    def read(self, limit: int) -> bytes:
        if self.is_broken and not self.left:
            raise TransientError("cut")
        count = min(limit, self.left)
        block, self.content = self.content[:count], self.content[count:]
        self.left -= count
        return block

    def close(self) -> None:
        pass


class Requested(Bucket):
    """A bucket with one object; ``cut(number)`` says after how many bytes a request breaks off, None: it does not."""

    def __init__(self, cut: Callable[[int], int | None]) -> None:
        super().__init__(None, "backup")
        self.cut = cut
        self.requests: list[tuple[int, int]] = []

    def open(self, key: str, start: int, end: int, etag: str, _version_id: str = "", _size_bytes: int = 0) -> Body:
        assert (key, etag) == ("key", "etag")
        self.requests.append((start, end))
        return Body(CONTENT[start:end], self.cut(len(self.requests)))


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_stream, "_RANGE_BYTES", 4_000)
    monkeypatch.setattr(shard_stream, "_READ_BYTES", 1_000)
    monkeypatch.setattr(shard_stream, "_RETRIES", 2)
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.001)


def stream_of(bucket: Requested, report: Callable[[int], None] = lambda _count: None) -> ShardStream:
    facts = Facts(len(CONTENT), ranges=True, validator="etag")
    source = S3Source(bucket, "key", facts=facts)
    return ShardStream(source, len(CONTENT), report)


def test_bytes_come_in_order_over_several_requests_and_are_hashed() -> None:
    reported: list[int] = []
    bucket = Requested(lambda _number: None)
    stream = stream_of(bucket, reported.append)
    assert stream.read(10) + stream.read(6_000) == CONTENT[:6_010]
    assert stream.position == 6_010
    stream.skip_to(9_000)
    assert stream.read(1_000) == CONTENT[9_000:]
    assert stream.sha256.hexdigest() == hashlib.sha256(CONTENT).hexdigest()
    assert bucket.requests == [(0, 4_000), (4_000, 8_000), (8_000, 10_000)]
    assert sum(reported) == len(CONTENT)


def test_it_is_asked_for_again_from_where_it_broke_off() -> None:
    bucket = Requested(lambda number: 1_500 if number in (1, 3) else None)
    assert stream_of(bucket).read(10_000) == CONTENT
    assert bucket.requests == [(0, 4_000), (1_500, 5_500), (5_500, 9_500), (7_000, 10_000)]


def test_more_than_there_is() -> None:
    stream = stream_of(Requested(lambda _number: None))
    stream.skip_to(9_999)
    with pytest.raises(DamagedArchiveError):
        stream.read(2)


def test_a_connection_that_brings_nothing_is_given_up() -> None:
    bucket = Requested(lambda _number: 0)
    with pytest.raises(
        OpsError, match=r"Download from s3://backup/key: no data received after 2 retries .last error: cut"
    ):
        stream_of(bucket).read(1)
    assert len(bucket.requests) == 3


def test_once_something_else_failed_it_is_not_asked_for_again() -> None:
    facts = Facts(len(CONTENT), ranges=True, validator="etag")
    bucket, stop = Requested(lambda _number: 500), threading.Event()
    stream = ShardStream(S3Source(bucket, "key", facts=facts, stop=stop), len(CONTENT), lambda _count: stop.set())
    with pytest.raises(CancelledError):
        stream.read(1_000)
    assert len(bucket.requests) == 1
