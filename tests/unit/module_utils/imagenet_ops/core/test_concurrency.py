from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core.concurrency import ordered_map, reuse_memory, usable_processors

ROOT = Path(__file__).resolve().parents[5]


@pytest.fixture
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def processors(root: Path, own_cgroup: str, files: dict[str, str]) -> int:
    for name, content in files.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / "own").write_text(own_cgroup)
    return usable_processors(str(root / "cgroup"), str(root / "own"))


def test_this_machine_has_at_least_one_and_at_most_what_the_affinity_allows() -> None:
    assert 1 <= usable_processors() <= len(os.sched_getaffinity(0))


@pytest.mark.usefixtures("eight_processors")
@pytest.mark.parametrize(
    ("own_cgroup", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "1000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n", "a/cpu.max": "200000 100000\n"}, 1),
        ("0::/a\n", {}, 8),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "200000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 2),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 8),
        ("5:memory:/a\n", {"memory/a/cpu.max": "100000 100000\n"}, 8),
        ("", {}, 8),
    ],
)
def test_the_quota_of_every_cgroup_above_counts(
    tmp_path: Path, own_cgroup: str, files: dict[str, str], expected: int
) -> None:
    assert processors(tmp_path, own_cgroup, files) == expected


@pytest.mark.usefixtures("eight_processors")
def test_without_cgroups_the_affinity_decides(tmp_path: Path) -> None:
    assert usable_processors(str(tmp_path), str(tmp_path / "missing")) == 8


def test_results_come_in_order_though_the_first_is_the_last_to_be_done() -> None:
    others_done = threading.Barrier(3)

    def work(number: int) -> int:
        if number < 3:
            others_done.wait(timeout=30)  # only passed when the first three run at once
        return number * number

    assert list(ordered_map(work, range(50), workers=3)) == [number * number for number in range(50)]


def test_a_slow_consumer_holds_the_work_back() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = ordered_map(lambda number: number, items(), workers=4)
    for _ in range(10):
        next(results)
    assert len(taken) <= 10 + 4 + 2 + 2
    results.close()


def test_an_exception_is_raised_at_its_turn() -> None:
    def work(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    results = ordered_map(work, range(1000), workers=2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_closing_ends_the_threads_and_drops_what_has_not_begun() -> None:
    done: list[int] = []
    results = ordered_map(done.append, range(1000), workers=2)
    next(results)
    results.close()
    assert len(done) < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


# In a process of its own, for malloc keeps what it was once told.
COUNT_FAULTS = """
import resource, sys
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1])
from ansible.module_utils.imagenet_ops.core.concurrency import reuse_memory
if sys.argv[2] == "reuse":
    reuse_memory()
bytearray(2 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytes(bytearray(2 << 20))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_ten_buffers(how: str) -> int:
    """Return how many fresh pages it takes to have ten buffers of 2 MiB, one after another."""
    command = [sys.executable, "-c", COUNT_FAULTS, str(ROOT / "module_utils"), how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc, whose malloc is meant")
def test_memory_that_was_freed_is_used_again() -> None:
    pages_of_a_buffer = (2 << 20) // resource.getpagesize()
    assert faults_of_ten_buffers("reuse") < 3 * pages_of_a_buffer < faults_of_ten_buffers("plain")


def test_any_c_library_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    reuse_memory()
