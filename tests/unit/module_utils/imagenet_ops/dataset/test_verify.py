from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.dataset import verify
from ansible.module_utils.imagenet_ops.dataset.verify import verify_dataset
from ansible.module_utils.imagenet_ops.formats.recordio import frame, image_data
from ansible.module_utils.imagenet_ops.pack.image import BadImageError, Recipe, decode_only
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset

from tests.fakes.images import mixed_images, write_tree

ADVICE = "Restore it from the backup, create the volume again from a snapshot, or pack the data set again"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packed")
    images = mixed_images()
    splits = []
    for name, chosen in (("train", images), ("validation", dict(list(images.items())[::3]))):
        splits.append(SplitRequest(name, str(write_tree(root / name, chosen))))
    recipe = Recipe(short_side_pixels=32, quality=95, resize_filter="linear", max_image_pixels=10_000_000)
    request = PackRequest("test", str(root), str(root / ".state"), splits, recipe)
    pack_dataset(request, check=False, warn=pytest.fail)
    return root


@pytest.fixture
def root(packed: Path, tmp_path: Path) -> Path:
    """Return a copy that may be damaged."""
    shutil.copytree(packed / "recordio", tmp_path / "recordio")
    for name in ("labels.tsv", "manifest.json"):
        shutil.copy(packed / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="module")
