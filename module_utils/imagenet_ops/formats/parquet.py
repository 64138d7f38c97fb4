"""Parquet as Hugging Face ``datasets`` loads it: an image and the label of its class, and a card that describes them.

Each row is ``image: struct<bytes: binary, path: string>, label: int64``, and the metadata of the schema name the
features, as ``datasets`` itself writes them. ``path`` is the name of the image's file, its class is that of the label.

The images are neither compressed nor put into a dictionary, which would silently drop duplicates, and no column has
statistics: of labels in a shuffled order they would say nothing. For one release of pyarrow the bytes are always the
same. It is imported by the functions that need it, for only the host that packs this format has it.

Each page has its CRC32. The format has none for the footer, and a flipped bit there can crash pyarrow. So the CRC32 of
the footer and its length stands in the four bytes before the footer. No other reader looks there: it finds the footer
from the end of the file, and the pages by what the footer says.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
)

_MAGIC = b"PAR1"
_TAIL_BYTES = 4 + len(_MAGIC)  # the length of the footer, and the magic
_CHECKSUM_BYTES = 4
_ROW_GROUP_ROWS = 100
# Memory holds a row group, so huge images make it shorter.
_ROW_GROUP_BYTES = 256 << 20
_LARGEST_IMAGE_BYTES = 1 << 30  # it is in one page, whose length is 31 bits


class Parquet(Format):
    """The format ``parquet``: ``data/<split>-00000-of-00001.parquet`` and the card README.md."""

    name = "parquet"
    in_place = False
    overhead_bytes = 512  # with the name of the file, and a row of the footer now and then

    def tools(self) -> Mapping[str, str]:
        """Return the version of pyarrow: another one may write other bytes. Raises OpsError where it is missing."""
        return {"pyarrow": str(_pyarrow("").__version__)}

    def encode(self, sample: Sample) -> Sequence[Buffer]:
        """Return the image: the growing file has the images one after another. Raises OpsError for one beyond 1 GiB."""
        if len(sample.image) > _LARGEST_IMAGE_BYTES:
            raise OpsError(
                f"Image {sample.name}",
                f"its {len(sample.image)} bytes are more than a page of Parquet can hold",
                "Exclude the image, or take parquet out of data_formats",
            )
        return [sample.image]

    def is_full(self, data_bytes: int, records: int, next_bytes: int, limit_bytes: int) -> bool:
        """Return whether the images would exceed the limit."""
        return records > 0 and data_bytes + next_bytes > limit_bytes

    def seal(self, data_path: str, shard_path: str, entries: Collection[Entry], info: DatasetInfo) -> None:
        """Write the shard row group by row group, and sync it; what a killed run left is overwritten.

        Raises OpsError without pyarrow, and where the growing file does not have the length of the entries; OSError.
        """
        pyarrow = _pyarrow(shard_path)
        schema = _schema(pyarrow, info)
        # A file of pyarrow's own, for every page would be copied once more for one of Python's.
        with open(data_path, "rb") as data, pyarrow.OSFile(shard_path, "wb") as shard:
            with pyarrow.parquet.ParquetWriter(
                shard,
                schema,
                compression="none",
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
            ) as writer:
                for rows in _row_groups(entries):
                    row_bytes = sum(entry.image_bytes for entry in rows)
                    images = data.read(row_bytes)
                    if len(images) < row_bytes:
                        raise _changed(data, data_path, entries)
                    writer.write_table(_table(pyarrow, schema, rows, images), row_group_size=len(rows))
            if data.read(1):
                raise _changed(data, data_path, entries)
        _complete(shard_path)

    def shard_name(self, info: DatasetInfo, split: str, shard: int, shards: int) -> str:
        """Return the name that ``datasets`` gives to a shard."""
        return f"data/{split}-{shard:05}-of-{shards:05}.parquet"

    def index_files(self, info: DatasetInfo, splits: Mapping[str, Sequence[ShardInfo]]) -> Mapping[str, bytes]:
        """Return README.md, whose head ``datasets`` reads; a split without shards is not in it."""
        present = {split: shards for split, shards in splits.items() if shards}
        return {"README.md": "\n".join(["---", *_head(info, present), "---", "", *_words(info), ""]).encode()}

    def can_read(self) -> bool:
        """Return whether pyarrow is installed."""
        return importlib.util.find_spec("pyarrow") is not None

    def check_frame(self, shard_path: str) -> None:
        """Check the ends of a shard and the checksum of its footer; see `Format`."""
        check_frame(shard_path)

    def read(self, shard_path: str, info: DatasetInfo) -> Iterator[Sample]:
        """Yield the samples, with the ids -1. Raises OpsError where pyarrow is not installed, too."""
        footer_begin = check_frame(shard_path)
        pyarrow = _pyarrow(shard_path)
        with _opened(pyarrow, shard_path, footer_begin) as file:
            if not file.schema_arrow.equals(_schema(pyarrow, info), check_metadata=True):
                raise _damaged(shard_path, footer_begin, "the columns and classes are not those of this data set")
            for index in range(file.num_row_groups):
                yield from _samples(*_read_row_group(pyarrow, file, index, shard_path), info, shard_path)


def check_frame(path: str) -> int:
    """Return where the footer of a shard begins, without pyarrow.

    Raises OpsError where the magic at either end, the length of the footer or its checksum is wrong; OSError.
    """
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise _damaged(path, 0, "no Parquet file begins here")
        footer_begin = _footer_begin(file, path)
        file.seek(footer_begin - _CHECKSUM_BYTES)
        checksum = file.read(_CHECKSUM_BYTES)
        footer = file.read()[: -len(_MAGIC)]
    if footer_begin < len(_MAGIC) + _CHECKSUM_BYTES or checksum != _checksum(footer):
        raise _damaged(path, footer_begin, "the checksum of the footer is not that before it")
    return footer_begin


def _footer_begin(file: BinaryIO, path: str) -> int:
    size_bytes = os.fstat(file.fileno()).st_size
    file.seek(max(size_bytes - _TAIL_BYTES, 0))
    tail = file.read(_TAIL_BYTES)
    if size_bytes < len(_MAGIC) + _TAIL_BYTES or tail[4:] != _MAGIC:
        raise _damaged(path, size_bytes, "the file does not end as a Parquet file does; it is truncated")
    footer_bytes = int.from_bytes(tail[:4], "little")
    if footer_bytes > size_bytes - _TAIL_BYTES - len(_MAGIC):
        raise _damaged(path, size_bytes - _TAIL_BYTES, f"the footer cannot have {footer_bytes} bytes")
    return size_bytes - _TAIL_BYTES - footer_bytes


def _checksum(footer: bytes) -> bytes:
    return zlib.crc32(footer).to_bytes(_CHECKSUM_BYTES, "little")


def _complete(path: str) -> None:
    """Put the checksum before the footer that pyarrow wrote, and sync the file."""
    with open(path, "r+b") as file:
        begin = _footer_begin(file, path)
        file.seek(begin)
        footer = file.read()
        file.seek(begin)
        file.write(_checksum(footer[: -len(_MAGIC)]) + footer)
        file.flush()
        os.fsync(file.fileno())


def _pyarrow(path: str) -> Any:
    try:
        import pyarrow.parquet  # noqa: PLC0415  only the host that packs this format has it
    except ImportError as error:
        raise OpsError(
            f"Parquet shard {path}" if path else "Format parquet",
            f"pyarrow is not installed ({error})",
            "Run the role python_environment with python_environment_purpose: parquet on this host",
        ) from error
    return pyarrow


def _schema(pyarrow: Any, info: DatasetInfo) -> Any:
    features = {"image": {"_type": "Image"}, "label": {"names": list(info.classes), "_type": "ClassLabel"}}
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    columns = pyarrow.schema({"image": image, "label": pyarrow.int64()})
    return columns.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _changed(data: BinaryIO, path: str, entries: Collection[Entry]) -> OpsError:
    return OpsError(
        f"Growing file {path}",
        f"it has {os.fstat(data.fileno()).st_size} bytes, but its {len(entries)} records make "
        f"{sum(entry.image_bytes for entry in entries)}",
        "Something else changes it; stop that, then run again",
    )


def _row_groups(entries: Iterable[Entry]) -> Iterator[Sequence[Entry]]:
    rows: list[Entry] = []
    size_bytes = 0
    for entry in entries:
        if rows and (len(rows) == _ROW_GROUP_ROWS or size_bytes + entry.image_bytes > _ROW_GROUP_BYTES):
            yield rows
            rows, size_bytes = [], 0
        rows.append(entry)
        size_bytes += entry.image_bytes
    if rows:
        yield rows


def _table(pyarrow: Any, schema: Any, rows: Sequence[Entry], images: bytes) -> Any:
    """Return a row group; the images are not copied."""
    ends = accumulate((entry.image_bytes for entry in rows), initial=0)
    offsets = struct.pack(f"<{len(rows) + 1}i", *ends)
    buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(images)]
    contents = pyarrow.Array.from_buffers(pyarrow.binary(), len(rows), buffers)
    paths = pyarrow.array([entry.name.partition("/")[2] for entry in rows], pyarrow.string())
    labels = pyarrow.array([entry.label for entry in rows], pyarrow.int64())
    image = pyarrow.StructArray.from_arrays([contents, paths], fields=list(schema.field("image").type))
    return pyarrow.table([image, labels], schema=schema)


def _opened(pyarrow: Any, path: str, footer_begin: int) -> Any:
    try:
        return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
    except _failures(pyarrow) as error:
        raise _damaged(path, footer_begin, f"the footer cannot be read ({_line(error)})") from error


def _read_row_group(pyarrow: Any, file: Any, index: int, path: str) -> tuple[Any, int, int]:
    """Return a row group, how many rows it has, and where it begins."""
    group = file.metadata.row_group(index)
    begin = group.column(0).data_page_offset
    try:
        table = file.read_row_group(index, use_threads=False)
        table.validate(full=True)
    except _failures(pyarrow) as error:
        raise _damaged(path, begin, f"the row group cannot be read ({_line(error)})") from error
    return table, group.num_rows, begin


def _failures(pyarrow: Any) -> tuple[type[Exception], ...]:
    """Return what pyarrow raises for damage."""
    return (pyarrow.ArrowException, OSError, ValueError)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _samples(table: Any, rows: int, begin: int, info: DatasetInfo, path: str) -> Iterator[Sample]:
    image, labels = (table.column(name).combine_chunks() for name in ("image", "label"))
    columns = [image.field("bytes"), image.field("path"), labels]
    if [(len(column), column.null_count) for column in [image, *columns]] != [(rows, 0)] * 4:
        raise _damaged(path, begin, f"a column of the row group does not have {rows} values")
    for content, file, label in zip(columns[0], columns[1].to_pylist(), labels.to_pylist()):
        if not 0 <= label < len(info.classes):
            raise _damaged(path, begin, f"the row group has the label {label}, and {len(info.classes)} are possible")
        yield Sample(-1, label, f"{info.classes[label]}/{file}", memoryview(content.as_buffer()))


def _head(info: DatasetInfo, splits: Mapping[str, Sequence[ShardInfo]]) -> Iterator[str]:
    """Yield the lines of YAML in which ``datasets`` finds the files of the splits, the features and the counts."""
    yield f"pretty_name: {_quoted(info.name)}"
    yield "configs:"
    yield "- config_name: default"
    yield "  data_files:"
    for split in splits:
        yield f"  - split: {_quoted(split)}"
        yield f"    path: {_quoted(f'data/{split}-*')}"
    yield "dataset_info:"
    yield "  features:"
    yield "  - name: image"
    yield "    dtype: image"
    yield "  - name: label"
    yield "    dtype:"
    yield "      class_label:"
    yield "        names:"
    for label, name in enumerate(info.classes):
        yield f"          '{label}': {_quoted(name)}"
    yield "  splits:"
    for split, shards in splits.items():
        yield f"  - name: {_quoted(split)}"
        yield f"    num_bytes: {sum(shard.image_bytes for shard in shards)}"
        yield f"    num_examples: {sum(shard.records for shard in shards)}"
    size_bytes = sum(shard.size_bytes for shards in splits.values() for shard in shards)
    yield f"  download_size: {size_bytes}"
    yield f"  dataset_size: {sum(shard.image_bytes for shards in splits.values() for shard in shards)}"


def _words(info: DatasetInfo) -> Iterator[str]:
    """Yield the lines of a table of the classes."""
    yield f"# {info.name}"
    yield ""
    yield "| label | class | words |"
    yield "|---|---|---|"
    for label, name in enumerate(info.classes):
        yield f"| {label} | {_cell(name)} | {_cell(info.words.get(name, ''))} |"


def _quoted(text: str) -> str:
    r"""Return ``text`` as YAML in double quotes; what does not print is escaped as \U with 8 hex digits."""
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text) + '"'


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _damaged(path: str, offset: int, why: str) -> OpsError:
    return OpsError(
        f"Parquet shard {path}, byte {offset}",
        why,
        DAMAGED_TODO,
    )


PARQUET = Parquet()
