"""Bringing the lab up and taking it down again, after a crash too: nothing of it may stay on the machine."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.config import Config
from botocore.exceptions import WaiterError

from lab import hosts, network, pool
from lab.config import (
    API_HOST_NAME,
    API_PORT,
    BRIDGE_ADDRESS,
    CONTROLLER_ACCESS_KEY,
    CONTROLLER_SECRET_KEY,
    GPU_INSTANCE_TYPE,
    IMAGE_ID,
    KEY_PAIR,
    LOOPBACK,
    MARKER,
    ORIGIN_HOST_NAME,
    ORIGIN_PORT,
    REGION,
    ZONES,
    Paths,
    Settings,
)
from lab.lazy_files import missing_for_lazy_files
from lab.machine import (
    LabError,
    Process,
    give_to_user,
    missing_kernel_features,
    missing_programs,
    run,
    wait_until,
    write_for_user,
)

API_URL = f"http://{LOOPBACK}:{API_PORT}"
ADDRESSES = (LOOPBACK, BRIDGE_ADDRESS)
SERVER_START_SECONDS = 60.0
CLEANING_SECONDS = 15.0
ORIGIN_USER = "lab"
PARALLEL_LAUNCHES = 8
# The mounts of the server are private, and end with it and its hosts.
OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")


@dataclass(frozen=True)
class Marker:
    """What is noted outside the checkout about the one lab of this machine, so that any checkout can find or clear it.

    ``highest_loop`` is the highest number of a loop device before the lab came, ``processes`` are the server and the
    origin, in this order.
    """

    directory: Path
    highest_loop: int
    processes: tuple[Process, ...] = ()

    @classmethod
    def read(cls) -> Marker | None:
        """Return the marker of this machine, or None where no lab was."""
        try:
            value = json.loads(MARKER.read_text())
        except (FileNotFoundError, ValueError):
            return None
        processes = tuple(Process.from_json(process) for process in value["processes"])
        return cls(Path(value["directory"]), int(value["highest_loop"]), processes)

    def write(self) -> None:
        """Note this, in place of what was noted."""
        value = {
            "directory": str(self.directory),
            "highest_loop": self.highest_loop,
            "processes": [process.to_json() for process in self.processes],
        }
        temporary = MARKER.with_suffix(".new")
        temporary.write_text(json.dumps(value))
        temporary.replace(MARKER)

    def is_running(self) -> bool:
        """Return whether the lab's server, the first of the processes, runs."""
        return bool(self.processes) and self.processes[0].is_alive()


def up(paths: Paths, host_count: int, settings: Settings, source: Path | None) -> None:
    """Start the lab with ``host_count`` GPU hosts; where it runs already, say so and leave it.

    The origin serves the archives in ``source``, or synthetic ones.
    """
    with _one_at_a_time():
        marker = Marker.read()
        if marker is not None and marker.is_running():
            if marker.directory != paths.directory:
                raise LabError(f"The lab of another checkout runs here: make -C {marker.directory.parent} lab-down")
            if paths.state.exists():  # else its start was cut off
                print(f"The lab is already up: {API_URL}")
                return
        _check_machine(settings)
        clean(marker.directory if marker else paths.directory, marker)
        clean(paths.directory, None)
        _check_addresses()
        try:
            _start(paths, host_count, settings, source)
        except BaseException:
            clean(paths.directory, Marker.read())
            raise
    print(f"The lab is up: {API_URL}, {host_count} GPU hosts, ssh -F {_relative(paths.ssh_config)} gpu-1")


def down(paths: Paths) -> None:
    """Stop the lab and remove all that it made, whether it runs, crashed or was partly removed."""
    with _one_at_a_time():
        marker = Marker.read()
        if marker is not None and marker.directory != paths.directory and marker.is_running():
            raise LabError(f"The lab of another checkout runs here: make -C {marker.directory.parent} lab-down")
        clean(paths.directory, marker)
    print("The lab is down.")


def status(paths: Paths) -> bool:
    """Print what runs; return whether this checkout's lab does."""
    marker = Marker.read()
    if marker is None or not marker.is_running() or marker.directory != paths.directory:
        print("The lab is down.")
        return False
    print(f"The lab is up: {API_URL}")
    for reservation in client("ec2").describe_instances()["Reservations"]:
        for instance in reservation["Instances"]:
            name = next((tag["Value"] for tag in instance.get("Tags", []) if tag["Key"] == "Name"), "-")
            print(
                f"  {name:<16} {instance['InstanceId']}  {instance['Placement']['AvailabilityZone']}"
                f"  {instance['State']['Name']:<13} {instance.get('PublicIpAddress', '')}"
            )
    return True


