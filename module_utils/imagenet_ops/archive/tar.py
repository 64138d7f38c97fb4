"""Reads tar archives in one sequential pass, strictly, with the byte offset of everything in reach.

The standard library's tarfile takes a damaged header for the end of the archive and says nothing, knows no archive
within an archive without a copy, and cannot begin in the middle; all three matter here. This reader knows the ustar
format and what GNU tar and pax added for long names and large sizes (POSIX.1-2017, pax, "ustar Interchange Format";
GNU tar manual, "Basic Tar Format"). Whatever is not a file or a directory is left to the caller to refuse.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from typing import Protocol

from ansible.module_utils.imagenet_ops.archive.entry import DIRECTORY, FILE, DamagedArchiveError, Entry

BLOCK_BYTES = 512
# What the file is read in: large, as a disk of the cheap kind wants it.
_BUFFER_BYTES = 1024 * 1024
# A name or a set of attributes longer than this is no honest one.
_LARGEST_EXTENSION_BYTES = 1024 * 1024
_ZERO_BLOCK = bytes(BLOCK_BYTES)
# What the standard library's readers of compressed files meet damage with.
_UNPACKING_ERRORS = (EOFError, zlib.error, lzma.LZMAError, OSError)

_KINDS = {
    b"0": FILE,
    b"\0": FILE,
    b"7": FILE,
    b"5": DIRECTORY,
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"6": "named pipe",
    b"S": "sparse file",
}


class ForwardReader(Protocol):
    """Bytes that are read forwards; ``position`` is how far."""

    position: int

    def read(self, count: int) -> bytes:
        """Return exactly ``count`` bytes. Raises DamagedArchiveError where there are fewer."""

    def skip_to(self, position: int) -> None:
        """Go on at ``position``, which is not before the present one."""


class TarReader:
    """The unpacked bytes of the tar at ``path`` (plain, or in gzip, bzip2 or xz), read forwards. A context manager."""

    def __init__(self, path: str) -> None:
        self.position = 0
        self._raw: io.BufferedReader = io.BufferedReader(io.FileIO(path), _BUFFER_BYTES)
        self._file: io.BufferedIOBase = _unpacked(self._raw)
        self.compressed = self._file is not self._raw
        os.posix_fadvise(self._raw.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def __enter__(self) -> TarReader:  # noqa: PYI034 (Self is newer than Python 3.9)
        """Return the reader."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self._file.close()
        self._raw.close()

    @property
    def file_position(self) -> int:
        """How far the file itself is read; that is `position`, but for a compressed one."""
        return self._raw.tell() if self.compressed else self.position

    def read(self, count: int) -> bytes:
        """Return exactly ``count`` bytes. Raises DamagedArchiveError where the archive ends earlier."""
        try:
            data = self._file.read(count)
        except _UNPACKING_ERRORS as error:
            if getattr(error, "errno", None) is not None:
                raise  # the disk's, not that of bz2 or gzip
            raise DamagedArchiveError(self.position, f"its compressed data is damaged ({error})") from error
        if len(data) < count:
            # What was skipped may have been beyond the end already.
            end = self.position + len(data) if self.compressed else os.fstat(self._raw.fileno()).st_size
            raise DamagedArchiveError(end, f"it ends {self.position + count - end} bytes too early")
        self.position += count
        return data

    def remaining_bytes(self, position: int) -> int | None:
        """Return how many bytes there are from ``position`` on; None where only unpacking would tell."""
        return None if self.compressed else os.fstat(self._raw.fileno()).st_size - position

    def entries(self, position: int) -> Iterator[Entry]:
        """Yield the entries from ``position`` on, where one of them begins; see `members`."""
        self.skip_to(position)
        yield from members(self)

    def content(self, entry: Entry) -> bytes:
        """Return the data of the ``entry`` that was yielded last. Raises DamagedArchiveError."""
        return self.read(entry.size)

    def skip_to(self, position: int) -> None:
        """Go on at ``position``, which is not before the present one."""
        if self.compressed:
            while self.position < position:
                self.read(min(_BUFFER_BYTES, position - self.position))
        elif self.position != position:
            self._file.seek(position)
            self.position = position


