"""Moves one file from its sources to disk over several connections, hashing it on the way.

Bytes are written where they belong in whatever order they arrive; `Ranges` knows which have. A checkpoint tells of
ranges only after they were synced, so it is never ahead of the data, and a later run takes only what is missing. One
thread hashes the contiguous beginning of the file as it grows, mostly from memory, so that finishing needs no second
read of the disk. Where the checksums of its pieces are known, a piece that is damaged is found there and fetched again,
while the rest comes in.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ansible.module_utils.imagenet_ops.core.errors import OpsError, SourceChangedError, TransientError
from ansible.module_utils.imagenet_ops.core.hashing import BLOCK_BYTES
from ansible.module_utils.imagenet_ops.core.retry import Attempts
from ansible.module_utils.imagenet_ops.download.digests import Digests, Hashes
from ansible.module_utils.imagenet_ops.download.pieces import PIECE_BYTES, PieceRecord, ranges_text
from ansible.module_utils.imagenet_ops.download.ranges import Ledger, Ranges, Span
from ansible.module_utils.imagenet_ops.download.rate_limit import Pace
from ansible.module_utils.imagenet_ops.download.source import Facts, Session, Source

# What is read at a time, at most: each block passes through the layers of an HTTP client and the ledger, whatever its
# size.
_READ_BYTES = 1 << 20
# Quiet hours are looked at again every minute, for clocks are set.
_LONGEST_REST_SECONDS = 60.0
# How often a piece is fetched, for each source, before it is given up: a mirror that damages it may do so each time.
_PIECE_FETCHES = 3


@dataclass(frozen=True)
class Target:
    """The file that is filled: ``descriptor`` is open for reading and writing, ``path`` names it in texts."""

    path: str
    descriptor: int
    size_bytes: int


@dataclass(frozen=True)
class Policy:
    """How hard to try: ``connections`` at a time, and ``retries`` in a row without a byte before giving up.

    ``checkpoint`` is called about every ``checkpoint_seconds`` with the ranges that are synced by then; ``report``,
    about once in ``report_seconds``, with the number of bytes that are there and of those that are hashed. ``pace``
    says how fast bytes may come, and when.
    """

    connections: int
    retries: int
    checkpoint: Callable[[list[tuple[int, int]]], None]
    report: Callable[[int, int], None]
    checkpoint_seconds: float = 5.0
    report_seconds: float = 0.5
    pace: Pace = field(default_factory=Pace)


def transfer(
    sources: Sequence[tuple[Source, Facts]],
    target: Target,
    done: Ranges,
    policy: Policy,
    known: PieceRecord | None = None,
    hashes: Hashes | None = None,
) -> Digests:
    """Fill ``target`` with what ``done`` lacks; return the hashes of the whole file, whose data is synced then.

    ``hashes`` computes them; without ``known``, for which all are needed, it may be some that computes fewer.

    All ``sources`` have the same file, in parts; the connections are spread over them, and one that fails for good is
    left out while there is another. A piece that is not as in ``known`` is fetched again, from another source where
    there is one. Raises OpsError, or OSError of the disk; the last checkpoint then tells of all that arrived.
    """
    return _Transfer(sources, target, done, policy, known, hashes).run()


class _Transfer:
    def __init__(
        self,
        sources: Sequence[tuple[Source, Facts]],
        target: Target,
        done: Ranges,
        policy: Policy,
        known: PieceRecord | None,
        hashes: Hashes | None,
    ) -> None:
        self._sources = list(sources)
        self._target = target
        self._policy = policy
        self._known = known
        self._piece_bytes = PIECE_BYTES if known is None else known.pieces.piece_bytes
        # By piece: whether it was sent in this run, and how often it came damaged.
        self._sent: set[int] = set()
        self._damages: dict[int, int] = {}
        self._connections = policy.connections if all(source.parallel for source, _ in sources) else 1
        self._ledger = Ledger(target.size_bytes, done, self._connections)
        self._hashes = hashes or Hashes(self._piece_bytes)
        self._hashed_bytes = self._advised_bytes = 0
        self._sessions: list[Session] = []
        self._lock = threading.Lock()

    def run(self) -> Digests:
        threads = [self._thread(self._hash)]
        threads += [self._thread(self._work, number) for number in range(self._connections)]
        try:
            self._supervise()
        except BaseException as error:
            self._ledger.fail(error)
            raise
        finally:
            with self._lock:
                for session in self._sessions:
                    session.abort()
            for thread in threads:
                thread.join()
            for session in self._sessions:
                session.close()
            if self._ledger.error is not None:
                # What went wrong first is what is told, and a full disk is no place for a journal.
                with contextlib.suppress(OSError):
                    self._checkpoint()
        if self._ledger.error is not None:
            raise self._ledger.error
        return self._hashes.digests()

    def _thread(self, work: Callable[..., None], *arguments: object) -> threading.Thread:
        def guarded() -> None:
            try:
                work(*arguments)
            except BaseException as error:  # noqa: BLE001 (run() raises it in the thread that waits)
                self._ledger.fail(error)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def _supervise(self) -> None:
        """Report and checkpoint until everything is there, synced and hashed, or something failed."""
        self._report_until(self._ledger.wait)
        if self._ledger.error is None:
            # The disk has this to do while the rest is hashed.
            self._checkpoint()
        self._report_until(self._ledger.wait_accepted)
        if self._ledger.error is None and self._damages:
            self._checkpoint()

    def _report_until(self, reached: Callable[[float], bool]) -> None:
        last_checkpoint = time.monotonic()
        while not reached(self._policy.report_seconds):
            self._policy.report(self._ledger.done_bytes, self._hashed_bytes)
            self._begin_writing()
            if time.monotonic() - last_checkpoint >= self._policy.checkpoint_seconds:
                self._checkpoint()
                last_checkpoint = time.monotonic()

    def _begin_writing(self) -> None:
        """Let the disk begin with what was hashed since the last time, so that at the end there is little to wait for.

        This advice starts the writing of dirty pages and does not wait for it; they stay in memory, for they are dirty.
        """
        # Read once: the thread that hashes goes back where a piece is damaged.
        start, end = self._advised_bytes, self._hashed_bytes
        if start < end:
            os.posix_fadvise(self._target.descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
        self._advised_bytes = end

    def _checkpoint(self) -> None:
        """Sync what is there, then tell of it; in this order, so that what is told is never ahead of the data."""
        ranges = self._ledger.done()
        os.fdatasync(self._target.descriptor)
        self._policy.checkpoint(ranges)

    def _hash(self) -> None:
        """Hash the file from its beginning, as far as it is there, until its end or an error."""
        with self._hashes.running():
            while (position := self._hashed_bytes) < self._target.size_bytes:
                limit = self._ledger.wait_for_prefix(position)
                if limit == 0:
                    return
                piece_end = position - position % self._piece_bytes + self._piece_bytes
                count = min(BLOCK_BYTES, limit - position, piece_end - position)
                block = os.pread(self._target.descriptor, count, position)
                if not block:
                    raise OpsError(
                        f"Partial download {self._target.path}", "something else has shortened it", "Run again"
                    )
                self._hashes.update(block)
                self._hashed_bytes += len(block)
                if self._hashed_bytes in (piece_end, self._target.size_bytes):
                    self._judge_piece()
        self._ledger.accept()

    def _judge_piece(self) -> None:
        """Compare the piece that was hashed last with what it should be, and have it fetched again where it differs."""
        number, crc32 = self._hashes.piece
        if self._known is None or self._known.pieces.crc32s[number] == crc32:
            return
        start, end = self._known.span(number)
        self._hashes.rewind()
        self._hashed_bytes = start
        # What an earlier run left is nobody's fault.
        damages = self._damages.get(number, 0) + (number in self._sent)
        self._damages[number] = damages
        self._ledger.lose(start, end)
        if damages >= _PIECE_FETCHES * len(self._sources):
            raise OpsError(
                f"Download from {', '.join(sorted(source.name for source, _ in self._sources))}",
                f"{ranges_text([(start, end)])} differ from those of the archive that was verified before,"
                f" after {damages} downloads of them",
                "Name another mirror in urls and run again: all other bytes are kept",
            )

    def _work(self, number: int) -> None:
        """Fill spans until none is left, over one connection to each source that is used."""
        attempts = Attempts(self._policy.retries)
        sessions: dict[Source, Session] = {}
        while (span := self._ledger.take()) is not None:
            # After a failure another mirror may do better, where there is one.
            source, facts = self._pick(number + attempts.failures, span)
            first = span.position
            pause = min(self._policy.pace.rest_seconds(), _LONGEST_REST_SECONDS)
            try:
                if not pause:
                    self._fill(self._session(sessions, source), facts, span)
                    attempts.succeeded()
            except TransientError as error:
                if span.position > first:
                    attempts.succeeded()
                pause = attempts.failed(source.name, error, self._ledger.done_bytes)
            except SourceChangedError:
                raise
            except OpsError as error:
                self._leave_out(source, error)
            finally:
                self._ledger.give_back(span)
            self._ledger.wait(pause)

    def _session(self, sessions: dict[Source, Session], source: Source) -> Session:
        if source not in sessions:
            sessions[source] = source.session()
            with self._lock:
                self._sessions.append(sessions[source])
        return sessions[source]

    def _pick(self, number: int, span: Span) -> tuple[Source, Facts]:
        with self._lock:
            # A piece that came damaged comes whole from one source, each time from the next.
            number = self._damages.get(span.position // self._piece_bytes, number)
            return self._sources[number % len(self._sources)]

    def _leave_out(self, source: Source, error: OpsError) -> None:
        """Use ``source`` no more; raise ``error`` where it was the last."""
        with self._lock:
            remaining = [pair for pair in self._sources if pair[0] is not source]
            if not remaining:
                raise error
            self._sources = remaining

    def _fill(self, session: Session, facts: Facts, span: Span) -> None:
        """Write ``span`` from ``session``, until its end, a quiet hour, an error, or the end of the work of all."""
        pace = self._policy.pace
        stream = session.open(span.position, span.end, facts)
        with contextlib.closing(stream):
            while span.position < span.end and self._ledger.error is None and not pace.rest_seconds():
                block = stream.read(min(_READ_BYTES, span.end - span.position))
                if not block:
                    raise TransientError(f"connection closed early: got {span.position} of {span.end} bytes")
                write_at(self._target, block, span.position)
                if self._known is not None:
                    for position in (span.position, span.position + len(block) - 1):
                        self._sent.add(position // self._piece_bytes)
                self._ledger.wrote(span, len(block))
                pause = pace.charge(len(block))
                if pause:
                    self._ledger.wait(pause)


def transfer_whole(source: Source, facts: Facts, target: Target, policy: Policy) -> Digests:
    """Fill ``target`` from a source that gives no parts; return the hashes of the file, whose data is synced then.

    There is one stream, and after an interruption it begins anew: nothing tells whether the file is still the same. So
    it begins outside of the quiet hours, and does not stop for them. Raises OpsError, or OSError of the disk.
    """
    attempts = Attempts(policy.retries)
    while True:
        try:
            while pause := min(policy.pace.rest_seconds(), _LONGEST_REST_SECONDS):
                time.sleep(pause)
            with contextlib.closing(source.session()) as session:
                return _stream(session, facts, target, policy)
        except TransientError as error:  # noqa: PERF203 (a loop of hours)
            time.sleep(attempts.failed(source.name, error, done_bytes=0))


def _stream(session: Session, facts: Facts, target: Target, policy: Policy) -> Digests:
    position = 0
    reported = time.monotonic()
    hashes = Hashes(PIECE_BYTES)
    with hashes.running(), contextlib.closing(session.open(0, target.size_bytes, facts)) as stream:
        while position < target.size_bytes:
            block = stream.read(min(_READ_BYTES, target.size_bytes - position))
            write_at(target, block, position)
            hashes.update(block)
            position += len(block)
            time.sleep(policy.pace.charge(len(block)))
            if time.monotonic() - reported >= policy.report_seconds:
                policy.report(position, position)
                reported = time.monotonic()
        if stream.read(1):
            raise OpsError(
                f"Download of {target.path}",
                f"the server sends more than the {target.size_bytes} bytes that were expected",
                "Check size_bytes and the URL",
            )
    os.fdatasync(target.descriptor)
    return hashes.digests()


def write_at(target: Target, block: bytes, position: int) -> None:
    """Write all of ``block`` at ``position`` of ``target``."""
    view = memoryview(block)
    while view:
        count = os.pwrite(target.descriptor, view, position)
        view, position = view[count:], position + count
