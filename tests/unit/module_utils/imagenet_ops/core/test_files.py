from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core import files
from hypothesis import given
from hypothesis import strategies as st

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a process of its own and return how it ended, as `os.waitpid` says it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- write_atomic ----------------------------------------------------------------------------------------------------


def test_write_atomic_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "state"
    files.write_atomic(str(path), b"a long first content")
    files.write_atomic(str(path), b"short")
    assert path.read_bytes() == b"short"
    assert os.listdir(tmp_path) == ["state"]


def test_write_atomic_takes_a_bare_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files.write_atomic("state", b"here")
    assert (tmp_path / "state").read_bytes() == b"here"


class HalfWritten:
    """A file that takes the first half of what it is given, and then its process is killed."""

    def __init__(self, path: str, mode: str) -> None:
        self.file = open(path, mode)  # noqa: SIM115  the process dies with it open: that is the point

    def __enter__(self) -> HalfWritten:  # noqa: PYI034  typing.Self is newer than Python 3.9
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        die()


@pytest.mark.parametrize(
    ("moment", "survives"),
    [("half of the bytes written", b"old"), ("bytes synced", b"old"), ("renamed", b"newer")],
)
def test_write_atomic_killed_at_any_moment_leaves_old_or_new_and_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, survives: bytes
) -> None:
    path = tmp_path / "state"
    files.write_atomic(str(path), b"old")
    with monkeypatch.context() as patch:
        if moment == "half of the bytes written":
            patch.setattr(files, "open", HalfWritten, raising=False)
        elif moment == "bytes synced":
            patch.setattr(os, "replace", die)
        else:
            patch.setattr(files, "fsync_directory", die)
        status = in_child(lambda: files.write_atomic(str(path), b"newer"))
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert path.read_bytes() == survives
    files.write_atomic(str(path), b"newest")
    assert path.read_bytes() == b"newest"
    assert os.listdir(tmp_path) == ["state"]


def test_write_atomic_never_shows_a_reader_a_mixture(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    versions = [bytes([letter]) * 300_000 for letter in b"ab"]
    files.write_atomic(path, versions[0], durable=False)

    def write_for_ever() -> None:
        while True:
            for version in versions:
                files.write_atomic(path, version, durable=False)

    child = os.fork()
    if child == 0:
        write_for_ever()
    try:
        seen = set()
        for _ in range(500):
            content = Path(path).read_bytes()
            assert content in versions
            seen.add(content[:1])
        assert seen == {b"a", b"b"}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def recorded_steps(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> list[str]:
    """What ``work`` asks of the kernel, in order: a power cut cannot be tried here, the order that survives it can."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def see_fsync(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        steps.append(f"sync {kind}")
        fsync(descriptor)

    def see_replace(source: str, target: str) -> None:
        steps.append("rename")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", see_fsync)
        patch.setattr(os, "replace", see_replace)
        work()
    return steps


def test_durable_means_bytes_before_the_name_and_then_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "state")
    steps = recorded_steps(monkeypatch, lambda: files.write_atomic(path, b"x"))
    assert steps == ["sync file", "rename", "sync directory"]


def test_progress_for_people_costs_no_disk_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "state")
    assert recorded_steps(monkeypatch, lambda: files.write_atomic(path, b"x", durable=False)) == ["rename"]


# --- JSON ------------------------------------------------------------------------------------------------------------


@given(value=JSON_VALUES)
def test_json_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = str(tmp_path_factory.mktemp("json") / "value.json")
    files.write_json(path, value, durable=False)
    assert json.loads(Path(path).read_bytes()) == value


@given(value=st.dictionaries(st.text(), JSON_VALUES, min_size=2))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    assert files.canonical_json(dict(reversed(value.items()))) == files.canonical_json(value)


def test_canonical_json_is_this_and_no_other_form() -> None:
    assert files.canonical_json({"b": [1, "é"], "a": None}) == '{\n "a": null,\n "b": [\n  1,\n  "é"\n ]\n}\n'.encode()


# --- exclusive -------------------------------------------------------------------------------------------------------


def is_held(lock_path: str) -> bool:
    with open(lock_path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_exclusive_is_held_by_one_process_and_ends_with_it_however_it_ends(tmp_path: Path) -> None:
    lock_path = str(tmp_path / "lock")
    ready, tell = os.pipe()
    holder = os.fork()
    if holder == 0:
        with files.exclusive(lock_path):
            os.write(tell, b"!")
            signal.pause()
    try:
        assert os.read(ready, 1) == b"!"
        assert is_held(lock_path)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    with files.exclusive(lock_path):
        assert is_held(lock_path)
    assert not is_held(lock_path)
    os.close(ready)
    os.close(tell)


def test_exclusive_lets_several_processes_count_without_losing_one(tmp_path: Path) -> None:
    lock_path, counter = str(tmp_path / "lock"), tmp_path / "counter"
    counter.write_text("0")

    def count() -> None:
        for _ in range(200):
            with files.exclusive(lock_path):
                value = int(counter.read_text())
                os.sched_yield()  # without the lock the others come in here
                counter.write_text(str(value + 1))

    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                count()
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert counter.read_text() == "800"


def test_a_file_is_removed_where_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for _ in range(2):
        files.remove_durably(str(tmp_path / "file"))
        assert list(tmp_path.iterdir()) == []
