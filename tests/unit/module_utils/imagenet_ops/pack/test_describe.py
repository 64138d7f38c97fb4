from __future__ import annotations

from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.pack.describe import format_key, format_settings, write_if_different


def test_recordio_alone_has_the_settings_that_it_always_had() -> None:
    assert format_settings(["recordio"], 1) == format_key(["recordio"], 1, "test", {}) == {}


def test_the_bytes_of_other_formats_depend_on_their_names_and_words() -> None:
    first = format_key(["webdataset", "mds"], 1, "test", {"a": "cat", "b": ""})
    assert format_key(["mds", "webdataset"], 1, "test", {"a": "cat"}) == first
    assert format_key(["mds", "webdataset"], 1, "test", {"a": "dog"}) != first
    assert format_key(["mds", "webdataset"], 1, "other", {"a": "cat"}) != first
    assert format_key(["mds", "webdataset"], 2, "test", {"a": "cat"}) != first
    assert "pyarrow" in format_key(["parquet"], 1, "test", {})


@pytest.mark.parametrize("check", [False, True])
def test_a_file_is_written_only_where_it_differs(tmp_path: Path, *, check: bool) -> None:
    path = tmp_path / "folder" / "file"
    assert write_if_different(str(path), b"1", check)
    assert path.exists() is not check
    if not check:
        assert not write_if_different(str(path), b"1", check)
        assert write_if_different(str(path), b"2", check)
        assert path.read_bytes() == b"2"
