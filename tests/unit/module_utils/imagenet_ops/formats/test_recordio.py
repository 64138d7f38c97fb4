from __future__ import annotations

import io
import os
import re
import struct
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.formats import recordio
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Sample
from ansible.module_utils.imagenet_ops.formats.recordio import (
    MAGIC,
    RECORDIO,
    RecordReader,
    frame,
    frame_images,
    image_data,
    write_all,
)
from hypothesis import given
from hypothesis import strategies as st

# Data with the magic at any alignment: pieces of it, whole ones, and whatever else.
DATA = st.lists(st.sampled_from([MAGIC, MAGIC[:1], MAGIC[:3], MAGIC[1:], b"\0"]) | st.binary(max_size=9)).map(b"".join)


def read_all(content: bytes) -> list[bytes]:
    reader = RecordReader(io.BytesIO(content), "train.rec")
    records = []
    while (data := reader.read()) is not None:
        records.append(data)
    return records


def error_of(content: bytes) -> str:
    with pytest.raises(OpsError) as caught:
        read_all(content)
    return str(caught.value)


def view(data: bytes) -> memoryview:
    return memoryview(data)


def part(flag: int, data: bytes) -> bytes:
    return MAGIC + struct.pack("<I", flag << 29 | len(data)) + data + bytes(-len(data) % 4)


# --- frame -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "record"),
    [
        (b"", "0a23d7ce 00000000"),
        (b"abcd", "0a23d7ce 04000000 61626364"),
        (b"abcde", "0a23d7ce 05000000 6162636465 000000"),
        (b"abcdef", "0a23d7ce 06000000 616263646566 0000"),
        (b"abcdefg", "0a23d7ce 07000000 61626364656667 00"),
    ],
)
def test_a_record_is_magic_length_data_and_padding(data: bytes, record: str) -> None:
    assert frame(data) == bytes.fromhex(record)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (MAGIC, [(1, b""), (3, b"")]),
        (b"head" + MAGIC + b"tail!", [(1, b"head"), (3, b"tail!")]),
        (MAGIC + MAGIC + b"x", [(1, b""), (2, b""), (3, b"x")]),
        (b"1234" + MAGIC + b"5678" + MAGIC, [(1, b"1234"), (2, b"5678"), (3, b"")]),
        (b"1" + MAGIC, [(0, b"1" + MAGIC)]),
        (b"12" + MAGIC + b"34" + MAGIC, [(1, b"12" + MAGIC + b"34"), (3, b"")]),
        (MAGIC[:3] + MAGIC, [(0, MAGIC[:3] + MAGIC)]),
    ],
)
def test_data_is_cut_at_each_magic_on_a_multiple_of_four(data: bytes, parts: list[tuple[int, bytes]]) -> None:
    assert frame(data) == b"".join(part(flag, piece) for flag, piece in parts)


@given(st.lists(DATA))
def test_what_was_framed_is_read_again(records: list[bytes]) -> None:
    assert read_all(b"".join(map(frame, records))) == records


@given(DATA)
def test_the_magic_stands_on_a_multiple_of_four_only_where_a_part_begins(data: bytes) -> None:
    record = frame(data)
    begins = []
    offset = 0
    while offset < len(record):
        begins.append(offset)
        length = struct.unpack_from("<I", record, offset + 4)[0] & recordio.MAX_DATA_BYTES
        offset += 8 + length + -length % 4
    assert [offset for offset in range(0, len(record), 4) if record[offset : offset + 4] == MAGIC] == begins


def test_data_beyond_the_format_is_refused() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 29

    with pytest.raises(ValueError, match=r"a record holds at most 536870911 bytes, this one has 536870912"):
        frame(Huge())


# --- image records ---------------------------------------------------------------------------------------------------


def test_an_image_record_has_flag_label_id_and_zero_before_the_image() -> None:
    data = image_data(7, 999.0, b"jpeg")
    assert data.hex(" ", 4) == "00000000 00c07944 07000000 00000000 00000000 00000000 6a706567"
    assert recordio.parse_image_data(data) == (7, 999.0, (999.0,), b"jpeg")


@given(st.integers(0, 2**64 - 1), st.floats(width=32, allow_nan=False), st.binary())
def test_an_image_record_is_read_as_it_was_made(record_id: int, label: float, image: bytes) -> None:
    assert recordio.parse_image_data(image_data(record_id, label, image)) == (record_id, label, (label,), image)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 7, 0xCED7230A, 0xCED7230A << 32, 2**64 - 1]),
            st.sampled_from([0.0, 999.0]),
            DATA | DATA.map(view),
        )
    )
)
def test_images_are_framed_like_any_data(images: list[tuple[int, float, bytes | memoryview]]) -> None:
    ids, labels, contents = zip(*images) if images else ((), (), ())
    assert list(frame_images(ids, labels, contents)) == [frame(image_data(*image)) for image in images]


def test_an_image_beyond_the_format_is_refused() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return (1 << 29) - 24

    with pytest.raises(ValueError, match=r"a record holds at most 536870911 bytes, this one has 536870912"):
        frame_images([1], [0.0], [Huge()])


def test_labels_in_a_vector_follow_the_header() -> None:
    data = struct.pack("<IfQQ3f", 3, 0.0, 5, 0, 1.0, 2.5, -1.0) + b"jpeg"
    assert recordio.parse_image_data(data) == (5, 1.0, (1.0, 2.5, -1.0), b"jpeg")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (bytes(23), "23 bytes are too few for an image record's header"),
        (b"\x02" + bytes(30), "31 bytes are too few for a header with 2 labels"),
    ],
)
def test_a_header_that_is_cut_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        recordio.parse_image_data(data)


