"""What the API's words do: files, loop devices and hosts behind the volumes, snapshots and instances of the API."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lab import devices, hosts, network
from lab.config import METADATA_ADDRESS, Paths
from lab.hosts import Host
from lab.metadata import MetadataServer
from lab.network import Address
from lab.pool import Pool, attach_loop, detach_loop

log = logging.getLogger("lab")


@dataclass(frozen=True)
class Launch:
    """What an instance starts with, as RunInstances said it."""

    instance_id: str
    name: str
    address: Address
    public_key: str
    user_data: bytes | None


class DataPlane(Protocol):
    """What the API needs of the world below it. Volume, snapshot and instance ids are those of the API."""

    def create_volume(self, volume_id: str, size_gib: int, snapshot_id: str | None) -> None: ...
    def delete_volume(self, volume_id: str) -> None: ...
    def resize_volume(self, volume_id: str, size_gib: int) -> None: ...
    def create_snapshot(self, snapshot_id: str, volume_id: str) -> None: ...
    def copy_snapshot(self, snapshot_id: str, source_id: str) -> None: ...
    def delete_snapshot(self, snapshot_id: str) -> None: ...
    def attach(self, volume_id: str, instance_id: str) -> None: ...
    def detach(self, volume_id: str) -> None: ...
    def is_mounted(self, volume_id: str) -> bool: ...
    def launch(self, launch: Launch) -> None: ...
    def stop(self, instance_id: str) -> None: ...
    def start(self, instance_id: str, address: Address) -> None: ...
    def terminate(self, instance_id: str) -> None: ...


class NoDataPlane:
    """Nothing below the API: for tests of the API alone, which need neither root nor Linux."""

    def create_volume(self, volume_id: str, size_gib: int, snapshot_id: str | None) -> None:
        pass

    def delete_volume(self, volume_id: str) -> None:
        pass

    def resize_volume(self, volume_id: str, size_gib: int) -> None:
        pass

    def create_snapshot(self, snapshot_id: str, volume_id: str) -> None:
        pass

    def copy_snapshot(self, snapshot_id: str, source_id: str) -> None:
        pass

    def delete_snapshot(self, snapshot_id: str) -> None:
        pass

    def attach(self, volume_id: str, instance_id: str) -> None:
        pass

    def detach(self, volume_id: str) -> None:
        pass

    def is_mounted(self, volume_id: str) -> bool:
        return False

    def launch(self, launch: Launch) -> None:
        pass

    def stop(self, instance_id: str) -> None:
        pass

    def start(self, instance_id: str, address: Address) -> None:
        pass

    def terminate(self, instance_id: str) -> None:
        pass


@dataclass
class _Machine:
    """An instance's side of the world, from launch to termination; ``host`` is None while it does not run."""

    launch: Launch
    address: Address
    namespace: Path
    folder: Path
    host: Host | None = None
    metadata: MetadataServer | None = None


