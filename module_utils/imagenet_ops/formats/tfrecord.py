"""The TFRecord format in the layout of TensorFlow Datasets, with the features of its imagenet2012.

A record is ``u64 length, u32 checksum of these 8 bytes, data, u32 checksum of the data``, little-endian; a checksum is
a CRC32C, masked as TensorFlow masks it. The data is a tf.train.Example: a protocol buffer, of which this module has the
few parts that it needs. tests/judges compares the bytes with those of TensorFlow, and has TFDS read the data set.

``tfds.load(name, data_dir=".../tfrecord")`` reads the data set. Each shard has the index of DALI's tfrecord2idx, in a
folder of its own, for many programs read all that is named ``*.tfrecord*``.

The format has no end: that a shard was cut between two records shows in its size in the manifest alone.
"""

from __future__ import annotations

import functools
import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import canonical_json
from ansible.module_utils.imagenet_ops.formats.format import (
    DAMAGED_TODO,
    Buffer,
    DatasetInfo,
    Entry,
    Format,
    Sample,
    ShardInfo,
)

_VERSION = "1.0.0"
_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEAD_BYTES = _LENGTH.size + _CHECKSUM.size
_FRAME_BYTES = _HEAD_BYTES + _CHECKSUM.size
_MASK_DELTA = 0xA282EAD8
_MAX_DATA_BYTES = (1 << 31) - 1  # of a protocol buffer, in every implementation

# How fields 1 to 3 begin where they hold bytes: the number, and the wire type in the lower 3 bits. Here all do, for a
# message in a message is bytes, and so is a list of numbers.
_FIRST, _SECOND, _THIRD = 0x0A, 0x12, 0x1A
_MAX_VARINT_BYTES = 10

_FEATURES = "tensorflow_datasets.core.features"


class TfRecord(Format):
    """TFRecord shards; see `Format` for the methods."""

    name = "tfrecord"
    in_place = True
    overhead_bytes = _FRAME_BYTES + 512  # with the name of the file and the keys of the features

    def encode(self, sample: Sample) -> Sequence[Buffer]:
        """Return the record of a sample. Raises OpsError for an image of 2 GiB or more."""
        before, after = _around_image(sample, len(sample.image))
        data_bytes = len(before) + len(sample.image) + len(after)
        if data_bytes > _MAX_DATA_BYTES:
            raise OpsError(
                f"Image {sample.name}",
                f"it has {len(sample.image)} bytes, and a record of TFRecord holds at most {_MAX_DATA_BYTES}",
                "Resize the images, or leave tfrecord out of data_formats",
            )
        length = _LENGTH.pack(data_bytes)
        google_crc32c = _google_crc32c()
        checksum = google_crc32c.value(before)
        checksum = google_crc32c.extend(checksum, bytes(sample.image))  # bytes are not copied, and it takes no views
        checksum = google_crc32c.extend(checksum, after)
        return [
            length + _masked(google_crc32c.value(length)) + before,
            sample.image,
            after + _masked(checksum),
        ]

    def is_full(self, data_bytes: int, records: int, next_bytes: int, limit_bytes: int) -> bool:
        """Return whether the next sample would exceed the limit; no library has a rule for that."""
        return records > 0 and data_bytes + next_bytes > limit_bytes

    def seal(self, data_path: str, shard_path: str, entries: Collection[Entry], info: DatasetInfo) -> None:
        """Sync the shard: nothing follows its last record."""
        with open(shard_path, "rb+") as file:
            os.fsync(file.fileno())

    def sidecar(self, shard_path: str, entries: Collection[Entry]) -> bytes:
        """Return the index of DALI's tfrecord2idx: offset and length of each record."""
        lines = []
        offset = 0
        for entry in entries:
            record_bytes = _FRAME_BYTES + sum(map(len, _around_image(entry, entry.image_bytes))) + entry.image_bytes
            lines.append(f"{offset} {record_bytes}\n")
            offset += record_bytes
        return "".join(lines).encode("ascii")

    def sidecar_name(self, shard_name: str) -> str:
        """Return the path of a shard's index."""
        folder, name = os.path.split(shard_name)
        return f"{folder}/index/{name}.idx"

    def shard_name(self, info: DatasetInfo, split: str, shard: int, shards: int) -> str:
        """Return the path of a shard, as TFDS finds it."""
        return f"{_folder(info)}/{_tfds_name(info)}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"

    def index_files(self, info: DatasetInfo, splits: Mapping[str, Sequence[ShardInfo]]) -> Mapping[str, bytes]:
        """Return what TFDS reads beside the shards, and what the labels mean."""
        folder = _folder(info)
        words = "".join(f"{info.words.get(name, '')}\n" for name in info.classes)
        return {
            f"{folder}/dataset_info.json": canonical_json(_dataset_info(info, splits)),
            f"{folder}/features.json": canonical_json(_features(len(info.classes))),
            f"{folder}/label.labels.txt": "".join(f"{name}\n" for name in info.classes).encode(),
            f"{folder}/label.words.txt": words.encode(),
        }

    def read(self, shard_path: str, info: DatasetInfo) -> Iterator[Sample]:
        """Yield the samples of a shard, both checksums of each record checked."""
        with open(shard_path, "rb") as file:
            reader = _RecordReader(file, shard_path)
            while (data := reader.read()) is not None:
                try:
                    sample = _sample(data, info)
                except ValueError as error:
                    raise reader.error(str(error)) from error
                yield sample


