"""A limit holds for all connections together, and quiet hours are those of the clock on the wall."""

from __future__ import annotations

import datetime as dt

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.download.rate_limit import Pace, QuietHours


def at(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(f"2026-01-01 {text}")


@pytest.mark.parametrize(
    ("hours", "time", "seconds"),
    [
        ("08:00-18:30", "07:59:59", 0),
        ("08:00-18:30", "08:00:00", 37_800),
        ("08:00-18:30", "18:29:59.500", 0.5),
        ("08:00-18:30", "18:30:00", 0),
        ("22:00-06:00", "23:00:00", 7 * 3600),
        ("22:00-06:00", "05:00:00", 3600),
        ("22:00-06:00", "06:00:00", 0),
    ],
)
def test_quiet_hours(hours: str, time: str, seconds: float) -> None:
    assert QuietHours.parse(hours).seconds_left(at(time)) == seconds


@pytest.mark.parametrize("text", ["8-18", "08:00", "24:00-06:00", "08:60-09:00", "08:00-08:00", "08:00-18:00 "])
def test_quiet_hours_that_are_none(text: str) -> None:
    with pytest.raises(OpsError) as caught:
        QuietHours.parse(text)
    assert str(caught.value) == (
        f"Option quiet_hours: {text!r} is not a time of day like 08:00-18:30. Correct it and run again"
    )


def test_without_limit_and_hours_there_is_no_pause() -> None:
    assert Pace().charge(10**12) == 0
    assert Pace().rest_seconds() == 0


def test_the_limit_counts_what_all_take_and_saves_nothing_up() -> None:
    now = 0.0
    pace = Pace(100, clock=lambda: now)
    assert pace.charge(200) == 2
    assert pace.charge(100) == 3
    now = 60.0
    assert pace.charge(100) == 1


def test_the_pause_lasts_as_long_as_the_quiet_hours() -> None:
    pace = Pace(quiet=QuietHours.parse("12:00-13:00"), local_time=lambda: at("12:59:00"))
    assert pace.rest_seconds() == 60
