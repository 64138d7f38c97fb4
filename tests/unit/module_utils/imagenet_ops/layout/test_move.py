"""Nothing moves unless everything can; then names change, and no byte is copied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.layout import move
from ansible.module_utils.imagenet_ops.layout.extract import lay_out
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest

from lab.archives import DEVKIT
from tests.fakes.images import write_tree
from tests.fakes.layouts import (
    failure,
    in_place,
    train,
    tree,
    unpacked_train,
    unpacked_validation,
)


@pytest.fixture(autouse=True)
def quick_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one waits for whatever else the machine writes; test_tree_writer.py and test_disk.py see to those."""
    monkeypatch.setattr(move, "sync_filesystem", lambda _path: None)


def test_flat_files_are_renamed_and_not_copied(data: Path, archives: Path, flat: Path) -> None:
    inodes = {path.name: path.stat().st_ino for path in flat.iterdir()}
    request = in_place(data, archives, flat, expected_images=40)
    result = lay_out(request)
    assert tree(data / "validation") == unpacked_validation(archives)
    assert {path.name: path.stat().st_ino for path in (data / "validation").glob("*/*")} == inodes
    assert (result["changed"], result["images"], result["bytes"]) == (
        True,
        40,
        sum(len(content) for content in unpacked_validation(archives).values()),
    )
    del result["diff"]
    assert lay_out(request) == {**result, "changed": False}
    flat.rmdir()
    assert lay_out(request)["changed"] is False


def test_in_the_directory_itself(data: Path, archives: Path, flat: Path) -> None:
    request = in_place(data, archives, flat, dest=str(flat))
    assert lay_out(request)["images"] == 40
    assert tree(flat) == unpacked_validation(archives)
    assert lay_out(request)["changed"] is False


def test_a_tree_that_another_tool_made_is_recognised(data: Path, archives: Path, flat: Path) -> None:
    lay_out(in_place(data, archives, flat, dest=str(flat)))
    for checkpoint in (data / ".state").glob("imagenet_layout*.json"):
        checkpoint.unlink()
    result = lay_out(in_place(data, archives, flat, dest=str(flat), expected_images=40))
    assert (result["changed"], result["images"]) == (False, 40)


def test_half_of_it_done_by_another_tool(data: Path, archives: Path, flat: Path) -> None:
    expected = unpacked_validation(archives)
    for path in list(expected)[:15]:
        class_name, name = path.split("/")
        (flat / class_name).mkdir(exist_ok=True)
        (flat / name).rename(flat / path)
    assert lay_out(in_place(data, archives, flat, dest=str(flat), expected_images=40))["changed"] is True
    assert tree(flat) == expected


def spoil_flat(spoil: Callable[[Path, list[str]], None], data: Path, archives: Path, flat: Path, why: str) -> None:
    """Spoil the flat directory; then nothing may move."""
    names = sorted(path.name for path in flat.iterdir())
    spoil(flat, names)
    before = tree(data)
    assert why in failure(in_place(data, archives, flat, expected_images=40))
    after = {name: content for name, content in tree(data).items() if not name.startswith(".state")}
    assert after == {name: content for name, content in before.items() if not name.startswith(".state")}


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (
            lambda flat, names: (flat / names[3]).rename(flat / "ILSVRC2012_val_00000041.JPEG"),
            "has no label for it. Use the development kit of these images; the tree was not changed",
        ),
        (
            lambda flat, _names: (flat / "Thumbs.db").write_bytes(b""),
            "its name is not valid for an image of the validation",
        ),
        (lambda flat, names: (flat / names[0]).unlink(), "it has 39 images, expected 40"),
        (lambda flat, names: _replace_by_link(flat / names[7]), "it is not a regular file"),
    ],
    ids=["no label", "another file", "one is missing", "a link"],
)
def test_nothing_moves_unless_everything_can(
    data: Path, archives: Path, flat: Path, spoil: Callable[[Path, list[str]], None], why: str
) -> None:
    spoil_flat(spoil, data, archives, flat, why)


def _replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def test_a_missing_label_names_the_file(data: Path, archives: Path, flat: Path) -> None:
    (flat / "ILSVRC2012_val_00000041.JPEG").write_bytes(b"")
    assert failure(in_place(data, archives, flat)) == (
        f"Image ILSVRC2012_val_00000041.JPEG: the development kit {archives / DEVKIT} has no label for it. Use the"
        " development kit of these images; the tree was not changed"
    )


