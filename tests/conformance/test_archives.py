"""The same archives, read by this project and by others: where they differ, archives.md says who is right, and why."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.archive.images import Refusals, open_archive
from ansible.module_utils.imagenet_ops.archive.member import DamagedArchiveError
from ansible.module_utils.imagenet_ops.core.errors import OpsError

Files = dict[str, bytes]

FILES: Files = {"a/1.png": b"1" * 700, "b/2.png": b"2" * 1024, "b/3.png": b"3" * 10}
# Beside those what a few archives hold: a file with a hole, and a name beyond ASCII.
KNOWN = {**FILES, "b": bytes(1 << 20) + b"1" * 700, "a/\udce9.png": FILES["a/1.png"]}
TABLE = Path(__file__).with_name("archives.md")
REFUSED = "refused"


def tar(files: Files, zero_bytes: int = 1024) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        end = archive.offset
    return buffer.getvalue()[:end] + bytes(zero_bytes)


def by_tar(folder: Path, *options: str) -> bytes:
    """What GNU tar makes of the files with these options."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return subprocess.run(["tar", *options, "-cf", "-", *FILES], cwd=folder, check=True, capture_output=True).stdout


def dump(folder: Path, form: str, level: int) -> bytes:
    """What GNU tar makes of the files as a dump of this level: the second one lacks what the first one has."""
    folder.mkdir()
    directories = sorted({name.partition("/")[0] for name in FILES})
    options = ["tar", f"--format={form}", "--listed-incremental=state", "-cf", "-", *directories]
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        os.utime(folder / name, (0, 0))
    dumps = [subprocess.run(options, cwd=folder, check=True, capture_output=True).stdout for _ in range(level + 1)]
    return dumps[level]


