"""The synthetic archives have what the real ones have, and facts are counted and not believed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ansible.module_utils.imagenet_ops.archive.devkit import read_synsets, read_validation_labels
from PIL import Image

from lab.archives import DEVKIT, TRAIN, VALIDATION, prepare
from tests.fakes.layouts import unpacked_train

SAMPLE = Path(__file__).resolve().parents[4] / "shared" / "imagenet-sample"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("archives")
    prepare(directory, None)
    return directory


def test_facts_are_those_of_the_archives(folder: Path) -> None:
    facts = prepare(folder, None)
    assert facts["directory"] == str(folder)
    for key, name in {"train": TRAIN, "validation": VALIDATION, "devkit": DEVKIT}.items():
        content = (folder / name).read_bytes()
        assert facts["files"][key] == {
            "name": name,
            "size_bytes": len(content),
            "md5": hashlib.md5(content).hexdigest(),
        }
    counts = Counter(path.split("/")[0] for path in unpacked_train(folder))
    assert facts["train_images"] == sum(counts.values())
    assert facts["classes"] == len(counts) == 20
    assert (facts["class_images_min"], facts["class_images_max"]) == (min(counts.values()), max(counts.values()))
    truth = dict(line.split() for line in (folder / "validation_synsets.txt").read_text().splitlines())
    shown = Counter(truth.values())
    assert facts["validation_images"] == len(truth) == 40
    assert facts["validation_class_images_min"] == min(shown.values())
    assert facts["validation_class_images_max"] == max(shown.values())


def test_training_images_are_named_and_odd_as_in_the_real_set(folder: Path) -> None:
    images = unpacked_train(folder)
    numbers = [int(path.rsplit("_", 1)[1].removesuffix(".JPEG")) for path in images]
    assert all(path.split("/")[1].startswith(path.split("/")[0] + "_") for path in images)
    assert len({len(str(number)) for number in numbers}) > 1
    modes: Counter[tuple[str | None, str]] = Counter()
    for path, content in images.items():
        with Image.open(io.BytesIO(content)) as image:
            modes[(image.format, image.mode)] += 1
            if image.format == "PNG":
                assert path == "n02105855/n02105855_2933.JPEG"
            if image.mode == "CMYK":
                assert path.split("/")[1] in ("n01739381_1309.JPEG", "n02077923_14822.JPEG")
        assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) is not None
    assert modes[("PNG", "RGB")] == 1
    assert modes[("JPEG", "CMYK")] == 2
    assert modes[("JPEG", "L")] >= 5


def test_the_order_of_the_validation_archive_tells_nothing(folder: Path) -> None:
    with tarfile.open(folder / VALIDATION) as archive:
        names = archive.getnames()
    assert sorted(names) != names
    assert sorted(names) == [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 41)]


def test_the_devkit_says_the_truth_in_ids_that_are_in_no_order(folder: Path) -> None:
    synsets = read_synsets(str(folder / DEVKIT))
    assert [synset.ilsvrc_id for synset in synsets] == list(range(1, 21))
    wnids = [synset.wnid for synset in synsets]
    assert wnids != sorted(wnids)
    assert {synset.wnid: synset.words for synset in synsets}["n01440764"] == "tench, Tinca tinca"
    truth = dict(line.split() for line in (folder / "validation_synsets.txt").read_text().splitlines())
    assert read_validation_labels(str(folder / DEVKIT)) == truth


def test_the_same_bytes_every_time_and_made_once(folder: Path, tmp_path: Path) -> None:
    assert {**prepare(tmp_path, None), "directory": ""} == {**prepare(folder, None), "directory": ""}
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    prepare(tmp_path, None)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_half_made_archives_are_made_again(folder: Path, tmp_path: Path) -> None:
    whole = prepare(tmp_path, None)
    (tmp_path / VALIDATION).write_bytes(b"")
    os.unlink(tmp_path / TRAIN)
    assert prepare(tmp_path, None) == whole
    assert (tmp_path / TRAIN).read_bytes() == (folder / TRAIN).read_bytes()


def test_a_folder_of_archives_is_counted_once_and_not_written_to(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    facts = prepare(tmp_path, folder)
    assert facts == prepare(folder, None)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["archives.json"]

    def read_again(_path: Any) -> Any:
        raise AssertionError("the archives were read again")

    monkeypatch.setattr("lab.archives._facts", read_again)
    assert prepare(tmp_path, folder) == facts


def test_a_folder_without_an_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lacks ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC"):
        prepare(tmp_path / "lab", tmp_path)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"the sample of real photographs, {SAMPLE}, is not there")
def test_the_sample_of_real_photographs(tmp_path: Path) -> None:
    facts = prepare(tmp_path, SAMPLE)
    assert (facts["train_images"], facts["validation_images"], facts["classes"]) == (1003, 200, 1000)
    assert facts["files"]["train"]["md5"] == "834c6b088be696434d01330be3e5ea1c"
    labels = read_validation_labels(str(SAMPLE / DEVKIT))
    truth = dict(line.split() for line in (SAMPLE / "validation_synsets.txt").read_text().splitlines())
    assert len(labels) == 50_000
    assert truth.items() <= labels.items()
    assert json.loads((tmp_path / "archives.json").read_text())["facts"] == facts
