from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Sample, ShardInfo
from ansible.module_utils.imagenet_ops.formats.mds import MDS

from tests.fakes.formats import read_shards, write_dataset
from tests.judges import conftest
from tests.judges.conftest import Judges

PEER = "mds_peer"


@pytest.fixture
def info(samples: list[Sample]) -> DatasetInfo:
    """Shards that hold any two of the images."""
    return conftest.INFO._replace(shard_bytes=2 * max(len(sample.image) for sample in samples) + 2000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "mds"


@pytest.fixture
def shards(folder: Path, samples: list[Sample], info: DatasetInfo) -> list[ShardInfo]:
    splits = {"train": samples, "validation": samples[:3]}
    written = write_dataset(MDS, splits, folder, info.shard_bytes, info)
    assert len(written["train"]) > 1
    return written["train"]


def columns(samples: list[Sample]) -> list[list[Any]]:
    return [[sample.record_id, sample.label, sample.name] for sample in samples]


def sizes(samples: list[Sample]) -> list[list[int]]:
    """Width and height of each image, by OpenCV."""
    pictures = [cv2.imdecode(np.frombuffer(sample.image, np.uint8), cv2.IMREAD_COLOR) for sample in samples]
    return [[picture.shape[1], picture.shape[0]] for picture in pictures if picture is not None]


def test_the_bytes_are_those_of_mdswriter(
    judges: Judges, folder: Path, shards: list[ShardInfo], samples: list[Sample], info: DatasetInfo, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number, sample in enumerate(samples):
        (images / str(number)).write_bytes(sample.image)
    judges.ask(PEER, "write", tmp_path / "peer", info.shard_bytes, columns(samples), images)
    theirs = {path.name: path.read_bytes() for path in (tmp_path / "peer").iterdir()}
    ours = {path.name: path.read_bytes() for path in (folder / "train").iterdir()}
    assert sorted(theirs) == ["index.json", *(Path(shard.path).name for shard in shards)]
    assert ours == theirs


def test_localdataset_reads_all(
    judges: Judges, folder: Path, shards: list[ShardInfo], samples: list[Sample], info: DatasetInfo
) -> None:
    expected = [
        [*one, hashlib.sha256(sample.image).hexdigest()] for one, sample in zip(columns(samples), samples, strict=True)
    ]
    assert judges.ask(PEER, "read_local", folder, "train") == expected
    assert judges.ask(PEER, "read_local", folder, "validation") == expected[:3]
    assert read_shards(MDS, folder, shards, info) == samples


@pytest.mark.usefixtures("shards")
def test_streamingimagenet_fetches_all_with_their_hashes(
    judges: Judges, folder: Path, samples: list[Sample], tmp_path: Path
) -> None:
    expected = [[sample.label, *size] for sample, size in zip(samples, sizes(samples), strict=True)]
    assert judges.ask(PEER, "read_imagenet", folder, "train", tmp_path / "cache") == expected


@pytest.mark.usefixtures("shards")
def test_litdata_reads_the_shards_by_an_index_of_its_own(judges: Judges, folder: Path, samples: list[Sample]) -> None:
    # LitData takes a shard's size from zip_data, which MDSWriter sets for compressed shards only.
    path = folder / "train" / "index.json"
    index = json.loads(path.read_text())
    for shard in index["shards"]:
        shard["zip_data"] = shard["raw_data"]
    path.write_text(json.dumps(index))
    expected = [[*one, *size] for one, size in zip(columns(samples), sizes(samples), strict=True)]
    assert judges.ask(PEER, "read_litdata", folder / "train") == expected
