"""The index of a tree in a bucket: which tars hold it. It goes up after them, so an index means that they are there."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import canonical_json

TREE_FOLDER = "trees"
_INDEX_FORMAT = 1


@dataclass(frozen=True)
class IndexedShard:
    """A tar: its name in the folder of the trees, size, SHA-256 in hex and number of files."""

    name: str
    size_bytes: int
    sha256: str
    files: int


@dataclass(frozen=True)
class TreeIndex:
    """The tars of the tree of ``split``, in their order, each cut at ``shard_bytes``."""

    split: str
    shard_bytes: int
    shards: list[IndexedShard]

    @property
    def files(self) -> int:
        """How many files the tree has."""
        return sum(shard.files for shard in self.shards)

    @property
    def size_bytes(self) -> int:
        """The size of all tars."""
        return sum(shard.size_bytes for shard in self.shards)

    def content(self) -> bytes:
        """Return the bytes of the object."""
        return canonical_json({**asdict(self), "format": _INDEX_FORMAT, "files": self.files})


def index_name(split: str) -> str:
    """Return the name of a tree's index in the folder of the trees."""
    return f"{split}.json"


def shard_names(split: str, shards: int) -> list[str]:
    """Return the names of the tars of a tree."""
    return [f"{split}-{number:05}-of-{shards:05}.tar" for number in range(shards)]


def parse_index(content: bytes, split: str, uri: str) -> TreeIndex:
    """Return the index of ``split`` that the object at ``uri`` holds; raises OpsError where it is none of ours."""
    try:
        value: dict[str, Any] = json.loads(content)
        shards = [IndexedShard(**shard) for shard in value["shards"]]
        index = TreeIndex(value["split"], value["shard_bytes"], shards)
        is_ours = index.content() == content and index.split == split and _is_sound(index)
    except (ValueError, LookupError, TypeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise OpsError(
            uri,
            "it is not the index of a tree that this version of s3_backup wrote",
            "Find out what wrote it; fetch an earlier version of the object (the bucket keeps them), or remove it",
        )
    return index


def _is_sound(index: TreeIndex) -> bool:
    """Say whether there are tars, under the only names possible, and numbers and hashes are such."""
    names = [shard.name for shard in index.shards]
    numbers = [index.shard_bytes, *(number for shard in index.shards for number in (shard.size_bytes, shard.files))]
    return (
        bool(names)
        and names == shard_names(index.split, len(names))
        and all(isinstance(number, int) and number > 0 for number in numbers)
        and all(re.fullmatch(r"[0-9a-f]{64}", shard.sha256) for shard in index.shards)
    )
