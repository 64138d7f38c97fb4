"""The development kit is read by what it says, and a broken one is named as such."""

from __future__ import annotations

import builtins
import gzip
import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ansible.module_utils.imagenet_ops.archive import devkit
from ansible.module_utils.imagenet_ops.archive.devkit import Synset, read_synsets, read_validation_labels, read_words
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from scipy.io import savemat

SAMPLE = Path(__file__).resolve().parents[6] / "shared" / "imagenet-sample"
ROWS = [
    (1, "n03000000", "third in WNIDs", 0),
    (2, "n01000000", "first, though second", 0),
    (3, "n02000000", "", 0),
    (4, "n00001740", "entity", 3),
]


def meta(rows: list[tuple[int, str, str, int]]) -> bytes:
    """Return a meta.mat with the fields of the real one."""
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    synsets = np.empty((len(rows), 1), dtype=[(name, object) for name in [*fields, "num_train_images"]])
    for index, (number, wnid, words, children) in enumerate(rows):
        synsets[index, 0] = (number, wnid, words, "gloss", children, np.arange(children) + 1.0, 0, 1300)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def kit(folder: Path, files: dict[str, bytes]) -> str:
    """Write a development kit of ``files``; return its path."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path = folder / "devkit.tar.gz"
    path.write_bytes(gzip.compress(buffer.getvalue()))
    return str(path)


def usual(folder: Path, truth: bytes = b"2\n1\n2\n3\n") -> str:
    return kit(
        folder,
        {
            "readme.txt": b"",
            "data/meta.mat": meta(ROWS),
            "data/ILSVRC2012_validation_ground_truth.txt": truth,
        },
    )


def failure(path: str) -> str:
    with pytest.raises(OpsError) as caught:
        read_validation_labels(path)
    return str(caught.value)


def test_classes_are_the_synsets_without_children(tmp_path: Path) -> None:
    assert read_synsets(usual(tmp_path)) == [
        Synset(1, "n03000000", "third in WNIDs"),
        Synset(2, "n01000000", "first, though second"),
        Synset(3, "n02000000", ""),
    ]
    assert read_words(usual(tmp_path))["n01000000"] == "first, though second"


def test_a_single_class(tmp_path: Path) -> None:
    assert read_synsets(kit(tmp_path, {"data/meta.mat": meta(ROWS[:1])})) == [Synset(1, "n03000000", "third in WNIDs")]


def test_labels_go_by_the_order_of_names(tmp_path: Path) -> None:
    assert read_validation_labels(usual(tmp_path)) == {
        "ILSVRC2012_val_00000001.JPEG": "n01000000",
        "ILSVRC2012_val_00000002.JPEG": "n03000000",
        "ILSVRC2012_val_00000003.JPEG": "n01000000",
        "ILSVRC2012_val_00000004.JPEG": "n02000000",
    }


def test_an_unpacked_kit(tmp_path: Path) -> None:
    with tarfile.open(usual(tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = str(tmp_path / "ILSVRC2012_devkit_t12")
    assert read_validation_labels(folder) == read_validation_labels(usual(tmp_path))


@pytest.mark.parametrize(
    ("truth", "line"),
    [
        (b"2\n4\n", "line 2 of data/ILSVRC2012_validation_ground_truth.txt is '4'"),
        (b"x", "is 'x'"),
        ("²".encode(), "is '²'"),
        (b"1" * 5000, "1'"),
    ],
)
def test_a_label_of_no_class(tmp_path: Path, truth: bytes, line: str) -> None:
    message = failure(usual(tmp_path, truth))
    assert message.startswith(f"Development kit {tmp_path / 'devkit.tar.gz'}: line ")
    assert f"{line}, which is not the ID of a class. Fetch ILSVRC2012_devkit_t12.tar.gz again" in message


def test_kits_that_lack_something(tmp_path: Path) -> None:
    assert "it has no data/meta.mat" in failure(kit(tmp_path, {"readme.txt": b""}))
    assert "it has no data/ILSVRC2012_validation_ground_truth.txt" in failure(
        kit(tmp_path, {"data/meta.mat": meta(ROWS)})
    )
    assert "lists no class, or a class twice" in failure(kit(tmp_path, {"data/meta.mat": meta(ROWS[3:])}))
    assert "lists no class, or a class twice" in failure(kit(tmp_path, {"data/meta.mat": meta([ROWS[0], ROWS[0]])}))
    assert "data/meta.mat cannot be read" in failure(kit(tmp_path, {"data/meta.mat": b"no MATLAB file"}))
    truncated = meta(ROWS)[:-500]
    assert "data/meta.mat cannot be read" in failure(kit(tmp_path, {"data/meta.mat": truncated}))


@pytest.mark.parametrize(
    ("offset", "value", "end"), [(384, 0, "SIGSEGV"), (353, 0xFF, "SIGSEGV"), (162, 0x7F, "SIGALRM")]
)
def test_a_meta_that_its_reader_crashes_or_loops_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int, value: int, end: str
) -> None:
    monkeypatch.setattr(devkit, "_MOST_SECONDS", 2)
    sound = meta(ROWS)
    damaged = kit(tmp_path, {"data/meta.mat": sound[:offset] + bytes([value]) + sound[offset + 1 :]})
    assert failure(damaged) == (
        f"Development kit {damaged}: data/meta.mat cannot be read (the process that reads it was ended by {end}). Fetch"
        " ILSVRC2012_devkit_t12.tar.gz again (archive_fetch checks its MD5)"
    )


def test_files_that_are_no_kit(tmp_path: Path) -> None:
    assert "it cannot be read ([Errno 2] No such file" in failure(str(tmp_path / "none"))
    (tmp_path / "page").write_bytes(b"<html>")
    assert "it cannot be read" in failure(str(tmp_path / "page"))
    whole = Path(usual(tmp_path)).read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    assert "it cannot be read" in failure(str(tmp_path / "half"))
    (tmp_path / "folder").mkdir()
    assert "No such file" in failure(str(tmp_path / "folder"))


def test_a_host_without_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = usual(tmp_path)
    real_import = builtins.__import__

    def without_scipy(name: str, *arguments: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError("No module named 'scipy'")
        return real_import(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    monkeypatch.delitem(sys.modules, "scipy.io")
    assert failure(path) == (
        f"Development kit {path}: reading its meta.mat requires numpy and scipy (No module named 'scipy'). Install them"
        " for the Python that runs the module (role python_environment)"
    )


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"the sample with the real labels, {SAMPLE}, is not there")
def test_the_real_labels() -> None:
    labels = read_validation_labels(str(SAMPLE / "ILSVRC2012_devkit_t12.tar.gz"))
    truth = dict(line.split() for line in (SAMPLE / "validation_synsets.txt").read_text().splitlines())
    assert len(labels) == 50_000
    assert len(set(labels.values())) == 1_000
    assert truth.items() <= labels.items()


def test_the_whole_kit_is_checked(tmp_path: Path) -> None:
    path = Path(usual(tmp_path))
    path.write_bytes(path.read_bytes()[:-8])
    assert "it cannot be read (its compressed data is damaged (Compressed file ended" in failure(str(path))


def test_a_ground_truth_that_an_editor_of_windows_wrote(tmp_path: Path) -> None:
    labels = read_validation_labels(usual(tmp_path, b"\xef\xbb\xbf2\r\n1\r\n"))
    assert list(labels.values()) == ["n01000000", "n03000000"]
