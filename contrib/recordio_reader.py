"""Reads ImageNet records (.rec with .idx). It needs only Python 3.9: copy this file into your training code.

    from recordio_reader import RecordIODataset

    dataset = RecordIODataset("/data/imagenet/recordio/train.rec", transform=decode)
    image, label = dataset[0]

It is a map-style dataset for PyTorch's DataLoader (``__len__``, ``__getitem__``, picklable), and a plain sequence.
Several workers, forked or spawned, can read it at once: each process opens the files itself and reads with pread, so
that they do not share a file position. `iterate` reads a file sequentially instead.

The format is that of MXNet's im2rec.py (dmlc-core, include/dmlc/recordio.h; MXNet, src/io/image_recordio.h). A record
is ``u32 magic, u32 flag << 29 | length, data, zeros to a multiple of 4``, little-endian, and its data begins with
``u32 flag, f32 label, u64 id, u64 id2``. If the data has the magic at a multiple of 4, the record is split there
into parts (flags 1, 2, 3) without the magic. A header's flag above 0 is the number of float32 labels that follow it.
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
_LABEL = struct.Struct("<f")
_LENGTH_MASK = (1 << 29) - 1
_LARGEST_OFFSET = (1 << 63) - 1  # of any file
_BUFFER_BYTES = 1 << 20

PathLike = Union[str, "os.PathLike[str]"]


class Record(NamedTuple):
    """A packed image: the encoded bytes (JPEG, or PNG if it was passed through), label and id.

    ``labels`` has all labels of a record with several; ``label`` is the first.
    """

    image: bytes
    label: float
    record_id: int
    labels: tuple[float, ...]


class RecordIODataset(Sequence[Any]):
    """The records of one .rec or of several (shards), in their order; ``dataset[n]`` gives (image, class index).

    ``transform`` is called with the encoded bytes, in the process that reads, and its result is the image; without it,
    the bytes are. The index of ``train.rec`` is ``train.idx``. Raises ValueError, with file and byte offset, for a
    damaged record.
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
        """Return the record at ``place``. Raises IndexError if there is none."""
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
        """Return the class index of every record, from the headers alone; for samplers. Raises ValueError.

        It is the first label of a record that has several, as in ``dataset[n]``.
        """
        found = []
        place = 0
        for shard, offsets in enumerate(self._offsets):
            for offset in offsets:
                head = os.pread(self._descriptor(shard), _PART.size + _HEADER.size + _LABEL.size, offset)
                if len(head) < _PART.size + _HEADER.size or not head.startswith(MAGIC):
                    raise ValueError(f"{self.paths[shard]}, byte {offset}: no image record begins here")
                count, label, _, _ = _HEADER.unpack_from(head, _PART.size)
                if count:
                    length = _PART.unpack_from(head)[1] & _LENGTH_MASK
                    # The record may be split before its first label.
                    is_here = min(length + _PART.size, len(head)) == _PART.size + _HEADER.size + _LABEL.size
                    label = (
                        _LABEL.unpack_from(head, _PART.size + _HEADER.size)[0] if is_here else self.record(place).label
                    )
                found.append(int(label))
                place += 1
        return found

    def _descriptor(self, shard: int) -> int:
        """Return this process's own descriptor of a shard's file."""
        if self._process_id != os.getpid():  # forked: the open files belong to the parent
            self._descriptors, self._process_id = {}, os.getpid()
        if shard not in self._descriptors:
            self._descriptors[shard] = os.open(self.paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptors[shard]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open files out of a pickle."""
        return {**self.__dict__, "_descriptors": {}}

    def close(self) -> None:
        """Close the files; they are opened again when needed."""
        if self._process_id == os.getpid():
            for descriptor in self._descriptors.values():
                os.close(descriptor)
        self._descriptors = {}


def iterate(path: PathLike, part: int = 0, parts: int = 1) -> Iterator[Record]:
    """Yield the records of a .rec sequentially, with long reads; it needs no index if ``parts`` is 1.

    The records are divided among ``parts`` readers, such as the workers of a DataLoader or the ranks of a job; ``part``
    is the number of this one, from 0. Raises ValueError, with file and byte offset, for a damaged record.
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
    """Yield id and offset of each record in an .idx, in the order of the .rec. Raises ValueError."""
    with open(path, encoding="ascii", errors="replace") as file:
        for number, line in enumerate(file, 1):
            fields = line.split()
            if len(fields) != 2 or not all(field.isdigit() for field in fields):
                raise ValueError(f"{os.fspath(path)}, line {number}: expected an id and an offset, got {line[:80]!r}")
            if int(fields[1]) > _LARGEST_OFFSET:
                raise ValueError(f"{os.fspath(path)}, line {number}: no file has a byte {fields[1][:40]}")
            yield int(fields[0]), int(fields[1])


def dali_index(paths: Sequence[PathLike]) -> str:
    """Return the text of the common index that DALI's readers.mxnet needs for ``paths``, all shards in order.

    A single .rec can be used with its own .idx. For several, DALI counts the offsets as if the files were
    one (NVIDIA/DALI, dali/operators/reader/loader/recordio_loader.h).
    """
    lines = []
    begin = 0
    for path in paths:
        index = read_index(_index_path(os.fspath(path)))
        lines += [f"{record_id}\t{begin + offset}\n" for record_id, offset in index]
        begin += os.path.getsize(path)
    return "".join(lines)


def parse(data: bytes, path: str = "", offset: int = 0) -> Record:
    """Parse the data of an image record; ``path`` and ``offset`` are for the ValueError of a damaged one."""
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
        flag, length = word >> 29, word & _LENGTH_MASK
        allowed = (_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST)
        if magic != MAGIC or flag not in allowed:
            raise ValueError(f"{path}, byte {position}: no record begins here")
        padded = length + -length % 4
        data = read(padded, position + _PART.size)
        if len(data) < padded:
            raise ValueError(f"{path}, byte {position}: the record is truncated")
        parts.append(data[:length])
        position += _PART.size + padded
        if flag in (_WHOLE, _LAST):
            return MAGIC.join(parts), position


def _index_path(path: str) -> str:
    return str(Path(path).with_suffix(".idx"))
