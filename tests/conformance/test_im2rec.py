"""Whole data sets against MXNet's own im2rec.py and readers."""

from __future__ import annotations

import base64
import io
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset

from tests.fakes.images import mixed_images, write_tree

RECIPE = Recipe(short_side_pixels=256, quality=95, resize_filter="linear", max_image_pixels=100_000_000)


def no_warning(text: str) -> None:
    pytest.fail(f"a warning: {text}")


def pack(folder: Path, recipe: Recipe = RECIPE, workers: int = 2, **splits: Path) -> Path:
    """Pack ``splits`` (trees by name) below ``folder`` and return the folder of the records."""
    requests = [SplitRequest(name, str(tree)) for name, tree in splits.items()]
    request = PackRequest("test", str(folder), str(folder / ".state"), requests, recipe, workers=workers)
    pack_dataset(request, check=False, warn=no_warning)
    return folder / "recordio"


def compare(mxnet: Any, folder: Path, ours: Path, tree: Path, recipe: Recipe) -> None:
    """Give our .lst of split train to im2rec.py and compare what it writes."""
    folder.mkdir(exist_ok=True)
    (folder / "train.lst").write_bytes((ours / "train.lst").read_bytes())
    options = ["--resize", str(recipe.short_side_pixels), "--quality", str(recipe.quality), "--num-thread", "2"]
    if recipe.pass_through:
        options = ["--pass-through"]
    if recipe.channels == 1:
        options += ["--color", "0"]
    mxnet.im2rec(folder / "train", tree, *options)
    for name in ("train.idx", "train.rec"):
        assert (ours / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"), mixed_images())


@pytest.fixture(scope="module")
def sample_tree(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    with tarfile.open(sample / "ILSVRC2012_img_train.tar") as outer:
        for member in outer:
            content = outer.extractfile(member)
            assert content
            with tarfile.open(fileobj=io.BytesIO(content.read())) as inner:
                inner.extractall(root / Path(member.name).stem, filter="data")
    return root


@pytest.mark.parametrize(("side", "quality"), [(256, 95), (480, 90), (33, 40), (0, 90)])
def test_records_and_index_are_those_of_im2rec(mxnet: Any, tmp_path: Path, tree: Path, side: int, quality: int) -> None:
    recipe = RECIPE._replace(short_side_pixels=side, quality=quality)
    compare(mxnet, tmp_path / "theirs", pack(tmp_path, recipe, train=tree), tree, recipe)


@pytest.mark.parametrize("changes", [{"pass_through": True}, {"channels": 1}, {"channels": 1, "short_side_pixels": 0}])
def test_other_records_are_those_of_im2rec_too(mxnet: Any, tmp_path: Path, tree: Path, changes: dict[str, Any]) -> None:
    recipe = RECIPE._replace(**changes)
    compare(mxnet, tmp_path / "theirs", pack(tmp_path, recipe, train=tree), tree, recipe)


@pytest.mark.parametrize("bucket_bytes", [1 << 28, 1 << 20])
def test_records_straight_from_the_archive_are_those_of_im2rec(
    mxnet: Any, tmp_path: Path, sample: Path, sample_tree: Path, bucket_bytes: int
) -> None:
    split = SplitRequest(
        "train", archive=str(sample / "ILSVRC2012_img_train.tar"), rules=ArchiveRules("train", "class_archives")
    )
    state = str(tmp_path / ".state")
    request = PackRequest("test", str(tmp_path), state, [split], RECIPE, workers=2, bucket_bytes=bucket_bytes)
    pack_dataset(request, check=False, warn=no_warning)
    compare(mxnet, tmp_path / "theirs", tmp_path / "recordio", sample_tree, RECIPE)


@pytest.mark.parametrize(("side", "quality"), [(256, 95), (480, 90)])
def test_records_of_real_photographs_are_those_of_im2rec(
    mxnet: Any, tmp_path: Path, sample_tree: Path, side: int, quality: int
) -> None:
    recipe = RECIPE._replace(short_side_pixels=side, quality=quality)
    ours = pack(tmp_path, recipe, train=sample_tree)
    assert (ours / "train.idx").read_text().count("\n") == 1003
    compare(mxnet, tmp_path / "theirs", ours, sample_tree, recipe)


@pytest.mark.parametrize("shuffle_seed", [100, None])
def test_the_list_is_that_of_im2rec(mxnet: Any, tmp_path: Path, shuffle_seed: int | None) -> None:
    images = mixed_images(classes=3, images_per_class=20)
    first = next(iter(images.values()))
    odd_names = ["n a/white space.JPEG", "Z/UPPER.PNG", "ä/ö.jpg", "n00000001/10.jpeg", "n00000001/9.jpeg"]
    tree = write_tree(tmp_path / "tree", {**images, **dict.fromkeys(odd_names, first), "n00000001/notes.txt": b""})
    request = PackRequest(
        "test",
        str(tmp_path / "ours"),
        str(tmp_path / "ours" / ".state"),
        [SplitRequest("train", str(tree))],
        RECIPE._replace(short_side_pixels=16),
        shuffle_seed=shuffle_seed,
    )
    pack_dataset(request, check=False, warn=lambda _: None)
    options = ["--list", "--recursive"] + ([] if shuffle_seed else ["--no-shuffle"])
    mxnet.im2rec(tmp_path / "train", tree, *options)
    assert (tmp_path / "ours" / "recordio" / "train.lst").read_bytes() == (tmp_path / "train.lst").read_bytes()


def test_the_list_of_real_photographs_is_that_of_im2rec(mxnet: Any, tmp_path: Path, sample_tree: Path) -> None:
    ours = pack(tmp_path, RECIPE._replace(short_side_pixels=16), train=sample_tree)
    mxnet.im2rec(tmp_path / "train", sample_tree, "--list", "--recursive")
    assert (ours / "train.lst").read_bytes() == (tmp_path / "train.lst").read_bytes()


def test_mxnet_finds_every_record_by_the_index(mxnet: Any, tmp_path: Path, tree: Path) -> None:
    ours = pack(tmp_path, train=tree)
    found = mxnet.ask("read_images", str(ours / "train.rec"), str(ours / "train.idx"))
    lines = [line.split("\t") for line in (ours / "train.lst").read_text().splitlines()]
    assert [image[:5] for image in found] == [[int(i), 0, float(label), int(i), 0] for i, label, _ in lines]
    assert all(image[5].startswith("ffd8ff") for image in found)


def test_image_record_iter_gives_our_labels_and_pixels(mxnet: Any, tmp_path: Path, tree: Path) -> None:
    side = 64
    ours = pack(tmp_path, RECIPE._replace(short_side_pixels=side), train=tree)
    given = mxnet.ask("iterate", str(ours / "train.rec"), str(ours / "train.idx"), side)
    lines = [line.split("\t") for line in (ours / "train.lst").read_text().splitlines()]
    assert [label for label, _ in given] == [float(label) for _, label, _ in lines]
    records = mxnet.ask("read_images", str(ours / "train.rec"), str(ours / "train.idx"))
    for (_, theirs), record in zip(given, records, strict=True):
        picture = cv2.imdecode(np.frombuffer(bytes.fromhex(record[5]), np.uint8), cv2.IMREAD_COLOR_RGB)
        assert picture is not None
        top, left = ((length - side) // 2 for length in picture.shape[:2])
        cropped = picture[top : top + side, left : left + side].astype(int)
        pixels = np.frombuffer(base64.b64decode(theirs), np.uint8).reshape(side, side, 3).astype(int)
        assert np.abs(cropped - pixels).mean() < 1.5


def test_labels_stay_where_validation_lacks_a_class(mxnet: Any, tmp_path: Path, tree: Path) -> None:
    names = sorted(path.name for path in tree.iterdir())
    images = {f"{name}/v.JPEG": next((tree / name).iterdir()).read_bytes() for name in (names[1], names[4])}
    validation = write_tree(tmp_path / "trees" / "validation", images)
    ours = pack(tmp_path, RECIPE._replace(short_side_pixels=16), train=tree, validation=validation)
    (tmp_path / "validation.lst").write_bytes((ours / "validation.lst").read_bytes())
    mxnet.im2rec(tmp_path / "validation", validation, "--resize", "16")
    assert (tmp_path / "validation.rec").read_bytes() == (ours / "validation.rec").read_bytes()
    found = mxnet.ask("read_images", str(ours / "validation.rec"), str(ours / "validation.idx"))
    assert sorted(image[2] for image in found) == [1.0, 4.0]
