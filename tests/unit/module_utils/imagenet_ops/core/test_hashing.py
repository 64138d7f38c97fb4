from __future__ import annotations

import hashlib
import random
import threading
import zlib
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core import hashing as hashing_module
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.hashing import FollowingHash, combine_crc32, hash_file
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("seed", range(5))
def test_the_hash_is_that_of_the_file_however_it_grew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(hashing_module, "_READ_BYTES", 1000)
    generator = random.Random(seed)
    path = tmp_path / "train.rec.part"
    written = generator.randbytes(generator.randrange(5000))  # by an earlier run
    path.write_bytes(written)
    with FollowingHash(str(path)).running() as hashing, path.open("ab", buffering=0) as file:
        hashing.advance(len(written))
        for _ in range(generator.randrange(30)):
            block = generator.randbytes(generator.randrange(3000))
            file.write(block)
            written += block
            hashing.advance(len(written))
        assert hashing.finish() == hashlib.sha256(written).hexdigest()


def test_what_was_not_announced_is_not_hashed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"announced, and more")
    with FollowingHash(str(path)).running() as hashing:
        hashing.advance(9)
        assert hashing.finish() == hashlib.sha256(b"announced").hexdigest()


def test_a_file_that_is_shorter_than_announced_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"short")
    with FollowingHash(str(path)).running() as hashing:
        hashing.advance(9)
        with pytest.raises(OpsError) as caught:
            hashing.finish()
    why = "it ends at byte 5, but 9 were written. Something else changes it; stop that, then run again"
    assert str(caught.value) == f"File {path}: {why}"


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with FollowingHash(str(tmp_path / "missing")).running() as hashing, pytest.raises(FileNotFoundError):
        hashing.finish()


def test_leaving_the_block_ends_the_thread_without_hashing_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1234")

    def work_that_fails() -> None:
        with FollowingHash(str(path)).running() as hashing:
            hashing.advance(2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_that_fails()
    assert not [thread for thread in threading.enumerate() if thread.name == "following-hash"]


@given(first=st.binary(), second=st.binary())
def test_the_crc32_of_a_whole_follows_from_those_of_its_parts(first: bytes, second: bytes) -> None:
    combined = combine_crc32(zlib.crc32(first), zlib.crc32(second), len(second))
    assert combined == zlib.crc32(first + second)


def test_so_do_those_of_parts_as_long_as_s3_takes_them() -> None:
    first, second = b"first", bytes(range(256)) * (64 << 10) + b"odd"
    assert combine_crc32(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@pytest.mark.parametrize("size_bytes", [0, 1, 999, 1000, 2500])
def test_the_hash_of_a_file_is_that_of_all_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    monkeypatch.setattr(hashing_module, "_READ_BYTES", 1000)
    content = random.Random(size_bytes).randbytes(size_bytes)
    (tmp_path / "file").write_bytes(content)
    assert hash_file(str(tmp_path / "file")) == hashlib.sha256(content).hexdigest()
