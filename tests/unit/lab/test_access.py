"""Who signed a request, and how the bucket of calls empties and refills."""

from __future__ import annotations

import pytest

from lab.access import Calls, TokenBucket, access_key_of


@pytest.mark.parametrize(
    ("authorization", "query", "key"),
    [
        (
            "AWS4-HMAC-SHA256 Credential=LABCONTROLLER/20261123/us-east-1/ec2/aws4_request, Signature=0",
            {},
            "LABCONTROLLER",
        ),
        ("AWS KEY:signature", {}, "KEY"),
        ("", {"X-Amz-Credential": ["KEY/20261123/us-east-1/s3/aws4_request"]}, "KEY"),
        ("", {"AWSAccessKeyId": ["KEY"]}, "KEY"),
        ("Basic bGFiOg==", {}, None),
        ("", {}, None),
    ],
)
def test_the_key_is_found_wherever_a_signature_puts_it(
    authorization: str, query: dict[str, list[str]], key: str
) -> None:
    assert access_key_of(authorization, query) == key


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate() -> None:
    now = 0.0
    bucket = TokenBucket(rate=5, burst=50, clock=lambda: now)
    assert [bucket.take() for _ in range(51)] == [True] * 50 + [False]
    now = 1.0
    assert [bucket.take() for _ in range(6)] == [True] * 5 + [False]
    now = 1000.0
    assert sum(bucket.take() for _ in range(100)) == 50, "it holds no more than its burst"


def test_without_a_rate_there_is_no_limit() -> None:
    bucket = TokenBucket(rate=0, burst=1)
    assert all(bucket.take() for _ in range(100))


def test_calls_are_counted_by_action_until_they_are_reset() -> None:
    calls = Calls()
    calls.add("ec2:DescribeVolumes")
    calls.add("ec2:DescribeVolumes")
    calls.add("s3:PutObject")
    assert calls.to_json() == {"total": 3, "calls": {"ec2:DescribeVolumes": 2, "s3:PutObject": 1}}
    calls.reset()
    assert calls.to_json() == {"total": 0, "calls": {}}
