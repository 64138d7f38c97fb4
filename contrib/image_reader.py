"""Reads a packed data set in any of its formats. It needs only Python 3.9: copy this file into your training code.

    from image_reader import ImageDataset, ImageStream

    dataset = ImageDataset("/data/imagenet", "train", format="webdataset", transform=decode)
    image, label = dataset[0]

    stream = ImageStream(dataset, seed=1, rank=0, world_size=8)
    for image, label in stream: ...

`ImageDataset` is a map-style dataset for PyTorch's DataLoader (``__len__``, ``__getitem__``, picklable), and a plain
sequence. `ImageStream` is an iterable one: it shuffles by seed and epoch, shares the records among ranks and workers,
and resumes within an epoch (``state_dict``, ``load_state_dict``). All formats of a data set give the same records in
the same order, so a state of one format resumes with another.

The formats are recordio, webdataset, mds, tfrecord and parquet; manifest.json says which are there, and in which files.
Only parquet needs a library, pyarrow. Each read opens its file and closes it: nothing is open that processes or
threads could share. A record's frame is checked as it is read. What an image's bytes should be, the manifest says
(module recordio_verify).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import re
import struct
import sys
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Callable, NamedTuple, Union

FORMATS = ("recordio", "mds", "webdataset", "tfrecord", "parquet")
BLOCK_RECORDS = 100
WINDOW_BLOCKS = 10

_LARGEST_OFFSET = (1 << 63) - 1  # of any file

_MAGIC = b"\x0a\x23\xd7\xce"
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_PART = struct.Struct("<4sI")
_IMAGE_HEADER = struct.Struct("<IfQQ")
_LENGTH_MASK = (1 << 29) - 1

_MDS_HEAD = struct.Struct("<IIq")  # lengths of name and image, id
_MDS_LABEL = struct.Struct("<q")

_TAR_BLOCK = 512

_TF_LENGTH = struct.Struct("<Q")
_TF_HEAD_BYTES = _TF_LENGTH.size + 4
_TF_FRAME_BYTES = _TF_HEAD_BYTES + 4
_VARINT_BYTES = 10

_PARQUET_TAIL = struct.Struct("<I4s")
# The row groups that a window of a stream touches: a block seldom begins where a group does.
_CACHED_GROUPS = 2 * WINDOW_BLOCKS

PathLike = Union[str, "os.PathLike[str]"]
Image = tuple[bytes, float]  # with its label


class ImageDataset(Sequence[Any]):
    """The records of a split, in their order; ``dataset[n]`` gives (image, class index of labels.tsv).

    ``root`` is the folder with manifest.json. ``format`` is one of `FORMATS`; without it, the first of them that is
    there. ``transform`` is called with the encoded bytes (JPEG, or PNG if it was passed through), in the process that
    reads, and its result is the image; without it, the bytes are.

    Raises ValueError, with the file, for a split or format that is not there, and with the byte for a damaged record;
    OSError for a file that cannot be read; ImportError for parquet without pyarrow. In parquet one record costs the
    reading of its row group (up to 100 images; the last few stay in memory): take another format for random access.
    """

    def __init__(
        self,
        root: PathLike,
        split: str,
        format: str = "",  # noqa: A002  the name that users know
        transform: Callable[[bytes], Any] | None = None,
    ) -> None:
        self.root = os.fspath(root)
        self.split = split
        self.transform = transform
        path = os.path.join(self.root, "manifest.json")
        content = Path(path).read_bytes()
        try:
            manifest = json.loads(content)
            shards = _shards_of(manifest, split)
            entry = manifest["splits"].get(split, {})
            self._classes: int = manifest["labels"]["classes"]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: it is not the manifest of a packed data set ({error!r})") from error
        # A GPU host may have been given some of the formats that the manifest names.
        there = [name for name, of in shards.items() if of and os.path.exists(os.path.join(self.root, of[0][0]))]
        self.format = format or next((name for name in FORMATS if name in there), "")
        if self.format not in there:
            names = ", ".join(sorted(there)) or "none"
            raise ValueError(f"{path}: split {split!r} is not there in format {self.format!r} (formats: {names})")
        # Equal for all formats; a data set of RecordIO alone has no such sum.
        self.content_id: str = entry.get("content_sha256") or hashlib.sha256(content).hexdigest()
        self._shards = [_shard(self.format, self.root, *shard, path) for shard in shards[self.format]]
        self._ends = array("Q", accumulate(len(shard) for shard in self._shards))
        if len(self) != entry.get("records"):
            why = f"it says {entry.get('records')} records, and the shards of {self.format} have {len(self)}"
            raise ValueError(f"{path}: {why}")

    def __len__(self) -> int:
        """Return the number of records."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, place: Any) -> Any:
        """Return image and class index of the record at ``place``. Raises IndexError if there is none."""
        index = place + len(self) if place < 0 else place
        if not 0 <= index < len(self):
            raise IndexError(f"record {place} of {len(self)}")
        number = bisect_right(self._ends, index)
        shard = self._shards[number]
        image, label, begin = shard.read(index - (self._ends[number - 1] if number else 0))
        if not 0 <= label < self._classes:
            raise ValueError(f"{shard.path}, byte {begin}: the label {label:g} is none of the {self._classes} classes")
        return (image if self.transform is None else self.transform(image)), int(label)


