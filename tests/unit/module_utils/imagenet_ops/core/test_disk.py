"""Space is looked at before it runs out, and errors of the disk are told in words."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core import disk
from ansible.module_utils.imagenet_ops.core.errors import OpsError


def test_free_bytes_of_a_path_that_will_be(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = disk.free_bytes(str(tmp_path / "not" / "yet"))
    # Others use the same disk; what is meant is the right filesystem and the right unit.
    assert abs(free - status.f_bavail * status.f_frsize) < 2 * 1024**3
    assert disk.existing_parent(str(tmp_path / "not" / "yet")) == str(tmp_path)


def test_too_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _path: 3 * 1024**3)
    disk.require_space(str(tmp_path), 3 * 1024**3)
    with pytest.raises(OpsError) as caught:
        disk.require_space("/data/x", 3 * 1024**3 + 1024**2 * 512)
    assert str(caught.value) == (
        "Writing /data/x: 3.50 GiB are needed and 3.00 GiB are free. Free space or enlarge the volume, then run again"
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_in_words(number: int) -> None:
    error = disk.disk_error("/data/x", OSError(number, os.strerror(number)))
    assert str(error) == (
        f"Writing /data/x: there is no space left ({os.strerror(number)}). Free space or enlarge the volume, then run"
        " again: what was done so far is kept"
    )


def test_another_error_names_the_file_that_it_is_about() -> None:
    error = disk.disk_error("/data/x", PermissionError(errno.EACCES, "Permission denied", "/data/y"))
    assert str(error) == "Access to /data/y: Permission denied. Check the volume, then run again"


def test_sync_filesystem(tmp_path: Path) -> None:
    disk.sync_filesystem(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        disk.sync_filesystem(str(tmp_path / "none"))


def test_an_error_while_syncing_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class BrokenDisk:
        def syncfs(self, _descriptor: int) -> int:
            ctypes.set_errno(errno.EIO)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_arguments, **_keywords: BrokenDisk())
    with pytest.raises(OSError, match="Input/output error") as caught:
        disk.sync_filesystem(str(tmp_path))
    assert caught.value.errno == errno.EIO


def test_what_a_file_has_allocated(tmp_path: Path) -> None:
    assert disk.allocated_bytes(str(tmp_path / "none")) == 0
    with (tmp_path / "file").open("wb") as file:
        disk.allocate(file.fileno(), 100_000)
    assert (tmp_path / "file").stat().st_size == 100_000
    assert disk.allocated_bytes(str(tmp_path / "file")) >= 100_000
