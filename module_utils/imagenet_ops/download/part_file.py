"""A file that grows beside its final name, ``<path>.part``, and gets that name when it is whole and right.

Where it is written in any order, a checkpoint says what of it is safe (``<path>.part.json``), so a later run takes only
what is missing. The checkpoint is removed before a part begins and after it ended: it never meets a file that it was
not written for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable

from ansible.module_utils.imagenet_ops.core.disk import allocate, allocated_bytes
from ansible.module_utils.imagenet_ops.core.files import fsync_directory, remove_durably
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile, Warn, natural
from ansible.module_utils.imagenet_ops.download.engine import Target
from ansible.module_utils.imagenet_ops.download.ranges import Ranges

# The shape of what `ResumablePartFile.checkpoint` adds to the key.
DONE = {"size_bytes": natural, "done": [(natural, natural)]}


class PartFile:
    """The part of the file at ``path``."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.part = part_path(path)

    def commit(self) -> None:
        """Give the part its name. Raises OSError."""
        self._rename(self.path)

    def reject(self, aside: str = "") -> None:
        """Set the part aside under the name ``aside``, or remove it where that is "". Raises OSError."""
        if aside:
            self._rename(aside)
        else:
            remove_durably(self.part)

    def _rename(self, name: str) -> None:
        os.replace(self.part, name)
        fsync_directory(os.path.dirname(name) or ".")


class ResumablePartFile(PartFile):
    """The part of the file at ``path``, with a checkpoint.

    ``kind`` is that of its checkpoint: fields ``size_bytes`` and ``done`` (`DONE`), and those of ``key``, which tells
    what the bytes are. What an earlier run left is kept where its key ``continues`` (is equal, where that is left out)
    and the size is the same. ``warn`` is called where a checkpoint cannot be read.
    """

    def __init__(
        self,
        path: str,
        size_bytes: int,
        kind: Kind,
        key: Mapping[str, Any],
        warn: Warn,
        continues: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        super().__init__(path)
        self.size_bytes = size_bytes
        self._key = dict(key)
        self._continues = continues or self._is_equal
        self._checkpoint = StateFile(checkpoint_path(path), kind, warn)

    @property
    def missing_bytes(self) -> int:
        """How much disk the rest takes; what an earlier run has allocated is there already."""
        return self.size_bytes - min(allocated_bytes(self.part), self.size_bytes)

    def resumable(self) -> Ranges:
        """Return what of the part can be kept. Raises OpsError for a checkpoint that a newer version wrote."""
        try:
            part_bytes = os.stat(self.part).st_size
        except FileNotFoundError:
            return Ranges()
        found = self._checkpoint.read()
        if found is None or part_bytes != self.size_bytes or found["size_bytes"] != self.size_bytes:
            return Ranges()
        if not all(start < end <= self.size_bytes for start, end in found["done"]):
            self._checkpoint.discard("it is damaged: there are no such bytes as it names")
            return Ranges()
        return Ranges(found["done"]) if self._continues(found) else Ranges()

    def _is_equal(self, found: Mapping[str, Any]) -> bool:
        return all(found[name] == value for name, value in self._key.items())

    def checkpoint(self, done: Sequence[tuple[int, int]]) -> None:
        """Write down that the bytes ``done`` (``[start, end)`` each) are safe. Raises OSError."""
        self._checkpoint.write({**self._key, "size_bytes": self.size_bytes, "done": done})

    @contextlib.contextmanager
    def open(self, done: Ranges) -> Iterator[Target]:
        """Open the part, of which ``done`` is kept, or else a new one of the full size; synced at the end of the block.

        Raises OSError.
        """
        if not done.total:
            remove_durably(self._checkpoint.path)
        descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not done.total:
                allocate(descriptor, self.size_bytes)
            yield Target(self.part, descriptor, self.size_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def reject(self, aside: str = "") -> None:
        """Set the part aside or remove it (see `PartFile`), and its checkpoint with it. Raises OSError."""
        super().reject(aside)
        remove_durably(self._checkpoint.path)

    def reopen(self, done: Ranges) -> None:
        """Make the finished file a part again, of which only ``done`` is right. Raises OSError."""
        self.checkpoint(done.pairs())
        os.replace(self.path, self.part)
        fsync_directory(os.path.dirname(self.path) or ".")

    def remove_stray_checkpoint(self) -> None:
        """Remove the checkpoint that a run left which was killed right after the file got its name. Raises OSError."""
        if os.path.exists(self._checkpoint.path) and not os.path.exists(self.part):
            remove_durably(self._checkpoint.path)

    def _rename(self, name: str) -> None:
        super()._rename(name)
        remove_durably(self._checkpoint.path)


def part_path(path: str) -> str:
    """Return the name of the file at ``path`` while it is incomplete."""
    return f"{path}.part"


def checkpoint_path(path: str) -> str:
    """Return where it is written down what of the part is safe."""
    return f"{part_path(path)}.json"
