from __future__ import annotations

import zlib

from ansible.module_utils.imagenet_ops.core.crc32 import combine_crc32
from hypothesis import given
from hypothesis import strategies as st


@given(first=st.binary(), second=st.binary())
def test_the_crc32_of_a_whole_follows_from_those_of_its_parts(first: bytes, second: bytes) -> None:
    combined = combine_crc32(zlib.crc32(first), zlib.crc32(second), len(second))
    assert combined == zlib.crc32(first + second)


def test_so_do_those_of_parts_as_long_as_s3_takes_them() -> None:
    first, second = b"first", bytes(range(256)) * (64 << 10) + b"odd"
    assert combine_crc32(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)
