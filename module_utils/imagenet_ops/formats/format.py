"""What the record formats have in common: samples, shards, and the interface of a format.

Packing decodes and encodes each image once, and hands the same samples in the same order to every format. A format
says how a sample is framed, where one shard ends and the next begins, and what readers want beside the shards. It holds
no state: what must survive a kill is the length of the growing file, which packing keeps in its checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, Union

from ansible.module_utils.imagenet_ops.core.files import canonical_json

# What a user does about a file that is not as its format has it.
DAMAGED_TODO = "The file is damaged; restore it from the backup or pack the data set again"

Buffer = Union[bytes, memoryview]


class Sample(NamedTuple):
    """An image as a record holds it.

    ``record_id`` is the id of im2rec.py's list, ``label`` the class index, ``name`` the path below the split
    (``<class>/<file>``), ``image`` the encoded bytes.
    """

    record_id: int
    label: int
    name: str
    image: Buffer


class Entry(NamedTuple):
    """What is kept of a sample without its image: ``image_bytes`` is its length, ``sha256`` its hash in hex."""

    record_id: int
    label: int
    name: str
    image_bytes: int
    sha256: str


class DatasetInfo(NamedTuple):
    """What the metadata of a format say of the whole data set.

    ``classes`` are the names (WNIDs) in the order of their labels, ``words`` has the English words of some of them.
    ``shard_bytes`` is the limit that `Format.is_full` gets: MDS holds it in every shard and in its index.
    """

    name: str
    classes: Sequence[str]
    words: Mapping[str, str]
    shard_bytes: int = 256 << 20


class ShardInfo(NamedTuple):
    """A finished shard: its path below the format's folder, its records, its size and its SHA-256 in hex.

    ``image_bytes`` is the sum of the lengths of its images.
    """

    path: str
    records: int
    size_bytes: int
    sha256: str
    image_bytes: int


class Format(Protocol):
    """A record format. ``name`` is its name in ``data_formats``, and its folder below the root of the data set.

    ``in_place`` is whether the growing file, completed by `seal`, is the shard itself; otherwise `seal` writes
    the shard from it, for formats whose beginning depends on their end. ``overhead_bytes`` is what a record takes at
    most besides its image. ``index_suffix`` is that of a second growing file, which has an `index_line` for each
    record; "" for none. Formats inherit from this class, for the methods that most of them share.
    """

    name: str
    in_place: bool
    overhead_bytes: int
    index_suffix: str = ""

    def tools(self) -> Mapping[str, str]:
        """Return the versions of the libraries that decide its bytes, by name."""
        return {}

    def refusal(self, names: Iterable[str]) -> str:
        """Return why the format cannot hold images of these names (``<class>/<file>``, sorted), or "" if it can.

        Names are what a .lst can hold (`ImageNames`), so that most formats can.
        """
        return ""

    def encode(self, sample: Sample) -> Sequence[Buffer]:
        """Return what is appended to the growing file for ``sample``, in pieces; the image itself is not copied.

        Runs in the threads that decode. Raises OpsError for a sample that the format cannot hold.
        """

    def encode_all(self, samples: Sequence[Sample]) -> Sequence[Sequence[Buffer]]:
        """Return `encode` of each sample."""
        return [self.encode(sample) for sample in samples]

    def index_line(self, record_id: int, offset: int) -> str:
        """Return the line of the growing index for a record that begins at byte ``offset`` of its shard."""
        return ""

    def is_full(self, data_bytes: int, records: int, next_bytes: int, limit_bytes: int) -> bool:
        """Return whether the next sample begins a new shard, by the rule of the format's own library.

        The shard has ``records`` samples of ``data_bytes`` in all, the next would add ``next_bytes``; a shard
        should have ``limit_bytes``. Never true of an empty shard.
        """

    def seal(self, data_path: str, shard_path: str, entries: Collection[Entry], info: DatasetInfo) -> None:
        """Complete a shard, and sync it: ``data_path`` is its growing file, ``entries`` are its samples.

        With ``in_place`` both paths are the same, and what the shard needs is appended (a run that was killed in
        between cuts it off before). Otherwise the shard is written to ``shard_path``. Memory is bounded by a few MiB
        and the entries. Raises OSError and OpsError.
        """

    def sidecar(self, shard_path: str, entries: Collection[Entry]) -> bytes:
        """Return the small file that belongs to a sealed shard (the index that its readers want); b"" for none."""
        return b""

    def sidecar_name(self, shard_name: str) -> str:
        """Return the path of a shard's sidecar below the format's folder; "" for none."""
        return ""

    def shard_name(self, info: DatasetInfo, split: str, shard: int, shards: int) -> str:
        """Return the path of a shard below the format's folder; ``shards`` is how many the split has."""

    def index_files(self, info: DatasetInfo, splits: Mapping[str, Sequence[ShardInfo]]) -> Mapping[str, bytes]:
        """Return the small files that belong to the whole data set, by their path below the format's folder."""

    def can_read(self) -> bool:
        """Return whether what `read` needs is installed; where it is not, `check_frame` looks at a shard."""
        return True

    def check_frame(self, shard_path: str) -> None:
        """Check what can be checked of a shard with the standard library alone. Raises OpsError and OSError."""
        return

    def read(self, shard_path: str, info: DatasetInfo) -> Iterator[Sample]:
        """Yield the samples of a shard in their order, checking all that the format has to check.

        ``record_id`` is -1 where the format does not hold it. Raises OpsError, which names the file and the byte, for
        anything that is not as the format has it; a truncated shard is never taken for the end.
        """


def content_lines(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Yield what the ``content_sha256`` of a split is made of: a line ``name<tab>label<tab>SHA-256`` for each record.

    It names every image by its bytes and stands for the order, so that it is equal for all formats of a split.
    """
    for entry in entries:
        yield f"{entry.name}\t{entry.label}\t{entry.sha256}\n".encode()


def entry_of(sample: Sample) -> Entry:
    """Return the entry of a sample."""
    sha256 = hashlib.sha256(sample.image).hexdigest()
    return Entry(sample.record_id, sample.label, sample.name, len(sample.image), sha256)


def entry_line(entry: Entry) -> bytes:
    """Return the line of an entry in a file of entries; the name, which has no line break (`ImageNames`), is last."""
    return f"{entry.record_id}\t{entry.label}\t{entry.image_bytes}\t{entry.sha256}\t{entry.name}\n".encode()


def parse_entry_line(line: bytes) -> Entry:
    """Return the entry of a line by `entry_line`."""
    record_id, label, image_bytes, sha256, name = line.decode("utf-8").rstrip("\n").split("\t", 4)
    return Entry(int(record_id), int(label), name, int(image_bytes), sha256)


def classes_json(info: DatasetInfo) -> bytes:
    """Return what the labels mean, for formats whose own metadata have no place for that."""
    classes = [
        {"label": label, "name": name, "words": info.words.get(name, "")} for label, name in enumerate(info.classes)
    ]
    return canonical_json({"name": info.name, "classes": classes})
