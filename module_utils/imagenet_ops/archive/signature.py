"""Tells by its first bytes what a file is that is no tar and no zip, and how to make one of them of it."""

from __future__ import annotations

import re
from typing import NamedTuple

_UNPACK = "Unpack it with {} and use the directory"
_TO_TAR = "Unpack it to a tar with {} and use that"
_NOT_THE_FILE = "Fetch the archive itself; the URL, or the credentials for it, may be wrong"


class Signature(NamedTuple):
    """What a file is, as in "it is ...", and what to do about it."""

    kind: str
    todo: str


# The signatures of the formats' own documents and of file(1).
_SIGNATURES: tuple[tuple[bytes, Signature], ...] = (
    (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", Signature("Zstandard data", _TO_TAR.format("zstd -d"))),
    (rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18", Signature("LZ4 data", _TO_TAR.format("lz4 -d"))),
    (rb"7z\xbc\xaf\x27\x1c", Signature("a 7z archive", _UNPACK.format("7z x"))),
    (rb"Rar!\x1a\x07", Signature("a RAR archive", _UNPACK.format("unrar x"))),
    (rb"\x1f\x9d", Signature("the data of compress (.Z)", _TO_TAR.format("gzip -d"))),
    (rb"LZIP", Signature("lzip data", _TO_TAR.format("lzip -d"))),
    (rb"\x5d\0\0[\0-\xff]{2}", Signature("LZMA data in the old format", _TO_TAR.format("xz -d --format=lzma"))),
    (rb"\x1f\x8b|BZh[1-9]|\xfd7zXZ\0", Signature("compressed twice", _TO_TAR.format("gzip, bzip2 or xz -d"))),
    (rb"PK\x03\x04|PK\x05\x06", Signature("a zip within other data", "Unpack the outer file and use the zip")),
    (rb"PK\x07\x08|PK00", Signature("a part of a zip", "Join the parts with zip -s 0 FIRST.zip --out WHOLE.zip")),
    (rb"07070[127]", Signature("a cpio archive", _UNPACK.format("cpio -i"))),
    (rb"MZ|\x7fELF", Signature("a program, such as an archive that unpacks itself", _UNPACK.format("7z x"))),
    (rb"#!", Signature("a script, such as an archive that unpacks itself", "Run it elsewhere and use the directory")),
    (
        rb"version https://git-lfs\.github\.com/",
        Signature("the pointer of Git LFS in place of the file", "Fetch the file with git lfs pull"),
    ),
    (rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body|!--)", Signature("an HTML page", _NOT_THE_FILE)),
    (rb"(\xef\xbb\xbf)?\s*<\?xml", Signature("an XML document, such as the refusal of a server", _NOT_THE_FILE)),
    (rb"\s*[{\[]\s*\"", Signature("a JSON document, such as the refusal of a server", _NOT_THE_FILE)),
    (
        rb"\xff\xd8\xff|\x89PNG|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|BM....\0\0\0\0",
        Signature("a single image", "Use an archive or a directory of images"),
    ),
    (rb"hsqs|sqsh", Signature("a SquashFS image", _UNPACK.format("unsquashfs"))),
    (rb"\0{32768}.CD001", Signature("a disk image (ISO 9660)", _UNPACK.format("7z x"))),
    (rb"MSCF\0|MSWIM\0|xar!|\x60\xea", Signature("an archive of another kind", _UNPACK.format("7z x"))),
    (rb"!<arch>\n", Signature("an ar archive or a Debian package", _UNPACK.format("ar x"))),
    (rb"\xed\xab\xee\xdb", Signature("an RPM package", _UNPACK.format("rpm2cpio and cpio -i"))),
    (rb"\x89LZO\0", Signature("LZO data", _TO_TAR.format("lzop -d"))),
    (rb"\xff\x06\0\0sNaPpY", Signature("Snappy data", _TO_TAR.format("snzip -d"))),
    (rb"LRZI", Signature("lrzip data", _TO_TAR.format("lrzip -d"))),
    (
        rb"\x89HDF\r\n|PAR1|\x93NUMPY|SQLite format 3\0|ARROW1\0|\x80[\x02-\x05][\x95c}\](]",
        Signature("a data file of another kind", "Write its images to <class>/<image> files and use the directory"),
    ),
    (rb"%PDF-", Signature("a PDF document", _NOT_THE_FILE)),
    (rb"HTTP/[12]", Signature("the answer of a server with its headers", _NOT_THE_FILE)),
    (rb"d\d+:\w", Signature("a torrent, which only says where the file is", _NOT_THE_FILE)),
    (rb"\xff\xfe|\xfe\xff", Signature("a text in UTF-16", _NOT_THE_FILE)),
    (rb"(\xef\xbb\xbf)?[\t\n\r\x20-\x7e]{64}", Signature("a text", _NOT_THE_FILE)),
)
_COMPILED = [(re.compile(pattern, re.IGNORECASE | re.DOTALL), found) for pattern, found in _SIGNATURES]


def signature_of(begin: bytes) -> Signature | None:
    """Return what the file is that begins with ``begin``; None where that is not known."""
    return next((found for pattern, found in _COMPILED if pattern.match(begin)), None)
