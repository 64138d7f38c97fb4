from __future__ import annotations

import contextlib
import json
import mmap
import re
import struct
from pathlib import Path

import google_crc32c
import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Sample, entry_of
from ansible.module_utils.imagenet_ops.formats.tfrecord import TFRECORD
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.formats import read_shards, write_dataset, write_shards
from tests.fakes.images import png

INFO = DatasetInfo("imagenet", ["n01440764", "n01443537", "n01484850"], {"n01440764": "tench, Tinca tinca"})
ADVICE = "The file is damaged; restore it from the backup or pack the data set again"
ODD_NAMES = [
    "with space.jpg",
    "two.dots.in.it.JPEG",
    "zażółć-図.png",
    "100%.jpg",
    "\\back\"slash'.jpg",
    "x" * 250 + ".jpeg",
]


def samples(count: int = 3) -> list[Sample]:
    """Return samples as they are read: the format does not hold the id."""
    return [
        Sample(-1, at % 3, f"{INFO.classes[at % 3]}/image_{at}.JPEG", b"\xff\xd8" + bytes([at]) * (100 * at))
        for at in range(count)
    ]


def shard_of(folder: Path, written: list[Sample], info: DatasetInfo = INFO) -> Path:
    (shard,) = write_shards(TFRECORD, written, folder, 1 << 30, info)
    return folder / shard.path


def read(path: Path, info: DatasetInfo = INFO) -> list[Sample]:
    return [sample._replace(image=bytes(sample.image)) for sample in TFRECORD.read(str(path), info)]


def damaged(folder: Path, content: bytes) -> str:
    """Return the error of reading ``content``, which must name the file and the advice, without these."""
    path = folder / "damaged"
    path.write_bytes(content)
    with pytest.raises(OpsError) as caught:
        read(path)
    error = str(caught.value)
    assert error.startswith(f"TFRecord file {path}, byte ")
    assert error.endswith(f". {ADVICE}")
    return error[len(f"TFRecord file {path}, ") : -len(f". {ADVICE}")]


def masked(data: bytes) -> bytes:
    checksum = google_crc32c.value(data)
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) % 2**32)


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


# --- write and read --------------------------------------------------------------------------------------------------


def test_a_record_is_an_example_between_checksums() -> None:
    # The bytes of `protoc --decode_raw` backwards: lengths and tags by hand, from the definition of tf.train.Example.
    file_name = b"\x0a\x16\x0a\x09file_name\x12\x09\x0a\x07\x0a\x05a.jpg"
    image = b"\x0a\x12\x0a\x05image\x12\x09\x0a\x07\x0a\x05IMAGE"
    label = b"\x0a\x0f\x0a\x05label\x12\x06\x1a\x04\x0a\x02\xac\x02"
    example = b"\x0a" + bytes([len(file_name + image + label)]) + file_name + image + label
    pieces = TFRECORD.encode(Sample(7, 300, "n01440764/a.jpg", b"IMAGE"))
    assert b"".join(bytes(piece) for piece in pieces) == record(example)


def test_the_checksums_are_masked_as_tensorflow_masks_them(tmp_path: Path) -> None:
    # How every event file of TensorBoard begins, whose first record has 24 bytes.
    head = bytes.fromhex("1800000000000000a37f4b22")
    assert record(bytes(24))[:12] == head
    assert damaged(tmp_path, head) == "byte 0: the record is truncated: 12 of 40 bytes"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 999),
            st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=80),
            st.binary(max_size=400) | st.integers(16370, 16400).map(bytes),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_written_is_read(tmp_path: Path, drawn: list[tuple[int, str, bytes]]) -> None:
    info = INFO._replace(classes=[f"class {label}" for label in range(1000)])
    written = [Sample(-1, label, f"class {label}/{name}", image) for label, name, image in drawn]
    assert read(shard_of(tmp_path, written, info), info) == written


def test_a_png_and_odd_names_pass_through(tmp_path: Path) -> None:
    written = [Sample(-1, 0, f"n01440764/{name}", png(seed=at)) for at, name in enumerate(ODD_NAMES)]
    assert read(shard_of(tmp_path, written)) == written


def test_a_view_of_an_image_is_written_as_its_bytes(tmp_path: Path) -> None:
    viewed = [sample._replace(image=memoryview(bytearray(sample.image))) for sample in samples()]
    assert shard_of(tmp_path / "views", viewed).read_bytes() == shard_of(tmp_path, samples()).read_bytes()


def test_the_image_is_not_copied() -> None:
    sample = samples()[1]
    assert TFRECORD.encode(sample)[1] is sample.image


