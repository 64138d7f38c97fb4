from __future__ import annotations

import builtins
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.formats import parquet
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Format, Sample, ShardInfo, entry_of
from ansible.module_utils.imagenet_ops.formats.parquet import PARQUET, check_frame
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet as pq

from tests.fakes import formats, images

CLASSES = ["n01440764", "n01443537", "ein Fisch 100%"]
LIMIT = 4096
INFO = DatasetInfo("imagenet", CLASSES, {"n01440764": "tench, Tinca tinca", "n01443537": "gold|fish"}, LIMIT)
ADVICE = "The file is damaged; restore it from the backup or pack the data set again"


def sample(label: int, file: str, image: bytes) -> Sample:
    return Sample(-1, label, f"{CLASSES[label]}/{file}", image)


FEW = [sample(0, "a.JPEG", b"first"), sample(2, "é .png", b"the second"), sample(1, "c", b"")]
# File names of any letters, of up to 255 bytes.
FILES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=63)
SAMPLES = st.builds(sample, st.integers(0, 2), FILES, st.binary(max_size=1500))


def shard_of(folder: Path, samples: list[Sample], info: DatasetInfo = INFO) -> Path:
    """The one shard of samples that fit in one; without samples it is sealed all the same."""
    data, shard = folder / "data", folder / "train-00000-of-00001.parquet"
    data.write_bytes(b"".join(piece for one in samples for piece in PARQUET.encode(one)))
    PARQUET.seal(str(data), str(shard), [entry_of(one) for one in samples], info)
    return shard


def read(shard: Path, info: DatasetInfo = INFO) -> list[Sample]:
    return [one._replace(image=bytes(one.image)) for one in PARQUET.read(str(shard), info)]


def error_of(shard: Path, info: DatasetInfo = INFO) -> str:
    """What is said of a shard: the byte with the reason; the rest is always the same."""
    with pytest.raises(OpsError) as caught:
        read(shard, info)
    text = str(caught.value)
    head, tail = f"Parquet shard {shard}, ", f". {ADVICE}"
    assert text.startswith(head)
    assert text.endswith(tail)
    return text[len(head) : -len(tail)]


# --- one shard -------------------------------------------------------------------------------------------------------


def test_a_shard_has_the_columns_and_the_metadata_of_hugging_face(tmp_path: Path) -> None:
    table = pq.read_table(shard_of(tmp_path, FEW))
    assert str(table.schema.field("image").type) == "struct<bytes: binary, path: string>"
    assert str(table.schema.field("label").type) == "int64"
    assert json.loads(table.schema.metadata[b"huggingface"]) == {
        "info": {"features": {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}}
    }
    assert table.to_pylist() == [
        {"image": {"bytes": b"first", "path": "a.JPEG"}, "label": 0},
        {"image": {"bytes": b"the second", "path": "é .png"}, "label": 2},
        {"image": {"bytes": b"", "path": "c"}, "label": 1},
    ]


def test_a_row_group_has_a_hundred_images(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, [sample(0, f"{n}", b"same") for n in range(250)])
    metadata = pq.read_metadata(shard)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [100, 100, 50]
    assert len(read(shard)) == 250


def test_a_row_group_of_huge_images_is_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_ROW_GROUP_BYTES", 10)
    samples = [sample(0, f"{n}", b"x" * size) for n, size in enumerate([4, 6, 1, 30, 0, 10])]
    shard = shard_of(tmp_path, samples)
    metadata = pq.read_metadata(shard)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [2, 1, 1, 2]
    assert read(shard) == samples


def test_images_are_stored_as_they_are_each_page_with_its_checksum(tmp_path: Path) -> None:
    picture = images.jpeg()
    shard = shard_of(tmp_path, [sample(0, "a", picture), sample(1, "b", picture)])
    assert shard.read_bytes().count(picture) == 2
    group = pq.read_metadata(shard).row_group(0)
    columns = [group.column(n) for n in range(3)]
    assert {column.compression for column in columns} == {"UNCOMPRESSED"}
    assert not any(column.is_stats_set or column.has_dictionary_page for column in columns)


