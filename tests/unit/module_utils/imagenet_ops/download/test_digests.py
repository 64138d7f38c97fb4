"""All hashes, whatever the blocks; and a piece taken back as if it had never been given."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.download import digests
from ansible.module_utils.imagenet_ops.download.digests import Digests, Hashes, Sha256, hash_file
from ansible.module_utils.imagenet_ops.download.pieces import Pieces
from hypothesis import given
from hypothesis import strategies as st

BLOCKS = st.lists(st.binary(max_size=5000), max_size=8)


def all_of(content: bytes, piece_bytes: int) -> Digests:
    pieces = [content[start : start + piece_bytes] for start in range(0, len(content), piece_bytes)]
    return Digests(
        hashlib.md5(content).hexdigest(),
        hashlib.sha256(content).hexdigest(),
        Pieces(piece_bytes, tuple(zlib.crc32(piece) for piece in pieces)),
    )


@given(BLOCKS, st.integers(1, 9000))
def test_blocks_of_any_size(blocks: list[bytes], piece_bytes: int) -> None:
    with Hashes(piece_bytes).running() as hashes:
        for block in blocks:
            hashes.update(block)
    assert hashes.digests() == all_of(b"".join(blocks), piece_bytes)


@given(st.binary(min_size=1, max_size=5000), st.integers(1, 900))
def test_each_piece_given_wrong_first(content: bytes, piece_bytes: int) -> None:
    with Hashes(piece_bytes).running() as hashes:
        for number, start in enumerate(range(0, len(content), piece_bytes)):
            piece = content[start : start + piece_bytes]
            hashes.update(bytes(byte ^ 0xFF for byte in piece))
            assert hashes.piece == (number, zlib.crc32(bytes(byte ^ 0xFF for byte in piece)))
            hashes.rewind()
            hashes.update(piece)
            assert hashes.piece == (number, zlib.crc32(piece))
    assert hashes.digests() == all_of(content, piece_bytes)


def test_a_file_and_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "BLOCK_BYTES", 1000)
    content = bytes(range(250)) * 10
    (tmp_path / "file").write_bytes(content)
    reported: list[int] = []
    assert hash_file(str(tmp_path / "file"), reported.append, 700) == all_of(content, 700)
    assert reported == [1000, 2000, 2500]


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert hash_file(str(tmp_path / "file"), lambda _position: None, 9) == all_of(b"", 9)


def test_sha256_alone() -> None:
    with Sha256().running() as hashes:
        hashes.update(b"con")
        hashes.update(b"tent")
    assert hashes.digests()[:2] == ("", hashlib.sha256(b"content").hexdigest())
