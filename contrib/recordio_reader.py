"""Reads ImageNet records (.rec with its .idx) with nothing but Python 3.9: copy this file into your training code.

    from recordio_reader import RecordIODataset

    dataset = RecordIODataset("/data/imagenet/recordio/train.rec", transform=decode)
    image, label = dataset[0]

It is a map-style dataset as PyTorch's DataLoader wants one (``__len__``, ``__getitem__``, picklable), and a sequence
for everyone else. Several workers may read it at once, forked or spawned: each process opens the files for itself, and
reads with pread, so that none moves another's position. `iterate` reads a file from front to back instead.

The format is that of MXNet's im2rec.py (dmlc-core, include/dmlc/recordio.h; MXNet, src/io/image_recordio.h): one is
``u32 magic, u32 flag << 29 | length, data, zeros to a multiple of 4``, little-endian, and its data begins with
``u32 flag, f32 label, u64 id, u64 id2``. Where the data held the magic at a multiple of 4, the record is in several
parts (flags 1, 2, 3) that leave the magic out. A header's flag above 0 is the number of float32 labels that follow it.
"""

from __future__ import annotations

import os
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Union

MAGIC = b"\x0a\x23\xd7\xce"

_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_PART = struct.Struct("<4sI")
_HEADER = struct.Struct("<IfQQ")
_BUFFER_BYTES = 1 << 20

PathLike = Union[str, "os.PathLike[str]"]


class Record(NamedTuple):
    """An image as it is packed: the encoded bytes (JPEG, or PNG where they were passed through), label and id.

    ``labels`` has all of them where a record carries several; ``label`` is the first.
    """

    image: bytes
    label: float
    record_id: int
    labels: tuple[float, ...]


