"""Backs up in processes that a test may kill (SIGKILL) at any moment.

They are forked off one that has imported everything and does nothing else (`serve`), so that each costs milliseconds;
`Backups` starts that one and talks to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import ansible.module_utils

ROOT = Path(__file__).resolve().parent.parent.parent
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, s3_client  # noqa: E402 (needs the path above)
from ansible.module_utils.imagenet_ops.backup import backup, upload  # noqa: E402 (likewise)

from tests.fakes.s3_server import BUCKET  # noqa: E402 (likewise)

PART_BYTES = upload.MIB
SHARD_BYTES = 3 * PART_BYTES // 2


def back_up(root: str, endpoint_url: str, *trees: str) -> dict[str, object]:
    """Back up ``root``, and ``trees`` of it, in parts of 1 MiB and shards of 1.5."""
    bucket = Bucket(s3_client("us-east-1", endpoint_url, 8, "path"), BUCKET)
    engine = backup.Backup(
        bucket,
        backup.make_plan(root),
        f"{root}/.state",
        workers=4,
        part_size_bytes=PART_BYTES,
        trees=trees,
        shard_bytes=SHARD_BYTES,
    )
    return engine.run(check_mode=False)


class Backups:
    """A context manager that backs up in processes, one after the other, which may be killed from other threads."""

    def __init__(self) -> None:
        self._started = threading.Event()
        self._pid = 0

    def __enter__(self) -> Backups:  # noqa: PYI034
        command = [sys.executable, "-m", "tests.fakes.backup_once"]
        self._server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.communicate()
        assert self._server.returncode == 0

    def run(self, root: Path, endpoint_url: str, *trees: str) -> bool:
        """Call `back_up` and return whether it was killed; otherwise it must have succeeded."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._started.clear()
        self._server.stdin.write(json.dumps([str(root), endpoint_url, *trees]) + "\n")
        self._server.stdin.flush()
        self._pid = int(self._server.stdout.readline())
        self._started.set()
        status = int(self._server.stdout.readline())
        assert status in (0, signal.SIGKILL)
        return status != 0

    def kill(self) -> None:
        """Kill the process that backs up, where it still runs."""
        self._started.wait()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def runs(self) -> bool:
        """Return whether the process that backs up is there, killed or not."""
        self._started.wait()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, 0)
            return True
        return False


def serve() -> None:
    """Read the arguments of `back_up`, a line of JSON each; answer with its process's number and exit status."""
    vars(upload)["LEAST_PART_BYTES"] = PART_BYTES  # S3 takes no parts below 5 MiB; smaller ones are quicker
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                back_up(*json.loads(line))
            except BaseException:  # noqa: BLE001 - whatever it is, the child ends here
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        sys.stdout.write(f"{os.waitpid(child, 0)[1]}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
