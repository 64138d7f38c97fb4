"""Checksums of the pieces of an archive: where it is damaged, once it is known that it is.

MD5 and SHA-256 of the whole say whether an archive is right, but not where it is wrong; and to fetch 150 GB anew for
one bad sector is a week. So the CRC32 of each piece is kept from the first verified download on. It need not withstand
an attacker, for the hashes of the whole decide in the end, and it costs next to nothing beside them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ansible.module_utils.imagenet_ops.core.files import fsync_directory
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile, hexadecimal, natural

_RECORD = Kind(
    "archive_fetch record of pieces",
    1,
    {
        "name": str,
        "size_bytes": natural,
        "md5": str,
        "sha256": str,
        "piece_bytes": natural,
        "crc32s": [hexadecimal(8)],
    },
    todo="Remove it and run again; a deep check of the archive makes a new one",
)
# What one damaged byte costs to fetch; the largest archive of ImageNet has 8,816 such pieces, their list 130 KB.
PIECE_BYTES = 16 * 1024 * 1024
_NAMED_RANGES = 3


@dataclass(frozen=True)
class Pieces:
    """The CRC32 of each piece of a file, in order; all are ``piece_bytes`` long but the last."""

    piece_bytes: int
    crc32s: tuple[int, ...]


@dataclass(frozen=True)
class PieceRecord:
    """The pieces of archive ``name``, and its size, MD5 and SHA-256 (lower-case hex) when it was verified."""

    name: str
    size_bytes: int
    md5: str
    sha256: str
    pieces: Pieces

    def span(self, number: int) -> tuple[int, int]:
        """Return the bytes ``[start, end)`` of piece ``number``, counted from 0."""
        start = number * self.pieces.piece_bytes
        return start, min(start + self.pieces.piece_bytes, self.size_bytes)

    def damaged(self, found: Pieces) -> list[tuple[int, int]]:
        """Return the bytes ``[start, end)`` of each piece that another file of this size, with ``found``, has wrong.

        None are told where ``found`` are pieces of another length, for these cannot be compared.
        """
        if found.piece_bytes != self.pieces.piece_bytes:
            return []
        pairs = enumerate(zip(self.pieces.crc32s, found.crc32s))
        return [self.span(number) for number, (right, wrong) in pairs if right != wrong]


def ranges_text(ranges: Sequence[tuple[int, int]]) -> str:
    """Return ``[start, end)`` ranges for people: first and last byte, adjacent ones as one, only the first few."""
    joined: list[tuple[int, int]] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    named = ", ".join(f"{start}-{end - 1}" for start, end in joined[:_NAMED_RANGES])
    more = len(joined) - _NAMED_RANGES
    return f"bytes {named}" + (f" and {more} more ranges" if more > 0 else "")


def _directory(state_dir: str) -> str:
    return os.path.join(state_dir, "archive_pieces")


def _file(state_dir: str, name: str) -> StateFile:
    return StateFile(os.path.join(_directory(state_dir), f"{name}.json"), _RECORD)


def write_pieces(state_dir: str, record: PieceRecord) -> None:
    """Keep ``record`` as ``<state_dir>/archive_pieces/<name>.json``, durable when this returns."""
    if not os.path.isdir(_directory(state_dir)):
        os.makedirs(_directory(state_dir), exist_ok=True)
        fsync_directory(state_dir)
    _file(state_dir, record.name).write(
        {
            "name": record.name,
            "size_bytes": record.size_bytes,
            "md5": record.md5,
            "sha256": record.sha256,
            "piece_bytes": record.pieces.piece_bytes,
            "crc32s": [f"{crc32:08x}" for crc32 in record.pieces.crc32s],
        },
    )


def read_pieces(state_dir: str, name: str) -> PieceRecord | None:
    """Return the record of archive ``name``, or None where it has none. Raises OpsError for one that is not ours."""
    file = _file(state_dir, name)
    found = file.read()
    if found is None:
        return None
    size_bytes, piece_bytes, crc32s = found["size_bytes"], found["piece_bytes"], found.pop("crc32s")
    if found["name"] != name:
        file.discard(f"it is the record of {found['name']}")
    if not piece_bytes or len(crc32s) != -(-size_bytes // piece_bytes):
        file.discard("it is damaged: it does not hold a checksum of each piece")
    pieces = Pieces(found.pop("piece_bytes"), tuple(int(crc32, 16) for crc32 in crc32s))
    return PieceRecord(**found, pieces=pieces)
