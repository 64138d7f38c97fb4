"""A data set that is packed from a tree or from an archive of the same images, for the tests of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset

from tests.fakes.images import mixed_images, write_class_archives, write_tree

RECIPE = Recipe(short_side_pixels=32, quality=95, resize_filter="linear", max_image_pixels=10_000_000)
RULES = ArchiveRules("any", "class_archives")


class Workplace:
    """The same images as a tree and as an archive, and a data set that is packed from either."""

    def __init__(self, root: Path) -> None:
        self.folder = root
        self.images = mixed_images()
        self.tree = write_tree(root / "images", self.images)
        self.archive = write_class_archives(root / "train.tar", self.images)
        self.warnings: list[str] = []

    def pack(self, kind: str, *, check: bool = False, into: str = "", **changes: Any) -> dict[str, Any]:
        source, archive = (str(self.tree), None) if kind == "tree" else (None, str(self.archive))
        root = self.folder / (into or kind)
        split = SplitRequest("train", source, archive, RULES, changes.pop("expected_images", 0))
        request = PackRequest("test", str(root), str(root / ".state"), [split], RECIPE, workers=2)
        return pack_dataset(replace(request, **changes), check, self.warnings.append)

    def error(self, kind: str, **changes: Any) -> str:
        with pytest.raises(OpsError) as caught:
            self.pack(kind, **changes)
        return str(caught.value)

    def files(self, name: str) -> dict[str, bytes]:
        """Return all that was made, without state."""
        made = [path for path in (self.folder / name).rglob("*") if path.is_file() and ".state" not in path.parts]
        return {path.relative_to(self.folder / name).as_posix(): path.read_bytes() for path in made}

    def damage(self, name: str, content: bytes) -> None:
        self.images[name] = content
        write_tree(self.tree, {name: content})
        write_class_archives(self.archive, self.images)
