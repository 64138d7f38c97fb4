"""How many processors this process may use, how it keeps its memory, and an ordered, bounded pool of threads."""

from __future__ import annotations

import ctypes
import math
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, TypeVar

# Parameters of glibc's mallopt (malloc.h), and what they are set to.
_MALLOPT = {
    -1: 256 << 20,  # M_TRIM_THRESHOLD: what is free at the end goes back to the kernel only beyond this
    -3: 32 << 20,  # M_MMAP_THRESHOLD: smaller blocks come from what was freed and not as fresh pages each time
}

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def usable_processors(cgroup_root: str = "/sys/fs/cgroup", own_cgroup: str = "/proc/self/cgroup") -> int:
    """Return how many processors the affinity mask and the CPU quotas of the cgroups leave to this process; at least 1.

    A quota holds for a cgroup and for all below it, so each level up to the root is looked at, in the files of cgroup
    v2 (``cpu.max``: "quota period") and v1 (``cpu.cfs_quota_us``, ``cpu.cfs_period_us``; Linux,
    Documentation/admin-guide).
    """
    processors = len(os.sched_getaffinity(0))
    for directory in _cgroup_directories(cgroup_root, own_cgroup):
        quota = _quota(directory)
        if quota is not None:
            processors = min(processors, max(1, math.ceil(quota)))
    return processors


def _cgroup_directories(cgroup_root: str, own_cgroup: str) -> Iterator[str]:
    """Yield the directory of each cgroup with a say over this process, of both versions."""
    try:
        with open(own_cgroup, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            base = cgroup_root
        elif "cpu" in controllers.split(","):
            base = os.path.join(cgroup_root, "cpu")
        else:
            continue
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts), -1, -1):
            yield os.path.join(base, *parts[:depth])


def _quota(directory: str) -> float | None:
    """Return the processors that the cgroup in ``directory`` may use, or None where it sets no limit."""
    words = _read_words(os.path.join(directory, "cpu.max"))
    if len(words) != 2:
        words = _read_words(os.path.join(directory, "cpu.cfs_quota_us"))
        words += _read_words(os.path.join(directory, "cpu.cfs_period_us"))
    if len(words) != 2 or words[0] in ("max", "-1"):
        return None
    return int(words[0]) / int(words[1])


def _read_words(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def reuse_memory() -> None:
    """Make malloc hand out again what was freed, instead of giving it back to the kernel and asking for fresh pages.

    Images of a megabyte come and go a thousand times a second; zeroing pages for them takes half a percent of the time
    of packing. Call it before threads are started. Other C libraries than glibc are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _MALLOPT.items():
            mallopt(parameter, value)


def ordered_map(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> Generator[_Result, None, None]:
    """Yield ``function(item)`` for each of ``items``, in their order, computed by ``workers`` threads.

    Half as many results again as there are workers, and two, wait at most, however slow the consumer: memory stays
    flat. An exception of ``function`` is raised at its item's turn; what comes after it is dropped. Close the generator
    if you do not read it to its end, and the threads end then.
    """
    waiting_limit = workers + workers // 2 + 2
    pending: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= waiting_limit:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
