"""The reader of all formats that people copy: the same records in each, every one once, from wherever it stopped."""

from __future__ import annotations

import functools
import itertools
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo
from ansible.module_utils.imagenet_ops.formats.registry import FORMATS
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.images import mixed_images, png, write_tree

CONTRIB = Path(__file__).resolve().parents[3] / "contrib"
sys.path.insert(0, str(CONTRIB))

import image_reader  # noqa: E402 (it lies where people copy it from)
from image_reader import ImageDataset, ImageStream  # noqa: E402

ALL = ("recordio", "webdataset", "mds", "tfrecord", "parquet")
RECIPE = Recipe(32, 95, "linear", 10_000_000, pass_through=True)
SHARD_BYTES = 8_000


def pack(root: Path, tree: Path, **changes: Any) -> Path:
    splits = [SplitRequest("train", str(tree)), SplitRequest("validation", str(tree))]
    options = {"formats": ALL, "shard_bytes": SHARD_BYTES, **changes}
    pack_dataset(PackRequest("t", str(root), str(root / ".state"), splits, RECIPE, **options), False, pytest.fail)
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = mixed_images()
    return write_tree(tmp_path_factory.mktemp("tree"), {**images, f"{min(images).partition('/')[0]}/odd.png": png()})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Path:
    return pack(tmp_path_factory.mktemp("all"), tree)


@pytest.fixture(scope="module")
def expected(root: Path) -> list[tuple[bytes, int]]:
    """What the reader of the project itself says of the records."""
    classes = [line.split("\t")[1] for line in (root / "labels.tsv").read_text().splitlines()]
    info = DatasetInfo("t", classes, {}, SHARD_BYTES)
    samples = FORMATS["recordio"].read(str(root / "recordio" / "train.rec"), info)
    return [(bytes(sample.image), sample.label) for sample in samples]


# --- by index --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_every_format_has_the_same_records_at_the_same_places(
    root: Path, expected: list[tuple[bytes, int]], name: str
) -> None:
    dataset = ImageDataset(root, "train", name)
    assert len(dataset) == len(expected) == 41
    assert [dataset[place] for place in reversed(range(41))] == expected[::-1]
    assert dataset[-1] == expected[-1]
    assert list(dataset) == expected
    if name != "recordio":
        assert len(dataset._shards) > 1


def test_recordio_in_shards_and_alone_is_read(tmp_path: Path, tree: Path, expected: list[tuple[bytes, int]]) -> None:
    pack(tmp_path, tree, formats=("recordio",), shards=3, shard_bytes=0)
    dataset = ImageDataset(tmp_path, "train")
    assert dataset.format == "recordio"
    assert list(dataset) == expected


def test_without_a_format_the_first_that_is_there_is_read(tmp_path: Path, tree: Path) -> None:
    pack(tmp_path, tree, formats=("parquet", "webdataset"))
    assert ImageDataset(tmp_path, "validation").format == "webdataset"


def test_a_host_that_was_given_some_of_the_formats_reads_these(copied: Path, expected: list[tuple[bytes, int]]) -> None:
    """What data_deploy_formats leaves: a manifest that names more than is there."""
    for name in ("recordio", "mds"):
        shutil.rmtree(copied / name)
    dataset = ImageDataset(copied, "train")
    assert (dataset.format, list(dataset)) == ("webdataset", expected)
    with pytest.raises(ValueError, match=r"not there in format 'mds' \(formats: parquet, tfrecord, webdataset\)"):
        ImageDataset(copied, "train", "mds")


def test_a_transform_makes_the_image(root: Path, expected: list[tuple[bytes, int]]) -> None:
    dataset = ImageDataset(root, "train", "mds", transform=len)
    assert dataset[3] == (len(expected[3][0]), expected[3][1])


@pytest.mark.parametrize("place", [41, -42])
def test_a_place_that_is_none_is_an_index_error(root: Path, place: int) -> None:
    with pytest.raises(IndexError, match=f"record {place} of 41"):
        ImageDataset(root, "train", "mds")[place]


