"""Answers for MosaicML Streaming and LitData: runs in .venv-judges."""

from __future__ import annotations

import hashlib
import importlib
import io
from pathlib import Path
from typing import Any


def write(folder: str, limit_bytes: int, samples: list[list[Any]], images: str) -> None:
    """Write ``samples`` (id, label, name) with MDSWriter; their images are the files 0, 1, 2 ... in ``images``."""
    streaming: Any = importlib.import_module("streaming")
    image_module: Any = importlib.import_module("PIL.Image")
    blank = io.BytesIO()
    image_module.new("RGB", (1, 1)).save(blank, "JPEG")
    columns = {"y": "int", "x": "jpeg", "name": "str", "i": "int"}
    with streaming.MDSWriter(columns=columns, out=folder, hashes=["sha256"], size_limit=limit_bytes) as writer:
        for number, (record_id, label, name) in enumerate(samples):
            # Of a JPEG with a file the encoding takes the file's bytes, and so also those of a PNG.
            picture = image_module.open(blank)
            picture.filename = str(Path(images, str(number)))
            writer.write({"i": record_id, "x": picture, "y": label, "name": name})


def read_local(folder: str, split: str) -> list[list[Any]]:
    """Return id, label, name and hash of the image of all samples, as LocalDataset reads them."""
    streaming: Any = importlib.import_module("streaming")
    samples = streaming.LocalDataset(local=folder, split=split)
    return [[sample["i"], sample["y"], sample["name"], _hash(sample["x"])] for sample in samples]


def read_imagenet(folder: str, split: str, cache: str) -> list[list[Any]]:
    """Return label, width and height of all samples, fetched into ``cache`` by StreamingImageNet with their hashes."""
    vision: Any = importlib.import_module("streaming.vision")
    samples = vision.StreamingImageNet(
        remote=folder,
        local=cache,
        split=split,
        validate_hash="sha256",
        num_canonical_nodes=1,
        batch_size=1,
    )
    return [[label, *_size(image)] for image, label in samples]


def read_litdata(folder: str) -> list[list[Any]]:
    """Return id, label, name, width and height of all samples, as LitData reads them."""
    litdata: Any = importlib.import_module("litdata")
    samples = litdata.StreamingDataset(folder, shuffle=False)
    return [[sample["i"], sample["y"], sample["name"], *_size(sample["x"])] for sample in samples]


def _size(image: Any) -> list[int]:
    return [image.shape[-1], image.shape[-2]] if hasattr(image, "shape") else list(image.size)


def _hash(image: Any) -> str:
    return hashlib.sha256(image.fp.getvalue()).hexdigest()
