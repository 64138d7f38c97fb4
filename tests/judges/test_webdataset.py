from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.formats.format import Sample, ShardInfo
from ansible.module_utils.imagenet_ops.formats.webdataset import WEBDATASET

from tests.fakes.formats import read_shards, write_dataset
from tests.judges.conftest import INFO, Judges, told

PEER = "webdataset_peer"
LIMIT = 40_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "webdataset"


@pytest.fixture
def shards(folder: Path, samples: list[Sample]) -> list[ShardInfo]:
    written = write_dataset(WEBDATASET, {"train": samples, "validation": samples[:3]}, folder, LIMIT, INFO)
    assert len(written["train"]) > 1
    return written["train"]


def as_webdataset_has_it(sample: Sample, key: str) -> dict[str, Any]:
    return {
        "key": key,
        "label": sample.label,
        "suffix": "png" if bytes(sample.image).startswith(b"\x89PNG") else "jpg",
        "image": base64.b64encode(sample.image).decode(),
        "json": {"filename": sample.name, "id": sample.record_id, "label": sample.label},
    }


def test_the_bytes_are_those_of_shardwriter(
    judges: Judges, folder: Path, shards: list[ShardInfo], samples: list[Sample], tmp_path: Path
) -> None:
    keys = [line.split()[3].rpartition(".")[0] for shard in shards for line in index_lines(folder, shard)]
    asked, at = [], 0
    for shard in shards:
        end = at + shard.records
        asked.append([as_webdataset_has_it(*one) for one in zip(samples[at:end], keys[at:end], strict=True)])
        at = end
    judges.ask(PEER, "write", tmp_path / "peer-%06d.tar", asked)
    for number, shard in enumerate(shards):
        assert (folder / shard.path).read_bytes() == (tmp_path / f"peer-{number:06d}.tar").read_bytes()


def index_lines(folder: Path, shard: ShardInfo) -> list[str]:
    return (folder / shard.path).with_suffix(".idx").read_text().splitlines()[1:]


def test_webdataset_reads_all(judges: Judges, folder: Path, shards: list[ShardInfo], samples: list[Sample]) -> None:
    read = judges.ask(PEER, "read", [folder / shard.path for shard in shards])
    assert read == [[*one, sample.name] for one, sample in zip(told(samples), samples, strict=True)]
    assert read_shards(WEBDATASET, folder, shards, INFO) == samples


@pytest.mark.usefixtures("shards")
def test_wids_reads_all(judges: Judges, folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    assert judges.ask(PEER, "read_wids", folder / "train.wids.json", tmp_path / "cache") == told(samples)


@pytest.mark.usefixtures("shards")
def test_timm_reads_all(judges: Judges, folder: Path, samples: list[Sample]) -> None:
    pixels = judges.ask(PEER, "pixels", [base64.b64encode(sample.image).decode() for sample in samples])
    expected = [[sample.label, one] for sample, one in zip(samples, pixels, strict=True)]
    assert judges.ask(PEER, "read_timm", folder, "train") == [len(samples), expected]


def test_dali_reads_all_by_the_indices(
    judges: Judges, folder: Path, shards: list[ShardInfo], samples: list[Sample]
) -> None:
    paths = [folder / shard.path for shard in shards]
    indices = [path.with_suffix(".idx") for path in paths]
    assert judges.ask(PEER, "read_dali", paths, indices, len(samples)) == told(samples)


def test_the_index_is_that_of_wds2idx(judges: Judges, folder: Path, shards: list[ShardInfo], tmp_path: Path) -> None:
    shard = folder / shards[0].path
    judges.ask(PEER, "dali_index", shard, tmp_path / "peer.idx")
    assert shard.with_suffix(".idx").read_text() == (tmp_path / "peer.idx").read_text()
