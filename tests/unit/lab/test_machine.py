"""A process is known by number and start time, and only that very one is ever stopped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.machine import LabError, Process, extend_path, missing_programs, run, wait_until, write_for_user

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def test_a_process_is_found_again_by_what_was_written_down(sleeper: subprocess.Popen[bytes]) -> None:
    noted = Process.from_json(Process.of(sleeper.pid).to_json())
    assert noted.is_alive()
    noted.stop(patience_seconds=5)
    assert not noted.is_alive()
    assert sleeper.wait(timeout=10) != 0


def test_another_process_with_the_same_number_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    earlier = Process(sleeper.pid, Process.of(sleeper.pid).start_ticks - 1)
    assert not earlier.is_alive()
    earlier.stop(patience_seconds=0)
    assert sleeper.poll() is None


def test_a_process_that_ignores_a_request_to_end_is_killed() -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        noted = Process.of(process.pid)
        noted.stop(patience_seconds=0.1)
        assert not noted.is_alive()


def test_a_number_that_nobody_has_is_no_process() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert not Process.of(process.pid).is_alive()


def test_a_command_that_fails_says_what_and_why_in_one_line() -> None:
    with pytest.raises(LabError, match=r"^ls /no/such/folder: .*No such file") as error:
        run("ls", "/no/such/folder")
    assert "\n" not in str(error.value)


def test_waiting_ends_with_the_condition_or_with_the_time() -> None:
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), seconds=5, interval_seconds=0)
    assert not wait_until(lambda: False, seconds=0)


def test_a_file_is_replaced_whole_with_the_wanted_mode(tmp_path: Path) -> None:
    file = tmp_path / "origin.json"
    file.write_text("old")
    with open(file, encoding="ascii") as reader:
        write_for_user(file, "new", mode=0o600)
        assert reader.read() == "old", "who had it open keeps what was there"
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["origin.json"]


def test_what_is_missing_is_named_with_the_package_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None if program in {"sshd", "mkfs.xfs"} else f"/bin/{program}")
    assert missing_programs() == ["mkfs.xfs (Debian package xfsprogs)", "sshd (Debian package openssh-server)"]


def test_programs_of_the_administrator_are_found_without_their_folders_in_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/home/somebody/bin")
    extend_path()
    assert os.environ["PATH"].split(":")[0] == "/home/somebody/bin"
    assert "/usr/sbin" in os.environ["PATH"].split(":")
