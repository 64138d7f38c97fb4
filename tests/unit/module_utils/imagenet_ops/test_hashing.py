"""Both hashes, whatever the blocks."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops import hashing
from ansible.module_utils.imagenet_ops.hashing import Hashes, hash_file
from hypothesis import given
from hypothesis import strategies as st


def both(content: bytes) -> tuple[str, str]:
    return hashlib.md5(content).hexdigest(), hashlib.sha256(content).hexdigest()


@given(st.lists(st.binary(max_size=5000), max_size=8))
def test_blocks_of_any_size(blocks: list[bytes]) -> None:
    with Hashes().running() as hashes:
        for block in blocks:
            hashes.update(block)
    assert hashes.hexdigests() == both(b"".join(blocks))


def test_a_file_and_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "BLOCK_BYTES", 1000)
    content = bytes(range(250)) * 10
    (tmp_path / "file").write_bytes(content)
    reported: list[int] = []
    assert hash_file(str(tmp_path / "file"), reported.append) == both(content)
    assert reported == [1000, 2000, 2500]


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert hash_file(str(tmp_path / "file"), lambda _position: None) == both(b"")
