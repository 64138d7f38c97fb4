"""An EBS volume mounted on this host in one step: device, serial, filesystem, fstab, mount, and proof of it.

Only a device on which nothing at all is found is formatted, and only where that is allowed. What else is mounted at the
path stays there, unless it is a volume that this one replaces; and that too stays while programs have files of it open.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from dataclasses import dataclass
from typing import Callable, TypedDict

from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import fsync_directory
from ansible.module_utils.imagenet_ops.core.results import Difference
from ansible.module_utils.imagenet_ops.host.devices import (
    Host,
    Mount,
    Signature,
    device_number,
    is_held,
    link_path,
    missing_reason,
    read_signature,
    top_mount,
    wait_for_device,
)

# How fstab names the filesystem. The volumes of a fleet are copies of one filesystem with one UUID, so there only the
# device says which one is meant; the UUID is the name that other tools know.
BY_DEVICE = "device"
BY_UUID = "uuid"
# nofail: a host must boot without the volume; the time-out keeps it from waiting a minute and a half for it.
OPTIONS = ("nofail", "noatime", "x-systemd.device-timeout=30")
# A second copy of an XFS is refused while the first is mounted, unless its UUID is not looked at (xfs(5)).
OPTIONS_OF_COPIES = {"xfs": ("nouuid",)}
# How a diff shows the UUID of a filesystem that is yet to be made.
NEW_UUID = "of-the-new-filesystem"
HOLDERS_SHOWN = 5
MODE = 0o755


@dataclass(frozen=True)
class MountRequest:
    """What is to be mounted where, and what may be done for it.

    ``mount_by`` is `BY_DEVICE` or `BY_UUID`. ``format_allowed`` says that a blank volume gets a filesystem, made with
    ``mkfs_options``. ``owner`` and ``group`` (names or numbers, "" for any) get the root of the filesystem.
    ``replace_volume_ids`` are the volumes that may be unmounted from ``path``, ``replace_any`` whatever is there;
    ``lazy_unmount`` says that this may be done while programs have files open, which they keep until they close them.
    """

    volume_id: str
    path: str
    fstype: str = "ext4"
    read_only: bool = True
    mount_by: str = BY_DEVICE
    format_allowed: bool = False
    mkfs_options: tuple[str, ...] = ()
    owner: str = ""
    group: str = ""
    replace_volume_ids: tuple[str, ...] = ()
    replace_any: bool = False
    lazy_unmount: bool = False
    timeout_seconds: float = 120

    @property
    def access(self) -> str:
        """How it is mounted, for people."""
        return "read-only" if self.read_only else "read-write"


class MountResult(TypedDict):
    """The result of the module ebs_mount; ``released`` says that nothing uses the replaced volumes any more."""

    changed: bool
    device: str
    formatted: bool
    released: bool
    diff: Difference


def mount_volume(host: Host, request: MountRequest, *, check_mode: bool) -> MountResult:
    """Mount what ``request`` says and return the result of the module ebs_mount.

    Raises OpsError if the device does not appear or holds something else, if the path is taken or in use, and if the
    request contradicts itself.
    """
    _check_request(request)
    link = link_path(host, request.volume_id)
    device = wait_for_device(host, request.volume_id, link, request.timeout_seconds)
    mounted = top_mount(host, request.path)
    is_mounted = _is_what_is_mounted(request, device, mounted)
    signature = None if is_mounted and request.mount_by == BY_DEVICE else read_signature(host, device)
    if signature is not None:
        _check_filesystem(request, link, signature)
    if not is_mounted:
        _check_path(host, request, mounted)
    is_formatted = signature is not None and signature.blank
    if is_formatted and not check_mode:
        signature = _format(host, request, device)
    options = ",".join(_options(request))
    before = read_fstab(host)
    after = with_entry(before, f"{_source(request, link, signature)} {request.path} {request.fstype} {options} 0 0")
    is_owned = is_mounted and _is_owned(request)
    if not check_mode:
        if before != after:
            _write_fstab(host, after)
        if not is_mounted:
            _mount(host, request, link, options, mounted)
            _check_mounted(host, request, device)
        _own(request)
    replaced = request.replace_volume_ids
    return {
        "changed": not is_mounted or not is_owned or before != after,
        "device": link,
        "formatted": is_formatted,
        "released": bool(replaced) and all(_is_released(host, volume) for volume in replaced),
        "diff": {
            "before": _seen(before, mounted),
            "after": _seen(after, mounted if is_mounted else Mount("", request.path, [], link)),
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


def _check_request(request: MountRequest) -> None:
    """Raise OpsError if a filesystem that is mounted read-only is to be written to."""
    if request.read_only and (request.format_allowed or request.owner or request.group):
        raise OpsError(
            f"Mounting {request.volume_id} at {request.path}",
            "format_allowed, owner and group write to the volume, and it is to be mounted read-only",
            "Set read_only: false, or leave them out",
        )
    _owner_ids(request)


def _is_what_is_mounted(request: MountRequest, device: str, mounted: Mount | None) -> bool:
    """Say whether ``mounted`` is the volume, for reading or for writing as requested."""
    if mounted is None or mounted.number != device_number(device):
        return False
    return ("ro" in mounted.options) == request.read_only


def _check_filesystem(request: MountRequest, link: str, signature: Signature) -> None:
    """Raise OpsError unless the volume holds the filesystem, or is blank and may be formatted."""
    what = f"Volume {request.volume_id} ({link})"
    if signature.blank:
        if request.format_allowed:
            return
        if request.read_only:
            raise OpsError(what, "it is blank: it was not touched", "Check what its snapshot was made of")
        raise OpsError(
            what,
            "it is blank and formatting is not allowed here: it was not touched",
            "Set volume_mount_format_allowed: true for this host if it is yours to format",
        )
    if signature.fstype != request.fstype:
        raise OpsError(
            what,
            f"it holds {signature.fstype or 'something'} and not {request.fstype}: it was not touched",
            "Check what is on it; use another volume, or set the type of the filesystem that it holds"
            if request.read_only
            else "Check what is on it; use another volume, or set volume_mount_fstype to what it holds",
        )
    if request.mount_by == BY_UUID and not signature.uuid:
        raise OpsError(what, "its filesystem has no UUID to mount it by", "Give it one, or mount it by its device")


def _check_path(host: Host, request: MountRequest, mounted: Mount | None) -> None:
    """Raise OpsError unless nothing is mounted at the path, or something that may be replaced now."""
    if mounted is None:
        return
    replaceable = {_number_of(host, volume) for volume in (request.volume_id, *request.replace_volume_ids)}
    if mounted.number not in replaceable and not request.replace_any:
        raise OpsError(
            f"Mounting {request.volume_id} at {request.path}",
            f"{mounted.source} is already mounted there; not unmounted",
            f"Unmount it (umount {request.path}), or choose another data_mount_path",
        )
    using = holders(host, request.path)
    if using and not request.lazy_unmount:
        more = f" and {len(using) - HOLDERS_SHOWN} more" if len(using) > HOLDERS_SHOWN else ""
        forced = ", or set fleet_host_lazy_unmount=true: they keep their open files"
        raise OpsError(
            f"Replacing {mounted.source} at {request.path}",
            f"mount point busy: {', '.join(using[:HOLDERS_SHOWN])}{more}; not unmounted",
            f"Rerun when these processes exit{forced if request.replace_volume_ids else ''}",
        )


def _number_of(host: Host, volume_id: str) -> str:
    """Return the number of a volume's device on this host, "" where it has none."""
    link = link_path(host, volume_id)
    return "" if missing_reason(host, volume_id, link) else device_number(os.path.realpath(link))


