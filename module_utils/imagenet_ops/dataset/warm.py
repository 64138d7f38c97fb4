"""Reads a data set once, in parallel and past the page cache, so that a lazily loaded volume is warm afterwards.

A volume from a snapshot loads each block when it is first read, and one reader waits for every block in turn. Many
readers wait for many at once, which is what the EBS User Guide advises ("Manually initialize the volumes after
creation": fio with a depth of 32). What was read is noted, so that a run that was killed goes on.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
import warnings
from collections.abc import Collection
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple

from ansible.module_utils.imagenet_ops.core.disk import disk_error
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import exclusive
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile, Warn, natural
from ansible.module_utils.imagenet_ops.dataset.manifest import MANIFEST_NAME, read_manifest

MIB = 1024 * 1024
NAME = "dataset_warm"
# What a reader takes at a time and what is read again after a kill: a 64th of a small data set, so that all readers
# have work, and at most so much of a large one.
SEGMENTS = 64
SEGMENT_BYTES_MAX = 64 * MIB
# One request: two blocks of EBS, and what Linux sends to a device at once.
READ_BYTES = MIB
SAVE_SECONDS = 2.0
CHECKPOINT = Kind(
    "dataset_warm checkpoint",
    1,
    {"manifest_sha256": str, "segment_bytes": natural, "done": [natural]},
    starts_over="the volume is read from its start",
)


class Segment(NamedTuple):
    """A stretch of a file: ``length`` bytes from ``offset`` on; ``name`` is relative to the data set."""

    name: str
    offset: int
    length: int


@dataclass
class _Done:
    """Which segments were read, by number, and how many bytes; shared by the readers."""

    numbers: set[int]
    bytes: int
    lock: threading.Lock = field(default_factory=threading.Lock)


def warm_dataset(
    root: str,
    volume_id: str,
    state_dir: str,
    readers: int,
    formats: Collection[str] = (),
    *,
    check_mode: bool,
    clock: Callable[[], float] = time.monotonic,
    warn: Warn = warnings.warn,
) -> dict[str, Any]:
    """Read every byte that the manifest in ``root`` names, unless that was done; return the module's result.

    The records are those in ``formats``, or all. ``volume_id`` is the volume that the data set lies on: another volume
    is cold again. Progress and what was read are kept in ``state_dir``, made where missing, for the data set may be
    mounted read-only. Raises OpsError where the manifest or a file cannot be read, or has another size than the
    manifest says.
    """
    if readers < 1:
        raise OpsError(f"{readers} readers", "that reads nothing", "Give at least 1")
    try:
        segments, identity = list_segments(root, formats)
    except OSError as error:
        raise disk_error(root, error) from error
    total = sum(segment.length for segment in segments)
    checkpoint = StateFile(os.path.join(state_dir, f"{NAME}.{volume_id}.json"), CHECKPOINT, warn)
    if check_mode:
        return _result(total, total - _bytes_of(segments, _read_numbers(checkpoint, identity, len(segments))), 0.0)
    os.makedirs(state_dir, exist_ok=True)
    with exclusive(os.path.join(state_dir, f"{NAME}.lock")):
        numbers = _read_numbers(checkpoint, identity, len(segments))
        done = _Done(numbers, _bytes_of(segments, numbers))
        before = done.bytes
        started = clock()
        if before < total:
            _read_segments(root, segments, done, readers, _Keeper(state_dir, checkpoint, identity, total, done))
        return _result(total, total - before, clock() - started)


def list_segments(root: str, formats: Collection[str]) -> tuple[list[Segment], dict[str, Any]]:
    """Return the segments of all files of the data set, and what tells them from those of another one.

    The records are those in ``formats``, or all.
    """
    manifest = read_manifest(root)
    sizes = {path: entry.size_bytes for path, entry in manifest.files("records", formats).items()}
    sizes[MANIFEST_NAME] = os.stat(os.path.join(root, MANIFEST_NAME)).st_size
    length = min(SEGMENT_BYTES_MAX, max(MIB, sum(sizes.values()) // SEGMENTS // MIB * MIB))
    segments = [
        Segment(name, offset, min(length, size - offset))
        for name, size in sorted(sizes.items())
        for offset in range(0, size, length)
    ]
    return segments, {"manifest_sha256": manifest.sha256, "segment_bytes": length}


def _read_numbers(checkpoint: StateFile, identity: dict[str, Any], segments: int) -> set[int]:
    """Return the numbers of the segments that were read already; none where the state is of another data set."""
    found = checkpoint.read()
    if found is None or {name: found[name] for name in identity} != identity:
        return set()
    if any(number >= segments for number in found["done"]):
        checkpoint.discard("it is damaged: the data set has no such segments as it names")
        return set()
    return set(found["done"])


def _bytes_of(segments: list[Segment], numbers: set[int]) -> int:
    return sum(segments[number].length for number in numbers)


def _result(total: int, read_bytes: int, seconds: float) -> dict[str, Any]:
    rate = read_bytes / MIB / seconds if read_bytes and seconds > 0 else 0.0
    return {
        "changed": read_bytes > 0,
        "bytes": total,
        "read_bytes": read_bytes,
        "seconds": round(seconds, 1),
        "mib_s": round(rate, 1),
        "diff": {
            "before": f"{total - read_bytes} of {total} bytes were read\n",
            "after": f"{total} of {total} bytes were read\n",
        },
    }


class _Keeper:
    """Writes down what was read, and the progress."""

    def __init__(
        self, state_dir: str, checkpoint: StateFile, identity: dict[str, Any], total: int, done: _Done
    ) -> None:
        self._checkpoint = checkpoint
        self._identity = identity
        self._done = done
        self._progress = Progress(state_dir, NAME)
        self._progress.start("reading", total, "bytes", done.bytes)

    def look(self) -> None:
        """Note how far it is."""
        with self._done.lock:
            numbers, count = sorted(self._done.numbers), self._done.bytes
        self._checkpoint.write({**self._identity, "done": numbers})
        self._progress.update(count)

    def finish(self) -> None:
        """Note that all was read."""
        self.look()
        self._progress.finish()


def _read_segments(root: str, segments: list[Segment], done: _Done, readers: int, keeper: _Keeper) -> None:
    def read(number: int) -> None:
        segment = segments[number]
        read_segment(os.path.join(root, segment.name), segment)
        with done.lock:
            done.numbers.add(number)
            done.bytes += segment.length

    pool = ThreadPoolExecutor(readers)
    try:
        left = {pool.submit(read, number) for number in range(len(segments)) if number not in done.numbers}
        while left:
            ended, left = wait(left, timeout=SAVE_SECONDS, return_when=FIRST_EXCEPTION)
            keeper.look()
            for future in ended:
                future.result()
    finally:
        pool.shutdown(cancel_futures=True)
    keeper.finish()


def read_segment(path: str, segment: Segment) -> None:
    """Read a stretch of file ``path`` from its device. Raises OpsError where it cannot be read or has ended before."""
    buffer = mmap.mmap(-1, READ_BYTES)  # O_DIRECT wants memory that begins at a page
    try:
        descriptor = open_direct(path, segment)
        try:
            offset, end = segment.offset, segment.offset + segment.length
            while offset < end:
                count = os.preadv(descriptor, [buffer], offset)
                if count == 0:
                    raise OpsError(
                        f"File {path}",
                        f"it has {os.fstat(descriptor).st_size} bytes, the manifest says more",
                        "Create the volume again from a snapshot",
                    )
                offset += count
        finally:
            os.close(descriptor)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        buffer.close()


def open_direct(path: str, segment: Segment) -> int:
    """Open ``path`` past the page cache; where its filesystem has no such way, drop what is cached of the segment."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(descriptor, segment.offset, segment.length, os.POSIX_FADV_DONTNEED)
        return descriptor
