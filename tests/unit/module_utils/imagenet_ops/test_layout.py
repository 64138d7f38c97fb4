"""Trees are complete and right or not there; what is not the data set is refused; a kill changes nothing in the end."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops import disk, image_archive, layout, tree_writer
from ansible.module_utils.imagenet_ops.errors import OpsError
from ansible.module_utils.imagenet_ops.layout import LayoutRequest, lay_out

from lab.archives import DEVKIT, TRAIN, VALIDATION, prepare
from tests.fakes.killed import NEVER, Kills

SAMPLE = Path(__file__).resolve().parents[5] / "shared" / "imagenet-sample"
WNIDS = ["n01440764", "n01443537", "n02105855"]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    prepare(folder, None)
    return folder


@pytest.fixture(autouse=True)
def quick_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one waits for whatever else the machine writes; test_tree_writer.py and test_disk.py see to those."""
    monkeypatch.setattr(tree_writer, "sync_filesystem", lambda _path: None)
    monkeypatch.setattr(layout, "sync_filesystem", lambda _path: None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "imagenet").mkdir()
    return tmp_path / "imagenet"


def tar(entries: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def train(data: Path, archive: Path, **settings: Any) -> LayoutRequest:
    settings = {"split": "train", **settings}
    return LayoutRequest(
        layout="class_archives",
        dest=str(data / "train"),
        state_dir=str(data / ".state"),
        archive=str(archive),
        **settings,
    )


def validation(data: Path, archives: Path, **settings: Any) -> LayoutRequest:
    settings = {"archive": str(archives / VALIDATION), "split": "validation", **settings}
    return LayoutRequest(
        layout="labelled_files",
        dest=settings.pop("dest", str(data / "validation")),
        state_dir=str(data / ".state"),
        devkit=settings.pop("devkit", str(archives / DEVKIT)),
        **settings,
    )


def in_place(data: Path, archives: Path, flat: Path, **settings: Any) -> LayoutRequest:
    return validation(data, archives, archive=None, directory=str(flat), **settings)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def unpacked_train(archives: Path) -> dict[str, bytes]:
    """What the training tree must be, by the standard library's reader."""
    expected = {}
    with tarfile.open(archives / TRAIN) as classes:
        for class_archive in classes:
            with tarfile.open(fileobj=classes.extractfile(class_archive)) as images:
                for image in images:
                    content = images.extractfile(image)
                    assert content is not None
                    expected[f"{class_archive.name.removesuffix('.tar')}/{image.name}"] = content.read()
    return expected


def flat_images(archives: Path) -> dict[str, bytes]:
    with tarfile.open(archives / VALIDATION) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def unpacked_validation(archives: Path) -> dict[str, bytes]:
    """What the validation tree must be, by the truth that the lab wrote down."""
    truth = dict(line.split() for line in (archives / "validation_synsets.txt").read_text().splitlines())
    return {f"{truth[name]}/{name}": content for name, content in flat_images(archives).items()}


def failure(request: LayoutRequest, *, check_mode: bool = False) -> str:
    with pytest.raises(OpsError) as caught:
        lay_out(request, check_mode=check_mode)
    return str(caught.value)


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
    assert f"the file with labels {labels} gives it 'tench', which is not named like a class. Use the file" in message


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
    assert "is not named like the archive of a class" in failure(train(data, archive))
    lay_out(train(data, archive, split="any"))
    assert tree(data / "train") == {"Rosa canina/IMG 1.jpg": b"1", "Rosa canina/b.PNG": b"2"}


def test_an_empty_directory_in_the_place_of_the_tree(data: Path, archives: Path) -> None:
    (data / "validation").mkdir()
    lay_out(validation(data, archives, dest=f"{data}/validation/"))
    assert tree(data / "validation") == unpacked_validation(archives)


def test_progress_for_people(data: Path, archives: Path) -> None:
    lay_out(train(data, archives / TRAIN))
    progress = json.loads((data / ".state" / "imagenet_layout.progress.json").read_text())
    size = (archives / TRAIN).stat().st_size
    assert (progress["stage"], progress["done"], progress["total"], progress["unit"], progress["finished"]) == (
        f"Laying out {TRAIN}",
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


# From a directory


@pytest.fixture
def flat(data: Path, archives: Path) -> Path:
    folder = data / "flat"
    folder.mkdir()
    for name, content in flat_images(archives).items():
        (folder / name).write_bytes(content)
    return folder


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
    for journal in (data / ".state").glob("imagenet_layout*.json"):
        journal.unlink()
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
            "has no label for it. Use the development kit that belongs to the images; nothing was put into the tree",
        ),
        (lambda flat, _names: (flat / "Thumbs.db").write_bytes(b""), "it is not named like an image of the validation"),
        (lambda flat, names: (flat / names[0]).unlink(), "it holds 39 images, and 40 were expected"),
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
        " development kit that belongs to the images; nothing was put into the tree"
    )


