"""All formats from one pass: the same samples in each, the same bytes whatever the workers, the source and the
kills."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.dataset.manifest import read_manifest
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, content_lines, entry_of
from ansible.module_utils.imagenet_ops.formats.registry import FORMATS
from ansible.module_utils.imagenet_ops.pack import tree_source
from ansible.module_utils.imagenet_ops.pack.pack import pack_dataset

from tests.fakes.all_formats import ALL, RECIPE, SHARD_BYTES, contents, pack, request, verified, write_images
from tests.fakes.images import jpeg, png, write_tree
from tests.fakes.packing_killer import Killer, killer_process


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_source, "_BATCH_IMAGES", 3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    root = tmp_path_factory.mktemp("whole")
    pack(root, images / "tree", workers=1)
    return root


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "workers"), [("tree", 4), ("images.tar", 1), ("images.tar", 2)])
def test_the_bytes_are_the_same_from_tree_and_archive_with_any_workers(
    tmp_path: Path, whole: Path, images: Path, source: str, workers: int
) -> None:
    pack(tmp_path / "out", images / source, workers=workers)
    assert contents(tmp_path / "out") == contents(whole)


def test_every_format_has_the_same_samples_in_the_same_order(whole: Path) -> None:
    manifest = read_manifest(str(whole))
    classes = [line.split("\t")[1] for line in (whole / "labels.tsv").read_text().splitlines()]
    info = DatasetInfo("test", classes, {}, SHARD_BYTES)
    found = {}
    for name, made in manifest.formats.items():
        shards = made.shards["train"]
        assert len(shards) > 1
        found[name] = [
            sample._replace(image=bytes(sample.image))
            for path, _ in shards
            for sample in FORMATS[name].read(str(whole / name / path), info)
        ]
    found["recordio"] = list(FORMATS["recordio"].read(str(whole / "recordio" / "train.rec"), info))
    for samples in found.values():
        assert [s[1:] for s in samples] == [s[1:] for s in found["recordio"]]
        digest = hashlib.sha256(b"".join(content_lines(map(entry_of, samples)))).hexdigest()
        assert digest == manifest.splits["train"].content_sha256
    # Those that hold the id hold that of im2rec.py's list.
    for name in ("webdataset", "mds"):
        assert [s.record_id for s in found[name]] == [s.record_id for s in found["recordio"]]


def test_recordio_is_what_it_is_alone(tmp_path: Path, whole: Path, images: Path) -> None:
    pack(tmp_path / "out", images / "tree", formats=["recordio"])
    alone = contents(tmp_path / "out")
    assert {name: content for name, content in contents(whole).items() if name.startswith("recordio/")} == {
        name: content for name, content in alone.items() if name.startswith("recordio/")
    }
    assert {"formats", "content_sha256"}.isdisjoint(alone["manifest.json"].decode().split('"'))


def test_recordio_may_be_left_out(tmp_path: Path, whole: Path, images: Path) -> None:
    pack(tmp_path / "out", images / "images.tar", formats=["webdataset"])
    found = contents(tmp_path / "out")
    assert {name for name in found if not name.startswith("webdataset/")} == {"labels.tsv", "manifest.json"}
    assert {name: content for name, content in contents(whole).items() if name.startswith("webdataset/")} == {
        name: content for name, content in found.items() if name.startswith("webdataset/")
    }
    assert verified(tmp_path / "out")["formats"] == ["webdataset"]


def test_shards_by_number_begin_where_those_of_recordio_do(tmp_path: Path, images: Path) -> None:
    pack(tmp_path / "out", images / "tree", shard_bytes=0, shards=3)
    manifest = read_manifest(str(tmp_path / "out"))
    lists = sorted((tmp_path / "out" / "recordio").glob("*.lst"))
    records = [len(path.read_text().splitlines()) for path in lists]
    for name, made in manifest.formats.items():
        assert [count for _, count in made.shards["train"]] == records, name
    verified(tmp_path / "out")


def test_images_that_are_passed_through_stay_as_they_are(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"a/1.jpg": jpeg(50, 60), "a/2.png": png(20, 30), "b/3.jpg": jpeg()})
    pack(tmp_path / "out", tree, recipe=RECIPE._replace(pass_through=True))
    verified(tmp_path / "out")
    assert png(20, 30) in (tmp_path / "out" / "webdataset" / "train-000000.tar").read_bytes()


def test_a_second_run_changes_nothing_and_another_choice_of_formats_packs_again(tmp_path: Path, images: Path) -> None:
    root = tmp_path / "out"
    pack(root, images / "tree", formats=["recordio", "webdataset"])
    assert not pack(root, images / "tree", formats=["webdataset", "recordio"])["changed"]
    warnings: list[str] = []
    result = pack_dataset(request(root, images / "tree", formats=["recordio", "mds"]), False, warnings.append)
    assert result["changed"]
    assert "formats" in warnings[0]
    # What is no longer wanted goes with what described it.
    assert not [name for name in contents(root) if name.startswith("webdataset/")]
    verified(root)


def test_names_that_a_format_cannot_hold_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"a/1.jpg": jpeg(), "a/1.png": png()})
    with pytest.raises(OpsError) as caught:
        pack(tmp_path / "out", tree)
    assert str(caught.value) == (
        f"Images of {tree}: a/1.jpg and a/1.png differ in no more than the extension, which is no part of a WebDataset"
        " key. Rename one of them, or leave webdataset out of data_formats"
    )
    assert not contents(tmp_path / "out")


@pytest.mark.parametrize(
    ("formats", "error"),
    [
        ([], "formats is empty"),
        (["recordio", "recordio"], "formats names one twice"),
        (["beton"], "formats is beton, they must be of recordio, webdataset, mds, tfrecord, parquet"),
    ],
)
def test_formats_that_nobody_can_write_are_refused(
    tmp_path: Path, images: Path, formats: list[str], error: str
) -> None:
    with pytest.raises(OpsError) as caught:
        pack(tmp_path / "out", images / "tree", formats=formats)
    assert caught.value.why == error


# --- kill -9 ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with killer_process() as killer:
        yield killer


@pytest.mark.slow_kill
@pytest.mark.parametrize("name", ALL[1:])
def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_bytes(
    tmp_path: Path, images: Path, killer: Killer, name: str
) -> None:
    """Kills at 20 seeded operations, and again at another one in the run after it."""
    tree = images / "tree"
    settings: dict[str, Any] = {"formats": [name], "shard_bytes": SHARD_BYTES}
    expected = tmp_path / "expected"
    killer.run(tree, expected, 1, **settings)
    counted = next(n for n in itertools.count(50, 50) if not killer.run(tree, tmp_path / f"count{n}", 1, n, **settings))
    generator = random.Random(name)
    for number in range(20):
        root = tmp_path / str(number)
        killer.run(tree, root, 2, generator.randrange(1, counted), **settings)
        killer.run(tree, root, 1, generator.randrange(1, counted), **settings)
        killer.run(tree, root, 2, **settings)
        assert contents(root) == contents(expected)
        assert not json.loads((root / ".state" / "recordio_pack.train.json").read_text())["files"]
        shutil.rmtree(root)
