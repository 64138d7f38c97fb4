from __future__ import annotations

import itertools

import pytest
from ansible.module_utils.imagenet_ops.core.polling import Delays, Poll
from hypothesis import given
from hypothesis import strategies as st


class Time:
    """A clock that moves only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("delays", "expected"),
    [
        (Delays(1, 2, 5), [1, 2, 4, 5, 5]),
        (Delays(3), [3, 3, 3, 3, 3]),
        (Delays(9, 2, 5), [5, 5, 5, 5, 5]),
    ],
)
def test_delays_grow_to_the_longest(delays: Delays, expected: list[float]) -> None:
    assert list(itertools.islice(delays, 5)) == expected
    assert list(itertools.islice(delays, 5)) == expected  # from the first again


def test_it_pauses_until_the_deadline_has_passed() -> None:
    time = Time()
    poll = Poll(Delays(1, 2, 5), 107, time.sleep, time.clock)
    assert [poll.wait() for _ in range(5)] == [True, True, True, False, False]
    assert time.slept == [1, 2, 4]


def test_without_time_there_is_no_pause() -> None:
    time = Time()
    assert Poll(Delays(1), time.now, time.sleep, time.clock).wait() is False
    assert time.slept == []


@given(
    first=st.floats(0.01, 10), growth=st.floats(1, 3), longest=st.floats(0.01, 60), timeout_seconds=st.floats(0, 500)
)
def test_no_pause_is_longer_than_the_longest_and_the_last_look_is_not_before_the_deadline(
    first: float, growth: float, longest: float, timeout_seconds: float
) -> None:
    time = Time()
    deadline = time.now + timeout_seconds
    poll = Poll(Delays(first, growth, longest), deadline, time.sleep, time.clock)
    while poll.wait():
        assert time.slept[-1] <= longest
    assert deadline <= time.now <= deadline + longest
    assert time.slept == sorted(time.slept)
