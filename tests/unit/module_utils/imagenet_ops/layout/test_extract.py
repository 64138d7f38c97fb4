"""Trees are complete and right or not there; what is not the data set is refused; a kill changes nothing in the end."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ansible.module_utils.imagenet_ops.archive import images as images_module
from ansible.module_utils.imagenet_ops.core import disk
from ansible.module_utils.imagenet_ops.layout import extract, move, tree_writer
from ansible.module_utils.imagenet_ops.layout.extract import lay_out
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest

from lab.archives import TRAIN, VALIDATION
from tests.fakes.images import write_imagenette, write_tree, zip_of_tar
from tests.fakes.killed import NEVER, Kills
from tests.fakes.layouts import (
    failure,
    flat_images,
    in_place,
    tar,
    train,
    tree,
    unpacked_train,
    unpacked_validation,
    validation,
)
from tests.fakes.seeds import kill_seeds

SAMPLE = Path(__file__).resolve().parents[6] / "shared" / "imagenet-sample"


@pytest.fixture(autouse=True)
def quick_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one waits for whatever else the machine writes; test_tree_writer.py and test_disk.py see to those."""
    monkeypatch.setattr(tree_writer, "sync_filesystem", lambda _path: None)
    monkeypatch.setattr(extract, "sync_filesystem", lambda _path: None)
    monkeypatch.setattr(move, "sync_filesystem", lambda _path: None)


# The usual way


def test_training_tree_and_its_second_run(data: Path, archives: Path) -> None:
    expected = unpacked_train(archives)
    request = train(data, archives / TRAIN, expected_images=len(expected), expected_classes=20)
    result = lay_out(request)
    assert tree(data / "train") == expected
    assert result == {
        "changed": True,
        "split": "train",
        "images": len(expected),
        "classes": 20,
        "bytes": sum(len(content) for content in expected.values()),
        "annotations": 0,
        "annotations_without_image": 0,
        "diff": {"before": "train: not laid out\n", "after": f"train: {len(expected)} images in 20 classes\n"},
    }
    assert sorted(path.name for path in data.iterdir()) == [".state", "train"]
    times = {path: path.stat().st_mtime_ns for path in data.rglob("*") if "lock" not in path.name}
    del result["diff"]
    assert lay_out(request) == {**result, "changed": False}
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*") if "lock" not in path.name} == times


def test_validation_tree_and_its_second_run(data: Path, archives: Path) -> None:
    request = validation(data, archives, expected_images=40, expected_classes=20)
    result = lay_out(request)
    assert (result["changed"], result["images"], result["classes"]) == (True, 40, 20)
    assert tree(data / "validation") == unpacked_validation(archives)
    assert lay_out(request)["changed"] is False


def test_labels_of_a_file(data: Path, archives: Path, tmp_path: Path) -> None:
    truth = dict(line.split() for line in (archives / "validation_synsets.txt").read_text().splitlines())
    labels = tmp_path / "labels"
    labels.write_text("".join(f"{truth[name]}\n" for name in sorted(truth)))
    lay_out(validation(data, archives, devkit=None, labels=str(labels)))
    assert tree(data / "validation") == unpacked_validation(archives)
    labels.write_text("file,label\n" + "".join(f"{name},tench\n" for name in truth))
    message = failure(validation(data, archives, devkit=None, labels=str(labels), dest=str(data / "other")))
    assert f"the file with labels {labels} labels it 'tench', which is not a valid class name. Use the file" in message


def test_a_compressed_archive(data: Path, archives: Path, tmp_path: Path) -> None:
    packed = tmp_path / "val.tgz"
    packed.write_bytes(gzip.compress((archives / VALIDATION).read_bytes(), 1))
    lay_out(validation(data, archives, archive=str(packed)))
    assert tree(data / "validation") == unpacked_validation(archives)


