"""Every image with its class, from any point at which an earlier pass may have stopped; refusals name the entry."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.errors import OpsError
from ansible.module_utils.imagenet_ops.image_archive import (
    ArchiveImage,
    ArchiveRules,
    ImageArchive,
    ResumePoint,
    labels_for,
    require_archive,
)

from lab.archives import DEVKIT, TRAIN, VALIDATION, prepare

TRAIN_RULES = ArchiveRules("train", "class_archives")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    prepare(folder, None)
    return folder


def tar(entries: list[tuple[str, bytes]], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def read(
    path: Path, rules: ArchiveRules, start: ResumePoint | None = None, finished: tuple[str, ...] = ()
) -> list[ArchiveImage]:
    with ImageArchive(str(path), rules, labels_for(rules)) as archive:
        return list(archive.images(start or ResumePoint(), finished))


def validation_rules(archives: Path) -> ArchiveRules:
    return ArchiveRules("validation", "labelled_files", str(archives / DEVKIT))


def test_images_of_class_archives(archives: Path) -> None:
    expected = []
    with tarfile.open(archives / TRAIN) as classes:
        for class_archive in classes:
            with tarfile.open(fileobj=classes.extractfile(class_archive)) as images:
                for image in images:
                    content = images.extractfile(image)
                    assert content is not None
                    expected.append((class_archive.name.removesuffix(".tar"), image.name, content.read()))
    found = read(archives / TRAIN, TRAIN_RULES)
    assert [image[:3] for image in found] == expected
    whole = (archives / TRAIN).read_bytes()
    assert all(whole[image.offset : image.offset + len(image.content)] == image.content for image in found)


def test_images_by_label(archives: Path) -> None:
    truth = dict(line.split() for line in (archives / "validation_synsets.txt").read_text().splitlines())
    with tarfile.open(archives / VALIDATION) as archive:
        expected = [
            (truth[member.name], member.name, archive.extractfile(member).read())  # type: ignore[union-attr]
            for member in archive
        ]
    assert [image[:3] for image in read(archives / VALIDATION, validation_rules(archives))] == expected


@pytest.mark.parametrize("kind", ["train", "validation", "train in gzip"])
def test_reading_goes_on_after_any_image(archives: Path, tmp_path: Path, kind: str) -> None:
    path, rules = archives / TRAIN, TRAIN_RULES
    if kind == "validation":
        path, rules = archives / VALIDATION, validation_rules(archives)
    if kind == "train in gzip":
        path = tmp_path / "train.tar.gz"
        inner = tar([(f"n01440764_{n}.JPEG", b"x") for n in range(9)])
        path.write_bytes(gzip.compress(tar([("n01440764.tar", inner)])))
    whole = read(path, rules)
    labels = labels_for(rules)
    for number, image in enumerate(whole):
        kept = ResumePoint(*json.loads(json.dumps(image.after)))
        with ImageArchive(str(path), rules, labels) as archive:
            assert list(archive.images(kept)) == whole[number + 1 :]


def test_long_names_and_class_archives_of_odd_lengths(tmp_path: Path) -> None:
    long = "x" * 180
    inner = tar([(f"{long}{n}.png", bytes([n]) * 700) for n in range(3)], tarfile.PAX_FORMAT)
    # An archive ends with two blocks of zeros; what fills it up to 10 KiB may be missing, or be a byte too many.
    blocks = -(-len(inner.rstrip(b"\0")) // 512)
    short = inner[: 512 * (blocks + 2)]
    path = tmp_path / "any.tar"
    path.write_bytes(tar([("a.tar", short), ("b.tar", short + b"\0"), ("c.tar", inner)]))
    rules = ArchiveRules("any", "class_archives")
    whole = read(path, rules)
    assert [(image.class_name, image.name) for image in whole] == [
        (class_name, f"{long}{n}.png") for class_name in "abc" for n in range(3)
    ]
    for number, image in enumerate(whole):
        assert read(path, rules, image.after) == whole[number + 1 :]


def test_the_file_is_read_as_far_as_is_said(archives: Path) -> None:
    with ImageArchive(str(archives / TRAIN), TRAIN_RULES, None) as archive:
        assert (archive.file_position, archive.size_bytes) == (0, (archives / TRAIN).stat().st_size)
        for image in archive.images():
            assert archive.file_position >= image.offset + len(image.content)
        assert not archive.compressed


def test_a_class_that_an_earlier_pass_finished_is_refused(tmp_path: Path) -> None:
    inner = tar([("n01440764_1.JPEG", b"x")])
    other = tar([("n01443537_1.JPEG", b"y")])
    path = tmp_path / "train.tar"
    path.write_bytes(tar([("n01440764.tar", inner), ("n01443537.tar", other), ("n01440764.tar", inner)]))
    with ImageArchive(str(path), TRAIN_RULES, None) as archive:
        second = next(image for image in archive.images() if image.class_name == "n01443537")
    with pytest.raises(OpsError, match=r"the entry 'n01440764.tar' at byte 21504 is there twice"):
        read(path, TRAIN_RULES, second.after, ("n01440764", "n01443537"))


def test_a_resume_point_beyond_the_end(archives: Path) -> None:
    size = (archives / TRAIN).stat().st_size
    with pytest.raises(OpsError, match=f"the archive is damaged at byte {size}: it ends"):
        read(archives / TRAIN, TRAIN_RULES, ResumePoint(size + 1024))


def test_no_archive(tmp_path: Path) -> None:
    with pytest.raises(OpsError, match=r"there is no such file. Fetch it first, with archive_fetch"):
        ImageArchive(str(tmp_path / "none.tar"), TRAIN_RULES, None)
    (tmp_path / "some.tar").write_bytes(b"1234")
    assert require_archive(str(tmp_path / "some.tar")) == 4


def test_labels_only_where_they_are_needed(archives: Path) -> None:
    assert labels_for(TRAIN_RULES) == {}
    assert len(labels_for(validation_rules(archives))) == 40
