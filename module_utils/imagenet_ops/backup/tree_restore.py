"""The tree of a split back from a bucket: its tars are unpacked while they come, and no copy of one is ever on disk.

Each tar is unpacked into a folder of its own, ``<split>.restoring/<tar>``, and hashed as it comes. Once its SHA-256 is
the index's and its files are synced, a journal says so, and it is not fetched again; what comes of any other tar is
discarded and never lies among the files of those. When all are there, they are brought together by renaming, counted,
and the tree gets its name. So nobody ever reads half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field

from ansible.module_utils.imagenet_ops.archive.member import FILE, DamagedArchiveError, Member
from ansible.module_utils.imagenet_ops.archive.tar import read_members
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, ListedObject
from ansible.module_utils.imagenet_ops.backup.shard_stream import ShardStream
from ansible.module_utils.imagenet_ops.backup.tar_shards import Shard, ShardReader, plan_shards
from ansible.module_utils.imagenet_ops.backup.tree_index import (
    TREE_FOLDER,
    IndexedShard,
    TreeIndex,
    index_name,
    parse_index,
)
from ansible.module_utils.imagenet_ops.core.disk import allocated_bytes, block_bytes, sync_filesystem
from ansible.module_utils.imagenet_ops.core.errors import CancelledError, OpsError
from ansible.module_utils.imagenet_ops.core.files import fsync_directory
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile, Warn
from ansible.module_utils.imagenet_ops.download.s3 import S3Source
from ansible.module_utils.imagenet_ops.download.source import Facts
from ansible.module_utils.imagenet_ops.layout.checkpoint import count_as_laid_out
from ansible.module_utils.imagenet_ops.layout.tree_writer import TreeWriter

_CHECKPOINT = Kind(
    "s3_restore checkpoint of a tree",
    1,
    {"index": str, "proved": [str], "tree_sha256s": [str]},
    starts_over="the tree is verified or restored from its start",
)
# Tars that come at a time, each over a connection of its own: a kill costs no more than these, and each may have as
# much waiting to be written as a `TreeWriter` holds.
_SHARDS_AT_ONCE = 4
_READ_BYTES = 1 << 20
# A larger file is written as it comes and not held in memory.
_LARGE_FILE_BYTES = 8 << 20


@dataclass
class _Journal:
    """What is known of a tree: ``index`` is the SHA-256 of the index that all of it is about.

    ``proved`` names the tars that are unpacked, right and safe. ``tree_sha256s`` has, once all are brought together,
    the `Shard.tree_sha256` of each, by which the tree is known again without reading it.
    """

    index: str
    proved: list[str] = field(default_factory=list)
    tree_sha256s: list[str] = field(default_factory=list)


class TreeRestore:
    """Brings the tree of one split out of the bucket: first `look`, and then, unless `is_present`, `restore`."""

    def __init__(
        self,
        bucket: Bucket,
        prefix: str,
        root: str,
        split: str,
        state_dir: str,
        progress: Progress,
        connections: int,
        warn: Warn = warnings.warn,
    ) -> None:
        """Take the tree of ``split``, which is to lie in ``root``, from the objects under ``prefix``.

        At most so many ``connections`` are used at a time. ``warn`` is called where a checkpoint cannot be read.
        """
        self.split = split
        self.is_present = False
        self._bucket = bucket
        self._folder = f"{prefix}/{TREE_FOLDER}"
        self._tree = os.path.join(root, split)
        self._restoring = f"{self._tree}.restoring"
        self._joined = os.path.join(self._restoring, "tree")
        self._state_dir = state_dir
        self._checkpoint = StateFile(os.path.join(state_dir, f"s3_restore.{split}.json"), _CHECKPOINT, warn)
        self._progress = progress
        self._shards_at_once = min(connections, _SHARDS_AT_ONCE)
        self._index = TreeIndex(split, 0, [])
        self._journal = _Journal("")
        self._listed: dict[str, ListedObject] = {}
        self._missing: list[IndexedShard] = []
        self._done_bytes = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()

    @property
    def files(self) -> int:
        """How many files the tree has."""
        return self._index.files

    @property
    def size_bytes(self) -> int:
        """The size of its tars."""
        return self._index.size_bytes

    @property
    def resumed_bytes(self) -> int:
        """How much of these earlier runs have unpacked and proved, where the tree is not complete."""
        return self.size_bytes - self._missing_bytes

    @property
    def _missing_bytes(self) -> int:
        return sum(shard.size_bytes for shard in self._missing)

    @property
    def needed_bytes(self) -> int:
        """How much disk `restore` takes at most: each file ends in the middle of a block of the filesystem."""
        files = sum(shard.files for shard in self._missing)
        left_over = sum(_allocated_bytes(self._unpacked(shard)) for shard in self._missing)
        return max(0, self._missing_bytes + files * block_bytes(self._tree) - left_over)

    def look(self, listed: Mapping[str, ListedObject], *, replace: bool, check_mode: bool) -> None:
        """See what is in the bucket (``listed``) and on disk.

        A tree that nothing is known of is hashed, once; in check mode the sizes of its files decide. Raises OpsError
        where the bucket does not have what the index names, and, unless it is to be replaced, for a wrong tree.
        """
        content = self._read_index(listed)
        self._index = parse_index(content, self.split, self._uri(index_name(self.split)))
        self._journal = self._read_journal(hashlib.sha256(content).hexdigest())
        self.is_present = self._has_tree(replace=replace, check_mode=check_mode)
        if self.is_present:
            if not check_mode and self._journal.proved:  # a run may have been killed once all was in its place
                shutil.rmtree(self._restoring, ignore_errors=True)
            return
        proved = set(self._proved())
        self._missing = [shard for shard in self._index.shards if shard.name not in proved]
        for shard in self._missing:
            self._listed[shard.name] = self._checked_object(shard, listed)

    def restore(self) -> None:
        """Bring what is missing, and give the tree its name; what an earlier run proved is kept."""
        self._begin()
        self._progress.start(f"Restoring the tree {self.split}", self.size_bytes, "bytes", self.resumed_bytes)
        self._done_bytes = self.resumed_bytes
        self._restore_shards()
        self._join()
        self._finish()

    # What there is

    def _key(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _uri(self, name: str) -> str:
        return self._bucket.uri(self._key(name))

    def _unpacked(self, shard: IndexedShard) -> str:
        return os.path.join(self._restoring, shard.name)

    def _read_index(self, listed: Mapping[str, ListedObject]) -> bytes:
        key = self._key(index_name(self.split))
        if key not in listed:
            raise OpsError(
                self._bucket.uri(key),
                f"there is no such index, so the backup has no complete tree of {self.split}",
                "Back up the tree from where it still is (dataset_backup_trees), or leave it out here and lay it out "
                "from the archives (playbooks/steps/layout.yml)",
            )
        return self._bucket.read(key, 0, listed[key].size_bytes, listed[key].etag) if listed[key].size_bytes else b""

    def _checked_object(self, shard: IndexedShard, listed: Mapping[str, ListedObject]) -> ListedObject:
        """Return the object of a tar; raises OpsError where it is not there, or not of its size."""
        todo = (
            "Complete the backup from where the tree still is (playbooks/steps/backup.yml uploads what is missing), "
            "retrieve an earlier version of the object (the bucket keeps them), or lay the tree out from the archives"
        )
        found = listed.get(self._key(shard.name))
        if found is None:
            why = f"{index_name(self.split)} names this object, but it does not exist"
            raise OpsError(self._uri(shard.name), why, todo)
        if found.size_bytes != shard.size_bytes:
            why = f"size mismatch: expected {shard.size_bytes} bytes ({index_name(self.split)}), got {found.size_bytes}"
            raise OpsError(self._uri(shard.name), why, todo)
        return found

    def _read_journal(self, index_sha256: str) -> _Journal:
        """Return what is known; of another index nothing is."""
        found = self._checkpoint.read()
        if found is None or found["index"] != index_sha256:
            return _Journal(index_sha256)
        return _Journal(**found)

    def _write_journal(self) -> None:
        self._checkpoint.write({**asdict(self._journal), "proved": sorted(self._journal.proved)})

    def _proved(self) -> list[str]:
        """Return the names of the tars whose files are there and right."""
        if os.path.isdir(self._joined):  # that is not begun before all are
            return self._journal.proved
        return [name for name in self._journal.proved if os.path.isdir(os.path.join(self._restoring, name))]

    def _has_tree(self, *, replace: bool, check_mode: bool) -> bool:
        if self._is_absent():
            return False
        try:
            plan = plan_shards(self._tree, self._index.shard_bytes)
        except OpsError as error:
            if replace:
                return False
            raise self._wrong_tree(error.what, error.why) from error
        why = ""
        if _sizes(plan) != _sizes(self._index.shards):
            files = sum(shard.files for shard in plan)
            why = f"names or sizes of files: it has {files}, the backup {self.files}"
        elif not check_mode and [shard.tree_sha256 for shard in plan] != self._journal.tree_sha256s:
            why = self._compare(plan)
        if why and not replace:
            why = f"the existing tree differs from the backup ({why}); it was not changed"
            raise self._wrong_tree(f"Tree {self._tree}", why)
        return not why

    def _is_absent(self) -> bool:
        """Say whether the tree can be put in its place; an empty folder is none."""
        if os.path.isdir(self._tree) and not os.path.islink(self._tree):
            return not os.listdir(self._tree)
        return not os.path.lexists(self._tree)

    def _wrong_tree(self, what: str, why: str) -> OpsError:
        return OpsError(what, why, "Move it away or set replace, and run again")

    def _compare(self, plan: Sequence[Shard]) -> str:
        """Read the tree on disk; return in what it is wrong, and keep it in mind where it is right."""
        self._progress.start(f"Verifying the tree {self.split}", self.size_bytes, "bytes")
        self._done_bytes = 0
        with ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
            for shard, sha256 in zip(self._index.shards, pool.map(self._local_sha256, plan)):
                if sha256 != shard.sha256:
                    return f"contents of the files of {shard.name}"
        self._journal.tree_sha256s = [shard.tree_sha256 for shard in plan]
        self._write_journal()
        return ""

    def _local_sha256(self, shard: Shard) -> str:
        sha256, reader, buffer = hashlib.sha256(), ShardReader(self._tree, shard), bytearray(_READ_BYTES)
        while count := reader.readinto(buffer):
            sha256.update(memoryview(buffer)[:count])
            self._count(count)
        return sha256.hexdigest()

    def _count(self, size_bytes: int) -> None:
        with self._lock:
            self._done_bytes += size_bytes
            self._progress.update(self._done_bytes)

    # The tars

    def _begin(self) -> None:
        """Make the folder that the tree grows in; what is in it is ours where there is a journal."""
        if os.path.exists(self._restoring) and not os.path.exists(self._checkpoint.path):
            raise OpsError(
                f"Folder {self._restoring}",
                f"the folder exists, but its checkpoint {self._checkpoint.path} does not",
                "Remove it and run again",
            )
        self._journal.proved = self._proved()
        self._journal.tree_sha256s = []
        if not self._journal.proved and os.path.exists(self._restoring):
            shutil.rmtree(self._restoring)
        self._write_journal()
        os.makedirs(self._restoring, mode=0o755, exist_ok=True)
        fsync_directory(os.path.dirname(self._restoring))

    def _restore_shards(self) -> None:
        """Bring the tars that are missing; the first failure of any ends all and is raised."""
        failure: BaseException | None = None
        with ThreadPoolExecutor(self._shards_at_once) as pool:
            for future in as_completed([pool.submit(self._restore_shard, shard) for shard in self._missing]):
                error = future.exception()
                if error is not None:
                    self._stop.set()
                    if failure is None or isinstance(failure, CancelledError):
                        failure = error
        if failure is not None:
            raise failure

    def _restore_shard(self, shard: IndexedShard) -> None:
        if self._stop.is_set():
            raise CancelledError
        folder = self._unpacked(shard)
        if os.path.exists(folder):
            shutil.rmtree(folder)
        os.mkdir(folder, 0o755)
        try:
            with contextlib.closing(self._open(shard)) as stream, TreeWriter(folder) as writer:
                self._unpack(stream, writer, shard)
                writer.sync()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # the space is wanted, and the next run would do it else
            raise
        with self._lock:
            self._journal.proved.append(shard.name)
            self._write_journal()

    def _open(self, shard: IndexedShard) -> ShardStream:
        facts = Facts(shard.size_bytes, ranges=True, validator=self._listed[shard.name].etag)
        source = S3Source(self._bucket, self._key(shard.name), facts=facts, stop=self._stop)
        return ShardStream(source, shard.size_bytes, self._count)

    def _unpack(self, stream: ShardStream, writer: TreeWriter, shard: IndexedShard) -> None:
        """Write the files of a tar; raises OpsError where it is not the one that was backed up."""
        files = 0
        try:
            for member in read_members(stream, shard.size_bytes):
                self._check_member(member, shard)
                files += 1
                folder, _, name = member.name.rpartition("/")
                writer.make_directory(folder)
                if member.size > _LARGE_FILE_BYTES:
                    _write_large(os.path.join(writer.root, member.name), stream, member.size)
                else:
                    writer.write(folder, name, stream.read(member.size))
            stream.skip_to(shard.size_bytes)
        except DamagedArchiveError as error:
            raise self._refused(shard, f"at byte {error.offset} {error}") from error
        sha256 = stream.sha256.hexdigest()
        if sha256 != shard.sha256:
            raise OpsError(
                self._uri(shard.name),
                f"checksum mismatch: expected SHA-256 {shard.sha256} ({index_name(self.split)}), got {sha256}; "
                "extracted files discarded",
                "Run again in case the network damaged it. If it persists, the object is damaged: retrieve an earlier "
                "version of it (the bucket keeps them) or lay the tree out from the archives",
            )
        if files != shard.files:
            raise self._refused(shard, f"it holds {files} files, and {index_name(self.split)} says {shard.files}")

    def _check_member(self, member: Member, shard: IndexedShard) -> None:
        if member.kind != FILE:
            raise self._refused(shard, f"it holds a {member.kind}, {member.name!r}, and a tree has nothing but files")
        is_inside = os.path.normpath(member.name) == member.name and member.name.partition("/")[0] not in (
            "",
            ".",
            "..",
        )
        if not is_inside or "\0" in member.name:
            raise self._refused(shard, f"it holds a file that would lie outside of the tree, {member.name!r}")

    def _refused(self, shard: IndexedShard, why: str) -> OpsError:
        return OpsError(
            self._uri(shard.name),
            f"it is not a tar that s3_backup wrote: {why}; extracted files discarded",
            "Run again in case the network damaged it. If it persists, retrieve an earlier version of the object (the "
            "bucket keeps them) or lay the tree out from the archives",
        )

    # All of them

    def _join(self) -> None:
        """Bring the files of all tars together."""
        os.makedirs(self._joined, mode=0o755, exist_ok=True)
        for shard in self._index.shards:
            folder = self._unpacked(shard)
            if os.path.isdir(folder):
                _merge(folder, self._joined)

    def _finish(self) -> None:
        """Count the tree, say that it is complete, and put it in its place."""
        plan = plan_shards(self._joined, self._index.shard_bytes)
        if _sizes(plan) != _sizes(self._index.shards):
            shutil.rmtree(self._restoring)
            raise OpsError(
                self._uri(index_name(self.split)),
                f"file mismatch: the index lists {self.files} files, and {sum(shard.files for shard in plan)}, or "
                "others, were extracted; not a tree of s3_backup; extracted files discarded",
                "Lay the tree out from the archives (playbooks/steps/layout.yml)",
            )
        self._journal.tree_sha256s = [shard.tree_sha256 for shard in plan]
        self._write_journal()
        count_as_laid_out(self._joined, self._tree, self._state_dir)
        sync_filesystem(self._restoring)
        if not self._is_absent():
            replaced = os.path.join(self._restoring, "replaced")
            if os.path.exists(replaced):
                shutil.rmtree(replaced)
            os.rename(self._tree, replaced)
        os.rename(self._joined, self._tree)
        fsync_directory(os.path.dirname(self._tree))
        shutil.rmtree(self._restoring)


def _sizes(shards: Sequence[Shard] | Sequence[IndexedShard]) -> list[tuple[int, int]]:
    return [(shard.size_bytes, shard.files) for shard in shards]


def _write_large(path: str, stream: ShardStream, size_bytes: int) -> None:
    with open(path, "wb", buffering=0) as file:
        left = size_bytes
        while left:
            block = stream.read(min(_READ_BYTES, left))
            left -= len(block)
            view = memoryview(block)
            while view:
                view = view[file.write(view) :]


def _merge(source: str, target: str) -> None:
    """Move what is in folder ``source`` into ``target`` and remove it; folders that are new there move whole."""
    with os.scandir(source) as entries:
        found = list(entries)
    for entry in found:
        there = os.path.join(target, entry.name)
        if entry.is_dir(follow_symlinks=False) and os.path.isdir(there):
            _merge(entry.path, there)
        else:
            os.rename(entry.path, there)
    os.rmdir(source)


def _allocated_bytes(folder: str) -> int:
    """Return what the files in ``folder`` take on the disk."""
    return sum(allocated_bytes(path) for path in _paths(folder))


def _paths(folder: str) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield os.path.join(parent, name)
