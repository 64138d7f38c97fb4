"""Packing in a process of its own that ends at a given write, sync or rename (killed_packing.py)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fakes import killed_packing


class Killer:
    """Packs in a process that is killed at a given operation; see killed_packing.py."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def run(self, source: Path, root: Path, workers: int, kill_at: int = 0, **settings: Any) -> bool:
        """Pack a tree or an archive and say whether that was killed; 0 lets it run to its end."""
        split = {"source" if source.is_dir() else "archive": str(source)}
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps([split, str(root), workers, settings, kill_at]) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        assert status in (0, signal.SIGKILL)
        return status != 0


@contextlib.contextmanager
def killer_process() -> Iterator[Killer]:
    """Hold the process that packs."""
    command = [sys.executable, killed_packing.__file__]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # a process with threads must not fork
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        yield Killer(server)
