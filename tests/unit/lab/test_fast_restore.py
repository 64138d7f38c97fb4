"""Fast snapshot restore: states, the quota and credits, in the numbers of the EBS User Guide."""

from __future__ import annotations

import pytest

from lab.fast_restore import FastRestores, bucket_size, credits_per_hour
from lab.rules import ApiError

HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("size_gib", "rate", "bucket"), [(30, 10, 10), (128, 8, 8), (1000, 1.024, 1), (4096, 0.25, 1)])
def test_credits_follow_from_the_size_of_the_volume(size_gib: int, rate: float, bucket: int) -> None:
    assert (credits_per_hour(size_gib), bucket_size(size_gib)) == (rate, bucket)


def test_states_follow_one_another_and_a_tebibyte_is_optimized_in_an_hour() -> None:
    clock = Clock()
    restores = FastRestores(2, HOUR, "123456789012", clock)
    assert restores.enable("snap-1", "a", 1024)["State"] == "enabling"
    clock.now += 2
    assert restores.items()[0]["State"] == "optimizing"
    assert "EnabledTime" not in restores.items()[0]
    clock.now += HOUR
    item = restores.items()[0]
    assert item["State"] == "enabled"
    assert item["EnabledTime"].timestamp() == clock.now
    assert restores.disable("snap-1", "a")["State"] == "disabling"
    clock.now += 2
    assert restores.items()[0]["State"] == "disabled"
    with pytest.raises(ApiError):
        restores.disable("snap-1", "a")


def test_the_bucket_starts_empty_fills_by_the_hour_and_is_full_at_its_size() -> None:
    clock = Clock()
    restores = FastRestores(0, HOUR, "123456789012", clock)
    restores.enable("snap-1", "a", 128)
    clock.now += HOUR / 8  # optimized
    assert not restores.take_credit("snap-1", "a")
    clock.now += HOUR / 4
    assert [restores.take_credit("snap-1", "a") for _ in range(3)] == [True, True, False]
    assert not restores.take_credit("snap-1", "b")
    clock.now += 10 * HOUR
    assert [restores.take_credit("snap-1", "a") for _ in range(9)] == [True] * 8 + [False]


def test_five_snapshots_at_most_and_a_deleted_one_is_forgotten() -> None:
    restores = FastRestores(0, HOUR, "123456789012", Clock())
    for number in range(5):
        restores.enable(f"snap-{number}", "a", 8)
    restores.enable("snap-0", "b", 8)
    with pytest.raises(ApiError, match="At most 5 snapshots"):
        restores.enable("snap-5", "a", 8)
    restores.forget("snap-0")
    restores.enable("snap-5", "a", 8)