def sharded(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sharded")
    splits = [SplitRequest(name, str(packed / name)) for name in ("train", "validation")]
    recipe = Recipe(short_side_pixels=32, quality=95, resize_filter="linear", max_image_pixels=10_000_000)
    pack_dataset(PackRequest("test", str(root), str(root / ".state"), splits, recipe, shards=3), False, pytest.fail)
    return root


@pytest.fixture
def shards(sharded: Path, tmp_path: Path) -> Path:
    shutil.copytree(sharded, tmp_path / "copy")
    return tmp_path / "copy"


def decode(data: bytes) -> str:
    """Decode in this process: what a process of its own adds is tested with it."""
    outcome = decode_only(data)
    return str(outcome) if isinstance(outcome, BadImageError) else ""


def error(root: Path, *, full: bool = True, samples: int = 8, version: str | None = None) -> str:
    with pytest.raises(OpsError) as caught:
        verify_dataset(str(root), version, full, samples, decode)
    return str(caught.value)


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def believe(root: Path) -> None:
    """Make the manifest say what the files are now, as a faulty packer would."""
    manifest = json.loads((root / "manifest.json").read_text())
    files = {root / "labels.tsv": manifest["labels"]}
    for split in manifest["splits"].values():
        files.update({root / "recordio" / name: file for name, file in split["files"].items()})
    for path, file in files.items():
        content = path.read_bytes()
        file.update(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (root / "manifest.json").write_text(json.dumps(manifest))


def offsets(root: Path, split: str = "train") -> list[int]:
    return [int(line.split("\t")[1]) for line in (root / "recordio" / f"{split}.idx").read_text().splitlines()]


def swap_lines(content: bytes, first: int, second: int) -> bytes:
    lines = content.splitlines(keepends=True)
    lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines)


# --- a data set that is whole ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "decoded"), [(0, 0), (5, 10), (32, 32 + 14), (1000, 54), (-1, 54)])
@pytest.mark.parametrize("full", [False, True])
def test_a_whole_data_set_is_described(packed: Path, samples: int, decoded: int, *, full: bool) -> None:
    manifest = (packed / "manifest.json").read_bytes()
    sha256 = hashlib.sha256(manifest).hexdigest()
    found = verify_dataset(str(packed), sha256[:12], full, samples, decode)
    assert (found.pop("mib_s") > 0) == full
    assert found == {
        "changed": False,
        "dataset_version": sha256[:12],
        "manifest_sha256": sha256,
        "records": {"train": 40, "validation": 14},
        "classes": 5,
        "bytes": sum(path.stat().st_size for path in (packed / "recordio").iterdir()),
        "decoded": decoded,
        "formats": ["recordio"],
        "content_sha256": {"train": "", "validation": ""},
    }


def test_samples_are_spread_evenly_and_always_the_same() -> None:
    chosen = verify._choose(1000, 10, "a seed")
    assert [place // 100 for place in range(1000) if place in chosen] == list(range(10))
    assert chosen == verify._choose(1000, 10, "a seed") != verify._choose(1000, 10, "another seed")


def test_nothing_is_opened_for_writing(packed: Path) -> None:
    """As on a volume that is mounted read-only, where the first attempt would fail."""
    script = """
import sys, os
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1])
from ansible.module_utils.imagenet_ops.dataset.verify import verify_dataset
from ansible.module_utils.imagenet_ops.pack.decoder import DecodeCheck

def refuse(event, arguments):
    is_file = event == "open" and not isinstance(arguments[0], int)  # pipes are opened by their descriptors
    writes = is_file and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.truncate", "os.utime"):
        raise OSError(30, f"Read-only file system: {event} {arguments}")

sys.addaudithook(refuse)
with DecodeCheck() as decode:
    print(verify_dataset(sys.argv[2], None, True, -1, decode)["decoded"])
"""
    modules = Path(__file__).resolve().parents[5] / "module_utils"
    command = [sys.executable, "-c", script, str(modules), str(packed)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "54\n"


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
def test_another_version_than_the_one_asked_for_is_an_error(root: Path, *, full: bool) -> None:
    version = hashlib.sha256((root / "manifest.json").read_bytes()).hexdigest()[:12]
    assert error(root, full=full, version="0123456789ab") == (
        f"Data set in {root}: it is version {version}, not 0123456789ab."
        " Mount the volume of that version or ask for this one; where they should be the same, it was changed"
    )


@pytest.mark.parametrize("full", [False, True])
def test_a_changed_manifest_is_another_version(root: Path, *, full: bool) -> None:
    version = hashlib.sha256((root / "manifest.json").read_bytes()).hexdigest()[:12]
    edit(root / "manifest.json", lambda content: content.replace(b'"quality": 95', b'"quality": 96'))
    assert f", not {version}." in error(root, full=full, version=version)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ["labels.tsv", "recordio/train.rec", "recordio/validation.idx", "recordio/train.lst"])
def test_a_cut_tail_is_found(root: Path, name: str, *, full: bool) -> None:
    size = (root / name).stat().st_size
    os.truncate(root / name, size - 1)
    assert error(root, full=full) == f"File {root}/{name}: it has {size - 1} bytes, the manifest says {size}. {ADVICE}"


@pytest.mark.parametrize("full", [False, True])
def test_a_missing_file_is_found(root: Path, *, full: bool) -> None:
    (root / "recordio" / "train.idx").unlink()
    expected = f"File {root}/recordio/train.idx: it cannot be read (No such file or directory). {ADVICE}"
    assert error(root, full=full) == expected


@pytest.mark.parametrize("bit", range(0, 60000, 3001))
def test_a_flipped_bit_is_found_by_a_full_read(root: Path, bit: int) -> None:
    def flip(content: bytes) -> bytes:
        place = bit * 8 % len(content)
        return content[:place] + bytes([content[place] ^ 1 << bit % 8]) + content[place + 1 :]

    edit(root / "recordio" / "train.rec", flip)
    text = error(root)
    assert text.startswith(
        (f"File {root}/recordio/train.rec: its SHA-256 is", f"Record file {root}/recordio/train.rec")
    )
    assert text.endswith((ADVICE, "pack the data set again"))


@pytest.mark.parametrize("name", ["labels.tsv", "recordio/train.idx", "recordio/train.lst", "recordio/train.rec"])
def test_other_bytes_of_the_same_length_are_found_by_a_full_read(root: Path, name: str) -> None:
    def change(content: bytes) -> bytes:
        return content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]

    edit(root / name, change)
    expected = hashlib.sha256((root / name).read_bytes()).hexdigest()
    assert error(root).startswith(f"File {root}/{name}: its SHA-256 is {expected}, the manifest says ")


@pytest.mark.parametrize("full", [False, True])
def test_swapped_index_lines_are_found(root: Path, *, full: bool) -> None:
    edit(root / "recordio" / "train.idx", lambda content: swap_lines(content, 10, 11))
    if full:
        assert error(root).startswith(f"File {root}/recordio/train.idx: its SHA-256 is ")
        believe(root)
    assert error(root, full=full, samples=0).startswith(
        f"Record file {root}/recordio/train.rec, record 9 at byte {offsets(root)[9]}: it ends at byte "
        if full
        else f"File {root}/recordio/train.idx, line 11: the list has the id "
    )


@pytest.mark.parametrize("full", [False, True])
def test_swapped_lines_of_index_and_list_alike_are_found(root: Path, *, full: bool) -> None:
    for suffix in ("idx", "lst"):
        edit(root / "recordio" / f"train.{suffix}", lambda content: swap_lines(content, 10, 11))
    believe(root)
    assert error(root, full=full, samples=0).startswith(
        f"Record file {root}/recordio/train.rec, record 9 at byte {offsets(root)[9]}: it ends at byte "
        if full
        else f"File {root}/recordio/train.idx, line 12: the record at byte "
    )


@pytest.mark.parametrize("full", [False, True])
def test_a_stale_index_is_found(root: Path, *, full: bool) -> None:
    """An index made for the same list but another quality: same ids, other offsets."""

    def shift(content: bytes) -> bytes:
        lines = [line.split(b"\t") for line in content.splitlines()]
        return b"".join(b"%s\t%d\n" % (key, int(offset) - 4 * (place > 0)) for place, (key, offset) in enumerate(lines))

    edit(root / "recordio" / "train.idx", shift)
    believe(root)
    second = offsets(root)[1]
    why = f"it ends at byte {second + 4}, {root}/recordio/train.idx says {second}"
    assert error(root, full=full, samples=-1) == (
        f"Record file {root}/recordio/train.rec, record 0 at byte 0: {why}. {ADVICE}"
    )


@pytest.mark.parametrize("full", [False, True])
def test_an_index_of_another_split_is_found(root: Path, *, full: bool) -> None:
    shutil.copy(root / "recordio" / "validation.idx", root / "recordio" / "train.idx")
    believe(root)
    assert f"File {root}/recordio/train.idx, line 1: the list has the id " in error(root, full=full)


def beyond(content: bytes) -> bytes:
    """Let all records from the fourth on begin where no file can have a byte, one after another."""
    lines = content.splitlines()
    return b"".join(
        line + b"\n" if place < 3 else b"%s\t%d\n" % (line.split(b"\t")[0], 2**70 + place - 3)
        for place, line in enumerate(lines)
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda content: content.replace(b"\t", b"\xff\t"), "it does not hold an id and an offset"),
        (lambda content: b"x" + content, "it does not hold an id and an offset: 'x"),
        (lambda content: content.replace(b"\t0\n", b"\t4\n"), "the first record begins at 4, not 0"),
        (lambda content: content[:0], "the index has ended"),
        (beyond, "train.idx, line 4: no record begins at 1180591620717411303424: "),
    ],
)
@pytest.mark.parametrize("full", [False, True])
def test_an_index_that_is_none_is_found(root: Path, change: Callable[[bytes], bytes], why: str, *, full: bool) -> None:
    edit(root / "recordio" / "train.idx", change)
    believe(root)
    assert why in error(root, full=full)


