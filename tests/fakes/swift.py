"""OpenStack Swift with its S3 layer on loopback: a server that checks what moto lets pass, digests and credentials.

One replica on one device, all servers of one process each. `bin/setup strict-s3` installs it; settings are those of
Swift's "SAIO" guide, cut down to what S3 needs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / ".venv-strict-s3" / "bin"
ACCESS_KEY = "imagenet:ops"
SECRET_KEY = "only-for-tests"
START_SECONDS_MAX = 60
SERVERS = ("account", "container", "object")

SWIFT_CONF = """\
[swift-hash]
swift_hash_path_prefix = imagenet
swift_hash_path_suffix = ops
[swift-constraints]
min_part_size = 1
"""
STORAGE_CONF = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
devices = {folder}/devices
mount_check = false
swift_dir = {folder}
user = {user}
workers = 0
log_name = {name}
log_address = {folder}/log
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
PROXY_CONF = """\
[DEFAULT]
bind_ip = {address}
bind_port = {port}
swift_dir = {folder}
user = {user}
workers = 0
log_address = {folder}/log
[pipeline:main]
pipeline = catch_errors listing_formats bulk s3api tempauth slo versioned_writes symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_imagenet_ops = only-for-tests .admin
[filter:slo]
use = egg:swift#slo
[filter:symlink]
use = egg:swift#symlink
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
allow_object_versioning = true
"""


def is_installed() -> bool:
    """Say whether `bin/setup strict-s3` has made the environment."""
    return (PROGRAMS / "swift-proxy-server").exists()


class Swift:
    """A context manager: the servers run in it, with all that they write in ``folder``; S3 is at ``url``."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self._folder = folder
        self._address = address
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ports = dict(zip(("proxy", *SERVERS), _free_ports(1 + len(SERVERS)), strict=True))
        self.url = f"http://{address}:{self._ports['proxy']}"

    def __enter__(self) -> Swift:  # noqa: PYI034
        (self._folder / "devices" / "d1").mkdir(parents=True)
        (self._folder / "swift.conf").write_text(SWIFT_CONF)
        user = {"folder": self._folder, "user": _user()}
        try:
            for name in SERVERS:
                self._make_ring(name)
                conf = self._folder / f"{name}.conf"
                conf.write_text(STORAGE_CONF.format(name=name, port=self._ports[name], **user))
                self._start([str(PROGRAMS / f"swift-{name}-server"), str(conf)])
            conf = self._folder / "proxy.conf"
            conf.write_text(PROXY_CONF.format(address=self._address, port=self._ports["proxy"], **user))
            self._start([str(PROGRAMS / "swift-proxy-server"), str(conf)])
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def client(self, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> Any:
        """Return a boto3 client, in path style."""
        return boto3.client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.url,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=Config(s3={"addressing_style": "path"}),
        )

    def _make_ring(self, name: str) -> None:
        builder = str(self._folder / f"{name}.builder")
        program = str(PROGRAMS / "swift-ring-builder")
        device = f"r1z1-127.0.0.1:{self._ports[name]}/d1"
        for step in (["create", "4", "1", "0"], ["add", device, "1"], ["rebalance"]):
            subprocess.run([program, builder, *step], check=True, capture_output=True)

    def _start(self, command: list[str]) -> None:
        with (self._folder / "output").open("ab") as output:
            self._processes.append(
                subprocess.Popen(
                    command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
                )
            )

    def _wait(self) -> None:
        """Wait until all ports answer; raises RuntimeError with what the servers said where they do not."""
        end = time.monotonic() + START_SECONDS_MAX
        for name, port in self._ports.items():
            address = self._address if name == "proxy" else "127.0.0.1"
            while not _answers(address, port):
                dead = [process.args for process in self._processes if process.poll() is not None]
                if dead or time.monotonic() > end:
                    said = (self._folder / "output").read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"Swift does not start ({name}; ended: {dead}):\n{said}")
                time.sleep(0.05)


def _user() -> str:
    return "root" if os.geteuid() == 0 else os.environ.get("USER", "nobody")


def _answers(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
