"""Emulators of AWS on loopback, each a process of its own: plain moto, and ministack, which nobody of moto wrote.

ministack is installed by `bin/setup ministack`. By itself it would remove containers of the machine's Docker and
listen on a port for MQTT, so both are switched off. It checks credentials only where ``AUTH`` says so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from ansible.module_utils.imagenet_ops.aws.s3 import s3_client
from ansible.module_utils.imagenet_ops.ebs.jobs import CLIENT_CONFIG
from botocore.config import Config

ROOT = Path(__file__).resolve().parents[2]
MINISTACK = ROOT / ".venv-ministack" / "bin" / "ministack"
ACCOUNT = "123456789012"
REGION, OTHER_REGION = "us-east-1", "us-west-2"
ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "only-for-tests"
START_SECONDS_MAX = 60


@dataclass(frozen=True)
class Program:
    """What starts an emulator: its command and environment, made of the port that it is to listen on."""

    command: Callable[[int], list[str]]
    environment: Callable[[int], dict[str, str]]


PROGRAMS = {
    "ministack": Program(
        lambda _port: [str(MINISTACK)],
        lambda port: {
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "MINISTACK_ACCOUNT_ID": ACCOUNT,
            "AUTH": "true",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "DOCKER_HOST": "unix:///nonexistent",
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
        },
    ),
    "moto": Program(
        lambda port: [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], lambda _port: {}
    ),
}


def is_installed(name: str) -> bool:
    """Say whether the emulator can be started; moto is in the environment of the tests."""
    return name != "ministack" or MINISTACK.exists()


class Emulator:
    """A context manager: the server runs in it, and writes nothing but in ``folder``."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Emulator:  # noqa: PYI034
        program = PROGRAMS[self.name]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self._folder), "TMPDIR": str(self._folder)}
        with (self._folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                program.command(self._port),
                cwd=self._folder,
                env={**environment, **program.environment(self._port)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def s3(self, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> Any:
        """Return a client of S3, as the modules make it."""
        return s3_client(REGION, self.url, 8, "path", keys=(access_key, secret_key, ""))

    def client(
        self, service: str, region: str = REGION, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY
    ) -> Any:
        """Return a client of another service, with the settings of ebs_fleet but for the many retries."""
        settings = {**CLIENT_CONFIG, "retries": {"total_max_attempts": 1}}
        return boto3.client(
            service,
            region_name=region,
            endpoint_url=self.url,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=Config(**settings),
        )

    def _wait(self) -> None:
        """Wait until the port answers; raises RuntimeError with what the server said where it does not."""
        end = time.monotonic() + START_SECONDS_MAX
        while not _answers(self._port):
            if self._process.poll() is not None or time.monotonic() > end:
                said = (self._folder / "output").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{self.name} does not start:\n{said}")
            time.sleep(0.05)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
