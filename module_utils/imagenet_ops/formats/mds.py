"""MDS, the format of MosaicML Streaming: the bytes that its MDSWriter writes with ``hashes=["sha256"]``.

A shard is ``u32 n, u32 offsets[n + 1], config, samples``, little-endian. The offsets count from the beginning of the
file; the last is its length. The config is JSON: the columns, sorted by name, and the settings of the writer. A sample
is the u32 lengths of those of its columns that have no fixed length, then all columns.

The columns are those that Composer's StreamingImageNet reads, and the name: i (the record's id), name, x (the image), y
(the label). The encoding of x is called jpeg, but its reader opens whatever image is there.

The format has no checksum in a shard, index.json has its SHA-256. So the reader here notices damage to everything but
the bytes of an image, its id and the name of its file.
"""

from __future__ import annotations

import functools
import json
import os
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, BinaryIO

from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.formats.format import (
    DAMAGED_TODO,
    Buffer,
    DatasetInfo,
    Entry,
    Format,
    Sample,
    ShardInfo,
    classes_json,
)

# The lengths of name and x, and i. y follows x.
_SAMPLE_HEAD = struct.Struct("<IIq")
_LABEL = struct.Struct("<q")
_FIXED_BYTES = _SAMPLE_HEAD.size + _LABEL.size
_OFFSET_BYTES = 4
_LARGEST_OFFSET = (1 << 32) - 1
# A shard with one image must stay below the largest offset; 64 KiB are more than its header, name and numbers.
_LARGEST_IMAGE_BYTES = _LARGEST_OFFSET - (64 << 10)
_COPY_BYTES = 64 << 20


class Mds(Format):
    """The format ``mds``: ``<split>/shard.00000.mds`` and ``<split>/index.json``."""

    name = "mds"
    in_place = False
    overhead_bytes = _OFFSET_BYTES + _FIXED_BYTES + 512  # with the names of class and file

    def encode(self, sample: Sample) -> Sequence[Buffer]:
        """Return the columns of a sample behind their lengths. Raises OpsError for an image beyond 4 GiB."""
        name = sample.name.encode()
        if len(sample.image) > _LARGEST_IMAGE_BYTES:
            raise OpsError(
                f"Image {sample.name}",
                f"its {len(sample.image)} bytes are more than an MDS shard can hold",
                "Exclude the image, or take mds out of data_formats",
            )
        head = _SAMPLE_HEAD.pack(len(name), len(sample.image), sample.record_id)
        return [head + name, sample.image, _LABEL.pack(sample.label)]

    def is_full(self, data_bytes: int, records: int, next_bytes: int, limit_bytes: int) -> bool:
        """Return whether the shard would exceed the limit: MDSWriter's rule, which counts the header.

        MDSWriter itself writes an empty shard before a sample that exceeds the limit alone.
        """
        header_bytes = _header_bytes(records + 1, _config(limit_bytes))
        size_bytes = header_bytes + data_bytes + next_bytes
        return records > 0 and size_bytes > min(limit_bytes, _LARGEST_OFFSET)

    def seal(self, data_path: str, shard_path: str, entries: Collection[Entry], info: DatasetInfo) -> None:
        """Write the header and the samples behind it, and sync the shard; what a killed run left is overwritten.

        Raises OpsError where the growing file does not have the length of the entries; OSError.
        """
        config = _config(info.shard_bytes)
        sizes = (_FIXED_BYTES + len(entry.name.encode()) + entry.image_bytes for entry in entries)
        offsets = list(accumulate(sizes, initial=_header_bytes(len(entries), config)))
        if offsets[-1] > _LARGEST_OFFSET:
            raise OpsError(
                f"MDS shard {shard_path}",
                f"it would have {offsets[-1]} bytes, and offsets in MDS end at {_LARGEST_OFFSET}",
                "Set data_shard_mib, or more data_shards",
            )
        with open(data_path, "rb", buffering=0) as data, open(shard_path, "wb") as shard:
            shard.write(struct.pack(f"<I{len(offsets)}I", len(entries), *offsets) + config)
            shard.flush()
            copied = _copy(data.fileno(), shard.fileno())
            if copied != offsets[-1] - offsets[0]:
                raise OpsError(
                    f"Growing file {data_path}",
                    f"it has {copied} bytes, but its {len(entries)} records make {offsets[-1] - offsets[0]}",
                    "Something else changes it; stop that, then run again",
                )
            os.fsync(shard.fileno())

    def shard_name(self, info: DatasetInfo, split: str, shard: int, shards: int) -> str:
        """Return the name that MDSWriter gives to a shard."""
        return f"{split}/shard.{shard:05}.mds"

    def index_files(self, info: DatasetInfo, splits: Mapping[str, Sequence[ShardInfo]]) -> Mapping[str, bytes]:
        """Return index.json of each split as MDSWriter writes it, and classes.json: MDS has no place for classes."""
        config = json.loads(_config(info.shard_bytes))
        files = {f"{split}/index.json": _index(shards, config) for split, shards in splits.items()}
        return {**files, "classes.json": classes_json(info)}

    def read(self, shard_path: str, info: DatasetInfo) -> Iterator[Sample]:
        """Yield the samples; the label must be that of the class in the name."""
        with open(shard_path, "rb") as file:
            offsets = _read_header(file, shard_path, info.shard_bytes)
            for begin, end in zip(offsets, offsets[1:]):
                data = file.read(end - begin)
                if len(data) < end - begin:
                    raise _damaged(shard_path, begin, f"the sample is truncated: {len(data)} of {end - begin} bytes")
                yield _parse(data, shard_path, begin, info)


