"""Runs our code in a process that is killed (SIGKILL) at the n-th time it changes something on disk.

A kill in the middle of a write leaves half of it. `main` is what runs in that process, `run_killed` starts it.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ansible.module_utils.imagenet_ops import fetch, layout, transfer, tree_writer

ROOT = Path(__file__).resolve().parents[2]
# Kills nothing: what is returned then is the number of changes.
NEVER = 10**9
_CHANGES = ("write", "pwrite", "fsync", "fdatasync", "replace", "rename", "unlink", "mkdir", "ftruncate")


def run_killed(entry: str, arguments: dict[str, Any], kill_at: int) -> int | None:
    """Call ``entry`` ("fetch" or "lay_out") and kill it at its ``kill_at``-th change; None when that happened.

    Where it ended before that, the number of changes that it made in all.
    """
    job = json.dumps({"entry": entry, "arguments": arguments, "kill_at": kill_at})
    program = "import tests.conftest, tests.fakes.killed as killed; killed.main()"
    done = subprocess.run([sys.executable, "-c", program, job], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


class _Changes:
    """Counts changes of the disk, from all threads, and dies at one of them."""

    def __init__(self, kill_at: int) -> None:
        self.count = 0
        self._kill_at = kill_at
        self._lock = threading.Lock()

    def wrapped(self, name: str) -> Any:
        original = getattr(os, name)

        @functools.wraps(original)
        def call(*arguments: Any, **keywords: Any) -> Any:
            with self._lock:
                self.count += 1
                if self.count < self._kill_at:
                    dies = False
                elif self.count == self._kill_at:
                    dies = True
                else:
                    signal.pause()  # another thread is dying
            if not dies:
                return original(*arguments, **keywords)
            if name in ("write", "pwrite"):
                descriptor, content, *rest = arguments
                original(descriptor, bytes(content)[: len(content) // 2], *rest)
            elif self._kill_at % 2:
                original(*arguments, **keywords)
            os.kill(os.getpid(), signal.SIGKILL)
            return None

        return call


def main() -> None:
    """Do the job in the first argument, in small steps, so that there is something to interrupt."""
    job = json.loads(sys.argv[1])
    transfer._SHORTEST_SPAN_BYTES = 64 * 1024
    transfer._READ_BYTES = 16 * 1024
    vars(fetch)["Policy"] = functools.partial(transfer.Policy, checkpoint_seconds=0, report_seconds=0.001)
    layout._JOURNAL_SECONDS = 0
    tree_writer._BATCH_FILES = 2
    changes = _Changes(job["kill_at"])
    for name in _CHANGES:
        setattr(os, name, changes.wrapped(name))
    arguments = job["arguments"]
    if job["entry"] == "fetch":
        fetch.fetch(fetch.FetchRequest(**{**arguments, "wanted": fetch.Wanted(**arguments["wanted"])}))
    else:
        layout.lay_out(layout.LayoutRequest(**arguments))
    sys.stdout.write(str(changes.count))