def without_last_line(content: bytes) -> bytes:
    return content[: content.rindex(b"\n", 0, -1) + 1]


@pytest.mark.parametrize(
    ("suffixes", "why"),
    [
        (["idx"], "train.idx, line 40: the list has the id "),
        (["lst"], "train.idx, line 40: the list has no such line"),
        (["idx", "lst"], "recordio: its lists have 39 lines, the manifest says 40"),
    ],
)
def test_lines_that_are_missing_are_found(root: Path, suffixes: list[str], why: str) -> None:
    for suffix in suffixes:
        edit(root / "recordio" / f"train.{suffix}", without_last_line)
    believe(root)
    assert why in error(root, full=False, samples=0)
    assert error(root, full=True)


def replace_record(root: Path, place: int, data: bytes) -> None:
    """Put a record with ``data`` in place of another of the same length."""
    begin, end = [*offsets(root), (root / "recordio" / "train.rec").stat().st_size][place : place + 2]
    record = frame(data + bytes(end - begin - 8 - len(data)))
    assert len(record) == end - begin
    edit(root / "recordio" / "train.rec", lambda content: content[:begin] + record + content[end:])
    believe(root)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("record_id", "label", "why"),
    [
        (12345, 0, "it has the id 12345, ROOT/recordio/train.idx says ID"),
        (None, 7, "it has the label 7, ROOT/recordio/train.lst says LABEL"),
        (None, None, "its image (PATH) cannot be decoded: damaged: it does not decode"),
    ],
)
def test_a_record_of_another_split_is_found(
    root: Path, record_id: int | None, label: int | None, why: str, *, full: bool
) -> None:
    fields = (root / "recordio" / "train.lst").read_text().splitlines()[20].split("\t")
    identity = int(fields[0]) if record_id is None else record_id
    replace_record(root, 20, image_data(identity, float(fields[1]) if label is None else label, b"no image"))
    begin = offsets(root)[20]
    for word, value in (("ROOT", root), ("ID", fields[0]), ("LABEL", int(float(fields[1]))), ("PATH", fields[2])):
        why = why.replace(word, str(value))
    expected = f"Record file {root}/recordio/train.rec, record 20 at byte {begin}: {why}. {ADVICE}"
    assert error(root, full=full, samples=-1) == expected


