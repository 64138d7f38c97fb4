from __future__ import annotations

import io
import json
import mmap
import tarfile
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Sample, entry_of
from ansible.module_utils.imagenet_ops.formats.webdataset import WEBDATASET
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.formats import read_shards, write_dataset, write_shards
from tests.fakes.images import jpeg, png

INFO = DatasetInfo("imagenet", ["n01440764", "n01443537", "n01484850"], {"n01440764": "tench, Tinca tinca"})
ADVICE = "The file is damaged; restore it from the backup or pack the data set again"
LONG = "n01440764/" + "x" * 250 + ".jpeg"
ODD_NAMES = [
    "n01440764/with space.jpg",
    "n01440764/two.dots.in.it.JPEG",
    "n01440764/two%2Edots%2Ein.it.JPEG",
    "n01440764/zażółć-図.png",
    "n01440764/100%.jpg",
    "n01440764/\\back\"slash'.jpg",
    LONG,
]


def samples(count: int = 3) -> list[Sample]:
    images = [b"\xff\xd8" + bytes([number]) * (700 * number) for number in range(count)]
    return [
        Sample(number, number % 3, f"{INFO.classes[number % 3]}/image_{number}.JPEG", image)
        for number, image in enumerate(images)
    ]


def shard_of(folder: Path, written: list[Sample]) -> Path:
    (shard,) = write_shards(WEBDATASET, written, folder, 1 << 30, INFO)
    return folder / shard.path


def error_of(path: Path, info: DatasetInfo = INFO) -> str:
    with pytest.raises(OpsError) as caught:
        list(WEBDATASET.read(str(path), info))
    return str(caught.value)


def damaged(folder: Path, content: bytes) -> str:
    """Return the error of reading ``content``, which must name the file and the advice, without these."""
    path = folder / "damaged.tar"
    path.write_bytes(content)
    error = error_of(path)
    assert error.startswith(f"WebDataset shard {path}, byte ")
    assert error.endswith(f". {ADVICE}")
    return error[len(f"WebDataset shard {path}, ") : -len(f". {ADVICE}")]


def tar_of(path: Path, contents: dict[str, bytes]) -> Path:
    """Write a tar with the fields of a shard, by Python's own module."""
    with tarfile.open(path, "w|") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uname, member.gname = len(content), 0o444, "bigdata", "bigdata"
            archive.addfile(member, io.BytesIO(content))
    return path


# --- write and read --------------------------------------------------------------------------------------------------


def test_a_shard_is_a_tar_of_three_members_for_each_sample(tmp_path: Path) -> None:
    image = png()
    shard = shard_of(tmp_path, [*samples(2), Sample(7, 2, "n01484850/a.png", image)])
    with tarfile.open(shard) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [
            "n01440764/image_0.cls",
            "n01440764/image_0.jpg",
            "n01440764/image_0.json",
            "n01443537/image_1.cls",
            "n01443537/image_1.jpg",
            "n01443537/image_1.json",
            "n01484850/a.cls",
            "n01484850/a.json",
            "n01484850/a.png",
        ]
        assert {(member.mode, member.mtime, member.uname, member.gname) for member in members} == {
            (0o444, 0, "bigdata", "bigdata")
        }
        contents = [archive.extractfile(member) for member in members[-3:]]
        assert [file.read() for file in contents if file] == [
            b"2",
            b'{"filename": "n01484850/a.png", "id": 7, "label": 2}',
            image,
        ]


def test_a_shard_has_the_bytes_of_pythons_tarfile(tmp_path: Path) -> None:
    written = [*samples(30), *(Sample(30 + at, 0, name, jpeg(seed=at)) for at, name in enumerate(ODD_NAMES))]
    shard = shard_of(tmp_path, written)
    copy = io.BytesIO()
    with tarfile.open(shard) as archive, tarfile.open(fileobj=copy, mode="w|", format=tarfile.PAX_FORMAT) as again:
        for member in archive:
            named = tarfile.TarInfo(member.name)
            named.size, named.mode, named.uname, named.gname = member.size, 0o444, "bigdata", "bigdata"
            again.addfile(named, archive.extractfile(member))
    assert copy.getvalue() == shard.read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**63 - 1),
            st.integers(0, 2),
            st.text(
                st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/"), min_size=1, max_size=80
            ),
            st.sampled_from([".jpg", ".JPEG", ".png"]),
            st.binary(max_size=1100) | st.binary(max_size=9).map(b"\x89PNG\r\n\x1a\n".__add__),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_written_is_read(tmp_path: Path, drawn: list[tuple[int, int, str, str, bytes]]) -> None:
    written = [
        Sample(record_id, label, f"{INFO.classes[label]}/a{name}{suffix}", image)
        for record_id, label, name, suffix, image in drawn
    ]
    assert list(WEBDATASET.read(str(shard_of(tmp_path, written)), INFO)) == written