def test_a_shard_without_samples_is_read(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, [])
    assert pq.read_table(shard).num_rows == 0
    assert read(shard) == []


@given(samples=st.lists(SAMPLES, max_size=12))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    shards = formats.write_shards(PARQUET, samples, folder, LIMIT, INFO)
    assert formats.read_shards(PARQUET, folder, shards, INFO) == samples
    assert sum(shard.records for shard in shards) == len(samples)


def test_a_png_is_kept_as_it_is(tmp_path: Path) -> None:
    samples = [sample(0, "a.png", images.png()), sample(1, "b.JPEG", images.jpeg())]
    assert read(shard_of(tmp_path, samples)) == samples


def test_the_image_is_not_copied() -> None:
    image = memoryview(bytearray(b"pixels"))
    [piece] = PARQUET.encode(Sample(0, 0, "n01440764/a", image))
    assert piece is image


def test_the_bytes_are_the_same_again_and_a_killed_run_leaves_nothing(tmp_path: Path) -> None:
    whole = shard_of(tmp_path, FEW).read_bytes()
    for left in (b"", whole[:5], whole[:-1], whole + whole):
        (tmp_path / "train-00000-of-00001.parquet").write_bytes(left)
        assert shard_of(tmp_path, FEW).read_bytes() == whole


def test_a_shard_is_synced_when_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    assert synced == [shard_of(tmp_path, FEW).stat().st_size]


@pytest.mark.parametrize("data", [b"", b"x" * 40, b"x" * 42])
def test_a_growing_file_of_another_length_is_not_sealed(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "data"
    path.write_bytes(data)
    with pytest.raises(OpsError) as caught:
        PARQUET.seal(str(path), str(tmp_path / "shard"), [entry_of(sample(0, "a.JPEG", b"x" * 41))], INFO)
    assert str(caught.value) == (
        f"Growing file {path}: it has {len(data)} bytes, but its 1 records make 41. "
        "Something else changes it; stop that, then run again"
    )


# --- what the format cannot hold -------------------------------------------------------------------------------------


def test_an_image_beyond_a_page_is_refused() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return (1 << 30) + 1

    with pytest.raises(OpsError) as caught:
        PARQUET.encode(Sample(0, 0, "n01440764/a", Huge()))
    assert str(caught.value) == (
        "Image n01440764/a: its 1073741825 bytes are more than a page of Parquet can hold. "
        "Exclude the image, or take parquet out of data_formats"
    )


def test_a_shard_is_full_when_its_images_would_exceed_the_limit(tmp_path: Path) -> None:
    samples = [sample(0, f"{n}", b"x" * size) for n, size in enumerate([LIMIT - 1, 1, 1, LIMIT + 1, 0, 0])]
    shards = formats.write_shards(PARQUET, samples, tmp_path, LIMIT, INFO)
    assert [shard.records for shard in shards] == [2, 1, 1, 2]


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_never_changes_or_loses_a_sample_unnoticed(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, FEW)
    whole = shard.read_bytes()
    noticed = []
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        shard.write_bytes(flipped)
        try:
            # A few bits of the headers of pages say nothing that counts.
            assert read(shard) == FEW
        except OpsError:
            noticed.append(position)
    images = {whole.index(one.image) for one in FEW[:2]}
    footer = range(check_frame(str(shard_of(tmp_path, FEW))), len(whole))
    assert images | {*footer} <= {*noticed}
    assert len(noticed) > len(whole) * 0.95


def test_a_truncated_shard_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    # The second image is a whole Parquet file, so that a file cut behind it ends as one does.
    inner = shard_of(tmp_path, FEW[:1]).read_bytes()
    shard = shard_of(tmp_path, [FEW[0], sample(1, "b", inner), FEW[1]])
    whole = shard.read_bytes()
    assert whole.count(inner) == 1
    for size in range(len(whole)):
        shard.write_bytes(whole[:size])
        assert error_of(shard)
    shard.write_bytes(whole + b"\0")
    assert error_of(shard) == f"byte {len(whole) + 1}: the file does not end as a Parquet file does; it is truncated"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "byte 0: no Parquet file begins here"),
        (b"\xff\xd8\xff\xe0", "byte 0: no Parquet file begins here"),
        (b"PAR1", "byte 4: the file does not end as a Parquet file does; it is truncated"),
        (b"PAR1" + b"\0" * 4 + b"PAR", "byte 11: the file does not end as a Parquet file does; it is truncated"),
        (b"PAR1\1\0\0\0PAR1", "byte 4: the footer cannot have 1 bytes"),
        (b"PAR1\0\0\0\0PAR1", "byte 4: the checksum of the footer is not that before it"),
        (b"PAR1crc xx\2\0\0\0PAR1", "byte 8: the checksum of the footer is not that before it"),
        (b"PAR1xx\3\0\0\0PAR1", "byte 6: the footer cannot have 3 bytes"),
    ],
)
def test_the_frame_of_a_shard_is_checked_without_pyarrow(tmp_path: Path, content: bytes, error: str) -> None:
    shard = tmp_path / "shard"
    shard.write_bytes(content)
    with pytest.raises(OpsError) as caught:
        check_frame(str(shard))
    assert str(caught.value) == f"Parquet shard {shard}, {error}. {ADVICE}"


