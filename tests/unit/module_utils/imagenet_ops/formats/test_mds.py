from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Format, Sample, ShardInfo, entry_of
from ansible.module_utils.imagenet_ops.formats.mds import MDS
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import formats, images

CLASSES = ["n01440764", "n01443537", "ein Fisch 100%"]
LIMIT = 4096
INFO = DatasetInfo("imagenet", CLASSES, {"n01440764": "tench, Tinca tinca"}, LIMIT)
ADVICE = "The file is damaged; restore it from the backup or pack the data set again"
CONFIG = (
    b'{"column_encodings": ["int", "str", "jpeg", "int"], "column_names": ["i", "name", "x", "y"], '
    b'"column_sizes": [8, null, null, 8], "compression": null, "format": "mds", "hashes": ["sha256"], '
    b'"size_limit": 4096, "version": 2}'
)


def sample(record_id: int, label: int, file: str, image: bytes) -> Sample:
    return Sample(record_id, label, f"{CLASSES[label]}/{file}", image)


FEW = [sample(7, 0, "a.JPEG", b"first"), sample(3, 2, "é .png", b"the second"), sample(0, 1, "c", b"")]
HEADER = 20 + len(CONFIG)  # of a shard with three samples
# File names of any letters, of up to 255 bytes.
FILES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=63)
SAMPLES = st.builds(sample, st.integers(0, 2**63 - 1), st.integers(0, 2), FILES, st.binary(max_size=1500))


def shard_of(folder: Path, samples: list[Sample]) -> Path:
    """The one shard of samples that fit in one; without samples it is sealed all the same."""
    data, shard = folder / "data", folder / "shard.00000.mds"
    data.write_bytes(b"".join(piece for one in samples for piece in MDS.encode(one)))
    MDS.seal(str(data), str(shard), [entry_of(one) for one in samples], INFO)
    return shard


def read(shard: Path, info: DatasetInfo = INFO) -> list[Sample]:
    return [one._replace(image=bytes(one.image)) for one in MDS.read(str(shard), info)]


def damage(folder: Path, begin: int, content: bytes) -> tuple[str, str]:
    """What is said of FEW's shard with ``content`` at ``begin``: the byte with the reason, and the advice."""
    shard = shard_of(folder, FEW)
    data = bytearray(shard.read_bytes())
    data[begin : begin + len(content)] = content
    shard.write_bytes(data)
    with pytest.raises(OpsError) as caught:
        read(shard)
    head = f"MDS shard {shard}, "
    assert str(caught.value).startswith(head)
    return f"{caught.value.what}: {caught.value.why}".removeprefix(head), caught.value.todo


# --- one shard -------------------------------------------------------------------------------------------------------


def test_a_shard_is_the_count_the_offsets_the_settings_and_the_samples(tmp_path: Path) -> None:
    name = "ein Fisch 100%/é .png".encode()
    samples = [
        struct.pack("<IIq", 16, 5, 7) + b"n01440764/a.JPEG" + b"first" + struct.pack("<q", 0),
        struct.pack("<IIq", 22, 10, 3) + name + b"the second" + struct.pack("<q", 2),
        struct.pack("<IIq", 11, 0, 0) + b"n01443537/c" + struct.pack("<q", 1),
    ]
    header = struct.pack("<5I", 3, HEADER, HEADER + 45, HEADER + 101, HEADER + 136) + CONFIG
    assert shard_of(tmp_path, FEW).read_bytes() == header + b"".join(samples)


def test_a_shard_without_samples_is_read(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, [])
    assert shard.read_bytes() == struct.pack("<2I", 0, 8 + len(CONFIG)) + CONFIG
    assert read(shard) == []


@given(samples=st.lists(SAMPLES, max_size=12))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> None:
    folder = tmp_path_factory.mktemp("mds")
    shards = formats.write_shards(MDS, samples, folder, LIMIT, INFO)
    assert formats.read_shards(MDS, folder, shards, INFO) == samples
    assert sum(shard.records for shard in shards) == len(samples)


def test_a_png_is_kept_as_it_is(tmp_path: Path) -> None:
    samples = [sample(0, 0, "a.png", images.png()), sample(1, 1, "b.JPEG", images.jpeg())]
    assert read(shard_of(tmp_path, samples)) == samples


def test_the_image_is_not_copied() -> None:
    image = memoryview(bytearray(b"pixels"))
    assert any(piece is image for piece in MDS.encode(Sample(0, 0, "n01440764/a", image)))


def test_what_a_killed_run_left_of_a_shard_is_overwritten(tmp_path: Path) -> None:
    whole = shard_of(tmp_path, FEW).read_bytes()
    for left in (b"", whole[:5], whole[:-1], whole + whole):
        (tmp_path / "shard.00000.mds").write_bytes(left)
        assert shard_of(tmp_path, FEW).read_bytes() == whole