def test_files_in_the_wrong_class_are_not_believed(data: Path, archives: Path, flat: Path) -> None:
    request = in_place(data, archives, flat, dest=str(flat))
    path = min(unpacked_validation(archives))
    wrong = flat / ("n01440764" if not path.startswith("n01440764") else "n01443537")
    wrong.mkdir()
    (flat / path.split("/")[1]).rename(wrong / path.split("/")[1])
    assert "it is not where its label belongs. Move it away and run again; nothing was moved" in failure(request)


def test_an_image_that_is_there_twice(data: Path, archives: Path, flat: Path) -> None:
    path = min(unpacked_validation(archives))
    class_name, name = path.split("/")
    (data / "validation" / class_name).mkdir(parents=True)
    (data / "validation" / path).write_bytes(b"other")
    assert f"{class_name} in {data / 'validation'} has it already" in failure(in_place(data, archives, flat))
    assert (data / "validation" / path).read_bytes() == b"other"
    assert (flat / name).exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("notes.txt", "it is not the directory of a class"),
        ("other/", "it is not named like a class"),
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
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == flat.stat().st_dev:
        pytest.skip("there is no second filesystem (/dev/shm)")
    monkeypatch.chdir(flat)
    message = failure(in_place(data, archives, flat, dest="/dev/shm/imagenet-ops-test-tree"))
    assert "it is not on the volume of /dev/shm/imagenet-ops-test-tree" in message


def test_no_such_directory(data: Path, archives: Path) -> None:
    assert "there is no such directory" in failure(in_place(data, archives, data / "none"))


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
        (one_class(("../n01440764_1.JPEG", b"")), "'../n01440764_1.JPEG' at byte 512 has a path where a plain name"),
        (one_class(("/etc/n01440764_1.JPEG", b"")), "has a path where a plain name belongs"),
        (one_class(("..", b"")), "has a path where a plain name belongs"),
        (one_class(("n01440764_1.JPEG", b""), ("n01440764_1.JPEG", b"")), "at byte 1024 is there twice"),
        (one_class(("n01443537_1.JPEG", b"")), "is not named like an image of n01440764"),
        (one_class(("n01440764_1.jpg.sh", b"")), "is not named like an image of n01440764"),
        (one_class(), "'n01440764.tar' at byte 0 holds no image"),
        (tar([("n01440764.zip", b"")]), "'n01440764.zip' at byte 0 is not named like the archive of a class"),
        (tar([("../n01440764.tar", b"")]), "has a path where a plain name belongs"),
        (tar([("tench.tar", b"")]), "is not named like the archive of a class"),
        (tar([("n01440764.tar", with_link(tarfile.SYMTYPE))]), "tar: the entry 'n01440764_1.JPEG' at byte 512"),
        (tar([("n01440764.tar", with_link(tarfile.SYMTYPE))]), "is a symbolic link"),
        (tar([("n01440764.tar", with_link(tarfile.LNKTYPE))]), "is a hard link"),
        (tar([("n01440764.tar", with_link(tarfile.CHRTYPE))]), "is a character device"),
        (tar([("n01440764.tar", with_link(tarfile.DIRTYPE))]), "is a directory"),
        (with_link(tarfile.FIFOTYPE), "is a named pipe"),
    ],
)
def test_entries_that_have_no_place(data: Path, tmp_path: Path, content: bytes, why: str) -> None:
    archive = tmp_path / "bad.tar"
    archive.write_bytes(content)
    message = failure(train(data, archive))
    assert message.startswith(f"Archive {archive}: ")
    assert why in message
    assert message.endswith(
        ". This is not the archive that was published; fetch it again, archive_fetch compares its MD5"
    )
    assert not (data / "train").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar", "imagenet"]