class LinuxDataPlane:
    """The real thing. Calls about one volume or one instance come one at a time: the API's lock sees to it."""

    def __init__(self, paths: Paths, metadata_of: Callable[[str], MetadataServer]) -> None:
        self._paths = paths
        self._pool = Pool(paths.pool)
        self._metadata_of = metadata_of
        self._machines: dict[str, _Machine] = {}
        self._loops: dict[str, str] = {}
        self._attached: dict[str, str] = {}
        self._lock = threading.RLock()
        self.host_keys: dict[str, str] = {}
        self._watch = devices.DeviceWatch(self._refresh)

    def create_volume(self, volume_id: str, size_gib: int, snapshot_id: str | None) -> None:
        self._pool.create_volume(volume_id, size_gib, snapshot_id)

    def delete_volume(self, volume_id: str) -> None:
        self._pool.delete_volume(volume_id)

    def resize_volume(self, volume_id: str, size_gib: int) -> None:
        self._pool.resize_volume(volume_id, size_gib, self._loops.get(volume_id))

    def create_snapshot(self, snapshot_id: str, volume_id: str) -> None:
        self._pool.create_snapshot(snapshot_id, volume_id)

    def copy_snapshot(self, snapshot_id: str, source_id: str) -> None:
        self._pool.copy_snapshot(snapshot_id, source_id)

    def delete_snapshot(self, snapshot_id: str) -> None:
        self._pool.delete_snapshot(snapshot_id)

    def attach(self, volume_id: str, instance_id: str) -> None:
        with self._lock:
            self._loops[volume_id] = attach_loop(self._pool.volume(volume_id))
            self._attached[volume_id] = instance_id
            host = self._host(instance_id)
            if host is not None:  # else it finds the volume when it boots
                self._show(volume_id, host)

    def detach(self, volume_id: str) -> None:
        with self._lock:
            instance_id = self._attached.pop(volume_id, None)
            if instance_id is None:
                return
            host = self._host(instance_id)
            if host is not None:
                devices.remove_device(host, volume_id)
            detach_loop(self._loops.pop(volume_id))

    def is_mounted(self, volume_id: str) -> bool:
        instance_id = self._attached.get(volume_id)
        host = self._host(instance_id) if instance_id else None
        return host is not None and devices.is_mounted(host, self._loops[volume_id])

    def launch(self, launch: Launch) -> None:
        machine = _Machine(
            launch,
            launch.address,
            self._paths.namespaces / launch.instance_id,
            self._pool.hosts / launch.instance_id,
        )
        self._machines[launch.instance_id] = machine
        self.host_keys[launch.instance_id] = hosts.write_files(
            machine.folder, self._paths, launch.name, launch.address, launch.public_key, launch.user_data
        )
        self._start(machine, run_user_data=launch.user_data is not None)

    def start(self, instance_id: str, address: Address) -> None:
        machine = self._machines[instance_id]
        machine.address = address
        self._start(machine, run_user_data=False)

    def stop(self, instance_id: str) -> None:
        machine = self._machines[instance_id]
        with self._lock:
            machine.host = None
        if machine.metadata is not None:
            machine.metadata.stop()
        if machine.namespace.exists():
            hosts.shut_down(machine.namespace)
            network.disconnect(instance_id, machine.address)
            network.delete_namespace(machine.namespace)

    def terminate(self, instance_id: str) -> None:
        self.stop(instance_id)
        machine = self._machines[instance_id]
        self.host_keys.pop(instance_id, None)
        # What the host wrote may be gigabytes of files; nobody waits for their deletion.
        threading.Thread(target=shutil.rmtree, args=(machine.folder,), kwargs={"ignore_errors": True}).start()

    def _start(self, machine: _Machine, run_user_data: bool) -> None:
        instance_id, address = machine.launch.instance_id, machine.address
        network.connect(machine.namespace, instance_id, address)
        machine.metadata = self._metadata_of(instance_id)
        machine.metadata.serve(network.listen(machine.namespace, METADATA_ADDRESS, 80))
        host = hosts.boot(
            machine.folder, machine.namespace, instance_id, machine.launch.name, address, run_user_data
        )
        with self._lock:
            machine.host = host
            for volume_id, holder in self._attached.items():
                if holder == instance_id:
                    self._show(volume_id, host)
        log.info("host %s (%s) is up", instance_id, address.public or address.private)

    def _show(self, volume_id: str, host: Host) -> None:
        node = devices.add_device(host, volume_id, self._loops[volume_id])
        self._watch.add(node, volume_id)

    def _refresh(self, volume_id: str) -> None:
        with self._lock:
            host = self._host(self._attached.get(volume_id, ""))
            if host is not None:  # else it was detached meanwhile, or the host stopped
                devices.refresh(host, volume_id, self._loops[volume_id])

    def _host(self, instance_id: str) -> Host | None:
        """The running host of an instance; None while it is not launched yet, or stopped."""
        machine = self._machines.get(instance_id)
        return machine.host if machine else None
