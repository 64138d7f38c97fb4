"""The pool: volumes and snapshots as sparse files on a filesystem that clones a terabyte in milliseconds.

The pool is an XFS with reflinks in one sparse file, for the machine's own filesystem is mostly ext4, which has none.
Where the kernel has no XFS, volumes are plain sparse files and a snapshot is a real copy of what they hold.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

from lab.config import Paths
from lab.machine import LabError, has_filesystem, run

GIB = 1024**3
FICLONE = 0x40049409  # linux/fs.h: share the blocks of one file with another
LOOP_CTL_REMOVE = 0x4C81  # linux/loop.h
# Of the disk's free space, what the pool leaves alone.
RESERVE_BYTES = 2 * GIB
MINIMUM_POOL_BYTES = 2 * GIB


class Pool:
    """Files of volumes and snapshots by their AWS ids, and the folder that holds the hosts' own files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hosts = directory / "hosts"
        self._volumes = directory / "volumes"
        self._snapshots = directory / "snapshots"

    def volume(self, volume_id: str) -> Path:
        return self._volumes / volume_id

    def snapshot(self, snapshot_id: str) -> Path:
        return self._snapshots / snapshot_id

    def make_folders(self) -> None:
        for folder in (self.hosts, self._volumes, self._snapshots):
            folder.mkdir(exist_ok=True)

    def create_volume(self, volume_id: str, size_gib: int, snapshot_id: str | None) -> None:
        """Make a volume: all zeros, or the snapshot's bytes followed by zeros."""
        file = self.volume(volume_id)
        if snapshot_id:
            clone(self.snapshot(snapshot_id), file)
        else:
            file.touch()
        os.truncate(file, size_gib * GIB)

    def resize_volume(self, volume_id: str, size_gib: int, loop: str | None) -> None:
        """Grow a volume, and the device where it is attached."""
        os.truncate(self.volume(volume_id), size_gib * GIB)
        if loop:
            run("losetup", "--set-capacity", loop)

    def create_snapshot(self, snapshot_id: str, volume_id: str) -> None:
        """Keep what has reached the volume's device by now; what a host still holds in its page cache has not."""
        clone(self.volume(volume_id), self.snapshot(snapshot_id))

    def copy_snapshot(self, snapshot_id: str, source_id: str) -> None:
        clone(self.snapshot(source_id), self.snapshot(snapshot_id))

    def delete_volume(self, volume_id: str) -> None:
        self.volume(volume_id).unlink(missing_ok=True)

    def delete_snapshot(self, snapshot_id: str) -> None:
        self.snapshot(snapshot_id).unlink(missing_ok=True)


def clone(source: Path, destination: Path) -> None:
    """Copy file ``source``: by sharing its blocks where the filesystem can, else byte by byte without its holes."""
    with open(source, "rb") as reader, open(destination, "wb") as writer:
        os.fsync(reader.fileno())
        try:
            fcntl.ioctl(writer.fileno(), FICLONE, reader.fileno())
            return
        except OSError:
            pass
    run("cp", "--sparse=always", source, destination)


def create_pool(paths: Paths) -> str:
    """Make and mount the pool; return a note for the user where it is the slow kind, else nothing."""
    paths.pool.mkdir(parents=True, exist_ok=True)
    size_bytes = shutil.disk_usage(paths.directory).free - RESERVE_BYTES
    if size_bytes < MINIMUM_POOL_BYTES:
        raise LabError(f"{paths.directory} has too little free space for the lab: it needs 4 GiB")
    note = ""
    if has_filesystem("xfs"):
        paths.pool_image.touch()
        os.truncate(paths.pool_image, size_bytes)
        run("mkfs.xfs", "-q", "-m", "reflink=1", paths.pool_image)
        loop = attach_loop(paths.pool_image)
        run("mount", "-t", "xfs", "-o", "noatime", loop, paths.pool)
        # The device goes with the mount, so nothing is left if only the mount is taken away.
        run("losetup", "--detach", loop)
        Pool(paths.pool).make_folders()
    else:
        note = "The kernel has no XFS: snapshots and restored volumes are full copies, slow and as large as their data."
        Pool(paths.pool).make_folders()
        # The upper layer of an overlay must lie on another filesystem than the root that it covers.
        run("mount", "-t", "tmpfs", "-o", "mode=755", "lab", Pool(paths.pool).hosts)
    return note


def attach_loop(file: Path) -> str:
    """Attach ``file`` to a free loop device and return its path, /dev/loopN."""
    return run("losetup", "--find", "--show", "--direct-io=on", file).strip()


def detach_loop(loop: str) -> None:
    """Release a loop device; the kernel does it when the last user has closed it."""
    run("losetup", "--detach", loop)


def loops_below(directory: Path) -> list[str]:
    """Loop devices whose file lies, or lay until it was deleted, below ``directory``."""
    found = []
    for block in sorted(Path("/sys/block").glob("loop*")):
        try:
            backing_file = (block / "loop" / "backing_file").read_text()
        except OSError:
            continue  # not attached
        if backing_file.startswith(f"{directory}/"):
            found.append(f"/dev/{block.name}")
    return found


def highest_loop() -> int:
    """The highest number of a loop device that the kernel has made so far, -1 for none."""
    return max((int(block.name[4:]) for block in Path("/sys/block").glob("loop*")), default=-1)


def remove_loops_above(number: int) -> None:
    """Take away the unused loop devices with a higher number: those that only the lab made the kernel create."""
    control = Path("/dev/loop-control")
    if not control.exists():
        return
    with open(control, "rb") as file:
        for candidate in range(highest_loop(), number, -1):
            try:
                fcntl.ioctl(file.fileno(), LOOP_CTL_REMOVE, candidate)
            except OSError:
                continue  # in use by somebody, or gone already


def filesystem_tags(device: str) -> dict[str, str]:
    """What blkid finds on ``device``, as udev names it: ID_FS_TYPE, ID_FS_UUID, ...; nothing on a blank device."""
    done = subprocess.run(
        ["blkid", "--probe", "--output", "udev", device], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if "=" in line]
    return dict(line.split("=", 1) for line in lines)