def test_a_class_that_is_there_twice(data: Path, tmp_path: Path) -> None:
    inner = tar([("n01440764_1.JPEG", b"x")])
    (tmp_path / "bad.tar").write_bytes(tar([("n01440764.tar", inner)] * 2))
    assert "the entry 'n01440764.tar' at byte 10752 is there twice" in failure(train(data, tmp_path / "bad.tar"))


def test_entries_that_are_too_large_for_images(
    data: Path, tmp_path: Path, archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_archive, "_LARGEST_IMAGE_BYTES", 10)
    (tmp_path / "bad.tar").write_bytes(one_class(("n01440764_1.JPEG", bytes(11))))
    assert "has 11 bytes, too many for an image" in failure(train(data, tmp_path / "bad.tar"))
    assert "too many for an image" in failure(validation(data, archives))


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([("ILSVRC2012_val_00000041.JPEG", b"")], "Image ILSVRC2012_val_00000041.JPEG: the development kit"),
        ([("README", b"")], "the entry 'README' at byte 0 is not named like an image of the validation split"),
        ([("ILSVRC2012_val_00000001.JPEG", b"")] * 2, "'ILSVRC2012_val_00000001.JPEG' at byte 512 is there twice"),
    ],
)
def test_validation_entries_that_have_no_place(
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
        f"Archive {tmp_path / 'bad.tar'}: the class archive {member.name} is damaged at byte {offset}: the checksum of"
        " a header does not fit. Fetch it again, archive_fetch compares its MD5; what was laid out before that byte is"
        " kept"
    )
    assert not (data / "train").exists()


@pytest.mark.parametrize("cut", [1000, 30_000, 1_000_000])
def test_a_truncated_archive(data: Path, tmp_path: Path, archives: Path, cut: int) -> None:
    (tmp_path / "bad.tar").write_bytes((archives / TRAIN).read_bytes()[:cut])
    message = failure(train(data, tmp_path / "bad.tar"))
    assert f"is damaged at byte {cut}: it ends " in message
    assert not (data / "train").exists()


def test_a_file_that_is_no_archive(data: Path, tmp_path: Path) -> None:
    (tmp_path / "page.tar").write_bytes(b"<html>" * 500)
    assert "the archive is damaged at byte 0" in failure(train(data, tmp_path / "page.tar"))
    assert "there is no such file. Fetch it first" in failure(train(data, tmp_path / "none.tar"))


@pytest.mark.parametrize(
    ("expected", "why"),
    [({"expected_images": 41}, "it holds 40 images, and 41"), ({"expected_classes": 3}, "it holds 20 classes, and 3")],
)
def test_counts_that_are_not_those_expected(data: Path, archives: Path, expected: dict[str, int], why: str) -> None:
    assert f"Tree {data / 'validation'}.partial: {why} were expected" in failure(validation(data, archives, **expected))
    assert not (data / "validation").exists()
    # The expectation was wrong: the next run reads nothing again.
    lay_out(validation(data, archives, expected_images=40))
    assert tree(data / "validation") == unpacked_validation(archives)
    assert f"Tree {data / 'validation'}: {why} were expected" in failure(validation(data, archives, **expected))


