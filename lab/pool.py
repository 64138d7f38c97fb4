"""The pool: volumes and snapshots as sparse files on a filesystem that clones a terabyte in milliseconds.

The pool is an XFS with reflinks in one sparse file, for the machine's own filesystem is mostly ext4, which has none.
Where the kernel has no XFS, volumes are plain sparse files and a snapshot is a real copy of what they hold.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lab.config import Paths
from lab.machine import LabError, has_filesystem, run, wait_until
from lab.warmth import BLOCK_BYTES

GIB = 1024**3
FICLONE = 0x40049409  # linux/fs.h: share the blocks of one file with another
LOOP_CONTROL = Path("/dev/loop-control")
LOOP_CTL_REMOVE = 0x4C81  # linux/loop.h
# Of the disk's free space, what the pool leaves alone.
RESERVE_BYTES = 2 * GIB
MINIMUM_POOL_BYTES = 2 * GIB
RELEASE_SECONDS = 5.0


class Pool:
    """Files of volumes and snapshots by their AWS ids, and the folder that holds the hosts' own files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hosts = directory / "hosts"
        self._volumes = directory / "volumes"
        self._snapshots = directory / "snapshots"

    def volume(self, volume_id: str) -> Path:
        """Return the file of a volume."""
        return self._volumes / volume_id

    def snapshot(self, snapshot_id: str) -> Path:
        """Return the file of a snapshot."""
        return self._snapshots / snapshot_id

    def make_folders(self) -> None:
        """Make the pool's folders where they are not there."""
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

    def snapshot_blocks(self, snapshot_id: str) -> list[int]:
        """Return the sorted numbers of the blocks that hold data in a snapshot: where its file has no hole."""
        blocks: list[int] = []
        with open(self.snapshot(snapshot_id), "rb") as file:
            for begin, end in data_extents(file.fileno()):
                first = max(begin // BLOCK_BYTES, blocks[-1] + 1 if blocks else 0)
                blocks.extend(range(first, -(-end // BLOCK_BYTES)))
        return blocks

    def create_snapshot(self, snapshot_id: str, volume_id: str) -> None:
        """Keep what has reached the volume's device by now; what a host still holds in its page cache has not."""
        clone(self.volume(volume_id), self.snapshot(snapshot_id))

    def copy_snapshot(self, snapshot_id: str, source_id: str) -> None:
        """Make a snapshot that holds what another one holds."""
        clone(self.snapshot(source_id), self.snapshot(snapshot_id))

    def delete_volume(self, volume_id: str) -> None:
        """Delete a volume's file; snapshots that share its blocks keep them."""
        self.volume(volume_id).unlink(missing_ok=True)

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete a snapshot's file; volumes that share its blocks keep them."""
        self.snapshot(snapshot_id).unlink(missing_ok=True)


def data_extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield where each stretch of data in an open file begins and ends, in bytes; the rest are holes."""
    end = 0
    while True:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data beyond
                return
            raise
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield begin, end


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


def create_pool(paths: Paths) -> str | None:
    """Make the pool's filesystem and return the loop device that holds it, or None where the kernel has no XFS."""
    paths.pool.mkdir(parents=True, exist_ok=True)
    size_bytes = shutil.disk_usage(paths.directory).free - RESERVE_BYTES
    if size_bytes < MINIMUM_POOL_BYTES:
        raise LabError(f"{paths.directory} has too little free space for the lab, which needs 4 GiB")
    if not has_filesystem("xfs"):
        return None
    paths.pool_image.touch(mode=0o600)
    os.truncate(paths.pool_image, size_bytes)
    run("mkfs.xfs", "-q", "-m", "reflink=1", paths.pool_image)
    return attach_loop(paths.pool_image)


def mount_pool(paths: Paths, device: str | None) -> None:
    """Mount the pool on ``device``, or what does without it, in the mount namespace of the calling process.

    The lab's server has a namespace of its own, so nobody else sees these mounts and they end with the last process
    that does.
    """
    pool = Pool(paths.pool)
    if device is None:
        pool.make_folders()
        # The upper layer of an overlay must lie on another filesystem than the root that it covers.
        run("mount", "-t", "tmpfs", "-o", "mode=755", "lab", pool.hosts)
        return
    run("mount", "-t", "xfs", "-o", "noatime", device, paths.pool)
    # From now on the device goes with the mount.
    detach_loop(device)
    pool.make_folders()


def attach_loop(file: Path) -> str:
    """Attach ``file`` to a free loop device and return its path, /dev/loopN."""
    with _loops_kept():
        return run("losetup", "--find", "--show", "--direct-io=on", file).strip()


def detach_loop(loop: str) -> None:
    """Release a loop device; the kernel does it when the last user has closed it."""
    run("losetup", "--detach", loop)


def hold_loop(file: Path) -> tuple[str, int]:
    """Attach ``file`` to a loop device that lasts as long as somebody has it open; return it and an open descriptor."""
    loop = attach_loop(file)
    descriptor = os.open(loop, os.O_RDONLY | os.O_CLOEXEC)
    detach_loop(loop)  # it is open, so the kernel does it when it no longer is
    return loop, descriptor


def let_go_of_loop(loop: str, descriptor: int) -> None:
    """Close what `hold_loop` returned and wait, as `release_loop` does."""
    attached = _backing_file(loop)
    os.close(descriptor)
    _wait_until_released(loop, attached)


def release_loop(loop: str) -> None:
    """Release a loop device and wait until all that was written to it is in its file, as a clone of that needs.

    After a forced detachment the device is still mounted, and there is nothing to wait for.
    """
    attached = _backing_file(loop)
    detach_loop(loop)
    _wait_until_released(loop, attached)


def _wait_until_released(loop: str, attached: str) -> None:
    # Once it is free, another lab of this machine may take it.
    wait_until(lambda: _backing_file(loop) != attached, RELEASE_SECONDS)


def _backing_file(loop: str) -> str:
    """Return the name of the file that a loop device is attached to, nothing where it is free."""
    try:
        return (Path("/sys/block") / Path(loop).name / "loop" / "backing_file").read_text()
    except OSError:
        return ""


@contextlib.contextmanager
def _loops_kept() -> Iterator[None]:
    """Keep other labs of this machine from taking and removing free loop devices meanwhile."""
    with contextlib.ExitStack() as stack:
        if LOOP_CONTROL.exists():
            fcntl.flock(stack.enter_context(open(LOOP_CONTROL, "rb")), fcntl.LOCK_EX)
        yield


def loops_of(paths: Paths) -> list[str]:
    """Return the loop devices of the lab: those of files in the pool, and that of the pool itself."""
    own_files = [paths.pool_image, *paths.pool.glob("volumes/*")]
    own = {(status.st_dev, status.st_ino) for status in (file.stat() for file in own_files if file.exists())}
    listed = run("losetup", "--list", "--json", "--output", "NAME,BACK-MAJ:MIN,BACK-INO")
    attached = []
    for loop in json.loads(listed or '{"loopdevices": []}')["loopdevices"]:  # without any it prints nothing
        major, minor = (int(number) for number in loop["back-maj:min"].split(":"))
        attached.append((loop["name"], os.makedev(major, minor), int(loop["back-ino"])))
    outer = [name for name, device, inode in attached if (device, inode) in own]
    # The pool's own filesystem is not mounted here: its files are known by the device that they are on.
    pool_devices = {os.stat(name).st_rdev for name in outer}
    return [name for name, device, _ in attached if device in pool_devices] + outer


def highest_loop() -> int:
    """Return the highest number of a loop device that the kernel has made so far, -1 for none."""
    return max((int(block.name[4:]) for block in Path("/sys/block").glob("loop*")), default=-1)


def remove_loops_above(number: int) -> None:
    """Take away the unused loop devices with a higher number: those that only the lab made the kernel create."""
    if not LOOP_CONTROL.exists():
        return
    with open(LOOP_CONTROL, "rb") as control, _loops_kept():
        for candidate in range(highest_loop(), number, -1):
            try:
                fcntl.ioctl(control, LOOP_CTL_REMOVE, candidate)
            except OSError:
                continue  # in use, or already detached


def filesystem_tags(device: str) -> dict[str, str]:
    """Return what blkid finds on ``device`` as udev names it, ID_FS_TYPE, ID_FS_UUID, ...; on a blank one nothing."""
    done = subprocess.run(["blkid", "--probe", "--output", "udev", device], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if "=" in line]
    return dict(line.split("=", 1) for line in lines)
