"""The shards of one format while a split is packed: growing files, where one ends and the next begins, and hashes.

A shard grows in a hidden file that ends in ``.part``. What is not in place (`Format.in_place`) is sealed into another,
which ends in ``.sealed``, and the growing file stays until a checkpoint says that the shard is sealed. All get their
names when the split is complete, for the names of some formats hold the number of shards.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import threading
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ansible.module_utils.imagenet_ops.core.checkpoint import open_part, sync_all
from ansible.module_utils.imagenet_ops.core.files import fsync_directory, write_atomic
from ansible.module_utils.imagenet_ops.core.hashing import FollowingHash, hash_file
from ansible.module_utils.imagenet_ops.formats.format import Buffer, DatasetInfo, Entry, Format, parse_entry_line
from ansible.module_utils.imagenet_ops.formats.recordio import RECORDIO, write_all

# Of the end of a growing file, as much as a checkpoint keeps a hash of: it shows that the file is the one it describes.
_TAIL_BYTES = 64 * 1024
_MOST_BUFFERS = 1024  # of one writev (IOV_MAX)


class OutputFile(NamedTuple):
    """A finished file; the modification time shows a later run whether it was changed."""

    size_bytes: int
    sha256: str
    mtime_ns: int


class SealedShard(NamedTuple):
    """A shard that is complete: its number of records, the sum of their images in bytes, and its files.

    ``files`` has the shard itself, then its growing index or its sidecar, if the format has one.
    """

    records: int
    image_bytes: int
    files: list[OutputFile]


@dataclass(frozen=True)
class StreamPosition:
    """How far a format's files are: the current shard, what it has, and the shards before it.

    ``sizes`` are the lengths of its growing files in bytes. The entries of its records are the bytes from
    ``entries_begin`` to ``entries_end`` of the file of entries.
    """

    shard: int = 0
    records: int = 0
    image_bytes: int = 0
    sizes: tuple[int, ...] = ()
    entries_begin: int = 0
    entries_end: int = 0
    sealed: tuple[SealedShard, ...] = ()


class EncodedBatch(NamedTuple):
    """Consecutive records for one format: place in the order, id, length of the image, and pieces of each.

    ``entry_ends`` is where the entry of each ends in the file of entries; empty where nobody keeps entries.
    """

    places: Sequence[int]
    ids: Sequence[int]
    image_bytes: Sequence[int]
    records: Sequence[Sequence[Buffer]]
    entry_ends: Sequence[int]


class Cut:
    """Where shards begin: at fixed places of the order (``bounds``), or when they have ``limit_bytes``.

    ``bounds`` has the first place after each shard; empty where the bytes decide.
    """

    def __init__(self, bounds: Sequence[int], limit_bytes: int) -> None:
        self.bounds = bounds
        self.limit_bytes = limit_bytes

    @classmethod
    def by_number(cls, places: int, shards: int) -> Cut:
        """Divide ``places`` into as many equal stretches as there are ``shards``."""
        return cls([(shard + 1) * places // shards for shard in range(shards)], 0)

    def shard_of(self, place: int) -> int:
        """Return the shard of a place, where places decide."""
        return bisect_right(self.bounds, place)


class ShardStream:
    """Writes the shards of the format ``form`` for the split ``split`` of the data set ``info``, into ``folder``.

    It begins at ``position``, that of a checkpoint or a new one. ``entries_path`` is the file of entries.
    """

    def __init__(
        self,
        form: Format,
        split: str,
        info: DatasetInfo,
        folder: str,
        cut: Cut,
        position: StreamPosition,
        entries_path: str,
    ) -> None:
        self.form = form
        self.position = position
        self._split = split
        self._info = info
        self._folder = folder
        self._cut = cut
        self._entries_path = entries_path
        self._stack = contextlib.ExitStack()
        self._descriptors: list[int] = []
        self._hash: FollowingHash | None = None
        self._lock = threading.Lock()
        self._released = 0

    # Files

    def names(self, shard: int, shards: int) -> list[str]:
        """Return the final paths, below the folder, of the files of a shard, in the order of `SealedShard.files`."""
        name = self.form.shard_name(self._info, self._split, shard, shards)
        names = [name]
        if self.form.index_suffix:
            names.append(f"{os.path.splitext(name)[0]}.{self.form.index_suffix}")
        sidecar = self.form.sidecar_name(name)
        return [*names, sidecar] if sidecar else names

    def unfinished(self, shard: int) -> list[str]:
        """Return the paths of the files of a sealed shard before they get their names, in the same order."""
        paths = self._hidden(shard)
        return [path if number or self.form.in_place else _sealed(path) for number, path in enumerate(paths)]

    def growing(self, shard: int) -> list[str]:
        """Return the paths of the growing files of a shard."""
        return self._hidden(shard)[: 2 if self.form.index_suffix else 1]

    def tails(self, position: StreamPosition) -> list[str]:
        """Return a hash of the end of each growing file at ``position``. Raises OSError."""
        return [tail(path, size) for path, size in zip(self.growing(position.shard), position.sizes)]

    def is_whole(self, tails: Sequence[str] | None) -> bool:
        """Return whether the files reach the position, and the growing ones end as ``tails`` say, if that is known.

        Raises OSError.
        """
        position = self.position
        found = self.tails(position)
        if "" in found or (tails is not None and found != list(tails)) or position.shard != len(position.sealed):
            return False
        return all(
            os.path.exists(path) and os.path.getsize(path) == file.size_bytes
            for number, shard in enumerate(position.sealed)
            for path, file in zip(self.unfinished(number), shard.files)
        )

    def release(self, position: StreamPosition) -> None:
        """Delete the growing files of the shards before ``position``, which a durable checkpoint has as sealed.

        Raises OSError.
        """
        if self.form.in_place:
            return
        while self._released < position.shard:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._hidden(self._released)[0])
            self._released += 1

    def _hidden(self, shard: int) -> list[str]:
        if self.form is RECORDIO:
            # The number of its shards is known from the start, and so are their names.
            names = self.names(shard, len(self._cut.bounds))
        else:
            names = [f"{self._split}-{shard:06d}{suffix}" for suffix in ("", "-sidecar")[: len(self.names(0, 1))]]
        return [os.path.join(self._folder, f".{name}.part") for name in names]

    # Writing

    @contextlib.contextmanager
    def running(self) -> Iterator[ShardStream]:
        """Hold the growing files open for the duration of the block."""
        try:
            yield self
        finally:
            self._close()

    def sync(self) -> None:
        """Make durable what was appended so far; runs beside `append`. Raises OSError.

        A shard that `append` leaves meanwhile is synced there.
        """
        with self._lock:
            held = [os.dup(descriptor) for descriptor in self._descriptors]
        try:
            sync_all(held)
        finally:
            for descriptor in held:
                os.close(descriptor)

    def append(self, batch: EncodedBatch) -> StreamPosition:
        """Append a batch, in new shards where one is full, and return how far the files are then. Raises OSError."""
        begin = 0
        pending_bytes = 0
        for number, place in enumerate(batch.places):
            length = sum(map(len, batch.records[number]))
            while self._begins_shard(place, pending_bytes, number - begin, length):
                self._write(batch, begin, number)
                self._roll()
                begin, pending_bytes = number, 0
            pending_bytes += length
        self._write(batch, begin, len(batch.places))
        return self.position

    def complete(self) -> StreamPosition:
        """Seal the last shard, and the empty ones after it where the number is given; return the position.

        Raises OSError.
        """
        while self.position.shard < len(self._cut.bounds) or self.position.records:
            self._roll()
        return self.position

    def _begins_shard(self, place: int, pending_bytes: int, pending: int, next_bytes: int) -> bool:
        """Return whether the record at ``place`` comes into a shard after the current one."""
        if self._cut.bounds:
            return self._cut.shard_of(place) > self.position.shard
        records = self.position.records + pending
        data_bytes = sum(self.position.sizes[:1]) + pending_bytes
        return records > 0 and self.form.is_full(data_bytes, records, next_bytes, self._cut.limit_bytes)

    def _write(self, batch: EncodedBatch, begin: int, stop: int) -> None:
        """Append the records ``begin`` to before ``stop`` of a batch to the current shard."""
        if begin == stop:
            return
        self._open()
        position = self.position
        offset = position.sizes[0]
        buffers: list[Buffer] = []
        lines = []
        for record_id, record in zip(batch.ids[begin:stop], batch.records[begin:stop]):
            lines.append(self.form.index_line(record_id, offset))
            buffers += record
            offset += sum(map(len, record))
        for first in range(0, len(buffers), _MOST_BUFFERS):
            write_all(self._descriptors[0], buffers[first : first + _MOST_BUFFERS])
        sizes = [offset]
        if self.form.index_suffix:
            index = "".join(lines).encode("ascii")
            write_all(self._descriptors[1], [index])
            sizes.append(position.sizes[1] + len(index))
        if self._hash:
            self._hash.advance(offset)
        self.position = replace(
            position,
            records=position.records + stop - begin,
            image_bytes=position.image_bytes + sum(batch.image_bytes[begin:stop]),
            sizes=tuple(sizes),
            entries_end=batch.entry_ends[stop - 1] if batch.entry_ends else 0,
        )

    def _roll(self) -> None:
        """Seal the current shard and go to the next one."""
        self._open()
        position = self.position
        shard_path, *beside = self.unfinished(position.shard)
        entries = EntryFile(self._entries_path, position.entries_begin, position.records)
        self.form.seal(self.growing(position.shard)[0], shard_path, entries, self._info)
        for descriptor in self._descriptors:
            os.fsync(descriptor)
        if self._hash:
            self._hash.advance(os.path.getsize(shard_path))
            sha256 = self._hash.finish()
        else:
            sha256 = hash_file(shard_path)
        if self.form.sidecar_name("shard"):
            write_atomic(beside[-1], self.form.sidecar(shard_path, entries))
        files = [output_file(shard_path, sha256), *(output_file(path, hash_file(path)) for path in beside)]
        fsync_directory(self._folder)
        self._close()
        self.position = StreamPosition(
            shard=position.shard + 1,
            entries_begin=position.entries_end,
            entries_end=position.entries_end,
            sealed=(*position.sealed, SealedShard(position.records, position.image_bytes, files)),
        )

    def _open(self) -> None:
        """Open the growing files of the current shard, unless they are open."""
        if self._descriptors:
            return
        paths = self.growing(self.position.shard)
        os.makedirs(self._folder, exist_ok=True)
        sizes = self.position.sizes or (0,) * len(paths)
        self.position = replace(self.position, sizes=sizes)
        with self._lock:
            self._descriptors = [self._stack.enter_context(open_part(path, size)) for path, size in zip(paths, sizes)]
        fsync_directory(self._folder)
        if self.form.in_place:
            self._hash = self._stack.enter_context(FollowingHash(paths[0]).running())
            self._hash.advance(sizes[0])

    def _close(self) -> None:
        with self._lock:
            self._descriptors = []
            self._hash = None
            self._stack.close()


class EntryFile(Collection[Entry]):
    """The entries of one shard, read from the file ``path`` each time they are iterated.

    They are ``records`` lines from byte ``begin`` on; see `entry_line`.
    """

    def __init__(self, path: str, begin: int, records: int) -> None:
        self._path = path
        self._begin = begin
        self._records = records

    def __len__(self) -> int:
        """Return the number of entries."""
        return self._records

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries. Raises OSError."""
        if not self._records:
            return
        with open(self._path, "rb") as file:
            file.seek(self._begin)
            yield from map(parse_entry_line, itertools.islice(file, self._records))

    def __contains__(self, entry: object) -> bool:
        """Return whether an entry is among them."""
        return any(entry == other for other in self)


def discard_unfinished(folder: str, split: str) -> None:
    """Delete the unfinished files of a split in the folder of a format, if there are any. Raises OSError."""
    pattern = re.compile(rf"\.{re.escape(split)}(-\d+(-of-\d+)?)?(-sidecar)?(\.(rec|idx|lst))?\.(part|sealed)")
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if pattern.fullmatch(name):
            os.unlink(os.path.join(folder, name))


def tail(path: str, size_bytes: int) -> str:
    """Return a hash of the end of the first ``size_bytes`` of a file; "" where it is shorter. Raises OSError."""
    first = max(0, size_bytes - _TAIL_BYTES)
    try:
        with open(path, "rb", buffering=0) as file:
            content = os.pread(file.fileno(), size_bytes - first, first)
    except FileNotFoundError:
        content = b""
    return hashlib.sha256(content).hexdigest() if len(content) == size_bytes - first else ""


def output_file(path: str, sha256: str) -> OutputFile:
    """Return what is known of a finished file with that hash. Raises OSError."""
    status = os.stat(path)
    return OutputFile(status.st_size, sha256, status.st_mtime_ns)


def _sealed(part: str) -> str:
    return f"{os.path.splitext(part)[0]}.sealed"
