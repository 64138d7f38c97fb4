"""A body that is not what its sender said is refused."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.objects import check_body, checksums_of
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
