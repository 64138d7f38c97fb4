"""Answers for webdataset, wids, timm and DALI: runs in .venv-judges."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from typing import Any


def write(pattern: str, shards: list[list[dict[str, Any]]]) -> None:
    """Write ``shards`` of samples with webdataset's ShardWriter; what is in ``image`` is base64."""
    wds: Any = importlib.import_module("webdataset")
    with wds.ShardWriter(pattern, maxcount=10**9, maxsize=10**18, verbose=0, mtime=0) as writer:
        for number, samples in enumerate(shards):
            if number:
                writer.next_stream()
            for sample in samples:
                image = {sample["suffix"]: base64.b64decode(sample["image"])}
                writer.write({"__key__": sample["key"], "cls": sample["label"], "json": sample["json"], **image})


def read(paths: list[str]) -> list[Any]:
    """Return label and hash of the image, and the name, of all that webdataset reads."""
    wds: Any = importlib.import_module("webdataset")
    samples = wds.WebDataset(paths, shardshuffle=False)
    return [[*_told(sample, ""), json.loads(sample["json"])["filename"]] for sample in samples]


def read_wids(path: str, cache: str) -> list[Any]:
    """Return label and hash of every sample of a list of shards, by index, as wids reads it."""
    wids: Any = importlib.import_module("wids")
    samples = wids.ShardListDataset(path, cache_dir=cache, transformations=[], keep=True)
    read = [{name: getattr(member, "read", str)() for name, member in sample.items()} for sample in samples]
    return [_told(sample, ".") for sample in read]


def read_timm(root: str, split: str) -> list[Any]:
    """Return label and hash of the pixels of all that timm's ReaderWds reads, and how many it says there are."""
    readers: Any = importlib.import_module("timm.data.readers.reader_wds")
    reader = readers.ReaderWds(root, split=split, is_training=False)
    return [len(reader), [[target, _pixels(image)] for image, target in reader]]


def pixels(images: list[str]) -> list[str]:
    """Return the hash of the pixels of each image (base64)."""
    image_module: Any = importlib.import_module("PIL.Image")
    io: Any = importlib.import_module("io")
    return [_pixels(image_module.open(io.BytesIO(base64.b64decode(image))).convert("RGB")) for image in images]


def dali_index(shard: str, index: str) -> None:
    """Write the index of a shard with DALI's own program."""
    wds2idx: Any = importlib.import_module("wds2idx")
    with wds2idx.IndexCreator(shard, index, verbose=False) as creator:
        creator.create_index()


def read_dali(shards: list[str], indices: list[str], count: int) -> list[Any]:
    """Return label and hash of ``count`` samples, as DALI reads them by the indices."""
    dali: Any = importlib.import_module("nvidia.dali")
    pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        pipeline.set_outputs(
            *dali.fn.readers.webdataset(
                paths=shards, index_paths=indices, ext=["cls", "jpg;png"], missing_component_behavior="error"
            )
        )
    pipeline.build()
    read = []
    for _ in range(count):
        label, image = (bytes(output.at(0)) for output in pipeline.run())
        read.append([int(label), hashlib.sha256(image).hexdigest()])
    return read


def _told(sample: dict[str, Any], dot: str) -> list[Any]:
    (image,) = (sample[dot + suffix] for suffix in ("jpg", "png") if dot + suffix in sample)
    return [int(sample[f"{dot}cls"]), hashlib.sha256(image).hexdigest()]


def _pixels(image: Any) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()
