"""Runs a module that takes hours, shows its progress, and survives a lost connection.

The action plugins of the long modules are this class. The module runs on its host as an asynchronous job; every few
seconds one shell command reads the progress that the module writes to ``<state_dir>/<module>.progress.json`` and checks
whether the job is alive. A lost connection is retried while the job continues. If the controller is lost, the next run
of the playbook waits for the job (by the module's lock) and finds its work completed.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

# Longer than a download of the whole data set over a slow line takes; after that the job is killed.
JOB_LIMIT_SECONDS = 30 * 24 * 3600
# Polls are frequent at first, so that a short job is not delayed by more than a quarter of its time.
FIRST_POLL_SECONDS = 0.3
POLL_GROWTH = 1.25
# Settings that a user can change by variables.
DEFAULTS = {
    "imagenet_ops_poll_seconds": 5.0,  # the longest time between two polls of the job
    "imagenet_ops_progress_seconds": 5.0,  # the shortest time between two lines of progress
    "imagenet_ops_unreachable_seconds": 900.0,  # how long a lost connection is retried
}
# Separates the parts of the output of a poll; it cannot occur in JSON.
SEPARATOR = "\x1e"
# Keys of the asynchronous job that are not part of the module's result.
JOB_KEYS = ("ansible_job_id", "started", "finished", "results_file")


class Job(NamedTuple):
    """An asynchronous job on a host: its id, the files of its result and progress, and its folder."""

    job_id: str
    results_path: str
    progress_path: str
    folder: str


class JobStatus(NamedTuple):
    """The status of a job: whether it has finished, whether its processes are alive, and the module's progress."""

    finished: bool
    alive: bool
    progress: dict[str, Any] | None


class ActionModule(ActionBase):
    """Runs the module of the same name as a job and prints its progress."""

    _sleep: Callable[[float], None] = staticmethod(time.sleep)
    _clock: Callable[[], float] = staticmethod(time.monotonic)

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the module. In check mode, and unless it is to wait, it runs as any other module."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        self._module = self._task.action.rsplit(".", 1)[-1]
        self._host = str(self._vars.get("inventory_hostname", "host"))
        # A module that only reads waits only where a task says so.
        waits = boolean(self._task.args.get("wait", not self._module.endswith("_info")), strict=False)
        if self._task.check_mode or not waits:
            return self._execute_module(task_vars=self._vars)
        # The job deletes this folder at its end, so Ansible does not, not even if the job could not be started.
        folder = self._make_tmp_path()
        started = self._start()
        if "ansible_job_id" not in started:
            self._remove_tmp_path(folder)
            return {**started, "changed": False}
        answer = self._follow(self._job(started, folder))
        for key in JOB_KEYS:
            answer.pop(key, None)
        # Facts that starting the job discovered, such as the Python interpreter.
        if "ansible_facts" in started:
            answer.setdefault("ansible_facts", started["ansible_facts"])
        return answer

    def _start(self) -> dict[str, Any]:
        """Start the job and return its id and files, or the failure."""
        self._task.async_val = JOB_LIMIT_SECONDS
        try:
            return self._execute_module(task_vars=self._vars, wrap_async=True)
        finally:
            self._task.async_val = 0

    def _job(self, started: dict[str, Any], folder: str) -> Job:
        state_dir = self._remote_expand_user(str(self._task.args.get("state_dir", "")))
        progress_path = os.path.join(state_dir, f"{self._module}.progress.json")
        return Job(started["ansible_job_id"], started["results_file"], progress_path, folder)

    def _follow(self, job: Job) -> dict[str, Any]:
        """Poll ``job`` until it has finished, reconnecting as needed, and return the result of the module."""
        reporter = Reporter(self._line_start(), self._setting("imagenet_ops_progress_seconds"), self._clock)
        delay_seconds = FIRST_POLL_SECONDS
        last_contact, connected = self._clock(), True
        while True:
            self._sleep(delay_seconds)
            delay_seconds = min(delay_seconds * POLL_GROWTH, self._setting("imagenet_ops_poll_seconds"))
            try:
                status = self._poll(job)
                if status.finished:
                    return self._collect(job)
            except AnsibleConnectionFailure as error:
                self._tolerate(error, last_contact, first=connected)
                connected = False
                continue
            last_contact, connected = self._clock(), True
            if not status.alive:
                return self._lost(job)
            line = reporter.line(status.progress, details=not self._task.no_log)
            if line:
                self._display.display(line)

    def _setting(self, name: str) -> float:
        return float(self._templar.template(self._vars.get(name, DEFAULTS[name])))

    def _line_start(self) -> str:
        return f"{self._host} | {self._module} | "

    def _poll(self, job: Job) -> JobStatus:
        answer = self._low_level_execute_command(poll_command(job))
        parts = str(answer.get("stdout", "")).split(SEPARATOR)
        if len(parts) != 4:
            reason = str(answer.get("stderr") or answer.get("stdout") or "no output").strip()
            raise AnsibleConnectionFailure(f"unexpected output of the poll command: {reason}")
        return parse_status(parts[1:])

    def _tolerate(self, error: AnsibleConnectionFailure, last_contact: float, *, first: bool) -> None:
        """Tolerate a lost connection up to a limit, since the job does not need it. Raises AnsibleConnectionFailure."""
        limit_seconds = self._setting("imagenet_ops_unreachable_seconds")
        if self._clock() - last_contact >= limit_seconds:
            raise AnsibleConnectionFailure(
                f"{self._module} on {self._host}: no connection for {duration(limit_seconds)} ({error}); the job is "
                "still running. Restore connectivity and rerun: the playbook waits for the job and uses its result"
            ) from None  # Ansible would add the text of the cause again
        if first:
            self._display.display(f"{self._line_start()}connection lost, job still running; reconnecting")
        self._display.vvv(f"{self._line_start()}{error}")

    def _collect(self, job: Job) -> dict[str, Any]:
        """Return the result of a finished job and delete its file."""
        directory, name = os.path.split(job.results_path)
        request = {"jid": name, "_async_dir": directory}
        answer = self._execute_module("ansible.legacy.async_status", request, task_vars=self._vars)
        self._remove_answer(job)
        if "cmd" in answer:
            # Ansible's wrapper could not start the module ("outdata"), or its output had no result ("data").
            reason = answer["msg"] if "outdata" in answer else answer.get("stderr") or "killed, or out of memory"
            return self._failure(f"the job exited without a result ({str(reason).strip()})")
        return answer

    def _lost(self, job: Job) -> dict[str, Any]:
        self._remove_answer(job)
        self._remove_tmp_path(job.folder, force=True)
        return self._failure("the job exited without a result (killed, out of memory, or the host was rebooted)")

    def _failure(self, why: str) -> dict[str, Any]:
        todo = "Check the host's memory and dmesg, then rerun: completed work is kept"
        return {"failed": True, "changed": False, "msg": f"{self._module} on {self._host}: {why}. {todo}"}

    def _remove_answer(self, job: Job) -> None:
        self._low_level_execute_command(f"rm -f {shlex.quote(job.results_path)}")


