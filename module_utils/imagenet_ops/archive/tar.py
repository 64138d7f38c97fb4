"""Reads tar archives strictly, in one sequential pass, with the byte offset of every member.

The standard library's tarfile silently takes a damaged header for the end of the archive, cannot read a nested
archive without a copy, and cannot start in the middle; all three matter here. This reader knows the ustar
format and what GNU tar and pax added for long names and large sizes (POSIX.1-2017, pax, "ustar Interchange Format";
GNU tar manual, "Basic Tar Format" and "Dumpdir"). The caller rejects what is neither a file nor a directory.

The end of an archive is a block of zeros, and so is a header that was overwritten. So the stream is read on from there:
zeros to its end are padding, anything else is an error. It also takes that for the checksums of gzip, bzip2 and xz.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from typing import Any, Callable, Protocol

from ansible.module_utils.imagenet_ops.archive.member import (
    DIRECTORY,
    FILE,
    DamagedArchiveError,
    Member,
    UnsupportedArchiveError,
)
from ansible.module_utils.imagenet_ops.archive.signature import signature_of

BLOCK_BYTES = 512
# Large reads, for the throughput of spinning disks.
_BUFFER_BYTES = 1024 * 1024
# What is unpacked at once.
_PACKED_BYTES = 128 * 1024
# Longer names, attributes and lists of a directory's files are not genuine.
_LARGEST_EXTENSION_BYTES = 16 * 1024 * 1024
_ZERO_BLOCK = bytes(BLOCK_BYTES)
# Beyond what a file can have (off_t of POSIX); a number of a header may have more digits.
_LARGEST_FILE_BYTES = (1 << 63) - 1
# Where the unpacked files of joined archives come from.
_JOINED_TODO = (
    "Fetch it again (archive_fetch compares its MD5). If archives were joined on purpose, unpack them with"
    " tar --ignore-zeros and use the directory"
)
# What the standard library's decompressors raise for damaged data.
_UNPACKING_ERRORS = (EOFError, zlib.error, lzma.LZMAError, OSError)

_KINDS = {
    b"0": FILE,
    b"\0": FILE,
    b"7": FILE,
    b"5": DIRECTORY,
    b"D": DIRECTORY,
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"6": "named pipe",
    b"S": "sparse file",
    b"M": "part of a file of another volume",
}


# Types of headers that describe the next member: its long name, its long link, its attributes, and those of all.
_DESCRIPTIONS = (b"L", b"K", b"x", b"g")


class ForwardReader(Protocol):
    """Bytes that are read forwards; ``position`` is how far."""

    position: int

    def read(self, count: int) -> bytes:
        """Return exactly ``count`` bytes. Raises DamagedArchiveError where there are fewer."""

    def skip_to(self, position: int) -> None:
        """Continue at ``position``, which is not before the current one. Raises DamagedArchiveError."""


class TarReader:
    """The unpacked bytes of the tar at ``path`` (plain, or in gzip, bzip2 or xz), read forwards. A context manager."""

    def __init__(self, path: str) -> None:
        self.position = 0
        self._raw: io.BufferedReader = io.BufferedReader(io.FileIO(path), _BUFFER_BYTES)
        self._file = _unpacked(self._raw)
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

    def require_tar(self) -> None:
        """Raise UnsupportedArchiveError where the file begins as another known kind of file does, and not as a tar."""
        try:
            begin = self._file.peek(BLOCK_BYTES)
        except _UNPACKING_ERRORS:
            return  # reading says what is wrong
        found = None if _is_header(begin[:BLOCK_BYTES]) else signature_of(begin)
        if found is not None:
            raise UnsupportedArchiveError(f"it is {found.kind}, not a tar or zip", found.todo)

    def read(self, count: int) -> bytes:
        """Return exactly ``count`` bytes. Raises DamagedArchiveError where the archive ends earlier."""
        data = self._read_up_to(count)
        if len(data) < count:
            # What was skipped may have been beyond the end already.
            end = self.position + len(data) if self.compressed else os.fstat(self._raw.fileno()).st_size
            raise DamagedArchiveError(end, f"it is truncated: {self.position + count - end} bytes are missing")
        self.position += count
        return data

    def _read_up_to(self, count: int) -> bytes:
        """Return ``count`` bytes, fewer at the end. Raises DamagedArchiveError where they cannot be unpacked."""
        try:
            return self._file.read(count)
        except _UNPACKING_ERRORS as error:
            if getattr(error, "errno", None) is not None:
                raise  # an error of the disk, not of the data
            raise DamagedArchiveError(self.position, f"its compressed data is damaged ({error})") from error

    def remaining_bytes(self, position: int) -> int | None:
        """Return how many bytes there are from ``position`` on; None if only unpacking could show it."""
        return None if self.compressed else os.fstat(self._raw.fileno()).st_size - position

    def members(self, position: int) -> Iterator[Member]:
        """Yield the members from ``position`` on, where one of them begins; see `read_members`.

        Raises DamagedArchiveError where anything but zeros follows the end of the archive.
        """
        self.skip_to(position)
        yield from read_members(self)
        while data := self._read_up_to(_BUFFER_BYTES):
            _require_zeros(data, self.position)
            self.position += len(data)

    def content(self, member: Member) -> bytes:
        """Return the data of the ``member`` that was yielded last. Raises DamagedArchiveError."""
        return self.read(member.size)

    def skip_to(self, position: int) -> None:
        """Continue at ``position``, which is not before the current one. Raises DamagedArchiveError."""
        if self.compressed:
            while self.position < position:
                self.read(min(_BUFFER_BYTES, position - self.position))
        elif self.position != position:
            self._file.seek(position)
            self.position = position


def _unpacked(raw: io.BufferedReader) -> io.BufferedReader:
    """Return a reader of the content of ``raw``, by its magic number (RFC 1952; the bzip2 and xz file formats)."""
    begin = raw.peek(6)[:6]
    for magic, decompressor in ((b"\x1f\x8b", _Gzip), (b"BZh", bz2.BZ2Decompressor), (b"\xfd7zXZ\0", _xz)):
        if begin.startswith(magic):
            return io.BufferedReader(_Unpacked(raw, decompressor), _BUFFER_BYTES)
    return raw


class _Unpacked(io.RawIOBase):
    """What the compressed streams of ``raw`` hold, one after another, each with its checksum; zeros may follow them.

    Other than the readers of bz2 and lzma it takes nothing else for padding: that could be half of the archive.
    """

    def __init__(self, raw: io.BufferedReader, decompressor: Callable[[], Any]) -> None:
        self._raw = raw
        self._decompressor = decompressor
        self._stream = decompressor()

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of ``buffer`` and return how much; 0 at the end. Raises EOFError and what decompressors raise."""
        while True:
            packed = b""
            if self._stream.eof:
                packed = self._following()
                if not packed:
                    return 0
                self._stream = self._decompressor()
            elif self._stream.needs_input:
                packed = self._raw.read(_PACKED_BYTES)
            data = self._stream.decompress(packed, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            if not packed and not self._stream.eof:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")

    def _following(self) -> bytes:
        """Return what follows the finished stream and its padding; b"" at the end of the file."""
        packed: bytes = self._stream.unused_data.lstrip(b"\0")
        while not packed:
            block = self._raw.read(_PACKED_BYTES)
            if not block:
                break
            packed = block.lstrip(b"\0")
        return packed


class _Gzip:
    """A decompressor of gzip (RFC 1952), with the interface of those of bz2 and lzma."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        """Whether the stream is complete and its checksum was compared."""
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        """Whether all that was given is unpacked."""
        return not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        """What was given and comes after the stream."""
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Return what ``data`` unpacks to, at most ``max_length`` bytes at a time. Raises zlib.error."""
        return self._stream.decompress(self._stream.unconsumed_tail + data, max_length)


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ)


