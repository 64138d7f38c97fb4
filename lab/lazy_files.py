"""Files whose blocks arrive when they are first read: a FUSE filesystem over the files of the pool.

A loop device on such a file is a volume that was just made from a snapshot. mfusepy speaks the FUSE protocol; it needs
/dev/fuse and libfuse 3.
"""

from __future__ import annotations

import ctypes.util
import errno
import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.machine import LabError, wait_until
from lab.warmth import Warmth

MOUNT_SECONDS = 10.0
# Metadata is never cached, for a volume can grow.
OPTIONS = {"attr_timeout": 0, "entry_timeout": 0, "fsname": "imagenet-ops-lab"}


def missing_for_lazy_files() -> list[str]:
    """Return what lazily loaded volumes need and this machine lacks."""
    missing = [] if os.path.exists("/dev/fuse") else ["/dev/fuse (kernel module fuse)"]
    if ctypes.util.find_library("fuse3") is None:
        missing.append("libfuse3 (Debian package libfuse3-3)")
    return missing


@dataclass
class _File:
    """A file of the pool, open, and how warm it is."""

    descriptor: int
    warmth: Warmth


class LazyFiles:
    """The filesystem, mounted on ``directory`` in the mount namespace of this process; it ends with the process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, _File] = {}
        directory.mkdir(exist_ok=True)
        threading.Thread(target=self._serve, name="lazy-files", daemon=True).start()
        if not wait_until(lambda: os.path.ismount(directory), MOUNT_SECONDS):
            raise LabError(f"{directory} could not be mounted; see the log of the server")

    def add(self, name: str, file: Path, warmth: Warmth) -> None:
        """Show ``file`` as ``name``, no faster than its ``warmth``."""
        self._files[f"/{name}"] = _File(os.open(file, os.O_RDWR | os.O_CLOEXEC), warmth)

    def remove(self, name: str) -> None:
        """Show the file no more; nothing to do where it is not shown."""
        file = self._files.pop(f"/{name}", None)
        if file is not None:
            os.close(file.descriptor)

    def path(self, name: str) -> Path:
        """Return where file ``name`` is shown."""
        return self.directory / name

    def _serve(self) -> None:
        import mfusepy  # noqa: PLC0415 - it fails to import where libfuse is missing, which only lazy volumes need

        files = self._files

        class Operations(mfusepy.Operations):  # type: ignore[misc]  # mfusepy has no types of its own
            """The operations that the kernel requests, under the names of libfuse."""

            def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:  # noqa: ARG002 - libfuse's signature
                """Return what stat shows."""
                if path == "/":
                    return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
                size_bytes = os.fstat(_find(files, path).descriptor).st_size
                return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size_bytes}

            def open(self, path: str, flags: int) -> int:  # noqa: ARG002 - libfuse's signature
                """Open a file that is there."""
                return _find(files, path).descriptor

            def read(self, path: str, size: int, offset: int, fh: int) -> bytes:  # noqa: ARG002 - libfuse's signature
                """Read, when the blocks have arrived."""
                file = _find(files, path)
                file.warmth.touch(offset, size)
                return os.pread(file.descriptor, size, offset)

            def write(self, path: str, data: bytes, offset: int, fh: int) -> int:  # noqa: ARG002 - libfuse's signature
                """Write, when the blocks have arrived."""
                file = _find(files, path)
                file.warmth.touch(offset, len(data))
                return os.pwrite(file.descriptor, data, offset)

            def fsync(self, path: str, datasync: int, fh: int) -> int:  # noqa: ARG002 - libfuse's signature
                """Let all that was written reach the pool's own device."""
                os.fsync(_find(files, path).descriptor)
                return 0

        def _find(files: dict[str, _File], path: str) -> _File:
            if path not in files:
                raise mfusepy.FuseOSError(errno.ENOENT)
            return files[path]

        mfusepy.FUSE(Operations(), str(self.directory), foreground=True, **OPTIONS)