def client(service: str) -> Any:
    """Return a boto3 client of the lab for the controller."""
    return boto3.client(
        service,
        endpoint_url=API_URL,
        region_name=REGION,
        aws_access_key_id=CONTROLLER_ACCESS_KEY,
        aws_secret_access_key=CONTROLLER_SECRET_KEY,
        # The lab is on loopback, whatever proxy the user's environment names.
        config=Config(proxies={}, retries={"mode": "standard", "total_max_attempts": 10}),
    )


def _start(paths: Paths, host_count: int, settings: Settings, source: Path | None) -> None:
    marker = Marker(paths.directory, pool.highest_loop())
    paths.directory.mkdir(exist_ok=True)
    marker.write()
    _write_key(paths)
    device = pool.create_pool(paths)
    network.create_bridge()
    options = [f"--delay={settings.delay_seconds}"]
    options += [f"--throttle-rate={settings.throttle_rate}", f"--throttle-burst={settings.throttle_burst}"]
    options += [f"--lazy-mib-s={settings.lazy_mib_s}"]
    options += [f"--initialization-quota-mib-s={settings.initialization_quota_mib_s}"]
    options += [f"--fast-restore-hour-seconds={settings.fast_restore_hour_seconds}"]
    options += [f"--listen={address}:{API_PORT}" for address in ADDRESSES]
    options += [f"--pool-device={device}"] if device else []
    server = _spawn(paths, paths.log, "lab", "serve", *options, prefix=OWN_MOUNTS)
    Marker(marker.directory, marker.highest_loop, (server,)).write()
    origin = _start_origin(paths, source)
    processes = (server, origin)
    Marker(marker.directory, marker.highest_loop, processes).write()
    _wait_for(paths.log, server, API_PORT)
    _wait_for(paths.origin_log, origin, ORIGIN_PORT)
    _launch(paths, host_count)
    state = {
        "endpoint_url": API_URL,
        "host_endpoint_url": f"http://{API_HOST_NAME}:{API_PORT}",
        "origin_url": f"http://{ORIGIN_HOST_NAME}:{ORIGIN_PORT}",
        "region": REGION,
        "zones": list(ZONES),
        "access_key": CONTROLLER_ACCESS_KEY,
        "secret_key": CONTROLLER_SECRET_KEY,
        "image_id": IMAGE_ID,
        "hosts": [f"gpu-{number}" for number in range(1, host_count + 1)],
        "delay_seconds": settings.delay_seconds,
        "server": server.to_json(),
        "origin": origin.to_json(),
        "highest_loop": marker.highest_loop,
    }
    write_for_user(paths.state, json.dumps(state, indent=1) + "\n")
    give_to_user(paths.directory, paths.private_key, paths.public_key, paths.log, paths.origin_log)
    if device is None:
        print("The kernel has no XFS: snapshots and restored volumes are full copies, slow and as large as their data.")


