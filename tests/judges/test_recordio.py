from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.formats.format import Sample
from ansible.module_utils.imagenet_ops.formats.recordio import RecordReader, parse_image_data
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset

from tests.fakes.images import write_tree
from tests.judges.conftest import Judges, told


@pytest.mark.parametrize("shards", [1, 3])
def test_dali_reads_all_by_the_index(judges: Judges, samples: list[Sample], tmp_path: Path, shards: int) -> None:
    tree = write_tree(tmp_path / "train", {sample.name: bytes(sample.image) for sample in samples})
    recipe = Recipe(24, 95, "linear", 10_000_000, pass_through=True)
    request = PackRequest(
        "imagenet", str(tmp_path), str(tmp_path / ".state"), [SplitRequest("train", str(tree))], recipe, shards=shards
    )
    pack_dataset(request, check=False, warn=pytest.fail)
    records = sorted((tmp_path / "recordio").glob("train*.rec"))
    assert len(records) == shards
    packed: list[Any] = []
    for path in records:
        expected = told(records_of(path))
        assert judges.ask("recordio_peer", "read_dali", path, path.with_suffix(".idx"), len(expected)) == expected
        packed += expected
    assert sorted(packed) == sorted(told(samples))


def records_of(path: Path) -> Iterator[Sample]:
    with path.open("rb") as file:
        reader = RecordReader(file, str(path))
        while (data := reader.read()) is not None:
            record = parse_image_data(data)
            yield Sample(record.record_id, int(record.label), "", record.image)
