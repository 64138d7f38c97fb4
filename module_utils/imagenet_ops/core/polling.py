"""Looking again and again until something is as it should be, or time is over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Callable


@dataclass(frozen=True)
class Delays:
    """The seconds between looks: ``first`` at first, then each ``growth`` times the one before, up to ``longest``."""

    first: float
    growth: float = 1.0
    longest: float = float("inf")

    def __iter__(self) -> Iterator[float]:
        """Yield the delays, without an end."""
        delay = self.first
        while True:
            yield min(delay, self.longest)
            delay = min(delay * self.growth, self.longest)


class Poll:
    """The pauses between looks, until ``deadline`` (a time of ``clock``).

    Whoever uses it looks, and while that is not enough calls `wait`, until this returns False.
    """

    def __init__(
        self,
        delays: Iterable[float],
        deadline: float,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        """Keep what every pause needs; the first one is the first of ``delays``, in seconds."""
        self._delays = iter(delays)
        self._deadline = deadline
        self._sleep = sleep
        self._clock = clock

    def wait(self) -> bool:
        """Pause until the next look is due and return True; return False, at once, when the deadline has passed."""
        if self._clock() >= self._deadline:
            return False
        self._sleep(next(self._delays))
        return True
