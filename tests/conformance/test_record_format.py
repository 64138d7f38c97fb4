"""The record format against MXNet's reader and writer, in both directions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.formats.recordio import MAGIC, RecordReader, frame, image_data, parse_image_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# Data with the magic at any alignment: whole ones, pieces of it, and whatever else.
DATA = st.lists(st.sampled_from([MAGIC, MAGIC[:1], MAGIC[:3], MAGIC[1:], b"\0"]) | st.binary(max_size=9)).map(b"".join)
# The folder of a test is used again for each example, which overwrites its files.
EXAMPLES = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_all(content: bytes) -> list[bytes]:
    reader = RecordReader(io.BytesIO(content), "")
    records = []
    while (data := reader.read()) is not None:
        records.append(data)
    return records


def compare(mxnet: Any, folder: Path, records: list[bytes]) -> None:
    """Hold our bytes against MXNet's, our reader against its writer, and its reader against our writer."""
    ours = b"".join(map(frame, records))
    mxnet.ask("write", str(folder / "theirs.rec"), [record.hex() for record in records])
    theirs = (folder / "theirs.rec").read_bytes()
    assert ours == theirs
    assert read_all(theirs) == records
    (folder / "ours.rec").write_bytes(ours)
    assert mxnet.ask("read", str(folder / "ours.rec")) == [record.hex() for record in records]


@EXAMPLES
@given(records=st.lists(DATA))
def test_any_records_have_the_same_bytes_and_are_read_by_either(
    mxnet: Any, tmp_path: Path, records: list[bytes]
) -> None:
    compare(mxnet, tmp_path, records)


def test_the_magic_at_every_alignment(mxnet: Any, tmp_path: Path) -> None:
    cases = [
        b"a" * before + MAGIC * times + b"b" * between + MAGIC + b"c" * after
        for before in range(9)
        for times in range(4)
        for between in range(6)
        for after in range(5)
    ]
    compare(mxnet, tmp_path, cases)


@pytest.mark.parametrize("record_id", [0, 1, 0xCED7230A, 0xCED7230A << 32, 2**64 - 1])
def test_image_records_are_those_of_mxnet_even_where_the_id_is_the_magic(
    mxnet: Any, tmp_path: Path, record_id: int
) -> None:
    image = b"not" + MAGIC + b"jpeg" + MAGIC
    rec, idx = str(tmp_path / "rec"), str(tmp_path / "idx")
    mxnet.ask("write_images", rec, idx, [[record_id, 999.0, image.hex()]])
    assert (tmp_path / "rec").read_bytes() == frame(image_data(record_id, 999.0, image))


@EXAMPLES
@given(
    labels=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5), record_id=st.integers(0, 2**64 - 1)
)
def test_labels_in_a_vector_are_read_as_mxnet_writes_them(
    mxnet: Any, tmp_path: Path, labels: list[float], record_id: int
) -> None:
    rec, idx = str(tmp_path / "rec"), str(tmp_path / "idx")
    mxnet.ask("write_images", rec, idx, [[record_id, labels, b"image".hex()]])
    (data,) = read_all((tmp_path / "rec").read_bytes())
    assert parse_image_data(data) == (record_id, labels[0], tuple(labels), b"image")
