"""Attached volumes inside a host: the node, the stable link and the udev record that a Nitro instance would have.

There is no udevd in a host, so the lab writes what it would: a record in /run/udev/data, which lsblk reads, and links
in /dev/disk. `DeviceWatch` renews them when a program has written to the device, as udev's own watch does.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from lab.hosts import Host
from lab.pool import filesystem_tags

MODEL = "Amazon Elastic Block Store"
IN_CLOSE_WRITE = 0x00000008  # linux/inotify.h
IN_IGNORED = 0x00008000  # the watched node is gone
_EVENT = struct.Struct("iIII")  # struct inotify_event: watch, mask, cookie, length of the name
_libc = ctypes.CDLL(None, use_errno=True)


def serial(volume_id: str) -> str:
    """Return the NVMe serial number of a volume: its id without the dash, as on AWS."""
    return volume_id.replace("-", "")


def link_name(volume_id: str) -> str:
    """Return the stable name of a volume's device below /dev/disk/by-id."""
    return f"nvme-{MODEL.replace(' ', '_')}_{serial(volume_id)}"


def udev_record(volume_id: str, tags: dict[str, str]) -> str:
    """Return the text of a record in /run/udev/data for a volume with the filesystem ``tags`` of blkid."""
    properties = {
        "ID_SERIAL": f"{MODEL}_{serial(volume_id)}",
        "ID_SERIAL_SHORT": serial(volume_id),
        "ID_MODEL": MODEL,
        **tags,
    }
    lines = [f"S:disk/by-id/{link_name(volume_id)}", "I:1"]
    if "ID_FS_UUID" in tags:
        lines.append(f"S:disk/by-uuid/{tags['ID_FS_UUID']}")
    return "\n".join([*lines, *(f"E:{name}={value}" for name, value in sorted(properties.items())), "V:1"]) + "\n"


def node_of(host: Host, volume_id: str) -> Path:
    """Return the device node of an attached volume in ``host``."""
    number = next(number for number, held in host.devices.items() if held == volume_id)
    return host.root / f"dev/nvme{number}n1"


def add_device(host: Host, volume_id: str, loop: str) -> Path:
    """Show the volume on ``loop`` in ``host`` under the first free NVMe name; return the path of its node."""
    host.devices[host.free_device_number()] = volume_id
    node = node_of(host, volume_id)
    os.mknod(node, stat.S_IFBLK | 0o660, os.stat(loop).st_rdev)
    node.chmod(0o660)
    (host.root / "dev/disk/by-id" / link_name(volume_id)).symlink_to(f"../../{node.name}")
    refresh(host, volume_id, loop)
    return node


def remove_device(host: Host, volume_id: str) -> None:
    """Take the volume's node, links and record out of ``host``."""
    node = node_of(host, volume_id)
    _record(host, node).unlink(missing_ok=True)
    for link in (host.root / "dev/disk").glob("*/*"):
        if os.readlink(link) == f"../../{node.name}":
            link.unlink()
    node.unlink(missing_ok=True)
    host.devices = {number: held for number, held in host.devices.items() if held != volume_id}


def refresh(host: Host, volume_id: str, loop: str) -> None:
    """Write the udev record and the by-uuid link for what is on the device now."""
    node = node_of(host, volume_id)
    tags = filesystem_tags(loop)
    by_uuid = host.root / "dev/disk/by-uuid"
    for link in by_uuid.iterdir():
        if os.readlink(link) == f"../../{node.name}":
            link.unlink()
    if "ID_FS_UUID_ENC" in tags:
        link = by_uuid / tags["ID_FS_UUID_ENC"]
        link.unlink(missing_ok=True)  # a clone on the same host has the same UUID; the last one wins, as with udev
        link.symlink_to(f"../../{node.name}")
    _record(host, node).write_text(udev_record(volume_id, tags))


def is_mounted(host: Host, loop: str) -> bool:
    """Whether ``host`` has the device of ``loop`` mounted."""
    device = os.stat(loop).st_rdev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = Path(f"/proc/{host.init.pid}/mountinfo").read_text()
    return any(line.split()[2] == number for line in mounts.splitlines())


def _record(host: Host, node: Path) -> Path:
    device = os.stat(node).st_rdev
    return host.root / f"run/udev/data/b{os.major(device)}:{os.minor(device)}"


class DeviceWatch:
    """Calls back when a program in a host has closed a device that it had open for writing (mkfs, tune2fs, ...)."""

    def __init__(self, changed: Callable[[str], None]) -> None:
        """Call ``changed`` with the id of the volume whose device was written to."""
        self._changed = changed
        self._inotify = _libc.inotify_init1(os.O_CLOEXEC)
        self._volumes: dict[int, str] = {}
        threading.Thread(target=self._read, name="device-watch", daemon=True).start()

    def add(self, node: Path, volume_id: str) -> None:
        """Watch ``node``; the watch ends by itself when the node is removed."""
        watch = _libc.inotify_add_watch(self._inotify, os.fsencode(node), IN_CLOSE_WRITE)
        self._volumes[watch] = volume_id

    def _read(self) -> None:
        while True:
            events = os.read(self._inotify, 4096)
            seen = {_EVENT.unpack_from(events, offset)[:2] for offset in range(0, len(events), _EVENT.size)}
            for watch, mask in seen:
                if mask & IN_CLOSE_WRITE and watch in self._volumes:
                    self._changed(self._volumes[watch])
            for watch, mask in seen:
                if mask & IN_IGNORED:
                    self._volumes.pop(watch, None)