def sparse(folder: Path, *options: str) -> bytes:
    """What GNU tar makes of a file of which only the end is on the disk."""
    folder.mkdir()
    with open(folder / "b", "wb") as file:
        file.seek(1 << 20)
        file.write(b"1" * 700)
    command = ["tar", "--sparse", *options, "-cf", "-", "b"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout


def second_volume(folder: Path, form: str) -> bytes:
    """The second of two volumes of GNU tar, into which a file continues."""
    folder.mkdir()
    (folder / "1.png").write_bytes(bytes(range(256)) * 120)
    command = ["tar", f"--format={form}", "--multi-volume", "--tape-length=20", "-cf", "v1", "-f", "v2", "1.png"]
    subprocess.run(command, cwd=folder, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return (folder / "v2").read_bytes()


def with_signed_checksum() -> bytes:
    """An archive of an old system: the bytes of a name beyond ASCII count as negative numbers."""
    whole = bytearray(tar(FILES))
    whole[2] = 0xE9
    whole[148:156] = b" " * 8
    total = sum(byte - 256 * (byte > 127) for byte in whole[:512])
    whole[148:156] = b"%06o\0 " % total
    return bytes(whole)


def of_huge_size() -> bytes:
    whole = bytearray(tar(FILES))
    whole[124:148] = b"\x80" + b"\xff" * 11 + whole[136:148]
    whole[148:156] = b" " * 8
    whole[148:156] = b"%06o\0 " % sum(whole[:512])
    return bytes(whole)


def with_attribute(line: bytes) -> bytes:
    """An archive whose first member has this line in its pax header."""
    header = tarfile.TarInfo("attributes")
    header.type, header.size = b"x", len(line)
    return header.tobuf(tarfile.USTAR_FORMAT) + line + bytes(-len(line) % 512) + tar(FILES)


def not_listed(number: int) -> bytes:
    """A zip whose central directory lacks one of its members."""
    content = zipped(FILES)
    *begins, end = [found.start() for found in re.finditer(b"PK\x01\x02|PK\x05\x06", content)]
    entries = [content[a:b] for a, b in zip(begins, [*begins[1:], end], strict=True)]
    listed = b"".join(entries[:number] + entries[number + 1 :])
    counts = struct.pack("<HHHHIIH", 0, 0, len(entries) - 1, len(entries) - 1, len(listed), begins[0], 0)
    return content[: begins[0]] + listed + b"PK\x05\x06" + counts


def overlapping() -> bytes:
    """A zip of which two entries lead to the same bytes."""
    content = bytearray(zipped(FILES))
    second = content.find(b"PK\x01\x02", content.find(b"PK\x01\x02") + 4)
    content[second + 42 : second + 46] = bytes(4)
    return bytes(content)


def zipped(files: Files, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def halves() -> tuple[Files, Files]:
    (first, *others) = FILES
    return {first: FILES[first]}, {name: FILES[name] for name in others}


def without_second_header(content: bytes) -> bytes:
    return content[:1536] + bytes(512) + content[2048:]


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 0x10
    return bytes(changed)


def stored(content: bytes) -> bytes:
    packer = zlib.compressobj(0, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def both(pack: Callable[[bytes], bytes], between: bytes = b"") -> bytes:
    whole = tar(FILES)
    return pack(whole[:2000]) + between + pack(whole[2000:])


def archives(folder: Path) -> dict[str, bytes]:
    """Return the archives by their names in the table."""
    whole = tar(FILES)
    first, second = halves()
    packed = {"gzip": gzip.compress(whole), "bzip2": bz2.compress(whole), "xz": lzma.compress(whole)}
    return {
        "ustar": whole,
        **{f"ustar in {name}": content for name, content in packed.items()},
        "records of 1 block": by_tar(folder, "--blocking-factor=1"),
        "records of 200 blocks": by_tar(folder, "--blocking-factor=200"),
        "a MiB of zeros at the end": tar(FILES, 1024**2),
        "two streams of gzip": both(gzip.compress),
        "two streams of bzip2": both(bz2.compress),
        "two streams of xz, padded": both(lzma.compress, bytes(8)),
        "zip": zipped(FILES),
        "one block of zeros at the end": tar(FILES, 512),
        "no block of zeros at the end": tar(FILES, 0),
        "a volume label": by_tar(folder, "--label=pets"),
        "an incremental dump, complete": dump(folder / "dump0", "gnu", 0),
        "an incremental dump, the second": dump(folder / "dump1", "gnu", 1),
        "an incremental dump, the second, pax": dump(folder / "dump2", "pax", 1),
        "a sparse file": sparse(folder / "sparse0", "--format=gnu"),
        "a sparse file, pax": sparse(folder / "sparse1", "--format=pax"),
        "a sparse file, pax 0.0": sparse(folder / "sparse2", "--format=pax", "--sparse-version=0.0"),
        "a second volume": second_volume(folder / "volume0", "gnu"),
        "a second volume, pax": second_volume(folder / "volume1", "pax"),
        "a signed checksum": with_signed_checksum(),
        "a size beyond any file": of_huge_size(),
        "a pax size in other digits": with_attribute(b"11 size=\xd9\xa3\n"),
        "a pax size of 5,000 digits": with_attribute(b"5011 size=" + b"9" * 5000 + b"\n"),
        "joined": tar(first) + tar(second),
        "a header of zeros": without_second_header(whole),
        "text after the end": tar(FILES, 10240) + b"signed by nobody\n" * 32,
        "gzip, wrong checksum": flipped(stored(whole), stored(whole).find(b"3" * 10) + 3),
        "gzip, no checksum": packed["gzip"][:-8],
        "gzip, zeros after it": packed["gzip"] + bytes(512),
        "gzip, text after it": packed["gzip"] + b"text",
        "bzip2, wrong checksum": flipped(packed["bzip2"], 12),
        "bzip2, text after it": packed["bzip2"] + b"text",
        "bzip2, a damaged second stream after the end": packed["bzip2"] + flipped(bz2.compress(whole), 12),
        "xz, no index": packed["xz"][:-20],
        "xz, text after it": packed["xz"] + b"text",
        "xz, three zeros after it": packed["xz"] + bytes(3),
        "xz, a sum that is SHA-256": lzma.compress(whole, check=lzma.CHECK_SHA256),
        "gzip, the begin of a second stream": packed["gzip"] + b"\x1f\x8b\x08",
        "zips, joined": zipped(first) + zipped(second),
        "zip, wrong checksum": flipped(zipped(FILES), zipped(FILES).find(b"1" * 700)),
        "zip, Deflate": zipped(FILES, zipfile.ZIP_DEFLATED),
        "zip, text after it": zipped(FILES) + b"signed by nobody\n" * 32,
        "zip, end cut off": zipped(FILES)[:-30],
        "zip, the first member not listed": not_listed(0),
        "zip, the second member not listed": not_listed(1),
        "zip, the last member not listed": not_listed(2),
        "zip, two entries for the same bytes": overlapping(),
    }


def ours(path: Path) -> Files | None:
    try:
        with open_archive(str(path)) as reader:
            members = reader.members(0)
            return {m.name: reader.content(m) for m in Refusals(str(path)).files(members)}
    except (OpsError, DamagedArchiveError):
        return None


def of_python(path: Path) -> Files | None:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return {name: archive.read(name) for name in archive.namelist()}
        with tarfile.open(path) as tarred:
            return {m.name: tarred.extractfile(m).read() for m in tarred if m.isfile()}  # type: ignore[union-attr]
    except (
        OSError,
        EOFError,
        ValueError,
        OverflowError,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ):
        return None


def of_program(path: Path, program: str) -> Files | None:
    """What a program unpacks; None where its exit status is not 0."""
    folder = path.with_name(f"{path.name}.{program}")
    folder.mkdir()
    options = (
        ["-q", "-o", str(path), "-d", str(folder)] if program == "unzip" else ["-xf", str(path), "-C", str(folder)]
    )
    command = [program, *options]
    # unzip asks again and again where its input has ended.
    if subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=20).returncode:
        return None
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def in_words(files: Files | None) -> str:
    if files is None:
        return REFUSED
    return f"{len(files)} files" if files.items() <= KNOWN.items() else "wrong files"


def table() -> dict[str, list[str]]:
    rows = [line.strip("| \n").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return {name: cells for name, *cells in rows if name != "archive"}


def verdicts(folder: Path, judges: dict[str, Callable[[Path, str], Files | None]]) -> dict[str, list[str]]:
    """Return what each of ``judges`` says of each archive, in words."""
    found: dict[str, list[str]] = {}
    for number, (name, content) in enumerate(archives(folder).items()):
        path = folder / f"archive{number}"
        path.write_bytes(content)
        found[name] = [in_words(judge(path, name)) for judge in judges.values()]
    return found


def test_every_verdict_is_that_of_the_table(tmp_path: Path) -> None:
    judges: dict[str, Callable[[Path, str], Files | None]] = {
        "ours": lambda path, _: ours(path),
        "GNU tar, unzip": lambda path, name: of_program(path, "unzip" if name.startswith("zip") else "tar"),
        "Python": lambda path, _: of_python(path),
    }
    found = verdicts(tmp_path, judges)
    assert found == {name: [cells[0], cells[1], cells[3]] for name, cells in table().items()}


@pytest.mark.skipif(shutil.which("bsdtar") is None, reason="bsdtar (libarchive) is not installed")
def test_every_verdict_of_libarchive_is_that_of_the_table(tmp_path: Path) -> None:
    found = verdicts(tmp_path, {"bsdtar": lambda path, _: of_program(path, "bsdtar")})
    assert found == {name: [cells[2]] for name, cells in table().items()}
