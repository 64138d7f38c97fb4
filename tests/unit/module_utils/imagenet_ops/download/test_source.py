"""Files of this host as sources, and which of a user's URLs are such."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError, SourceChangedError
from ansible.module_utils.imagenet_ops.download.source import Facts, FileSource, local_path


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/data/a.tar", "/data/a.tar"),
        ("a.tar", "a.tar"),
        ("file:///data/a%20b.tar", "/data/a b.tar"),
        ("file:/data/a.tar", "/data/a.tar"),
        ("https://host/a.tar", None),
        ("ftp://host/a.tar", None),
    ],
)
def test_which_urls_are_paths(url: str, path: str | None) -> None:
    assert local_path(url) == path


def test_a_part_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    source = FileSource(str(tmp_path / "a.tar"))
    assert source.name == str(tmp_path / "a.tar")
    session = source.session()
    facts = session.facts()
    assert facts == Facts(10, ranges=True, validator=str((tmp_path / "a.tar").stat().st_mtime_ns))
    stream = session.open(3, 7, facts)
    assert stream.read(3) == b"345"
    assert stream.read(3) == b"6"
    assert stream.read(3) == b""
    stream.close()


def test_a_file_that_is_written_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"0123456789")
    session = FileSource(str(path)).session()
    facts = session.facts()
    os.utime(path, (1, 1))
    with pytest.raises(SourceChangedError) as caught:
        session.open(0, 10, facts)
    assert str(caught.value) == (
        f"Source {path}: the file was changed while it was copied. Run again when it is complete"
    )


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OpsError) as caught:
        FileSource(str(tmp_path / "none")).session().facts()
    assert str(caught.value) == (
        f"Source {tmp_path / 'none'}: cannot be read (No such file or directory). Name a file that is on this host"
    )