def test_a_view_of_an_image_is_written_as_its_bytes(tmp_path: Path) -> None:
    viewed = [sample._replace(image=memoryview(sample.image)) for sample in samples()]
    assert shard_of(tmp_path / "views", viewed).read_bytes() == shard_of(tmp_path, samples()).read_bytes()


def test_the_image_is_not_copied() -> None:
    sample = samples()[1]
    assert WEBDATASET.encode(sample)[1] is sample.image


@pytest.mark.parametrize("name", ODD_NAMES)
def test_every_reader_gets_a_key_without_dots_and_the_whole_name(tmp_path: Path, name: str) -> None:
    shard = shard_of(tmp_path, [Sample(0, 0, name, b"image")])
    with tarfile.open(shard) as archive:
        keys = {member.name.split(".", 1)[0] for member in archive}
        suffixes = [member.name.split(".", 1)[1] for member in archive]
        metadata = archive.extractfile(archive.getmembers()[2])
        assert metadata is not None
        assert json.load(metadata)["filename"] == name
        assert archive.pax_headers == {}
        assert not any(member.pax_headers for member in archive)
    assert suffixes == ["cls", "jpg", "json"]
    (key,) = keys
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/_-~%")
    assert next(WEBDATASET.read(str(shard), INFO)).name == name


def test_long_names_that_begin_alike_have_keys_of_their_own(tmp_path: Path) -> None:
    written = [Sample(at, 0, LONG.replace(".", f"{at}."), b"image") for at in range(2)]
    with tarfile.open(shard_of(tmp_path, written)) as archive:
        assert len(set(archive.getnames())) == 6
    assert WEBDATASET.refusal(sample.name for sample in written) == ""


def test_an_image_too_large_for_a_header_is_an_error() -> None:
    with (
        mmap.mmap(-1, 1 << 33, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block,
        memoryview(block) as image,
        pytest.raises(OpsError) as caught,
    ):
        WEBDATASET.encode(Sample(0, 0, "n01440764/a.jpg", image))
    assert str(caught.value) == (
        "Image n01440764/a.jpg: it has 8589934592 bytes, and a member of a WebDataset shard at most 8589934591. "
        "Resize the images, or leave webdataset out of data_formats"
    )


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "refusal"),
    [
        ([], ""),
        (["a/x.jpg", "b/x.png"], ""),
        (["a/x.jpg", "a/x.y.jpg", "a/x%2Ey.jpg"], ""),
        (
            ["a/x.jpg", "a/x.k.jpg", "a/x.png"],
            "a/x.jpg and a/x.png differ in no more than the extension, which is no part of a WebDataset key",
        ),
        (
            ["b/y.JPEG", "b/y.jpeg"],
            "b/y.JPEG and b/y.jpeg differ in no more than the extension, which is no part of a WebDataset key",
        ),
    ],
)
def test_images_of_a_class_with_the_same_key_are_refused(names: list[str], refusal: str) -> None:
    assert WEBDATASET.refusal(iter(names)) == refusal


# --- shards ----------------------------------------------------------------------------------------------------------


def test_a_shard_is_full_when_it_has_reached_the_limit() -> None:
    assert not WEBDATASET.is_full(0, 0, 5000, 1)
    assert not WEBDATASET.is_full(999, 1, 5000, 1000)
    assert WEBDATASET.is_full(1000, 1, 1, 1000)


def test_shards_are_named_by_split_and_number(tmp_path: Path) -> None:
    shards = write_shards(WEBDATASET, samples(4), tmp_path, 4000, INFO, "validation")
    assert [(shard.path, shard.records) for shard in shards] == [
        ("validation-000000.tar", 2),
        ("validation-000001.tar", 1),
        ("validation-000002.tar", 1),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"validation-00000{shard}.{suffix}" for shard in range(3) for suffix in ("idx", "tar")
    ]
    assert read_shards(WEBDATASET, tmp_path, shards, INFO) == samples(4)


@pytest.mark.parametrize("member_blocks", range(14, 22))
def test_the_end_fills_the_last_record_of_the_tar(tmp_path: Path, member_blocks: int) -> None:
    image = bytes(512 * (member_blocks - 5))
    path = shard_of(tmp_path, [Sample(0, 0, "n01440764/a.jpg", image)])
    assert path.stat().st_size == (10240 if member_blocks <= 18 else 20480)
    assert next(WEBDATASET.read(str(path), INFO)).image == image


