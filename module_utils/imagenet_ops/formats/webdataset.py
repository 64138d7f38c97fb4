"""The WebDataset format: plain tar files, in which the members of a sample share their name up to its first dot.

A shard is byte for byte what webdataset's TarWriter writes with ``mtime=0`` of samples with the keys ``cls`` (the
label), ``jpg`` or ``png`` (the image) and ``json`` (name, id and label); tests/judges compares the two. Each shard has
the index that DALI's wds2idx makes. ``_info.json`` is for timm, ``<split>.wids.json`` for wids.

A tar has no checksum of what its members hold: damage within an image shows in the manifest's SHA-256 alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

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
    classes_json,
)

_BLOCK_BYTES = 512
_END_BYTES = 2 * _BLOCK_BYTES  # of zeros, after the last member
_RECORD_BYTES = 20 * _BLOCK_BYTES  # to a multiple of which Python's tarfile, as tar, fills the file
_MAX_MEMBER_BYTES = (1 << 33) - 1  # eleven octal digits
# A member's name fits the 100 bytes of a header with a zero at its end: wids and DALI do not read longer ones.
_MAX_KEY_BYTES = 99 - len(".json")
_HASH_DIGITS = 32

# POSIX.1-1988: name; mode, uid, gid; size; mtime; checksum; type, link, magic and version, uname, gname, the rest. The
# names of the owner are webdataset's, for who packed is nobody's business.
_MODE = b"0000444\x000000000\x000000000\0"
_MTIME = b"00000000000\0"
_REST = struct.pack("c100s8s32s32s183x", b"0", b"", b"ustar\x0000", b"bigdata", b"bigdata")
_FIXED_SUM = sum(_MODE + _MTIME + b" " * 8 + _REST)  # the checksum counts its own field as spaces
_NAME_BYTES = 100
_SIZE = slice(124, 136)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class _Member(NamedTuple):
    """A member of a shard: where its header begins, its name and what it holds."""

    offset: int
    name: str
    content: bytes


class WebDataset(Format):
    """WebDataset shards; see `Format` for the methods."""

    name = "webdataset"
    in_place = True
    # Three headers, the label, the JSON (a name has at most 255 bytes, 6 each where they are escaped), and padding.
    overhead_bytes = 10 * _BLOCK_BYTES

    def refusal(self, names: Iterable[str]) -> str:
        """Return which two images of a class have the same key: samples of one key are one sample to a reader."""
        class_name = ""
        seen: dict[str, str] = {}
        for name in names:
            if name.partition("/")[0] != class_name:
                class_name = name.partition("/")[0]
                seen.clear()
            other = seen.setdefault(_key(name), name)
            if other != name:
                return f"{other} and {name} differ in no more than the extension, which is no part of a WebDataset key"
        return ""

    def encode(self, sample: Sample) -> Sequence[Buffer]:
        """Return the three members of a sample in the order of their suffixes, in which ShardWriter sorts them.

        Raises OpsError for an image of 8 GiB or more.
        """
        if len(sample.image) > _MAX_MEMBER_BYTES:
            raise OpsError(
                f"Image {sample.name}",
                f"it has {len(sample.image)} bytes, and a member of a WebDataset shard at most {_MAX_MEMBER_BYTES}",
                "Resize the images, or leave webdataset out of data_formats",
            )
        key, suffix = _key(sample.name), _suffix(sample.image)
        label = _small_member(f"{key}.cls", str(sample.label).encode())
        metadata = _small_member(f"{key}.json", _metadata(sample))
        header = _header(f"{key}.{suffix}", len(sample.image))
        padding = bytes(-len(sample.image) % _BLOCK_BYTES)
        if suffix < "json":
            return [label + header, sample.image, padding + metadata]
        return [label + metadata + header, sample.image, padding]

    def is_full(self, data_bytes: int, records: int, next_bytes: int, limit_bytes: int) -> bool:
        """Return whether the shard has reached the limit: ShardWriter's rule, by which the last sample exceeds it."""
        return records > 0 and data_bytes >= limit_bytes

    def seal(self, data_path: str, shard_path: str, entries: Collection[Entry], info: DatasetInfo) -> None:
        """Append the end of a tar."""
        with open(shard_path, "ab") as file:
            file.write(bytes(_end_bytes(file.tell())))
            file.flush()
            os.fsync(file.fileno())

    def sidecar(self, shard_path: str, entries: Collection[Entry]) -> bytes:
        """Return the index of DALI's wds2idx: for each sample, suffix, offset, size and name of its members."""
        lines = [f"v1.2 {len(entries)}\n"]
        with open(shard_path, "rb") as file:
            offset = 0
            for entry in entries:
                key = _key(entry.name)
                # The label's member has two blocks, and the name of the next one is that of the image or of the JSON.
                name = os.pread(file.fileno(), _NAME_BYTES, offset + 2 * _BLOCK_BYTES).rstrip(b"\0")
                suffix = "jpg" if name == f"{key}.jpg".encode() else "png"
                sizes = {"cls": len(str(entry.label)), suffix: entry.image_bytes, "json": len(_metadata(entry))}
                line = []
                for member in sorted(sizes):
                    line.append(f"{member} {offset + _BLOCK_BYTES} {sizes[member]} {key}.{member}")
                    offset += _BLOCK_BYTES + _blocks(sizes[member])
                lines.append(" ".join(line) + "\n")
        return "".join(lines).encode("ascii")

    def sidecar_name(self, shard_name: str) -> str:
        """Return the name of a shard's index."""
        return f"{os.path.splitext(shard_name)[0]}.idx"

    def shard_name(self, info: DatasetInfo, split: str, shard: int, shards: int) -> str:
        """Return the name of a shard."""
        return f"{split}-{shard:06d}.tar"

    def index_files(self, info: DatasetInfo, splits: Mapping[str, Sequence[ShardInfo]]) -> Mapping[str, bytes]:
        """Return timm's list of all shards, wids' list of each split's, and what the labels mean."""
        files = {
            "_info.json": canonical_json({"splits": {split: _split_info(split, of) for split, of in splits.items()}}),
            "classes.json": classes_json(info),
        }
        for split, shards in splits.items():
            shard_list = [{"url": of.path, "nsamples": of.records, "filesize": of.size_bytes} for of in shards]
            files[f"{split}.wids.json"] = canonical_json(
                {"wids_version": 1, "name": f"{info.name}-{split}", "shardlist": shard_list}
            )
        return files

    def read(self, shard_path: str, info: DatasetInfo) -> Iterator[Sample]:
        """Yield the samples of a shard, whose every byte outside of the images must be as `encode` writes it."""
        with open(shard_path, "rb") as file:
            reader = _ShardReader(file, shard_path)
            while (label := reader.member()) is not None:
                members = [label, reader.next_member(), reader.next_member()]
                image, metadata = sorted(members[1:], key=lambda member: member.name.endswith(".json"))
                sample = _sample(metadata, image.content)
                if sample is None or _metadata(sample) != metadata.content:
                    raise reader.error(metadata.offset, f"{metadata.name} is not the JSON of a sample")
                if not _is_label(sample, info):
                    why = f"{metadata.name} has the label {sample.label}, which is not that of {sample.name}"
                    raise reader.error(metadata.offset, why)
                if label.content != str(sample.label).encode():
                    raise reader.error(label.offset, f"{label.name} does not have the label of {metadata.name}")
                for member, suffix in zip(members, sorted(["cls", _suffix(sample.image), "json"])):
                    if member.name != f"{_key(sample.name)}.{suffix}":
                        why = f"found {member.name}, expected {_key(sample.name)}.{suffix}"
                        raise reader.error(member.offset, why)
                yield sample