@pytest.mark.parametrize(("split", "name"), [("test", ""), ("train", "beton")])
def test_what_is_not_there_is_named(root: Path, split: str, name: str) -> None:
    there = "none" if split == "test" else "mds, parquet, recordio, tfrecord, webdataset"
    with pytest.raises(ValueError) as caught:
        ImageDataset(root, split, name)
    assert str(caught.value) == (
        f"{root}/manifest.json: split {split!r} is not there in format {name!r} (formats: {there})"
    )


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"splits": 1}', '{"splits": {}, "formats": {"mds": {}}}'])
def test_a_manifest_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/manifest.json: it is not the manifest of a packed")):
        ImageDataset(tmp_path, "train")


def test_a_manifest_does_not_name_files_elsewhere(tmp_path: Path) -> None:
    shards = {"train": [{"name": "../../secret", "records": 1}]}
    manifest = {"splits": {}, "labels": {"classes": 5}, "formats": {"mds": {"shards": shards}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "mds").mkdir()
    (tmp_path.parent / "secret").touch()
    with pytest.raises(ValueError, match=re.escape("names a file outside of the data set: 'mds/../../secret'")):
        ImageDataset(tmp_path, "train")


@pytest.mark.parametrize("name", ALL)
def test_workers_forked_and_spawned_read_the_same(root: Path, tmp_path: Path, name: str) -> None:
    script = tmp_path / "training.py"
    script.write_text(f"""
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
sys.path.insert(0, {str(CONTRIB)!r})
from image_reader import ImageDataset
if __name__ == "__main__":
    dataset = ImageDataset({str(root)!r}, "train", {name!r}, len)
    here = [dataset[place] for place in range(len(dataset))]
    for method in ("fork", "spawn"):
        with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as workers:
            assert list(workers.map(dataset.__getitem__, range(len(dataset)))) == here
""")
    subprocess.run([sys.executable, "-W", "ignore", str(script)], check=True, timeout=120)


@pytest.mark.parametrize("name", ALL)
def test_reading_leaves_no_file_open_and_a_pickle_is_small(root: Path, name: str) -> None:
    dataset = ImageDataset(root, "train", name)
    fresh = len(pickle.dumps(dataset))
    before = os.listdir("/proc/self/fd")
    read = list(dataset)
    assert os.listdir("/proc/self/fd") == before
    assert name == "parquet" or len(pickle.dumps(dataset)) == fresh
    assert list(pickle.loads(pickle.dumps(dataset))) == read


# --- a stream --------------------------------------------------------------------------------------------------------


class Numbers(ImageDataset):
    """A data set of so many records, each of which is its own place."""

    def __init__(self, count: int) -> None:
        self.split, self.content_id, self._count = "train", "same", count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        return place


class Worker:
    """What PyTorch tells a worker of a DataLoader."""

    def __init__(self, number: int, of: int) -> None:
        self.id, self.num_workers = number, of


@pytest.fixture
def in_worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this process a worker: the module that PyTorch would have imported says so."""

    class Data:
        worker: Any = None

        @classmethod
        def get_worker_info(cls) -> Any:
            return cls.worker

    monkeypatch.setitem(sys.modules, "torch.utils.data", Data)
    return lambda number, of: setattr(Data, "worker", Worker(number, of))


COUNTS = st.integers(0, 3000)
SEEDS = st.none() | st.integers()
BLOCKS = st.sampled_from([1, 7, 100])


@settings(max_examples=50, deadline=None)
@given(COUNTS, st.integers(1, 9), st.integers(0, 4), SEEDS, BLOCKS)
def test_ranks_and_workers_have_every_record_once(
    count: int, ranks: int, workers: int, seed: int | None, block: int
) -> None:
    sizes = []
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(ranks):
            stream = ImageStream(Numbers(count), seed, rank=rank, world_size=ranks, block_records=block)
            mine = 0
            for number in range(max(workers, 1)):
                worker = Worker(number, workers) if workers else None
                data = type("Data", (), {"get_worker_info": staticmethod(lambda worker=worker: worker)})
                patch.setitem(sys.modules, "torch.utils.data", data)
                read = list(pickle.loads(pickle.dumps(stream)))
                seen += read
                mine += len(read)
            sizes.append(mine)
            assert len(stream) == mine
    assert sorted(seen) == list(range(count))
    assert max(sizes) - min(sizes) <= 1
    # The order is that of one rank.
    whole = ImageStream(Numbers(count), seed, rank=0, world_size=1, block_records=block)
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "torch.utils.data", raising=False)
        assert list(whole) == seen


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.data(), SEEDS, BLOCKS)
def test_a_stream_that_was_stopped_anywhere_gives_the_rest(
    count: int, data: st.DataObject, seed: int | None, block: int
) -> None:
    def stream() -> ImageStream:
        return ImageStream(Numbers(count), seed, rank=0, world_size=1, block_records=block)

    stopped, whole = stream(), stream()
    epochs = [list(whole), list(whole), list(whole)]
    epoch = data.draw(st.integers(0, 1))
    place = data.draw(st.integers(0, count))
    for _ in range(epoch):
        assert list(stopped) == epochs[0]
    assert list(itertools.islice(stopped, place)) == epochs[epoch][:place]
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = stream()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    resumed.set_epoch(state["epoch"])  # as a training loop does before each epoch
    assert list(resumed) == epochs[state["epoch"]][state["done"] :]
    assert list(resumed) == epochs[state["epoch"] + 1]


def test_a_state_of_one_format_resumes_with_another(root: Path) -> None:
    whole = list(ImageStream(ImageDataset(root, "train", "recordio"), 5))
    for before, after in zip(ALL, (*ALL[1:], ALL[0])):
        stopped = ImageStream(ImageDataset(root, "train", before), 5)
        begun = list(itertools.islice(stopped, 17))
        resumed = ImageStream(ImageDataset(root, "train", after), 5)
        resumed.load_state_dict(stopped.state_dict())
        assert begun + list(resumed) == whole


def test_each_worker_resumes_with_its_own_state(in_worker: Any) -> None:
    rests, states = [], []
    for number in range(3):
        in_worker(number, 3)
        stream = ImageStream(Numbers(1000), 2, rank=1, world_size=2)
        whole = list(stream)
        again = ImageStream(Numbers(1000), 2, rank=1, world_size=2)
        list(itertools.islice(again, 50 * number))
        states.append(again.state_dict())
        rests.append(whole[50 * number :])
    for number, (state, rest) in enumerate(zip(states, rests)):
        in_worker(number, 3)
        stream = ImageStream(Numbers(1000), 2, rank=1, world_size=2)
        stream.load_state_dict(state)
        assert list(stream) == rest
    in_worker(0, 2)
    stream.load_state_dict(states[0])
    with pytest.raises(ValueError) as caught:
        list(stream)
    assert str(caught.value) == (
        "the state is of the records (500, 666) of the order, and this process has (500, 750): "
        "resume with as many ranks and workers as before"
    )


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"seed": 4}, "the state has the seed 3, and this stream has 4"),
        ({"block_records": 5}, "the state has the block_records 100, and this stream has 5"),
    ],
)
def test_a_state_of_another_order_is_refused(changed: dict[str, Any], error: str) -> None:
    state = ImageStream(Numbers(9), 3).state_dict()
    with pytest.raises(ValueError, match=error):
        ImageStream(Numbers(9), **{"seed": 3, **changed}).load_state_dict(state)


def test_a_state_of_other_images_is_refused(root: Path, tmp_path: Path, tree: Path) -> None:
    pack(tmp_path, tree, formats=("recordio",), shards=2, shard_bytes=0)
    state = ImageStream(ImageDataset(tmp_path, "train")).state_dict()
    with pytest.raises(ValueError, match=r"the state has the content_id '\w{64}', and this stream has '\w{64}'"):
        ImageStream(ImageDataset(root, "train")).load_state_dict(state)


def test_the_order_is_another_in_each_epoch_and_for_each_seed_and_always_the_same() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        stream = ImageStream(Numbers(20), seed, block_records=3)
        stream.set_epoch(epoch)
        return list(stream)

    # It must never change: a state of last year would go on with other records.
    assert order(1, 0) == [10, 4, 9, 8, 0, 18, 3, 12, 17, 16, 2, 5, 1, 14, 11, 6, 19, 7, 13, 15]
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_a_shuffled_stream_mixes_near_and_far() -> None:
    order = list(ImageStream(Numbers(5000), 1))
    assert sum(abs(a - b) == 1 for a, b in zip(order, order[1:])) < 50
    assert sum(place > 2500 for place in order[:2500]) in range(800, 1700)


def test_equal_ranks_have_as_many_records() -> None:
    read = [list(ImageStream(Numbers(11), 1, rank=rank, world_size=4, equal_ranks=True)) for rank in range(4)]
    assert [len(one) for one in read] == [2] * 4
    assert len({number for one in read for number in one}) == 8


def test_the_rank_is_that_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert list(ImageStream(Numbers(9))) == [6, 7, 8]


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"rank": 2, "world_size": 2}, "rank 2 of 2 is none: ranks count from 0"),
        ({"block_records": 0}, "block_records is 0, it must be 1 or more"),
    ],
)
def test_impossible_numbers_are_refused(changed: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        ImageStream(Numbers(9), **changed)


# --- damage ----------------------------------------------------------------------------------------------------------


def files(root: Path, name: str, split: str = "train") -> list[Path]:
    """The shards of a format and their indexes."""
    found = [path for path in sorted((root / name).rglob(f"*{split}*")) if path.is_file()]
    found += sorted((root / name / split).glob("*.mds"))
    return [path for path in found if path.suffix != ".lst" and not path.name.endswith(".json")]


def outcome(read: Callable[[], Any]) -> tuple[Any, str]:
    """What is read, and the text of the ValueError if nothing is."""
    try:
        return read(), ""
    except ValueError as error:
        return None, str(error)


@pytest.fixture
def copied(tmp_path: Path, root: Path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "copy"))


@pytest.mark.parametrize("name", ALL)
def test_a_file_that_is_cut_is_an_error_that_names_it(
    copied: Path, expected: list[tuple[bytes, int]], name: str
) -> None:
    for path in files(copied, name):
        content = path.read_bytes()
        # The end of a tar, which no reader by index needs, is up to 10 KiB of zeros.
        is_index = path.suffix == ".idx"
        path.write_bytes(content[: len(content) // 2 if is_index else len(content.rstrip(b"\0")) - 5])
        read, error = outcome(lambda: list(ImageDataset(copied, "train", name)))
        # An index may have lost no more than a name that nobody reads.
        assert read == expected if is_index and not error else str(copied if is_index else path) in error
        path.write_bytes(content)
    assert len(list(ImageDataset(copied, "train", name))) == 41


@pytest.mark.parametrize("name", ALL)
def test_damage_is_an_error_with_file_and_byte_or_is_in_the_image_itself(
    copied: Path, expected: list[tuple[bytes, int]], name: str
) -> None:
    """Every byte of the first shard, a few hundred of them: nothing but ValueError, and no other count of records."""
    path = next(path for path in files(copied, name) if path.suffix != ".idx")
    content = path.read_bytes()
    errors = 0
    for place in range(0, len(content), max(len(content) // 150, 1)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        image_reader._row_group.cache_clear()
        dataset = ImageDataset(copied, "train", name)
        for number, wanted in enumerate(expected[: len(dataset._shards[0])]):
            record, error = outcome(functools.partial(dataset.__getitem__, number))
            assert (
                re.match(rf"{re.escape(str(path))}, byte \d+: ", error) if error else len(record[0]) == len(wanted[0])
            )
            errors += bool(error)
    # Parquet has checksums of everything.
    assert errors >= (150 if name == "parquet" else 1)


@pytest.mark.parametrize("name", ["recordio", "webdataset", "tfrecord"])
@pytest.mark.parametrize("line", ["x y", "1", "cls x 2 a.cls", "0 99999999999999999999", "\xff \xff"])
def test_an_index_that_is_none_names_its_line(copied: Path, name: str, line: str) -> None:
    path = next(path for path in files(copied, name) if path.suffix == ".idx")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 2: expected offsets, got ")):
        list(ImageDataset(copied, "train", name))


@pytest.mark.parametrize("name", ["recordio", "webdataset", "tfrecord", "mds"])
def test_places_that_are_none_are_no_records(copied: Path, name: str) -> None:
    """Offsets of an index that point elsewhere, behind the end too."""
    for path in files(copied, name):
        if name != "mds" and path.suffix != ".idx":
            continue
        content = path.read_bytes()
        numbers = [match.span() for match in re.finditer(b"[0-9]+", content)][2:12]
        if name == "mds":
            numbers = [(at, at + 1) for at in range(16)]
        for begin, end in numbers:
            for other in (b"7", b"4294967295"):
                path.write_bytes(content[:begin] + other + content[end:])
                read, error = outcome(lambda: list(ImageDataset(copied, "train", name)))
                assert str(copied) in error or len(read) == 41
        path.write_bytes(content)
    assert len(list(ImageDataset(copied, "train", name))) == 41


def test_a_shard_of_other_records_is_an_error(copied: Path) -> None:
    for name in ("webdataset", "parquet", "mds", "tfrecord"):
        path = copied / "manifest.json"
        manifest = json.loads(path.read_text())
        first, second = manifest["formats"][name]["shards"]["train"][:2]
        first["records"], second["records"] = first["records"] + 1, second["records"] - 1
        path.write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=r"it has \d+ records, and the manifest says \d+"):
            list(ImageDataset(copied, "train", name))


def test_another_number_of_records_than_the_manifest_has_is_an_error(copied: Path) -> None:
    path = copied / "recordio" / "train.idx"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError) as caught:
        ImageDataset(copied, "train", "recordio")
    assert str(caught.value) == f"{copied}/manifest.json: it says 41 records, and the shards of recordio have 40"


@pytest.mark.parametrize(("name", "label"), [("recordio", "nan"), ("recordio", "5"), ("mds", "5"), ("mds", "-1")])
def test_a_label_that_is_no_class_is_an_error(copied: Path, name: str, label: str) -> None:
    if name == "recordio":
        path, begin = copied / "recordio" / "train.rec", 0
        place, value = 12, struct.pack("<f", float(label))  # behind magic, length and flag
    else:
        path = copied / "mds" / "train" / "shard.00000.mds"
        begin, end = struct.unpack_from("<II", path.read_bytes(), 4)
        place, value = end - 8, struct.pack("<q", int(label))
    content = path.read_bytes()
    path.write_bytes(content[:place] + value + content[place + len(value) :])
    with pytest.raises(ValueError) as caught:
        ImageDataset(copied, "train", name)[0]
    assert str(caught.value) == f"{path}, byte {begin}: the label {label} is none of the 5 classes"


def test_an_example_without_an_image_is_an_error(copied: Path) -> None:
    path = next(path for path in files(copied, "tfrecord") if path.suffix != ".idx")
    path.write_bytes(path.read_bytes().replace(b"\x0a\x05image\x12", b"\x0a\x05image\x1a"))
    with pytest.raises(ValueError) as caught:
        ImageDataset(copied, "train", "tfrecord")[0]
    assert str(caught.value) == f"{path}, byte 0: the record is not an Example with image and label"


# --- the documentation, and what it needs ----------------------------------------------------------------------------


def test_the_example_of_the_readme_runs(root: Path, expected: list[tuple[bytes, int]]) -> None:
    examples = re.findall(r"```python\n(.*?)```", (CONTRIB / "README.md").read_text(), re.DOTALL)
    (example,) = (text for text in examples if "image_reader" in text)
    names: dict[str, Any] = {}
    exec(example.replace("/data/imagenet", str(root)), names)
    stream = ImageStream(ImageDataset(root, "train", "tfrecord"), 1)
    stream.load_state_dict(names["state"])
    assert sorted([(names["image"], names["label"]), *stream]) == sorted(expected)


@pytest.mark.skipif(sys.version_info < (3, 10), reason="Python 3.9 cannot list its own modules")
def test_it_needs_nothing_but_python() -> None:
    source = (CONTRIB / "image_reader.py").read_text()
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert imported <= set(sys.stdlib_module_names)
