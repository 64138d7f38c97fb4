from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core import checkpoint
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.dataset.manifest import SUFFIXES
from ansible.module_utils.imagenet_ops.dataset.verify import verify_dataset
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo
from ansible.module_utils.imagenet_ops.formats.recordio import RECORDIO, RecordReader, parse_image_data
from ansible.module_utils.imagenet_ops.pack import tree_source
from ansible.module_utils.imagenet_ops.pack.decoder import Transformer
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.listing import Listing, Tree
from ansible.module_utils.imagenet_ops.pack.tree_source import TreeSource
from ansible.module_utils.imagenet_ops.pack.writer import FinishedSplit, Outputs, Packed, SplitPacker

from tests.fakes.images import jpeg, mixed_images, write_class_archives, write_tree
from tests.fakes.packing_killer import Killer, killer_process

RECIPE = Recipe(short_side_pixels=32, quality=95, resize_filter="linear", max_image_pixels=10_000_000)
INFO = DatasetInfo("test", [], {})
NAMES = ["train.idx", "train.lst", "train.rec"]
SHARDS = [f"train-{number:05d}-of-00003" for number in range(3)]  # of the runs that are killed


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_source, "_BATCH_IMAGES", 3)
    monkeypatch.setattr(checkpoint, "JOURNAL_INTERVAL_SECONDS", 0.0)