def _copy(source: int, target: int) -> int:
    """Append what descriptor ``source`` has to ``target`` and return its length; the bytes stay in the kernel."""
    copied = 0
    while done := os.sendfile(target, source, None, _COPY_BYTES):
        copied += done
    return copied


@functools.lru_cache(maxsize=1)
def _config(limit_bytes: int) -> bytes:
    settings = {
        "column_encodings": ["int", "str", "jpeg", "int"],
        "column_names": ["i", "name", "x", "y"],
        "column_sizes": [8, None, None, 8],
        "compression": None,
        "format": "mds",
        "hashes": ["sha256"],
        "size_limit": limit_bytes or None,  # None: their number decides how large the shards are
        "version": 2,
    }
    return json.dumps(settings, sort_keys=True).encode()


def _header_bytes(records: int, config: bytes) -> int:
    return _OFFSET_BYTES * (records + 2) + len(config)


def _index(shards: Sequence[ShardInfo], config: Mapping[str, Any]) -> bytes:
    described = [
        {
            **config,
            "raw_data": {
                "basename": os.path.basename(shard.path),
                "bytes": shard.size_bytes,
                "hashes": {"sha256": shard.sha256},
            },
            "samples": shard.records,
            "zip_data": None,
        }
        for shard in shards
    ]
    return json.dumps({"shards": described, "version": 2}, sort_keys=True).encode()


def _read_header(file: BinaryIO, path: str, limit_bytes: int) -> Sequence[int]:
    """Return the offsets of the samples and the end of the last; the file is at the first sample then."""
    config = _config(limit_bytes)
    size_bytes = os.fstat(file.fileno()).st_size
    if size_bytes < _header_bytes(0, config):
        raise _damaged(path, size_bytes, "the shard ends within its header")
    records = int.from_bytes(file.read(_OFFSET_BYTES), "little")
    header_bytes = _header_bytes(records, config)
    if size_bytes < header_bytes:
        why = f"it says {records} samples, but their header is longer than the {size_bytes} bytes of the file"
        raise _damaged(path, 0, why)
    offsets = struct.unpack(f"<{records + 1}I", file.read(_OFFSET_BYTES * (records + 1)))
    config_begin = file.tell()
    if file.read(len(config)) != config:
        raise _damaged(
            path, config_begin, f"the shard's settings are not those of these columns and size_limit {limit_bytes}"
        )
    if offsets[0] != header_bytes:
        raise _damaged(
            path, _OFFSET_BYTES, f"the first sample is at {offsets[0]}, but the header ends at {header_bytes}"
        )
    for index, (begin, end) in enumerate(zip(offsets, offsets[1:])):
        if end - begin < _FIXED_BYTES:
            place = _OFFSET_BYTES * (index + 2)
            raise _damaged(path, place, f"the sample has {end - begin} bytes, but none has less than {_FIXED_BYTES}")
    if offsets[-1] != size_bytes:
        raise _damaged(path, size_bytes, f"the shard has {size_bytes} bytes, but its header says {offsets[-1]}")
    return offsets


def _parse(data: bytes, path: str, begin: int, info: DatasetInfo) -> Sample:
    name_bytes, image_bytes, record_id = _SAMPLE_HEAD.unpack_from(data)
    image_begin = _SAMPLE_HEAD.size + name_bytes
    image_end = image_begin + image_bytes
    if image_end + _LABEL.size != len(data):
        raise _damaged(path, begin, f"the columns make {image_end + _LABEL.size} bytes, but the sample has {len(data)}")
    name_data, (label,) = data[_SAMPLE_HEAD.size : image_begin], _LABEL.unpack_from(data, image_end)
    try:
        name = name_data.decode()
    except UnicodeDecodeError as error:
        raise _damaged(path, begin + _SAMPLE_HEAD.size, "the name of the sample is not UTF-8") from error
    if record_id < 0:
        raise _damaged(path, begin, f"the sample has the negative id {record_id}")
    if not 0 <= label < len(info.classes) or info.classes[label] != name.partition("/")[0]:
        raise _damaged(path, begin + image_end, f"the label {label} is not that of {name!r}")
    return Sample(record_id, label, name, memoryview(data)[image_begin:image_end])


def _damaged(path: str, offset: int, why: str) -> OpsError:
    return OpsError(
        f"MDS shard {path}, byte {offset}",
        why,
        DAMAGED_TODO,
    )


MDS = Mds()
