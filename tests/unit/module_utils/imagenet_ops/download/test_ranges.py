from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from ansible.module_utils.imagenet_ops.download import ranges as ranges_module
from ansible.module_utils.imagenet_ops.download.ranges import Ledger, Ranges
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges_module, "_SHORTEST_SPAN_BYTES", 10_000)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20))))
def test_ranges_are_sets_of_numbers(additions: Sequence[tuple[int, int]]) -> None:
    ranges = Ranges()
    expected: set[int] = set()
    for start, length in additions:
        ranges.add(start, start + length)
        expected |= set(range(start, start + length))
    pairs = ranges.pairs()
    assert {number for start, end in pairs for number in range(start, end)} == expected
    assert all(first[1] < second[0] for first, second in zip(pairs, pairs[1:]))
    assert ranges.total == len(expected)
    assert ranges.prefix() == next(number for number in range(200) if number not in expected)
    gaps = {number for start, end in ranges.gaps(100) for number in range(start, end)}
    assert gaps == set(range(100)) - expected
    assert Ranges(pairs).pairs() == pairs


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20))),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20))),
)
def test_numbers_taken_out_of_ranges(additions: Sequence[tuple[int, int]], removals: Sequence[tuple[int, int]]) -> None:
    ranges = Ranges([(start, start + length) for start, length in additions])
    expected = {number for start, end in ranges.pairs() for number in range(start, end)}
    for start, length in removals:
        ranges.remove(start, start + length)
        expected -= set(range(start, start + length))
    assert {number for start, end in ranges.pairs() for number in range(start, end)} == expected
    assert ranges.total == len(expected)


# The ledger


def test_spans_are_dealt_out_from_the_beginning_and_become_shorter() -> None:
    ledger = Ledger(100_000, Ranges([(20_000, 30_000)]), connections=1)
    spans: list[tuple[int, int]] = []
    while len(spans) < 6:
        span = ledger.take()
        assert span is not None
        spans.append((span.position, span.end))
        ledger.wrote(span, span.end - span.position)
        ledger.give_back(span)
    assert spans == [
        (0, 20_000),
        (30_000, 47_500),
        (47_500, 60_625),
        (60_625, 70_625),
        (70_625, 80_625),
        (80_625, 90_625),
    ]


def test_an_idle_worker_takes_half_of_what_the_slowest_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges_module, "_SPANS_PER_CONNECTION", 1)
    ledger = Ledger(100_000, Ranges(), connections=1)
    slow = ledger.take()
    assert slow is not None
    ledger.wrote(slow, 20_000)
    helper = ledger.take()
    assert helper is not None
    assert ((slow.position, slow.end), (helper.position, helper.end)) == ((20_000, 60_000), (60_000, 100_000))


def test_what_a_worker_gives_back_is_dealt_out_again() -> None:
    ledger = Ledger(30_000, Ranges(), connections=3)
    first = ledger.take()
    assert first is not None
    ledger.wrote(first, 4_000)
    ledger.give_back(first)
    again = ledger.take()
    assert again is not None
    assert (again.position, again.end) == (4_000, 10_000)


def test_a_worker_waits_for_what_others_may_give_back() -> None:
    ledger = Ledger(5_000, Ranges(), connections=1)
    only = ledger.take()
    assert only is not None
    taken: list[object] = []
    waiting = threading.Thread(target=lambda: taken.append(ledger.take()))
    waiting.start()
    ledger.give_back(only)
    waiting.join(10)
    assert len(taken) == 1
    assert taken[0] is not None


def test_after_an_error_there_is_nothing_to_do() -> None:
    ledger = Ledger(30_000, Ranges(), connections=3)
    ledger.fail(ValueError("first"))
    ledger.fail(ValueError("second"))
    assert ledger.take() is None
    assert ledger.wait_for_prefix(0) == 0
    assert ledger.wait(10)
    assert str(ledger.error) == "first"