def test_files_in_the_wrong_class_are_not_believed(data: Path, archives: Path, flat: Path) -> None:
    request = in_place(data, archives, flat, dest=str(flat))
    path = min(unpacked_validation(archives))
    wrong = flat / ("n01440764" if not path.startswith("n01440764") else "n01443537")
    wrong.mkdir()
    (flat / path.split("/")[1]).rename(wrong / path.split("/")[1])
    assert "its directory is not the class of its label. Move it away and rerun; no file was moved" in failure(request)


def test_an_image_that_is_there_twice(data: Path, archives: Path, flat: Path) -> None:
    path = min(unpacked_validation(archives))
    class_name, name = path.split("/")
    (data / "validation" / class_name).mkdir(parents=True)
    (data / "validation" / path).write_bytes(b"other")
    assert f"{data / 'validation' / path}: {flat} has it too" in failure(in_place(data, archives, flat))
    assert (data / "validation" / path).read_bytes() == b"other"
    assert (flat / name).exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("notes.txt", "it is not a class directory"),
        ("other/", "its name is not a valid class"),
        ("n01440764/sub/", "it is not a regular file"),
    ],
)
def test_a_tree_with_other_things(data: Path, archives: Path, flat: Path, name: str, why: str) -> None:
    path = data / "validation" / name
    if name.endswith("/"):
        path.mkdir(parents=True)
    else:
        path.parent.mkdir()
        path.write_bytes(b"")
    assert why in failure(in_place(data, archives, flat))


def test_a_directory_on_another_volume(data: Path, archives: Path, flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = flat.stat().st_dev
    others = [path for path in map(Path, ("/dev/shm", "/var/tmp")) if path.is_dir() and path.stat().st_dev != device]
    if not others:
        pytest.skip("there is no second filesystem (/dev/shm or /var/tmp)")
    monkeypatch.chdir(flat)
    dest = str(others[0] / "imagenet-ops-test-tree")
    message = failure(in_place(data, archives, flat, dest=dest))
    assert f"it is not on the volume of {dest}" in message


def test_no_such_directory(data: Path, archives: Path) -> None:
    assert "there is no such directory" in failure(in_place(data, archives, data / "none"))


# Trees that are unpacked already


@pytest.fixture
def unpacked(data: Path, archives: Path) -> Path:
    return write_tree(data / "unpacked", unpacked_train(archives))


def adopted(data: Path, unpacked: Path, **settings: Any) -> LayoutRequest:
    return train(data, None, directory=str(unpacked), **settings)


def test_the_directories_of_classes_are_renamed(data: Path, archives: Path, unpacked: Path) -> None:
    expected = unpacked_train(archives)
    inodes = {path.name: path.stat().st_ino for path in unpacked.iterdir()}
    request = adopted(data, unpacked, expected_images=len(expected), expected_classes=20)
    foreseen = lay_out(request, check_mode=True)
    assert tree(unpacked) == expected
    result = lay_out(request)
    assert result == foreseen
    assert (result["changed"], result["images"], result["classes"]) == (True, len(expected), 20)
    assert result["bytes"] == sum(map(len, expected.values()))
    assert tree(data / "train") == expected
    assert {path.name: path.stat().st_ino for path in (data / "train").iterdir()} == inodes
    assert lay_out(request)["changed"] is False


def test_a_tree_in_its_place_is_taken_as_it_is(data: Path, archives: Path, unpacked: Path) -> None:
    request = adopted(data, unpacked, dest=str(unpacked))
    result = lay_out(request)
    assert (result["changed"], result["images"]) == (False, len(unpacked_train(archives)))
    assert lay_out(request) == result


def test_half_of_the_classes_are_there(data: Path, archives: Path, unpacked: Path) -> None:
    (data / "train").mkdir()
    for path in sorted(unpacked.iterdir())[:7]:
        path.rename(data / "train" / path.name)
    assert lay_out(adopted(data, unpacked))["images"] == len(unpacked_train(archives))
    assert tree(data / "train") == unpacked_train(archives)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("notes.txt", "notes.txt: it is not a class directory. Move it away and rerun; no file was moved"),
        ("tench/1.JPEG", "tench: its name is not a valid class"),
        ("n01440764/1.JPEG", "1.JPEG: its name is not valid for an image of class n01440764"),
        ("n01440764/more/1.JPEG", "more: it is not a regular file"),
    ],
)
def test_what_is_out_of_place_moves_nothing(data: Path, unpacked: Path, name: str, why: str) -> None:
    write_tree(unpacked, {name: b""})
    before = tree(unpacked)
    assert why in failure(adopted(data, unpacked))
    assert tree(unpacked) == before
    assert not (data / "train").exists()


def test_a_class_that_is_in_both_places(data: Path, unpacked: Path) -> None:
    write_tree(data / "train", {"n01440764/n01440764_1.JPEG": b""})
    assert f"{unpacked} has it too" in failure(adopted(data, unpacked))
