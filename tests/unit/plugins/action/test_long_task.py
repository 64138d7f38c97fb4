from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.loader import action_loader
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[4]

action_loader.add_directory(str(ROOT / "plugins" / "action"))
ActionModule: Any = action_loader.get("long_task", class_only=True)
long_task: Any = sys.modules[ActionModule.__module__]

PROGRESS = {
    "stage": "train",
    "done": 400,
    "total": 1003,
    "unit": "images",
    "rate_per_second": 380.2,
    "eta_seconds": 2,
    "finished": False,
}

# A module with the name of a long one that does what a test says.
MODULE = """#!/usr/bin/python
import os, signal, sys, time
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.core.progress import Progress

def parent_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rsplit(")", 1)[1].split()[1])

def main():
    module = AnsibleModule(
        {
            "state_dir": {"type": "path"},
            "steps": {"type": "int", "default": 1},
            "kill": {"default": ""},
            "fail": {"default": ""},
            "wait": {"type": "bool", "default": True},
            "password": {"no_log": True},
        },
        supports_check_mode=True,
    )
    if not module.check_mode:
        progress = Progress(module.params["state_dir"], "recordio_pack", 0)
        progress.start("secret stage", module.params["steps"], "images")
        for step in range(module.params["steps"]):
            time.sleep(0.2)
            progress.update(step + 1)
        runner = os.getppid()
        victims = {"": [], "module": [os.getpid()], "job": [parent_of(runner), runner, os.getpid()]}
        for pid in victims[module.params["kill"]]:
            os.kill(pid, signal.SIGKILL)
    if module.params["fail"]:
        module.fail_json(msg=module.params["fail"])
    module.exit_json(
        changed=True,
        mark=os.environ.get("MARK", ""),
        job="ANSIBLE_ASYNC_DIR" in os.environ,
        interpreter=sys.executable,
    )

main()
"""