def _spawn(paths: Paths, log: Path, module: str, *arguments: str, prefix: tuple[str, ...] = ()) -> Process:
    """Start ``python -m module`` in a session of its own, from the checkout, its output in ``log``."""
    with open(log, "wb") as file:
        started = subprocess.Popen(
            [*prefix, sys.executable, "-B", "-m", module, *arguments],
            cwd=paths.checkout,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return Process.of(started.pid)


def _start_origin(paths: Paths, source: Path | None) -> Process:
    from lab import archives  # noqa: PLC0415 - it brings OpenCV and SciPy, which nothing else here needs

    cache = paths.checkout / ".cache" / "lab-archives"
    try:
        description = archives.prepare(cache, source)
    except FileNotFoundError as error:
        raise LabError(f"The lab has no archives to serve: {error}") from error
    give_to_user(cache.parent, cache, *cache.iterdir())
    password = secrets.token_urlsafe(16)
    config = {
        "directory": description["directory"],
        "addresses": [[address, ORIGIN_PORT] for address in ADDRESSES],
        "username": ORIGIN_USER,
        "password": password,
        "bytes_per_second_per_connection": 0,
    }
    write_for_user(paths.origin_config, json.dumps(config, indent=1) + "\n", mode=0o600)
    variables = inventory_variables(description, ORIGIN_USER, password)
    text = "# Written by the lab for its own archives and origin server.\n" + yaml.safe_dump(variables, sort_keys=False)
    write_for_user(paths.inventory_archives, text, mode=0o600)
    return _spawn(paths, paths.origin_log, "lab.origin", "--config", str(paths.origin_config))


def inventory_variables(description: dict[str, Any], username: str, password: str) -> dict[str, Any]:
    """Return the variables for the playbooks about the archives that `archives.prepare` described."""
    urls = f"http://{ORIGIN_HOST_NAME}:{ORIGIN_PORT}"
    return {
        "dataset_overrides": {
            "archives": {
                name: {"urls": [f"{urls}/{file['name']}"], "size_bytes": file["size_bytes"], "md5": file["md5"]}
                for name, file in description["files"].items()
            },
            "splits": {
                "train": {
                    "images": description["train_images"],
                    "class_images_min": description["class_images_min"],
                    "class_images_max": description["class_images_max"],
                },
                "validation": {
                    "images": description["validation_images"],
                    "class_images_min": description["validation_class_images_min"],
                    "class_images_max": description["validation_class_images_max"],
                },
            },
            "classes": description["classes"],
        },
        "dataset_archives_username": username,
        "dataset_archives_password": password,
    }


def _wait_for(log: Path, process: Process, port: int) -> None:
    """Wait until ``process`` answers on ``port`` of the bridge, the last address that it opens."""

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((BRIDGE_ADDRESS, port), timeout=1):
            return True
        return not process.is_alive()

    if not wait_until(answers, SERVER_START_SECONDS) or not process.is_alive():
        last = log.read_text().strip().splitlines()[-1:] or ["it said nothing"]
        raise LabError(f"A server of the lab did not start: {last[0]} (more in {log})")


def _launch(paths: Paths, count: int) -> None:
    """Import the key and launch the GPU hosts, in the zones by turns."""
    ec2 = client("ec2")
    ec2.import_key_pair(KeyName=KEY_PAIR, PublicKeyMaterial=paths.public_key.read_bytes())

    def launch(number: int) -> None:
        ec2.run_instances(
            ImageId=IMAGE_ID,
            InstanceType=GPU_INSTANCE_TYPE,
            KeyName=KEY_PAIR,
            MinCount=1,
            MaxCount=1,
            Placement={"AvailabilityZone": ZONES[(number - 1) % len(ZONES)]},
            MetadataOptions={"HttpTokens": "required"},
            TagSpecifications=[
                {
                    "ResourceType": "instance",
                    "Tags": [{"Key": "Name", "Value": f"gpu-{number}"}, {"Key": "Role", "Value": "gpu"}],
                }
            ],
        )

    with ThreadPoolExecutor(PARALLEL_LAUNCHES) as launches:
        list(launches.map(launch, range(1, count + 1)))
    if count:
        waiter = ec2.get_waiter("instance_running")
        try:
            waiter.wait(WaiterConfig={"Delay": 1, "MaxAttempts": 120})
        except WaiterError as error:
            raise LabError(f"Some hosts did not boot; see {paths.log}") from error


def _write_key(paths: Paths) -> None:
    if not paths.private_key.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "imagenet-ops lab", "-f", paths.private_key)


def _check_machine(settings: Settings) -> None:
    missing = missing_programs() or missing_kernel_features()
    missing += missing_for_lazy_files() if settings.lazy_mib_s else []
    if missing:
        raise LabError(f"This machine lacks what the lab needs: {', '.join(missing)}")


def _check_addresses() -> None:
    conflict = network.network_conflict()
    if conflict:
        raise LabError(f"The lab cannot use its network: {conflict}")
    for port in (API_PORT, ORIGIN_PORT):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                raise LabError(f"The lab needs port {port} on {LOOPBACK}, which another program uses") from error


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    # The folder of the marker is there on every machine, so no file is left behind for the lock's sake.
    folder = os.open(MARKER.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise LabError("Another command is starting or stopping the lab; rerun when it has finished") from None
    finally:
        os.close(folder)


def clean(directory: Path, marker: Marker | None) -> None:
    """Remove whatever a lab with state in ``directory`` has made, as much of it as is there.

    Logs and the key pair stay for the user. With ``marker`` of that lab its servers are stopped first.
    """
    if marker is not None and marker.directory == directory:
        for process in marker.processes:
            process.stop(patience_seconds=2)
    paths = Paths(directory.parent)
    hosts.kill_all(paths)
    if marker is not None:
        network.delete_bridge()
    # The devices can be detached when the last process that sees the pool has exited.
    _release_loops(paths)
    if marker is not None:
        pool.remove_loops_above(marker.highest_loop)
    for folder in (paths.pool, paths.lazy, paths.temporary):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (paths.pool_image, paths.state, paths.ssh_config, paths.known_hosts, paths.images, paths.origin_config):
        file.unlink(missing_ok=True)
    paths.inventory_archives.unlink(missing_ok=True)
    if marker is not None and marker.directory == directory:
        MARKER.unlink(missing_ok=True)


def _release_loops(paths: Paths) -> None:
    def released() -> bool:
        loops = pool.loops_of(paths)
        for loop in loops:
            with contextlib.suppress(LabError):  # detached since it was listed
                pool.detach_loop(loop)
        return not loops

    if not wait_until(released, CLEANING_SECONDS):
        raise LabError(f"Loop devices of the lab are still in use: {', '.join(pool.loops_of(paths))}")


def _relative(path: Path) -> str:
    return os.path.relpath(path)
