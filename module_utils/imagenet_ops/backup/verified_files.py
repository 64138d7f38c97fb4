"""Which files of an earlier run were proved, so that none is hashed twice."""

from __future__ import annotations

import os
import time
from typing import Any

from ansible.module_utils.imagenet_ops.backup.request import RestoreFile
from ansible.module_utils.imagenet_ops.core.files import read_json, write_json


class VerifiedFiles:
    """Remembers which files under ``root`` were proved, by size and time, in the JSON file ``path``."""

    def __init__(self, root: str, path: str) -> None:
        self._root = root
        self._path = path
        self._records: dict[str, list[Any]] = read_json(path) or {}
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
        proved = self._records.get(file.path) == [file.sha256, status.st_size, status.st_mtime_ns]
        return "right" if proved else "unknown"

    def remember(self, file: RestoreFile) -> None:
        """Note that ``file``, as it is now, is right."""
        status = os.stat(os.path.join(self._root, file.path))
        self._records[file.path] = [file.sha256, status.st_size, status.st_mtime_ns]
        self._changed = True

    def save(self, at_most_every_seconds: float = 0.0) -> None:
        """Write what is remembered, if there is news."""
        if self._changed and time.monotonic() - self._saved_seconds >= at_most_every_seconds:
            write_json(self._path, self._records)
            self._saved_seconds, self._changed = time.monotonic(), False