def _unpacked(raw: io.BufferedReader) -> io.BufferedIOBase:
    """Return a reader of what ``raw`` holds, told by its first bytes (RFC 1952; the bzip2 and xz file formats)."""
    begin = raw.peek(6)[:6]
    if begin.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)
    if begin.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    return lzma.LZMAFile(raw) if begin == b"\xfd7zXZ\0" else raw


def members(reader: ForwardReader, end: int | None = None) -> Iterator[Entry]:
    """Yield the entries of the archive that begins at the reader's position and ends before ``end`` (None: anywhere).

    The caller may read an entry's data, and need not. Raises DamagedArchiveError for a header whose checksum does not
    fit, for one that cannot be, and where the two zero blocks that end an archive are missing.
    """
    name: str | None = None
    size: int | None = None
    first = reader.position
    while True:
        offset = reader.position
        header = _read_header(reader, end)
        if header is None:
            return
        kind = header[156:157]
        data_size = _number(header[124:136], offset)
        if kind in (b"L", b"x"):
            data = _extension(reader, data_size)
            if kind == b"L":
                name = _text(data.rstrip(b"\0"))
            else:
                attributes = _pax(data, offset)
                name = attributes.get("path", name)
                size = int(attributes["size"]) if "size" in attributes else size
        elif kind in (b"K", b"g"):
            _extension(reader, data_size)
        else:
            entry = _entry(header, name, data_size if size is None else size, first, reader.position)
            if end is not None and entry.end > end:
                raise DamagedArchiveError(offset, f"an entry of {entry.size} bytes does not fit into what is left")
            yield entry
            reader.skip_to(entry.end)
            name, size, first = None, None, reader.position


def _read_header(reader: ForwardReader, end: int | None) -> bytes | None:
    """Return the next header, its checksum compared; None for a zero block, the end of the archive."""
    offset = reader.position
    if end is not None and offset + BLOCK_BYTES > end:
        raise DamagedArchiveError(offset, "its end is missing")
    header = reader.read(BLOCK_BYTES)
    if header == _ZERO_BLOCK:
        return None
    # The sum of all bytes, with the checksum's own eight taken as spaces.
    total = sum(header) - sum(header[148:156]) + 8 * 0x20
    if total != _number(header[148:156], offset):
        raise DamagedArchiveError(offset, "the checksum of a header does not fit")
    return header


def _entry(header: bytes, name: str | None, size: int, offset: int, data_offset: int) -> Entry:
    flag = header[156:157]
    if name is None:
        name = _text(header[:100].split(b"\0", 1)[0])
        # Only POSIX has a prefix here; GNU tar keeps other things in its place.
        prefix = header[345:500].split(b"\0", 1)[0]
        if header[257:263] == b"ustar\0" and prefix:
            name = f"{_text(prefix)}/{name}"
    kind = _KINDS.get(flag, f"entry of the unknown type {flag.decode('latin-1')!r}")
    if kind == FILE and name.endswith("/"):
        kind = DIRECTORY
    if kind != FILE:
        size = 0
    return Entry(name, kind, size, offset, data_offset, data_offset + -(-size // BLOCK_BYTES) * BLOCK_BYTES)


def _number(field: bytes, offset: int) -> int:
    """Return a number of a header: octal digits, or binary with the first bit set (GNU tar, for large ones)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if any(digit not in b"01234567" for digit in digits):
        raise DamagedArchiveError(offset, "a number in a header is not one")
    return int(digits, 8)


def _extension(reader: ForwardReader, size: int) -> bytes:
    """Return the data of an entry that describes the next one."""
    if size > _LARGEST_EXTENSION_BYTES:
        raise DamagedArchiveError(reader.position, f"a name of {size} bytes is too long")
    data = reader.read(size)
    reader.skip_to(reader.position + -size % BLOCK_BYTES)
    return data


def _pax(data: bytes, offset: int) -> dict[str, str]:
    """Return the attributes of a pax header: lines ``<length> <key>=<value>``, the length counting the whole line."""
    attributes = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or data[int(length) - 1 : int(length)] != b"\n":
            raise DamagedArchiveError(offset, "a pax header is damaged")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        attributes[_text(key)] = _text(value)
        data = data[int(length) :]
    if not attributes.get("size", "0").isdigit():
        raise DamagedArchiveError(offset, "a pax header is damaged")
    return attributes


def _text(name: bytes) -> str:
    return name.decode("utf-8", errors="surrogateescape")