def test_files_of_others_are_not_touched(data: Path, archives: Path) -> None:
    (data / "train" / "n01440764").mkdir(parents=True)
    assert "it holds files that imagenet_layout did not put there" in failure(train(data, archives / TRAIN))
    (data / "validation.partial").mkdir()
    assert failure(validation(data, archives)) == (
        f"Tree {data / 'validation'}.partial: it is there, but its journal"
        f" {data / '.state' / 'imagenet_layout.validation.json'} is not. Remove it and run again"
    )


def test_a_finished_tree_that_was_changed_is_noticed(data: Path, archives: Path) -> None:
    request = validation(data, archives)
    lay_out(request)
    victim = next((data / "validation").glob("*/*"))
    victim.unlink()
    message = failure(request)
    assert "it holds 39 images in 20 classes, and when it was completed it held 40 in 20: files were" in message
    assert failure(request, check_mode=True) == message


def test_a_finished_tree_of_another_archive(data: Path, archives: Path, tmp_path: Path) -> None:
    lay_out(validation(data, archives))
    (tmp_path / "other.tar").write_bytes((archives / VALIDATION).read_bytes())
    other = validation(data, archives, archive=str(tmp_path / "other.tar"))
    assert f"it was made from {VALIDATION} of" in failure(other)


def test_a_finished_tree_needs_its_archive_no_more(data: Path, archives: Path, tmp_path: Path) -> None:
    archive = tmp_path / "val.tar"
    archive.write_bytes((archives / VALIDATION).read_bytes())
    request = validation(data, archives, archive=str(archive))
    lay_out(request)
    archive.unlink()
    assert lay_out(request)["changed"] is False


def test_a_tree_that_was_removed_is_made_anew(data: Path, archives: Path) -> None:
    request = validation(data, archives)
    lay_out(request)
    (data / "validation").rename(data / "gone")
    assert lay_out(request)["changed"] is True
    assert tree(data / "validation") == unpacked_validation(archives)


def test_a_journal_of_another_version(data: Path, archives: Path) -> None:
    (data / ".state").mkdir()
    (data / ".state" / "imagenet_layout.validation.json").write_text('{"format": 0}')
    assert "it was written by another version of imagenet_layout" in failure(validation(data, archives))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"archive": None}, "one of archive and directory is needed, and not both"),
        ({"directory": "/x"}, "one of archive and directory is needed, and not both"),
        ({"archive": None, "directory": "/x", "layout": "class_archives"}, "class_archives are read from an archive"),
        ({"devkit": None}, "labelled_files need labels: a file with them, or the devkit"),
    ],
)
def test_options_that_do_not_fit_together(data: Path, archives: Path, changes: dict[str, Any], why: str) -> None:
    request = LayoutRequest(**{**vars(validation(data, archives)), **changes})
    assert failure(request) == f"Options of imagenet_layout: {why}. Correct them and run again"


# Check mode


