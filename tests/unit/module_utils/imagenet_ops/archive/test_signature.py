"""What is no archive that is read is called what it is."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.archive.images import open_archive
from ansible.module_utils.imagenet_ops.archive.signature import signature_of
from ansible.module_utils.imagenet_ops.core.errors import OpsError

from tests.fakes.images import tar

TAR = tar([("a/1.png", b"1")])


def zipped(name: str = "a/1.png") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"1")
    return buffer.getvalue()


def failure(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(OpsError) as caught:
        open_archive(str(path))
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "kind", "todo"),
    [
        (b"\x28\xb5\x2f\xfd", "Zstandard data", "with zstd -d and use that"),
        (b"\x50\x2a\x4d\x18", "Zstandard data", "with zstd -d and use that"),
        (b"\x04\x22\x4d\x18", "LZ4 data", "with lz4 -d and use that"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it with 7z x and use the directory"),
        (b"Rar!\x1a\x07\x01\0", "a RAR archive", "Unpack it with unrar x and use the directory"),
        (b"\x1f\x9d\x90", "the data of compress (.Z)", "with gzip -d and use that"),
        (b"LZIP\x01", "lzip data", "with lzip -d and use that"),
        (lzma.compress(TAR, lzma.FORMAT_ALONE), "LZMA data in the old format", "xz -d --format=lzma and use that"),
        (gzip.compress(gzip.compress(TAR)), "compressed twice", "gzip, bzip2 or xz -d and use that"),
        (bz2.compress(lzma.compress(TAR)), "compressed twice", "gzip, bzip2 or xz -d and use that"),
        (gzip.compress(zipped()), "a zip within other data", "use the zip"),
        (b"PK\x07\x08PK\x03\x04", "a part of a zip", "zip -s 0 FIRST.zip --out WHOLE.zip"),
        (b"MZ" + bytes(100) + zipped(), "a program, such as an archive that unpacks itself", "7z x"),
        (b"#!/bin/sh\n", "a script, such as an archive that unpacks itself", "use the directory"),
        (b"version https://git-lfs.github.com/spec/v1\n", "the pointer of Git LFS", "git lfs pull"),
        (b"\n<!DOCTYPE html><title>Sign in</title>", "an HTML page", "the URL, or the credentials"),
        (b"\xef\xbb\xbf<HTML>", "an HTML page", "the URL, or the credentials"),
        (b"<?xml version='1.0'?><Error/>", "an XML document", "the URL, or the credentials"),
        (b'{"error": "quota"}', "a JSON document", "the URL, or the credentials"),
        (b"\xff\xd8\xff\xe0", "a single image", "Use an archive or a directory of images"),
        (b"070701", "a cpio archive", "cpio -i"),
    ],
)
def test_another_kind_of_file_is_no_damage(tmp_path: Path, content: bytes, kind: str, todo: str) -> None:
    found = failure(tmp_path / "a", content)
    assert found.startswith(f"Archive {tmp_path / 'a'}: it is {kind}")
    assert todo in found
    assert "damaged" not in found
    assert "etch it again" not in found


@pytest.mark.parametrize("name", ["LZIP/1.png", "MZ/1.png", "#!/1.png", "PK00/1.png", "070701/1.png", "<html/1.png"])
def test_a_name_of_a_tar_is_no_signature(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.tar").write_bytes(tar([(name, b"1")]))
    assert signature_of((tmp_path / "a.tar").read_bytes()) is not None
    with open_archive(str(tmp_path / "a.tar")) as reader:
        assert [member.name for member in reader.members(0)] == [name]


@pytest.mark.parametrize(("method", "name"), [(9, "Deflate64"), (93, "Zstandard"), (77, "an unknown way")])
def test_a_zip_in_another_compression(tmp_path: Path, method: int, name: str) -> None:
    content = bytearray(zipped())
    content[8] = content[content.find(b"PK\x01\x02") + 10] = method
    assert failure(tmp_path / "a.zip", bytes(content)) == (
        f"Archive {tmp_path / 'a.zip'}: 'a/1.png' in it is of a kind that is not read: compressed in {name}"
        f" (method {method}). Unpack it with 7z x and use the directory"
    )


@pytest.mark.parametrize("program", [name for name in ("zstd", "lz4") if shutil.which(name)])
def test_the_cure_works(tmp_path: Path, program: str) -> None:
    packed = subprocess.run([program, "-c"], input=TAR, capture_output=True, check=True).stdout
    assert f"Unpack it to a tar with {program} -d and use that" in failure(tmp_path / "a", packed)
    plain = subprocess.run([program, "-d", "-c"], input=packed, capture_output=True, check=True).stdout
    (tmp_path / "a.tar").write_bytes(plain)
    with open_archive(str(tmp_path / "a.tar")) as reader, tarfile.open(tmp_path / "a.tar") as theirs:
        assert [member.name for member in reader.members(0)] == theirs.getnames()
