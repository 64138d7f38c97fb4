"""A volume of a fleet mounted read-only on this host in one step: device, serial, fstab, mount, and proof of it.

The volumes of a fleet are copies of one filesystem with one UUID, so the device, and never the UUID, says which one is
meant. What else is mounted at the path is left alone, unless it is a volume that this one replaces; and that too is
left alone while programs have files of it open.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import fsync_directory
from ansible.module_utils.imagenet_ops.host.devices import (
    Host,
    Mount,
    device_number,
    is_held,
    link_path,
    missing_reason,
    read_signature,
    top_mount,
    wait_for_device,
)

# nofail: a host must boot without the volume; the time-out keeps it from waiting a minute and a half for it.
OPTIONS = ("ro", "nofail", "noatime", "x-systemd.device-timeout=30")
# A second copy of an XFS is refused while the first is mounted, unless its UUID is not looked at (xfs(5)).
OPTIONS_BY_FSTYPE = {"xfs": ("nouuid",)}
HOLDERS_SHOWN = 5


@dataclass(frozen=True)
class MountRequest:
    """What is to be mounted where.

    ``replaces`` are the volumes that may be unmounted from ``path``; ``disturb`` says that this may be done while
    programs have files of them open, which these then keep until they close them.
    """

    volume_id: str
    path: str
    fstype: str = "ext4"
    replaces: tuple[str, ...] = ()
    disturb: bool = False
    timeout_seconds: float = 120


def mount_volume(host: Host, request: MountRequest, *, check_mode: bool) -> dict[str, Any]:
    """Mount what ``request`` says and return the result of the module ebs_mount.

    Raises OpsError where the device does not appear or holds something else, and where the path is taken or in use.
    """
    link = link_path(host, request.volume_id)
    device = wait_for_device(host, request.volume_id, link, request.timeout_seconds)
    options = ",".join([*OPTIONS, *OPTIONS_BY_FSTYPE.get(request.fstype, ())])
    before = read_fstab(host)
    after = with_entry(before, f"{link} {request.path} {request.fstype} {options} 0 0")
    mounted = top_mount(host, request.path)
    is_mounted = mounted is not None and mounted.number == device_number(device) and "ro" in mounted.options
    if not is_mounted:
        _check_filesystem(host, request, device)
        _check_path(host, request, mounted)
    if not check_mode:
        if before != after:
            _write_fstab(host, after)
        if not is_mounted:
            _mount(host, request, link, options, mounted)
            _check_mounted(host, request, device)
    return {
        "changed": not is_mounted or before != after,
        "device": link,
        "released": bool(request.replaces) and all(_is_released(host, volume) for volume in request.replaces),
        "diff": {
            "before": _seen(before, mounted),
            "after": _seen(after, mounted if is_mounted else Mount("", request.path, ["ro"], link)),
        },
    }


def read_fstab(host: Host) -> str:
    """Return the host's fstab, "" where there is none."""
    with contextlib.suppress(FileNotFoundError), open(host.fstab_path, encoding="utf-8") as file:
        return file.read()
    return ""


def with_entry(fstab: str, entry: str) -> str:
    """Return ``fstab`` with ``entry`` in place of every line for the same mount point, else at the end.

    Comments and all other lines stay as they are, byte for byte.
    """
    point = entry.split()[1]
    lines: list[str] = []
    placed = False
    for line in fstab.splitlines(keepends=True):
        fields = line.split()
        if len(fields) < 2 or fields[0].startswith("#") or fields[1] != point:
            lines.append(line)
        elif not placed:
            lines.append(entry + "\n")
            placed = True
    if not placed:
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        lines.append(entry + "\n")
    return "".join(lines)


def holders(host: Host, point: str) -> list[str]:
    """Return the programs that have files open on the filesystem at ``point``, or work in it, as ``PID (name)``."""
    number = os.stat(point).st_dev
    found = []
    for process in sorted(filter(str.isdigit, os.listdir(host.proc_directory)), key=int):
        folder = os.path.join(host.proc_directory, process)
        with contextlib.suppress(OSError):  # it has ended meanwhile
            links = [os.path.join(folder, name) for name in ("cwd", "root", "exe")]
            links += [os.path.join(folder, "fd", name) for name in os.listdir(os.path.join(folder, "fd"))]
            if any(_device_of(path) == number for path in links):
                with open(os.path.join(folder, "comm"), encoding="utf-8") as file:
                    found.append(f"{process} ({file.read().strip()})")
    return found


def _device_of(path: str) -> int | None:
    try:
        return os.stat(path).st_dev
    except OSError:
        return None


