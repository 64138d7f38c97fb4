"""Space on a volume, and what its errors mean for people."""

from __future__ import annotations

import errno
import os

from ansible.module_utils.imagenet_ops.errors import OpsError

_GIB = 1024**3


def free_bytes(path: str) -> int:
    """Return how many bytes an ordinary process may still write to the filesystem of ``path`` (or its next parent)."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def require_space(path: str, needed_bytes: int) -> None:
    """Raise OpsError where the filesystem of ``path`` has less than ``needed_bytes`` to spare."""
    free = free_bytes(path)
    if free < needed_bytes:
        raise OpsError(
            f"Writing {path}",
            f"{needed_bytes / _GIB:.2f} GiB are needed and {free / _GIB:.2f} GiB are free",
            "Free space or enlarge the volume, then run again",
        )


def disk_error(path: str, error: OSError) -> OpsError:
    """Return what an error of the filesystem of ``path`` means; what was done so far is kept by whoever raises it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OpsError(
            f"Writing {path}",
            f"there is no space left ({error.strerror})",
            "Free space or enlarge the volume, then run again: what was done so far is kept",
        )
    return OpsError(f"Access to {error.filename or path}", f"{error.strerror}", "Check the volume, then run again")
