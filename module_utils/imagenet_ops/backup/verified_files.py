"""Which files of an earlier run were proved, so that none is hashed twice."""

from __future__ import annotations

import os
import time
import warnings
from typing import Any

from ansible.module_utils.imagenet_ops.backup.request import RestoreFile
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile, Warn

_RECORD = Kind(
    "s3_restore record of verified files",
    1,
    {"files": {str: (str, int, int)}},
    starts_over="the files are hashed again",
    upgrade=lambda value: {"files": value},
)


class VerifiedFiles:
    """Remembers which files under ``root`` were proved, by size and time, in the state file ``path``.

    ``warn`` is called where that cannot be read.
    """

    def __init__(self, root: str, path: str, warn: Warn = warnings.warn) -> None:
        self._root = root
        self._record = StateFile(path, _RECORD, warn)
        self._files: dict[str, list[Any]] = (self._record.read() or {"files": {}})["files"]
        self._saved_seconds = time.monotonic()
        self._changed = False

    def look(self, file: RestoreFile) -> str:
        """Return what is known of ``file``: "absent", "different" (its size), "unknown" (never hashed) or "right"."""
        try:
            status = os.stat(os.path.join(self._root, file.path))
        except FileNotFoundError:
            return "absent"
        if status.st_size != file.size_bytes:
            return "different"
        proved = self._files.get(file.path) == [file.sha256, status.st_size, status.st_mtime_ns]
        return "right" if proved else "unknown"

    def remember(self, file: RestoreFile) -> None:
        """Note that ``file``, as it is now, is right."""
        status = os.stat(os.path.join(self._root, file.path))
        self._files[file.path] = [file.sha256, status.st_size, status.st_mtime_ns]
        self._changed = True

    def save(self, at_most_every_seconds: float = 0.0) -> None:
        """Write what is remembered, if there is news."""
        if self._changed and time.monotonic() - self._saved_seconds >= at_most_every_seconds:
            self._record.write({"files": self._files})
            self._saved_seconds, self._changed = time.monotonic(), False
