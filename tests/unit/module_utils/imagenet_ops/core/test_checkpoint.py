from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core import checkpoint
from ansible.module_utils.imagenet_ops.core.checkpoint import SyncJournal, open_part, sync_all


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    descriptors: list[int] = []
    monkeypatch.setattr(os, "fdatasync", descriptors.append)
    return descriptors


def test_the_files_are_synced_before_a_position_is_kept(synced: list[int]) -> None:
    kept: list[tuple[int, list[int]]] = []
    with SyncJournal[int](
        lambda position: kept.append((position, list(synced))), partial(sync_all, (7, 8))
    ).running() as journal:
        journal.close(42)
    assert kept == [(42, [7, 8])]


def test_positions_are_kept_only_now_and_then(synced: list[int]) -> None:
    kept: list[int] = []
    with SyncJournal[int](kept.append, partial(sync_all, (7,))).running() as journal:
        for position in range(1000):
            journal.offer(position)
        journal.close(1000)
    assert kept == [1000]
    assert synced == [7]


def test_what_went_wrong_beside_the_work_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "JOURNAL_INTERVAL_SECONDS", 0.0)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with SyncJournal[int](full, partial(sync_all, ())).running() as journal:
        journal.offer(1)
        with pytest.raises(OSError, match="No space left"):
            journal.close(2)


@pytest.mark.parametrize(
    ("before", "expected"), [(None, b"new"), (b"", b"new"), (b"1234", b"1234new"), (b"1234lost", b"1234new")]
)
def test_a_part_goes_on_after_what_is_good(tmp_path: Path, before: bytes | None, expected: bytes) -> None:
    path = tmp_path / "part"
    if before is not None:
        path.write_bytes(before)
    with open_part(str(path), min(4, len(before or b""))) as descriptor:
        os.write(descriptor, b"new")
    assert path.read_bytes() == expected


def test_a_slow_disk_delays_no_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "JOURNAL_INTERVAL_SECONDS", 0.0)
    begin, end = os.pipe()
    kept: list[int] = []

    def wait_for_the_disk(_: int) -> None:
        os.read(begin, 1)

    monkeypatch.setattr(os, "fdatasync", wait_for_the_disk)
    with SyncJournal[int](kept.append, partial(sync_all, (7,))).running() as journal:
        for position in range(10):
            journal.offer(position)  # the first is being synced; the others find it busy and are not kept
        os.write(end, b"12")
        journal.close(10)
    assert kept == [0, 10]
    os.close(begin)
    os.close(end)
