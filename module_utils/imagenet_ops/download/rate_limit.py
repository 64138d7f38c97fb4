"""How fast a download may go, and when: a limit for all its connections together, and hours in which it rests."""

from __future__ import annotations

import datetime as dt
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ansible.module_utils.imagenet_ops.core.errors import OpsError

_DAY_SECONDS = 24 * 3600


@dataclass(frozen=True)
class QuietHours:
    """The part of each day between two times, in seconds after midnight; it spans midnight where it ends earlier."""

    start_second: int
    end_second: int

    @staticmethod
    def parse(text: str) -> QuietHours:
        """Return what ``08:00-18:30`` says. Raises OpsError for anything else, and for a day without an end."""
        match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", text)
        if match is None or match.group(1, 2) == match.group(3, 4):
            raise OpsError(
                "Option quiet_hours", f"{text!r} is not a time of day like 08:00-18:30", "Correct it and run again"
            )
        hour, minute, end_hour, end_minute = (int(number) for number in match.groups())
        return QuietHours((hour * 60 + minute) * 60, (end_hour * 60 + end_minute) * 60)

    def seconds_left(self, now: dt.datetime) -> float:
        """Return how long they last from ``now`` on; 0 outside of them."""
        second = now.hour * 3600 + now.minute * 60 + now.second + now.microsecond / 1e6
        since_start = (second - self.start_second) % _DAY_SECONDS
        length = (self.end_second - self.start_second) % _DAY_SECONDS
        return length - since_start if since_start < length else 0.0


class Pace:
    """What all connections of a download share; for threads. ``bytes_per_second`` 0 is no limit."""

    def __init__(
        self,
        bytes_per_second: int = 0,
        quiet: QuietHours | None = None,
        clock: Callable[[], float] = time.monotonic,
        local_time: Callable[[], dt.datetime] = dt.datetime.now,
    ) -> None:
        self._bytes_per_second = bytes_per_second
        self._quiet = quiet
        self._clock = clock
        self._local_time = local_time
        self._free_at = 0.0
        self._lock = threading.Lock()

    def charge(self, count: int) -> float:
        """Note that ``count`` bytes came, and return the seconds to wait before more may be taken."""
        if not self._bytes_per_second:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + count / self._bytes_per_second
            return self._free_at - now

    def rest_seconds(self) -> float:
        """Return how long nothing may be taken, because it is a quiet hour; 0 where it is none."""
        return 0.0 if self._quiet is None else self._quiet.seconds_left(self._local_time())
