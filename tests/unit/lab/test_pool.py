"""Volumes and snapshots as files: sparse, and independent of each other once made, with shared blocks or without."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from lab import pool as pool_module
from lab.pool import GIB, Pool, attach_loop, clone, release_loop
from lab.warmth import BLOCK_BYTES


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    pool = Pool(tmp_path)
    pool.make_folders()
    return pool


def test_a_new_volume_is_zeros_and_takes_no_room(pool: Pool) -> None:
    pool.create_volume("vol-1", 1000, None)
    status = pool.volume("vol-1").stat()
    assert status.st_size == 1000 * GIB
    assert status.st_blocks == 0


def test_a_snapshot_keeps_what_was_there_and_a_volume_from_it_has_that(pool: Pool) -> None:
    pool.create_volume("vol-1", 1, None)
    with open(pool.volume("vol-1"), "r+b") as file:
        file.write(b"before")
        file.flush()
        pool.create_snapshot("snap-1", "vol-1")
        file.seek(0)
        file.write(b"after!")
    pool.create_volume("vol-2", 2, "snap-1")
    pool.delete_snapshot("snap-1")
    pool.delete_volume("vol-1")
    with open(pool.volume("vol-2"), "rb") as file:
        assert file.read(6) == b"before"
    assert pool.volume("vol-2").stat().st_size == 2 * GIB


def test_a_copy_of_a_snapshot_outlives_it(pool: Pool) -> None:
    pool.create_volume("vol-1", 1, None)
    pool.create_snapshot("snap-1", "vol-1")
    pool.copy_snapshot("snap-2", "snap-1")
    pool.delete_snapshot("snap-1")
    assert pool.snapshot("snap-2").stat().st_size == GIB


def test_a_copy_without_shared_blocks_keeps_the_holes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with open(source, "wb") as file:
        file.truncate(GIB)
        file.seek(GIB // 2)
        file.write(b"data")
    clone(source, tmp_path / "copy")
    copied = (tmp_path / "copy").stat()
    assert copied.st_size == GIB
    assert copied.st_blocks < 1000
    with open(tmp_path / "copy", "rb") as file:
        file.seek(GIB // 2)
        assert file.read(4) == b"data"


def test_the_blocks_of_a_snapshot_are_where_its_file_has_data(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.make_folders()
    with open(pool.snapshot("snap-1"), "wb") as file:
        for block in (0, 3, 4, 9):
            file.seek(block * BLOCK_BYTES + 4096)
            file.write(b"x" * 4096)
        file.truncate(20 * BLOCK_BYTES)
    assert pool.snapshot_blocks("snap-1") == [0, 3, 4, 9]


def test_no_other_lab_takes_or_removes_a_loop_device_while_one_is_attached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    control = tmp_path / "loop-control"
    control.touch()

    def losetup(*_command: str | Path) -> str:
        with open(control, "rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return "/dev/loop7\n"

    monkeypatch.setattr(pool_module, "LOOP_CONTROL", control)
    monkeypatch.setattr(pool_module, "run", losetup)
    assert attach_loop(tmp_path / "volume") == "/dev/loop7"
    with open(control, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_released_loop_device_that_another_lab_took_at_once_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    files = iter(["/mine\n", "/theirs\n"])
    released = []
    monkeypatch.setattr(pool_module, "_backing_file", lambda _loop: next(files))
    monkeypatch.setattr(pool_module, "detach_loop", lambda _loop: None)
    monkeypatch.setattr(pool_module, "wait_until", lambda condition, _seconds: released.append(condition()))
    release_loop("/dev/loop7")
    assert released == [True]