class _RecordReader:
    """Reads the data of records one after another."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self._path = path
        self._offset = 0  # of the record that was read last
        self._next = 0
        self._size = os.fstat(file.fileno()).st_size
        self._crc32c = _google_crc32c().value

    def read(self) -> memoryview | None:
        """Return the data of the next record; None at the end of the file. Raises OpsError for a damaged one."""
        self._offset = self._next
        head = self._file.read(_HEAD_BYTES)
        if not head:
            return None
        if len(head) < _HEAD_BYTES:
            raise self.error(f"the file ends within the first {_HEAD_BYTES} bytes of a record")
        length = head[: _LENGTH.size]
        if head[_LENGTH.size :] != _masked(self._crc32c(length)):
            raise self.error("no record begins here: the checksum of its length is wrong")
        (data_bytes,) = _LENGTH.unpack(length)
        self._next += _FRAME_BYTES + data_bytes
        if self._next > self._size:
            found = self._size - self._offset
            raise self.error(f"the record is truncated: {found} of {_FRAME_BYTES + data_bytes} bytes")
        data = self._file.read(data_bytes)
        if self._file.read(_CHECKSUM.size) != _masked(self._crc32c(data)):
            raise self.error("checksum mismatch of the record's data")
        return memoryview(data)

    def error(self, why: str) -> OpsError:
        """Return the error for the record that was read last."""
        return OpsError(
            f"TFRecord file {self._path}, byte {self._offset}",
            why,
            DAMAGED_TODO,
        )


@functools.cache
def _google_crc32c() -> Any:
    """Return the module google_crc32c, which MXNet's environment lacks. Raises OpsError where it is missing."""
    try:
        import google_crc32c  # noqa: PLC0415  only who reads or writes this format needs it
    except ImportError as error:
        raise OpsError(
            "Format tfrecord",
            f"google-crc32c is not installed ({error})",
            "Run the role python_environment on this host",
        ) from error
    return google_crc32c


def _masked(checksum: int) -> bytes:
    return _CHECKSUM.pack(((checksum >> 15 | checksum << 17) + _MASK_DELTA) & 0xFFFFFFFF)


# --- Protocol buffers ------------------------------------------------------------------------------------------------


def _around_image(sample: Sample | Entry, image_bytes: int) -> tuple[bytes, bytes]:
    """Return what precedes and what follows the image in the Example of a sample.

    An Example is a map of features, of which each is a list, here of one value. They are in the order of their names.
    """
    file_name = _field(_FIRST, _field(_FIRST, sample.name.rpartition("/")[2].encode()))
    image = _field(_FIRST, _field(_FIRST, b"", image_bytes), image_bytes)
    image = _field(_FIRST, _IMAGE_KEY + _field(_SECOND, image, image_bytes), image_bytes)
    after = _label_entry(sample.label)
    before = _field(_FIRST, _FILE_NAME_KEY + _field(_SECOND, file_name)) + image
    return _field(_FIRST, before, image_bytes + len(after)), after


@functools.lru_cache(maxsize=1024)
def _label_entry(label: int) -> bytes:
    feature = _field(_THIRD, _field(_FIRST, _varint(label)))
    return _field(_FIRST, _field(_FIRST, b"label") + _field(_SECOND, feature))


def _field(tag: int, content: bytes, more_bytes: int = 0) -> bytes:
    """Return the begin of a field: its length counts ``content`` and the ``more_bytes`` that follow it."""
    return _BYTES[tag] + _varint(len(content) + more_bytes) + content


