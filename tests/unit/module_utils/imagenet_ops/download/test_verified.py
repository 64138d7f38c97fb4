"""Records of verified archives: what is written is read, what was touched or is odd is not believed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.download.verified import (
    VerifiedArchive,
    find_verified,
    read_record,
    read_verified,
    write_verified,
)

from tests.fakes.state_files import edit


def record(path: Path) -> VerifiedArchive:
    """Return the true record of the file at ``path``."""
    content = path.read_bytes()
    return VerifiedArchive(
        name=path.name,
        size_bytes=len(content),
        mtime_ns=path.stat().st_mtime_ns,
        md5=hashlib.md5(content).hexdigest(),
        sha256=hashlib.sha256(content).hexdigest(),
    )


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "val.tar"
    path.write_bytes(b"archive")
    return path


def test_no_record_yet(tmp_path: Path, archive: Path) -> None:
    assert read_verified(str(tmp_path / "none")) == []
    assert find_verified(str(tmp_path), str(archive)) is None


def test_records_come_back_sorted_by_name(tmp_path: Path, archive: Path) -> None:
    other = tmp_path / "a.tar"
    other.write_bytes(b"another")
    write_verified(str(tmp_path), record(archive))
    write_verified(str(tmp_path), record(other))
    assert read_verified(str(tmp_path)) == [record(other), record(archive)]
    written = json.loads((tmp_path / "archives" / "val.tar.json").read_text())
    assert {name: value for name, value in written.items() if name != "checksum"} == {
        "kind": "archive_fetch record of a verified archive",
        "format": 1,
        "name": "val.tar",
        "size_bytes": 7,
        "mtime_ns": archive.stat().st_mtime_ns,
        "md5": hashlib.md5(b"archive").hexdigest(),
        "sha256": hashlib.sha256(b"archive").hexdigest(),
    }


def test_a_touched_or_absent_file_has_no_valid_record(tmp_path: Path, archive: Path) -> None:
    write_verified(str(tmp_path), record(archive))
    assert find_verified(str(tmp_path), str(archive)) == record(archive)
    os.utime(archive, ns=(1, 1))
    assert find_verified(str(tmp_path), str(archive)) is None
    write_verified(str(tmp_path), record(archive))
    times = archive.stat().st_mtime_ns
    archive.write_bytes(b"longer than before")
    os.utime(archive, ns=(times, times))
    assert find_verified(str(tmp_path), str(archive)) is None
    archive.unlink()
    assert find_verified(str(tmp_path), str(archive)) is None


def test_a_record_outlives_its_file(tmp_path: Path, archive: Path) -> None:
    written = record(archive)
    write_verified(str(tmp_path), written)
    archive.unlink()
    assert read_record(str(tmp_path), "val.tar") == written
    assert read_record(str(tmp_path), "train.tar") is None


@pytest.mark.parametrize(
    "spoil",
    [
        {"md5": "x" * 32},
        {"sha256": "00"},
        {"size_bytes": "7"},
        {"name": "train.tar"},
        {"surplus": 1},
    ],
)
def test_an_odd_record_is_an_error_that_names_it(tmp_path: Path, archive: Path, spoil: dict[str, object]) -> None:
    write_verified(str(tmp_path), record(archive))
    path = tmp_path / "archives" / "val.tar.json"
    edit(path, **spoil)
    with pytest.raises(OpsError) as caught:
        read_verified(str(tmp_path))
    assert caught.value.what == f"State file {path}"
    assert caught.value.todo == (
        "Remove it and run archive_fetch again; an archive that is already there is hashed, not downloaded"
    )