# --- RecordReader ----------------------------------------------------------------------------------------------------


@given(st.lists(DATA, min_size=1, max_size=4), st.data())
def test_a_cut_file_is_an_error_unless_it_is_cut_between_records(records: list[bytes], data: st.DataObject) -> None:
    framed = [frame(record) for record in records]
    content = b"".join(framed)
    boundaries = [sum(map(len, framed[:count])) for count in range(len(framed) + 1)]
    size = data.draw(st.integers(0, len(content)))
    if size in boundaries:
        assert read_all(content[:size]) == records[: boundaries.index(size)]
    else:
        assert error_of(content[:size])


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (frame(b"abcd")[:-1], "byte 0: the record is truncated: 3 of 4 bytes."),
        (frame(b"abcd") + frame(b"abcde")[:-1], "byte 12: the record is truncated: 7 of 8 bytes."),
        (frame(b"abcd") + MAGIC, "byte 12: the file ends within the first 8 bytes of a record."),
        (b"\x0b" + frame(b"abcd")[1:], "byte 0: no record begins here (found 0b23d7ce, expected the magic 0a23d7ce)."),
        (part(4, b"abcd"), "byte 0: a record part has the unknown flag 4."),
        (part(3, b"abcd"), "byte 12: a record begins with a middle or last part."),
        (part(1, b"abcd"), "byte 12: the file ends between two parts of a record."),
        (part(1, b"abcd") + part(0, b""), "byte 20: a record begins before the last part of the previous one."),
        (frame(b"abcde")[:-1] + b"\x01", "byte 0: the padding of the record is not zero."),
    ],
)
def test_damage_is_named_with_its_place(content: bytes, error: str) -> None:
    todo = " The file is damaged; restore it from the backup or pack the data set again"
    assert error_of(content) == f"Record file train.rec, {error}{todo}"


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "writev", lambda descriptor, pieces: os.write(descriptor, b"".join(pieces)[:7]))
    rec = os.open(tmp_path / "rec", os.O_CREAT | os.O_WRONLY)
    write_all(rec, [frame(b"five"), frame(b"three")])
    os.close(rec)
    assert read_all((tmp_path / "rec").read_bytes()) == [b"five", b"three"]


@pytest.mark.parametrize("begin", [2**31 - 8, 2**32 - 8, 2**32, 5 * 2**32])
def test_offsets_beyond_32_bits_are_written_and_read(tmp_path: Path, begin: int) -> None:
    rec = os.open(tmp_path / "rec", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.ftruncate(rec, begin)  # a hole takes no space
    write_all(rec, [frame(b"first"), frame(b"second")])
    os.close(rec)
    assert RECORDIO.index_line(2, begin + 16) == f"2\t{begin + 16}\n"
    with (tmp_path / "rec").open("rb") as file:
        reader = RecordReader(file, "rec")
        reader.seek(begin + 16)
        assert reader.read() == b"second"
        assert reader.offset == begin + 32 == os.path.getsize(tmp_path / "rec")
        assert reader.read() is None


# --- the format ------------------------------------------------------------------------------------------------------

INFO = DatasetInfo("pets", ["cat", "dog"], {})
SAMPLES = [Sample(3, 1, "dog/b.jpg", b"\xff\xd8 dog"), Sample(0, 0, "cat/a.jpg", MAGIC * 2 + b"cat")]


def shard(folder: Path, samples: list[Sample]) -> Path:
    path = folder / "train.rec"
    path.write_bytes(b"".join(piece for record in RECORDIO.encode_all(samples) for piece in record))
    (folder / "train.lst").write_text("".join(f"{s.record_id}\t{s.label:f}\t{s.name}\n" for s in samples))
    return path


@pytest.mark.parametrize("samples", [[], SAMPLES])
def test_samples_come_back_with_their_names(tmp_path: Path, samples: list[Sample]) -> None:
    assert list(RECORDIO.read(str(shard(tmp_path, samples)), INFO)) == samples


@pytest.mark.parametrize(
    ("lists", "error"),
    [
        ("3\t1.0\tdog/b.jpg\n", "train.rec: it has more records than "),
        ("3\t1.0\tdog/b.jpg\n1\t0.0\tcat/a.jpg\n", "byte 40: it has the id 0 and the label 0, the list says otherwise"),
        ("3\t1.0\tdog/b.jpg\n0\t0.0\tcat/a.jpg\n1\t0.0\tcat/c.jpg\n", "byte 92: 0 bytes are too few"),
        ("3\t1.0\n", "train.lst, line 1: it does not have an id, a label and a path"),
    ],
)
def test_a_list_that_does_not_fit_is_an_error(tmp_path: Path, lists: str, error: str) -> None:
    path = shard(tmp_path, SAMPLES)
    (tmp_path / "train.lst").write_text(lists)
    with pytest.raises(OpsError, match=re.escape(error)):
        list(RECORDIO.read(str(path), INFO))


@pytest.mark.parametrize(("shards", "name"), [(1, "train.rec"), (3, "train-00002-of-00003.rec")])
def test_shards_have_the_names_that_they_always_had(shards: int, name: str) -> None:
    assert RECORDIO.shard_name(INFO, "train", shards - 1, shards) == name


def test_an_image_that_no_record_can_hold_is_named() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 29

    with pytest.raises(OpsError) as caught:
        RECORDIO.encode(Sample(1, 0, "cat/a.jpg", Huge()))
    assert str(caught.value) == (
        "Image cat/a.jpg: its 536870912 bytes are more than a record of RecordIO can hold."
        " Exclude the image, or take recordio out of data_formats"
    )
