"""Runs our code in processes that are killed (SIGKILL) at the n-th time they change something on disk.

A kill in the middle of a write leaves half of it. The processes are forked off one that has imported everything and
does nothing else (`serve`), so that a kill costs milliseconds; `Kills` starts that one and talks to it.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import boto3
import scipy.io  # noqa: F401 (imported once, for all the processes)
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket
from ansible.module_utils.imagenet_ops.backup import restore, shard_stream, tree_restore
from ansible.module_utils.imagenet_ops.backup.request import RestoreRequest
from ansible.module_utils.imagenet_ops.dataset import copy
from ansible.module_utils.imagenet_ops.download import engine, fetch, ranges
from ansible.module_utils.imagenet_ops.layout import extract, move, tree_writer
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest

ROOT = Path(__file__).resolve().parents[2]
# Kills nothing: what is returned then is the number of changes.
NEVER = 10**9
_ANY_CREDENTIALS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
_CHANGES = (
    "write",
    "pwrite",
    "fsync",
    "fdatasync",
    "replace",
    "rename",
    "unlink",
    "mkdir",
    "ftruncate",
    "posix_fallocate",
)


class Kills:
    """A context manager that runs jobs and kills them."""

    def __enter__(self) -> Kills:  # noqa: PYI034
        program = "import tests.conftest, tests.fakes.killed as killed; killed.serve()"
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.communicate()
        assert self._server.returncode == 0

    def run(self, entry: str, arguments: dict[str, Any], kill_at: int) -> int | None:
        """Call ``entry`` (fetch, copy, restore, lay_out), kill it at its ``kill_at``-th change; None when it was.

        Where it ended before that, the number of changes that it made in all.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps({"entry": entry, "arguments": arguments, "kill_at": kill_at}) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        if answer["signal"] == signal.SIGKILL:
            return None
        assert answer["output"].isdigit(), answer
        return int(answer["output"])


def serve() -> None:
    """Read jobs, a line of JSON each; run each in a process of its own; answer with how it ended and what it said."""
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.write(writer, _output(json.loads(line)).encode())
            os._exit(0)
        os.close(writer)
        with open(reader, encoding="utf-8") as output:
            said = output.read()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(json.dumps({"signal": status & 0x7F, "output": said}) + "\n")
        sys.stdout.flush()


def _output(job: dict[str, Any]) -> str:
    real_write = os.write
    try:
        count = str(_do(job))
    except Exception:  # noqa: BLE001 (told to whoever waits)
        count = traceback.format_exc()
    os.write = real_write
    return count


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
                dies = self.count == self._kill_at
                if self.count > self._kill_at:
                    signal.pause()  # another thread is dying
            if not dies:
                return original(*arguments, **keywords)
            try:
                if name in ("write", "pwrite"):
                    descriptor, content, *rest = arguments
                    original(descriptor, bytes(content)[: len(content) // 2], *rest)
                elif self._kill_at % 2:
                    original(*arguments, **keywords)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
            return None

        return call


def _do(job: dict[str, Any]) -> int:
    """Do ``job`` in small steps, so that there is something to interrupt; return the number of changes."""
    vars(ranges).update(_SHORTEST_SPAN_BYTES=64 * 1024)
    vars(engine).update(_READ_BYTES=16 * 1024)
    for module in (fetch, restore):
        vars(module)["Policy"] = functools.partial(engine.Policy, checkpoint_seconds=0, report_seconds=0.001)
    vars(restore).update(_SMALL_BYTES=64 * 1024, _RECORD_INTERVAL_SECONDS=0.0)
    vars(shard_stream).update(_RANGE_BYTES=64 * 1024, _READ_BYTES=16 * 1024)
    vars(tree_restore).update(_READ_BYTES=16 * 1024, _LARGE_FILE_BYTES=48 * 1024)
    vars(extract)["_CHECKPOINT_SECONDS"] = 0
    vars(tree_writer)["_BATCH_FILES"] = 2
    vars(copy).update(_BLOCK_BYTES=16 * 1024, _SYNC_BYTES=48 * 1024)
    # A kill leaves the page cache alone, and a real sync would wait for whatever else the machine writes.
    unwritten = os.open(__file__, os.O_RDONLY)
    for module in (extract, move, tree_restore, tree_writer):
        vars(module)["sync_filesystem"] = lambda _path: os.fsync(unwritten)
    changes = _Changes(job["kill_at"])
    for name in _CHANGES:
        setattr(os, name, changes.wrapped(name))
    arguments = job["arguments"]
    if job["entry"] == "fetch":
        fetch.fetch(fetch.FetchRequest(**{**arguments, "wanted": fetch.Wanted(**arguments["wanted"])}))
    elif job["entry"] == "restore":
        client = boto3.client("s3", "us-east-1", endpoint_url=arguments["endpoint_url"], **_ANY_CREDENTIALS)
        request = RestoreRequest(**arguments["request"])
        restore.Restore(Bucket(client, arguments["bucket"]), request).run(check_mode=False)
    elif job["entry"] == "copy":
        copy.copy_dataset(**arguments, check_mode=False)
    else:
        extract.lay_out(LayoutRequest(**arguments))
    return changes.count