def _require_zeros(data: bytes, offset: int) -> None:
    """Raise DamagedArchiveError where ``data``, which begins at ``offset`` after the end of an archive, has others."""
    following = data.lstrip(b"\0")
    if following:
        raise DamagedArchiveError(
            offset + len(data) - len(following),
            "data follows a block of zeros, which is the end of an archive: a header was overwritten, or archives were"
            " joined",
            _JOINED_TODO,
        )


def read_members(reader: ForwardReader, end: int | None = None) -> Iterator[Member]:
    """Yield the members of the archive that begins at the reader's position and ends before ``end`` (None: anywhere).

    The caller may read a member's data or not. Raises DamagedArchiveError for a header with a wrong checksum or an
    impossible value, where the block of zeros that ends an archive is missing, and where anything but zeros is between
    it and ``end``.
    """
    described = _Description(reader.position)
    while True:
        offset = reader.position
        header = _read_header(reader, end)
        if header is None:
            while end is not None and reader.position < end:
                position = reader.position
                _require_zeros(reader.read(min(_BUFFER_BYTES, end - position)), position)
            return
        kind = header[156:157]
        data_size = _number(header[124:136], offset)
        if kind in _DESCRIPTIONS:
            described.take(kind, _extension(reader, data_size), offset)
            continue
        if kind == b"D":
            described.dumped = _extension(reader, data_size)
            yield described.member(header, 0, reader.position)
        elif kind != b"V":  # the label of the volume, a name without a file
            member = described.member(header, data_size, reader.position)
            if end is not None and member.end > end:
                raise DamagedArchiveError(offset, f"a member of {member.size} bytes exceeds the end of the archive")
            yield member
            reader.skip_to(member.end)
        described = _Description(reader.position)


