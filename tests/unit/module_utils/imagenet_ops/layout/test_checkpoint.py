"""A finished tree is known again without being read, and is not taken for whole when it is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.layout.checkpoint import count_as_laid_out
from ansible.module_utils.imagenet_ops.layout.extract import lay_out
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest

from lab.archives import TRAIN, VALIDATION
from tests.fakes.images import write_imagenette
from tests.fakes.layouts import failure, train, validation


def test_a_finished_tree_that_was_changed_is_noticed(data: Path, archives: Path) -> None:
    request = validation(data, archives)
    lay_out(request)
    victim = next((data / "validation").glob("*/*"))
    victim.unlink()
    message = failure(request)
    assert "it has 39 images in 20 classes, but had 40 in 20 when it was completed: files were" in message
    assert failure(request, check_mode=True) == message


def test_a_finished_tree_of_another_archive(data: Path, archives: Path, tmp_path: Path) -> None:
    lay_out(validation(data, archives))
    (tmp_path / "other.tar").write_bytes((archives / VALIDATION).read_bytes())
    other = validation(data, archives, archive=str(tmp_path / "other.tar"))
    assert f"it was made from {VALIDATION} (" in failure(other)


def test_a_finished_tree_needs_its_archive_no_more(data: Path, archives: Path, tmp_path: Path) -> None:
    archive = tmp_path / "val.tar"
    archive.write_bytes((archives / VALIDATION).read_bytes())
    request = validation(data, archives, archive=str(archive))
    lay_out(request)
    archive.unlink()
    assert lay_out(request)["changed"] is False


def test_a_checkpoint_of_another_version(data: Path, archives: Path) -> None:
    (data / ".state").mkdir()
    (data / ".state" / "imagenet_layout.validation.json").write_text('{"format": 0}')
    assert failure(validation(data, archives)) == (
        f"State file {data}/.state/imagenet_layout.validation.json: its format is 0, and this version reads 2. Delete "
        f"it, and {data}/validation and {data}/validation.partial if they exist, and rerun"
    )


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent.parent / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (
            shorten,
            "the images of {class_name} have {less} bytes, but had {whole} when it was completed: files were",
        ),
        (replace_by_link, "{class_name}/{name} is not a regular file. Repair the tree, or delete it"),
    ],
)
def test_a_deep_check_looks_at_every_file(data: Path, archives: Path, spoil: Callable[[Path], None], why: str) -> None:
    lay_out(validation(data, archives))
    deep = validation(data, archives, deep_check=True)
    assert lay_out(deep)["changed"] is False
    victim = next((data / "validation").glob("*/*"))
    whole = sum(path.stat().st_size for path in victim.parent.iterdir())
    spoil(victim)
    assert lay_out(validation(data, archives))["changed"] is False, "the names are all there"
    wanted = why.format(class_name=victim.parent.name, name=victim.name, whole=whole, less=whole - 1)
    assert wanted in failure(deep)
    assert wanted in failure(deep, check_mode=True)


def test_a_second_run_looks_at_no_file(data: Path, archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(validation(data, archives))
    seen: list[str] = []
    for name in ("stat", "lstat", "open"):
        original = getattr(os, name)

        def noted(path: Any, *arguments: Any, original: Any = original, **keywords: Any) -> Any:
            seen.append(str(path))
            return original(path, *arguments, **keywords)

        monkeypatch.setattr(os, name, noted)
    lay_out(validation(data, archives))
    assert seen
    assert [path for path in seen if path.endswith(".JPEG")] == []


def test_another_folder_of_the_archive_is_another_source(data: Path, tmp_path: Path) -> None:
    write_imagenette(tmp_path / "a.tgz")

    def request(folder: str) -> LayoutRequest:
        return train(data, tmp_path / "a.tgz", name_rules="any", layout="class_directories", folder=folder)

    lay_out(request("imagenette2/train"))
    size = (tmp_path / "a.tgz").stat().st_size
    assert (
        f"it was made from imagenette2/train in a.tgz ({size} bytes), not from imagenette2/val in a.tgz ({size}"
        in failure(request("imagenette2/val"))
    )


def test_a_tree_that_came_from_elsewhere_counts_as_laid_out(data: Path, archives: Path) -> None:
    for name, content in {"n1/a.JPEG": b"1", "n1/b.JPEG": b"22", "n2/c.JPEG": b"333", "n2/c.xml": b"<a/>"}.items():
        (data / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (data / "train" / name).write_bytes(content)
    request = train(data, archives / TRAIN, expected_images=3, expected_classes=2, deep_check=True)
    assert "it has files that imagenet_layout did not put there" in failure(request)
    count_as_laid_out(str(data / "train"), request.dest, request.state_dir)
    result = lay_out(request)
    assert (result["changed"], result["images"], result["classes"], result["bytes"]) == (False, 3, 2, 6)
    (data / "train" / "n1" / "a.JPEG").unlink()
    assert "it has 2 images in 2 classes, but had 3 in 2 when it was completed" in failure(request)


@pytest.mark.parametrize("name", ["top.JPEG", "n1/deeper/a.JPEG"])
def test_a_tree_that_is_none_of_class_directories_does_not(data: Path, archives: Path, name: str) -> None:
    (data / "train" / name).parent.mkdir(parents=True)
    (data / "train" / name).write_bytes(b"1")
    request = train(data, archives / "gone.tar")
    count_as_laid_out(str(data / "train"), request.dest, request.state_dir)
    assert "gone.tar" in failure(request)
