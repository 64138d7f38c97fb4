"""Archives as tar writes them are read whole; damage shows, with its place, wherever it is."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.archive.member import DamagedArchiveError, Member
from ansible.module_utils.imagenet_ops.archive.tar import TarReader, read_members
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
IN_A_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def tar(entries: list[tuple[str, bytes]], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write(folder: Path, content: bytes) -> str:
    path = folder / "a.tar"
    path.write_bytes(content)
    return str(path)


def read_all(path: str) -> list[tuple[str, bytes]]:
    with TarReader(path) as reader:
        return [(member.name, reader.read(member.size)) for member in reader.members(0)]


def headers(path: str) -> list[Member]:
    with TarReader(path) as reader:
        return list(reader.members(0))


def damage(path: str) -> DamagedArchiveError:
    with pytest.raises(DamagedArchiveError) as caught:
        read_all(path)
    return caught.value


letters = st.characters(min_codepoint=33, exclude_categories=["Cs"], exclude_characters="/")
names = st.text(letters, min_size=1, max_size=90)


@IN_A_FOLDER
@given(st.lists(st.tuples(names, st.binary(max_size=2000)), max_size=6), st.sampled_from(["gnu", "pax"]))
def test_what_tar_wrote_is_read(tmp_path: Path, entries: list[tuple[str, bytes]], tar_format: str) -> None:
    assert read_all(write(tmp_path, tar(entries, FORMATS[tar_format]))) == entries


@pytest.mark.parametrize("tar_format", FORMATS)
def test_long_names(tmp_path: Path, tar_format: str) -> None:
    entries = [("directory-of-some-length/" * 5 + "name" * 20, b"1"), ("short", b"2")]
    assert read_all(write(tmp_path, tar(entries, FORMATS[tar_format]))) == entries


def test_gzip(tmp_path: Path) -> None:
    entries = [("a", b"1" * 5000), ("b", b"")]
    path = write(tmp_path, gzip.compress(tar(entries)))
    assert read_all(path) == entries
    with TarReader(path) as reader:
        assert reader.compressed
        first, second = read_members(reader)
        assert (first.offset, first.data_offset, first.end, second.offset) == (0, 512, 5632, 5632)
        assert reader.file_position == Path(path).stat().st_size


def test_offsets_lead_back(tmp_path: Path) -> None:
    entries = [(f"{'long-' * 30}{number}", bytes([number]) * 700 * number) for number in range(5)]
    path = write(tmp_path, tar(entries))
    for index, member in enumerate(headers(path)):
        with TarReader(path) as reader:
            reader.skip_to(member.offset)
            assert [(again.name, reader.read(again.size)) for again in read_members(reader)] == entries[index:]


def test_sizes_of_more_than_octal_digits_can_say(tmp_path: Path) -> None:
    member = tarfile.TarInfo("large")
    member.size = 9 * 1024**3
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write(tmp_path, member.tobuf(tar_format))
        with TarReader(path) as reader:
            assert next(read_members(reader)).size == 9 * 1024**3


@pytest.mark.parametrize(
    ("type_flag", "kind"),
    [
        (tarfile.DIRTYPE, "directory"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.CHRTYPE, "character device"),
        (tarfile.BLKTYPE, "block device"),
        (tarfile.FIFOTYPE, "named pipe"),
        (tarfile.GNUTYPE_SPARSE, "sparse file"),
        (b"Z", "member of the unknown type 'Z'"),
        (tarfile.CONTTYPE, "file"),
        (tarfile.AREGTYPE, "file"),
    ],
)
def test_kinds(tmp_path: Path, type_flag: bytes, kind: str) -> None:
    member = tarfile.TarInfo("x")
    member.type = type_flag
    member.linkname = "target" * 30
    path = write(tmp_path, member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    (found,) = headers(path)
    assert (found.name.rstrip("/"), found.kind) == ("x", kind)


def test_directories_of_old_tars(tmp_path: Path) -> None:
    member = tarfile.TarInfo("folder/")
    member.type = tarfile.AREGTYPE
    (found,) = headers(write(tmp_path, member.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)))
    assert found.kind == "directory"


def test_global_attributes_are_passed_over(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as archive:
        archive.addfile(tarfile.TarInfo("a"))
    (found,) = headers(write(tmp_path, buffer.getvalue()))
    assert (found.name, found.offset) == ("a", 0)


# Damage

ENTRIES = [("first", b"1" * 600), ("second", b"2" * 100), ("third", b"")]
WHOLE = tar(ENTRIES)


@given(st.integers(0, 511), st.integers(0, 2), st.integers(1, 255))
@IN_A_FOLDER
def test_any_changed_byte_of_a_header_is_found(tmp_path: Path, position: int, entry: int, change: int) -> None:
    offset = [0, 1536, 2560][entry]
    damaged = bytearray(WHOLE)
    damaged[offset + position] ^= change
    path = write(tmp_path, bytes(damaged))
    if position in (154, 155) and chr(damaged[offset + position]) in "\0 ":
        # The digits of the checksum end here, with a zero or a space.
        assert read_all(path) == ENTRIES
    else:
        assert damage(path).offset == offset


@given(st.integers(0, 3071))
@IN_A_FOLDER
def test_an_archive_cut_anywhere_is_found(tmp_path: Path, length: int) -> None:
    error = damage(write(tmp_path, WHOLE[:length]))
    assert error.offset == length
    assert str(error).startswith("it is truncated: ")


def test_the_first_damage_is_where_it_says(tmp_path: Path) -> None:
    damaged = WHOLE[:1536] + b"S" + WHOLE[1537:2560] + b"T" + WHOLE[2561:]
    error = damage(write(tmp_path, damaged))
    assert (error.offset, str(error)) == (1536, "header checksum mismatch")


def test_numbers_that_are_none(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)[:512])
    header[124:136] = b"0000000x000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    error = damage(write(tmp_path, bytes(header) + bytes(1024)))
    assert (error.offset, str(error)) == (0, "a header has an invalid number")


@pytest.mark.parametrize(
    ("size", "why", "offset"),
    [(2**63 - 1, "it is truncated: ", 1536), (2**88 - 1, "a header has an invalid number", 0)],
)
def test_a_size_that_no_file_has(tmp_path: Path, size: int, why: str, offset: int) -> None:
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)[:512])
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = write(tmp_path, bytes(header) + bytes(1024))
    with TarReader(path) as reader, pytest.raises(DamagedArchiveError, match=f"^{why}") as caught:
        list(reader.members(0))
    assert caught.value.offset == offset


def extension(flag: bytes, data: bytes) -> bytes:
    member = tarfile.TarInfo("extension")
    member.type = flag
    member.size = len(data)
    return member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    "data",
    [
        b"7 path=",
        b"99 path=x\n",
        b"path=x\n",
        b"-1 a=b\n",
        b"11 size=abc\n",
        b"1",
        b"1" * 5000 + b" a=b\n",
        "10 size=²\n".encode(),
        b"5010 size=" + b"1" * 4999 + b"\n",
    ],
)
def test_pax_headers_that_are_damaged(tmp_path: Path, data: bytes) -> None:
    file = tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)
    assert str(damage(write(tmp_path, extension(b"x", data) + file + bytes(1024)))) == "a pax header is invalid"


def test_names_without_end(tmp_path: Path) -> None:
    member = tarfile.TarInfo("extension")
    member.type = b"L"
    member.size = 10**9
    assert (
        str(damage(write(tmp_path, member.tobuf(tarfile.USTAR_FORMAT))))
        == "a name of 1000000000 bytes exceeds the limit"
    )


def test_compressed_data_that_is_damaged(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(20_000)
    packed = gzip.compress(tar([("a", content)]))
    cut = damage(write(tmp_path, packed[: len(packed) // 2]))
    assert str(cut).startswith("its compressed data is damaged (Compressed file ended")
    middle = len(packed) // 2
    spoilt = packed[:middle] + bytes([packed[middle] ^ 0xFF]) + packed[middle + 1 :]
    # A changed byte of random data can also unpack to other data; the checksum at the end then tells.
    assert damage(write(tmp_path, spoilt)).offset <= len(tar([("a", content)]))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_data_that_was_damaged_is_damaged_when_it_is_read_again(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(random.Random(1).randbytes(20_000))
    path = write(tmp_path, packed[:40] + bytes(200) + packed[240:])
    with TarReader(path) as reader:
        reader.require_tar()
        reasons = []
        for _ in range(3):
            with pytest.raises(DamagedArchiveError, match=r"^its compressed data is damaged") as caught:
                reader.read(20_000)
            reasons.append(str(caught.value))
    assert len(set(reasons)) == 1


# Archives within archives


def test_an_archive_within_an_archive(tmp_path: Path) -> None:
    inner = [tar([("n1_1", b"a"), ("n1_2", b"b" * 3000)]), tar([("n2_7", b"c")])]
    path = write(tmp_path, tar([("n1.tar", inner[0]), ("n2.tar", inner[1])]))
    with TarReader(path) as reader:
        found = [
            (outer.name, member.name, reader.read(member.size)[:1])
            for outer in read_members(reader)
            for member in read_members(reader, outer.data_offset + outer.size)
        ]
    assert found == [("n1.tar", "n1_1", b"a"), ("n1.tar", "n1_2", b"b"), ("n2.tar", "n2_7", b"c")]


@pytest.mark.parametrize(
    ("keep", "reason"),
    [(2560, "its end is missing"), (512, "its end is missing"), (1024, "a member of 2000 bytes exceeds the end")],
)
def test_an_archive_within_that_is_cut_off_does_not_run_into_the_next(tmp_path: Path, keep: int, reason: str) -> None:
    inner = tar([("a", b"a" * 2000)])[:keep] if keep != 512 else tar([("a", b"")])[:512]
    path = write(tmp_path, tar([("n1.tar", inner), ("n2.tar", tar([("b", b"b")]))]))
    with TarReader(path) as reader:
        outer = next(read_members(reader))
        with pytest.raises(DamagedArchiveError, match=reason):
            list(read_members(reader, outer.data_offset + outer.size))


# After the end


@pytest.mark.parametrize("tail", [b"x", bytes(3000) + b"x", bytes(3 * 1024**2) + b"x", tar([("more", b"1")])])
def test_what_follows_the_end_is_named_by_its_byte(tmp_path: Path, tail: bytes) -> None:
    error = damage(write(tmp_path, WHOLE + tail))
    assert error.offset == len(WHOLE) + len(tail) - len(tail.lstrip(b"\0"))
    assert str(error).startswith("data follows a block of zeros, which is the end of an archive: ")
    assert "tar --ignore-zeros" in error.todo


@pytest.mark.parametrize("entry", [0, 1])
def test_a_header_that_was_overwritten_is_no_end(tmp_path: Path, entry: int) -> None:
    offset = [0, 1536][entry]
    error = damage(write(tmp_path, WHOLE[:offset] + bytes(512) + WHOLE[offset + 512 :]))
    assert error.offset == offset + 512


def test_the_end_of_an_archive_within_is_read_on_too(tmp_path: Path) -> None:
    inner = tar([("a", b"a")]) + tar([("b", b"b")])
    with TarReader(write(tmp_path, tar([("n1.tar", inner)]))) as reader:
        outer = next(read_members(reader))
        with pytest.raises(DamagedArchiveError, match="data follows a block of zeros") as caught:
            list(read_members(reader, outer.data_offset + outer.size))
    assert caught.value.offset == 512 + len(tar([("a", b"a")]))


def test_only_the_trailer_is_read_again(tmp_path: Path) -> None:
    """A file with a hole of 1 TiB: reading the data to get to the end would take hours."""
    member = tarfile.TarInfo("large")
    member.size = 1024**4
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.seek(member.size + 1024, 1)
        file.write(b"x")
    error = damage_of_headers(str(path))
    assert error.offset == 512 + 1024**4 + 1024


def damage_of_headers(path: str) -> DamagedArchiveError:
    with pytest.raises(DamagedArchiveError) as caught:
        headers(path)
    return caught.value


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_the_checksum_is_reached_from_any_point(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = write(tmp_path, pack(WHOLE)[:-6])
    for position in (0, 1536, len(WHOLE)):
        with pytest.raises(DamagedArchiveError, match="compressed data is damaged"), TarReader(path) as reader:
            list(reader.members(position))