def test_a_shard_is_synced_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    assert synced == [shard_of(tmp_path, FEW).stat().st_size]


def test_a_copy_in_steps_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shard_of(tmp_path, FEW).read_bytes()
    sendfile = os.sendfile
    monkeypatch.setattr(os, "sendfile", lambda target, source, *_: sendfile(target, source, None, 7))
    assert shard_of(tmp_path, FEW).read_bytes() == whole


@pytest.mark.parametrize(("data", "size"), [(b"", 0), (b"x" * 80, 80), (b"x" * 82, 82)])
def test_a_growing_file_of_another_length_is_not_sealed(tmp_path: Path, data: bytes, size: int) -> None:
    path = tmp_path / "data"
    path.write_bytes(data)
    entries = [entry_of(sample(0, 0, "a.JPEG", b"x" * 41))]
    with pytest.raises(OpsError) as caught:
        MDS.seal(str(path), str(tmp_path / "shard"), entries, INFO)
    assert str(caught.value) == (
        f"Growing file {path}: it has {size} bytes, but its 1 records make 81. "
        "Something else changes it; stop that, then run again"
    )


def test_a_shard_beyond_the_offsets_is_not_written(tmp_path: Path) -> None:
    shard = tmp_path / "shard"
    entries = [entry_of(FEW[0])._replace(image_bytes=1 << 31)] * 2
    with pytest.raises(OpsError) as caught:
        MDS.seal(str(tmp_path / "data"), str(shard), entries, INFO)
    size = 2 * ((1 << 31) + 24 + 16) + 16 + len(CONFIG)
    assert str(caught.value) == (
        f"MDS shard {shard}: it would have {size} bytes, and offsets in MDS end at 4294967295. "
        "Set data_shard_mib, or more data_shards"
    )
    assert not shard.exists()


def test_without_a_limit_the_settings_have_none(tmp_path: Path) -> None:
    data, shard, info = tmp_path / "data", tmp_path / "shard", INFO._replace(shard_bytes=0)
    data.write_bytes(b"".join(MDS.encode(FEW[0])))
    MDS.seal(str(data), str(shard), [entry_of(FEW[0])], info)
    assert b'"size_limit": null, ' in shard.read_bytes()
    assert read(shard, info) == FEW[:1]
    index = json.loads(
        MDS.index_files(info, {"train": [ShardInfo("train/shard.00000.mds", 1, 9, "", 5)]})["train/index.json"]
    )
    assert index["shards"][0]["size_limit"] is None


# --- what the format cannot hold -------------------------------------------------------------------------------------


def test_an_image_beyond_the_offsets_is_refused() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return (1 << 32) - 1

    with pytest.raises(OpsError) as caught:
        MDS.encode(Sample(0, 0, "n01440764/a", Huge()))
    assert str(caught.value) == (
        "Image n01440764/a: its 4294967295 bytes are more than an MDS shard can hold. "
        "Exclude the image, or take mds out of data_formats"
    )


# --- where a shard ends ----------------------------------------------------------------------------------------------


def test_a_shard_is_full_when_its_file_would_exceed_the_limit(tmp_path: Path) -> None:
    two = [sample(0, 0, "a", b"x" * 1000), sample(1, 0, "b", b"y" * 500)]
    size = shard_of(tmp_path, two).stat().st_size
    for limit, records in ((size, [2]), (size - 1, [1, 1])):
        info = INFO._replace(shard_bytes=limit)
        shards = formats.write_shards(MDS, two, tmp_path / str(limit), limit, info)
        assert [shard.records for shard in shards] == records
        assert max(shard.size_bytes for shard in shards) <= limit


def test_a_sample_beyond_the_limit_has_a_shard_of_its_own(tmp_path: Path) -> None:
    samples = [sample(n, 0, f"{n}", b"x" * LIMIT) for n in range(3)]
    shards = formats.write_shards(MDS, samples, tmp_path, LIMIT, INFO)
    assert [shard.records for shard in shards] == [1, 1, 1]
    assert not MDS.is_full(0, 0, LIMIT * 2, LIMIT)