def _stream_base() -> Any:
    """Return PyTorch's IterableDataset, by which a DataLoader knows a stream; without PyTorch, a class like any."""
    try:
        return importlib.import_module("torch.utils.data").IterableDataset
    except ImportError:
        return object


class ImageStream(_stream_base()):  # type: ignore[misc]  # PyTorch is optional
    """The records of a data set, shared among ranks and workers: each comes exactly once in an epoch.

    With a ``seed`` the order is another one in every epoch, the same for every format, Python and number of ranks:
    blocks of ``block_records`` neighbours are shuffled, then the records within each 10 blocks. 1 shuffles all records
    at once. Without a seed the order is that of the files. Each rank reads its own stretch of the order, and each
    worker of a DataLoader a part of that. ``rank`` and ``world_size`` are those that torchrun sets, if not given.
    Stretches differ by at most one record; with ``equal_ranks`` the last few records of the order are left out, so that
    all ranks have as many.

    Call `set_epoch` before each epoch. Persistent workers do not hear of it; in them, as in a plain loop, each pass is
    the next epoch. `state_dict` is that of one process: torchdata's StatefulDataLoader collects that of each worker.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        seed: int | None = None,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        block_records: int = BLOCK_RECORDS,
        equal_ranks: bool = False,
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.rank = int(os.environ.get("RANK", "0")) if rank is None else rank
        self.world_size = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
        self.block_records = block_records
        self.equal_ranks = equal_ranks
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} of {self.world_size} is none: ranks count from 0")
        if block_records < 1:
            raise ValueError(f"block_records is {block_records}, it must be 1 or more")
        self.epoch = 0
        self._done = 0  # records of this process's stretch that were handed out
        self._stretch: tuple[int, int] | None = None  # of a state that was loaded

    def __len__(self) -> int:
        """Return the number of records of this rank, all of its workers together."""
        begin, end = self._of_rank()
        return end - begin

    def set_epoch(self, epoch: int) -> None:
        """Begin with the first record of ``epoch``; a state that was loaded for this very epoch stays."""
        if self._stretch is None or epoch != self.epoch:
            self.epoch, self._done, self._stretch = epoch, 0, None

    def __iter__(self) -> Iterator[Any]:
        """Yield image and class index, from where the loaded state was, or of the next epoch."""
        begin, end = self._of_process()
        if self._stretch not in (None, (begin, end)):
            raise ValueError(
                f"the state is of the records {self._stretch} of the order, and this process has {(begin, end)}: "
                "resume with as many ranks and workers as before"
            )
        if self._stretch is None:
            # A pass that came to its end is followed by the next epoch, one that was left by the same one.
            self.epoch, self._done = self.epoch + (self._done == end - begin), 0
        self._stretch = None
        return self._rest(begin + self._done, end, self.epoch)

    def _rest(self, begin: int, end: int, epoch: int) -> Iterator[Any]:
        for place in self._order(begin, end, epoch):
            # The state that is taken while the caller has this record is that behind it.
            self._done += 1
            yield self.dataset[place]

    def state_dict(self) -> dict[str, Any]:
        """Return where this process is: plain numbers and texts, which JSON holds."""
        return {
            "content_id": self.dataset.content_id,
            "split": self.dataset.split,
            "seed": self.seed,
            "block_records": self.block_records,
            "epoch": self.epoch,
            "done": self._done,
            "stretch": list(self._stretch or self._of_process()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken. Raises ValueError where it is of another data set, split, seed or block."""
        here = self.state_dict()
        for name in ("content_id", "split", "seed", "block_records"):
            if state[name] != here[name]:
                raise ValueError(f"the state has the {name} {state[name]!r}, and this stream has {here[name]!r}")
        self.epoch, self._done = state["epoch"], state["done"]
        self._stretch = (state["stretch"][0], state["stretch"][1])

    def _of_rank(self) -> tuple[int, int]:
        records = len(self.dataset)
        if self.equal_ranks:
            records -= records % self.world_size
        return _part(0, records, self.rank, self.world_size)

    def _of_process(self) -> tuple[int, int]:
        """Return begin and end of the stretch of this process: a worker's, if it is one."""
        begin, end = self._of_rank()
        # A process that has not imported it is no worker of a DataLoader.
        torch_data = sys.modules.get("torch.utils.data")
        worker = torch_data.get_worker_info() if torch_data else None
        return (begin, end) if worker is None else _part(begin, end, worker.id, worker.num_workers)

    def _order(self, begin: int, end: int, epoch: int) -> Iterator[int]:
        """Yield the records at the places ``begin`` to ``end`` of an epoch's order."""
        if self.seed is None:
            yield from range(begin, end)
            return
        records = len(self.dataset)
        blocks = _shuffled(range(-(-records // self.block_records)), f"{self.seed}/{epoch}")
        # Blocks of one record are shuffled already.
        step = 1 if self.block_records == 1 else WINDOW_BLOCKS
        place = 0
        for first in range(0, len(blocks), step):
            window = [
                record
                for block in blocks[first : first + step]
                for record in range(block * self.block_records, min((block + 1) * self.block_records, records))
            ]
            if place < end and place + len(window) > begin:
                window_order = _shuffled(window, f"{self.seed}/{epoch}/{first}")
                yield from window_order[max(begin - place, 0) : end - place]
            place += len(window)


def _part(begin: int, end: int, part: int, parts: int) -> tuple[int, int]:
    """Return begin and end of one of ``parts`` stretches, whose lengths differ by at most one."""
    count = end - begin
    return begin + part * count // parts, begin + (part + 1) * count // parts


def _shuffled(numbers: Sequence[int], key: str) -> Sequence[int]:
    """Return ``numbers`` in an order that ``key`` decides; the module random may change between Pythons."""
    base = hashlib.blake2b(key.encode(), digest_size=32).digest()

    def rank(number: int) -> bytes:
        return hashlib.blake2b(number.to_bytes(8, "little"), key=base, digest_size=8).digest()

    return sorted(numbers, key=rank)


# --- Shards ----------------------------------------------------------------------------------------------------------


class _Spans(NamedTuple):
    """Where the records of a shard begin and end."""

    begins: Sequence[int]
    ends: Sequence[int]


class _Shard:
    """A shard whose records are found by an index; it is read when it is needed, by each process."""

    def __init__(self, path: str, index_path: str, format_name: str, records: int | None) -> None:
        self.path = path
        self._index_path = index_path
        self._format = format_name
        self._spans: _Spans | None = None
        self._records = len(self._found().begins) if records is None else records

    def __len__(self) -> int:
        return self._records

    def __getstate__(self) -> dict[str, Any]:
        """Leave the index out of a pickle: that of a large data set has 20 MB."""
        return {**self.__dict__, "_spans": None}

    def read(self, place: int) -> tuple[bytes, float, int]:
        """Return image and label of a record, and where it begins. Raises ValueError, OSError."""
        spans = self._found()
        if len(spans.begins) != self._records:
            why = f"it has {len(spans.begins)} records, and the manifest says {self._records}"
            raise ValueError(f"{self._index_path}: {why}")
        begin, end = spans.begins[place], spans.ends[place]
        data = _read_at(self.path, begin, end - begin)
        if not data or len(data) < end - begin:
            raise ValueError(f"{self.path}, byte {begin}: the record is truncated, or the index is damaged")
        return (*_PARSERS[self._format](data, self.path, begin), begin)

    def _found(self) -> _Spans:
        if self._spans is None:
            self._spans = _INDEXES[self._format](self.path, self._index_path)
        return self._spans


class _ParquetShard:
    """A shard of Parquet, whose footer says where the row groups are."""

    def __init__(self, path: str, records: int) -> None:
        self.path = path
        self._records = records
        self._ends: Sequence[int] = ()

    def __len__(self) -> int:
        return self._records

    def read(self, place: int) -> tuple[bytes, float, int]:
        """Return image and label of a record, and where its row group begins.

        Raises ValueError, OSError, ImportError.
        """
        if not self._ends:
            metadata = _parquet_file(self.path).metadata
            rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
            if sum(rows) != self._records:
                raise ValueError(f"{self.path}: it has {sum(rows)} records, and the manifest says {self._records}")
            self._ends = list(accumulate(rows))
        number = bisect_right(self._ends, place)
        images, labels, begin = _row_group(self.path, number, os.getpid())
        at = place - (self._ends[number - 1] if number else 0)
        return images[at].as_py(), labels[at].as_py(), begin


def _shards_of(manifest: dict[str, Any], split: str) -> dict[str, list[tuple[str, int | None]]]:
    """Return path and number of records of the shards of a split by format; RecordIO's numbers are in its indexes."""
    shards: dict[str, list[tuple[str, int | None]]] = {
        name: [(f"{name}/{shard['name']}", shard["records"]) for shard in made["shards"][split]]
        for name, made in manifest.get("formats", {}).items()
        if split in made["shards"]
    }
    files = sorted(name for name in manifest["splits"].get(split, {}).get("files", {}) if name.endswith(".rec"))
    if files:
        shards["recordio"] = [(f"recordio/{name}", None) for name in files]
    return shards


def _shard(format_name: str, root: str, name: str, records: int | None, manifest_path: str) -> _Shard | _ParquetShard:
    if os.path.normpath(name) != name or name.startswith(("/", "..")):
        raise ValueError(f"{manifest_path}: it names a file outside of the data set: {name!r}")
    path = os.path.join(root, name)
    if records is not None and format_name == "parquet":
        return _ParquetShard(path, records)
    folder, base = os.path.split(path)
    index_path = {
        "tfrecord": f"{folder}/index/{base}.idx",
        "mds": path,
    }.get(format_name, f"{os.path.splitext(path)[0]}.idx")
    return _Shard(path, index_path, format_name, records)


def _read_at(path: str, offset: int, count: int) -> bytes:
    """Return what the file has of ``count`` bytes at ``offset``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # A damaged index must not cost memory.
        count = max(min(count, os.fstat(descriptor).st_size - offset), 0)
        data = os.pread(descriptor, count, offset)
        while 0 < len(data) < count:  # one call gives at most 2 GiB
            more = os.pread(descriptor, count - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data
    finally:
        os.close(descriptor)


def _index_lines(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and fields of each line of an index."""
    with open(path, encoding="ascii", errors="replace") as file:
        for number, line in enumerate(file, 1):
            yield number, line.split()


def _numbers(path: str, line: int, fields: Sequence[str]) -> list[int]:
    """Return ``fields`` as offsets or lengths. Raises ValueError, which names the line."""
    if not fields or not all(re.fullmatch("[0-9]{1,19}", field) and int(field) <= _LARGEST_OFFSET for field in fields):
        raise ValueError(f"{path}, line {line}: expected offsets, got {' '.join(fields)[:80]!r}")
    return [int(field) for field in fields]


# --- RecordIO: an id and an offset a line ----------------------------------------------------------------------------


def _recordio_spans(path: str, index_path: str) -> _Spans:
    begins = array("Q")
    for line, fields in _index_lines(index_path):
        begins.append(_numbers(index_path, line, fields if len(fields) == 2 else ())[1])
    return _Spans(begins, array("Q", [*begins[1:], os.path.getsize(path)][: len(begins)]))


def _parse_recordio(data: bytes, path: str, begin: int) -> Image:
    parts: list[bytes] = []
    offset = 0
    while offset < len(data):
        magic, word = _PART.unpack_from(data, offset) if offset + _PART.size <= len(data) else (b"", 0)
        flag, length = word >> 29, word & _LENGTH_MASK
        if magic != _MAGIC or flag not in ((_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST)):
            raise ValueError(f"{path}, byte {begin + offset}: no record begins here")
        first = offset + _PART.size
        offset = first + length + -length % 4
        if offset > len(data):
            raise ValueError(f"{path}, byte {begin}: the record is truncated")
        parts.append(data[first : first + length])
        if flag in (_WHOLE, _LAST):
            break
    content = _MAGIC.join(parts)
    count = _IMAGE_HEADER.unpack_from(content)[0] if len(content) >= _IMAGE_HEADER.size else 0
    image_begin = _IMAGE_HEADER.size + 4 * count
    if offset != len(data) or len(content) < image_begin:
        raise ValueError(f"{path}, byte {begin}: the record does not have the length that the index says")
    (label,) = struct.unpack_from("<f", content, _IMAGE_HEADER.size if count else 4)
    return content[image_begin:], label


# --- MDS: a table of offsets at the beginning ------------------------------------------------------------------------


def _mds_spans(path: str, _: str) -> _Spans:
    size_bytes = os.path.getsize(path)
    count = int.from_bytes(_read_at(path, 0, 4), "little")
    if 4 * (count + 2) > size_bytes:
        raise ValueError(f"{path}, byte 0: {count} samples do not fit into its {size_bytes} bytes")
    offsets = struct.unpack(f"<{count + 1}I", _read_at(path, 4, 4 * (count + 1)))
    smallest = _MDS_HEAD.size + _MDS_LABEL.size
    for number, (begin, end) in enumerate(zip(offsets, offsets[1:])):
        if end - begin < smallest:
            raise ValueError(f"{path}, byte {4 * (number + 2)}: a sample cannot have {end - begin} bytes")
    if offsets[-1] != size_bytes:
        raise ValueError(f"{path}, byte {size_bytes}: its header says {offsets[-1]} bytes; the shard is truncated")
    return _Spans(array("Q", offsets[:-1]), array("Q", offsets[1:]))


def _parse_mds(data: bytes, path: str, begin: int) -> Image:
    name_bytes, image_bytes, _ = _MDS_HEAD.unpack_from(data)
    image_begin = _MDS_HEAD.size + name_bytes
    if image_begin + image_bytes + _MDS_LABEL.size != len(data):
        raise ValueError(f"{path}, byte {begin}: the lengths of the columns are not those of a sample")
    (label,) = _MDS_LABEL.unpack_from(data, image_begin + image_bytes)
    return data[image_begin : image_begin + image_bytes], label


# --- WebDataset: DALI's index, with suffix, offset, size and name of each member -------------------------------------


def _webdataset_spans(_: str, index_path: str) -> _Spans:
    begins, ends = array("Q"), array("Q")
    for line, fields in _index_lines(index_path):
        if line == 1:
            continue
        first, last = fields[1:2], fields[-3:-1]
        begin, last_offset, last_bytes = _numbers(index_path, line, [*first, *last] if len(fields) % 4 == 0 else ())
        begins.append(max(begin - _TAR_BLOCK, 0))
        ends.append(last_offset + last_bytes + -last_bytes % _TAR_BLOCK)
    return _Spans(begins, ends)


def _parse_webdataset(data: bytes, path: str, begin: int) -> Image:
    members: dict[bytes, bytes] = {}
    offset = 0
    while offset < len(data):
        header = data[offset : offset + _TAR_BLOCK]
        fields = re.fullmatch(rb"[0-7]{11}\0", header[124:136]) and re.fullmatch(rb"[0-7]{6}\0 ", header[148:156])
        # The checksum counts itself as eight spaces.
        if not fields or sum(header) - sum(header[148:156]) + 8 * ord(" ") != int(header[148:154], 8):
            raise ValueError(f"{path}, byte {begin + offset}: no member of a tar begins here")
        size = int(header[124:135], 8)
        suffix = header[:100].rstrip(b"\0").rpartition(b".")[2]
        members[suffix] = data[offset + _TAR_BLOCK : offset + _TAR_BLOCK + size]
        offset += _TAR_BLOCK + size + -size % _TAR_BLOCK
    image, label = members.get(b"jpg", members.get(b"png")), members.get(b"cls", b"")
    if offset != len(data) or image is None or not re.fullmatch(b"[0-9]{1,9}", label):
        raise ValueError(f"{path}, byte {begin}: the members are not those of a sample")
    return image, int(label)


# --- TFRecord: DALI's index, with offset and length ------------------------------------------------------------------


def _tfrecord_spans(_: str, index_path: str) -> _Spans:
    begins, ends = array("Q"), array("Q")
    for line, fields in _index_lines(index_path):
        begin, length = _numbers(index_path, line, fields if len(fields) == 2 else ())
        begins.append(begin)
        ends.append(begin + length)
    return _Spans(begins, ends)


def _parse_tfrecord(data: bytes, path: str, begin: int) -> Image:
    if len(data) < _TF_FRAME_BYTES or _TF_LENGTH.unpack_from(data)[0] != len(data) - _TF_FRAME_BYTES:
        raise ValueError(f"{path}, byte {begin}: no record begins here")
    features: dict[bytes, memoryview] = {}
    try:
        for feature_map in _values(memoryview(data)[_TF_HEAD_BYTES:-4], 1):
            for entry in _values(feature_map, 1):
                features[bytes(_value(entry, 1))] = _value(entry, 2)
        image = _value(_value(features[b"image"], 1), 1)
        label = _varint(_value(_value(features[b"label"], 3), 1), 0)[0]
    except LookupError as error:
        raise ValueError(f"{path}, byte {begin}: the record is not an Example with image and label") from error
    return bytes(image), label


def _value(message: memoryview, number: int) -> memoryview:
    for value in _values(message, number):
        return value
    raise LookupError(number)


def _values(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the fields of a protocol buffer that have ``number``; all fields here hold bytes. Raises LookupError."""
    offset = 0
    while offset < len(message):
        tag, offset = _varint(message, offset)
        length, offset = _varint(message, offset)
        if tag & 7 != 2 or offset + length > len(message):
            raise LookupError(tag)
        if tag >> 3 == number:
            yield message[offset : offset + length]
        offset += length


def _varint(message: memoryview, offset: int) -> tuple[int, int]:
    value = 0
    for at in range(_VARINT_BYTES):
        byte = message[offset + at]
        value |= (byte & 0x7F) << 7 * at
        if byte <= 0x7F:
            return value, offset + at + 1
    raise LookupError(offset)


# --- Parquet ---------------------------------------------------------------------------------------------------------


def _parquet_file(path: str) -> Any:
    """Return pyarrow's ParquetFile. Raises ValueError for a damaged footer, which could crash pyarrow."""
    size_bytes = os.path.getsize(path)
    tail = _read_at(path, max(size_bytes - _PARQUET_TAIL.size, 0), _PARQUET_TAIL.size)
    length, magic = _PARQUET_TAIL.unpack(tail) if len(tail) == _PARQUET_TAIL.size else (0, b"")
    begin = size_bytes - _PARQUET_TAIL.size - length
    # The format has no checksum of the footer; the writer puts one before it.
    footer = _read_at(path, begin - 4, length + 8) if magic == b"PAR1" and begin >= 8 else bytes(8)
    if len(footer) != length + 8 or zlib.crc32(footer[4:]) != int.from_bytes(footer[:4], "little"):
        raise ValueError(f"{path}, byte {max(begin, 0)}: the footer is damaged, or the shard is truncated")
    parquet = importlib.import_module("pyarrow.parquet")
    return parquet.ParquetFile(path, page_checksum_verification=True)


@functools.lru_cache(maxsize=_CACHED_GROUPS)
def _row_group(path: str, number: int, _: int) -> tuple[Any, Any, int]:
    """Return images and labels of a row group, and where it begins.

    The process is an argument, for pyarrow's memory is not for a fork.
    """
    with _parquet_file(path) as file:
        begin = file.metadata.row_group(number).column(0).data_page_offset
        try:
            table = file.read_row_group(number, columns=["image", "label"], use_threads=False)
            image = table.column("image").combine_chunks().field("bytes")
            label = table.column("label").combine_chunks()
        except (OSError, ValueError, LookupError) as error:
            raise ValueError(f"{path}, byte {begin}: the row group cannot be read ({error})") from error
    if image.null_count or label.null_count:
        raise ValueError(f"{path}, byte {begin}: the row group lacks an image or a label")
    return image, label, begin


_INDEXES: dict[str, Callable[[str, str], _Spans]] = {
    "recordio": _recordio_spans,
    "mds": _mds_spans,
    "webdataset": _webdataset_spans,
    "tfrecord": _tfrecord_spans,
}
_PARSERS: dict[str, Callable[[bytes, str, int], Image]] = {
    "recordio": _parse_recordio,
    "mds": _parse_mds,
    "webdataset": _parse_webdataset,
    "tfrecord": _parse_tfrecord,
}
