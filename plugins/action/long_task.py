"""Runs a module of hours so that people see how far it is, and so that it outlives the connection.

The action plugins of the long modules are this class. The module runs on its host as an asynchronous job; every few
seconds one shell command reads the progress that the module writes to ``<state_dir>/<module>.progress.json`` and looks
whether the job still lives. A connection that is lost is tried again while the job goes on. Should the controller be
lost, the next run of the playbook waits for the job (by the module's lock) and finds its work done.
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

# The job may take as long as a download of the whole data set over a slow line; after that it is killed.
JOB_LIMIT_SECONDS = 30 * 24 * 3600
# Looks come close together at first, so that a short job is not kept waiting for by more than a quarter of its time.
FIRST_POLL_SECONDS = 0.3
POLL_GROWTH = 1.25
# Settings that a user may change as variables.
DEFAULTS = {
    "imagenet_ops_poll_seconds": 5.0,  # the longest time between two looks at the job
    "imagenet_ops_progress_seconds": 5.0,  # the shortest time between two lines of progress
    "imagenet_ops_unreachable_seconds": 900.0,  # how long a lost connection is tried again
}
# What separates the parts of the answer to a look; it occurs in no JSON.
SEPARATOR = "\x1e"
# Keys that belong to the asynchronous job and not to the module's answer.
JOB_KEYS = ("ansible_job_id", "started", "finished", "results_file")


class Job(NamedTuple):
    """An asynchronous job on a host: its id, the file of its answer, that of the module's progress, its own folder."""

    job_id: str
    results_path: str
    progress_path: str
    folder: str


class Look(NamedTuple):
    """What was seen of a job: whether it is at its end, whether its processes live, and the module's progress."""

    finished: bool
    alive: bool
    progress: dict[str, Any] | None


class ActionModule(ActionBase):
    """Runs the module of the same name as a job and prints its progress."""

    _sleep: Callable[[float], None] = staticmethod(time.sleep)
    _clock: Callable[[], float] = staticmethod(time.monotonic)

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's own answer; in check mode, and if it does not wait, the module runs as any other."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        self._module = self._task.action.rsplit(".", 1)[-1]
        self._host = str(self._vars.get("inventory_hostname", "host"))
        # A module that only reads waits only where a task says so.
        waits = boolean(self._task.args.get("wait", not self._module.endswith("_info")), strict=False)
        if self._task.check_mode or not waits:
            return self._execute_module(task_vars=self._vars)
        # The job removes this folder at its end, so Ansible takes no care of it, not even where no job came about.
        folder = self._make_tmp_path()
        started = self._start()
        if "ansible_job_id" not in started:
            self._remove_tmp_path(folder)
            return {**started, "changed": False}
        answer = self._follow(self._job(started, folder))
        for key in JOB_KEYS:
            answer.pop(key, None)
        # What starting the job found out about the host, such as its Python.
        if "ansible_facts" in started:
            answer.setdefault("ansible_facts", started["ansible_facts"])
        return answer

    def _start(self) -> dict[str, Any]:
        """Start the job and return what Ansible says of it, or its reason for not starting it."""
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
        """Look at ``job`` until it has ended, through lost connections, and return the module's answer."""
        reporter = Reporter(self._line_start(), self._setting("imagenet_ops_progress_seconds"), self._clock)
        delay_seconds = FIRST_POLL_SECONDS
        last_contact, connected = self._clock(), True
        while True:
            self._sleep(delay_seconds)
            delay_seconds = min(delay_seconds * POLL_GROWTH, self._setting("imagenet_ops_poll_seconds"))
            try:
                look = self._look(job)
                if look.finished:
                    return self._collect(job)
            except AnsibleConnectionFailure as error:
                self._bear(error, last_contact, first=connected)
                connected = False
                continue
            last_contact, connected = self._clock(), True
            if not look.alive:
                return self._lost(job)
            line = reporter.line(look.progress, details=not self._task.no_log)
            if line:
                self._display.display(line)

    def _setting(self, name: str) -> float:
        return float(self._templar.template(self._vars.get(name, DEFAULTS[name])))

    def _line_start(self) -> str:
        return f"{self._host} | {self._module} | "

    def _look(self, job: Job) -> Look:
        answer = self._low_level_execute_command(look_command(job))
        parts = str(answer.get("stdout", "")).split(SEPARATOR)
        if len(parts) != 4:
            reason = str(answer.get("stderr") or answer.get("stdout") or "no output").strip()
            raise AnsibleConnectionFailure(f"the host did not answer as it should: {reason}")
        return read_look(parts[1:])

    def _bear(self, error: AnsibleConnectionFailure, last_contact: float, *, first: bool) -> None:
        """Put up with a lost connection, up to a limit; the job does not need it."""
        limit_seconds = self._setting("imagenet_ops_unreachable_seconds")
        if self._clock() - last_contact >= limit_seconds:
            raise AnsibleConnectionFailure(
                f"{self._module} on {self._host}: no connection for {duration(limit_seconds)}: {error}. The job itself "
                "goes on. Mend the connection and run the playbook again: it waits for the job and finds its work done"
            ) from None  # Ansible would add the cause's text a second time
        if first:
            self._display.display(f"{self._line_start()}no connection; the job goes on, trying again")
        self._display.vvv(f"{self._line_start()}{error}")

    def _collect(self, job: Job) -> dict[str, Any]:
        """Return the answer of a finished job and remove its file."""
        directory, name = os.path.split(job.results_path)
        request = {"jid": name, "_async_dir": directory}
        answer = self._execute_module("ansible.legacy.async_status", request, task_vars=self._vars)
        self._remove_answer(job)
        if "cmd" in answer:
            # Ansible's wrapper could not start the module ("outdata"), or found no answer in what it printed ("data").
            reason = answer["msg"] if "outdata" in answer else answer.get("stderr") or "killed, or out of memory"
            return self._failure(f"its process ended without an answer ({str(reason).strip()})")
        return answer

    def _lost(self, job: Job) -> dict[str, Any]:
        self._remove_answer(job)
        self._remove_tmp_path(job.folder, force=True)
        return self._failure("the job is gone without an answer (killed, or the host was restarted)")

    def _failure(self, why: str) -> dict[str, Any]:
        todo = "Look at the host's memory and at dmesg, then run the playbook again: finished work is kept"
        return {"failed": True, "changed": False, "msg": f"{self._module} on {self._host}: {why}. {todo}"}

    def _remove_answer(self, job: Job) -> None:
        self._low_level_execute_command(f"rm -f {shlex.quote(job.results_path)}")