def test_the_frame_says_where_the_footer_begins(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, FEW)
    size = shard.stat().st_size
    assert check_frame(str(shard)) == size - 8 - pq.read_metadata(shard).serialized_size


def test_a_damaged_page_is_named_with_its_row_group(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, [sample(0, f"{n}", b"image %d" % n) for n in range(150)])
    whole = shard.read_bytes()
    begin = pq.read_metadata(shard).row_group(1).column(0).data_page_offset
    shard.write_bytes(whole.replace(b"image 120", b"image 121"))
    assert error_of(shard).startswith(f"byte {begin}: the row group cannot be read (")


def test_a_shard_of_other_classes_or_columns_is_refused(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, FEW)
    error = f"byte {check_frame(str(shard))}: the columns and classes are not those of this data set"
    assert error_of(shard, INFO._replace(classes=CLASSES[::-1])) == error
    assert error_of(shard, INFO._replace(classes=CLASSES[:2])) == error


def test_values_that_packing_never_writes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = shard_of(tmp_path, FEW)
    schema = pq.read_schema(shard)
    image = {"bytes": b"x", "path": "a"}

    def with_rows(images: list[Any], labels: list[Any]) -> Path:
        table = pa.table({"image": images, "label": labels}, schema=schema)
        with monkeypatch.context() as patch:
            patch.setattr(parquet, "_table", lambda *_: table)
            return shard_of(tmp_path, FEW[:2])

    assert read(with_rows([image] * 2, [0, 1])) == [sample(0, "a", b"x"), sample(1, "a", b"x")]
    assert error_of(with_rows([image] * 2, [0, 3])) == "byte 4: the row group has the label 3, and 3 are possible"
    assert error_of(with_rows([image] * 2, [-1, 0])) == "byte 4: the row group has the label -1, and 3 are possible"
    missing = "byte 4: a column of the row group does not have 2 values"
    assert error_of(with_rows([image] * 2, [0, None])) == missing
    assert error_of(with_rows([None, image], [0, 1])) == missing
    assert error_of(with_rows([image, {"bytes": None, "path": "a"}], [0, 1])) == missing
    assert error_of(with_rows([image, {"bytes": b"x", "path": None}], [0, 1])) == missing


def test_a_parquet_file_without_our_checksum_is_refused(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, FEW)
    table = pq.read_table(shard)
    pq.write_table(table, shard)
    begin = shard.stat().st_size - 8 - pq.read_metadata(shard).serialized_size
    assert error_of(shard) == f"byte {begin}: the checksum of the footer is not that before it"