class Reporter:
    """Makes lines of progress, at most one in ``interval_seconds``, and none without news."""

    def __init__(self, line_start: str, interval_seconds: float, clock: Callable[[], float]) -> None:
        self.line_start = line_start
        self.interval_seconds = interval_seconds
        self.clock = clock
        self._last_line = ""
        self._last_time = -float("inf")

    def line(self, progress: dict[str, Any] | None, *, details: bool) -> str:
        """Return the line to print for ``progress`` now, or ""; without ``details`` it holds numbers alone."""
        if progress is None or self.clock() - self._last_time < self.interval_seconds:
            return ""
        line = self.line_start + describe_progress(progress, details=details)
        if line == self._last_line:
            return ""
        self._last_line, self._last_time = line, self.clock()
        return line


def poll_command(job: Job) -> str:
    """Return the shell command that prints the status of ``job``.

    It prints, each after a separator: "dead" if no process of the job is alive; the file of its result; the progress,
    if the module wrote it since the job began. The processes are checked first: a job that exits in between has written
    its result by the time that it is read. The job's id is written so that this command does not match itself.
    """
    job_id = job.job_id.split(".", 1)[0]
    results = shlex.quote(job.results_path).replace(job_id, f"{job_id[0]}''{job_id[1:]}")
    progress = shlex.quote(job.progress_path)
    separator = "printf '\\036'"
    lives = f"grep -qs '[{job_id[0]}]{job_id[1:]}' /proc/[0-9]*/cmdline"
    return (
        f"{separator}; if [ -r /proc/self/cmdline ] && ! {lives}; then echo dead; fi; "
        f"{separator}; cat {results} 2>/dev/null; "
        f"{separator}; if [ {progress} -nt {results} ]; then cat {progress}; fi"
    )


def parse_status(parts: list[str]) -> JobStatus:
    """Parse the three parts of the output of `poll_command`."""
    processes, results, progress = parts
    answer = read_object(results)
    # Ansible's wrapper writes "started" until the result of the module replaces it.
    finished = answer is not None and "started" not in answer
    return JobStatus(finished, processes.strip() != "dead", read_object(progress))


def read_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object in ``text``, or None if there is none yet."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def describe_progress(progress: dict[str, Any], *, details: bool) -> str:
    """Describe progress (see core.progress): ``train: 400/1,003 images, 39 %, 380 images/s, ETA 2 s``."""
    done, total, unit = progress["done"], progress["total"], progress["unit"]
    rate, eta = progress["rate_per_second"], progress["eta_seconds"]
    scale, total_unit = byte_unit(total) if unit == "bytes" else (1, unit)
    parts = [f"{number(done, scale)}/{number(total, scale)} {total_unit}"]
    if total:
        parts.append(f"{100 * done // total} %")
    if rate:
        scale, rate_unit = byte_unit(rate) if unit == "bytes" else (1, unit)
        parts.append(f"{number(rate, scale)} {rate_unit}/s")
    if eta is not None:
        parts.append(f"ETA {duration(eta)}")
    return (f"{progress['stage']}: " if details else "") + ", ".join(parts)


def byte_unit(size_bytes: float) -> tuple[int, str]:
    """Return the decimal unit for ``size_bytes``: its size in bytes, and its name."""
    for power, name in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if size_bytes >= 1000**power:
            return 1000**power, name
    return 1, "bytes"


def number(value: float, scale: int) -> str:
    """Format ``value`` in units of ``scale``: with separators, and one decimal unless it is a count or large."""
    scaled = value / scale
    whole = scale == 1 and (scaled >= 10 or scaled == int(scaled))
    return f"{scaled:,.0f}" if whole else f"{scaled:,.1f}"


def duration(seconds: float) -> str:
    """Format a time in its two largest units: ``2 s``, ``3 min 20 s``, ``5 h 1 min``, ``4 d 23 h``."""
    rest = round(seconds)
    parts: list[str] = []
    for size, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, size)
        if count or (name == "s" and not parts):
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])
