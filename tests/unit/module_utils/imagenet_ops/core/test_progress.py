from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.progress import Progress


class Clock:
    """Stands in for time.monotonic."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def shown(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "recordio_pack.progress.json").read_text())
    return content


def test_progress_rate_is_of_this_run_and_eta_of_what_is_left(tmp_path: Path, clock: Clock) -> None:
    progress = Progress(str(tmp_path), "recordio_pack")
    progress.start("pack train", total=1000, unit="images", done=400)
    assert shown(tmp_path) == {
        "stage": "pack train", "done": 400, "total": 1000, "unit": "images",
        "rate_per_second": 0.0, "eta_seconds": None, "finished": False,
    }  # fmt: skip
    clock.seconds += 10
    progress.update(500)
    now = shown(tmp_path)
    assert (now["done"], now["rate_per_second"], now["eta_seconds"]) == (500, 10, 50)


def test_progress_is_written_once_an_interval_and_not_for_each_call(tmp_path: Path, clock: Clock) -> None:
    progress = Progress(str(tmp_path), "recordio_pack", interval_seconds=5)
    progress.start("pack train", total=100, unit="images")
    clock.seconds += 4.9
    progress.update(49)
    assert shown(tmp_path)["done"] == 0
    clock.seconds += 0.1
    progress.update(50)
    assert shown(tmp_path)["done"] == 50


def test_progress_of_a_second_stage_has_its_own_rate(tmp_path: Path, clock: Clock) -> None:
    progress = Progress(str(tmp_path), "recordio_pack")
    progress.start("pack train", total=1000, unit="images")
    clock.seconds += 100
    progress.start("hash", total=4000, unit="bytes")
    clock.seconds += 2
    progress.update(2000)
    assert (shown(tmp_path)["stage"], shown(tmp_path)["unit"]) == ("hash", "bytes")
    assert (shown(tmp_path)["rate_per_second"], shown(tmp_path)["eta_seconds"]) == (1000, 2)


def test_progress_finished_says_so_at_once_and_all_is_done(tmp_path: Path, clock: Clock) -> None:
    progress = Progress(str(tmp_path), "recordio_pack", interval_seconds=3600)
    progress.start("pack train", total=100, unit="images")
    clock.seconds += 10
    progress.finish()
    assert shown(tmp_path) == {
        "stage": "pack train", "done": 100, "total": 100, "unit": "images",
        "rate_per_second": 10.0, "eta_seconds": 0, "finished": True,
    }  # fmt: skip
