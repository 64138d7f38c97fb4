"""What the lab writes down: the variables of its archives, and the marker by which any checkout finds it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab import lifecycle
from lab.config import Paths, Settings
from lab.lifecycle import Marker, inventory_variables
from lab.machine import LabError, Process

DESCRIPTION = {
    "files": {
        "train": {"name": "t.tar", "size_bytes": 10, "md5": "00"},
        "validation": {"name": "v.tar", "size_bytes": 11, "md5": "01"},
        "devkit": {"name": "d.tar.gz", "size_bytes": 12, "md5": "02"},
    },
    "train_images": 1003,
    "class_images_min": 1,
    "class_images_max": 2,
    "validation_images": 200,
    "validation_class_images_min": 0,
    "validation_class_images_max": 3,
    "classes": 1000,
}


@pytest.fixture(autouse=True)
def marker_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "marker.json"
    monkeypatch.setattr(lifecycle, "MARKER", file)
    return file


def test_the_inventory_learns_where_the_archives_are_and_what_is_in_them() -> None:
    variables = inventory_variables(DESCRIPTION, "lab", "secret")
    assert variables["dataset_overrides"] == {
        "archives": {
            "train": {"urls": ["http://origin.lab:14580/t.tar"], "size_bytes": 10, "md5": "00"},
            "validation": {"urls": ["http://origin.lab:14580/v.tar"], "size_bytes": 11, "md5": "01"},
            "devkit": {"urls": ["http://origin.lab:14580/d.tar.gz"], "size_bytes": 12, "md5": "02"},
        },
        "splits": {
            "train": {"images": 1003, "class_images_min": 1, "class_images_max": 2},
            "validation": {"images": 200, "class_images_min": 0, "class_images_max": 3},
        },
        "classes": 1000,
    }
    assert (variables["dataset_archives_username"], variables["dataset_archives_password"]) == ("lab", "secret")


def test_a_marker_comes_back_as_it_was_written(tmp_path: Path) -> None:
    assert Marker.read() is None
    marker = Marker(tmp_path / ".lab", 7, (Process(1, 2), Process(3, 4)))
    marker.write()
    assert Marker.read() == marker


def test_a_lab_runs_as_long_as_its_server_does(tmp_path: Path) -> None:
    alive, gone = Process.of(os.getpid()), Process(os.getpid(), 1)
    assert Marker(tmp_path, 7, (alive, gone)).is_running()
    assert not Marker(tmp_path, 7, (gone, alive)).is_running()
    assert not Marker(tmp_path, 7).is_running()


def test_a_lab_of_another_checkout_is_neither_replaced_nor_stopped(tmp_path: Path) -> None:
    Marker(tmp_path / "other/.lab", 7, (Process.of(os.getpid()),)).write()
    paths = Paths(tmp_path / "mine")
    message = f"The lab of another checkout runs here: make -C {tmp_path}/other lab-down"
    with pytest.raises(LabError, match=message):
        lifecycle.up(paths, 1, Settings(), None)
    with pytest.raises(LabError, match=message):
        lifecycle.down(paths)
    assert Marker.read() is not None


def test_two_commands_at_once_do_not_mix(tmp_path: Path) -> None:
    with lifecycle._one_at_a_time(), pytest.raises(LabError, match="starting or stopping the lab"):
        lifecycle.down(Paths(tmp_path))


def test_status_of_a_lab_that_is_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not lifecycle.status(Paths(tmp_path))
    assert capsys.readouterr().out == "The lab is down.\n"


def test_all_that_the_machine_lacks_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lifecycle, "missing_programs", lambda: ["sshd (Debian package openssh-server)", "ip (...)"])
    with pytest.raises(LabError) as error:
        lifecycle.up(Paths(tmp_path), 1, Settings(), None)
    assert str(error.value) == ("This machine lacks what the lab needs: sshd (Debian package openssh-server), ip (...)")
    assert list(tmp_path.iterdir()) == [], "nothing was begun"