class _Description:
    """What the headers before that of a member say of it; the first of them is at byte ``offset``."""

    def __init__(self, offset: int) -> None:
        self.dumped = b""  # the names of a directory in an incremental dump
        self._offset = offset
        self._name: str | None = None
        self._size: int | None = None
        self._partial = ""  # what it is if its data is not what the file has

    def take(self, kind: bytes, data: bytes, offset: int) -> None:
        """Take over the ``data`` of a header of one of the `_DESCRIPTIONS`, which is at byte ``offset``."""
        if kind == b"L":
            self._name = _text(data.rstrip(b"\0"))
        elif kind == b"x":
            attributes = _pax(data, offset)
            self._name = attributes.get("path", self._name)
            self._size = int(attributes["size"]) if "size" in attributes else self._size
            self.dumped = attributes.get("GNU.dumpdir", "").encode("utf-8", errors="surrogateescape")
            if any(key.startswith("GNU.sparse.") for key in attributes):
                self._partial = _KINDS[b"S"]  # without its holes, and often with a map of them
        elif kind == b"g" and b" GNU.volume.offset=" in data:
            self._partial = _KINDS[b"M"]

    def member(self, header: bytes, size: int, data_offset: int) -> Member:
        """Return the member with this ``header``, whose ``size`` is right where nothing else was said."""
        size = size if self._size is None else self._size
        found = _dumped(_member(header, self._name, size, self._offset, data_offset), self.dumped)
        return found._replace(kind=self._partial) if self._partial else found


def _read_header(reader: ForwardReader, end: int | None) -> bytes | None:
    """Return the next header, its checksum compared; None for a zero block, the end of the archive."""
    offset = reader.position
    if end is not None and offset + BLOCK_BYTES > end:
        raise DamagedArchiveError(offset, "its end is missing")
    header = reader.read(BLOCK_BYTES)
    if header == _ZERO_BLOCK:
        return None
    if _number(header[148:156], offset) not in _checksums(header):
        raise DamagedArchiveError(offset, "header checksum mismatch")
    return header


def _checksums(header: bytes) -> tuple[int, int]:
    """Return the sum of all bytes, with the checksum's own eight taken as spaces, and that of signed bytes.

    Some old systems wrote the latter (GNU tar manual, "Basic Tar Format"); only names beyond ASCII tell them apart.
    """
    others = header[:148] + header[156:]
    unsigned = sum(others) + 8 * 0x20
    return unsigned, unsigned - 256 * sum(byte > 0x7F for byte in others)


def _is_header(block: bytes) -> bool:
    try:
        return len(block) == BLOCK_BYTES and _number(block[148:156], 0) in _checksums(block)
    except DamagedArchiveError:
        return False


def _member(header: bytes, name: str | None, size: int, offset: int, data_offset: int) -> Member:
    flag = header[156:157]
    if name is None:
        name = _text(header[:100].split(b"\0", 1)[0])
        # Only POSIX has a prefix here; GNU tar keeps other things in its place.
        prefix = header[345:500].split(b"\0", 1)[0]
        if header[257:263] == b"ustar\0" and prefix:
            name = f"{_text(prefix)}/{name}"
    kind = _KINDS.get(flag, f"member of the unknown type {flag.decode('latin-1')!r}")
    if kind == FILE and name.endswith("/"):
        kind = DIRECTORY
    if kind != FILE:
        size = 0
    return Member(name, kind, size, offset, data_offset, data_offset + -(-size // BLOCK_BYTES) * BLOCK_BYTES)


def _dumped(member: Member, names: bytes) -> Member:
    """Return ``member``, a directory whose files the ``names`` of an incremental dump list, by its kind.

    Each name follows a letter, and N is for a file that is not in this archive, but in an earlier one.
    """
    earlier = [_text(name[1:]) for name in names.split(b"\0") if name.startswith(b"N")]
    if not earlier:
        return member
    kind = f"directory of an incremental dump that leaves out {len(earlier)} of its files, such as {earlier[0]!r}"
    return member._replace(kind=kind)


def _number(field: bytes, offset: int) -> int:
    """Return a number of a header: octal digits, or binary with the first bit set (GNU tar, for large ones)."""
    if field[0] == 0x80:
        number = int.from_bytes(field[1:], "big")
        if number > _LARGEST_FILE_BYTES:
            raise DamagedArchiveError(offset, "a header has an invalid number")
        return number
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if any(digit not in b"01234567" for digit in digits):
        raise DamagedArchiveError(offset, "a header has an invalid number")
    return int(digits, 8)


def _extension(reader: ForwardReader, size: int) -> bytes:
    """Return the data of a member that describes the next one."""
    if size > _LARGEST_EXTENSION_BYTES:
        raise DamagedArchiveError(reader.position, f"a name of {size} bytes exceeds the limit")
    data = reader.read(size)
    reader.skip_to(reader.position + -size % BLOCK_BYTES)
    return data


def _pax(data: bytes, offset: int) -> dict[str, str]:
    """Return the attributes of a pax header: lines ``<length> <key>=<value>``, the length counting the whole line."""
    attributes = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not _is_size(length) or data[int(length) - 1 : int(length)] != b"\n":
            raise DamagedArchiveError(offset, "a pax header is invalid")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"size" and not _is_size(value):
            raise DamagedArchiveError(offset, "a pax header is invalid")
        attributes[_text(key)] = _text(value)
        data = data[int(length) :]
    return attributes


def _is_size(digits: bytes) -> bool:
    """Return whether ``digits`` are a number that a file can have bytes."""
    return digits.isdigit() and len(digits) < 20 and int(digits) <= _LARGEST_FILE_BYTES


def _text(name: bytes) -> str:
    return name.decode("utf-8", errors="surrogateescape")
