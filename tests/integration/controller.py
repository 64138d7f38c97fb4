"""Runs ansible-playbook many times, each in a process forked off one that has imported it and does nothing else.

So a run starts in a third of the time, and what Ansible packs for its hosts, a file for each module, is packed for the
first run that needs it and not for each. Their modules on localhost are forked as well (local_modules.py). The runs are
like any other in all else: a process, its output, its end.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
# Python's own is 700, for programs of any size.
GARBAGE_OBJECTS = 100_000


class Controller:
    """A context manager that runs ansible-playbook in ``folder`` with ``environment``, one after the other."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment

    def __enter__(self) -> Controller:  # noqa: PYI034
        self._server = subprocess.Popen(
            [sys.executable, "-P", __file__],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.communicate()

    def run(self, arguments: Sequence[str], environment: Mapping[str, str], seconds_max: float) -> tuple[int, str]:
        """Return exit status and output of a run with ``environment`` added; raise TimeoutError when it is late."""
        assert self._server.stdout is not None
        with tempfile.NamedTemporaryFile("r") as output:
            self.begin(arguments, environment, output.name)
            if not select.select([self._server.stdout], [], [], seconds_max)[0]:
                self._server.kill()
                raise TimeoutError(f"{' '.join(arguments)} runs for {seconds_max} s:\n{output.read()}")
            return self.end(), output.read()

    def begin(self, arguments: Sequence[str], environment: Mapping[str, str], output: str) -> None:
        """Begin a run that prints to the file ``output``; `end` must follow."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([output, {**environment}, *arguments]) + "\n")
        self._server.stdin.flush()

    def end(self) -> int:
        """Wait for the end of the run and return its exit status, negative for a signal."""
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())

    @contextlib.contextmanager
    def halted(self) -> Iterator[list[int]]:
        """Start no module on localhost meanwhile; gives the processes of the run and of those modules."""
        modules, *runs = _children(self._server.pid)
        os.kill(modules, signal.SIGSTOP)
        try:
            yield [*runs, *_children(modules)]
        finally:
            os.kill(modules, signal.SIGCONT)


def _children(pid: int) -> list[int]:
    """Return the children of a process, the oldest first."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def serve() -> None:
    """Read where to print to, environment and arguments of a run, a line of JSON each; answer with the exit status."""
    sys.path.insert(0, ROOT)
    from tests.integration.local_modules import LocalModules, read_models

    sys.path.remove(ROOT)
    # For all runs: the inventory and the lookups need them, too.
    read_models()
    modules = LocalModules()
    # After the fork, for what a module finds imported shall not be Ansible's.
    from ansible.cli.playbook import PlaybookCLI

    modules.install()
    # Else each run would look for garbage in all that was imported, and again in what it reads and never drops.
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS)
    for line in sys.stdin:
        output, environment, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _redirect(output)
                os.environ.update(environment)
                PlaybookCLI.cli_executor(["ansible-playbook", *arguments])
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:  # noqa: BLE001 - whatever it is, the child ends here
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                # Without what is to be done at the end of the process that it was forked off.
                os._exit(status)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _redirect(output: str) -> None:
    with open(output, "wb") as file, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


if __name__ == "__main__":
    serve()