def _varint(value: int) -> bytes:
    if value < len(_BYTES):
        return _BYTES[value]
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


# The varints of one byte, which most are, and the tags.
_BYTES = [bytes([value]) for value in range(0x80)]
_IMAGE_KEY = _field(_FIRST, b"image")
_FILE_NAME_KEY = _field(_FIRST, b"file_name")


def _sample(data: memoryview, info: DatasetInfo) -> Sample:
    """Return the sample of an Example. Raises ValueError for what is not one with the three features."""
    features = {}
    for map_of_features in _values(data, _FIRST):
        for entry in _values(map_of_features, _FIRST):
            features[bytes(_value(entry, _FIRST))] = _value(entry, _SECOND)
    image = _value(_value(_feature(features, b"image"), _FIRST), _FIRST)
    file_name = bytes(_value(_value(_feature(features, b"file_name"), _FIRST), _FIRST))
    numbers = _value(_value(_feature(features, b"label"), _THIRD), _FIRST)
    label, end = _read_varint(numbers, 0)
    if end != len(numbers) or label >= len(info.classes):
        raise ValueError(f"its label is not one of the {len(info.classes)} of the data set")
    try:
        return Sample(-1, label, f"{info.classes[label]}/{file_name.decode()}", image)
    except UnicodeDecodeError as error:
        raise ValueError("its file_name is not UTF-8") from error


def _feature(features: Mapping[bytes, memoryview], key: bytes) -> memoryview:
    if key not in features:
        raise ValueError(f"it has no feature {key.decode()}")
    return features[key]


def _value(message: memoryview, tag: int) -> memoryview:
    """Return the one field of a message that begins with ``tag``. Raises ValueError if it has none, or several."""
    values = list(_values(message, tag))
    if len(values) != 1:
        raise ValueError(f"it has {len(values)} values where the features of imagenet2012 have one")
    return values[0]


def _values(message: memoryview, tag: int) -> Iterator[memoryview]:
    """Yield the fields of a message that begin with ``tag``. Raises ValueError for what is no message of bytes."""
    offset = 0
    while offset < len(message):
        found, offset = _read_varint(message, offset)
        length, offset = _read_varint(message, offset)
        if found & 7 != tag & 7 or offset + length > len(message):
            raise ValueError("it is not an Example")
        if found == tag:
            yield message[offset : offset + length]
        offset += length


def _read_varint(message: memoryview, offset: int) -> tuple[int, int]:
    """Return the number at ``offset``, and the offset that follows it. Raises ValueError where it does not end."""
    value = 0
    for place, byte in enumerate(message[offset : offset + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * place
        if byte <= 0x7F:
            return value, offset + place + 1
    raise ValueError("it is not an Example")


# --- TFDS ------------------------------------------------------------------------------------------------------------


def _tfds_name(info: DatasetInfo) -> str:
    """Return the name of the data set as TFDS takes one: letters, digits and underscores, a letter first."""
    name = re.sub(r"[^a-z0-9_]", "_", info.name.lower())
    return name if name[:1].isalpha() else f"d{name}"


def _folder(info: DatasetInfo) -> str:
    return f"{_tfds_name(info)}/{_VERSION}"


def _dataset_info(info: DatasetInfo, splits: Mapping[str, Sequence[ShardInfo]]) -> Mapping[str, object]:
    """Return the JSON of tensorflow_datasets.DatasetInfo, in which integers of 64 bits are texts."""
    return {
        "name": _tfds_name(info),
        "version": _VERSION,
        "fileFormat": "tfrecord",
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(sum(shard.size_bytes - _FRAME_BYTES * shard.records for shard in shards)),
                "shardLengths": [str(shard.records) for shard in shards],
            }
            for split, shards in splits.items()
        ],
    }


def _features(classes: int) -> Mapping[str, object]:
    """Return the JSON of a tensorflow_datasets.features.FeaturesDict."""
    return {
        "pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict",
        "featuresDict": {
            "features": {
                "file_name": {"pythonClassName": f"{_FEATURES}.text_feature.Text", "text": {}},
                "image": {
                    "pythonClassName": f"{_FEATURES}.image_feature.Image",
                    "image": {
                        "dtype": "uint8",
                        "encodingFormat": "jpeg",
                        "shape": {"dimensions": ["-1", "-1", "3"]},
                    },
                },
                "label": {
                    "pythonClassName": f"{_FEATURES}.class_label_feature.ClassLabel",
                    "classLabel": {"numClasses": str(classes)},
                },
            }
        },
    }


TFRECORD = TfRecord()