def test_check_mode_writes_nothing(data: Path, archives: Path) -> None:
    request = train(data, archives / TRAIN, expected_images=7, expected_classes=2)
    assert lay_out(request, check_mode=True) == {
        "changed": True,
        "split": "train",
        "images": 7,
        "classes": 2,
        "bytes": 0,
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
    assert "it is not named like an image" in failure(request, check_mode=True)


# Full disks, kills, speed


def test_a_volume_that_is_too_small(data: Path, archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _path: 1_000)
    assert "GiB are needed and 0.00 GiB are free" in failure(train(data, archives / TRAIN))
    assert not (data / "train").exists()


def test_a_disk_that_fills_up(data: Path, archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_JOURNAL_SECONDS", 0)
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
    journal = json.loads((data / ".state" / "imagenet_layout.train.json").read_text())
    assert journal["offset"] > 0
    lay_out(train(data, archives / TRAIN))
    assert tree(data / "train") == unpacked_train(archives)


def test_a_resumed_run_does_not_read_again_what_is_safe(
    data: Path, archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_JOURNAL_SECONDS", 0)
    seen = record_images(monkeypatch, interrupt_at=70)
    with pytest.raises(KeyboardInterrupt):
        lay_out(train(data, archives / TRAIN))
    lay_out(train(data, archives / TRAIN))
    expected = unpacked_train(archives)
    assert sorted(seen) == sorted(expected), "each image is read, and none twice"
    assert tree(data / "train") == expected


def record_images(monkeypatch: pytest.MonkeyPatch, interrupt_at: int) -> list[str]:
    """Let reading be interrupted once, before the image of that number; return the list of the images given so far."""
    real_images = image_archive.ImageArchive.images
    seen: list[str] = []
    interruptions = [interrupt_at]

    def images(self: image_archive.ImageArchive, *arguments: Any) -> Iterator[image_archive.ArchiveImage]:
        for image in real_images(self, *arguments):
            if interruptions == [len(seen)]:
                interruptions.clear()
                raise KeyboardInterrupt
            seen.append(f"{image.class_name}/{image.name}")
            yield image

    monkeypatch.setattr(image_archive.ImageArchive, "images", images)
    return seen


def test_other_labels_or_another_archive_begin_anew(
    data: Path, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_JOURNAL_SECONDS", 0)
    images = flat_images(archives)
    bad = tmp_path / "val.tar"
    bad.write_bytes(tar([*images.items(), ("README", b"")]))
    failure(validation(data, archives, archive=str(bad)))
    assert list((data / "validation.partial").iterdir())
    # The archive was fetched again, in another order and with fewer images.
    bad.write_bytes(tar(list(reversed(images.items()))[:30]))
    lay_out(validation(data, archives, archive=str(bad)))
    assert len(tree(data / "validation")) == 30


def test_a_name_before_a_restart_and_again_after_it(
    data: Path, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_JOURNAL_SECONDS", 0)
    images = list(flat_images(archives).items())
    twice = tmp_path / "val.tar"
    twice.write_bytes(tar([*images, images[0]]))
    record_images(monkeypatch, interrupt_at=10)
    with pytest.raises(KeyboardInterrupt):
        lay_out(validation(data, archives, archive=str(twice)))
    assert "it does not hold the 41 images of" in failure(validation(data, archives, archive=str(twice)))
    assert not (data / "validation").exists()


def as_arguments(request: LayoutRequest) -> dict[str, Any]:
    return dict(vars(request))


@pytest.fixture(scope="module")
def kills() -> Iterator[Kills]:
    with Kills() as running:
        yield running


@pytest.fixture(scope="module")
def changes_of_a_whole_run(tmp_path_factory: pytest.TempPathFactory, archives: Path, kills: Kills) -> dict[str, int]:
    folder = tmp_path_factory.mktemp("whole")
    flat = folder / "flat"
    flat.mkdir()
    for name, content in flat_images(archives).items():
        (flat / name).write_bytes(content)
    counts = {}
    for kind, request in (
        ("train", train(folder, archives / TRAIN)),
        ("validation", validation(folder, archives)),
        ("directory", in_place(folder, archives, flat, dest=str(flat))),
    ):
        count = kills.run("lay_out", as_arguments(request), NEVER)
        assert count is not None
        counts[kind] = count
    return counts


@pytest.mark.parametrize(
    ("kind", "seed"),
    [(kind, seed) for kind, seeds in (("train", 20), ("validation", 10), ("directory", 10)) for seed in range(seeds)],
)
def test_killed_anywhere_and_run_again(
    data: Path,
    archives: Path,
    flat: Path,
    kind: str,
    seed: int,
    kills: Kills,
    changes_of_a_whole_run: dict[str, int],
) -> None:
    chance = random.Random(f"{kind} {seed}")
    request = {
        "train": train(data, archives / TRAIN),
        "validation": validation(data, archives),
        "directory": in_place(data, archives, flat, dest=str(flat)),
    }[kind]
    expected = unpacked_train(archives) if kind == "train" else unpacked_validation(archives)
    for _ in range(1 + seed % 2):
        kills.run("lay_out", as_arguments(request), chance.randint(1, changes_of_a_whole_run[kind]))
        assert kind == "directory" or not os.path.exists(request.dest) or tree(Path(request.dest)) == expected
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