class RecordIODataset(Sequence[Any]):
    """The records of one .rec or of several (shards), in their order; ``dataset[n]`` gives (image, class index).

    ``transform`` is called with the encoded bytes, in the process that reads, and its result is the image; without it
    the bytes are. The index of ``train.rec`` is ``train.idx``. Raises ValueError that names file and byte for what is
    not a record.
    """

    def __init__(
        self,
        paths: PathLike | Sequence[PathLike],
        transform: Callable[[bytes], Any] | None = None,
    ) -> None:
        self.paths = [os.fspath(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
        self.transform = transform
        self._offsets = [array("Q", (offset for _, offset in read_index(_index_path(path)))) for path in self.paths]
        self._ends = array("Q")
        for offsets in self._offsets:
            self._ends.append(len(offsets) + (self._ends[-1] if self._ends else 0))
        self._descriptors: dict[int, int] = {}
        self._process_id = os.getpid()

    def __len__(self) -> int:
        """Return the number of records."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, place: Any) -> Any:
        """Return image and class index of the record at ``place``."""
        record = self.record(place)
        image = record.image if self.transform is None else self.transform(record.image)
        return image, int(record.label)

    def record(self, place: int) -> Record:
        """Return the whole record at ``place``; IndexError where there is none."""
        place = place + len(self) if place < 0 else place
        if not 0 <= place < len(self):
            raise IndexError(f"record {place} of {len(self)}")
        shard = bisect_right(self._ends, place)
        offset = self._offsets[shard][place - (self._ends[shard - 1] if shard else 0)]
        path, descriptor = self.paths[shard], self._descriptor(shard)

        def read(count: int, position: int) -> bytes:
            return os.pread(descriptor, count, position)

        return parse(_read_record(read, offset, path)[0], path, offset)

    def labels(self) -> list[int]:
        """Return the class index of every record, reading 24 bytes of each; for samplers and counts."""
        found = []
        for shard, offsets in enumerate(self._offsets):
            for offset in offsets:
                head = os.pread(self._descriptor(shard), _PART.size + _HEADER.size, offset)
                if len(head) < _PART.size + _HEADER.size or not head.startswith(MAGIC):
                    raise ValueError(f"{self.paths[shard]}, byte {offset}: no image record begins here")
                found.append(int(_HEADER.unpack_from(head, _PART.size)[1]))
        return found

    def _descriptor(self, shard: int) -> int:
        """Return this process's own descriptor of a shard's file."""
        if self._process_id != os.getpid():  # forked: what is open belongs to the parent
            self._descriptors, self._process_id = {}, os.getpid()
        if shard not in self._descriptors:
            self._descriptors[shard] = os.open(self.paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptors[shard]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open files out of a pickle."""
        return {**self.__dict__, "_descriptors": {}}

    def close(self) -> None:
        """Close the files; they open again when they are needed."""
        if self._process_id == os.getpid():
            for descriptor in self._descriptors.values():
                os.close(descriptor)
        self._descriptors = {}


def iterate(path: PathLike, part: int = 0, parts: int = 1) -> Iterator[Record]:
    """Yield the records of a .rec from front to back, in long reads; without an index where ``parts`` is 1.

    Of ``parts`` readers, such as the workers of a DataLoader or the ranks of a job, each gets the stretch of its number
    ``part``, from 0 on. Raises ValueError that names file and byte for what is not a record.
    """
    begin, end = 0, os.path.getsize(path)
    if parts > 1:
        offsets = [offset for _, offset in read_index(_index_path(os.fspath(path)))] + [end]
        count = len(offsets) - 1
        begin, end = offsets[part * count // parts], offsets[(part + 1) * count // parts]
    with open(path, "rb", buffering=_BUFFER_BYTES) as file:
        file.seek(begin)

        def read(count: int, _: int) -> bytes:
            return file.read(count)

        while begin < end:
            data, following = _read_record(read, begin, os.fspath(path))
            yield parse(data, os.fspath(path), begin)
            begin = following


def read_index(path: PathLike) -> Iterator[tuple[int, int]]:
    """Yield id and offset of each record that an .idx lists, in its order, which is that of the .rec."""
    with open(path, encoding="ascii", errors="replace") as file:
        for number, line in enumerate(file, 1):
            fields = line.split()
            if len(fields) != 2 or not all(field.isdigit() for field in fields):
                raise ValueError(f"{os.fspath(path)}, line {number}: no id and offset: {line[:80]!r}")
            yield int(fields[0]), int(fields[1])


def dali_index(paths: Sequence[PathLike]) -> str:
    """Return the text of the one index that DALI's readers.mxnet wants for all of ``paths``, the shards in their order.

    For a single .rec its .idx is that index as it is. For several, DALI counts the offsets over the files as if they
    were one (NVIDIA/DALI, dali/operators/reader/loader/recordio_loader.h).
    """
    lines = []
    begin = 0
    for path in paths:
        index = read_index(_index_path(os.fspath(path)))
        lines += [f"{record_id}\t{begin + offset}\n" for record_id, offset in index]
        begin += os.path.getsize(path)
    return "".join(lines)


def parse(data: bytes, path: str = "", offset: int = 0) -> Record:
    """Return what the data of an image record says; ``path`` and ``offset`` are for the error."""
    count = _HEADER.unpack_from(data)[0] if len(data) >= _HEADER.size else 0
    begin = _HEADER.size + 4 * count
    if len(data) < begin or len(data) < _HEADER.size:
        raise ValueError(f"{path}, byte {offset}: {len(data)} bytes are too few for an image record")
    _, label, record_id, _ = _HEADER.unpack_from(data)
    labels = struct.unpack_from(f"<{count}f", data, _HEADER.size) if count else (label,)
    return Record(data[begin:], labels[0], record_id, labels)


def _read_record(read: Callable[[int, int], bytes], offset: int, path: str) -> tuple[bytes, int]:
    """Return the data of the record at ``offset`` and where the next one begins."""
    parts: list[bytes] = []
    position = offset
    while True:
        head = read(_PART.size, position)
        magic, word = _PART.unpack(head) if len(head) == _PART.size else (b"", 0)
        flag, length = word >> 29, word & ((1 << 29) - 1)
        allowed = (_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST)
        if magic != MAGIC or flag not in allowed:
            raise ValueError(f"{path}, byte {position}: no record begins here")
        padded = length + -length % 4
        data = read(padded, position + _PART.size)
        if len(data) < padded:
            raise ValueError(f"{path}, byte {position}: the record is cut short")
        parts.append(data[:length])
        position += _PART.size + padded
        if flag in (_WHOLE, _LAST):
            return MAGIC.join(parts), position


def _index_path(path: str) -> str:
    return str(Path(path).with_suffix(".idx"))
