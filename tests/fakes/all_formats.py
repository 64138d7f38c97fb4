"""A data set in all formats, packed from a tree or an archive of images two of which are bad."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules
from ansible.module_utils.imagenet_ops.dataset.verify import verify_dataset
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset

from tests.fakes.images import mixed_images, write_class_archives, write_tree

ALL = ("recordio", "webdataset", "mds", "tfrecord", "parquet")
RECIPE = Recipe(short_side_pixels=32, quality=95, resize_filter="linear", max_image_pixels=10_000_000)
RULES = ArchiveRules("any", "class_archives")
SHARD_BYTES = 8_000


def write_images(folder: Path) -> None:
    """Write a tree and an archive of the same images, two of them bad."""
    found = mixed_images()
    names = sorted(found)
    found |= {names[9]: b"<html>", names[20]: found[names[20]][:-2]}
    write_tree(folder / "tree", found)
    write_class_archives(folder / "images.tar", found)


def request(root: Path, source: Path, **changes: Any) -> PackRequest:
    """What packs ``source`` into ``root``."""
    split = SplitRequest("train", None, str(source), RULES) if source.is_file() else SplitRequest("train", str(source))
    return replace(
        PackRequest(
            dataset="test",
            root=str(root),
            state_dir=str(root / ".state"),
            splits=[split],
            recipe=RECIPE,
            formats=ALL,
            shard_bytes=SHARD_BYTES,
            on_bad_image="skip",
        ),
        **changes,
    )


def pack(root: Path, source: Path, **changes: Any) -> dict[str, Any]:
    """Pack ``source`` into ``root``, without a warning."""
    root.mkdir(parents=True, exist_ok=True)
    return pack_dataset(request(root, source, **changes), False, pytest.fail)


def contents(root: Path) -> dict[str, bytes]:
    """Every file of the data set, the hidden ones too, besides its state."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if ".state" not in path.parts}


def verified(root: Path, *formats: str, full: bool = True) -> dict[str, Any]:
    """Verify the data set; every image decodes."""
    return verify_dataset(str(root), None, full, 3, lambda _: "", formats)