def _format(host: Host, request: MountRequest, device: str) -> Signature:
    """Make the filesystem on the blank device and return what lies there then.

    mkfs is not forced: it refuses a device that is in use, and one that holds something after all.
    """
    command = [f"mkfs.{request.fstype}", *request.mkfs_options, device]
    _run(host, command, f"Formatting volume {request.volume_id}")
    return read_signature(host, device)


def _options(request: MountRequest) -> list[str]:
    """Return the options of the mount, as fstab has them."""
    copies = OPTIONS_OF_COPIES.get(request.fstype, ()) if request.mount_by == BY_DEVICE else ()
    return ["ro" if request.read_only else "defaults", *OPTIONS, *copies]


def _source(request: MountRequest, link: str, signature: Signature | None) -> str:
    """Return how fstab names the filesystem."""
    if request.mount_by == BY_DEVICE or signature is None:
        return link
    return f"UUID={signature.uuid or NEW_UUID}"


def _mount(host: Host, request: MountRequest, link: str, options: str, mounted: Mount | None) -> None:
    """Mount the volume, after what it replaces was unmounted; if it does not mount, that is mounted again."""
    os.makedirs(request.path, mode=MODE, exist_ok=True)
    if mounted is not None:
        lazy = ["--lazy"] if request.lazy_unmount else []
        _run(host, ["umount", *lazy, request.path], f"Unmounting {mounted.source} from {request.path}")
    try:
        # By its device, whatever fstab says: this is the one whose serial was compared. nofail and the like are
        # fstab's, and mount(8) ignores them.
        _run(host, ["mount", "-t", request.fstype, "-o", options, link, request.path], f"Mounting {link}")
    except OpsError:
        if mounted is not None:
            host.run_command(["mount", "-o", ",".join(mounted.options), mounted.source, request.path])
        raise