def test_an_archive_whose_names_begin_with_a_dot(data: Path, archives: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in flat_images(archives).items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (tmp_path / "val.tar").write_bytes(buffer.getvalue())
    lay_out(validation(data, archives, archive=str(tmp_path / "val.tar")))
    assert tree(data / "validation") == unpacked_validation(archives)


def test_another_data_set(data: Path, tmp_path: Path) -> None:
    archive = tmp_path / "flowers.tar"
    archive.write_bytes(tar([("Rosa canina.tar", tar([("IMG 1.jpg", b"1"), ("b.PNG", b"2")]))]))
    assert "is not a valid name for the archive of a class" in failure(train(data, archive))
    lay_out(train(data, archive, name_rules="any"))
    assert tree(data / "train") == {"Rosa canina/IMG 1.jpg": b"1", "Rosa canina/b.PNG": b"2"}


@pytest.mark.parametrize("kind", ["tgz", "zip"])
def test_splits_of_one_archive(data: Path, tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "imagenette2.tgz"
    splits = write_imagenette(archive)
    if kind == "zip":
        archive = zip_of_tar(archive)
    for split, expected in splits.items():
        changes = {"name_rules": "any", "layout": "class_directories", "folder": f"imagenette2/{split}"}
        request = train(data, archive, dest=str(data / split), expected_classes=4, **changes)
        assert lay_out(request)["images"] == len(expected)
        assert tree(data / split) == expected
        assert lay_out(request)["changed"] is False


def boxes(path: Path, images: Iterable[str]) -> dict[str, bytes]:
    """Write an archive of annotations for ``images`` (and one for no image), and return what is to lie beside them."""
    found = {f"{name.rsplit('.', 1)[0]}.xml": f"<annotation>{name}</annotation>".encode() for name in images}
    path.write_bytes(gzip.compress(tar([*found.items(), ("n01440764/n01440764_0.xml", b"<annotation/>")])))
    return found


def test_annotations_beside_the_images(data: Path, archives: Path, tmp_path: Path) -> None:
    images = unpacked_train(archives)
    found = boxes(tmp_path / "boxes.tgz", list(images)[::2])
    request = train(data, archives / TRAIN, annotations=str(tmp_path / "boxes.tgz"))
    assert lay_out(request, check_mode=True)["diff"]["after"] == "train: 0 images\n"
    result = lay_out(request)
    assert tree(data / "train") == {**images, **found}
    assert (result["images"], result["annotations"], result["annotations_without_image"]) == (
        len(images),
        len(found),
        1,
    )
    assert result["diff"]["after"] == f"train: {len(images)} images in 20 classes, {len(found)} annotations\n"
    del result["diff"]
    assert lay_out(request) == {**result, "changed": False}
    assert lay_out(request, check_mode=True) == {**result, "changed": False}
    assert lay_out(train(data, archives / TRAIN))["changed"] is False, "they disturb nobody who does not want them"


def test_annotations_that_come_later(data: Path, archives: Path, flat: Path, tmp_path: Path) -> None:
    images = unpacked_validation(archives)
    lay_out(in_place(data, archives, flat, dest=str(flat)))
    found = boxes(tmp_path / "boxes.tgz", images)
    request = in_place(data, archives, flat, dest=str(flat), annotations=str(tmp_path / "boxes.tgz"))
    before, after = "flat: 40 images in 20 classes\n", "flat: 40 images in 20 classes, with annotations\n"
    assert lay_out(request, check_mode=True)["diff"] == {"before": before, "after": after}
    result = lay_out(request)
    assert result["diff"] == {"before": before, "after": "flat: 40 images in 20 classes, 40 annotations\n"}
    assert tree(flat) == {**images, **found}
    (tmp_path / "boxes.tgz").unlink()
    assert lay_out(request)["changed"] is False
    (flat / min(found)).unlink()
    assert "it has 39 annotations, but had 40 when they were laid out: files were" in failure(request)


def test_annotations_of_another_archive_are_in_the_way(data: Path, archives: Path, tmp_path: Path) -> None:
    images = list(unpacked_train(archives))
    for name, part in (("first", images[:9]), ("second", images[4:12])):
        boxes(tmp_path / name, part)
    lay_out(train(data, archives / TRAIN, annotations=str(tmp_path / "first")))
    assert (
        f"it has 12 annotations, {tmp_path / 'second'} has 8 for it. Delete the annotations (*.xml) of other archives"
        in failure(train(data, archives / TRAIN, annotations=str(tmp_path / "second")))
    )


def test_annotations_that_were_not_fetched(data: Path, archives: Path, tmp_path: Path) -> None:
    request = train(data, archives / TRAIN, annotations=str(tmp_path / "none.tgz"))
    assert lay_out(request, check_mode=True)["changed"] is True
    assert f"Archive {tmp_path / 'none.tgz'}: there is no such file" in failure(request)
    assert tree(data / "train") == unpacked_train(archives), "the images are there all the same"


def test_an_empty_directory_in_the_place_of_the_tree(data: Path, archives: Path) -> None:
    (data / "validation").mkdir()
    lay_out(validation(data, archives, dest=f"{data}/validation/"))
    assert tree(data / "validation") == unpacked_validation(archives)


def test_progress_for_people(data: Path, archives: Path) -> None:
    lay_out(train(data, archives / TRAIN))
    progress = json.loads((data / ".state" / "imagenet_layout.progress.json").read_text())
    size = (archives / TRAIN).stat().st_size
    assert (progress["stage"], progress["done"], progress["total"], progress["unit"], progress["finished"]) == (
        f"Extracting {TRAIN}",
        size,
        size,
        "bytes",
        True,
    )


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"the sample of real photographs, {SAMPLE}, is not there")
def test_the_sample_of_real_photographs(data: Path) -> None:
    result = lay_out(train(data, SAMPLE / TRAIN, expected_images=1003, expected_classes=1000))
    assert (result["images"], result["classes"]) == (1003, 1000)
    lay_out(validation(data, SAMPLE, expected_images=200))
    truth = dict(line.split() for line in (SAMPLE / "validation_synsets.txt").read_text().splitlines())
    assert {path.name: path.parent.name for path in (data / "validation").glob("*/*")} == truth


# What is refused


def with_link(kind: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("n01440764_1.JPEG")
        member.type = kind
        member.linkname = "/etc/passwd"
        archive.addfile(member)
    return buffer.getvalue()


def one_class(*entries: tuple[str, bytes]) -> bytes:
    return tar([("n01440764.tar", tar(list(entries)))])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (one_class(("../n01440764_1.JPEG", b"")), "'../n01440764_1.JPEG' at byte 512 has a path outside"),
        (one_class(("/etc/n01440764_1.JPEG", b"")), "has a path outside of the archive"),
        (one_class(("etc/n01440764_1.JPEG", b"")), "is in a directory, but must be at the top level"),
        (one_class(("..", b"")), "has a path outside of the archive"),
        (one_class(("n01440764_1.JPEG", b""), ("n01440764_1.JPEG", b"")), "at byte 1024 is a duplicate"),
        (one_class(("n01443537_1.JPEG", b"")), "is not a valid image name for class n01440764"),
        (one_class(("n01440764_1.jpg.sh", b"")), "is not a valid image name for class n01440764"),
        (one_class(), "'n01440764.tar' at byte 0 has no images"),
        (tar([("n01440764.zip", b"")]), "'n01440764.zip' at byte 0 is not a valid name for the archive of a class"),
        (tar([("../n01440764.tar", b"")]), "has a path outside of the archive"),
        (tar([("tench.tar", b"")]), "is not a valid name for the archive of a class"),
        (tar([("n01440764.tar", with_link(tarfile.SYMTYPE))]), "tar: the member 'n01440764_1.JPEG' at byte 512"),
        (tar([("n01440764.tar", with_link(tarfile.SYMTYPE))]), "is a symbolic link"),
        (tar([("n01440764.tar", with_link(tarfile.LNKTYPE))]), "is a hard link"),
        (tar([("n01440764.tar", with_link(tarfile.CHRTYPE))]), "is a character device"),
        (tar([("n01440764.tar", with_link(tarfile.DIRTYPE))]), "'n01440764.tar' at byte 0 has no images"),
        (with_link(tarfile.FIFOTYPE), "is a named pipe"),
    ],
)
def test_members_that_have_no_place(data: Path, tmp_path: Path, content: bytes, why: str) -> None:
    archive = tmp_path / "bad.tar"
    archive.write_bytes(content)
    message = failure(train(data, archive))
    assert message.startswith(f"Archive {archive}: ")
    assert why in message
    assert message.endswith(". This is not the published archive; fetch it again (archive_fetch compares its MD5)")
    assert not (data / "train").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar", "imagenet"]


