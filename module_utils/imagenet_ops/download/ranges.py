"""Which bytes of a file are there, and who fills which of the rest."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ansible.module_utils.imagenet_ops.core.hashing import BLOCK_BYTES

# One request asks for no more than this: much, so that the way to a far server and back is a small part of the time;
# little, so that the hashed beginning stays close behind and what it reads is still in memory.
_LONGEST_SPAN_BYTES = 32 << 20
_SHORTEST_SPAN_BYTES = 1 << 20
# So many requests of each connection are still to come: towards the end they become short, so that all connections end
# together, and what none could hash before, because a part in front of it was missing, is little.
_SPANS_PER_CONNECTION = 4


class Ranges:
    """A set of byte offsets, kept as sorted ``[start, end)`` pairs that neither overlap nor touch."""

    def __init__(self, pairs: Sequence[Sequence[int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0
        for start, end in pairs:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add the offsets from ``start`` to ``end`` (exclusive), some of which may be in already."""
        first = bisect.bisect_left(self._ends, start)
        last = bisect.bisect_right(self._starts, end)
        before = sum(self._ends[first:last]) - sum(self._starts[first:last])
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last], self._ends[first:last] = [start], [end]
        self.total += end - start - before

    def remove(self, start: int, end: int) -> None:
        """Take the offsets from ``start`` to ``end`` (exclusive) out, where they are in."""
        kept: list[tuple[int, int]] = []
        for first, last in self.pairs():
            kept += [(low, high) for low, high in ((first, min(last, start)), (max(first, end), last)) if low < high]
        self._starts, self._ends = [first for first, _ in kept], [last for _, last in kept]
        self.total = sum(self._ends) - sum(self._starts)

    def pairs(self) -> list[tuple[int, int]]:
        """Return the ranges, sorted."""
        return list(zip(self._starts, self._ends))

    def prefix(self) -> int:
        """Return how many offsets from 0 on are in without a gap."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    def gaps(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges below ``size`` that are not in."""
        position = 0
        for start, end in self.pairs():
            if position < start:
                yield position, start
            position = end
        if position < size:
            yield position, size


@dataclass(eq=False)
class Span:
    """A range that one worker fills: written up to ``position``. ``end`` shrinks when another takes over its tail."""

    position: int
    end: int


class Ledger:
    """Who of ``connections`` fills what of a file of ``size`` bytes, and what is there; for threads.

    ``done`` is what was there before; it becomes the ledger's own.

    What is there may turn out damaged (`lose`), so the work is at its end only when all of it was judged (`accept`).
    """

    def __init__(self, size: int, done: Ranges, connections: int) -> None:
        self.size = size
        self.error: BaseException | None = None
        self._done = done
        self._connections = connections
        self._todo = list(done.gaps(size))
        self._active: list[Span] = []
        self._accepted = False
        self._changed = threading.Condition()
        # Waking everyone for every block would cost more than the block: this many bytes from 0 on are worth it.
        self._prefix_awaited = size

    def take(self) -> Span | None:
        """Return the next span to fill, waiting while there is none; None when everything was accepted.

        Where all are being filled it is the second half of the longest, so that the last slow connection does not keep
        all others waiting.
        """
        with self._changed:
            while self.error is None and not self._accepted:
                span = self._next() if self._todo else self._steal()
                if span is not None:
                    self._active.append(span)
                    return span
                self._changed.wait()
            return None

    def _next(self) -> Span:
        start, end = self._todo.pop(0)
        share = (self.size - self._done.total) // (_SPANS_PER_CONNECTION * self._connections)
        span_bytes = min(max(share, _SHORTEST_SPAN_BYTES), _LONGEST_SPAN_BYTES)
        if end - start > span_bytes:
            self._todo.insert(0, (start + span_bytes, end))
            end = start + span_bytes
        return Span(start, end)

    def _steal(self) -> Span | None:
        victim = max(self._active, key=lambda span: span.end - span.position, default=None)
        if victim is None or (left := victim.end - victim.position) < 2 * _SHORTEST_SPAN_BYTES:
            return None
        end, victim.end = victim.end, victim.end - left // 2
        return Span(victim.end, end)

    def wrote(self, span: Span, count: int) -> None:
        """Note that ``count`` more bytes of ``span`` are in the file."""
        with self._changed:
            self._done.add(span.position, span.position + count)
            span.position += count
            if self._done.prefix() >= self._prefix_awaited:
                self._changed.notify_all()

    def give_back(self, span: Span) -> None:
        """Note that nobody fills ``span`` any more; what it lacks is for the next that takes."""
        with self._changed:
            self._active.remove(span)
            if span.position < span.end:
                bisect.insort(self._todo, (span.position, span.end))
            self._changed.notify_all()

    def lose(self, start: int, end: int) -> None:
        """Have the bytes from ``start`` to ``end`` filled again, before anything else; nobody is filling them now."""
        with self._changed:
            self._done.remove(start, end)
            bisect.insort(self._todo, (start, end))
            self._changed.notify_all()

    def accept(self) -> None:
        """Note that all bytes are there and in order."""
        with self._changed:
            self._accepted = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End the work of everyone; the first error is the one that counts."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def done(self) -> list[tuple[int, int]]:
        """Return the ranges that are in the file (not necessarily synced)."""
        with self._changed:
            return self._done.pairs()

    @property
    def done_bytes(self) -> int:
        """How many bytes are in the file."""
        return self._done.total

    def wait_for_prefix(self, beyond: int) -> int:
        """Wait until a block more than ``beyond`` bytes from 0 on are there, or all; return how many. 0: an error."""
        with self._changed:
            self._prefix_awaited = min(self.size, beyond + BLOCK_BYTES)
            while self.error is None and self._done.prefix() < self._prefix_awaited:
                self._changed.wait()
            self._prefix_awaited = self.size
            return self._done.prefix() if self.error is None else 0

    def wait(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for an error or the last byte; return whether there was either."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self.error is not None or self._done.total == self.size, timeout=seconds
            )

    def wait_accepted(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for an error or `accept`; return whether there was either."""
        with self._changed:
            return self._changed.wait_for(lambda: self.error is not None or self._accepted, timeout=seconds)