def _run(host: Host, command: list[str], what: str) -> None:
    status, output, error = host.run_command(command)
    if status != 0:
        why = " ".join((error or output).split()).rstrip(".")
        raise OpsError(what, f"{command[0]} ended with {status}: {why}", "Check dmesg on the host, then rerun")


def _check_mounted(host: Host, request: MountRequest, device: str) -> None:
    mounted = top_mount(host, request.path)
    if not _is_what_is_mounted(request, device, mounted):
        found = "nothing" if mounted is None else f"{mounted.source} ({','.join(mounted.options)})"
        raise OpsError(
            f"Volume {request.volume_id}",
            f"after mounting it {request.access}, {found} is what is mounted at {request.path}",
            f"Find out what unmounts or mounts there (findmnt {request.path}, systemctl status), then rerun",
        )


def _owner_ids(request: MountRequest) -> tuple[int, int]:
    """Return the numbers of owner and group, -1 for any. Raises OpsError if this host does not have them."""
    try:
        return (
            _number(request.owner, lambda name: pwd.getpwnam(name).pw_uid),
            _number(request.group, lambda name: grp.getgrnam(name).gr_gid),
        )
    except KeyError as error:
        raise OpsError(
            f"Owner of {request.path}",
            f"this host has no user {request.owner} or no group {request.group} ({error.args[0]})",
            "Correct owner and group (volume_mount_owner, volume_mount_group), or create them",
        ) from error


def _number(name: str, look_up: Callable[[str], int]) -> int:
    """Return the number of a user or group given by name or number, -1 for ""."""
    if not name:
        return -1
    return int(name) if name.isdecimal() else look_up(name)


def _is_owned(request: MountRequest) -> bool:
    """Say whether the root of the mounted filesystem belongs to whom it should, with the mode that goes with it."""
    if not request.owner and not request.group:
        return True
    found = os.stat(request.path)
    wanted = _owner_ids(request)
    return stat.S_IMODE(found.st_mode) == MODE and all(
        number in (-1, actual) for number, actual in zip(wanted, (found.st_uid, found.st_gid))
    )


def _own(request: MountRequest) -> None:
    if not _is_owned(request):
        os.chown(request.path, *_owner_ids(request))
        os.chmod(request.path, MODE)


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
