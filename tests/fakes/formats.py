"""Writes data sets through the classes of the formats, as packing does but without its decoding and its checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Entry, Format, Sample, ShardInfo, entry_of


def write_shards(
    form: Format, samples: Iterable[Sample], folder: Path, limit_bytes: int, info: DatasetInfo, split: str = "train"
) -> list[ShardInfo]:
    """Write one split below ``folder``, the format's folder: its shards and their sidecars, not the index files.

    A growing file gets its name at the end, for some names say how many shards there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    growing: list[list[Entry]] = []
    data_bytes = 0
    for sample in samples:
        pieces = form.encode(sample)
        next_bytes = sum(map(len, pieces))
        if not growing or form.is_full(data_bytes, len(growing[-1]), next_bytes, limit_bytes):
            growing.append([])
            data_bytes = 0
        data_bytes += next_bytes
        with _data_path(folder, split, len(growing) - 1).open("ab" if growing[-1] else "wb") as file:
            file.writelines(pieces)
        growing[-1].append(entry_of(sample))
    return [_finish(form, folder, info, split, shard, growing) for shard in range(len(growing))]


def write_dataset(
    form: Format, splits: Mapping[str, Iterable[Sample]], folder: Path, limit_bytes: int, info: DatasetInfo
) -> dict[str, list[ShardInfo]]:
    """Write a whole data set below ``folder``, the format's folder: shards, sidecars and index files."""
    shards = {split: write_shards(form, samples, folder, limit_bytes, info, split) for split, samples in splits.items()}
    for path, content in form.index_files(info, shards).items():
        _write(folder / path, content)
    return shards


def read_shards(form: Format, folder: Path, shards: Iterable[ShardInfo], info: DatasetInfo) -> list[Sample]:
    """Return the samples of ``shards`` below ``folder``, by the format's own reader; each image is bytes."""
    return [
        sample._replace(image=bytes(sample.image))
        for shard in shards
        for sample in form.read(str(folder / shard.path), info)
    ]


def _finish(
    form: Format, folder: Path, info: DatasetInfo, split: str, shard: int, growing: list[list[Entry]]
) -> ShardInfo:
    data, entries = _data_path(folder, split, shard), growing[shard]
    name = form.shard_name(info, split, shard, len(growing))
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if form.in_place:
        data.rename(path)
        form.seal(str(path), str(path), entries, info)
    else:
        form.seal(str(data), str(path), entries, info)
        data.unlink()
    if sidecar := form.sidecar_name(name):
        _write(folder / sidecar, form.sidecar(str(path), entries))
    content = path.read_bytes()
    image_bytes = sum(entry.image_bytes for entry in entries)
    return ShardInfo(name, len(entries), len(content), hashlib.sha256(content).hexdigest(), image_bytes)


def _data_path(folder: Path, split: str, shard: int) -> Path:
    return folder / f".{split}-{shard}.growing"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