@pytest.mark.parametrize("full", [False, True])
def test_a_record_without_a_header_is_found(root: Path, *, full: bool) -> None:
    replace_record(root, 20, b"\xff" * 24)
    assert "bytes are too few for a header with" in error(root, full=full, samples=-1)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("label", [b"5.000000", b"0.500000", b"-1.000000", b"4.000000", b"nan", b"inf"])
def test_a_label_that_is_not_of_its_class_is_found(root: Path, label: bytes, *, full: bool) -> None:
    def change(content: bytes) -> bytes:
        lines = [line.split(b"\t") for line in content.splitlines()]
        first = next(fields for fields in lines if fields[1] == b"1.000000")
        first[1] = label
        return b"".join(b"\t".join(fields) + b"\n" for fields in lines)

    edit(root / "recordio" / "train.lst", change)
    believe(root)
    assert "is not that of the class in n00000001/n00000001_" in error(root, full=full)


@pytest.mark.parametrize("full", [False, True])
def test_a_wrong_count_of_a_class_is_found(root: Path, *, full: bool) -> None:
    def change(content: bytes) -> bytes:
        manifest = json.loads(content)
        manifest["splits"]["train"]["classes"].update(n00000001=7, n00000003=9)
        return json.dumps(manifest).encode()

    edit(root / "manifest.json", change)
    assert error(root, full=full) == (
        "Split train: 2 classes do not have the records that the manifest says: n00000001 (8, not 7), n00000003 (8, not"
        f" 9). {ADVICE}"
    )


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda content: content.replace(b"1\tn", b"2\tn"),
            "labels.tsv, line 2: it is no label 1: '2\\tn00000001\\t\\n'",
        ),
        (lambda content: content.replace(b"\t\n", b"\n"), "labels.tsv, line 1: it is no label 0: '0\\tn00000000\\n'"),
        (lambda content: content + b"5\tn00000005\t\n", "labels.tsv: it does not hold 5 classes in sorted order"),
        (lambda content: content.replace(b"n00000003", b"n00000001"), "does not hold 5 classes in sorted order"),
    ],
)
def test_labels_that_are_none_are_found(root: Path, change: Callable[[bytes], bytes], why: str, *, full: bool) -> None:
    edit(root / "labels.tsv", change)
    believe(root)
    assert why in error(root, full=full)


def test_a_manifest_that_lacks_a_file_is_found(root: Path) -> None:
    edit(root / "manifest.json", lambda content: content.replace(b'"train.idx"', b'"train.txt"'))
    why = "it does not name the rec, idx, lst of split train, and no others"
    assert error(root) == f"Manifest in {root}: {why}. {ADVICE}"


def test_a_disk_that_fails_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError(5, "Input/output error", "train.rec")

    monkeypatch.setattr(verify, "hash_file", fails)
    assert error(root) == f"File train.rec: it cannot be read (Input/output error). {ADVICE}"


# --- shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "decoded"), [(0, 0), (5, 10), (-1, 54)])
@pytest.mark.parametrize("full", [False, True])
def test_shards_are_one_split(sharded: Path, samples: int, decoded: int, *, full: bool) -> None:
    result = verify_dataset(str(sharded), None, full, samples, decode)
    assert (result["records"], result["decoded"]) == ({"train": 40, "validation": 14}, decoded)


def test_damage_in_a_shard_names_the_shard(shards: Path) -> None:
    path = shards / "recordio" / "train-00001-of-00003.rec"
    begin = int((path.with_suffix(".idx")).read_text().splitlines()[4].split("\t")[1])
    edit(path, lambda content: content[: begin + 12] + b"\x7f" + content[begin + 13 :])
    assert error(shards).startswith(f"Record file {path}, record 4 at byte {begin}: it has the label ")


def test_a_shard_in_the_place_of_another_is_found(shards: Path) -> None:
    for suffix in ("rec", "idx", "lst"):
        shutil.copy(*(shards / "recordio" / f"train-0000{number}-of-00003.{suffix}" for number in (0, 1)))
    believe(shards)
    assert "4 classes do not have the records that the manifest says" in error(shards, full=False)


def test_classes_may_be_in_any_order_only_where_a_file_gave_it(root: Path) -> None:
    def exchange(content: bytes) -> bytes:
        return (
            content.replace(b"0\tn00000000", b"0\tn0000000X")
            .replace(b"1\tn00000001", b"1\tn00000000")
            .replace(b"n0000000X", b"n00000001")
        )

    edit(root / "labels.tsv", exchange)
    believe(root)
    assert "it does not hold 5 classes in sorted order" in error(root)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["settings"]["label_order"] = "file"
    (root / "manifest.json").write_text(json.dumps(manifest))
    assert "is not that of the class in" in error(root)