def test_a_class_that_is_there_twice(data: Path, tmp_path: Path) -> None:
    inner = tar([("n01440764_1.JPEG", b"x")])
    (tmp_path / "bad.tar").write_bytes(tar([("n01440764.tar", inner)] * 2))
    assert "the member 'n01440764.tar' at byte 10752 is a duplicate" in failure(train(data, tmp_path / "bad.tar"))


def test_members_that_are_too_large_for_images(
    data: Path, tmp_path: Path, archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "_LARGEST_IMAGE_BYTES", 10)
    (tmp_path / "bad.tar").write_bytes(one_class(("n01440764_1.JPEG", bytes(11))))
    assert "has 11 bytes, which is too large for an image" in failure(train(data, tmp_path / "bad.tar"))
    assert "too large for an image" in failure(validation(data, archives))


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([("ILSVRC2012_val_00000041.JPEG", b"")], "Image ILSVRC2012_val_00000041.JPEG: the development kit"),
        ([("README", b"")], "the member 'README' at byte 0 is not a valid image name for the validation split"),
        ([("ILSVRC2012_val_00000001.JPEG", b"")] * 2, "'ILSVRC2012_val_00000001.JPEG' at byte 512 is a duplicate"),
    ],
)
def test_validation_members_that_have_no_place(
    data: Path, tmp_path: Path, archives: Path, entries: list[tuple[str, bytes]], why: str
) -> None:
    (tmp_path / "bad.tar").write_bytes(tar(entries))
    assert why in failure(validation(data, archives, archive=str(tmp_path / "bad.tar")))
    assert not (data / "validation").exists()


