from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.pack.describe import format_key, format_settings, tools_of, write_if_different


def key(
    formats: list[str], shard_bytes: int = 1, tools: str = "1", dataset: str = "test", words: str = "cat"
) -> dict[str, Any]:
    return format_key(formats, shard_bytes, {"pyarrow": tools}, dataset, {"a": words, "b": ""})


def test_recordio_alone_has_the_settings_that_it_always_had() -> None:
    assert format_settings(["recordio"], 1) == key(["recordio"]) == {}


def test_the_bytes_of_other_formats_depend_on_their_names_words_and_tools() -> None:
    first = key(["webdataset", "mds"])
    assert key(["mds", "webdataset"]) == first
    assert format_key(["mds", "webdataset"], 1, {"pyarrow": "1"}, "test", {"a": "cat"}) == first
    others: tuple[dict[str, Any], ...] = ({"shard_bytes": 2}, {"tools": "2"}, {"dataset": "other"}, {"words": "dog"})
    for other in others:
        assert key(["mds", "webdataset"], **other) != first


def test_only_parquet_depends_on_a_library() -> None:
    assert list(tools_of(["recordio", "webdataset", "mds", "tfrecord", "parquet"])) == ["pyarrow"]


@pytest.mark.parametrize("check", [False, True])
def test_a_file_is_written_only_where_it_differs(tmp_path: Path, *, check: bool) -> None:
    path = tmp_path / "folder" / "file"
    assert write_if_different(str(path), b"1", check)
    assert path.exists() is not check
    if not check:
        assert not write_if_different(str(path), b"1", check)
        assert write_if_different(str(path), b"2", check)
        assert path.read_bytes() == b"2"