class Workplace:
    """A tree with two bad images, and a packer for it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = root / "tree"
        images = mixed_images()
        names = sorted(images)
        self.bad = {names[9]: b"<html>", names[20]: images[names[20]][:-2]}
        write_tree(self.tree, {**images, **self.bad})
        (root / "state").mkdir()
        self.warnings: list[str] = []

    def finished(self) -> FinishedSplit:
        return FinishedSplit("train", str(self.root), str(self.root / "state"))

    def listing(self) -> Listing:
        tree = Tree(str(self.tree))
        return Listing(tree, tree.classes, 100)

    def packer(self, shards: int = 1, **key: Any) -> SplitPacker:
        outputs = Outputs([RECORDIO], INFO, shards)
        return SplitPacker(self.finished(), {"quality": 95, **key}, {}, self.listing(), outputs)

    def found(self, **key: Any) -> tuple[Packed | None, str]:
        return self.finished().find(self.packer(**key).key())

    def pack(self, workers: int = 2, *, stop_at_bad: bool = False, recipe: Recipe = RECIPE, **key: Any) -> Packed:
        packer = self.packer(**key)
        progress = Progress(str(self.root / "state"), "recordio_pack")
        with Transformer(recipe) as transformer:
            source = TreeSource(self.listing(), transformer, [RECORDIO])
            return packer.pack(source, workers, stop_at_bad, progress, self.warnings.append)

    def contents(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.root / "recordio").iterdir())}

    def checkpoint(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.root / "state" / "recordio_pack.train.part.json").read_text())
        return value


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


class NoSpaceError(OSError):
    """What the kernel says when the disk is full."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> Callable[[], None]:
    """Let the disk take ``writes`` writes, half of the next, and no more, until the function returned is called."""
    writev = os.writev
    left = writes

    def limited(descriptor: int, pieces: list[bytes]) -> int:
        nonlocal left
        left -= 1
        if left > 0:
            return writev(descriptor, pieces)
        if left == 0:
            content = b"".join(pieces)
            return os.write(descriptor, content[: len(content) // 2])
        raise NoSpaceError

    monkeypatch.setattr(os, "writev", limited)
    return lambda: monkeypatch.setattr(os, "writev", writev)


# --- what is written -------------------------------------------------------------------------------------------------


def test_the_three_files_agree_and_name_only_good_images(workplace: Workplace) -> None:
    packed = workplace.pack()
    contents = workplace.contents()
    assert sorted(contents) == NAMES
    lines = [line.split("\t") for line in contents["train.lst"].decode().splitlines()]
    index = [tuple(map(int, line.split("\t"))) for line in contents["train.idx"].decode().splitlines()]
    with (workplace.root / "recordio" / "train.rec").open("rb") as file:
        reader = RecordReader(file, "train.rec")
        for place, (record_id, label, path) in enumerate(lines):
            assert index[place] == (int(record_id), reader.offset)
            record = parse_image_data(reader.read() or b"")
            assert (
                (record.record_id, record.label) == (int(record_id), float(label)) == (int(record_id), int(path[1:9]))
            )
        assert reader.read() is None
    assert len(index) == len(lines)
    assert {path for _, _, path in lines}.isdisjoint(workplace.bad)
    assert packed.records == len(lines) == 38
    html, cut = workplace.bad
    assert dict(packed.bad) == {
        html: "not an image: neither JPEG nor PNG, it begins with b'<html>'",
        cut: "truncated: the end of the JPEG is missing",
    }
    assert packed.converted == {"cmyk": 1, "grey": 1, "png": 1}


def test_sizes_and_hashes_are_those_of_the_files(workplace: Workplace) -> None:
    packed = workplace.pack()
    for name, content in workplace.contents().items():
        assert packed.files[name][:2] == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path, workers: int) -> None:
    results = []
    for number in (2, workers):
        workplace = Workplace(tmp_path / f"{number} workers")
        workplace.pack(number)
        results.append(workplace.contents())
    assert results[0] == results[1]


def test_progress_counts_images(workplace: Workplace) -> None:
    workplace.pack()
    progress = json.loads((workplace.root / "state" / "recordio_pack.progress.json").read_text())
    assert (progress["stage"], progress["total"], progress["unit"]) == ("packing train", 40, "images")


# --- what is found finished ------------------------------------------------------------------------------------------


def test_a_finished_split_is_known_again(workplace: Workplace) -> None:
    assert workplace.found() == (None, "")
    packed = workplace.pack()
    assert workplace.found() == (packed, "")


def test_a_touched_file_is_hashed_again_and_remembered(workplace: Workplace) -> None:
    workplace.pack()
    os.utime(workplace.root / "recordio" / "train.rec", ns=(1, 1))
    packed, reason = workplace.found()
    assert reason == ""
    assert packed is not None
    assert packed.files["train.rec"].mtime_ns == 1
    workplace.finished().remember(packed)
    value = json.loads((workplace.root / "state" / "recordio_pack.train.json").read_text())
    assert value["files"]["train.rec"][2] == 1


def damage(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
    elif how == "cut":
        os.truncate(path, 10)
    else:
        content = bytearray(path.read_bytes())
        content[20] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("gone", "was deleted"),
        ("cut", "was changed from SIZE to 10 bytes"),
        ("flipped", "was changed (checksum mismatch)"),
    ],
)
def test_a_damaged_file_is_noticed(workplace: Workplace, name: str, how: str, reason: str) -> None:
    workplace.pack()
    path = workplace.root / "recordio" / name
    size = path.stat().st_size
    damage(path, how)
    assert workplace.found() == (None, f"{name} {reason} since it was packed".replace("SIZE", str(size)))


def test_other_settings_and_another_source_are_noticed(workplace: Workplace) -> None:
    workplace.pack()
    _, reason = workplace.found(quality=90, shuffle_seed=1)
    what = "quality 95 is now 90, shuffle_seed None is now 1"
    assert reason == f"it was packed with other settings or another source ({what})"
    (workplace.tree / "n00000000" / "n00000000_1.JPEG").write_bytes(b"another size")
    packed, reason = workplace.found()
    assert packed is None
    assert reason.startswith("it was packed with other settings or another source (sizes ")


# --- bad images and full disks ---------------------------------------------------------------------------------------