# --- without pyarrow -------------------------------------------------------------------------------------------------


def test_a_host_without_pyarrow_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = shard_of(tmp_path, FEW)
    importer = builtins.__import__

    def without_pyarrow(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")
        return importer(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    text = (
        f"Parquet shard {shard}: pyarrow is not installed (No module named 'pyarrow'). "
        "Run the role python_environment with python_environment_purpose: parquet on this host"
    )
    with pytest.raises(OpsError) as caught:
        read(shard)
    assert str(caught.value) == text
    with pytest.raises(OpsError) as caught:
        PARQUET.seal(str(tmp_path / "data"), str(shard), [], INFO)
    assert str(caught.value) == text
    with pytest.raises(OpsError, match=r"^Format parquet: pyarrow is not installed "):
        PARQUET.tools()
    PARQUET.check_frame(str(shard))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(OpsError, match="it is truncated"):
        PARQUET.check_frame(str(shard))


def test_the_release_of_pyarrow_decides_the_bytes(tmp_path: Path) -> None:
    assert PARQUET.tools() == {"pyarrow": pa.__version__}
    assert f"version {pa.__version__}".encode() in shard_of(tmp_path, FEW).read_bytes()


@pytest.mark.parametrize("found", [None, object()])
def test_a_host_can_read_where_pyarrow_is(monkeypatch: pytest.MonkeyPatch, found: object) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "pyarrow" else pytest.fail(name))
    assert PARQUET.can_read() == bool(found)


# --- the files beside the shards -------------------------------------------------------------------------------------


def card(info: DatasetInfo, splits: dict[str, list[ShardInfo]]) -> tuple[Any, str]:
    [(path, content)] = PARQUET.index_files(info, splits).items()
    assert path == "README.md"
    empty, head, body = content.decode().split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(head), body


def test_the_card_describes_files_features_and_counts() -> None:
    shards = [ShardInfo(f"data/train-0000{n}-of-00002.parquet", 2 + n, 400 + n, "ab" * 32, 300) for n in range(2)]
    head, _ = card(INFO, {"train": shards, "validation": shards[:1], "test": []})
    assert head == {
        "pretty_name": "imagenet",
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": "train", "path": "data/train-*"},
                    {"split": "validation", "path": "data/validation-*"},
                ],
            }
        ],
        "dataset_info": {
            "features": [
                {"name": "image", "dtype": "image"},
                {"name": "label", "dtype": {"class_label": {"names": dict(zip("012", CLASSES))}}},
            ],
            "splits": [
                {"name": "train", "num_bytes": 600, "num_examples": 5},
                {"name": "validation", "num_bytes": 300, "num_examples": 2},
            ],
            "download_size": 1201,
            "dataset_size": 900,
        },
    }


@pytest.mark.parametrize("name", ["yes", "1_0", "no: # -", "\"'\\", "é\u2028\x7f\x85", "\U0001f600", " end ", "%"])
def test_any_class_name_is_in_the_card(name: str) -> None:
    head, _ = card(DatasetInfo(name, [name], {}), {})
    assert head["pretty_name"] == name
    assert head["dataset_info"]["features"][1]["dtype"]["class_label"]["names"] == {"0": name}


def test_the_words_of_the_classes_are_a_table_of_the_card() -> None:
    _, body = card(INFO, {})
    assert (
        "| 0 | n01440764 | tench, Tinca tinca |\n| 1 | n01443537 | gold\\|fish |\n| 2 | ein Fisch 100% |  |\n" in body
    )


def test_shards_have_the_names_of_the_library_and_no_sidecars(tmp_path: Path) -> None:
    assert PARQUET.shard_name(INFO, "train", 12, 1000) == "data/train-00012-of-01000.parquet"
    assert PARQUET.sidecar_name("data/train-00012-of-01000.parquet") == ""
    assert PARQUET.sidecar(str(tmp_path), []) == b""


def test_it_is_a_format() -> None:
    form: Format = PARQUET
    assert (form.name, form.in_place) == ("parquet", False)