def test_damage_names_the_class_and_the_byte(data: Path, tmp_path: Path, archives: Path) -> None:
    content = bytearray((archives / TRAIN).read_bytes())
    with tarfile.open(archives / TRAIN) as classes:
        member = classes.getmembers()[7]
        with tarfile.open(fileobj=classes.extractfile(member)) as images:
            offset = member.offset_data + images.getmembers()[2].offset
    content[offset + 3] ^= 0xFF
    (tmp_path / "bad.tar").write_bytes(content)
    assert failure(train(data, tmp_path / "bad.tar")) == (
        f"Archive {tmp_path / 'bad.tar'}: the class archive {member.name} is damaged at byte {offset}: header"
        " checksum mismatch. Fetch it again (archive_fetch compares its MD5); the images before that byte are kept"
    )
    assert not (data / "train").exists()


@pytest.mark.parametrize("cut", [1000, 30_000, 1_000_000])
def test_a_truncated_archive(data: Path, tmp_path: Path, archives: Path, cut: int) -> None:
    (tmp_path / "bad.tar").write_bytes((archives / TRAIN).read_bytes()[:cut])
    message = failure(train(data, tmp_path / "bad.tar"))
    assert f"is damaged at byte {cut}: it is truncated: " in message
    assert not (data / "train").exists()


def test_a_file_that_is_no_archive(data: Path, tmp_path: Path) -> None:
    (tmp_path / "page.tar").write_bytes(b"<html>" * 500)
    assert "it is an HTML page, not a tar or zip. Fetch the archive itself" in failure(
        train(data, tmp_path / "page.tar")
    )
    assert "there is no such file. Fetch it first" in failure(train(data, tmp_path / "none.tar"))


@pytest.mark.parametrize(
    ("expected", "why"),
    [
        ({"expected_images": 41}, "it has 40 images, expected 41"),
        ({"expected_classes": 3}, "it has 20 classes, expected 3"),
    ],
)
def test_counts_that_are_not_those_expected(data: Path, archives: Path, expected: dict[str, int], why: str) -> None:
    assert f"Tree {data / 'validation'}.partial: {why}" in failure(validation(data, archives, **expected))
    assert not (data / "validation").exists()
    # The expectation was wrong: the next run reads nothing again.
    lay_out(validation(data, archives, expected_images=40))
    assert tree(data / "validation") == unpacked_validation(archives)
    assert f"Tree {data / 'validation'}: {why}" in failure(validation(data, archives, **expected))


def test_files_of_others_are_not_touched(data: Path, archives: Path) -> None:
    (data / "train" / "n01440764").mkdir(parents=True)
    assert "it has files that imagenet_layout did not put there" in failure(train(data, archives / TRAIN))
    (data / "validation.partial").mkdir()
    assert failure(validation(data, archives)) == (
        f"Tree {data / 'validation'}.partial: it exists, but its checkpoint"
        f" {data / '.state' / 'imagenet_layout.validation.json'} does not. Delete it and rerun"
    )


def test_a_tree_that_was_removed_is_made_anew(data: Path, archives: Path) -> None:
    request = validation(data, archives)
    lay_out(request)
    (data / "validation").rename(data / "gone")
    assert lay_out(request)["changed"] is True
    assert tree(data / "validation") == unpacked_validation(archives)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"archive": None}, "exactly one of archive and directory is required"),
        ({"directory": "/x"}, "exactly one of archive and directory is required"),
        ({"devkit": None}, "labelled_files requires labels or devkit"),
    ],
)
def test_options_that_do_not_fit_together(data: Path, archives: Path, changes: dict[str, Any], why: str) -> None:
    request = LayoutRequest(**{**vars(validation(data, archives)), **changes})
    assert failure(request) == f"Options of imagenet_layout: {why}. Correct them and rerun"


