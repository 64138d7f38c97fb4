"""Every image with its class, from any point at which an earlier pass may have stopped; refusals name the member."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.archive.images import (
    ArchiveImage,
    ArchiveRules,
    Beside,
    ImageArchive,
    ResumePoint,
    labels_for,
    require_archive,
)
from ansible.module_utils.imagenet_ops.core.errors import OpsError

from lab.archives import DEVKIT, TRAIN, VALIDATION
from tests.fakes.images import write_imagenette, zip_of_tar
from tests.fakes.layouts import unpacked_train, unpacked_validation

TRAIN_RULES = ArchiveRules("train", "class_archives")


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
    expected = [(*path.split("/"), content) for path, content in unpacked_train(archives).items()]
    found = read(archives / TRAIN, TRAIN_RULES)
    assert [image[:3] for image in found] == expected
    whole = (archives / TRAIN).read_bytes()
    assert all(whole[image.offset : image.offset + len(image.content)] == image.content for image in found)


def test_images_by_label(archives: Path) -> None:
    expected = [(*path.split("/"), content) for path, content in unpacked_validation(archives).items()]
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
        assert archive.remaining_bytes(ResumePoint(1024)) == archive.size_bytes - 1024


def test_a_class_that_an_earlier_pass_finished_is_refused(tmp_path: Path) -> None:
    inner = tar([("n01440764_1.JPEG", b"x")])
    other = tar([("n01443537_1.JPEG", b"y")])
    path = tmp_path / "train.tar"
    path.write_bytes(tar([("n01440764.tar", inner), ("n01443537.tar", other), ("n01440764.tar", inner)]))
    with ImageArchive(str(path), TRAIN_RULES, None) as archive:
        second = next(image for image in archive.images() if image.class_name == "n01443537")
    with pytest.raises(OpsError, match=r"the member 'n01440764.tar' at byte 21504 is a duplicate"):
        read(path, TRAIN_RULES, second.after, ("n01440764", "n01443537"))


def test_a_resume_point_beyond_the_end(archives: Path) -> None:
    size = (archives / TRAIN).stat().st_size
    with pytest.raises(OpsError, match=f"the archive is damaged at byte {size}: it is truncated"):
        read(archives / TRAIN, TRAIN_RULES, ResumePoint(size + 1024))


def test_no_archive(tmp_path: Path) -> None:
    with pytest.raises(OpsError, match=r"there is no such file. Fetch it first with archive_fetch"):
        ImageArchive(str(tmp_path / "none.tar"), TRAIN_RULES, None)
    (tmp_path / "some.tar").write_bytes(b"1234")
    assert require_archive(str(tmp_path / "some.tar")) == 4


def test_labels_only_where_they_are_needed(archives: Path) -> None:
    assert labels_for(TRAIN_RULES) == {}
    assert len(labels_for(validation_rules(archives))) == 40


# Other data sets


def imagenette(folder: str) -> ArchiveRules:
    return ArchiveRules("any", "class_directories", folder=folder)


@pytest.mark.parametrize("kind", ["tgz", "tar", "bz2", "xz", "zip"])
def test_both_splits_of_one_archive(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "imagenette2.tgz"
    splits = write_imagenette(path)
    plain = gzip.decompress(path.read_bytes())
    if kind == "zip":
        path = zip_of_tar(path)
    elif kind != "tgz":
        path = tmp_path / f"imagenette2.{kind}"
        path.write_bytes({"tar": plain, "bz2": bz2.compress(plain), "xz": lzma.compress(plain)}[kind])
    for split, expected in splits.items():
        rules = imagenette(f"imagenette2/{split}")
        whole = read(path, rules)
        assert {f"{image.class_name}/{image.name}": image.content for image in whole} == expected
        assert len(whole) == len(expected)
        for number, image in enumerate(whole):
            kept = ResumePoint(*json.loads(json.dumps(image.after)))
            assert read(path, rules, kept) == whole[number + 1 :]


def test_labels_of_a_flat_zip(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\n1.png,cat\n2.JPG,big dog\n")
    rules = ArchiveRules("any", "labelled_files", labels=str(tmp_path / "labels.csv"), folder="pets/images")
    (tmp_path / "a.tar").write_bytes(
        tar(
            [
                ("pets/labels.csv", b""),
                ("pets/images/2.JPG", b"d"),
                ("pets/images/README", b""),
                ("pets/images/1.png", b"c"),
            ]
        )
    )
    found = read(zip_of_tar(tmp_path / "a.tar"), rules)
    assert [image[:3] for image in found] == [("big dog", "2.JPG", b"d"), ("cat", "1.png", b"c")]


def link_in(folder: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(f"{folder}/1.png")
        member.type = tarfile.SYMTYPE
        member.linkname = "/etc/passwd"
        archive.addfile(member)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (tar([("set/../../1.png", b"")]), "'set/../../1.png' at byte 0 has a path outside of the archive"),
        (tar([("/set/cat/1.png", b"")]), "has a path outside of the archive"),
        (tar([("set/1.png", b"")]), "'set/1.png' at byte 0 is not in a class directory (<class>/<image>)"),
        (tar([("set/cat/more/1.png", b"")]), "is not in a class directory (<class>/<image>)"),
        (tar([("set/-rf/1.png", b"")]), "is in a directory whose name is not a valid class"),
        (tar([("set/cat /1.png", b"")]), "is in a directory whose name is not a valid class"),
        (tar([("set/cat/\n.png", b"")]), "'set/cat/\\n.png' at byte 0 is not a valid image name for class cat"),
        (tar([("set/cat/1.png", b""), ("set/cat/1.png", b"")]), "'set/cat/1.png' at byte 512 is a duplicate"),
        (tar([("set/cat/1.png", b""), ("./set//cat/1.png", b"")]), "is a duplicate"),
    ],
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_have_no_place(tmp_path: Path, content: bytes, why: str, kind: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    if kind == "zip":
        path, why = zip_of_tar(path), why.replace("at byte 512", "at byte 45")
    with pytest.raises(OpsError) as caught:
        read(path, imagenette("set"))
    assert why in str(caught.value)
    assert str(caught.value).endswith(
        ". Check layout, folder and name rules of the split, and that the archive is complete"
    )


@pytest.mark.parametrize("folder", ["set/cat", "elsewhere"])
def test_links_are_refused_anywhere(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a.tar").write_bytes(link_in(folder))
    with pytest.raises(OpsError, match=f"'{folder}/1.png' at byte 0 is a symbolic link"):
        read(tmp_path / "a.tar", imagenette("set"))


def test_names_of_other_data_sets(tmp_path: Path) -> None:
    names = ["cat", "Faces_easy", "001.ak47", "Chêne (vert)", "rock'n'roll", "n02085620-Chihuahua", "7"]
    (tmp_path / "a.tar").write_bytes(tar([(f"{name}/1.png", b"") for name in names]))
    assert [image.class_name for image in read(tmp_path / "a.tar", imagenette(""))] == names


def test_what_desktops_leave_is_passed_over(tmp_path: Path) -> None:
    rest = ["README.md", "__MACOSX/cat/._1.png", "cat/.DS_Store", "cat/._1.png", "cat/Thumbs.db"]
    (tmp_path / "a.tar").write_bytes(tar([*((name, b"?") for name in rest), ("cat/1.png", b"!")]))
    assert [image[:3] for image in read(tmp_path / "a.tar", imagenette(""))] == [("cat", "1.png", b"!")]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    write_imagenette(tmp_path / "a.tgz")
    with pytest.raises(OpsError) as caught:
        read(tmp_path / "a.tgz", imagenette("imagenette2/test"))
    assert str(caught.value) == (
        f"Archive {tmp_path / 'a.tgz'}: its directory imagenette2/test has no images. Correct the archive, or its"
        " folder and layout"
    )


def test_class_archives_are_not_read_from_a_zip(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar([("cat.tar", tar([("1.png", b"")]))]))
    with pytest.raises(OpsError, match="class_archives requires a tar archive, and this is a zip"):
        read(zip_of_tar(tmp_path / "a.tar"), ArchiveRules("any", "class_archives"))


def test_damage_in_a_zip_has_its_place(tmp_path: Path) -> None:
    write_imagenette(tmp_path / "a.tgz")
    path = zip_of_tar(tmp_path / "a.tgz")
    image = read(path, imagenette("imagenette2/val"))[2]
    content = bytearray(path.read_bytes())
    content[image.offset + 200] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(OpsError, match=f"the archive is damaged at byte {image.offset}: its data cannot be read"):
        read(path, imagenette("imagenette2/val"))


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_what_is_beside_the_images_is_kept_with_the_point_to_resume_from(tmp_path: Path, kind: str) -> None:
    entries = [("cat/1.png", b"1"), ("cat/notes.txt", b""), ("fox/", b""), ("cat/1.xml", b""), ("dog/2.png", b"2")]
    entries += [("cow/", b""), ("cow/deep/notes", b""), ("owl/READ.ME", b""), ("dog/.hidden.png", b"")]
    path = tmp_path / "a.tar"
    path.write_bytes(tar(entries))
    path = zip_of_tar(path) if kind == "zip" else path
    whole = Beside(("cow", "fox", "owl"), 4, ("cat/notes.txt", "cow/deep/notes", "dog/.hidden.png", "owl/READ.ME"))
    with ImageArchive(str(path), imagenette(""), None) as archive:
        points = [(image.after, archive.beside) for image in archive.images()]
        assert archive.beside == whole
    assert [beside.files for _, beside in points] == [0, 1]
    for after, beside in points:
        with ImageArchive(str(path), imagenette(""), None) as archive:
            archive.beside = Beside(*json.loads(json.dumps(beside)))
            list(archive.images(after))
            # That the class has images, a pass that begins behind them cannot know.
            found = archive.beside
            assert (
                found._replace(empty_classes=tuple(n for n in found.empty_classes if n not in ("cat", "dog"))) == whole
            )
    assert whole.warning("x") == (
        "4 files in x are not images by their names (cat/notes.txt, cow/deep/notes, dog/.hidden.png, owl/READ.ME)"
    )


def test_a_label_in_another_unicode_form(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\ncaf\u00e9.png,cat\ncafe\u0301s.png,dog\n", encoding="utf-8")
    rules = ArchiveRules("any", "labelled_files", labels=str(tmp_path / "labels.csv"))
    (tmp_path / "a.tar").write_bytes(tar([("cafe\u0301.png", b"1"), ("caf\u00e9s.png", b"2")]))
    assert [image[:2] for image in read(tmp_path / "a.tar", rules)] == [
        ("cat", "cafe\u0301.png"),
        ("dog", "caf\u00e9s.png"),
    ]


def test_a_dump_that_is_only_a_part(tmp_path: Path) -> None:
    directory = tarfile.TarInfo("cat/")
    directory.type = b"D"
    names = b"Y2.png\0N1.png\0N3.png\0\0"
    directory.size = len(names)
    (tmp_path / "a.tar").write_bytes(
        directory.tobuf(tarfile.GNU_FORMAT) + names.ljust(512, b"\0") + tar([("cat/2.png", b"2")])
    )
    why = "'cat/' at byte 0 is a directory of an incremental dump that leaves out 2 of its files, such as '1.png'"
    with pytest.raises(OpsError, match=why):
        read(tmp_path / "a.tar", imagenette(""))
