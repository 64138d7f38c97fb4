"""How warm a volume from a snapshot is: which of its blocks have arrived, and how long a read waits for the others.

EBS loads a snapshot's blocks when they are first read, or before at a provisioned rate (EBS User Guide, "Initialize
Amazon EBS volumes"). Blocks that the snapshot does not hold are zeros and need no loading.
"""

from __future__ import annotations

import bisect
import math
import threading
import time
from collections.abc import Callable, Sequence

MIB = 1024 * 1024
# The unit in which EBS keeps snapshots (EBS direct APIs: "The size of a block is always 524288 bytes").
BLOCK_BYTES = 512 * 1024
# Blocks that are on their way at once. One reader waits for each block in turn; several readers wait together.
PARALLEL_FETCHES = 8


class Warmth:
    """The blocks of one volume. ``blocks`` are the sorted numbers of those that the snapshot holds.

    A block that is read before it is there takes as long as ``lazy_mib_s`` says of one after the other. Where
    ``rate_mib_s`` returns more than 0, blocks also arrive by themselves, in their order, from now on.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        lazy_mib_s: float,
        rate_mib_s: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._blocks = blocks
        self._fetch_seconds = BLOCK_BYTES / MIB / lazy_mib_s
        self._rate_mib_s = rate_mib_s
        self._clock = clock
        self._sleep = sleep
        self._started = clock()
        self._fetched: dict[int, threading.Event] = {}
        self._slots = threading.BoundedSemaphore(PARALLEL_FETCHES)
        self._lock = threading.Lock()

    @property
    def first_reads(self) -> int:
        """How many blocks a reader had to wait for."""
        with self._lock:
            return len(self._fetched)

    def touch(self, offset: int, length: int) -> None:
        """Return when the bytes from ``offset`` on are there; called by every read and write of them."""
        for block in range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)):
            self._wait_for(block)

    def progress_percent(self) -> int:
        """Return how much of the snapshot's data has arrived, 100 only when all of it has."""
        if not self._blocks:
            return 100
        arrived = self._arrived()
        with self._lock:
            arrived += sum(place >= arrived and event.is_set() for place, event in self._fetched.items())
        return 100 * arrived // len(self._blocks)

    def remaining_seconds(self) -> int:
        """Return how long the provisioned rate still needs; 0 where there is none."""
        rate_mib_s = self._rate_mib_s()
        left_bytes = (len(self._blocks) - self._arrived()) * BLOCK_BYTES
        return math.ceil(left_bytes / (rate_mib_s * MIB)) if rate_mib_s else 0

    def _arrived(self) -> int:
        """Return how many blocks, from the first on, have arrived by themselves."""
        elapsed_bytes = (self._clock() - self._started) * self._rate_mib_s() * MIB
        return min(len(self._blocks), int(elapsed_bytes // BLOCK_BYTES))

    def _wait_for(self, block: int) -> None:
        place = bisect.bisect_left(self._blocks, block)
        if place == len(self._blocks) or self._blocks[place] != block:
            return
        with self._lock:
            if place < self._arrived() and place not in self._fetched:
                return
            event = self._fetched.get(place)
            is_first = event is None
            if event is None:
                event = self._fetched[place] = threading.Event()
        if is_first:
            with self._slots:
                self._sleep(self._fetch_seconds)
            event.set()
        event.wait()