def test_stopping_at_a_bad_image_names_it_and_goes_on_once_it_was_replaced(workplace: Workplace) -> None:
    listing = workplace.listing()
    places = {listing.names.path(row): place for place, row in enumerate(listing.order)}
    first, second = sorted(workplace.bad, key=lambda path: places[path])
    with pytest.raises(OpsError) as caught:
        workplace.pack(stop_at_bad=True)
    assert str(caught.value).startswith(f"Image {workplace.tree}/{first}: ")
    todo = "Replace it and rerun (packing resumes here), or set on_bad_image to skip or quarantine"
    assert str(caught.value).endswith(todo)
    assert workplace.checkpoint()["position"]["place"] == places[first] // 3 * 3

    (workplace.tree / first).write_bytes(jpeg(50, 60))
    with pytest.raises(OpsError, match=second):
        workplace.pack(stop_at_bad=True)
    packed = workplace.pack()
    assert [path for path, _ in packed.bad] == [second]
    assert workplace.warnings == []

    again = Workplace(workplace.root / "again")
    (again.tree / first).write_bytes(jpeg(50, 60))
    again.pack()
    assert again.contents() == workplace.contents()


def test_skipped_images_of_an_unfinished_run_count_when_bad_images_are_to_stop_it(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = full_after(monkeypatch, 25)
    with pytest.raises(OpsError):
        workplace.pack()
    free()
    path, reason = workplace.checkpoint()["position"]["bad"][0]
    with pytest.raises(OpsError, match=path) as caught:
        workplace.pack(stop_at_bad=True)
    assert caught.value.why == reason


@pytest.mark.parametrize("writes", [1, 2, 3, 10, 21])
def test_a_full_disk_is_an_error_and_the_next_run_goes_on(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    free = full_after(monkeypatch, writes)
    with pytest.raises(OpsError) as caught:
        workplace.pack()
    assert str(caught.value) == (
        f"Split train in {workplace.root}: the disk is full (No space left on device)."
        " Free or add space and rerun: packing resumes"
    )
    assert workplace.checkpoint()["position"]["place"] == (writes - 1) // 2 * 3
    free()
    workplace.pack()
    assert workplace.warnings == []
    undisturbed = Workplace(workplace.root / "undisturbed")
    undisturbed.pack()
    assert workplace.contents() == undisturbed.contents()


def test_a_disk_that_is_full_for_the_checkpoint_too_loses_only_what_was_not_checkpointed(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = full_after(monkeypatch, 10)
    sync = os.fdatasync

    def fails_when_full(descriptor: int) -> None:
        sync(descriptor)
        os.writev(descriptor, [b""])

    monkeypatch.setattr(os, "fdatasync", fails_when_full)
    with pytest.raises(OpsError, match="the disk is full"):
        workplace.pack()
    free()
    workplace.pack()
    undisturbed = Workplace(workplace.root / "undisturbed")
    undisturbed.pack()
    assert workplace.contents() == undisturbed.contents()


def test_a_directory_that_cannot_be_written_is_an_error(workplace: Workplace) -> None:
    (workplace.root / "recordio").write_text("a file is in the way")
    with pytest.raises(OpsError) as caught:
        workplace.pack()
    assert caught.value.what == f"Split train in {workplace.root}"
    assert caught.value.todo == "Check the disk (dmesg) and rerun: packing resumes"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda path: path.unlink(), "it cannot be read (No such file or directory)"),
        (lambda path: path.write_bytes(b"x"), "1 bytes were read, but it had 1234 when the tree was listed"),
    ],
)
def test_an_image_that_changes_while_packing_is_an_error(
    workplace: Workplace, change: Callable[[Path], None], why: str
) -> None:
    path = workplace.tree / "n00000000" / "n00000000_1.JPEG"
    size = path.stat().st_size
    packer, listing = workplace.packer(), workplace.listing()
    change(path)
    progress = Progress(str(workplace.root / "state"), "recordio_pack")
    with pytest.raises(OpsError) as caught, Transformer(RECIPE) as transformer:
        packer.pack(TreeSource(listing, transformer, [RECORDIO]), 2, False, progress, workplace.warnings.append)
    todo = "Check the disk and that no other process changes the tree, then rerun: packing resumes here"
    assert str(caught.value) == f"Image {path}: {why.replace('1234', str(size))}. {todo}"


# --- what an unfinished run left -------------------------------------------------------------------------------------


