"""The records of an archive are those of its tree, whatever the settings, and the archive is read once."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules, ResumePoint
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.download.verified import VerifiedArchive, write_verified
from ansible.module_utils.imagenet_ops.layout.extract import lay_out
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset

from lab.archives import DEVKIT, TRAIN, VALIDATION, prepare
from tests.fakes.archive_packing import RECIPE, Workplace
from tests.fakes.images import jpeg, tar, write_imagenette, write_tree, zip_of_tar

# --- the same records ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bucket_bytes", [1 << 28, 20_000, 1])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shuffle_seed": None},
        {"shuffle_seed": 7, "shards": 4},
        {"shards": 41},
        {"recipe": RECIPE._replace(pass_through=True)},
        {"recipe": RECIPE._replace(channels=1, enlarge=False)},
        {"label_order": "order.txt"},
    ],
)
def test_the_archive_gives_the_records_of_its_tree(
    workplace: Workplace, changes: dict[str, Any], bucket_bytes: int
) -> None:
    if "label_order" in changes:
        order = workplace.folder / "order.txt"
        order.write_text("".join(f"n{number:08d}\n" for number in (3, 0, 4, 1, 2)))
        changes = {"label_order": str(order)}
    expected = workplace.pack("tree", **changes)
    assert workplace.pack("archive", bucket_bytes=bucket_bytes, **changes) == expected
    assert workplace.files("archive") == workplace.files("tree")
    assert workplace.warnings == []


def test_the_archives_of_imagenet_give_the_records_of_their_trees(tmp_path: Path) -> None:
    prepare(tmp_path / "archives", None)
    devkit = str(tmp_path / "archives" / DEVKIT)
    layouts = {"train": (TRAIN, "class_archives"), "validation": (VALIDATION, "labelled_files")}
    by_tree, by_archive = [], []
    for name, (archive, layout) in layouts.items():
        path = str(tmp_path / "archives" / archive)
        tree = str(tmp_path / name)
        lay_out(LayoutRequest(name, layout, tree, str(tmp_path / "state"), path, devkit=devkit))
        by_tree.append(SplitRequest(name, tree))
        by_archive.append(SplitRequest(name, archive=path, rules=ArchiveRules(name, layout, devkit)))
    results = []
    for number, splits in enumerate((by_tree, by_archive)):
        root = tmp_path / str(number)
        request = PackRequest("test", str(root), str(root / ".state"), splits, RECIPE, devkit=devkit)
        results.append(pack_dataset(request, check=False, warn=pytest.fail))
    assert results[0] == results[1]
    assert results[0]["dataset_version"]


@pytest.mark.parametrize("kind", ["tgz", "zip"])
def test_splits_in_one_archive_give_the_records_of_their_trees(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "imagenette2.tgz"
    write_imagenette(archive)
    if kind == "zip":
        archive = zip_of_tar(archive)
    by_tree, by_archive = [], []
    for name, folder in (("train", "imagenette2/train"), ("validation", "imagenette2/val")):
        rules = ArchiveRules("any", "class_directories", folder=folder)
        tree = str(tmp_path / name)
        lay_out(LayoutRequest("any", "class_directories", tree, str(tmp_path / "state"), str(archive), folder))
        by_tree.append(SplitRequest(name, tree))
        by_archive.append(SplitRequest(name, archive=str(archive), rules=rules))
    results = []
    for number, splits in enumerate((by_tree, by_archive)):
        root = tmp_path / str(number)
        request = PackRequest("test", str(root), str(root / ".state"), splits, RECIPE, expected_classes=4)
        results.append(pack_dataset(request, check=False, warn=pytest.fail))
    assert results[0] == results[1]
    assert results[0]["records"] == {"train": 16, "validation": 8}


def request_of(kind: str, folder: Path, files: dict[str, bytes]) -> SplitRequest:
    """Return the split of ``files`` as a tree, as an archive, or as the tree that was laid out from the archive."""
    if kind == "tree":
        return SplitRequest("train", str(write_tree(folder / "tree", files)))
    archive = folder / "set.tar"
    archive.write_bytes(tar(files.items(), folders=True))
    archive = zip_of_tar(archive) if kind == "zip" else archive
    if kind == "laid out":
        tree = str(folder / "laid out")
        request = LayoutRequest("any", "class_directories", tree, str(folder / "out/.state"), str(archive))
        lay_out(request, warn=lambda _: None)
        assert lay_out(request)["changed"] is False
        return SplitRequest("train", tree)
    return SplitRequest("train", archive=str(archive), rules=ArchiveRules("any", "class_directories"))


KINDS = ["tree", "tar", "zip", "laid out"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_without_an_image_keeps_its_label(tmp_path: Path, kind: str) -> None:
    files = {"a/1.jpg": jpeg(), "b/notes.txt": b"", "c/1.jpg": jpeg()}
    split = request_of(kind, tmp_path, files)
    request = PackRequest("test", str(tmp_path / "out"), str(tmp_path / "out/.state"), [split], RECIPE)
    warnings: list[str] = []
    with pytest.raises(OpsError, match="1 classes have no image: b; the labels of the data set come from this split"):
        pack_dataset(request, False, warnings.append)
    order = tmp_path / "order.txt"
    order.write_text("a\nb\nc\n")
    pack_dataset(replace(request, label_order=str(order)), False, warnings.append)
    labels = [line.split("\t")[1] for line in (tmp_path / "out/recordio/train.lst").read_text().splitlines()]
    assert sorted(labels) == ["0.000000", "2.000000"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out_is_named_and_counted(tmp_path: Path, kind: str) -> None:
    files = {"a/1.jpg": jpeg(), "a/RENAME2": b"", "a/deep/more/x.gif": b"", "READ.ME": b"", "a/1.xml": b"<x/>"}
    files |= {"a/.DS_Store": b"", "b/2.jpg": jpeg(), "list.xml": b"<x/>", ".git/config": b"", "b/.2.jpg": jpeg()}
    files |= {"__MACOSX/b/._2.jpg": b"", "_notes/z": b""}
    split = request_of(kind, tmp_path, files)
    request = PackRequest("test", str(tmp_path / "out"), str(tmp_path / "out/.state"), [split], RECIPE)
    warnings: list[str] = []
    result = pack_dataset(request, False, warnings.append)
    assert (result["records"], result["classes"]) == ({"train": 2}, 2)
    names = [".git/config", "READ.ME", "_notes/z", "a/RENAME2", "a/deep/more/x.gif"]
    where = split.source or split.archive
    if kind == "laid out":  # which said so itself, and left them behind
        assert warnings == []
    else:
        assert warnings == [f"Split train: 6 files in {where} are not images by their names ({', '.join(names)})"]
    assert manifest_of(tmp_path / "out")["left_out"] == {"files": {"count": 6, "samples": names}}
    assert pack_dataset(request, False, warnings.append)["changed"] is False


def manifest_of(root: Path) -> dict[str, Any]:
    """Return what the manifest says of the split."""
    value: dict[str, Any] = json.loads((root / "manifest.json").read_text())["splits"]["train"]
    return value


@pytest.mark.parametrize("kind", KINDS)
def test_images_where_no_class_can_be_are_an_error(tmp_path: Path, kind: str) -> None:
    files = {"a/1.jpg": jpeg(), ".ipynb_checkpoints/1-checkpoint.jpg": jpeg()}
    with pytest.raises(OpsError, match=r"whose name (cannot be a class|is not a valid class)"):
        pack_dataset(
            PackRequest("test", str(tmp_path), str(tmp_path / "state"), [request_of(kind, tmp_path, files)], RECIPE),
            False,
            pytest.fail,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_is_left_out_the_manifest_does_not_speak_of_it(tmp_path: Path, kind: str) -> None:
    split = request_of(kind, tmp_path, {"a/1.jpg": jpeg(), "a/1.xml": b"<x/>", "a/.DS_Store": b""})
    request = PackRequest("test", str(tmp_path / "out"), str(tmp_path / "out/.state"), [split], RECIPE)
    pack_dataset(request, False, pytest.fail)
    assert "left_out" not in manifest_of(tmp_path / "out")


def test_labels_of_images_that_are_missing(tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label\n" + "".join(f"{number}.jpg,c{number % 2}\n" for number in range(9)))
    (tmp_path / "a.tar").write_bytes(tar([(f"{number}.jpg", jpeg()) for number in range(4)]))
    rules = ArchiveRules("any", "labelled_files", labels=str(labels))
    split = SplitRequest("train", archive=str(tmp_path / "a.tar"), rules=rules)
    request = PackRequest("test", str(tmp_path / "out"), str(tmp_path / "out/.state"), [split], RECIPE)
    warnings: list[str] = []
    assert pack_dataset(request, False, warnings.append)["records"] == {"train": 4}
    samples = "4.jpg, 5.jpg, 6.jpg, 7.jpg, 8.jpg"
    assert warnings == [f"Split train: 5 images that have labels are not in {tmp_path}/a.tar (such as {samples})"]
    # Nothing was left out: the manifest lists what is there.
    assert "left_out" not in manifest_of(tmp_path / "out")
    root = tmp_path / "counted"
    counted = replace(split, expected_images=4)
    pack_dataset(PackRequest("test", str(root), str(root / ".state"), [counted], RECIPE), False, warn=pytest.fail)


def test_labels_follow_the_order_of_a_file(workplace: Workplace) -> None:
    order = workplace.folder / "order.txt"
    order.write_text("".join(f"n{number:08d} words\n" for number in (3, 0, 4, 1, 2)))
    workplace.pack("archive", label_order=str(order))
    files = workplace.files("archive")
    assert files["labels.tsv"].startswith(b"0\tn00000003\t\n1\tn00000000\t\n")
    lines = [line.split("\t") for line in files["recordio/train.lst"].decode().splitlines()]
    assert {(label, path[:9]) for _, label, path in lines} == {
        (f"{label}.000000", f"n{number:08d}") for label, number in enumerate((3, 0, 4, 1, 2))
    }
    assert json.loads(files["manifest.json"])["settings"]["label_order"] == "file"
    order.write_text("n00000003\n")
    assert "4 of their classes are unknown" in workplace.error("archive", label_order=str(order))


def test_the_exact_size_of_what_is_passed_through_is_known_before(workplace: Workplace) -> None:
    recipe = RECIPE._replace(pass_through=True)
    foreseen = workplace.pack("tree", check=True, recipe=recipe)["bytes"]
    workplace.pack("tree", recipe=recipe)
    assert foreseen == len(workplace.files("tree")["recordio/train.rec"])


def test_the_exact_size_is_shown_while_it_is_written(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = []
    monkeypatch.setattr(
        "ansible.module_utils.imagenet_ops.core.progress.Progress.start", lambda _, stage, *_rest: stages.append(stage)
    )
    workplace.pack("archive", recipe=RECIPE._replace(pass_through=True))
    size = len(workplace.files("archive")["recordio/train.rec"])
    assert stages[-1] == f"packing train ({size} bytes of records)"
    assert stages[1].startswith("reading train.tar (up to 0.0 GiB of scratch space)")


# --- read once -------------------------------------------------------------------------------------------------------


def test_a_second_run_does_not_read_the_archive(workplace: Workplace, reading: list[ResumePoint]) -> None:
    workplace.pack("archive")
    assert len(reading) == 2  # a few images first, for the scratch space that it will take
    assert not workplace.pack("archive")["changed"]
    assert not workplace.pack("archive", check=True)["changed"]
    assert len(reading) == 2
    assert not list((workplace.folder / "archive").glob(".scratch/*"))


def test_what_was_packed_from_the_archive_is_known_in_the_tree(workplace: Workplace) -> None:
    workplace.pack("archive")
    result = workplace.pack("tree", into="archive")
    assert not result["changed"]
    assert workplace.warnings == []


def test_an_archive_that_was_touched_is_read_again_unless_it_is_verified(
    workplace: Workplace, reading: list[ResumePoint]
) -> None:
    workplace.pack("archive")
    os.utime(workplace.archive, ns=(1, 1))
    assert workplace.pack("archive")["changed"]
    assert "it was packed with other settings or another source (archive" in workplace.warnings[0]
    status = workplace.archive.stat()
    state = workplace.folder / "archive" / ".state"
    write_verified(str(state), VerifiedArchive("train.tar", status.st_size, 1, "0" * 32, "1" * 64))
    workplace.pack("archive")
    os.utime(workplace.archive, ns=(2, 2))
    write_verified(str(state), VerifiedArchive("train.tar", status.st_size, 2, "0" * 32, "1" * 64))
    begun = len(reading)
    assert not workplace.pack("archive")["changed"]
    assert len(reading) == begun


def test_other_settings_read_the_archive_again(workplace: Workplace) -> None:
    workplace.pack("archive")
    assert workplace.pack("archive", recipe=RECIPE._replace(quality=80))["changed"]
    workplace.pack("tree", recipe=RECIPE._replace(quality=80))
    assert workplace.files("archive") == workplace.files("tree")
    assert len(workplace.warnings) == 1


def test_shards_of_another_number_do_not_stay(workplace: Workplace) -> None:
    workplace.pack("tree", shards=3)
    workplace.pack("tree", shards=2)
    names = sorted(name for name in workplace.files("tree") if name.endswith(".rec"))
    assert names == ["recordio/train-00000-of-00002.rec", "recordio/train-00001-of-00002.rec"]


# --- check mode ------------------------------------------------------------------------------------------------------


def test_check_mode_reads_nothing_and_writes_nothing(workplace: Workplace, reading: list[ResumePoint]) -> None:
    result = workplace.pack("archive", check=True, expected_images=40)
    assert (result["changed"], result["records"], result["dataset_version"]) == (True, {"train": 40}, "")
    workplace.archive.unlink()
    assert workplace.pack("archive", check=True)["changed"]
    assert reading == []
    assert not (workplace.folder / "archive").exists()


def test_an_archive_that_is_not_there_is_an_error(workplace: Workplace) -> None:
    workplace.archive.unlink()
    assert workplace.error("archive") == (
        f"Archive {workplace.archive}: there is no such file. Fetch it first with archive_fetch"
    )


# --- bad images and wrong counts -------------------------------------------------------------------------------------

BAD = "n00000002/n00000002_1.JPEG"


def test_bad_images_come_into_quarantine_at_once_or_later(workplace: Workplace, reading: list[ResumePoint]) -> None:
    workplace.damage(BAD, b"<html>")
    workplace.pack("archive", on_bad_image="quarantine")
    kept = workplace.folder / "archive" / "quarantine" / "train" / BAD
    assert kept.read_bytes() == b"<html>"
    begun = len(reading)
    assert not workplace.pack("archive", on_bad_image="quarantine")["changed"]
    assert len(reading) == begun
    kept.unlink()
    assert workplace.pack("archive", on_bad_image="quarantine", check=True)["changed"]
    assert not kept.exists()
    assert workplace.pack("archive", on_bad_image="quarantine")["changed"]
    assert kept.read_bytes() == b"<html>"


def test_a_wrong_count_is_an_error_and_the_archive_is_not_read_again(
    workplace: Workplace, reading: list[ResumePoint]
) -> None:
    assert "it has 40 images, expected 41" in workplace.error("archive", expected_images=41)
    assert not (workplace.folder / "archive" / "recordio").exists()
    begun = len(reading)
    workplace.pack("archive", expected_images=40)
    assert len(reading) == begun