def test_no_shard_is_longer_than_its_offsets_can_say() -> None:
    assert MDS.is_full((1 << 32) - 1000, 1, 1000, 1 << 40)
    assert not MDS.is_full((1 << 32) - 2000, 1, 1000, 1 << 40)


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "content", "error"),
    [
        (
            0,
            b"\xff" * 4,
            "byte 0: it says 4294967295 samples, but their header is longer than the 378 bytes of the file",
        ),
        (0, b"\x02", "byte 16: the shard's settings are not those of these columns and size_limit 4096"),
        (4, b"\0\0", "byte 4: the first sample is at 0, but the header ends at 242"),
        (8, struct.pack("<I", HEADER + 23), "byte 8: the sample has 23 bytes, but none has less than 24"),
        (12, struct.pack("<I", HEADER), "byte 12: the sample has -45 bytes, but none has less than 24"),
        (16, struct.pack("<I", HEADER + 137), "byte 378: the shard has 378 bytes, but its header says 379"),
        (HEADER - 20, b"5", "byte 20: the shard's settings are not those of these columns and size_limit 4096"),
        (HEADER, b"\x11", "byte 242: the columns make 46 bytes, but the sample has 45"),
        (HEADER + 4, b"\xff" * 4, "byte 242: the columns make 4294967335 bytes, but the sample has 45"),
        (HEADER + 15, b"\x80", "byte 242: the sample has the negative id -9223372036854775801"),
        (HEADER + 16, b"\xff", "byte 258: the name of the sample is not UTF-8"),
        (HEADER + 24, b"5", "byte 279: the label 0 is not that of 'n01440765/a.JPEG'"),
        (HEADER + 37, b"\x01", "byte 279: the label 1 is not that of 'n01440764/a.JPEG'"),
        (HEADER + 37, b"\x03", "byte 279: the label 3 is not that of 'n01440764/a.JPEG'"),
        (HEADER + 37, b"\xff" * 8, "byte 279: the label -1 is not that of 'n01440764/a.JPEG'"),
    ],
)
def test_damage_is_named_with_its_place(tmp_path: Path, begin: int, content: bytes, error: str) -> None:
    assert damage(tmp_path, begin, content) == (error, ADVICE)


def test_a_flipped_bit_is_noticed_unless_the_format_cannot_tell(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, FEW)
    whole = shard.read_bytes()
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        shard.write_bytes(flipped)
        try:
            found = read(shard)
        except OpsError:
            continue
        # Nobody can: only index.json has a checksum.
        assert position >= HEADER
        assert [(one.label, one.name.split("/")[0], len(one.image)) for one in found] == [
            (one.label, one.name.split("/")[0], len(one.image)) for one in FEW
        ]


def test_a_truncated_shard_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, FEW)
    whole = shard.read_bytes()
    for size in range(len(whole)):
        shard.write_bytes(whole[:size])
        with pytest.raises(OpsError, match=r"MDS shard .*, byte \d+: "):
            read(shard)
    shard.write_bytes(whole + b"x")
    with pytest.raises(OpsError, match="byte 379: the shard has 379 bytes, but its header says 378"):
        read(shard)


def test_a_shard_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    samples = [sample(n, 0, f"{n}", b"x" * 100_000) for n in range(3)]
    shard = shard_of(tmp_path, samples)
    reader = MDS.read(str(shard), INFO)
    assert next(reader).record_id == 0
    os.truncate(shard, 150_000)
    with pytest.raises(OpsError, match=r"the sample is truncated: \d+ of 100035 bytes"):
        list(reader)


# --- the files beside the shards -------------------------------------------------------------------------------------


def test_the_index_has_what_readers_of_mds_look_for() -> None:
    shards = [ShardInfo(f"train/shard.0000{n}.mds", 2 + n, 400 + n, "ab" * 32, 300) for n in range(2)]
    files = MDS.index_files(INFO, {"train": shards, "validation": []})
    assert sorted(files) == ["classes.json", "train/index.json", "validation/index.json"]
    assert files["validation/index.json"] == b'{"shards": [], "version": 2}'
    shard = CONFIG[1:].replace(
        b'"size_limit"',
        b'"raw_data": {"basename": "shard.00000.mds", "bytes": 400, "hashes": {"sha256": "' + b"ab" * 32 + b'"}}, '
        b'"samples": 2, "size_limit"',
    )
    assert files["train/index.json"].startswith(b'{"shards": [{' + shard[:-1] + b', "zip_data": null}, {')
    index = json.loads(files["train/index.json"])
    assert [(shard["raw_data"]["basename"], shard["samples"]) for shard in index["shards"]] == [
        ("shard.00000.mds", 2),
        ("shard.00001.mds", 3),
    ]


def test_the_classes_stand_beside_the_splits() -> None:
    classes = json.loads(MDS.index_files(INFO, {})["classes.json"])
    assert classes == {
        "name": "imagenet",
        "classes": [
            {"label": 0, "name": "n01440764", "words": "tench, Tinca tinca"},
            {"label": 1, "name": "n01443537", "words": ""},
            {"label": 2, "name": "ein Fisch 100%", "words": ""},
        ],
    }


def test_shards_have_the_names_of_the_library_and_no_sidecars(tmp_path: Path) -> None:
    assert MDS.shard_name(INFO, "train", 12, 1000) == "train/shard.00012.mds"
    assert MDS.shard_name(INFO, "train", 123456, 123457) == "train/shard.123456.mds"
    assert MDS.sidecar_name("train/shard.00012.mds") == ""
    assert MDS.sidecar(str(tmp_path), []) == b""


def test_it_is_a_format() -> None:
    form: Format = MDS
    assert (form.name, form.in_place) == ("mds", False)