class _ShardReader:
    """Reads the members of a shard one after another, and its end."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self._path = path
        self._offset = 0
        self._size = os.fstat(file.fileno()).st_size

    def member(self) -> _Member | None:
        """Return the next member; None at the end of the shard. Raises OpsError for anything else."""
        header = self._file.read(_BLOCK_BYTES)
        if len(header) < _BLOCK_BYTES:
            raise self.error(self._offset + len(header), "the shard is truncated: the end of the tar is missing")
        if not any(header):
            self._expect_end()
            return None
        size_field = header[_SIZE]
        name = header[:_NAME_BYTES].rstrip(b"\0").decode("ascii", "replace")
        size = int(size_field[:-1], 8) if re.fullmatch(rb"[0-7]{11}\0", size_field) else 0
        if not name.isascii() or header != _header(name, size):
            raise self.error(self._offset, "no member begins here: the header of the tar is damaged")
        filled = _blocks(size)
        if filled > self._size - self._offset - _BLOCK_BYTES:
            raise self.error(
                self._size, f"the shard is truncated: {name} begins at byte {self._offset} and is cut short"
            )
        content = self._file.read(filled)
        if any(content[size:]):
            raise self.error(self._offset + _BLOCK_BYTES + size, f"the padding of {name} is not zero")
        member = _Member(self._offset, name, content[:size])
        self._offset += _BLOCK_BYTES + filled
        return member

    def next_member(self) -> _Member:
        """Return the next member of a sample that has begun. Raises OpsError where the shard ends instead."""
        offset = self._offset
        member = self.member()
        if member is None:
            raise self.error(offset, "the tar ends within a sample")
        return member

    def _expect_end(self) -> None:
        """Check all that follows the last member; its first block was zero."""
        expected = self._offset + _end_bytes(self._offset)
        if self._size != expected:
            why = (
                f"the tar ends at byte {self._offset}, so that the shard has {expected} bytes, and it has {self._size}"
            )
            raise self.error(min(self._size, expected), why)
        offset = self._offset + _BLOCK_BYTES
        rest = self._file.read(expected - offset)
        if any(rest):
            raise self.error(offset + len(rest) - len(rest.lstrip(b"\0")), "there are bytes after the end of the tar")

    def error(self, offset: int, why: str) -> OpsError:
        """Return the error for what is at ``offset``."""
        return OpsError(
            f"WebDataset shard {self._path}, byte {offset}",
            why,
            DAMAGED_TODO,
        )


def _key(name: str) -> str:
    """Return the name of a sample in a shard: its path without the extension, in letters that every reader takes.

    The members' names are split at their first dot, and DALI's index at spaces, so these and more are
    percent-encoded. What is then too long ends with a hash; the JSON has the whole name.
    """
    stem = os.path.splitext(name)[0]
    key = quote(stem, safe="/").replace(".", "%2E")
    if len(key) <= _MAX_KEY_BYTES:
        return key
    digest = hashlib.sha256(stem.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{key[: _MAX_KEY_BYTES - _HASH_DIGITS - 1]}~{digest}"


def _suffix(image: Buffer) -> str:
    return "png" if bytes(image[: len(_PNG_SIGNATURE)]) == _PNG_SIGNATURE else "jpg"


def _metadata(sample: Sample | Entry) -> bytes:
    """Return the JSON of a sample, as webdataset's own encoder writes it."""
    name = json.dumps(sample.name)
    return f'{{"filename": {name}, "id": {sample.record_id}, "label": {sample.label}}}'.encode("ascii")


