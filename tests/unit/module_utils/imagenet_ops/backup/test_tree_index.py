from __future__ import annotations

import dataclasses
import json

import pytest
from ansible.module_utils.imagenet_ops.backup.tree_index import IndexedShard, TreeIndex, parse_index
from ansible.module_utils.imagenet_ops.core.errors import OpsError

INDEX = TreeIndex(
    "train",
    1 << 30,
    [
        IndexedShard("train-00000-of-00002.tar", 1_000_000, "a1" * 32, 9),
        IndexedShard("train-00001-of-00002.tar", 20_000, "b2" * 32, 1),
    ],
)


def test_what_is_written_is_read() -> None:
    assert parse_index(INDEX.content(), "train", "") == INDEX
    assert (INDEX.files, INDEX.size_bytes) == (10, 1_020_000)
    assert json.loads(INDEX.content()) == {
        "format": 1,
        "split": "train",
        "files": 10,
        "shard_bytes": 1 << 30,
        "shards": [
            {"name": "train-00000-of-00002.tar", "size_bytes": 1_000_000, "sha256": "a1" * 32, "files": 9},
            {"name": "train-00001-of-00002.tar", "size_bytes": 20_000, "sha256": "b2" * 32, "files": 1},
        ],
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        INDEX.content() + b"\n",
        INDEX.content().replace(b'"format": 1', b'"format": 2'),
        INDEX.content().replace(b'"files": 10', b'"files": 11'),
        INDEX.content().replace(b"20000", b"20000.5"),
        INDEX.content().replace(b"train-00001-of", b"../../../1-of"),
        INDEX.content().replace(b"b2b2", b"B2B2"),
        dataclasses.replace(INDEX, split="validation").content(),
        dataclasses.replace(INDEX, shards=INDEX.shards[::-1]).content(),
        dataclasses.replace(INDEX, shards=[]).content(),
        dataclasses.replace(INDEX, shard_bytes=0).content(),
    ],
)
def test_what_nobody_of_us_wrote(content: bytes) -> None:
    with pytest.raises(OpsError) as caught:
        parse_index(content, "train", "s3://bucket/x/trees/train.json")
    assert str(caught.value) == (
        "s3://bucket/x/trees/train.json: it is not the index of a tree that this version of s3_backup wrote. Find out "
        "what wrote it; fetch an earlier version of the object (the bucket keeps them), or remove it"
    )
