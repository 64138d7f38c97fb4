"""Formats that are added later: without decoding, and with the bytes of one pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.dataset.manifest import read_manifest
from ansible.module_utils.imagenet_ops.dataset.verify import verify_dataset
from ansible.module_utils.imagenet_ops.pack import convert
from ansible.module_utils.imagenet_ops.pack.convert import ConvertRequest, convert_dataset
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset

from tests.fakes.images import jpeg, mixed_images, png, write_tree

ALL = ("recordio", "webdataset", "mds", "tfrecord", "parquet")
RECIPE = Recipe(short_side_pixels=32, quality=95, resize_filter="linear", max_image_pixels=10_000_000)
SHARD_BYTES = 8_000


def pack(root: Path, tree: Path, **changes: Any) -> dict[str, Any]:
    root.mkdir(exist_ok=True)
    settings = {"formats": ALL, "shard_bytes": SHARD_BYTES, "on_bad_image": "skip", **changes}
    splits = [SplitRequest("train", str(tree)), SplitRequest("validation", str(tree))]
    request = PackRequest("test", str(root), str(root / ".state"), splits, RECIPE, **settings)
    return pack_dataset(request, False, pytest.fail)


def add(root: Path, *formats: str, check: bool = False, **changes: Any) -> dict[str, Any]:
    settings = {"shard_bytes": SHARD_BYTES, **changes}
    return convert_dataset(ConvertRequest(str(root), str(root / ".state"), formats, **settings), check, pytest.fail)


def contents(root: Path) -> dict[str, bytes]:
    """Every file of the data set, the hidden ones too, besides its state."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if ".state" not in path.parts}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of which two are bad."""
    images = mixed_images()
    names = sorted(images)
    return write_tree(tmp_path_factory.mktemp("tree"), {**images, names[9]: b"<html>", names[20]: b""})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Path:
    """What one pass makes of all formats."""
    root = tmp_path_factory.mktemp("whole")
    pack(root, tree)
    return root


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what forbids to decode or to encode an image from then on."""

    def forbid() -> None:
        for name in ("imdecode", "imencode"):
            monkeypatch.setattr(cv2, name, pytest.fail)

    return forbid


@pytest.mark.parametrize("source", ALL)
def test_each_format_gives_what_one_pass_gives(
    tmp_path: Path, tree: Path, whole: Path, undecoded: Callable[[], None], source: str
) -> None:
    root = tmp_path / "out"
    pack(root, tree, formats=[source])
    shutil.rmtree(root / ".state")  # the records were restored on another host
    undecoded()
    result = add(root, *ALL)
    assert result["changed"]
    assert result["formats"] == sorted(ALL)
    assert result["dataset_version"] == read_manifest(str(whole)).dataset_version
    assert contents(root) == contents(whole)


def test_a_circle_of_formats_ends_where_it_began(tmp_path: Path, tree: Path) -> None:
    names = ("recordio", "mds", "tfrecord", "parquet", "webdataset", "recordio")
    roots = [tmp_path / f"{number}" for number in range(len(names))]
    pack(roots[0], tree, formats=[names[0]])
    for number in range(1, len(names)):
        before, root, source, name = roots[number - 1], roots[number], names[number - 1], names[number]
        alone = tmp_path / f"alone-{root.name}"
        pack(alone, tree, formats=[source])  # for its manifest
        for path in ("manifest.json", "labels.tsv"):
            shutil.copytree(before / source, root / source, dirs_exist_ok=True)
            shutil.copy(alone / path, root / path)
        add(root, name)
    first, last = (contents(root) for root in (roots[0], roots[-1]))
    records = {name: content for name, content in first.items() if name.startswith("recordio/")}
    assert {name: content for name, content in last.items() if name.startswith("recordio/")} == records


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_by_number_begin_where_those_of_one_pass_do(tmp_path: Path, tree: Path, shards: int) -> None:
    settings = {"shards": shards, "shard_bytes": 0}
    pack(tmp_path / "whole", tree, **settings)
    pack(tmp_path / "out", tree, formats=["recordio"], **settings)
    add(tmp_path / "out", *ALL, shard_bytes=0)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_packing_finds_what_was_converted(tmp_path: Path, tree: Path) -> None:
    root = tmp_path / "out"
    pack(root, tree, formats=["recordio"])
    add(root, "webdataset", "parquet")
    before = contents(root)
    assert not pack(root, tree, formats=["recordio", "webdataset", "parquet"])["changed"]
    assert contents(root) == before


def test_a_second_run_changes_nothing_and_check_mode_writes_nothing(tmp_path: Path, tree: Path) -> None:
    root = tmp_path / "out"
    version = pack(root, tree, formats=["recordio"])["dataset_version"]
    before = contents(root)
    foreseen = add(root, "mds", check=True)
    assert (foreseen["changed"], foreseen["dataset_version"]) == (True, "")
    assert foreseen["diff"] == {
        "before": {"dataset_version": version, "formats": ["recordio"]},
        "after": {"dataset_version": "", "formats": ["mds", "recordio"]},
    }
    assert contents(root) == before
    assert add(root, "mds")["changed"]
    again = add(root, "mds")
    assert not again["changed"]
    assert not add(root, "mds", "recordio", check=True)["changed"]
    assert again["dataset_version"] == read_manifest(str(root)).dataset_version


def undecodable(_: bytes) -> str:
    return "nothing is decoded here"


class KilledError(Exception):
    """The process ended here."""


@pytest.mark.parametrize("kill_at", range(1, 40, 3))
def test_a_run_that_ends_anywhere_goes_on_and_the_old_records_stay_valid(
    tmp_path: Path, tree: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    root = tmp_path / "out"
    pack(root, tree, formats=["recordio"])
    version = read_manifest(str(root)).dataset_version
    left = kill_at

    def ending(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise KilledError
            return work(*given, **named)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_BATCH_IMAGES", 3)
        for name in ("encoded_batch", "write_if_different"):
            patch.setattr(convert, name, ending(getattr(convert, name)))
        try:
            add(root, *ALL, workers=1)
        except KilledError:
            verify_dataset(str(root), version, True, 0, undecodable, ["recordio"])
    add(root, *ALL)
    assert contents(root) == contents(whole)


def test_a_damaged_source_is_named_and_its_manifest_stays(tmp_path: Path, tree: Path) -> None:
    root = tmp_path / "out"
    version = pack(root, tree, formats=["webdataset"])["dataset_version"]
    path = root / "webdataset" / "train-000001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(OpsError):
        add(root, "mds")
    assert read_manifest(str(root)).dataset_version == version


@pytest.mark.parametrize("source", ["recordio", "mds"])
def test_names_that_a_format_cannot_hold_are_refused_as_in_packing(tmp_path: Path, source: str) -> None:
    tree = write_tree(tmp_path / "tree", {"a/1.jpg": jpeg(), "b/1.png": png(), "a/1.png": png()})
    root = tmp_path / "out"
    pack(root, tree, formats=[source])
    before = contents(root)
    with pytest.raises(OpsError) as caught:
        add(root, "webdataset")
    assert str(caught.value) == (
        f"Images of {root}/{source}: a/1.jpg and a/1.png differ in no more than the extension, which is no part of a"
        " WebDataset key. Rename one of them, or leave webdataset out of data_formats"
    )
    assert contents(root) == before


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"formats": ["beton"]}, "formats is beton, they must be of recordio, webdataset, mds, tfrecord, parquet"),
        ({"source": "mds"}, "source is mds, and the data set has recordio, webdataset"),
        ({"shard_bytes": 1 << 20}, "shard_mib is 1, and 0 in the formats that are there"),
        ({"shard_bytes": -1}, "shard_mib must be 0 (by number) or more"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, tree: Path, changes: dict[str, Any], error: str) -> None:
    root = tmp_path / "out"
    pack(root, tree, formats=["recordio", "webdataset"])
    with pytest.raises(OpsError) as caught:
        add(root, *changes.pop("formats", ["mds"]), **changes)
    assert str(caught.value) == f"Options of dataset_convert: {error}. Correct it and rerun"