def _sample(metadata: _Member, image: bytes) -> Sample | None:
    """Return the sample that the JSON of a shard describes; None if it describes none."""
    try:
        found: Any = json.loads(metadata.content)
        sample = Sample(found["id"], found["label"], found["filename"], image)
        sample.name.encode()  # JSON can hold what is no text
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    kinds = (type(sample.record_id), type(sample.label), type(sample.name))
    return sample if kinds == (int, int, str) else None


def _is_label(sample: Sample, info: DatasetInfo) -> bool:
    return 0 <= sample.label < len(info.classes) and info.classes[sample.label] == sample.name.partition("/")[0]


def _header(name: str, size: int) -> bytes:
    # In pieces that are known beforehand: struct, and the sum of all 512 bytes, would take three times as long.
    name_bytes, size_field = name.encode("ascii"), b"%011o\0" % size
    checksum = _FIXED_SUM + sum(name_bytes) + sum(size_field)
    return b"".join((name_bytes.ljust(_NAME_BYTES, b"\0"), _MODE, size_field, _MTIME, b"%06o\0 " % checksum, _REST))


def _blocks(size: int) -> int:
    return size + -size % _BLOCK_BYTES


def _small_member(name: str, content: bytes) -> bytes:
    return _header(name, len(content)) + content + bytes(-len(content) % _BLOCK_BYTES)


def _end_bytes(offset: int) -> int:
    """Return how many zeros follow the last member, which ends at ``offset``."""
    return _END_BYTES + -(offset + _END_BYTES) % _RECORD_BYTES


def _split_info(split: str, shards: Sequence[ShardInfo]) -> Mapping[str, Any]:
    return {
        "name": split,
        "num_samples": sum(shard.records for shard in shards),
        "filenames": [shard.path for shard in shards],
        "shard_lengths": [shard.records for shard in shards],
    }


WEBDATASET = WebDataset()
