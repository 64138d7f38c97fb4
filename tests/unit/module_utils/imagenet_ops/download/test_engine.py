"""Bytes end up where they belong, whatever their sources do; checkpoints tell nothing that is not safe."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import itertools
import os
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core import retry
from ansible.module_utils.imagenet_ops.core.errors import OpsError, SourceChangedError, TransientError
from ansible.module_utils.imagenet_ops.download import engine as transfer_module
from ansible.module_utils.imagenet_ops.download import ranges
from ansible.module_utils.imagenet_ops.download.digests import Digests
from ansible.module_utils.imagenet_ops.download.engine import Policy, Target, transfer, transfer_whole
from ansible.module_utils.imagenet_ops.download.pieces import PIECE_BYTES, PieceRecord, Pieces
from ansible.module_utils.imagenet_ops.download.ranges import Ranges
from ansible.module_utils.imagenet_ops.download.rate_limit import Pace, QuietHours
from ansible.module_utils.imagenet_ops.download.source import Facts, Session, Source, Stream

CONTENT = random.Random(1).randbytes(300_000)
HASHES = Digests(
    hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest(), Pieces(PIECE_BYTES, (zlib.crc32(CONTENT),))
)
Behaviour = Callable[[int, int], bytes]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_SHORTEST_SPAN_BYTES", 10_000)
    monkeypatch.setattr(transfer_module, "_READ_BYTES", 3_000)
    for module in (ranges, transfer_module):
        monkeypatch.setattr(module, "BLOCK_BYTES", 20_000)
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.001)


class FakeSource(Source):
    """Answers with ``behaviour(start, end)``: the bytes that come before the connection ends; it may raise."""

    parallel = True

    def __init__(self, behaviour: Behaviour, name: str = "fake") -> None:
        self.name = name
        self.behaviour = behaviour
        self.opened: list[tuple[int, int]] = []
        self.threads: set[int] = set()

    def session(self) -> Session:
        return FakeSession(self)


class FakeSession(Session):
    def __init__(self, source: FakeSource) -> None:
        self.source = source

    def facts(self) -> Facts:
        return Facts(len(CONTENT), ranges=True, validator="1")

    def open(self, start: int, end: int, _facts: Facts) -> Stream:
        self.source.opened.append((start, end))
        self.source.threads.add(threading.get_ident())
        return FakeStream(self.source.behaviour(start, end), end - start)

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


class FakeStream(Stream):
    def __init__(self, content: bytes, length: int) -> None:
        self.content = content
        self.missing = length - len(content)

    def read(self, limit: int) -> bytes:
        block, self.content = self.content[:limit], self.content[limit:]
        if not block and self.missing > 0:
            raise TransientError("cut")
        return block

    def close(self) -> None:
        pass


def honest(start: int, end: int) -> bytes:
    return CONTENT[start:end]


def slowly(start: int, end: int) -> bytes:
    time.sleep(0.002)
    return CONTENT[start:end]


def failing(error: Exception) -> Behaviour:
    def raise_it(_start: int, _end: int) -> bytes:
        raise error

    return raise_it


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    path = tmp_path / "part"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, len(CONTENT))
    yield Target(str(path), descriptor, len(CONTENT))
    os.close(descriptor)


def policy(
    connections: int = 4,
    retries: int = 3,
    checkpoint: Callable[[list[tuple[int, int]]], None] = lambda _ranges: None,
    report: Callable[[int, int], None] = lambda _done, _hashed: None,
) -> Policy:
    return Policy(connections, retries, checkpoint, report, checkpoint_seconds=0, report_seconds=0.001)


def run(target: Target, *sources: FakeSource, done: Ranges | None = None, how: Policy | None = None) -> Digests:
    facts = Facts(target.size_bytes, ranges=True, validator="1")
    return transfer([(source, facts) for source in sources], target, done or Ranges(), how or policy())


def written(target: Target) -> bytes:
    return Path(target.path).read_bytes()


# The transfer


def test_all_bytes_over_several_connections(target: Target) -> None:
    source = FakeSource(slowly)
    assert run(target, source) == HASHES
    assert written(target) == CONTENT
    assert len(source.threads) == 4
    assert min(source.opened)[0] == 0


def test_an_empty_file(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "part", os.O_RDWR | os.O_CREAT)
    assert run(Target(str(tmp_path / "part"), descriptor, 0), FakeSource(honest)) == (
        hashlib.md5().hexdigest(),
        hashlib.sha256().hexdigest(),
        Pieces(PIECE_BYTES, ()),
    )
    os.close(descriptor)


def test_only_what_is_missing_is_asked_for(target: Target) -> None:
    done = Ranges([(0, 50_000), (100_000, 250_000)])
    for start, end in done.pairs():
        os.pwrite(target.descriptor, CONTENT[start:end], start)
    source = FakeSource(honest)
    assert run(target, source, done=done) == HASHES
    asked = Ranges(source.opened)
    assert asked.pairs() == [(50_000, 100_000), (250_000, 300_000)]


@pytest.mark.parametrize("seed", range(10))
def test_connections_that_end_anywhere(target: Target, seed: int) -> None:
    chance = random.Random(seed)

    def cut(start: int, end: int) -> bytes:
        return CONTENT[start : chance.randint(start, end)]

    assert run(target, FakeSource(cut), how=policy(retries=200)) == HASHES
    assert written(target) == CONTENT


def test_a_source_that_brings_nothing_is_given_up(target: Target) -> None:
    with pytest.raises(OpsError, match=r"^Download from fake: no data received after 3 retries \(last error: cut\)"):
        run(target, FakeSource(lambda _start, _end: b""))


def test_a_mirror_that_fails_for_good_is_left_out(target: Target) -> None:
    broken = FakeSource(failing(OpsError("Download from b", "there is no such file", "Check")), "b")
    assert run(target, broken, FakeSource(slowly, "a")) == HASHES
    assert len(broken.opened) <= 4


def test_a_mirror_that_stutters_is_helped_out_by_another(target: Target) -> None:
    broken = FakeSource(failing(TransientError("HTTP 503")), "b")
    assert run(target, FakeSource(slowly, "a"), broken) == HASHES


def test_mirrors_work_together(target: Target) -> None:
    first, second = FakeSource(slowly, "a"), FakeSource(slowly, "b")
    assert run(target, first, second) == HASHES
    assert first.opened
    assert second.opened


def test_the_last_source_that_fails_says_why(target: Target) -> None:
    gone = [FakeSource(failing(OpsError(f"Download from {name}", "gone", "Check")), name) for name in "ab"]
    with pytest.raises(OpsError, match=r"^Download from [ab]: gone\. Check$"):
        run(target, *gone)


def test_a_file_that_changes_ends_it_even_with_a_mirror(target: Target) -> None:
    changed = FakeSource(failing(SourceChangedError("Download from a", "the file was changed", "Run again")), "a")
    with pytest.raises(SourceChangedError):
        run(target, changed, FakeSource(slowly, "b"))


def test_checkpoints_tell_only_what_was_synced_before(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = threading.Lock()
    in_memory, on_disk = Ranges(), Ranges()
    told: list[int] = []
    told_of_some = threading.Event()
    real_pwrite, real_fdatasync = os.pwrite, os.fdatasync

    def pwrite(descriptor: int, content: bytes, position: int) -> int:
        count = real_pwrite(descriptor, content, position)
        with lock:
            in_memory.add(position, position + count)
        return count

    def fdatasync(descriptor: int) -> None:
        with lock:
            for pair in in_memory.pairs():
                on_disk.add(*pair)
        real_fdatasync(descriptor)

    def checkpoint(ranges: list[tuple[int, int]]) -> None:
        with lock:
            told.append(sum(end - start for start, end in ranges))
            if told[-1] > 0:
                told_of_some.set()
            merged = Ranges([*on_disk.pairs(), *ranges])
            assert merged.pairs() == on_disk.pairs(), "a checkpoint is ahead of the disk"

    def only_the_beginning_at_first(start: int, end: int) -> bytes:
        assert start == 0 or told_of_some.wait(60)
        return CONTENT[start:end]

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    assert run(target, FakeSource(only_the_beginning_at_first), how=policy(checkpoint=checkpoint)) == HASHES
    assert 0 < next(filter(None, told)) < told[-1] == len(CONTENT)
    assert told == sorted(told)


def test_what_arrived_before_an_error_is_told(target: Target) -> None:
    told: list[list[tuple[int, int]]] = []

    def half(start: int, end: int) -> bytes:
        if start >= 150_000:
            raise OpsError("Download from fake", "gone", "Check")
        return CONTENT[start:end]

    with pytest.raises(OpsError, match="gone"):
        run(target, FakeSource(half), how=policy(connections=1, checkpoint=told.append))
    start, end = told[-1][0]
    assert (start, written(target)[:end]) == (0, CONTENT[:end])
    assert end >= 140_000


def test_a_full_disk_ends_it_and_keeps_what_there_is(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    real_pwrite = os.pwrite

    def pwrite(descriptor: int, content: bytes, position: int) -> int:
        if position > 200_000:
            raise OSError(28, "No space left on device")
        return real_pwrite(descriptor, content, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    told: list[list[tuple[int, int]]] = []
    with pytest.raises(OSError, match="No space left"):
        run(target, FakeSource(honest), how=policy(checkpoint=told.append))
    for start, end in told[-1]:
        assert written(target)[start:end] == CONTENT[start:end]


def test_a_journal_that_cannot_be_written_ends_it(target: Target) -> None:
    def full(_ranges: list[tuple[int, int]]) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run(target, FakeSource(slowly), how=policy(checkpoint=full))


def test_short_writes_are_continued(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    real_pwrite = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda descriptor, content, position: real_pwrite(descriptor, content[:700], position)
    )
    assert run(target, FakeSource(honest)) == HASHES
    assert written(target) == CONTENT


def test_progress_goes_up_to_the_end_in_both_senses(target: Target) -> None:
    reported: list[tuple[int, int]] = []
    run(target, FakeSource(slowly), how=policy(report=lambda done, hashed: reported.append((done, hashed))))
    assert reported == sorted(reported)
    assert all(hashed <= done for done, hashed in reported)


def test_a_file_that_is_shortened_meanwhile_is_noticed(target: Target) -> None:
    os.ftruncate(target.descriptor, 1000)
    with pytest.raises(OpsError) as caught:
        run(target, FakeSource(honest), done=Ranges([(0, len(CONTENT))]))
    assert str(caught.value) == f"Partial download {target.path}: something else has shortened it. Run again"


def test_a_rate_limit_holds_for_all_connections_together(target: Target) -> None:
    limited = dataclasses.replace(policy(connections=8), pace=Pace(bytes_per_second=600_000))
    began = time.monotonic()
    assert run(target, FakeSource(honest), how=limited) == HASHES
    assert time.monotonic() - began > 0.4


def test_in_quiet_hours_nothing_is_asked_for(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_module, "_LONGEST_REST_SECONDS", 0.001)
    looks = itertools.count()
    source = FakeSource(honest)
    asked: list[int] = []

    def local_time() -> dt.datetime:
        asked.append(len(source.opened))
        return dt.datetime.fromisoformat(f"2026-01-01 {12 if next(looks) < 30 else 18}:00")

    quiet = dataclasses.replace(policy(), pace=Pace(0, QuietHours.parse("08:00-18:00"), local_time=local_time))
    assert run(target, source, how=quiet) == HASHES
    assert asked[:30] == [0] * 30


def test_a_quiet_hour_that_begins_stops_what_is_running(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_module, "_LONGEST_REST_SECONDS", 0.001)
    looks = itertools.count()
    source = FakeSource(honest)

    def local_time() -> dt.datetime:
        return dt.datetime.fromisoformat(f"2026-01-01 {12 if 5 <= next(looks) < 40 else 18}:00")

    pace = Pace(0, QuietHours.parse("08:00-18:00"), local_time=local_time)
    assert run(target, source, how=dataclasses.replace(policy(connections=1), pace=pace)) == HASHES
    assert source.opened[0][0] == 0
    assert 0 < source.opened[1][0] < source.opened[0][1], "it went on where it had stopped"


# Known pieces


def known_pieces(content: bytes, piece_bytes: int = 50_000) -> PieceRecord:
    blocks = [content[start : start + piece_bytes] for start in range(0, len(content), piece_bytes)]
    pieces = Pieces(piece_bytes, tuple(zlib.crc32(block) for block in blocks))
    return PieceRecord("fake", len(content), HASHES.md5, HASHES.sha256, pieces)


@pytest.mark.parametrize("seed", range(5))
def test_damaged_pieces_are_fetched_again_while_the_rest_comes(target: Target, seed: int) -> None:
    chance = random.Random(seed)
    struck: set[int] = set()

    def damaging(start: int, end: int) -> bytes:
        content = bytearray(CONTENT[start:end])
        if start // 50_000 not in struck and chance.random() < 0.5:
            struck.add(start // 50_000)
            content[chance.randrange(len(content))] ^= 0xFF
        return bytes(content)

    facts = Facts(target.size_bytes, ranges=True, validator="1")
    told: list[list[tuple[int, int]]] = []
    how = policy(checkpoint=told.append)
    digests = transfer([(FakeSource(damaging), facts)], target, Ranges(), how, known_pieces(CONTENT))
    assert (digests.md5, digests.sha256) == (HASHES.md5, HASHES.sha256)
    assert digests.pieces == known_pieces(CONTENT).pieces
    assert written(target) == CONTENT
    assert told[-1] == [(0, len(CONTENT))]


def test_a_damaged_piece_of_an_earlier_run_is_fetched_again(target: Target) -> None:
    os.pwrite(target.descriptor, CONTENT[:120_000] + b"damage" + CONTENT[120_006:], 0)
    source = FakeSource(honest)
    facts = Facts(target.size_bytes, ranges=True, validator="1")
    transfer([(source, facts)], target, Ranges([(0, len(CONTENT))]), policy(), known_pieces(CONTENT))
    assert written(target) == CONTENT
    assert Ranges(source.opened).pairs() == [(100_000, 150_000)]


# One stream


def whole(target: Target, source: FakeSource, retries: int = 3) -> Digests:
    facts = Facts(target.size_bytes, ranges=False, validator="")
    return transfer_whole(source, facts, target, policy(retries=retries))


def test_one_stream_begins_anew_after_an_interruption(target: Target) -> None:
    lengths = iter([100, 200_000, len(CONTENT)])
    source = FakeSource(lambda start, _end: CONTENT[start : next(lengths)])
    assert whole(target, source) == HASHES
    assert written(target) == CONTENT
    assert source.opened == [(0, len(CONTENT))] * 3


def test_one_stream_gives_up_too(target: Target) -> None:
    with pytest.raises(OpsError, match=r"no data received after 2 retries \(last error: cut"):
        whole(target, FakeSource(lambda _start, _end: CONTENT[:1000]), retries=2)


def test_more_bytes_than_there_should_be(target: Target) -> None:
    with pytest.raises(OpsError) as caught:
        whole(target, FakeSource(lambda _start, _end: CONTENT + b"x"))
    assert str(caught.value) == (
        f"Download of {target.path}: the server sends more than the 300000 bytes that were expected. Check size_bytes"
        " and the URL"
    )
