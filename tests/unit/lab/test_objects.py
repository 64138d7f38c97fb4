"""A body that is not what its sender said is refused."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.objects import check_body, checksums_of, policy_over_tls
from lab.rules import ApiError


@given(st.binary(max_size=200))
def test_a_body_with_its_own_checksums_is_taken(body: bytes) -> None:
    check_body(body, checksums_of(body))
    check_body(body, {})


@pytest.mark.parametrize("name", sorted(checksums_of(b"")))
def test_a_body_that_was_changed_on_its_way_is_refused(name: str) -> None:
    with pytest.raises(ApiError, match="BadDigest"):
        check_body(b"changed", {name: checksums_of(b"sent")[name]})


def test_the_checksums_are_those_of_the_protocol() -> None:
    # RFC 1864's form of an MD5, and the check value of CRC-32 (ITU-T V.42) for "123456789".
    known = checksums_of(b"123456789")
    assert base64.b64decode(known["x-amz-checksum-crc32"]).hex() == "cbf43926"
    assert base64.b64decode(known["content-md5"]).hex() == hashlib.md5(b"123456789").hexdigest()


def test_a_policy_refuses_in_the_lab_what_it_refuses_over_tls() -> None:
    without_tls = {"Bool": {"aws:SecureTransport": "false"}}
    tls_only = {"Effect": "Deny", "Action": "s3:*", "Resource": "*", "Condition": without_tls}
    never = {"Effect": "Deny", "Action": "s3:DeleteObject", "Resource": "*"}
    policy = json.loads(policy_over_tls(json.dumps({"Version": "2012-10-17", "Statement": [tls_only, never]})))
    assert policy == {"Version": "2012-10-17", "Statement": [never]}
