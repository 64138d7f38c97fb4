"""Zip archives are read in the order of their bytes; damage shows with its place, and what is no file with its kind."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.archive.member import DamagedArchiveError, Member
from ansible.module_utils.imagenet_ops.archive.zip import ZipReader, is_zip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

IN_A_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
MEMBERS = [("first", b"1" * 600), ("folder/second", b"2" * 100), ("third", b"")]


def write(
    folder: Path,
    members: list[tuple[str, bytes]],
    compression: int = zipfile.ZIP_STORED,
    mode: int = 0,
    comment: bytes = b"",
) -> Path:
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.comment = comment
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = compression
            archive.writestr(info, content)
    return path


def read_all(path: Path, position: int = 0) -> list[tuple[str, bytes]]:
    with ZipReader(str(path)) as reader:
        return [(member.name, reader.content(member)) for member in reader.members(position)]


def headers(path: Path) -> list[Member]:
    with ZipReader(str(path)) as reader:
        return list(reader.members(0))


letters = st.characters(min_codepoint=33, exclude_categories=["Cs"], exclude_characters="/")
names = st.text(letters, min_size=1, max_size=40)


@IN_A_FOLDER
@given(
    st.lists(st.tuples(names, st.binary(max_size=2000)), max_size=6, unique_by=lambda member: member[0]),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]),
    # The mark of the end of a zip in its comment is one that no reader of zips can tell from the end itself.
    st.binary(max_size=30).filter(lambda comment: b"PK\x05\x06" not in comment),
)
def test_what_zip_wrote_is_read(
    tmp_path: Path, members: list[tuple[str, bytes]], compression: int, comment: bytes
) -> None:
    path = write(tmp_path, members, compression, comment=comment)
    assert is_zip(str(path))
    assert read_all(path) == members


def test_reading_goes_on_after_any_member(tmp_path: Path) -> None:
    path = write(tmp_path, MEMBERS)
    for number, member in enumerate(headers(path)):
        assert read_all(path, member.end) == MEMBERS[number + 1 :]
        assert read_all(path, member.offset) == MEMBERS[number:]


def test_members_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, MEMBERS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist.reverse()
        archive.writestr("last", b"x")
    assert [member.name for member in headers(path)] == ["first", "folder/second", "third", "last"]


def test_how_far_and_how_much(tmp_path: Path) -> None:
    path = write(tmp_path, MEMBERS, zipfile.ZIP_DEFLATED)
    with ZipReader(str(path)) as reader:
        assert (reader.file_position, reader.remaining_bytes(0), reader.compressed) == (0, 700, True)
        for member in reader.members(0):
            reader.content(member)
            assert reader.file_position == member.end
            assert reader.remaining_bytes(member.end) == (100 if member.name == "first" else 0)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        (0, "file"),
        (stat.S_IFREG | 0o644, "file"),
        (stat.S_IFLNK | 0o777, "symbolic link"),
        (stat.S_IFIFO, "named pipe"),
        (stat.S_IFCHR, "character device"),
        (stat.S_IFBLK, "block device"),
        (stat.S_IFSOCK, "socket"),
        (0o160000, "member of the unknown mode 160000"),
    ],
)
def test_kinds(tmp_path: Path, mode: int, kind: str) -> None:
    (member,) = headers(write(tmp_path, [("x", b"target")], mode=mode))
    assert member.kind == kind


def test_directories(tmp_path: Path) -> None:
    assert [member.kind for member in headers(write(tmp_path, [("folder/", b""), ("folder/a", b"1")]))] == [
        "directory",
        "file",
    ]


def test_encrypted_entries(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path, [("x", b"1")]).read_bytes())
    central = content.index(b"PK\x01\x02")
    content[6] |= 1
    content[central + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    assert [member.kind for member in headers(tmp_path / "a.zip")] == ["encrypted file"]


def damage(path: Path) -> DamagedArchiveError:
    with pytest.raises(DamagedArchiveError) as caught:
        read_all(path)
    return caught.value


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_changed_byte_is_found_where_it_is(tmp_path: Path, compression: int) -> None:
    path = write(tmp_path, [("a", bytes(range(256))), ("b", bytes(range(255, -1, -1)))], compression)
    second = headers(path)[1]
    content = bytearray(path.read_bytes())
    content[second.offset + 100] ^= 0xFF
    path.write_bytes(content)
    error = damage(path)
    assert error.offset == second.offset
    assert str(error).startswith("its data cannot be read (")


@given(st.integers(0, 400))
@IN_A_FOLDER
def test_an_archive_that_is_cut_off_has_no_list(tmp_path: Path, length: int) -> None:
    path = write(tmp_path, MEMBERS)
    path.write_bytes(path.read_bytes()[:length])
    error = damage(path)
    assert error.offset == length
    assert str(error).startswith("its central directory cannot be read (")


def test_what_is_no_zip(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x1f\x8b")
    assert not is_zip(str(tmp_path / "a"))


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_data_that_is_damaged_is_named(tmp_path: Path, compression: int) -> None:
    members = [("first", bytes(range(256)) * 9)]
    path = write(tmp_path, members, compression)
    content = bytearray(path.read_bytes())
    data = range(30 + len("first"), content.find(b"PK\x01\x02"))
    damaged = 0
    for position in data:
        content[position] ^= 0x55
        path.write_bytes(content)
        try:
            assert read_all(path) == members  # a bit of padding does not matter
        except DamagedArchiveError as error:
            damaged += str(error).startswith("its data cannot be read")
        content[position] ^= 0x55
    assert damaged > len(data) / 2


def test_a_header_of_any_length_makes_no_long_error(tmp_path: Path) -> None:
    path = write(tmp_path, [("first", bytes(9000))])
    content = bytearray(path.read_bytes())
    content[26:28] = b"\xff\x20"
    content[18:22] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(DamagedArchiveError) as caught:
        read_all(path)
    assert len(str(caught.value)) < 250