# Check mode


def test_check_mode_writes_nothing(data: Path, archives: Path) -> None:
    request = train(data, archives / TRAIN, expected_images=7, expected_classes=2)
    assert lay_out(request, check_mode=True) == {
        "changed": True,
        "split": "train",
        "images": 7,
        "classes": 2,
        "bytes": 0,
        "annotations": 0,
        "annotations_without_image": 0,
        "diff": {"before": "train: not laid out\n", "after": "train: 7 images\n"},
    }
    assert list(data.iterdir()) == []
    assert lay_out(train(data, data / "to be fetched.tar"), check_mode=True)["changed"] is True
    done = lay_out(train(data, archives / TRAIN))
    del done["diff"]
    assert lay_out(train(data, archives / TRAIN), check_mode=True) == {**done, "changed": False}


def test_check_mode_of_a_directory_says_just_what_would_move(data: Path, archives: Path, flat: Path) -> None:
    request = in_place(data, archives, flat)
    predicted = lay_out(request, check_mode=True)
    assert not (data / "validation").exists()
    assert predicted == lay_out(request)
    assert lay_out(request, check_mode=True)["changed"] is False
    (flat / "Thumbs.db").write_bytes(b"")
    assert "its name is not valid for an image" in failure(request, check_mode=True)


# Full disks, kills, speed


def test_a_volume_that_is_too_small(data: Path, archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _path: 1_000)
    assert "GiB are needed and 0.00 GiB are free" in failure(train(data, archives / TRAIN))
    assert not (data / "train").exists()


def test_a_disk_that_fills_up(data: Path, archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "_CHECKPOINT_SECONDS", 0)
    real_write_all = tree_writer._write_all
    written: list[int] = []

    def until_full(batch: list[tree_writer._File]) -> None:
        written.append(len(batch))
        if sum(written) > 60:
            raise OSError(28, "No space left on device")
        real_write_all(batch)

    with monkeypatch.context() as patched:
        patched.setattr(tree_writer, "_write_all", until_full)
        assert failure(train(data, archives / TRAIN)) == (
            f"Writing {data / 'train'}: there is no space left (No space left on device). Free space or enlarge the"
            " volume, then run again: what was done so far is kept"
        )
    checkpoint = json.loads((data / ".state" / "imagenet_layout.train.json").read_text())
    assert checkpoint["offset"] > 0
    lay_out(train(data, archives / TRAIN))
    assert tree(data / "train") == unpacked_train(archives)


def test_a_resumed_run_does_not_read_again_what_is_safe(
    data: Path, archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "_CHECKPOINT_SECONDS", 0)
    seen = record_images(monkeypatch, interrupt_at=70)
    with pytest.raises(KeyboardInterrupt):
        lay_out(train(data, archives / TRAIN))
    lay_out(train(data, archives / TRAIN))
    expected = unpacked_train(archives)
    assert sorted(seen) == sorted(expected), "each image is read, and none twice"
    assert tree(data / "train") == expected


def record_images(monkeypatch: pytest.MonkeyPatch, interrupt_at: int) -> list[str]:
    """Let reading be interrupted once, before the image of that number; return the list of the images given so far."""
    real_images = images_module.ImageArchive.images
    seen: list[str] = []
    interruptions = [interrupt_at]

    def images(self: images_module.ImageArchive, *arguments: Any) -> Iterator[images_module.ArchiveImage]:
        for image in real_images(self, *arguments):
            if interruptions == [len(seen)]:
                interruptions.clear()
                raise KeyboardInterrupt
            seen.append(f"{image.class_name}/{image.name}")
            yield image

    monkeypatch.setattr(images_module.ImageArchive, "images", images)
    return seen


def test_other_labels_or_another_archive_begin_anew(
    data: Path, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "_CHECKPOINT_SECONDS", 0)
    images = flat_images(archives)
    bad = tmp_path / "val.tar"
    bad.write_bytes(tar([*images.items(), ("README", b"")]))
    failure(validation(data, archives, archive=str(bad)))
    assert list((data / "validation.partial").iterdir())
    # The archive was fetched again, in another order and with fewer images.
    bad.write_bytes(tar(list(reversed(images.items()))[:30]))
    warnings: list[str] = []
    lay_out(validation(data, archives, archive=str(bad)), warn=warnings.append)
    assert len(tree(data / "validation")) == 30
    (warning,) = warnings
    assert f"10 images that have labels are not in {bad} (such as ILSVRC2012_val_" in warning


