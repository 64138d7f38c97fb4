from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.pack.in_hand import InHand, printable


def test_what_was_in_hand_is_suspect_from_then_on(tmp_path: Path) -> None:
    killed = InHand(str(tmp_path), 3, pytest.fail)
    assert killed.suspects == frozenset()
    with killed.slot() as one, killed.slot() as other, killed.slot():
        one("/t/a/1.jpg")
        other("/t/a/a longer name.jpg")
        other("/t/a/2.jpg")
        (tmp_path / "kept").write_bytes((tmp_path / "recordio_pack.in_hand").read_bytes())
    os.replace(tmp_path / "kept", tmp_path / "recordio_pack.in_hand")
    for _ in range(2):
        again = InHand(str(tmp_path), 1, pytest.fail)
        assert again.suspects == {"/t/a/1.jpg", "/t/a/2.jpg"}
        again.close()
    assert not (tmp_path / "recordio_pack.in_hand").exists()


def test_a_slot_that_is_free_holds_no_name(tmp_path: Path) -> None:
    run = InHand(str(tmp_path), 1, pytest.fail)
    for _ in range(3):
        with run.slot() as write:
            write("/t/a/1.jpg")
    assert InHand(str(tmp_path), 1, pytest.fail).suspects == frozenset()


def test_any_name_of_a_file_can_be_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"/t/a/caf\xe9.jpg")
    killed = InHand(str(tmp_path), 1, pytest.fail)
    with killed.slot() as write:
        write(name)
        assert InHand(str(tmp_path), 1, pytest.fail).suspects == {printable(name)}


def test_a_damaged_list_of_suspects_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "recordio_pack.suspects.json").write_text(json.dumps({"kind": "something"}))
    warnings: list[str] = []
    assert InHand(str(tmp_path), 1, warnings.append).suspects == frozenset()
    (warning,) = warnings
    assert warning.endswith("images that ended a run are decoded as all others")
