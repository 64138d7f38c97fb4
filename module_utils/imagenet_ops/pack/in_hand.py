"""Which images are being decoded, where the death of this process leaves it, so that the next run knows.

``recordio_pack.in_hand`` has a slot for each thread, with the name of its image. The file is mapped into memory: what
is written there outlives the process, whatever ends it, and costs no system call. The next run takes the names from it
into ``recordio_pack.suspects.json``. A suspect is not bad: it is decoded in a process of its own from then on, and that
tells. A power cut may lose the names; a run that a decoder ends after it leaves them again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections import deque
from collections.abc import Iterator
from typing import Any, Callable

from ansible.module_utils.imagenet_ops.core.files import remove_durably
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile, Warn

_IN_HAND = "recordio_pack.in_hand"
_SLOT_BYTES = 8192  # two paths of Linux (PATH_MAX); the rest of a longer name is cut off

SUSPECTS = Kind(
    "recordio_pack suspects", 1, {"images": [str]}, starts_over="images that ended a run are decoded as all others"
)


class InHand:
    """The images in hand of a run with ``workers`` threads; its files are in ``state_dir``. Close it at the end.

    ``suspects`` has the names of the images that were in hand when an earlier run ended without closing it. ``warn`` is
    called if they cannot be read.
    """

    def __init__(self, state_dir: str, workers: int, warn: Warn) -> None:
        """Take over what an earlier run left. Raises OpsError and OSError."""
        self._path = os.path.join(state_dir, _IN_HAND)
        state = StateFile(os.path.join(state_dir, "recordio_pack.suspects.json"), SUSPECTS, warn)
        known = set((state.read() or {"images": []})["images"])
        left = {name for _, name in names_in_hand(state_dir)}
        self.suspects = frozenset(known | left)
        if left - known:
            state.write({"images": sorted(self.suspects)})
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(descriptor, workers * _SLOT_BYTES)
            self._map = mmap.mmap(descriptor, workers * _SLOT_BYTES)
        finally:
            os.close(descriptor)
        self._free = deque(range(0, workers * _SLOT_BYTES, _SLOT_BYTES))

    @contextlib.contextmanager
    def slot(self) -> Iterator[Callable[[str], Any]]:
        """Hold a slot; what the block gets writes the name of the image that is next, "" for none."""
        begin = self._free.pop()

        def write(name: str) -> None:
            text = printable(name).encode()[: _SLOT_BYTES - 1] + b"\0"
            self._map[begin : begin + len(text)] = text

        try:
            yield write
        finally:
            self._map[begin] = 0
            self._free.append(begin)

    def close(self) -> None:
        """Forget the images: whatever ends this run from here on, it is not their decoding. Raises OSError."""
        self._map.close()
        remove_durably(self._path)


def names_in_hand(state_dir: str) -> list[tuple[int, str]]:
    """Return the slot and the name of each image that a run has in hand, or had when it ended. Raises OSError."""
    try:
        with open(os.path.join(state_dir, _IN_HAND), "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return []
    slots = ((begin, content[begin : begin + _SLOT_BYTES]) for begin in range(0, len(content), _SLOT_BYTES))
    names = ((begin, slot.partition(b"\0")[0].decode("utf-8", "replace")) for begin, slot in slots)
    return [(begin, name) for begin, name in names if name]


def printable(name: str) -> str:
    """Return ``name`` as a journal can hold it: a byte of a path that is not UTF-8 is escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
