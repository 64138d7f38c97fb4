"""The same archives, read by this project and by others: where they differ, archives.md says who is right, and why."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
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


def zipped(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
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
        "zips, joined": zipped(first) + zipped(second),
        "zip, wrong checksum": flipped(zipped(FILES), zipped(FILES).find(b"1" * 700)),
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
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError):
        return None


def of_program(path: Path, program: str) -> Files | None:
    """What a program unpacks; None where its exit status is not 0."""
    folder = path.with_name(f"{path.name}.{program}")
    folder.mkdir()
    options = ["-q", str(path), "-d", str(folder)] if program == "unzip" else ["-xf", str(path), "-C", str(folder)]
    if subprocess.run([program, *options], check=False, capture_output=True).returncode:
        return None
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def in_words(files: Files | None) -> str:
    if files is None:
        return REFUSED
    return f"{len(files)} files" if files.items() <= FILES.items() else "wrong files"


def table() -> dict[str, list[str]]:
    rows = [line.strip("| \n").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return {name: cells for name, *cells in rows if name != "archive"}


def test_every_verdict_is_that_of_the_table(tmp_path: Path) -> None:
    found, expected = {}, {}
    for number, (name, content) in enumerate(archives(tmp_path).items()):
        path = tmp_path / f"archive{number}"
        path.write_bytes(content)
        program = "unzip" if name.startswith("zip") else "tar"
        verdicts = [ours(path), of_program(path, program), of_python(path)]
        found[name] = [in_words(files) for files in verdicts]
        expected[name] = table()[name][:3]
    assert found == expected
    assert table().keys() == found.keys()


@pytest.mark.skipif(shutil.which("bsdtar") is None, reason="bsdtar (libarchive) is not installed")
def test_libarchive_agrees_where_all_do(tmp_path: Path) -> None:
    content = archives(tmp_path)
    for number, name in enumerate(name for name, cells in table().items() if cells[:3] == ["3 files"] * 3):
        path = tmp_path / f"archive{number}"
        path.write_bytes(content[name])
        assert of_program(path, "bsdtar") == ours(path) == FILES, name