class Playbook:
    """A project of one task, run by ansible-playbook on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.async_dir = folder / "async"
        (folder / "library").mkdir()
        for module in ("recordio_pack", "ebs_snapshot_info"):
            (folder / "library" / f"{module}.py").write_text(MODULE)
        (folder / "state").mkdir()
        (folder / "ansible.cfg").write_text(
            f"[defaults]\nlibrary={folder}/library\nmodule_utils={ROOT}/module_utils\n"
            f"action_plugins={ROOT}/plugins/action\nlocal_tmp={folder}/tmp\nremote_tmp={folder}/remote\n"
        )

    def run(
        self, *options: str, module: str = "recordio_pack", keywords: dict[str, Any] | None = None, **arguments: Any
    ) -> subprocess.CompletedProcess[str]:
        task = {
            module: {"state_dir": str(self.folder / "state"), **arguments},
            "register": "answer",
            **(keywords or {}),
        }
        shown = {"ansible.builtin.debug": {"msg": "ANSWER {{ answer | to_json }} END"}}
        play = [{"hosts": "all", "gather_facts": False, "tasks": [task, shown]}]
        (self.folder / "play.yml").write_text(json.dumps(play))
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "ansible_async_dir": str(self.async_dir),
            "imagenet_ops_progress_seconds": 0,
        }
        command = ["ansible-playbook", "-i", "node-1,", "play.yml", "-e", json.dumps(variables), *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        environment["ANSIBLE_CONFIG"] = str(self.folder / "ansible.cfg")
        environment["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        return subprocess.run(
            command, cwd=self.folder, env=environment, check=False, capture_output=True, text=True, timeout=120
        )


@pytest.fixture
def playbook(tmp_path: Path) -> Playbook:
    return Playbook(tmp_path)


def answer_in(output: str) -> dict[str, Any]:
    found = re.search(r"ANSWER (.*) END", output)
    assert found, output
    answer: dict[str, Any] = json.loads(found[1].replace('\\"', '"'))
    return answer


def lines_of_progress(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("node-1 | recordio_pack | ")]


# --- in a playbook


def test_progress_is_shown_and_the_answer_is_the_module_s_own(playbook: Playbook) -> None:
    ran = playbook.run(keywords={"environment": {"MARK": "from the task"}}, steps=10)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = lines_of_progress(ran.stdout)
    assert re.fullmatch(r"node-1 \| recordio_pack \| secret stage: \d+/10 images, \d+ %.*", lines[0])
    assert len(lines) > 1
    assert len(set(lines)) == len(lines)
    assert answer_in(ran.stdout) == {
        "changed": True,
        "failed": False,
        "mark": "from the task",
        "job": True,
        "interpreter": sys.executable,
    }
    assert "WARNING" not in ran.stdout + ran.stderr
    assert list(playbook.async_dir.iterdir()) == []


def test_check_mode_runs_the_module_as_any_other(playbook: Playbook) -> None:
    ran = playbook.run("--check")
    answer = answer_in(ran.stdout)
    assert (ran.returncode, answer["changed"], answer["job"]) == (0, True, False)
    assert lines_of_progress(ran.stdout) == []


def test_told_not_to_wait_the_module_runs_as_any_other(playbook: Playbook) -> None:
    ran = playbook.run(wait="no")
    assert (ran.returncode, answer_in(ran.stdout)["job"]) == (0, False)
    assert answer_in(playbook.run(wait="yes").stdout)["job"] is True


@pytest.mark.parametrize(("wait", "waits"), [(None, False), ("no", False), ("yes", True)])
def test_a_module_that_only_reads_waits_only_where_the_task_says_so(
    playbook: Playbook, wait: str | None, *, waits: bool
) -> None:
    assert (
        answer_in(playbook.run(module="ebs_snapshot_info", wait="{{ omit }}" if wait is None else wait).stdout)["job"]
        is waits
    )


def test_an_error_of_the_module_comes_through_unchanged(playbook: Playbook) -> None:
    ran = playbook.run(fail="Archive x: it is short. Fetch it again")
    assert ran.returncode == 2
    assert "Task failed: Module failed: Archive x: it is short. Fetch it again" in ran.stdout + ran.stderr
    assert list(playbook.async_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("kill", "reason"),
    [
        ("module", "the job exited without a result (killed, or out of memory)"),
        ("job", "the job exited without a result (killed, out of memory, or the host was rebooted)"),
    ],
)
def test_a_killed_job_is_an_error_at_once(playbook: Playbook, kill: str, reason: str) -> None:
    started = time.monotonic()
    ran = playbook.run(kill=kill)
    assert time.monotonic() - started < 60
    assert ran.returncode == 2
    assert (
        f"recordio_pack on node-1: {reason}. Check the host's memory and dmesg, then rerun: completed work is kept"
    ) in ran.stdout
    assert list(playbook.async_dir.iterdir()) == []
    if kill == "job":  # else the job still lives and cleans up itself
        assert list((playbook.folder / "remote").iterdir()) == []


def test_no_log_hides_all_but_numbers(playbook: Playbook) -> None:
    ran = playbook.run("-vvv", keywords={"no_log": True}, steps=5, password="geheim")
    assert ran.returncode == 0
    lines = lines_of_progress(ran.stdout)
    assert lines
    assert re.fullmatch(r"node-1 \| recordio_pack \| \d/5 images, \d+ %.*", lines[0])
    before_the_next_task = ran.stdout.split("TASK [ansible.builtin.debug]")[0].split("TASK [recordio_pack]")[1]
    assert "secret stage" not in before_the_next_task
    assert "geheim" not in before_the_next_task


def test_a_module_that_cannot_be_started_says_why(playbook: Playbook) -> None:
    ran = playbook.run("-e", "ansible_async_dir=/proc/nowhere")
    assert ran.returncode == 2
    assert "could not create directory: /proc/nowhere" in ran.stdout + ran.stderr
    assert list((playbook.folder / "remote").iterdir()) == []


@pytest.mark.parametrize("name", ["archive_fetch", "imagenet_layout", "recordio_pack", "s3_backup", "s3_restore"])
def test_every_long_module_has_it(name: str) -> None:
    assert action_loader.get(name, class_only=True) is ActionModule


# --- a connection that comes and goes


class FakeDisplay:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def display(self, line: str) -> None:
        self.lines.append(line)

    def vvv(self, line: str) -> None:
        del line


class FakeHost:
    """What an action plugin sees of a host: answers to its looks, one after the other; time passes by sleeping."""

    def __init__(self, looks: list[Any]) -> None:
        self.looks = looks
        self.now = 0.0
        self.commands: list[str] = []
        self.display = FakeDisplay()
        self.action = object.__new__(ActionModule)
        self.action._vars = {}
        self.action._module, self.action._host = "recordio_pack", "node-1"
        self.action._display = self.display
        self.action._sleep, self.action._clock = self.sleep, lambda: self.now
        self.action._templar = self
        self.action._task = type("Task", (), {"no_log": False})
        self.action._low_level_execute_command = self.execute
        self.action._execute_module = self.execute_module

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def template(self, value: Any) -> Any:
        return value

    def execute(self, command: str) -> dict[str, Any]:
        if command.startswith("rm "):
            self.commands.append(command)
            return {}
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, Exception):
            raise look
        return {"stdout": look}

    def execute_module(self, name: str, arguments: dict[str, Any], **_: Any) -> dict[str, Any]:
        assert (name, arguments) == ("ansible.legacy.async_status", {"jid": "j12.34", "_async_dir": "/home/u/async"})
        return {"changed": False, "from": "module"}

    def follow(self) -> dict[str, Any]:
        job = long_task.Job("j12.34", "/home/u/async/j12.34", "/data/.state/recordio_pack.progress.json", "/tmp/a")
        answer: dict[str, Any] = self.action._follow(job)
        return answer


def look(*, alive: bool = True, answer: dict[str, Any] | None = None, done: int = -1) -> str:
    results = json.dumps(answer or {"started": True, "finished": False, "ansible_job_id": "j12.34"})
    progress = json.dumps({**PROGRESS, "done": done}) if done >= 0 else ""
    return f"\x1e{'' if alive else 'dead'}\r\n\x1e{results}\x1e{progress}"


LOST = AnsibleConnectionFailure("Connection refused")


def test_a_lost_connection_is_tried_again_and_said_once() -> None:
    host = FakeHost([look(done=100), LOST, LOST, LOST, look(done=900), LOST, look(answer={"changed": False})])
    host.action._vars = {"imagenet_ops_progress_seconds": 0}
    assert host.follow() == {"changed": False, "from": "module"}
    assert host.display.lines == [
        "node-1 | recordio_pack | train: 100/1,003 images, 9 %, 380 images/s, ETA 2 s",
        "node-1 | recordio_pack | connection lost, job still running; reconnecting",
        "node-1 | recordio_pack | train: 900/1,003 images, 89 %, 380 images/s, ETA 2 s",
        "node-1 | recordio_pack | connection lost, job still running; reconnecting",
    ]
    assert host.commands == ["rm -f /home/u/async/j12.34"]


def test_a_connection_that_stays_away_ends_the_task_and_not_the_job() -> None:
    host = FakeHost([look(), LOST])
    with pytest.raises(AnsibleConnectionFailure) as caught:
        host.follow()
    assert str(caught.value) == (
        "recordio_pack on node-1: no connection for 15 min (Connection refused); the job is still running. Restore "
        "connectivity and rerun: the playbook waits for the job and uses its result"
    )
    assert 900 <= host.now < 910


def test_how_long_it_is_tried_again_is_a_variable() -> None:
    host = FakeHost([LOST])
    host.action._vars = {"imagenet_ops_unreachable_seconds": "60"}
    with pytest.raises(AnsibleConnectionFailure, match="no connection for 1 min"):
        host.follow()
    assert 60 <= host.now < 70


def test_an_answer_that_makes_no_sense_is_no_contact() -> None:
    host = FakeHost(["sudo: a password is required", look(answer={"changed": True})])
    assert host.follow()["from"] == "module"
    host = FakeHost(["sudo: a password is required"])
    with pytest.raises(
        AnsibleConnectionFailure, match="unexpected output of the poll command: sudo: a password is required"
    ):
        host.follow()


def test_looks_come_close_at_first_and_then_at_their_distance() -> None:
    host = FakeHost([look() for _ in range(100)] + [look(answer={"changed": False})])
    host.follow()
    assert 400 < host.now < 500


def test_a_job_that_ends_while_its_processes_are_counted_is_not_lost() -> None:
    assert FakeHost([look(alive=False, answer={"changed": False})]).follow()["from"] == "module"


# --- one look, by a real shell


def poll(job: Any) -> Any:
    output = subprocess.check_output(["sh", "-c", long_task.poll_command(job)], text=True)
    parts = output.split("\x1e")
    assert len(parts) == 4
    return long_task.parse_status(parts[1:])


@pytest.fixture
def job(tmp_path: Path) -> Any:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    number = f"j{os.getpid()}{time.monotonic_ns()}"
    (folder / f"{number}.1").write_text('{"started": true, "finished": false}')
    return long_task.Job(f"{number}.1", str(folder / f"{number}.1"), str(folder / "progress.json"), "")


def test_a_look_at_a_job_without_processes(job: Any) -> None:
    assert poll(job) == long_task.JobStatus(finished=False, alive=False, progress=None)


def test_a_look_at_a_job_that_runs(job: Any) -> None:
    with subprocess.Popen(["sleep", "60", "infinity", job.job_id.split(".")[0][1:]]) as other:
        assert poll(job).alive is False
        other.kill()
    script = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, job.job_id.split(".", maxsplit=1)[0]]) as process:
        os.utime(job.results_path, (1, 1))
        Path(job.progress_path).write_text(json.dumps(PROGRESS))
        assert poll(job) == long_task.JobStatus(finished=False, alive=True, progress=PROGRESS)
        os.utime(job.progress_path, (0, 0))
        assert poll(job).progress is None
        process.kill()


def test_a_look_at_a_job_that_has_answered(job: Any) -> None:
    Path(job.results_path).write_text('{"changed": true, "finished": false}')
    assert poll(job).finished is True
    Path(job.results_path).write_text("")
    assert poll(job).finished is False
    os.unlink(job.results_path)
    assert poll(job) == long_task.JobStatus(finished=False, alive=False, progress=None)


# --- words


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (PROGRESS, "train: 400/1,003 images, 39 %, 380 images/s, ETA 2 s"),
        ({**PROGRESS, "rate_per_second": 0.0, "eta_seconds": None}, "train: 400/1,003 images, 39 %"),
        ({**PROGRESS, "rate_per_second": 1.4}, "train: 400/1,003 images, 39 %, 1.4 images/s, ETA 2 s"),
        ({**PROGRESS, "done": 1003, "eta_seconds": 0}, "train: 1,003/1,003 images, 100 %, 380 images/s, ETA 0 s"),
        (
            {
                "stage": "ILSVRC2012_img_train.tar",
                "done": 12_345_678_901,
                "total": 147_897_477_120,
                "unit": "bytes",
                "rate_per_second": 45_200_000.0,
                "eta_seconds": 2999,
            },
            "ILSVRC2012_img_train.tar: 12.3/147.9 GB, 8 %, 45.2 MB/s, ETA 49 min 59 s",
        ),
        ({**PROGRESS, "done": 7, "total": 0}, "train: 7/0 images, 380 images/s, ETA 2 s"),
        ({**PROGRESS, "unit": "bytes"}, "train: 0.4/1.0 kB, 39 %, 380 bytes/s, ETA 2 s"),
    ],
)
def test_progress_in_words(progress: dict[str, Any], text: str) -> None:
    assert long_task.describe_progress(progress, details=True) == text


def test_without_details_there_are_numbers_alone() -> None:
    text = long_task.describe_progress(PROGRESS, details=False)
    assert text == "400/1,003 images, 39 %, 380 images/s, ETA 2 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (18_060, "5 h 1 min"), (428_400, "4 d 23 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert long_task.duration(seconds) == text


@given(
    done=st.integers(0, 10**14),
    more=st.integers(0, 10**14),
    unit=st.sampled_from(["bytes", "images", "files"]),
    rate=st.floats(0, 1e12),
    eta=st.none() | st.integers(0, 10**9),
)
def test_any_progress_has_a_short_line(done: int, more: int, unit: str, rate: float, eta: int | None) -> None:
    progress = {
        "stage": "x",
        "done": done,
        "total": done + more,
        "unit": unit,
        "rate_per_second": rate,
        "eta_seconds": eta,
    }
    text = long_task.describe_progress(progress, details=True)
    assert "\n" not in text
    assert len(text) < 120
    percent = re.search(r", (\d+) %", text)
    if percent:
        assert (int(percent[1]) == 100) == (more == 0)


def test_lines_keep_their_distance_and_say_something_new() -> None:
    now = 0.0
    reporter = long_task.Reporter("", 5, lambda: now)
    shown = []
    for second in range(30):
        now = float(second)
        done = min(second, 11)
        shown.append((second, reporter.line({**PROGRESS, "done": done}, details=True)))
    assert [(second, line.split(",")[0]) for second, line in shown if line] == [
        (0, "train: 0/1"),
        (5, "train: 5/1"),
        (10, "train: 10/1"),
        (15, "train: 11/1"),
    ]
    assert reporter.line(None, details=True) == ""
