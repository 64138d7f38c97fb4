"""`make zoo` counts every file of a folder: a record, named with its reason, or left out by its name."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.images import jpeg, png
from tests.fakes.packing import Packed, pack
from tests.zoo import __main__ as program


def fill(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "only text").mkdir()
    (folder / "sound.jpg").write_bytes(jpeg())
    (folder / "deep" / "a\tb \n.JPEG").write_bytes(jpeg(seed=1))
    (folder / "deep" / "er" / "sound.png").write_bytes(png())
    (folder / "deep" / "er" / "cut.png").write_bytes(png()[:40])
    (folder / "empty.jpeg").write_bytes(b"")
    (folder / "._sound.jpg").write_bytes(b"of a desktop")
    (folder / "only text" / "notes.txt").write_bytes(b"notes")
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.jpg"))
    os.link(folder / "sound.jpg", folder / os.fsdecode(b"\xff.jpg"))


def test_each_policy_accounts_for_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "z"
    folder.mkdir()
    fill(folder)
    monkeypatch.setattr("sys.argv", ["zoo", str(folder)])
    assert program.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[1:3]] == [["skip", "4", "2", "2"], ["quarantine", "4", "2", "2"]]
    assert lines[1].endswith("right")
    assert lines[2].endswith("right: 2 in quarantine")
    assert lines[3].split()[0] == "fail"
    assert "right: Image " in lines[3]
    assert sorted(lines[4:]) == [
        "  deep/er/cut.png: truncated: the end of the PNG is missing",
        "  empty.jpeg: zero bytes long",
    ]


def test_a_wrong_sum_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "b.jpg").write_bytes(b"no image")

    def loses_one(*arguments: Any) -> Packed:
        return pack(*arguments)._replace(bad={})

    monkeypatch.setattr(program, "pack", loses_one)
    monkeypatch.setattr("sys.argv", ["zoo", str(tmp_path)])
    assert program.main() == 1
    assert "WRONG" in capsys.readouterr().out


def test_a_folder_without_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    monkeypatch.setattr("sys.argv", ["zoo", str(tmp_path)])
    assert program.main() == 0
    assert "no file is an image by its name" in capsys.readouterr().out


def test_how_it_is_called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["zoo"])
    assert program.main() == 2
    assert capsys.readouterr().out == "usage: make zoo FOLDER=/path/to/a/folder/with/files\n"
