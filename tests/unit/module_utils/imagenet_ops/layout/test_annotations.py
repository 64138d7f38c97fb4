"""Annotations lie beside their images whatever their archive looks like; the others are counted."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.layout import annotations as module
from ansible.module_utils.imagenet_ops.layout import tree_writer
from ansible.module_utils.imagenet_ops.layout.annotations import Annotated, annotate

from tests.fakes.images import tar, write_tree
from tests.fakes.layouts import tree

IMAGES = {
    "n01440764/n01440764_1.JPEG": b"1",
    "n01440764/n01440764_2.JPEG": b"2",
    "n01443537/ILSVRC2012_val_00000001.JPEG": b"3",
}


@pytest.fixture(autouse=True)
def quick_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_writer, "sync_filesystem", lambda _path: None)


def run(tmp_path: Path, archive: bytes, folder: str = "") -> Annotated:
    write_tree(tmp_path / "train", IMAGES)
    (tmp_path / "boxes").write_bytes(archive)
    return annotate(str(tmp_path / "train"), str(tmp_path / "boxes"), folder, Progress(str(tmp_path), "x"))


def failure(tmp_path: Path, archive: bytes, folder: str = "") -> str:
    with pytest.raises(OpsError) as caught:
        run(tmp_path, archive, folder)
    return str(caught.value)


def zipped(entries: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


BOXES = [
    ("n01440764/n01440764_1.xml", b"<annotation>1</annotation>"),
    ("val/ILSVRC2012_val_00000001.xml", b"<annotation>3</annotation>"),
    ("n01440764/n01440764_99.xml", b"<annotation>of no image</annotation>"),
    ("readme.txt", b""),
    ("._n01440764_1.xml", b"what a Mac leaves"),
]


@pytest.mark.parametrize(
    "archive",
    [
        tar(BOXES),
        gzip.compress(tar(BOXES, folders=True)),
        tar([(f"./{name}", box) for name, box in BOXES]),
        zipped(BOXES),
    ],
    ids=["tar", "tgz with its directories", "names that begin with a dot", "zip"],
)
def test_each_lies_beside_its_image(tmp_path: Path, archive: bytes) -> None:
    assert run(tmp_path, archive) == Annotated(annotations=2, without_image=1)
    expected = {
        **IMAGES,
        "n01440764/n01440764_1.xml": b"<annotation>1</annotation>",
        "n01443537/ILSVRC2012_val_00000001.xml": b"<annotation>3</annotation>",
    }
    assert tree(tmp_path / "train") == expected
    assert run(tmp_path, archive) == Annotated(2, 1)
    assert tree(tmp_path / "train") == expected


def test_only_those_of_a_folder(tmp_path: Path) -> None:
    assert run(tmp_path, tar(BOXES), "val") == Annotated(1, 0)
    message = failure(tmp_path, tar(BOXES), "test")
    assert "its directory test has no annotations (*.xml). Use an archive of annotations" in message


def link(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.type = tarfile.SYMTYPE
        member.linkname = "/etc/passwd"
        archive.addfile(member)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (tar([("../n01440764_1.xml", b"")]), "'../n01440764_1.xml' at byte 0 has a path outside of the archive"),
        (zipped([("/n01440764_1.xml", b"")]), "has a path outside of the archive"),
        (link("n01440764_1.xml"), "is a symbolic link"),
        (tar([BOXES[0], ("other/n01440764_1.xml", b"")]), "'other/n01440764_1.xml' at byte 1024 is a duplicate"),
        (tar(BOXES)[:700], "the archive is damaged at byte 700: it is truncated"),
        (b"PK\x03\x04 and nothing more", "its central directory cannot be read"),
    ],
)
def test_what_is_refused(tmp_path: Path, archive: bytes, why: str) -> None:
    assert why in failure(tmp_path, archive)


def test_a_name_that_two_images_have(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"n01443537/n01440764_1.png": b""})
    assert "fits more than one image of the tree" in failure(tmp_path, tar(BOXES))


def test_one_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST_ANNOTATION_BYTES", 10)
    assert "has 26 bytes, which is too large for an annotation" in failure(tmp_path, tar(BOXES))


def test_no_archive(tmp_path: Path) -> None:
    with pytest.raises(OpsError, match="there is no such file"):
        annotate(str(tmp_path), str(tmp_path / "none"), "", Progress(str(tmp_path), "x"))
