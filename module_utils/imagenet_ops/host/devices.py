"""From the id of an EBS volume to its device on this host, and to what lies on it, without ever guessing a name.

The kernel numbers NVMe devices in the order in which it finds them, so ``/dev/nvme1n1`` says nothing. The volume's id
is the serial number of its device, and udev makes a link of it in ``/dev/disk/by-id`` (Amazon EBS User Guide, "Map
Amazon EBS volumes to NVMe device names"). A link may outlive its device for a moment, and then points at another
volume; therefore the serial is read back from the device that the link leads to, as the EBS CSI driver does.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable, NamedTuple, TypedDict

from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.polling import Delays, Poll

RunCommand = Callable[[list[str]], tuple[int, str, str]]

# The name of the link, before the volume's id without its dash.
LINK_PREFIX = "nvme-Amazon_Elastic_Block_Store_"
VOLUME_ID = re.compile(r"vol-[0-9a-f]{8,32}")
DELAYS = Delays(first=0.25)

# Exit status of `blkid -p` (its manual page): 0 something was found, 2 nothing was, 8 several signatures contradict.
BLKID_NOTHING = 2
BLKID_AMBIVALENT = 8


@dataclass(frozen=True)
class Host:
    """What is used of the machine; tests put something else in its place."""

    run_command: RunCommand
    by_id_directory: str = "/dev/disk/by-id"
    mountinfo_path: str = "/proc/self/mountinfo"
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    fstab_path: str = "/etc/fstab"
    proc_directory: str = "/proc"
    systemd_directory: str = "/run/systemd/system"


@dataclass(frozen=True)
class Signature:
    """What `blkid` reads from a device itself: filesystem type, UUID, label; empty where there is none."""

    fstype: str
    uuid: str
    label: str
    blank: bool


class DeviceInfo(TypedDict):
    """What the module ebs_device_info returns; its documentation has the fields."""

    device: str
    real_device: str
    serial: str
    fstype: str
    uuid: str
    label: str
    blank: bool
    size_bytes: int
    mount_points: list[str]
    mounted_source: str


def device_info(host: Host, volume_id: str, timeout_seconds: float, mount_path: str | None = None) -> DeviceInfo:
    """Return everything about the device of ``volume_id``, waiting up to ``timeout_seconds`` for it to appear.

    ``mounted_source`` is what is mounted at ``mount_path``, whichever device that is; "" if nothing is.
    Raises OpsError if the device does not appear, is another volume's, or cannot be read.
    """
    link = link_path(host, volume_id)
    real_device = wait_for_device(host, volume_id, link, timeout_seconds)
    signature = read_signature(host, real_device)
    return {
        "device": link,
        "real_device": real_device,
        "serial": serial_of(volume_id),
        "fstype": signature.fstype,
        "uuid": signature.uuid,
        "label": signature.label,
        "blank": signature.blank,
        "size_bytes": size_bytes(real_device),
        "mount_points": mount_points(host, device_number(real_device)),
        "mounted_source": mounted_source(host, mount_path) if mount_path else "",
    }


def serial_of(volume_id: str) -> str:
    """Return the NVMe serial number of ``volume_id``: the id without its dash; raises OpsError where it is no id."""
    if not VOLUME_ID.fullmatch(volume_id):
        raise OpsError(
            f"Volume id {volume_id!r}",
            "it is not one of EBS (vol- and hexadecimal digits)",
            "Use the id from the result of ebs_fleet or ec2_vol",
        )
    return volume_id.replace("-", "")


def link_path(host: Host, volume_id: str) -> str:
    """Return the path of the stable link of ``volume_id``, whether it is there or not."""
    return os.path.join(host.by_id_directory, LINK_PREFIX + serial_of(volume_id))


def wait_for_device(host: Host, volume_id: str, link: str, timeout_seconds: float) -> str:
    """Return the real path of the device behind ``link`` as soon as it is there with the serial of ``volume_id``."""
    poll = Poll(DELAYS, host.clock() + timeout_seconds, host.sleep, host.clock)
    while missing := missing_reason(host, volume_id, link):
        if not poll.wait():
            raise missing
    return os.path.realpath(link)


def missing_reason(host: Host, volume_id: str, link: str) -> OpsError | None:
    """Return what is wrong with ``link`` as the device of ``volume_id`` at this moment, or None where nothing is."""
    if not os.path.exists(link):
        return OpsError(
            f"Volume {volume_id}",
            f"no device {link} on this host ({other_links(host)})",
            "Check that the volume is attached to this instance. Instances of the Xen generation, where EBS volumes "
            "are not NVMe devices, are not supported",
        )
    real_device = os.path.realpath(link)
    command = ["lsblk", "--nodeps", "--noheadings", "--output", "SERIAL", real_device]
    status, output, error = host.run_command(command)
    serial = output.strip()
    if status == 0 and serial == serial_of(volume_id):
        return None
    found = f"serial {serial!r}" if status == 0 else error.strip()
    return OpsError(
        f"Volume {volume_id}",
        f"{link} leads to {real_device}, which is not that volume ({found})",
        "The link is stale: wait for udev (udevadm settle), then rerun",
    )


def other_links(host: Host) -> str:
    """Return, for an error text, which EBS volumes this host does have."""
    try:
        names = os.listdir(host.by_id_directory)
    except FileNotFoundError:
        return f"there is no {host.by_id_directory}"
    volumes = sorted({"vol-" + found[1] for name in names if (found := re.match(LINK_PREFIX + "vol([0-9a-f]+)", name))})
    return f"it has {', '.join(volumes)}" if volumes else "it has no EBS volume at all"


def read_signature(host: Host, real_device: str) -> Signature:
    """Return what lies on ``real_device``, read from the device and not from a cache.

    ``blank`` is true only where both blkid and wipefs find nothing: no filesystem, no partition table, no RAID, LVM or
    LUKS signature. Signatures that contradict one another (blkid's status 8) are something, though no one can say what.
    """
    status, output, error = host.run_command(["blkid", "--probe", "--output", "export", real_device])
    if status == BLKID_AMBIVALENT:
        return Signature("", "", "", blank=False)
    if status not in (0, BLKID_NOTHING):
        raise unreadable(real_device, f"blkid ended with {status}: {error.strip()}")
    values = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    return Signature(
        fstype=values.get("TYPE", ""),
        uuid=values.get("UUID", ""),
        label=values.get("LABEL", ""),
        blank=status == BLKID_NOTHING and not has_signature(host, real_device),
    )


def has_signature(host: Host, real_device: str) -> bool:
    """Say whether wipefs would have anything to wipe on ``real_device`` (it only looks)."""
    status, output, error = host.run_command(["wipefs", "--no-act", "--json", real_device])
    if status != 0:
        raise unreadable(real_device, f"wipefs ended with {status}: {error.strip()}")
    # util-linux before 2.37 prints nothing at all where there is no signature.
    return bool(output.strip()) and bool(json.loads(output)["signatures"])


def unreadable(real_device: str, why: str) -> OpsError:
    """Return the error for a device that could not be read."""
    return OpsError(f"Device {real_device}", why, "Run the task as root (become: true) and check dmesg on the host")


def size_bytes(real_device: str) -> int:
    """Return the size of ``real_device`` in bytes."""
    try:
        descriptor = os.open(real_device, os.O_RDONLY)
    except OSError as error:
        raise unreadable(real_device, str(error.strerror)) from error
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def device_number(real_device: str) -> str:
    """Return ``major:minor`` of ``real_device``, the name that the kernel itself uses."""
    number = os.stat(real_device).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def mount_points(host: Host, number: str) -> list[str]:
    """Return the directories on which the device ``major:minor`` is mounted, sorted."""
    return sorted({mount.point for mount in _mounts(host) if mount.number == number})


def mounted_source(host: Host, path: str) -> str:
    """Return what is mounted at directory ``path``, as the kernel names it (the topmost one); empty if nothing is."""
    mounted = top_mount(host, path)
    return "" if mounted is None else mounted.source


def is_held(device: str) -> bool:
    """Say whether the kernel has ``device`` in use: mounted anywhere, or unmounted lazily with files still open.

    Opening a block device with O_EXCL fails as long as anything else claims it (open(2)); nothing is changed by it.
    """
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise unreadable(device, str(error.strerror)) from error
    return False


class Mount(NamedTuple):
    """A line of mountinfo: device as major:minor, directory, options of the mount, source as the kernel names it."""

    number: str
    point: str
    options: list[str]
    source: str


def top_mount(host: Host, path: str) -> Mount | None:
    """Return what is mounted at directory ``path``, the topmost where there are several, or None."""
    found = [mount for mount in _mounts(host) if mount.point == path]
    return found[-1] if found else None


def _mounts(host: Host) -> Iterator[Mount]:
    r"""Read mountinfo (proc(5)): field 3 is the device, field 5 the mount point with blanks written as ``\040``.

    Field 6 has the options. Optional fields follow and end with a dash; behind it stand the filesystem's type and the
    source.
    """
    with open(host.mountinfo_path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = [re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field) for field in line.split()]
            yield Mount(fields[2], fields[4], fields[5].split(","), fields[fields.index("-", 6) + 2])
