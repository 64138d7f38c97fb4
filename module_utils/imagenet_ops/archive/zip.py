"""Reads the members of zip archives in the order of their offsets, so that the disk is read sequentially.

The standard library's zipfile reads the central directory, unpacks each member and checks its CRC. The caller rejects
what is neither a plain file nor a directory.
"""

from __future__ import annotations

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
# Of the same flag: the data is followed by its sizes; it is a patch; its encryption is of another kind.
_DESCRIPTOR, _PATCH, _STRONG_ENCRYPTION = 0x8, 0x20, 0x40
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # 4.3.7: signature, and the lengths of name and extra field
# 4.3.9: how long a descriptor is, with or without signature, with sizes of 4 or 8 bytes.
_DESCRIPTOR_BYTES = (12, 16, 20, 24)
# Compression methods that every Python reads, and the names of others (4.4.5).
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_METHOD_NAMES = {1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 95: "XZ", 96: "JPEG", 98: "PPMd"}
# What zipfile and its decompressors raise for damaged data, some of them with whole names and more.
_READING_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, struct.error, NotImplementedError)
_LONGEST_REASON = 160
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
        except (zipfile.BadZipFile, NotImplementedError) as error:
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
        self._file = open(path, "rb")  # noqa: SIM115  (__exit__ closes it)
        for info in self._infos:
            unknown = _unknown_form(info)
            if unknown:
                self.__exit__()
                raise UnsupportedArchiveError(
                    f"{info.orig_filename!r} in it is of a kind that is not read: {unknown}",
                    "Unpack it with 7z x and use the directory",
                )

    def __enter__(self) -> ZipReader:  # noqa: PYI034 (Self is newer than Python 3.9)
        """Return the reader."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self._zip.close()
        self._file.close()

    def remaining_bytes(self, position: int) -> int:
        """Return the unpacked size in bytes of the members from ``position`` on."""
        return sum(info.file_size for info in self._infos if info.header_offset >= position)

    def members(self, position: int) -> Iterator[Member]:
        """Yield the members whose headers are not before ``position``.

        Raises DamagedArchiveError where one of them reaches into the next, or where the central directory lacks one.
        """
        ends = [*(info.header_offset for info in self._infos[1:]), self._end]
        for info, end in zip(self._infos, ends):
            if info.header_offset >= position:
                self._current = info
                offset = info.header_offset
                self._check_end(info, end)
                yield Member(info.orig_filename, _kind(info), info.file_size, offset, offset, end)
                self.file_position = end

    def _check_end(self, info: zipfile.ZipInfo, end: int) -> None:
        """Compare where a member's data ends with where the next one begins; reading it checks its header."""
        self._file.seek(info.header_offset)
        header = self._file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(_SIGNATURES[0]):
            return
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        data_end = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes + info.compress_size
        if data_end > end:
            raise DamagedArchiveError(info.header_offset, "its data reaches into the next member")
        for length in _DESCRIPTOR_BYTES if info.flag_bits & _DESCRIPTOR else (0,):
            if data_end + length + len(_SIGNATURES[0]) <= end:
                self._file.seek(data_end + length)
                if self._file.read(len(_SIGNATURES[0])) == _SIGNATURES[0]:
                    raise DamagedArchiveError(
                        data_end + length,
                        "its central directory does not list the member there",
                        "Fetch it again (archive_fetch compares its MD5), or repair it with zip -FF",
                    )

    def content(self, member: Member) -> bytes:
        """Return the data of the ``member`` that was yielded last; raises DamagedArchiveError.

        Raises ValueError where none was yielded.
        """
        if self._current is None:
            raise ValueError("no member was yielded")
        try:
            content = self._zip.read(self._current)
        except _READING_ERRORS as error:
            if getattr(error, "errno", None) is not None:
                raise  # an error of the disk, not of the data
            raise DamagedArchiveError(
                member.offset, f"its data cannot be read ({str(error)[:_LONGEST_REASON]})"
            ) from error
        if len(content) != member.size:
            raise DamagedArchiveError(member.offset, f"it has {len(content)} bytes instead of {member.size}")
        self.file_position = member.end
        return content


def _unknown_form(info: zipfile.ZipInfo) -> str:
    """Return how a member is stored where zipfile cannot read it, as in "it is ..."; "" where it can."""
    if info.flag_bits & _PATCH:
        return "a patch for another file"
    if info.flag_bits & _STRONG_ENCRYPTION:
        return "encrypted"
    if info.compress_type in _METHODS or info.flag_bits & _ENCRYPTED:
        return ""
    method = _METHOD_NAMES.get(info.compress_type, "an unknown way")
    return f"compressed in {method} (method {info.compress_type})"


def _kind(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & _ENCRYPTED:
        return "encrypted file"
    if info.is_dir():
        return DIRECTORY
    mode = info.external_attr >> 16 if info.create_system in _UNIX_SYSTEMS else 0
    return _KINDS.get(stat.S_IFMT(mode), f"member of the unknown mode {mode:o}")
