"""The world below the API on Linux: sparse files, loop devices, and hosts in namespaces."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import devices, hosts, network
from lab.config import METADATA_ADDRESS, Paths
from lab.dataplane import DataPlane, Launch
from lab.hosts import Host
from lab.lazy_files import LazyFiles
from lab.metadata import MetadataServer
from lab.network import Address, Namespace
from lab.pool import Pool, attach_loop, hold_loop, let_go_of_loop, release_loop
from lab.warmth import Warmth

log = logging.getLogger("lab")


@dataclass
class _Machine:
    """An instance from launch to termination; ``host`` is None while it does not run."""

    launch: Launch
    address: Address
    folder: Path
    namespace: Namespace | None = None
    metadata: MetadataServer | None = None
    host: Host | None = None


class LinuxDataPlane(DataPlane):
    """Calls about one volume or one instance come one at a time: the API's lock sees to it.

    ``metadata_of`` gives the metadata service of an instance, ``lazy_files`` shows volumes that load their blocks
    lazily, None where none does. ``host_keys`` has the public SSH key of every host.
    """

    def __init__(
        self, paths: Paths, metadata_of: Callable[[str], MetadataServer], lazy_files: LazyFiles | None
    ) -> None:
        self._paths = paths
        self._pool = Pool(paths.pool)
        self._metadata_of = metadata_of
        self._lazy_files = lazy_files
        self._machines: dict[str, _Machine] = {}
        self._loops: dict[str, str] = {}
        # Loop devices on lazy files, kept open: such a device goes when nobody has it open, after a crash too.
        self._held: dict[str, int] = {}
        self._attached: dict[str, str] = {}
        self._lock = threading.RLock()
        self.host_keys: dict[str, str] = {}
        self._watch = devices.DeviceWatch(self._refresh)

    def create_volume(self, volume_id: str, size_gib: int, snapshot_id: str | None) -> None:
        """Make a sparse file, or a clone of the snapshot's."""
        self._pool.create_volume(volume_id, size_gib, snapshot_id)

    def resize_volume(self, volume_id: str, size_gib: int) -> None:
        """Grow the file, and the loop device on it."""
        self._pool.resize_volume(volume_id, size_gib, self._loops.get(volume_id))

    def snapshot_blocks(self, snapshot_id: str, size_gib: int) -> Sequence[int]:  # noqa: ARG002 - the file knows it
        """Read from the file where it has no holes."""
        return self._pool.snapshot_blocks(snapshot_id)

    def delete_volume(self, volume_id: str) -> None:
        """Delete the file."""
        self._pool.delete_volume(volume_id)

    def create_snapshot(self, snapshot_id: str, volume_id: str) -> None:
        """Clone the volume's file as it is, also while it is attached."""
        self._pool.create_snapshot(snapshot_id, volume_id)

    def copy_snapshot(self, snapshot_id: str, source_id: str) -> None:
        """Clone the snapshot's file."""
        self._pool.copy_snapshot(snapshot_id, source_id)

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete the file."""
        self._pool.delete_snapshot(snapshot_id)

    def attach(self, volume_id: str, instance_id: str, warmth: Warmth | None) -> None:
        """Put the volume on a loop device, and the device into the host where it runs; else it finds it at its boot."""
        with self._lock:
            if warmth is not None and self._lazy_files is not None:
                self._lazy_files.add(volume_id, self._pool.volume(volume_id), warmth)
                self._loops[volume_id], self._held[volume_id] = hold_loop(self._lazy_files.path(volume_id))
            else:
                self._loops[volume_id] = attach_loop(self._pool.volume(volume_id))
            self._attached[volume_id] = instance_id
            host = self._host(instance_id)
            if host is not None:
                self._show(volume_id, host)

    def detach(self, volume_id: str) -> None:
        """Take the device out of the host and release it, when a host that was killed has unmounted it."""
        with self._lock:
            instance_id = self._attached.pop(volume_id, None)
            if instance_id is None:
                return
            host = self._host(instance_id)
            if host is not None:
                devices.remove_device(host, volume_id)
            held = self._held.pop(volume_id, None)
            if held is None or self._lazy_files is None:
                release_loop(self._loops.pop(volume_id))
            else:
                let_go_of_loop(self._loops.pop(volume_id), held)
                self._lazy_files.remove(volume_id)

    def is_mounted(self, volume_id: str) -> bool:
        """Look into the mounts of the host."""
        with self._lock:
            host = self._host(self._attached.get(volume_id, ""))
            return host is not None and devices.is_mounted(host, self._loops[volume_id])

    def launch(self, launch: Launch) -> None:
        """Write the host's own files and boot it."""
        folder = self._pool.hosts / launch.instance_id
        machine = _Machine(launch, launch.address, folder)
        self._machines[launch.instance_id] = machine
        self.host_keys[launch.instance_id] = hosts.write_files(
            folder, self._paths, launch.name, launch.address, launch.public_key, launch.user_data
        )
        self._start(machine, run_user_data=launch.user_data is not None)

    def stop(self, instance_id: str) -> None:
        """Kill all of the host's processes; its mounts and its network go with them."""
        machine = self._machines[instance_id]
        with self._lock:
            host, machine.host = machine.host, None
        if host is not None:
            hosts.shut_down(host)
        if machine.metadata is not None:
            machine.metadata.stop()
            machine.metadata = None
        if machine.namespace is not None:
            network.disconnect(instance_id, machine.address)
            machine.namespace.close()
            machine.namespace = None

    def start(self, instance_id: str, address: Address) -> None:
        """Boot the host again on the files that it left."""
        machine = self._machines[instance_id]
        machine.address = address
        self._start(machine, run_user_data=False)

    def terminate(self, instance_id: str) -> None:
        """Stop the host and delete its files, in the background, for they may be many."""
        self.stop(instance_id)
        self.host_keys.pop(instance_id, None)
        folder = self._machines[instance_id].folder
        threading.Thread(target=shutil.rmtree, args=[folder], kwargs={"ignore_errors": True}, daemon=True).start()

    def _start(self, machine: _Machine, run_user_data: bool) -> None:
        instance_id, address = machine.launch.instance_id, machine.address
        machine.namespace = Namespace()
        network.connect(machine.namespace, instance_id, address)
        machine.metadata = self._metadata_of(instance_id)
        machine.metadata.serve(machine.namespace.listen(METADATA_ADDRESS, 80))
        host = hosts.boot(machine.folder, machine.namespace, machine.launch.name, run_user_data)
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
        """Return the running host of an instance; None while it is not launched yet, or stopped."""
        machine = self._machines.get(instance_id)
        return machine.host if machine else None