class Reporter:
    """Makes lines of progress, at most one in ``interval_seconds`` and none that says nothing new."""

    def __init__(self, line_start: str, interval_seconds: float, clock: Callable[[], float]) -> None:
        """Keep what every line begins with, and the clock that paces them."""
        self.line_start = line_start
        self.interval_seconds = interval_seconds
        self.clock = clock
        self._last_line = ""
        self._last_time = -float("inf")

    def line(self, progress: dict[str, Any] | None, *, details: bool) -> str:
        """Return the line to print for ``progress`` now, or ""; without ``details`` it holds numbers alone."""
        if progress is None or self.clock() - self._last_time < self.interval_seconds:
            return ""
        line = self.line_start + progress_text(progress, details=details)
        if line == self._last_line:
            return ""
        self._last_line, self._last_time = line, self.clock()
        return line


def look_command(job: Job) -> str:
    """Return the shell command that tells how ``job`` is.

    It prints, each after a separator: "dead" if no process of the job lives; the file of its answer; the progress, if
    the module wrote it since the job began. The processes are looked at first: a job that ends in between has written
    its answer by the time that it is read. The job's id is written so that this command does not find itself.
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


def read_look(parts: list[str]) -> Look:
    """Return what the three parts of the answer to `look_command` say."""
    processes, results, progress = parts
    answer = read_object(results)
    # The wrapper of Ansible writes "started" until the module's own answer takes the place.
    finished = answer is not None and "started" not in answer
    return Look(finished, processes.strip() != "dead", read_object(progress))


def read_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object in ``text``, or None where there is none yet."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def progress_text(progress: dict[str, Any], *, details: bool) -> str:
    """Return progress (see state.Progress) in words: ``train: 400/1,003 images, 39 %, 380 images/s, ETA 2 s``."""
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
    """Return the decimal unit that suits ``size_bytes``, and how many bytes it has."""
    for power, name in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if size_bytes >= 1000**power:
            return 1000**power, name
    return 1, "bytes"


def number(value: float, scale: int) -> str:
    """Return ``value`` in units of ``scale`` with separators, and one decimal unless it is a count or large."""
    scaled = value / scale
    whole = scale == 1 and (scaled >= 10 or scaled == int(scaled))
    return f"{scaled:,.0f}" if whole else f"{scaled:,.1f}"


def duration(seconds: float) -> str:
    """Return a time for people, in its two largest units: ``2 s``, ``3 min 20 s``, ``5 h 1 min``, ``4 d 23 h``."""
    rest = round(seconds)
    parts: list[str] = []
    for size, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, size)
        if count or (name == "s" and not parts):
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])