def test_a_name_before_a_restart_and_again_after_it(
    data: Path, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "_CHECKPOINT_SECONDS", 0)
    images = list(flat_images(archives).items())
    twice = tmp_path / "val.tar"
    twice.write_bytes(tar([*images, images[0]]))
    record_images(monkeypatch, interrupt_at=10)
    with pytest.raises(KeyboardInterrupt):
        lay_out(validation(data, archives, archive=str(twice)))
    assert "it does not have the 41 images of" in failure(validation(data, archives, archive=str(twice)))
    assert not (data / "validation").exists()


def as_arguments(request: LayoutRequest) -> dict[str, Any]:
    return dict(vars(request))


@pytest.fixture(scope="module")
def kills() -> Iterator[Kills]:
    with Kills() as running:
        yield running


class Job(NamedTuple):
    """Something to lay out, and the tree that it must give."""

    request: LayoutRequest
    expected: dict[str, bytes]


def job(kind: str, folder: Path, archives: Path) -> Job:
    """Prepare a job in ``folder``."""
    if kind == "train":
        return Job(train(folder, archives / TRAIN), unpacked_train(archives))
    if kind == "annotations":
        images = unpacked_train(archives)
        found = boxes(folder / "boxes.tgz", images)
        return Job(train(folder, archives / TRAIN, annotations=str(folder / "boxes.tgz")), {**images, **found})
    if kind in ("tgz", "zip"):
        expected = write_imagenette(folder / "a.tgz")["train"]
        path = zip_of_tar(folder / "a.tgz") if kind == "zip" else folder / "a.tgz"
        settings = {"name_rules": "any", "layout": "class_directories", "folder": "imagenette2/train"}
        return Job(train(folder, path, **settings), expected)
    expected = unpacked_validation(archives)
    if kind == "validation":
        return Job(validation(folder, archives), expected)
    write_tree(folder / "flat", flat_images(archives))
    return Job(in_place(folder, archives, folder / "flat", dest=str(folder / "flat")), expected)


KILLS = {"train": 20, "validation": 10, "directory": 20, "annotations": 10, "tgz": 10, "zip": 10}


@pytest.fixture(scope="module")
def changes_of_a_whole_run(tmp_path_factory: pytest.TempPathFactory, archives: Path, kills: Kills) -> dict[str, int]:
    counts = {}
    for kind in KILLS:
        request = job(kind, tmp_path_factory.mktemp(kind), archives).request
        count = kills.run("lay_out", as_arguments(request), NEVER)
        assert count is not None
        counts[kind] = count
    return counts


@pytest.mark.parametrize(("kind", "seed"), [case for kind, seeds in KILLS.items() for case in kill_seeds(seeds, kind)])
def test_killed_anywhere_and_run_again(
    data: Path, archives: Path, kind: str, seed: int, kills: Kills, changes_of_a_whole_run: dict[str, int]
) -> None:
    chance = random.Random(f"{kind} {seed}")
    request, expected = job(kind, data, archives)
    images = {name: content for name, content in expected.items() if not name.endswith(".xml")}
    for _ in range(1 + seed % 2):
        kills.run("lay_out", as_arguments(request), chance.randint(1, changes_of_a_whole_run[kind]))
        if kind != "directory" and os.path.exists(request.dest):
            found = tree(Path(request.dest))
            assert {name: content for name, content in found.items() if not name.endswith(".xml")} == images
    lay_out(request)
    assert tree(Path(request.dest)) == expected
    assert not os.path.exists(f"{request.dest}.partial")
    assert lay_out(request)["changed"] is False


def test_a_second_run_over_many_images_takes_no_time(data: Path, tmp_path: Path) -> None:
    classes = [(f"n{c:08d}.tar", tar([(f"n{c:08d}_{i}.JPEG", b"x") for i in range(100)])) for c in range(100)]
    (tmp_path / "many.tar").write_bytes(tar(classes))
    lay_out(train(data, tmp_path / "many.tar", expected_images=10_000))
    began = time.monotonic()
    assert lay_out(train(data, tmp_path / "many.tar", expected_images=10_000))["changed"] is False
    assert time.monotonic() - began < 1
