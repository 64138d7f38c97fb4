"""Space on a volume, and what its errors mean for people."""

from __future__ import annotations

import ctypes
import errno
import os

from ansible.module_utils.imagenet_ops.core.errors import OpsError

_GIB = 1024**3


def existing_parent(path: str) -> str:
    """Return ``path``, or the nearest directory above it that exists."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def free_bytes(path: str) -> int:
    """Return how many bytes an ordinary process may still write to the filesystem that ``path`` is on, or will be."""
    status = os.statvfs(existing_parent(path))
    return status.f_bavail * status.f_frsize


def block_bytes(path: str) -> int:
    """Return the unit in which the filesystem that ``path`` is on, or will be, gives space to files."""
    return os.statvfs(existing_parent(path)).f_frsize


def require_space(path: str, needed_bytes: int) -> None:
    """Raise OpsError where the filesystem of ``path`` has less than ``needed_bytes`` to spare."""
    free = free_bytes(path)
    if free < needed_bytes:
        raise OpsError(
            f"Writing {path}",
            f"{needed_bytes / _GIB:.2f} GiB are needed and {free / _GIB:.2f} GiB are free",
            "Free space or enlarge the volume, then run again",
        )


def allocated_bytes(path: str) -> int:
    """Return what file ``path`` takes on its disk by now; 0 where there is none."""
    try:
        # Blocks of 512 bytes, whatever the filesystem's own are (stat(2)).
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


def allocate(descriptor: int, size_bytes: int) -> None:
    """Give an empty file its final size, on the disk too: one that is too small shows now, and extents become large."""
    os.ftruncate(descriptor, 0)
    try:
        if size_bytes:
            os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        # A filesystem that cannot do it; space is then taken as the bytes come.
        os.ftruncate(descriptor, size_bytes)


def sync_filesystem(path: str) -> None:
    """Make everything durable that was written to the filesystem of ``path``. Raises OSError.

    One call for a million new files, where an fsync for each would take hours on a spinning disk. Python has no
    function for it; syncfs(2) is in every C library of Linux.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(descriptor)


def disk_error(path: str, error: OSError) -> OpsError:
    """Return what an error of the filesystem of ``path`` means; what was done so far is kept by whoever raises it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OpsError(
            f"Writing {path}",
            f"there is no space left ({error.strerror})",
            "Free space or enlarge the volume, then run again: what was done so far is kept",
        )
    return OpsError(f"Access to {error.filename or path}", f"{error.strerror}", "Check the volume, then run again")
