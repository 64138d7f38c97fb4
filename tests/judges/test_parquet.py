from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from ansible.module_utils.imagenet_ops.formats.format import Sample, ShardInfo
from ansible.module_utils.imagenet_ops.formats.parquet import PARQUET

from tests.fakes.formats import read_shards, write_dataset
from tests.judges.conftest import INFO, WNIDS, Judges, told

PEER = "parquet_peer"
LIMIT = 40_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "parquet"


@pytest.fixture
def shards(folder: Path, samples: list[Sample]) -> dict[str, list[ShardInfo]]:
    written = write_dataset(PARQUET, {"train": samples, "validation": samples[:3]}, folder, LIMIT, INFO)
    assert len(written["train"]) > 1
    return written


def sizes(samples: list[Sample]) -> list[list[int]]:
    """Width and height of each image, by OpenCV."""
    pictures = [cv2.imdecode(np.frombuffer(sample.image, np.uint8), cv2.IMREAD_COLOR) for sample in samples]
    return [[picture.shape[1], picture.shape[0]] for picture in pictures if picture is not None]


def test_datasets_loads_all(
    judges: Judges, folder: Path, shards: dict[str, list[ShardInfo]], samples: list[Sample]
) -> None:
    rows, decoded = [[sample.name, *one] for sample, one in zip(samples, told(samples), strict=True)], sizes(samples)
    for split, count in (("train", len(samples)), ("validation", 3)):
        expected = {"features": True, "rows": rows[:count], "streamed": rows[:count], "decoded": decoded[:count]}
        assert judges.ask(PEER, "load", folder, split, WNIDS) == expected
    read = read_shards(PARQUET, folder, shards["train"], INFO)
    assert read == [sample._replace(record_id=-1) for sample in samples]


def test_the_schema_is_that_of_datasets(judges: Judges, folder: Path, shards: dict[str, list[ShardInfo]]) -> None:
    for shard in [*shards["train"], *shards["validation"]]:
        assert judges.ask(PEER, "schema_is_theirs", folder / shard.path, WNIDS)


@pytest.mark.usefixtures("shards")
def test_the_card_has_the_splits_and_their_counts(judges: Judges, folder: Path, samples: list[Sample]) -> None:
    assert judges.ask(PEER, "card", folder / "README.md") == {"train": len(samples), "validation": 3}
