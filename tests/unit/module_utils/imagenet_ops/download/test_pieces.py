"""What is recorded of the pieces is read back; damage is found where it is; what is odd is not believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.download.pieces import (
    PieceRecord,
    Pieces,
    ranges_text,
    read_pieces,
    write_pieces,
)

from tests.fakes.state_files import edit

RECORD = PieceRecord("val.tar", 25, "a" * 32, "b" * 64, Pieces(10, (0, 0xFFFFFFFF, 7)))


def test_a_record_comes_back(tmp_path: Path) -> None:
    assert read_pieces(str(tmp_path), "val.tar") is None
    write_pieces(str(tmp_path), RECORD)
    write_pieces(str(tmp_path), PieceRecord("train.tar", 0, "c" * 32, "d" * 64, Pieces(10, ())))
    assert read_pieces(str(tmp_path), "val.tar") == RECORD
    written = json.loads((tmp_path / "archive_pieces" / "val.tar.json").read_text())
    assert (written["piece_bytes"], written["crc32s"]) == (10, ["00000000", "ffffffff", "00000007"])


def test_where_damage_is() -> None:
    assert RECORD.damaged(RECORD.pieces) == []
    assert RECORD.damaged(Pieces(10, (1, 0xFFFFFFFF, 8))) == [(0, 10), (20, 25)]
    assert RECORD.damaged(Pieces(9, (1, 2, 3))) == []


def test_ranges_for_people() -> None:
    assert ranges_text([(0, 10)]) == "bytes 0-9"
    assert ranges_text([(0, 10), (10, 20), (30, 40)]) == "bytes 0-19, 30-39"
    assert ranges_text([(start, start + 1) for start in range(0, 100, 2)]) == "bytes 0-0, 2-2, 4-4 and 47 more ranges"


@pytest.mark.parametrize(
    "spoil",
    [
        {"format": 0},
        {"name": "train.tar"},
        {"size_bytes": 31},
        {"piece_bytes": 0},
        {"piece_bytes": "x"},
        {"crc32s": ["00000000"]},
        {"crc32s": ["0", "0", "0"]},
        {"crc32s": [1, 2, 3]},
        {"crc32s": None},
    ],
)
def test_an_odd_record_is_an_error_that_names_it(tmp_path: Path, spoil: dict[str, object]) -> None:
    write_pieces(str(tmp_path), RECORD)
    path = tmp_path / "archive_pieces" / "val.tar.json"
    edit(path, **spoil)
    with pytest.raises(OpsError) as caught:
        read_pieces(str(tmp_path), "val.tar")
    assert caught.value.what == f"State file {path}"
    assert caught.value.todo == "Remove it and run again; a deep check of the archive makes a new one"
