"""A tree of files as tars of about one size, made while they are read: no copy of them is ever on disk.

The bytes of a shard are a function of the names, sizes and contents of its files alone: files are in the order of their
names, and every header has mode 0644, owner 0 and time 0. So the same tree on another host gives the same shards.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ansible.module_utils.imagenet_ops.core.errors import OpsError

_BLOCK_BYTES = tarfile.BLOCKSIZE
# Two zero blocks end a tar (POSIX.1-2017, pax, "ustar Interchange Format").
_END_BYTES = 2 * _BLOCK_BYTES
_READ_BYTES = 1 << 20


class _File(NamedTuple):
    """A file of a folder: all that is looked at before it is read."""

    name: str
    size_bytes: int
    mtime_ns: int


class _Run(NamedTuple):
    """Files of one folder (below the tree, "" for the tree itself) that lie in one shard: by number, in their order."""

    folder: str
    first: int
    stop: int


@dataclass
class Shard:
    """A tar to be made: which files it has, and its size.

    The names of the files are not kept, since a million of them would not fit into memory; ``fingerprints`` has four
    bytes for each, of its name, size and time, by which a change is noticed. ``tree_sha256`` is a hash of these.
    """

    size_bytes: int = _END_BYTES
    runs: list[_Run] = field(default_factory=list)
    fingerprints: array[int] = field(default_factory=lambda: array("I"))
    tree_sha256: str = ""

    @property
    def files(self) -> int:
        """The number of files."""
        return len(self.fingerprints)


def plan_shards(tree: str, shard_bytes: int) -> list[Shard]:
    """Return the shards of the tree at ``tree``, each as large as fits into ``shard_bytes``, or of one larger file.

    Looks at the names, sizes and times of all files and opens none. Raises OpsError where there is no such tree, where
    there is no file in it, and where something in it is neither a file nor a folder.
    """
    shards: list[Shard] = []
    sha256 = hashlib.sha256()
    for folder, files in _folders(tree, ""):
        first = 0
        for number, file in enumerate(files):
            path = os.path.join(folder, file.name)
            size_bytes = _member_bytes(path, file.size_bytes)
            if not shards or (shards[-1].size_bytes + size_bytes > shard_bytes and shards[-1].fingerprints):
                _close(shards, _Run(folder, first, number), sha256.hexdigest())
                first, sha256 = number, hashlib.sha256()
                shards.append(Shard())
            line = _line(path, file.size_bytes, file.mtime_ns)
            shards[-1].size_bytes += size_bytes
            shards[-1].fingerprints.append(zlib.crc32(line))
            sha256.update(line)
        _close(shards, _Run(folder, first, len(files)), sha256.hexdigest())
    if not shards:
        raise OpsError(f"Tree {tree}", "there is no file in it", "Lay it out, or do not ask for its backup")
    return shards


def _close(shards: list[Shard], run: _Run, tree_sha256: str) -> None:
    """End what the last of ``shards`` has of a folder."""
    if shards and run.first < run.stop:
        shards[-1].runs.append(run)
        shards[-1].tree_sha256 = tree_sha256


def _folders(tree: str, folder: str) -> Iterator[tuple[str, list[_File]]]:
    """Yield each folder of the tree that has files, with these, in the order of their names."""
    files, folders = [], []
    try:
        with os.scandir(os.path.join(tree, folder)) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    files.append(_File(entry.name, status.st_size, status.st_mtime_ns))
                else:
                    raise OpsError(
                        f"File {entry.path}",
                        "it is neither a regular file nor a folder, and a tree has nothing else",
                        "Find out what put it there and remove it",
                    )
    except OSError as error:
        raise OpsError(
            f"Tree {tree}",
            f"{error.filename} cannot be read ({error.strerror})",
            "Lay the tree out first (playbooks/steps/layout.yml), or do not ask for its backup",
        ) from error
    if files:
        yield folder, sorted(files, key=lambda file: os.fsencode(file.name))
    for name in sorted(folders, key=os.fsencode):
        yield from _folders(tree, os.path.join(folder, name))


def _line(path: str, size_bytes: int, mtime_ns: int) -> bytes:
    """Return what tells a file from what it was before, unless somebody sets its time back."""
    return b"%b\0%d\0%d\n" % (os.fsencode(path), size_bytes, mtime_ns)


def _header(path: str, size_bytes: int) -> bytes:
    """Return what precedes a file; TarInfo has mode 0644, owner 0 and time 0 where nothing else is said."""
    info = tarfile.TarInfo(path)
    info.size = size_bytes
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _member_bytes(path: str, size_bytes: int) -> int:
    """Return how much a file takes in a tar; the header of a short name is one block, which need not be made."""
    header_bytes = _BLOCK_BYTES if len(path) <= 100 and path.isascii() else len(_header(path, size_bytes))
    return header_bytes + size_bytes + -size_bytes % _BLOCK_BYTES


class ShardReader:
    """The bytes of one shard, made while they are read."""

    def __init__(self, tree: str, shard: Shard) -> None:
        """Read the files of the tree at ``tree``, as `plan_shards` found them."""
        self._pieces = _pieces(tree, shard)
        self._rest = memoryview(b"")

    def readinto(self, buffer: bytearray, /) -> int:
        """Fill ``buffer``, but at the end of the shard, and return how many bytes there were.

        Raises OpsError naming the file where one is not what it was when the shards were planned, or cannot be read.
        """
        position = 0
        with memoryview(buffer) as view:
            while position < len(view):
                if not self._rest:
                    piece = next(self._pieces, None)
                    if piece is None:
                        break
                    self._rest = memoryview(piece)
                count = min(len(self._rest), len(view) - position)
                view[position : position + count] = self._rest[:count]
                self._rest = self._rest[count:]
                position += count
        return position


def _pieces(tree: str, shard: Shard) -> Iterator[bytes]:
    fingerprints = iter(shard.fingerprints)
    for run in shard.runs:
        names = _file_names(os.path.join(tree, run.folder))[run.first : run.stop]
        if len(names) < run.stop - run.first:
            raise _changed(os.path.join(tree, run.folder, ""), "files of this folder are gone")
        for name, fingerprint in zip(names, fingerprints):
            yield from _member(tree, os.path.join(run.folder, name), fingerprint)
    yield bytes(_END_BYTES)


def _file_names(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)), key=os.fsencode)
    except OSError as error:
        raise _changed(folder, f"it cannot be read any more ({error.strerror})") from error


def _member(tree: str, path: str, fingerprint: int) -> Iterator[bytes]:
    """Yield header, content and padding of a file; its size and time are compared before it is read, and after."""
    full_path = os.path.join(tree, path)
    descriptor = -1
    try:
        descriptor = os.open(full_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        before = os.fstat(descriptor)
        line = _line(path, before.st_size, before.st_mtime_ns)
        if not stat.S_ISREG(before.st_mode) or zlib.crc32(line) != fingerprint:
            raise _changed(full_path, "its name, size or time is another than when the backup began")
        yield _header(path, before.st_size)
        left = before.st_size
        while left:
            content = os.read(descriptor, min(_READ_BYTES, left))
            if not content:
                break
            left -= len(content)
            yield content
        after = os.fstat(descriptor)
        if left or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise _changed(full_path, "its size or time changed while it was read")
        yield bytes(-before.st_size % _BLOCK_BYTES)
    except OSError as error:
        raise OpsError(
            f"File {full_path}",
            f"it cannot be read ({error.strerror})",
            "Look at the disk and at who may read it, and run again: shards that are proved are not sent twice",
        ) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _changed(path: str, why: str) -> OpsError:
    return OpsError(
        f"File {path}",
        f"{why}, so its shard was not uploaded",
        "Let nothing write to the tree during the backup, and run again",
    )
