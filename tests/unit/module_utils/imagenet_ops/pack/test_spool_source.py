from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.archive.images import BEGIN, ResumePoint
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.pack import spool_source

from tests.fakes.archive_packing import Workplace


@pytest.mark.usefixtures("small_steps")
def test_another_order_after_the_spool_was_shuffled_reads_the_archive_again(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OpsError("The test", "stops here", "")

    with monkeypatch.context() as patch:
        patch.setattr(spool_source.SpoolSource, "batches", full)
        assert "stops here" in workplace.error("archive", bucket_bytes=20_000)
    workplace.pack("archive", bucket_bytes=20_000, shuffle_seed=5)
    workplace.pack("tree", shuffle_seed=5)
    assert workplace.files("archive") == workplace.files("tree")
    assert "its spool was shuffled with other settings; the archive is read again" in workplace.warnings[0]


@pytest.mark.usefixtures("small_steps")
def test_scratch_files_that_somebody_removed_are_named(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    original = spool_source.SpoolSource.batches

    def batches(self: spool_source.SpoolSource, *arguments: int) -> Any:
        (workplace.folder / "archive" / ".scratch" / "train" / "bucket-001").unlink()
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(spool_source.SpoolSource, "batches", batches)
        error = workplace.error("archive", bucket_bytes=20_000)
    folder = workplace.folder / "archive" / ".scratch" / "train"
    assert error == (
        f"Scratch file {folder}/bucket-001: it is missing, but its records are not written yet."
        f" Delete {folder} and rerun: the archive is read again"
    )
    shutil.rmtree(folder)
    workplace.pack("tree")
    workplace.pack("archive")
    assert workplace.files("archive") == workplace.files("tree")


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("writes", range(1, 60, 6))
def test_a_full_disk_costs_nothing_but_the_space(
    workplace: Workplace, reading: list[ResumePoint], monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    writev, left = os.writev, writes

    def limited(descriptor: int, pieces: list[bytes]) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        return writev(descriptor, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", limited)
        error = workplace.error("archive", bucket_bytes=20_000)
    assert "No space left on device" in error
    assert "run again" in error or "rerun" in error
    workplace.pack("archive", bucket_bytes=20_000)
    workplace.pack("tree")
    assert workplace.files("archive") == workplace.files("tree")
    assert workplace.warnings == []
    assert sum(begin == BEGIN for begin in reading) <= 3 + (writes <= 2)
