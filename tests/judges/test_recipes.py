"""The recipes of docs/formats.md, as they stand there: each trains once with every image."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.formats.registry import FORMATS
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset

from tests.fakes.images import jpeg, write_tree
from tests.judges.conftest import ROOT, WNIDS, Judges

CLASS_IMAGES = 10
# A heading, or a program below it.
PARTS = re.findall(
    r"^### (.+?)$|```python\n(.*?)```", (ROOT / "docs" / "formats.md").read_text(), re.MULTILINE | re.DOTALL
)


def recipes() -> dict[str, str]:
    """The programs by heading, and number below it."""
    found: dict[str, str] = {}
    heading, number = "", 0
    for title, program in PARTS:
        heading, number = (title, 0) if title else (heading, number + 1)
        if program:
            found[f"{heading} {number}"] = program
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    images = {
        f"{wnid}/{wnid}_{number}.JPEG": jpeg(70 + number, 60 + label, number)
        for label, wnid in enumerate(WNIDS)
        for number in range(CLASS_IMAGES)
    }
    tree = str(write_tree(folder / "tree", images))
    splits = [SplitRequest("train", tree), SplitRequest("validation", tree)]
    recipe = Recipe(64, 95, "linear", 10_000_000)
    made = folder / "imagenet"
    made.mkdir()
    request = PackRequest(
        "imagenet", str(made), str(folder / ".state"), splits, recipe, formats=tuple(FORMATS), shard_bytes=40_000
    )
    pack_dataset(request, check=False, warn=pytest.fail)
    return made


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_trains_once_an_epoch_with_every_image(judges: Judges, root: Path, tmp_path: Path, name: str) -> None:
    program = recipes()[name]
    epochs = int(next(iter(re.findall(r"for epoch in range\((\d+)\)", program)), "1"))
    # That of the paths first, for the data set may itself lie in /tmp.
    here = program.replace("/tmp/", f"{tmp_path}/").replace("/data/imagenet", str(root))
    assert judges.ask("recipes_peer", "run", here, ROOT / "contrib") == {
        "seen": [[label, epochs * CLASS_IMAGES] for label in range(len(WNIDS))],
        "sizes": [[224, 224]],
    }