def _check_filesystem(host: Host, request: MountRequest, device: str) -> None:
    signature = read_signature(host, device)
    if signature.fstype != request.fstype:
        holds = "is blank" if signature.blank else f"holds {signature.fstype or 'something'} and not {request.fstype}"
        raise OpsError(
            f"Volume {request.volume_id} ({link_path(host, request.volume_id)})",
            f"it {holds}: it was not touched",
            "Look at what the snapshot was made of, or name the filesystem that it holds",
        )


def _check_path(host: Host, request: MountRequest, mounted: Mount | None) -> None:
    """Raise OpsError unless nothing is mounted at the path, or an older volume that may go now."""
    if mounted is None:
        return
    replaceable = {_number_of(host, volume) for volume in (request.volume_id, *request.replaces)}
    if mounted.number not in replaceable:
        raise OpsError(
            f"Mounting {request.volume_id} at {request.path}",
            f"{mounted.source} is mounted there already: it was left alone",
            f"Unmount it (umount {request.path}), or choose another data_mount_path",
        )
    using = holders(host, request.path)
    if using and not request.disturb:
        more = f" and {len(using) - HOLDERS_SHOWN} more" if len(using) > HOLDERS_SHOWN else ""
        raise OpsError(
            f"Replacing {mounted.source} at {request.path}",
            f"it is in use by {', '.join(using[:HOLDERS_SHOWN])}{more}: it was left alone",
            "Run again when they have ended, or with -e fleet_host_disturb=true: they keep what they have open",
        )


def _number_of(host: Host, volume_id: str) -> str:
    """Return the number of a volume's device on this host, "" where it has none."""
    link = link_path(host, volume_id)
    return "" if missing_reason(host, volume_id, link) else device_number(os.path.realpath(link))


def _mount(host: Host, request: MountRequest, link: str, options: str, mounted: Mount | None) -> None:
    """Mount the volume, after what it replaces was unmounted; where it does not mount, that comes back."""
    os.makedirs(request.path, mode=0o755, exist_ok=True)
    if mounted is not None:
        lazy = ["--lazy"] if request.disturb else []
        _run(host, ["umount", *lazy, request.path], f"Unmounting {mounted.source} from {request.path}")
    try:
        # nofail and the like are fstab's; mount(8) passes over them.
        _run(host, ["mount", "-t", request.fstype, "-o", options, link, request.path], f"Mounting {link}")
    except OpsError:
        if mounted is not None:
            host.run_command(["mount", "-o", "ro", mounted.source, request.path])
        raise


def _run(host: Host, command: list[str], what: str) -> None:
    status, output, error = host.run_command(command)
    if status != 0:
        why = " ".join((error or output).split()).rstrip(".")
        raise OpsError(what, f"{command[0]} ended with {status}: {why}", "Look at dmesg on the host, then run again")


def _check_mounted(host: Host, request: MountRequest, device: str) -> None:
    mounted = top_mount(host, request.path)
    if mounted is None or mounted.number != device_number(device) or "ro" not in mounted.options:
        found = "nothing" if mounted is None else f"{mounted.source} ({','.join(mounted.options)})"
        raise OpsError(
            f"Volume {request.volume_id}",
            f"after mounting it read-only, {found} is what is mounted at {request.path}",
            f"See what unmounts or mounts there (findmnt {request.path}, systemctl status), then run again",
        )


def _is_released(host: Host, volume_id: str) -> bool:
    """Say whether nothing on this host uses a volume any more, mounted or not, so that it can be detached."""
    link = link_path(host, volume_id)
    return missing_reason(host, volume_id, link) is not None or not is_held(os.path.realpath(link))


def _write_fstab(host: Host, content: str) -> None:
    """Replace the fstab, with the mode that it has, and let systemd read it.

    systemd binds a mount to the device of its fstab line as it last read it: it would unmount the new volume when the
    old one is detached.
    """
    temporary = f"{host.fstab_path}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), os.stat(host.fstab_path).st_mode & 0o777 if os.path.exists(host.fstab_path) else 0o644)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, host.fstab_path)
    fsync_directory(os.path.dirname(host.fstab_path))
    if os.path.isdir(host.systemd_directory):
        _run(host, ["systemctl", "daemon-reload"], f"Reading {host.fstab_path}")


def _seen(fstab: str, mounted: Mount | None) -> str:
    """Return what a diff shows: the fstab, and what is mounted at the path."""
    state = "nothing mounted" if mounted is None else f"{mounted.source} mounted at {mounted.point}"
    return f"{fstab}# {state}\n"
