"""Answers for Hugging Face datasets and pyarrow: runs in .venv-judges."""

from __future__ import annotations

import hashlib
import importlib
from typing import Any


def load(folder: str, split: str, classes: list[str]) -> dict[str, Any]:
    """Return what datasets makes of a split: whether its features are those of an image and a class, and its rows.

    ``rows`` are name, label and hash of each image, ``streamed`` the same unloaded, ``decoded`` width and height.
    """
    datasets: Any = importlib.import_module("datasets")
    expected = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    loaded = datasets.load_dataset(folder, split=split)
    streamed = datasets.load_dataset(folder, split=split, streaming=True)
    return {
        "features": loaded.features == expected,
        "rows": [_row(row, loaded.features) for row in loaded.cast_column("image", datasets.Image(decode=False))],
        "streamed": [_row(row, loaded.features) for row in streamed.cast_column("image", datasets.Image(decode=False))],
        "decoded": [list(row["image"].size) for row in loaded],
    }


def schema_is_theirs(shard: str, classes: list[str]) -> bool:
    """Return whether the schema of a shard, with its metadata, is the one that datasets writes."""
    datasets: Any = importlib.import_module("datasets")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    same: bool = parquet.read_schema(shard).equals(features.arrow_schema, check_metadata=True)
    return same


def card(path: str) -> dict[str, Any]:
    """Return the splits of a card with their counts, as the library of the hub and datasets understand it."""
    hub: Any = importlib.import_module("huggingface_hub")
    information: Any = importlib.import_module("datasets.info")
    infos = information.DatasetInfosDict.from_dataset_card_data(hub.DatasetCard.load(path).data)
    return {name: split.num_examples for name, split in infos["default"].splits.items()}


def _row(row: dict[str, Any], features: Any) -> list[Any]:
    name = f"{features['label'].int2str(row['label'])}/{row['image']['path']}"
    return [name, row["label"], hashlib.sha256(row["image"]["bytes"]).hexdigest()]
