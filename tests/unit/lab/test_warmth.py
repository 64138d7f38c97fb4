"""Blocks that arrive when they are read, or by themselves: which are there, and what a reader waits."""

from __future__ import annotations

import threading

from lab.warmth import BLOCK_BYTES, PARALLEL_FETCHES, Warmth


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_a_block_is_waited_for_once_and_holes_never() -> None:
    clock = Clock()
    warmth = Warmth([2, 3, 7], 1.0, clock=clock, sleep=clock.sleep)
    warmth.touch(0, 2 * BLOCK_BYTES)
    assert clock.slept == []
    warmth.touch(2 * BLOCK_BYTES + 17, BLOCK_BYTES)
    assert clock.slept == [0.5, 0.5]
    warmth.touch(2 * BLOCK_BYTES, 2 * BLOCK_BYTES)
    assert clock.slept == [0.5, 0.5]
    assert warmth.first_reads == 2
    assert warmth.progress_percent() == 66
    warmth.touch(7 * BLOCK_BYTES, 1)
    assert warmth.progress_percent() == 100


def test_at_a_provisioned_rate_blocks_arrive_by_themselves() -> None:
    clock = Clock()
    warmth = Warmth(range(400), 5.0, lambda: 100.0, clock=clock, sleep=clock.sleep)
    assert (warmth.progress_percent(), warmth.remaining_seconds()) == (0, 2)
    clock.now += 1
    assert (warmth.progress_percent(), warmth.remaining_seconds()) == (50, 1)
    warmth.touch(0, 100 * BLOCK_BYTES)
    assert clock.slept == []
    warmth.touch(399 * BLOCK_BYTES, 1)
    assert len(clock.slept) == 1
    clock.now += 1
    assert (warmth.progress_percent(), warmth.remaining_seconds()) == (100, 0)


def test_several_readers_wait_together_and_one_block_is_fetched_once() -> None:
    waiting = threading.Semaphore(0)
    arrive = threading.Event()

    def sleep(_: float) -> None:
        waiting.release()
        arrive.wait(10)

    warmth = Warmth(range(100), 1.0, sleep=sleep)
    blocks = [*range(PARALLEL_FETCHES), 0, 1]
    readers = [threading.Thread(target=warmth.touch, args=[block * BLOCK_BYTES, 1]) for block in blocks]
    for reader in readers:
        reader.start()
    for _ in range(PARALLEL_FETCHES):
        assert waiting.acquire(timeout=10)
    assert warmth.progress_percent() == 0
    arrive.set()
    for reader in readers:
        reader.join(10)
    assert warmth.first_reads == PARALLEL_FETCHES
    assert warmth.progress_percent() == PARALLEL_FETCHES