def test_a_seal_that_was_killed_is_cut_off_and_repeated(tmp_path: Path) -> None:
    whole = shard_of(tmp_path, samples()).read_bytes()
    data = b"".join(bytes(piece) for sample in samples() for piece in WEBDATASET.encode(sample))
    for written in range(0, len(whole) - len(data), 512):
        path = tmp_path / "growing"
        path.write_bytes(data + bytes(written))
        with path.open("ab") as file:
            file.truncate(len(data))
        WEBDATASET.seal(str(path), str(path), [entry_of(sample) for sample in samples()], INFO)
        assert path.read_bytes() == whole


def test_a_shard_without_samples_is_an_empty_tar(tmp_path: Path) -> None:
    path = tmp_path / "empty.tar"
    path.touch()
    WEBDATASET.seal(str(path), str(path), [], INFO)
    assert list(WEBDATASET.read(str(path), INFO)) == []
    assert path.stat().st_size == 10240
    with tarfile.open(path) as archive:
        assert archive.getnames() == []
    assert WEBDATASET.sidecar(str(path), []) == b"v1.2 0\n"


def test_the_sidecar_is_dalis_index(tmp_path: Path) -> None:
    path = shard_of(
        tmp_path, [Sample(5, 1, "n01443537/a b.jpg", b"\xff\xd8" * 300), Sample(6, 0, "n01440764/c.png", png())]
    )
    lines = path.with_suffix(".idx").read_text().splitlines()
    assert lines[0] == "v1.2 2"
    assert lines[1] == (
        "cls 512 1 n01443537/a%20b.cls jpg 1536 600 n01443537/a%20b.jpg json 3072 54 n01443537/a%20b.json"
    )
    with tarfile.open(path) as archive:
        told = [f"{m.name.split('.')[1]} {m.offset_data} {m.size} {m.name}" for m in archive]
    assert lines[1:] == [" ".join(told[:3]), " ".join(told[3:])]


def test_the_index_files_of_a_data_set(tmp_path: Path) -> None:
    write_dataset(WEBDATASET, {"train": samples(4), "validation": samples(1)}, tmp_path, 4000, INFO)
    assert json.loads((tmp_path / "_info.json").read_bytes()) == {
        "splits": {
            "train": {
                "name": "train",
                "num_samples": 4,
                "filenames": ["train-000000.tar", "train-000001.tar", "train-000002.tar"],
                "shard_lengths": [2, 1, 1],
            },
            "validation": {
                "name": "validation",
                "num_samples": 1,
                "filenames": ["validation-000000.tar"],
                "shard_lengths": [1],
            },
        }
    }
    assert json.loads((tmp_path / "validation.wids.json").read_bytes()) == {
        "wids_version": 1,
        "name": "imagenet-validation",
        "shardlist": [{"url": "validation-000000.tar", "nsamples": 1, "filesize": 10240}],
    }
    assert json.loads((tmp_path / "train.wids.json").read_bytes())["shardlist"][0]["nsamples"] == 2
    assert json.loads((tmp_path / "classes.json").read_bytes()) == {
        "name": "imagenet",
        "classes": [
            {"label": 0, "name": "n01440764", "words": "tench, Tinca tinca"},
            {"label": 1, "name": "n01443537", "words": ""},
            {"label": 2, "name": "n01484850", "words": ""},
        ],
    }


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_but_in_an_image_is_an_error(tmp_path: Path) -> None:
    sample = samples(2)[1]
    whole = shard_of(tmp_path, [sample]).read_bytes()
    # A tar has no checksums: these are for the manifest's. Nothing else repeats the extension and the id of the JSON.
    unseen = {*range(1536, 1536 + len(sample.image)), whole.index(b'"id": 1') + 6}
    unseen.update(range(whole.index(b".JPEG") + 1, whole.index(b'", "id"')))
    for offset in [*range(4096), *range(4096, len(whole), 97)]:
        if offset not in unseen:
            damaged(tmp_path, whole[:offset] + bytes([whole[offset] ^ 4]) + whole[offset + 1 :])


def test_a_shard_that_is_cut_short_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = shard_of(tmp_path, samples(2)).read_bytes()
    for length in [*range(0, len(whole), 512), *range(1, len(whole), 509), len(whole) - 1]:
        assert damaged(tmp_path, whole[:length]).startswith(f"byte {length}: ")


