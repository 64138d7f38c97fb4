"""Runs modules on localhost, each in a process forked off one that has imported boto3 and read the models of services.

That is most of what such a module does: the model of EC2 alone is 3 MB of JSON. The module itself and what it imports
of Ansible come from its payload, as ever.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import shlex
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

SERVICES = ("ec2", "iam", "kms", "s3", "sts")


def read_models() -> None:
    """Import boto3 and read the models of services for this process and all that are forked off it."""
    import boto3
    from botocore.loaders import JSONFileLoader, Loader

    # Each session reads what it needs again, and lists the folders of 400 services.
    JSONFileLoader.load_file = _once(JSONFileLoader.load_file)
    Loader.list_available_services = _once(Loader.list_available_services)
    session = boto3.session.Session("none", "none", region_name="us-east-1")
    for service in SERVICES:
        session.client(service)


def _once(read: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method with a memory that all objects of its class share, for they are alike."""
    known: dict[Any, Any] = {}

    def remembered(reader: Any, *arguments: str, **named: str) -> Any:
        key = (arguments, *named.items())
        if key not in known:
            known[key] = read(reader, *arguments, **named)
        return known[key]

    return remembered


class LocalModules:
    """The process that modules are forked off; it ends with the one that made this and those forked off that."""

    def __init__(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # An address that the kernel chooses, of no file.
        self._listener.bind(b"")
        self._listener.listen(64)
        self._address = self._listener.getsockname()
        living, self._life = os.pipe()
        if os.fork() == 0:
            os.close(self._life)
            with open(os.devnull, "r+b") as nothing:
                os.dup2(nothing.fileno(), 0)
                os.dup2(nothing.fileno(), 1)
            self._serve(living)
            os._exit(0)
        os.close(living)
        self._listener.close()

    def install(self) -> None:
        """Let Ansible's local connection run a module here, and all else as ever."""
        local: Any = importlib.import_module("ansible.plugins.connection.local")
        run_command = local.Connection.exec_command

        def exec_command(
            connection: Any, cmd: str, in_data: bytes | None = None, sudoable: bool = True
        ) -> tuple[int, bytes, bytes]:
            # Another user, Python or environment is part of the command.
            if in_data and shlex.split(cmd) == ["/bin/sh", "-c", f"{sys.executable} && sleep 0"]:
                return self.run(in_data)
            done: tuple[int, bytes, bytes] = run_command(connection, cmd, in_data=in_data, sudoable=sudoable)
            return done

        local.Connection.exec_command = exec_command

    def run(self, source: bytes) -> tuple[int, bytes, bytes]:
        """Run Python source in the environment of this process; return exit status, output and error output."""
        files = [os.fdopen(os.memfd_create(name), "w+b") for name in ("in", "out", "error")]
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server, files[0], files[1], files[2]:
            files[0].write(source)
            files[0].seek(0)
            server.connect(self._address)
            request = json.dumps([str(Path.cwd()), {**os.environ}]).encode()
            socket.send_fds(server, [request], [file.fileno() for file in files])
            server.recv(16)
            # Without an answer it was killed.
            status = server.recv(16)
            output = [Path(f"/proc/self/fd/{file.fileno()}").read_bytes() for file in files[1:]]
            return int(status) if status else -signal.SIGKILL, output[0], output[1]

    def _serve(self, living: int) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        gc.freeze()
        listening = self._listener.fileno()
        while living not in select.select([listening, living], [], [])[0]:
            connection = self._listener.accept()[0]
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(living)
                self._listener.close()
                _be_python(connection)
            connection.close()


def _be_python(connection: socket.socket) -> None:
    """Do what Python does where its program comes from its input, and tell the exit status; never return."""
    status = 1
    try:
        request, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        connection.send(b"begins")  # raises BrokenPipeError where who asked was killed meanwhile
        folder, environment = json.loads(request)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.setsid()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [""]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(sys.stdin.buffer.read(), "<stdin>", "exec"), vars(main))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it is, the process ends here
        traceback.print_exc()
    finally:
        # What Python does at its end, but for the work of freeing what ends with the process.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):  # who asked may have been killed
            connection.send(str(status).encode())
        os._exit(status)
