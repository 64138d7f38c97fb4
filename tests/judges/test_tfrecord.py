from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.formats.format import Sample, ShardInfo
from ansible.module_utils.imagenet_ops.formats.tfrecord import TFRECORD

from tests.fakes.formats import read_shards, write_dataset
from tests.judges.conftest import INFO, Judges, told

PEER = "tfrecord_peer"
LIMIT = 40_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tfrecord"


@pytest.fixture
def shards(folder: Path, samples: list[Sample]) -> dict[str, list[ShardInfo]]:
    written = write_dataset(TFRECORD, {"train": samples, "validation": samples[:3]}, folder, LIMIT, INFO)
    assert len(written["train"]) > 1
    return written


def file_name(sample: Sample) -> str:
    return sample.name.partition("/")[2]


def with_names(samples: list[Sample]) -> list[list[Any]]:
    return [[*one, file_name(sample)] for one, sample in zip(told(samples), samples, strict=True)]


def asked(samples: list[Sample]) -> list[dict[str, Any]]:
    return [
        {"image": base64.b64encode(one.image).decode(), "label": one.label, "file_name": file_name(one)}
        for one in samples
    ]


def test_the_bytes_are_those_of_tensorflow(
    judges: Judges, folder: Path, shards: dict[str, list[ShardInfo]], samples: list[Sample], tmp_path: Path
) -> None:
    at = 0
    for shard in shards["train"][:3]:
        peer = tmp_path / "peer"
        judges.ask(PEER, "write", peer, asked(samples[at : at + shard.records]))
        assert (folder / shard.path).read_bytes() == peer.read_bytes()
        at += shard.records


def test_the_bytes_are_those_of_the_tfrecord_library(judges: Judges, samples: list[Sample], tmp_path: Path) -> None:
    judges.ask(PEER, "write_with_tfrecord", tmp_path / "peer", asked(samples))
    ours = b"".join(bytes(piece) for sample in samples for piece in TFRECORD.encode(sample))
    assert (tmp_path / "peer").read_bytes() == ours


def test_the_tfrecord_library_reads_all(
    judges: Judges, folder: Path, shards: dict[str, list[ShardInfo]], samples: list[Sample]
) -> None:
    paths = [folder / shard.path for shard in shards["train"]]
    assert judges.ask(PEER, "read_with_tfrecord", paths) == with_names(samples)
    assert read_shards(TFRECORD, folder, shards["train"], INFO) == [one._replace(record_id=-1) for one in samples]


@pytest.mark.usefixtures("shards")
def test_tfds_reads_all(judges: Judges, folder: Path, samples: list[Sample]) -> None:
    expected = {
        "name": "imagenet/1.0.0",
        "classes": INFO.classes,
        "examples": {"train": len(samples), "validation": 3},
        "read": with_names(samples),
    }
    assert judges.ask(PEER, "read_with_tfds", folder / "imagenet" / "1.0.0", "train") == expected
    expected["read"] = with_names(samples[:3])
    assert judges.ask(PEER, "load_with_tfds", "imagenet", folder, "validation") == expected


@pytest.mark.usefixtures("shards")
def test_tfds_decodes_all(judges: Judges, folder: Path, samples: list[Sample]) -> None:
    shapes = judges.ask(PEER, "decode_with_tfds", folder / "imagenet" / "1.0.0", "train")
    assert len(shapes) == len(samples)
    assert {len(shape) for shape in shapes} == {3}
    assert {shape[2] for shape in shapes} == {3}


def test_the_metadata_are_those_that_tfds_writes(
    judges: Judges, folder: Path, shards: dict[str, list[ShardInfo]], tmp_path: Path
) -> None:
    peer = tmp_path / "peer" / "imagenet" / "1.0.0"
    splits = {
        split: [[shard.records, shard.size_bytes - 16 * shard.records] for shard in of] for split, of in shards.items()
    }
    for shard in [*shards["train"], *shards["validation"]]:
        copy = tmp_path / "peer" / shard.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((folder / shard.path).read_bytes())
    judges.ask(PEER, "write_metadata", peer, "imagenet", splits, INFO.classes)
    ours = folder / "imagenet" / "1.0.0"
    assert (ours / "label.labels.txt").read_text() == (peer / "label.labels.txt").read_text()
    for name in ("features.json", "dataset_info.json"):
        assert json.loads((ours / name).read_text()) == json.loads((peer / name).read_text())


def test_dali_reads_all_by_the_indices(
    judges: Judges, folder: Path, shards: dict[str, list[ShardInfo]], samples: list[Sample]
) -> None:
    paths = [folder / shard.path for shard in shards["train"]]
    indices = [path.parent / "index" / f"{path.name}.idx" for path in paths]
    assert judges.ask(PEER, "read_dali", paths, indices, len(samples)) == with_names(samples)


def test_the_index_is_that_of_tfrecord2idx(
    judges: Judges, folder: Path, shards: dict[str, list[ShardInfo]], tmp_path: Path
) -> None:
    for shard in shards["train"]:
        judges.ask(PEER, "dali_index", folder / shard.path, tmp_path / "peer.idx")
        assert (folder / TFRECORD.sidecar_name(shard.path)).read_text() == (tmp_path / "peer.idx").read_text()
