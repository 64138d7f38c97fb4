"""A member of an archive, the same for tar and zip, and the error for a damaged archive."""

from __future__ import annotations

from typing import NamedTuple

FILE = "file"
DIRECTORY = "directory"


class DamagedArchiveError(Exception):
    """The archive is damaged or ends too early at byte ``offset`` (of the unpacked stream); ``str()`` says how.

    ``todo`` is what to do about it; "" where fetching it again is all.
    """

    def __init__(self, offset: int, reason: str, todo: str = "") -> None:
        self.offset = offset
        self.todo = todo
        super().__init__(reason)


class UnsupportedArchiveError(Exception):
    """The archive is sound and cannot be read; ``str()`` says why, ``todo`` what to do about it."""

    def __init__(self, reason: str, todo: str) -> None:
        self.todo = todo
        super().__init__(reason)


class Member(NamedTuple):
    """A member of an archive: ``kind`` is FILE, DIRECTORY, or the name of another type.

    ``offset`` is where its (first) header begins, ``data_offset`` where its ``size`` bytes do (in a zip archive, where
    that is known only when they are read: the header's), ``end`` where the next member's header is.
    """

    name: str
    kind: str
    size: int
    offset: int
    data_offset: int
    end: int