def interrupt(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    free = full_after(monkeypatch, 12)
    with pytest.raises(OpsError):
        workplace.pack()
    free()


def test_other_settings_do_not_mix_with_an_unfinished_run(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(workplace, monkeypatch)
    workplace.pack(quality=90)
    (warning,) = workplace.warnings
    what = "other settings or another source (quality 95 is now 90)"
    assert warning == f"Split train: the interrupted run had {what}; its files are discarded; packing starts over"


def test_a_new_image_does_not_mix_with_an_unfinished_run(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(workplace, monkeypatch)
    workplace.pack()
    undisturbed = workplace.contents()
    other = Workplace(workplace.root / "other")
    (other.tree / "n00000000" / "new.JPEG").write_bytes(jpeg())
    interrupt(other, monkeypatch)
    (other.tree / "n00000000" / "new.JPEG").unlink()
    other.pack(names="other")
    assert other.contents() == undisturbed
    assert len(other.warnings) == 1


@pytest.mark.parametrize("suffix", ["rec", "idx"])
@pytest.mark.parametrize("how", ["gone", "cut", "other"])
def test_parts_that_the_checkpoint_does_not_fit_are_dropped(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, suffix: str, how: str
) -> None:
    interrupt(workplace, monkeypatch)
    rec_bytes, idx_bytes = workplace.checkpoint()["position"]["streams"]["recordio"]["sizes"]
    size = rec_bytes if suffix == "rec" else idx_bytes
    part = workplace.root / "recordio" / f".train.{suffix}.part"
    if how == "gone":
        part.unlink()
    elif how == "cut":
        os.truncate(part, size - 1)
    else:
        part.write_bytes(bytes(size))
    workplace.pack()
    (warning,) = workplace.warnings
    what = "the files of the interrupted run do not match its checkpoint and are discarded"
    assert warning == f"Split train: {what}; packing starts over"
    undisturbed = Workplace(workplace.root / "undisturbed")
    undisturbed.pack()
    assert workplace.contents() == undisturbed.contents()


def test_files_in_use_stay_until_their_successors_are_complete(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace.pack()
    before = workplace.contents()
    (workplace.root / "manifest.json").write_text("of the old files")
    free = full_after(monkeypatch, 12)
    with pytest.raises(OpsError):
        workplace.pack(quality=90)
    free()
    assert {name: workplace.contents()[name] for name in NAMES} == before
    assert (workplace.root / "manifest.json").exists()
    assert workplace.found()[0] is not None
    workplace.pack(quality=90)
    assert not (workplace.root / "manifest.json").exists()


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def lose_power(root: Path, generator: random.Random) -> None:
    """Do to unfinished files what a power cut may do: what was not synced before the checkpoint is lost or garbage."""

    def cut(path: Path, kept_bytes: int) -> None:
        if path.exists():
            content = path.read_bytes()
            kept, lost = content[:kept_bytes], len(content) - kept_bytes
            path.write_bytes(
                kept + generator.choice([b"", bytes(lost), generator.randbytes(lost), content[len(kept) :]])
            )

    def checkpoint(name: str) -> dict[str, Any]:
        path = root / ".state" / name
        return json.loads(path.read_text()) if path.exists() else {}

    position = checkpoint("recordio_pack.train.part.json").get("position")
    stream = position and position["streams"].get("recordio")
    if stream:
        for number, size in enumerate(stream["sizes"]):
            suffix = ("rec", "idx")[number]
            cut(root / "recordio" / f".{SHARDS[stream['shard'] % 3]}.{suffix}.part", size)
    spool = checkpoint("recordio_pack.train.spool.json")
    folder = root / ".scratch" / "train"
    if spool.get("stage") == "reading":
        cut(folder / "spool", spool["position"]["spool_bytes"])
        cut(folder / "index.tsv", spool["position"]["index_bytes"])
    elif spool.get("stage") == "dealing":
        for bucket, length in enumerate(spool["lengths"]):
            cut(folder / f"bucket-{bucket:03d}", length)


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with killer_process() as killer:
        yield killer


def assert_same(root: Path, expected: Path) -> None:
    names = sorted(f"{shard}.{suffix}" for shard in SHARDS for suffix in SUFFIXES)
    for name in ("manifest.json", "labels.tsv", *(f"recordio/{name}" for name in names)):
        assert (root / name).read_bytes() == (expected / name).read_bytes(), name
    assert sorted(os.listdir(root / "recordio")) == names
    assert not list(root.glob(".scratch/*"))


def source_of(workplace: Workplace, kind: str) -> Path:
    if kind == "tree":
        return workplace.tree
    images = {path.relative_to(workplace.tree).as_posix(): path.read_bytes() for path in workplace.tree.rglob("*.JPEG")}
    return write_class_archives(workplace.root / "train.tar", images)


@pytest.mark.slow_kill
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("kind", ["tree", "archive"])
def test_a_run_that_is_killed_at_random_ends_with_the_same_bytes(
    tmp_path: Path, killer: Killer, kind: str, workers: int
) -> None:
    generator = random.Random(f"{kind} {workers}")
    workplace = Workplace(tmp_path)
    source = source_of(workplace, kind)
    # Whatever it is packed from, and however often it is killed: these bytes.
    killer.run(workplace.tree, tmp_path / "undisturbed", 2)
    operations = 64
    while killer.run(source, tmp_path / "counting" / str(operations), workers, kill_at=operations):
        operations += 64
    kills = 0
    # How many operations a run has depends on how its threads meet, so some end before they are killed.
    for attempt in range(90):
        root = tmp_path / "killed" / str(attempt)
        kills += killer.run(source, root, workers, kill_at=generator.randrange(1, operations))
        lose_power(root, generator)
        killer.run(source, root, workers)
        assert_same(root, tmp_path / "undisturbed")
        shutil.rmtree(root)
        if kills == 30:
            break
    assert kills == 30


@pytest.mark.parametrize("kind", ["tree", "archive"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path, killer: Killer, kind: str, seed: int
) -> None:
    generator = random.Random(seed)
    workplace = Workplace(tmp_path)
    source = source_of(workplace, kind)
    killer.run(workplace.tree, tmp_path / "undisturbed", 2)
    root = tmp_path / "killed"
    kills = 0
    while killer.run(source, root, 2, kill_at=generator.randrange(12, 40)):
        kills += 1
        lose_power(root, generator)
    assert kills >= 5
    assert_same(root, tmp_path / "undisturbed")


@pytest.mark.slow_kill
@pytest.mark.parametrize("kind", ["tree", "archive"])
def test_a_run_may_be_killed_at_every_single_operation(tmp_path: Path, killer: Killer, kind: str) -> None:
    images = {f"{number % 2}/{number}.jpg": jpeg(seed=number) for number in range(6)}
    source = write_tree(tmp_path / "tree", images)
    if kind == "archive":
        source = write_class_archives(tmp_path / "train.tar", images)
    killer.run(tmp_path / "tree", tmp_path / "undisturbed", 1)
    operations = 1
    while killer.run(source, root := tmp_path / str(operations), 1, kill_at=operations):
        killer.run(source, root, 1)
        assert_same(root, tmp_path / "undisturbed")
        operations += 1
    assert operations > 30


@pytest.mark.slow_kill
def test_a_kill_while_files_are_replaced_never_leaves_a_manifest_of_other_files(tmp_path: Path, killer: Killer) -> None:
    tree = write_tree(tmp_path / "tree", {f"a/{number}.jpg": jpeg(seed=number) for number in range(4)})
    killer.run(tree, tmp_path / "old", 1)
    killer.run(tree, tmp_path / "undisturbed", 1, quality=80)
    manifests: list[bool] = []
    while True:
        root = tmp_path / str(len(manifests))
        shutil.copytree(tmp_path / "old", root)
        if not killer.run(tree, root, 1, kill_at=len(manifests) + 1, quality=80):
            break
        manifests.append((root / "manifest.json").exists())
        if manifests[-1]:
            verify_dataset(str(root), None, full=True, decode_samples=0, decode=lambda _: "")
        killer.run(tree, root, 1, quality=80)
        assert_same(root, tmp_path / "undisturbed")
    # The old one, then none while the files change, then, where the kill came after that, the new one.
    assert [present for present, _ in itertools.groupby(manifests)] == [True, False, True]
