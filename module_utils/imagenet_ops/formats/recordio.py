"""The RecordIO format: records, their reader and their writer, and the header of an image record.

The format is that of dmlc-core (include/dmlc/recordio.h, src/recordio.cc), the header that of MXNet
(src/io/image_recordio.h, python/mxnet/recordio.py). tests/conformance compares both with mxnet 1.9.1.

A record on disk is ``u32 magic, u32 word, data, zero bytes to a multiple of 4``, little-endian. The word's upper 3 bits
are a flag, its lower 29 the length of the data. A reader that lost its position searches for the magic at multiples of
4, so the data must not have it there. If it does, the record is split into parts at each such offset, without the magic
itself, and the parts have the flags 1 (first), 2 (middle) and 3 (last). Flag 0 is a record in one part.

The index has a line ``id<tab>offset<newline>`` for each record, in the order of the records.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.formats.format import (
    DAMAGED_TODO,
    Buffer,
    DatasetInfo,
    Entry,
    Format,
    Sample,
    ShardInfo,
)
from ansible.module_utils.imagenet_ops.formats.lst import read_list

MAGIC = b"\x0a\x23\xd7\xce"  # kMagic 0xced7230a, little-endian
_MAGIC_WORD = int.from_bytes(MAGIC, "little")
MAX_DATA_BYTES = (1 << 29) - 1
IMAGE_HEADER_BYTES = 24

_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_PART = struct.Struct("<4sI")
_IMAGE_HEADER = struct.Struct("<IfQQ")
_WHOLE_IMAGE = struct.Struct("<4sIIfQQ")  # of a record in one part, up to the picture
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # by length modulo 4


class ImageRecord(NamedTuple):
    """What an image record holds.

    ``label`` is the class index; it is the first of ``labels`` where the record carries a vector. ``record_id`` is the
    id of the .lst line. ``image`` is the encoded picture.
    """

    record_id: int
    label: float
    labels: tuple[float, ...]
    image: bytes


def frame(data: bytes) -> bytes:
    """Return ``data`` as a record: parts with magic, flag, length and padding.

    Raises ValueError where ``data`` is longer than the format's 2^29 - 1 bytes.
    """
    _check_length(len(data))
    cuts = _aligned_magic(data)
    if cuts:
        return _frame_in_parts(data, cuts)
    return b"".join((MAGIC, len(data).to_bytes(4, "little"), data, _PADDING[len(data) % 4]))


def _check_length(length: int) -> None:
    if length > MAX_DATA_BYTES:
        raise ValueError(f"a record holds at most {MAX_DATA_BYTES} bytes, this one has {length}")


def _aligned_magic(data: bytes) -> list[int]:
    """Return the offsets, multiples of 4, at which ``data`` holds the magic."""
    if len(data) < len(MAGIC):
        return []
    # Ten times faster than bytes.find, which would take one percent of the time of packing.
    words = np.frombuffer(data, "<u4", len(data) // 4)
    offsets: list[int] = (np.flatnonzero(words == _MAGIC_WORD) * 4).tolist()
    return offsets


def _frame_in_parts(data: bytes, cuts: list[int]) -> bytes:
    buffers = []
    begin = 0
    for cut in cuts:
        flag = _FIRST if begin == 0 else _MIDDLE
        buffers += [_PART.pack(MAGIC, flag << 29 | cut - begin), data[begin:cut]]
        begin = cut + len(MAGIC)
    last = data[begin:]
    buffers += [_PART.pack(MAGIC, _LAST << 29 | len(last)), last, _PADDING[len(last) % 4]]
    return b"".join(buffers)


def image_data(record_id: int, label: float, image: bytes | memoryview) -> bytes:
    """Return the data of an image record with one label: a 24 byte header (flag 0, label, id, 0), then the picture."""
    return _IMAGE_HEADER.pack(0, label, record_id, 0) + image


def frame_images(ids: Sequence[int], labels: Sequence[float], images: Sequence[Buffer]) -> Sequence[Buffer]:
    """Return ``frame(image_data(record_id, label, image))`` of each image, at a fraction of the cost.

    The pictures are copied once, into one block, which is searched for the magic as a whole: the codec evicts this
    program from the processor's caches, and one search for each picture would take several percent of the time of
    packing. Raises ValueError for a record that is longer than the format allows.
    """
    buffers: list[bytes | memoryview] = []
    ends = []
    end = 0
    for record_id, label, image in zip(ids, labels, images):
        length = IMAGE_HEADER_BYTES + len(image)
        _check_length(length)
        padding = _PADDING[length % 4]
        buffers += (_WHOLE_IMAGE.pack(MAGIC, length, 0, label, record_id, 0), image, padding)
        end += _PART.size + length + len(padding)
        ends.append(end)
    block = b"".join(buffers)
    # Every record begins on a multiple of 4 of the block, with the one magic that it may have.
    if len(_aligned_magic(block)) != len(ends):
        return [frame(image_data(*image)) for image in zip(ids, labels, images)]
    view = memoryview(block)
    return [view[begin:end] for begin, end in zip([0, *ends], ends)]


def image_record_bytes(image_bytes: int) -> int:
    """Return the length of the record of an image of ``image_bytes``, plus 4 bytes for each aligned magic in it."""
    return _PART.size + (IMAGE_HEADER_BYTES + image_bytes + 3) // 4 * 4


def parse_image_data(data: bytes) -> ImageRecord:
    """Parse the ``data`` of an image record. Raises ValueError if it is too short for its own header.

    A header's flag above 0 is the number of float32 labels that follow it (MXNet's --pack-label).
    """
    if len(data) < IMAGE_HEADER_BYTES:
        raise ValueError(f"{len(data)} bytes are too few for an image record's header")
    count, label, record_id, _ = _IMAGE_HEADER.unpack_from(data)
    if count == 0:
        return ImageRecord(record_id, label, (label,), data[IMAGE_HEADER_BYTES:])
    end = IMAGE_HEADER_BYTES + 4 * count
    if len(data) < end:
        raise ValueError(f"{len(data)} bytes are too few for a header with {count} labels")
    labels = struct.unpack_from(f"<{count}f", data, IMAGE_HEADER_BYTES)
    return ImageRecord(record_id, labels[0], labels, data[end:])


class RecordIO(Format):
    """RecordIO as a format of image records: a .rec, which grows, with its .idx."""

    name = "recordio"
    in_place = True
    overhead_bytes = _PART.size + IMAGE_HEADER_BYTES + 3
    index_suffix = "idx"

    def encode(self, sample: Sample) -> Sequence[Buffer]:
        """Return the record of ``sample``. Raises OpsError for an image that is longer than the format allows."""
        return self.encode_all([sample])[0]

    def encode_all(self, samples: Sequence[Sample]) -> Sequence[Sequence[Buffer]]:
        """Return the record of each sample. Raises OpsError as `encode` does."""
        for sample in samples:
            if len(sample.image) > MAX_DATA_BYTES - IMAGE_HEADER_BYTES:
                raise OpsError(
                    f"Image {sample.name}",
                    f"its {len(sample.image)} bytes are more than a record of RecordIO can hold",
                    "Exclude the image, or take recordio out of data_formats",
                )
        ids, labels, _, images = zip(*samples) if samples else ((), (), (), ())
        return [(record,) for record in frame_images(ids, labels, images)]

    def index_line(self, record_id: int, offset: int) -> str:
        """Return the line of the .idx."""
        return f"{record_id}\t{offset}\n"

    def is_full(self, data_bytes: int, records: int, next_bytes: int, limit_bytes: int) -> bool:
        """Return False: the user says how many files there are, as with im2rec.py."""
        return False

    def seal(self, data_path: str, shard_path: str, entries: Collection[Entry], info: DatasetInfo) -> None:
        """Do nothing: a .rec has no end."""

    def shard_name(self, info: DatasetInfo, split: str, shard: int, shards: int) -> str:
        """Return ``train.rec``, or the like of ``train-00001-of-00016.rec`` where there are several."""
        return f"{split}.rec" if shards == 1 else f"{split}-{shard:05d}-of-{shards:05d}.rec"

    def index_files(self, info: DatasetInfo, splits: Mapping[str, Sequence[ShardInfo]]) -> Mapping[str, bytes]:
        """Return nothing: each .rec stands for itself."""
        return {}

    def read(self, shard_path: str, info: DatasetInfo) -> Iterator[Sample]:
        """Yield the samples, with their names from the .lst beside the .rec.

        Raises OpsError for a damaged record, and where the list does not fit.
        """
        list_path = f"{os.path.splitext(shard_path)[0]}.lst"
        with open(shard_path, "rb") as file:
            reader = RecordReader(file, shard_path)
            for listed in read_list(list_path):
                begin = reader.offset
                data = reader.read()
                try:
                    record = parse_image_data(data or b"")
                except ValueError as error:
                    raise OpsError(f"Record file {shard_path}, byte {begin}", str(error), DAMAGED_TODO) from error
                if (record.record_id, record.label) != (listed.record_id, listed.label):
                    why = f"it has the id {record.record_id} and the label {record.label:g}, the list says otherwise"
                    raise OpsError(f"Record file {shard_path}, byte {begin}", why, DAMAGED_TODO)
                yield Sample(record.record_id, int(record.label), listed.path, record.image)
            if reader.read() is not None:
                raise OpsError(f"Record file {shard_path}", f"it has more records than {list_path}", DAMAGED_TODO)


RECORDIO = RecordIO()


def write_all(descriptor: int, buffers: Sequence[bytes | memoryview]) -> None:
    """Write ``buffers``, at most 1024, one after another to a descriptor. Raises OSError if the disk is full."""
    written = os.writev(descriptor, buffers)
    if written < sum(map(len, buffers)):  # a signal came, or the disk is almost full
        write_all(descriptor, [b"".join(buffers)[written:]])


class RecordReader:
    """Reads records one after another from a buffered binary ``file``; ``path`` is for its errors.

    ``offset`` is where the next record begins. Every error is an OpsError with the byte offset: a truncated record is
    never taken for the end.
    """

    def __init__(self, file: BinaryIO, path: str) -> None:
        self.path = path
        self.offset = 0
        self._file = file

    def seek(self, offset: int) -> None:
        """Continue with the record at ``offset``."""
        self._file.seek(offset)
        self.offset = offset

    def read(self) -> bytes | None:
        """Return the data of the next record; None at the end of the file. Raises OpsError for a damaged one."""
        part = self._read_part()
        if part is None:
            return None
        flag, data = part
        if flag == _WHOLE:
            return data
        if flag != _FIRST:
            raise self._error("a record begins with a middle or last part")
        parts = [data]
        while flag != _LAST:
            part = self._read_part()
            if part is None:
                raise self._error("the file ends between two parts of a record")
            flag, data = part
            if flag not in (_MIDDLE, _LAST):
                raise self._error("a record begins before the last part of the previous one")
            parts.append(data)
        return MAGIC.join(parts)

    def _read_part(self) -> tuple[int, bytes] | None:
        head = self._file.read(_PART.size)
        if not head:
            return None
        if len(head) < _PART.size:
            raise self._error("the file ends within the first 8 bytes of a record")
        magic, word = _PART.unpack(head)
        if magic != MAGIC:
            raise self._error(f"no record begins here (found {magic.hex()}, expected the magic {MAGIC.hex()})")
        flag, length = word >> 29, word & MAX_DATA_BYTES
        if flag > _LAST:
            raise self._error(f"a record part has the unknown flag {flag}")
        padding = _PADDING[length % 4]
        content = self._file.read(length + len(padding))
        if len(content) < length + len(padding):
            raise self._error(f"the record is truncated: {len(content)} of {length + len(padding)} bytes")
        if padding and content[length:] != padding:
            raise self._error("the padding of the record is not zero")
        self.offset += len(head) + len(content)
        return flag, content[:length] if padding else content

    def _error(self, why: str) -> OpsError:
        return OpsError(
            f"Record file {self.path}, byte {self.offset}",
            why,
            DAMAGED_TODO,
        )