@pytest.mark.parametrize(
    ("at", "found", "made", "error"),
    [
        (0, b"n", b"N", "byte 0: no member begins here: the header of the tar is damaged"),
        (124, b"0", b"8", "byte 0: no member begins here: the header of the tar is damaged"),
        (0, b"n", b"\xff", "byte 0: no member begins here: the header of the tar is damaged"),
        (512, b"0", b"1", "byte 0: n01440764/image_0.cls does not have the label of n01440764/image_0.json"),
        (513, b"\0", b"1", "byte 513: the padding of n01440764/image_0.cls is not zero"),
        (2560, b"{", b"[", "byte 2048: n01440764/image_0.json is not the JSON of a sample"),
        (2571, b": ", b" :", "byte 2048: n01440764/image_0.json is not the JSON of a sample"),
        (
            2574,
            b"n",
            b"N",
            "byte 2048: n01440764/image_0.json has the label 0, which is not that of N01440764/image_0.JPEG",
        ),
        (2584, b"i", b"I", "byte 0: found n01440764/image_0.cls, expected n01440764/Image_0.cls"),
        (3584, b"\0", b"1", "byte 3584: there are bytes after the end of the tar"),
    ],
)
def test_damage_is_named(tmp_path: Path, at: int, found: bytes, made: bytes, error: str) -> None:
    whole = shard_of(tmp_path, samples(1)).read_bytes()
    assert whole[at : at + len(found)] == found
    assert damaged(tmp_path, whole[:at] + made + whole[at + len(made) :]) == error


def test_a_label_out_of_range_is_an_error(tmp_path: Path) -> None:
    path = shard_of(tmp_path, samples(3))
    assert "has the label 2, which is not that of n01484850/image_2.JPEG" in error_of(
        path, INFO._replace(classes=INFO.classes[:2])
    )


def test_a_truncated_shard_says_where_it_ends(tmp_path: Path) -> None:
    whole = shard_of(tmp_path, samples(2)).read_bytes()
    assert damaged(tmp_path, b"") == "byte 0: the shard is truncated: the end of the tar is missing"
    assert damaged(tmp_path, whole[:5200]) == (
        "byte 5200: the shard is truncated: n01443537/image_1.jpg begins at byte 4096 and is cut short"
    )
    assert damaged(tmp_path, whole[:-512]) == (
        "byte 9728: the tar ends at byte 6656, so that the shard has 10240 bytes, and it has 9728"
    )
    assert damaged(tmp_path, whole + bytes(512)) == (
        "byte 10240: the tar ends at byte 6656, so that the shard has 10240 bytes, and it has 10752"
    )


def test_a_tar_that_ends_within_a_sample_is_an_error(tmp_path: Path) -> None:
    whole = shard_of(tmp_path, samples(1)).read_bytes()
    path = tmp_path / "short"
    path.write_bytes(whole[:1024])
    WEBDATASET.seal(str(path), str(path), [], INFO)
    assert damaged(tmp_path, path.read_bytes()) == "byte 1024: the tar ends within a sample"


def test_the_members_of_two_samples_are_not_mixed(tmp_path: Path) -> None:
    first, second = (WEBDATASET.encode(sample._replace(image=b"image")) for sample in samples(4)[::3])
    path = tmp_path / "mixed"
    path.write_bytes(b"".join([first[0], first[1], second[2]]))
    WEBDATASET.seal(str(path), str(path), [], INFO)
    assert damaged(tmp_path, path.read_bytes()) == (
        "byte 0: found n01440764/image_0.cls, expected n01440764/image_3.cls"
    )


@pytest.mark.parametrize(
    ("order", "image", "error"),
    [
        (["cls", "json", "jpg"], b"image", "byte 1024: found n01440764/a.json, expected n01440764/a.jpg"),
        (["cls", "png", "json"], png(), "byte 1024: found n01440764/a.png, expected n01440764/a.json"),
        (["cls", "png", "json"], b"image", "byte 1024: found n01440764/a.png, expected n01440764/a.jpg"),
        (["jpg", "cls", "json"], b"image", "byte 0: n01440764/a.jpg does not have the label of n01440764/a.json"),
    ],
)
def test_the_members_of_a_sample_have_their_names_and_order(
    tmp_path: Path, order: list[str], image: bytes, error: str
) -> None:
    metadata = b'{"filename": "n01440764/a.jpg", "id": 0, "label": 0}'
    contents = {"cls": b"0", "jpg": image, "png": image, "json": metadata}
    path = tar_of(tmp_path / "order.tar", {f"n01440764/a.{suffix}": contents[suffix] for suffix in order})
    assert damaged(tmp_path, path.read_bytes()) == error


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"3",
        b"[]",
        b"\xff",
        b'{"filename": "n01440764/a.jpg", "id": 0}',
        b'{"filename": 3, "id": 0, "label": 0}',
        b'{"filename": "n01440764/\\ud800.jpg", "id": 0, "label": 0}',
        b'{"filename": "n01440764/a.jpg", "id": true, "label": 0}',
        b"[" * 100_000,
    ],
)
def test_json_of_no_sample_is_an_error(tmp_path: Path, metadata: bytes) -> None:
    contents = {"n01440764/a.cls": b"0", "n01440764/a.jpg": b"image", "n01440764/a.json": metadata}
    path = tar_of(tmp_path / "odd.tar", contents)
    assert f"{path}, byte 2048: n01440764/a.json is not the JSON of a sample" in error_of(path)
