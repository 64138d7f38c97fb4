"""Reads the members of zip archives in the order of their offsets, so that the disk is read sequentially.

The standard library's zipfile reads the central directory, unpacks each member and checks its CRC. The caller rejects
what is neither a plain file nor a directory.
"""

from __future__ import annotations

import errno
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator

from ansible.module_utils.imagenet_ops.archive.member import (
    DIRECTORY,
    FILE,
    DamagedArchiveError,
    Member,
    UnsupportedArchiveError,
)

# The "version made by" of systems that keep a mode in a member (PKWARE's APPNOTE.TXT, 4.4.2.2).
_UNIX_SYSTEMS = (3, 19)
_KINDS = {
    0: FILE,  # a program that keeps no mode
    stat.S_IFREG: FILE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
}
_ENCRYPTED = 0x1  # of the general purpose bit flag (APPNOTE.TXT, 4.4.4)
# Compression methods that every Python reads, and the names of others (4.4.5).
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_METHOD_NAMES = {1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 95: "XZ", 96: "JPEG", 98: "PPMd"}
# What zipfile and the decompressors under it raise for damaged data. A name that is not UTF-8 is a ValueError, an
# encrypted member a RuntimeError, and a MemoryError is a dictionary of LZMA that is larger than any archive needs.
_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    IndexError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)
_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")  # of a first member, and of an archive without one


def is_zip(path: str) -> bool:
    """Return whether the file at ``path`` begins as a zip archive does."""
    with open(path, "rb") as file:
        return file.read(4) in _SIGNATURES


class ZipReader:
    """The members of the zip archive at ``path``, in the order of their bytes. A context manager.

    ``file_position`` is how far the file is read.
    """

    compressed = True

    def __init__(self, path: str) -> None:
        """Read the central directory. Raises DamagedArchiveError and UnsupportedArchiveError."""
        self.file_position = 0
        with open(path, "rb") as file:
            size = file.seek(0, 2)
        try:
            self._zip = zipfile.ZipFile(path)
        except _ERRORS as error:
            _require_no_disk_error(error)
            raise DamagedArchiveError(size, f"its central directory cannot be read ({error})") from error
        self._infos = sorted(self._zip.infolist(), key=lambda info: info.header_offset)
        # Where the central directory begins, and the last member ends.
        self._end = self._zip.start_dir
        # zipfile takes what comes before the first member for a program that unpacks the rest.
        first = min((info.header_offset for info in self._infos), default=self._end)
        if first:
            self._zip.close()
            raise DamagedArchiveError(
                0,
                f"its central directory does not list what the first {first} bytes hold: archives were joined",
                "Fetch it again (archive_fetch compares its MD5). If archives were joined on purpose, split the file"
                f" after byte {first}",
            )
        self._current: zipfile.ZipInfo | None = None

        for info in self._infos:
            if info.compress_type not in _METHODS and not info.flag_bits & _ENCRYPTED:
                self._zip.close()
                method = _METHOD_NAMES.get(info.compress_type, "an unknown way")
                raise UnsupportedArchiveError(
                    f"{info.orig_filename!r} in it is compressed in {method} (method {info.compress_type})",
                    "Unpack it with 7z x and use the directory",
                )

    def __enter__(self) -> ZipReader:  # noqa: PYI034 (Self is newer than Python 3.9)
        """Return the reader."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self._zip.close()

    def remaining_bytes(self, position: int) -> int:
        """Return the unpacked size in bytes of the members from ``position`` on."""
        return sum(info.file_size for info in self._infos if info.header_offset >= position)

    def members(self, position: int) -> Iterator[Member]:
        """Yield the members whose headers are not before ``position``."""
        ends = [*(info.header_offset for info in self._infos[1:]), self._end]
        for info, end in zip(self._infos, ends):
            if info.header_offset >= position:
                self._current = info
                offset = info.header_offset
                yield Member(info.orig_filename, _kind(info), info.file_size, offset, offset, end)
                self.file_position = end

    def content(self, member: Member) -> bytes:
        """Return the data of the ``member`` that was yielded last; raises DamagedArchiveError.

        Raises ValueError where none was yielded.
        """
        if self._current is None:
            raise ValueError("no member was yielded")
        try:
            content = self._zip.read(self._current)
        except _ERRORS as error:
            _require_no_disk_error(error)
            raise DamagedArchiveError(member.offset, f"its data cannot be read ({error})") from error
        if len(content) != member.size:
            raise DamagedArchiveError(member.offset, f"it has {len(content)} bytes instead of {member.size}")
        self.file_position = member.end
        return content


def _require_no_disk_error(error: Exception) -> None:
    """Raise ``error`` where it is of the disk, not of the data: a position that no file can have is data."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error


def _kind(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & _ENCRYPTED:
        return "encrypted file"
    if info.filename.endswith("/"):
        return DIRECTORY
    mode = info.external_attr >> 16 if info.create_system in _UNIX_SYSTEMS else 0
    return _KINDS.get(stat.S_IFMT(mode), f"member of the unknown mode {mode:o}")
