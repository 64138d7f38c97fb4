"""The reader that people copy: the same records as ours, in any process, and damage is named."""

from __future__ import annotations

import pickle
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ansible.module_utils.imagenet_ops.formats.recordio import MAGIC, RecordReader, frame, image_data, parse_image_data
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.images import mixed_images, write_tree

CONTRIB = Path(__file__).resolve().parents[3] / "contrib"
sys.path.insert(0, str(CONTRIB))

import recordio_reader  # noqa: E402 (it lies where people copy it from)
from recordio_reader import RecordIODataset, iterate  # noqa: E402

RECIPE = Recipe(short_side_pixels=32, quality=95, resize_filter="linear", max_image_pixels=10_000_000)


def pack(root: Path, tree: Path, shards: int) -> list[Path]:
    splits = [SplitRequest("train", str(tree))]
    request = PackRequest("t", str(root), str(root / ".state"), splits, RECIPE, shards=shards)
    pack_dataset(request, check=False, warn=pytest.fail)
    return sorted((root / "recordio").glob("*.rec"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"), mixed_images())


@pytest.fixture(scope="module")
def rec(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Path:
    (path,) = pack(tmp_path_factory.mktemp("one"), tree, 1)
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> list[Path]:
    return pack(tmp_path_factory.mktemp("three"), tree, 3)


def expected(path: Path) -> list[tuple[bytes, float, int]]:
    found = []
    with path.open("rb") as file:
        reader = RecordReader(file, str(path))
        while (data := reader.read()) is not None:
            record = parse_image_data(data)
            found.append((record.image, record.label, record.record_id))
    return found


# --- a dataset -------------------------------------------------------------------------------------------------------


def test_every_record_is_found_by_its_place(rec: Path) -> None:
    dataset = RecordIODataset(rec)
    records = [dataset.record(place) for place in range(len(dataset))]
    assert [(record.image, record.label, record.record_id) for record in records] == expected(rec)
    assert [dataset[place] for place in reversed(range(40))] == [(i, int(label)) for i, label, _ in expected(rec)][::-1]
    assert dataset.labels() == [int(label) for _, label, _ in expected(rec)]
    assert dataset[-1] == dataset[39]


@pytest.mark.parametrize("place", [40, -41])
def test_a_place_that_is_none_is_an_index_error(rec: Path, place: int) -> None:
    with pytest.raises(IndexError, match=f"record {place if place > 0 else -1} of 40"):
        RecordIODataset(rec)[place]


def test_shards_are_one_dataset_and_no_dataset_is_empty(rec: Path, shards: list[Path]) -> None:
    assert list(RecordIODataset(shards)) == list(RecordIODataset(rec))
    assert RecordIODataset(shards).labels() == RecordIODataset(rec).labels()
    assert len(RecordIODataset([])) == 0


def test_a_transform_makes_the_image(rec: Path) -> None:
    def decode(data: bytes) -> Any:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)

    shapes = [image.shape for image, _ in RecordIODataset(rec, decode)]
    assert all(min(shape[:2]) == 32 for shape in shapes)


def test_workers_that_are_spawned_open_the_files_for_themselves(shards: list[Path], tmp_path: Path) -> None:
    """What a DataLoader with spawned workers does: the dataset is pickled, after it was read from."""
    script = tmp_path / "training.py"
    script.write_text(f"""
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
sys.path.insert(0, {str(CONTRIB)!r})
from recordio_reader import RecordIODataset
if __name__ == "__main__":
    dataset = RecordIODataset({[str(path) for path in shards]!r}, len)
    here = [dataset[place] for place in range(len(dataset))]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as workers:
        assert list(workers.map(dataset.__getitem__, range(len(dataset)))) == here
""")
    subprocess.run([sys.executable, str(script)], check=True, timeout=60)


def test_a_pickle_holds_no_open_file(shards: list[Path]) -> None:
    dataset = RecordIODataset(shards)
    image = dataset[7]
    again = pickle.loads(pickle.dumps(dataset))
    assert again._descriptors == {}
    assert again[7] == image


def test_workers_that_are_forked_do_not_share_what_is_open(shards: list[Path]) -> None:
    script = f"""
import os, sys
sys.path.insert(0, {str(CONTRIB)!r})
from recordio_reader import RecordIODataset
dataset = RecordIODataset({[str(path) for path in shards]!r})
here = [dataset[place] for place in range(len(dataset))]
mine = set(dataset._descriptors.values())
for _ in range(2):
    child = os.fork()
    if child == 0:
        same = [dataset[place] for place in range(len(dataset))] == here
        os._exit(0 if same and not mine & set(dataset._descriptors.values()) else 1)
    assert os.waitpid(child, 0)[1] == 0
dataset.close()
assert [dataset[place] for place in range(len(dataset))] == here
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# --- from front to back ----------------------------------------------------------------------------------------------


def test_records_come_from_front_to_back_without_an_index(rec: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(rec, tmp_path / "alone.rec"))
    assert [(record.image, record.label, record.record_id) for record in iterate(alone)] == expected(rec)


@pytest.mark.parametrize("parts", [1, 2, 7, 40, 41])
def test_parts_are_the_whole(rec: Path, parts: int) -> None:
    stretches = [list(iterate(rec, part, parts)) for part in range(parts)]
    assert [record for stretch in stretches for record in stretch] == list(iterate(rec))
    assert max(map(len, stretches)) - min(map(len, stretches)) <= 1


@given(st.lists(st.tuples(st.integers(0, 2**63), st.lists(st.sampled_from([MAGIC, b"x", b"\0\0\0\0"]))), max_size=5))
def test_records_in_parts_are_put_together(tmp_path_factory: pytest.TempPathFactory, images: Any) -> None:
    path = tmp_path_factory.mktemp("magic") / "a.rec"
    records = [(record_id, b"".join(pieces)) for record_id, pieces in images]
    path.write_bytes(b"".join(frame(image_data(record_id, 3.0, image)) for record_id, image in records))
    assert [(record.record_id, record.image) for record in iterate(path)] == records


def test_a_vector_of_labels_is_read() -> None:
    data = b"\x02\0\0\0" + bytes(20) + np.array([4, 5], "<f4").tobytes() + b"image"
    assert recordio_reader.parse(data) == (b"image", 4.0, 0, (4.0, 5.0))


# --- damage ----------------------------------------------------------------------------------------------------------


def copy(rec: Path, folder: Path) -> Path:
    for suffix in (".rec", ".idx"):
        shutil.copy(rec.with_suffix(suffix), folder)
    return folder / rec.name


def test_a_file_that_is_cut_is_an_error_and_not_the_end(rec: Path, tmp_path: Path) -> None:
    path = copy(rec, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    last = recordio_reader.read_index(path.with_suffix(".idx"))
    offset = [offset for _, offset in last][-1]
    for read in (lambda: list(iterate(path)), lambda: RecordIODataset(path)[39]):
        with pytest.raises(ValueError, match=re.escape(f"{path}, byte {offset}: the record is truncated")):
            read()


@pytest.mark.parametrize("byte", [0, 3, 7])
def test_damage_in_a_record_names_its_byte(rec: Path, tmp_path: Path, byte: int) -> None:
    path = copy(rec, tmp_path)
    content = bytearray(path.read_bytes())
    content[byte] ^= 0xE0
    path.write_bytes(content)
    for read in (lambda: list(iterate(path)), lambda: RecordIODataset(path)[0]):
        with pytest.raises(ValueError, match=f"{path}, byte 0: "):
            read()


def test_an_index_that_is_none_names_its_line(rec: Path, tmp_path: Path) -> None:
    path = copy(rec, tmp_path)
    path.with_suffix(".idx").write_text("0\t0\nx\n")
    with pytest.raises(
        ValueError, match=re.escape(f"{path.with_suffix('.idx')}, line 2: expected an id and an offset, got 'x")
    ):
        RecordIODataset(path)


def test_a_record_that_is_no_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.rec").write_bytes(frame(b"short"))
    (tmp_path / "a.idx").write_text("0\t0\n")
    with pytest.raises(ValueError, match="5 bytes are too few for an image record"):
        list(iterate(tmp_path / "a.rec"))
    with pytest.raises(ValueError, match="no image record begins here"):
        RecordIODataset(tmp_path / "a.rec").labels()


def record_of(labels: list[float], image: bytes) -> bytes:
    """A record with several labels, as im2rec.py --pack-label writes it."""
    header = struct.pack("<IfQQ", len(labels), 0.0, 7, 0)
    return frame(header + struct.pack(f"<{len(labels)}f", *labels) + image)


def test_labels_are_those_of_the_items(tmp_path: Path) -> None:
    # The second label is the magic number as a float: its record is split there.
    magic = struct.unpack("<f", recordio_reader.MAGIC)[0]
    split = struct.pack("<IfQQ", 1, 0.0, 7, 0)
    parts = recordio_reader.MAGIC + struct.pack("<I", 1 << 29 | len(split)) + split
    parts += recordio_reader.MAGIC + struct.pack("<I", 3 << 29 | 4) + b"last"
    records = [record_of([3.0], b"aa"), record_of([7.0, 1.0], b"bbb"), parts, record_of([], b"")]
    offsets = [sum(map(len, records[:number])) for number in range(len(records))]
    (tmp_path / "a.rec").write_bytes(b"".join(records))
    (tmp_path / "a.idx").write_text("".join(f"{number}\t{offset}\n" for number, offset in enumerate(offsets)))
    dataset = RecordIODataset([tmp_path / "a.rec", tmp_path / "a.rec"])
    assert dataset.labels()[:4] == [3, 7, int(magic), 0]
    assert dataset.labels() == [dataset[place][1] for place in range(len(dataset))]


@pytest.mark.parametrize("offset", [2**63, 2**64 - 1, 2**64, 10**4000])
def test_an_offset_beyond_any_file_names_the_index(rec: Path, tmp_path: Path, offset: int) -> None:
    path = copy(rec, tmp_path)
    index = path.with_suffix(".idx")
    index.write_text(f"0\t0\n1\t{offset}\n")
    for use in (
        RecordIODataset,
        lambda path: list(iterate(path, 0, 2)),
        lambda path: recordio_reader.dali_index([path]),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{index}, line 2: no file has a byte ")):
            use(path)


# --- DALI ------------------------------------------------------------------------------------------------------------


def as_dali_reads(paths: list[Path], index: str) -> list[bytes]:
    """Cut the files as DALI's RecordIOLoader does: offsets sorted, counted over all files, sizes their differences."""
    content = b"".join(path.read_bytes() for path in paths)
    numbers = list(map(int, index.split()))
    offsets = [*sorted(numbers[1::2]), len(content)]
    return [content[begin:end] for begin, end in zip(offsets, offsets[1:])]


def test_the_index_is_the_one_that_dali_takes(rec: Path, shards: list[Path]) -> None:
    whole = as_dali_reads([rec], rec.with_suffix(".idx").read_text())
    assert [parse_image_data(record[8:])[:2] for record in whole] == [(i, label) for _, label, i in expected(rec)]
    assert recordio_reader.dali_index([rec]) == rec.with_suffix(".idx").read_text()
    assert as_dali_reads(shards, recordio_reader.dali_index(shards)) == whole


# --- the documentation -----------------------------------------------------------------------------------------------


def test_the_examples_of_the_readme_run(rec: Path, shards: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "recordio"
    folder.mkdir()
    for path in (rec, *shards):
        copy(path, folder)
    readme = (CONTRIB / "README.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    ours = [text for text in examples if "recordio_reader" in text and "torch" not in text]
    assert len(ours) == 2
    for text in ours:
        here = text.replace("/tmp/", f"{tmp_path}/").replace("/data/imagenet/recordio", str(folder))
        subprocess.run([sys.executable, "-c", here], check=True, timeout=60, env={"PYTHONPATH": str(CONTRIB)})
    assert len((tmp_path / "train.dali.idx").read_text().splitlines()) == 40


@pytest.mark.skipif(sys.version_info < (3, 10), reason="Python 3.9 cannot list its own modules")
def test_it_needs_nothing_but_python() -> None:
    source = (CONTRIB / "recordio_reader.py").read_text()
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert imported <= set(sys.stdlib_module_names)