def test_an_image_too_large_for_a_protocol_buffer_is_an_error() -> None:
    with (
        mmap.mmap(-1, 1 << 31, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block,
        memoryview(block) as image,
        pytest.raises(OpsError) as caught,
    ):
        TFRECORD.encode(Sample(0, 0, "n01440764/a.jpg", image))
    assert str(caught.value) == (
        "Image n01440764/a.jpg: it has 2147483648 bytes, and a record of TFRecord holds at most 2147483647. "
        "Resize the images, or leave tfrecord out of data_formats"
    )


def test_any_names_are_taken() -> None:
    assert TFRECORD.refusal(["a/x.jpg", "a/x.png"]) == ""


# --- shards ----------------------------------------------------------------------------------------------------------


def test_a_shard_does_not_exceed_the_limit() -> None:
    assert not TFRECORD.is_full(0, 0, 5000, 1000)
    assert not TFRECORD.is_full(900, 1, 100, 1000)
    assert TFRECORD.is_full(900, 1, 101, 1000)


def test_shards_are_named_as_tfds_names_them(tmp_path: Path) -> None:
    shards = write_shards(TFRECORD, samples(4), tmp_path, 500, INFO, "validation")
    assert [(shard.path, shard.records) for shard in shards] == [
        ("imagenet/1.0.0/imagenet-validation.tfrecord-00000-of-00003", 2),
        ("imagenet/1.0.0/imagenet-validation.tfrecord-00001-of-00003", 1),
        ("imagenet/1.0.0/imagenet-validation.tfrecord-00002-of-00003", 1),
    ]
    assert read_shards(TFRECORD, tmp_path, shards, INFO) == samples(4)
    assert sorted(path.name for path in (tmp_path / "imagenet/1.0.0").glob("*.tfrecord*")) == [
        Path(shard.path).name for shard in shards
    ]


@pytest.mark.parametrize(
    ("name", "tfds_name"), [("imagenet", "imagenet"), ("My-Set.2", "my_set_2"), ("21k", "d21k"), ("_a", "d_a")]
)
def test_the_name_of_a_data_set_is_one_for_tfds(name: str, tfds_name: str) -> None:
    info = INFO._replace(name=name)
    path = TFRECORD.shard_name(info, "train", 0, 1)
    assert path == f"{tfds_name}/1.0.0/{tfds_name}-train.tfrecord-00000-of-00001"
    files = TFRECORD.index_files(info, {})
    assert json.loads(files[f"{tfds_name}/1.0.0/dataset_info.json"])["name"] == tfds_name


def test_a_shard_is_complete_without_a_seal(tmp_path: Path) -> None:
    path = shard_of(tmp_path, samples())
    whole = path.read_bytes()
    TFRECORD.seal(str(path), str(path), [entry_of(sample) for sample in samples()], INFO)
    assert path.read_bytes() == whole


def test_a_shard_without_samples_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    TFRECORD.seal(str(path), str(path), [], INFO)
    assert read(path) == []
    assert TFRECORD.sidecar(str(path), []) == b""


def test_the_sidecar_is_dalis_index(tmp_path: Path) -> None:
    path = shard_of(tmp_path, samples(4))
    index = path.parent / "index" / f"{path.name}.idx"
    lines = [tuple(map(int, line.split(" "))) for line in index.read_text().splitlines()]
    content = path.read_bytes()
    assert [offset for offset, _ in lines] == [0, lines[0][1], sum(line[1] for line in lines[:2]), lines[3][0]]
    assert sum(lines[-1]) == len(content)
    for (offset, length), sample in zip(lines, samples(4)):
        part = tmp_path / "part"
        part.write_bytes(content[offset : offset + length])
        assert read(part) == [sample]


def test_the_index_files_of_a_data_set(tmp_path: Path) -> None:
    shards = write_dataset(TFRECORD, {"train": samples(4), "validation": samples(1)}, tmp_path, 500, INFO)
    folder = tmp_path / "imagenet" / "1.0.0"
    assert (folder / "label.labels.txt").read_bytes() == b"n01440764\nn01443537\nn01484850\n"
    assert (folder / "label.words.txt").read_bytes() == b"tench, Tinca tinca\n\n\n"
    train, validation = json.loads((folder / "dataset_info.json").read_bytes())["splits"]
    assert (train["name"], train["shardLengths"]) == ("train", ["2", "1", "1"])
    assert int(train["numBytes"]) == sum(shard.size_bytes for shard in shards["train"]) - 4 * 16
    assert (validation["name"], validation["shardLengths"]) == ("validation", ["1"])
    features = json.loads((folder / "features.json").read_bytes())["featuresDict"]["features"]
    assert features["label"]["classLabel"] == {"numClasses": "3"}


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = shard_of(tmp_path, samples(2)).read_bytes()
    for offset in range(len(whole)):
        damaged(tmp_path, whole[:offset] + bytes([whole[offset] ^ 4]) + whole[offset + 1 :])


def test_a_shard_that_is_cut_within_a_record_is_an_error(tmp_path: Path) -> None:
    path = shard_of(tmp_path, samples(2))
    whole = path.read_bytes()
    second = shard_of(tmp_path, samples(1)).stat().st_size
    for length in range(1, len(whole)):
        if length != second:
            begin = second if length > second else 0
            assert damaged(tmp_path, whole[:length]).startswith(f"byte {begin}: ")


def test_damage_is_named(tmp_path: Path) -> None:
    whole = shard_of(tmp_path, samples(1)).read_bytes()
    size = len(whole)
    assert damaged(tmp_path, whole[:11]) == "byte 0: the file ends within the first 12 bytes of a record"
    assert damaged(tmp_path, b"\1" + whole[1:]) == (
        "byte 0: no record begins here: the checksum of its length is wrong"
    )
    assert damaged(tmp_path, whole + whole[:-1]) == (
        f"byte {size}: the record is truncated: {size - 1} of {size} bytes"
    )
    assert damaged(tmp_path, whole[:-1] + b"\0") == "byte 0: checksum mismatch of the record's data"
    assert damaged(tmp_path, whole + b"\0") == f"byte {size}: the file ends within the first 12 bytes of a record"


FILE_NAME = b"\x0a\x16\x0a\x09file_name\x12\x09\x0a\x07\x0a\x05a.jpg"
IMAGE = b"\x0a\x12\x0a\x05image\x12\x09\x0a\x07\x0a\x05IMAGE"
LABEL = b"\x0a\x0e\x0a\x05label\x12\x05\x1a\x03\x0a\x01\x02"


def example(*entries: bytes) -> bytes:
    return record(b"\x0a" + bytes([sum(map(len, entries))]) + b"".join(entries))


def test_the_order_of_the_features_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(example(LABEL, b"\x0a\x07\x0a\x01z\x12\x02\x12\0", IMAGE, FILE_NAME))
    assert read(path) == [Sample(-1, 2, "n01484850/a.jpg", b"IMAGE")]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (record(b""), "it has no feature image"),
        (example(FILE_NAME, IMAGE), "it has no feature label"),
        (example(IMAGE, LABEL), "it has no feature file_name"),
        (example(FILE_NAME, IMAGE, LABEL[:-1] + b"\x03"), "its label is not one of the 3 of the data set"),
        (
            example(FILE_NAME, IMAGE, b"\x0a\x0f\x0a\x05label\x12\x06\x1a\x04\x0a\x02\x02\x02"),
            "its label is not one of the 3 of the data set",
        ),
        (
            example(FILE_NAME, IMAGE, b"\x0a\x0b\x0a\x05label\x12\x02\x1a\x00"),
            "it has 0 values where the features of imagenet2012 have one",
        ),
        (
            example(
                FILE_NAME,
                LABEL,
                IMAGE.replace(b"\x12\x09\x0a\x07\x0a\x05IMAGE", b"\x12\x09\x0a\x07\x0a\x01I\x0a\x02MA"),
            ),
            "it has 2 values where the features of imagenet2012 have one",
        ),
        (record(b"\x0a\x05abc"), "it is not an Example"),
        (record(b"\x08\x01"), "it is not an Example"),
        (record(b"\x80" * 12), "it is not an Example"),
        (record(b"\x0a\x80"), "it is not an Example"),
        (example(FILE_NAME.replace(b"a.jpg", b"\xff.jpg"), IMAGE, LABEL), "its file_name is not UTF-8"),
    ],
)
def test_data_that_is_no_image_is_an_error(tmp_path: Path, content: bytes, error: str) -> None:
    first = shard_of(tmp_path, samples(1)).read_bytes()
    assert damaged(tmp_path, first + content) == f"byte {len(first)}: {error}"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([FILE_NAME, IMAGE, LABEL, b"\x0a", b"\x12", b"\0", b"\x80"]) | st.binary(max_size=3)))
def test_data_of_any_kind_is_read_or_an_error(tmp_path: Path, parts: list[bytes]) -> None:
    path = tmp_path / "any"
    path.write_bytes(record(b"".join(parts)))
    with contextlib.suppress(OpsError):
        assert len(read(path)) == 1
        return
    with pytest.raises(OpsError, match=re.escape(f"TFRecord file {path}, byte 0: ")):
        read(path)
