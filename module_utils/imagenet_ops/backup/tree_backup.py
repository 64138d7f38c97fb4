"""The tree of a split in a bucket: tars of about one size, and then the index that names them.

The objects are ``<prefix>/trees/<split>-00000-of-00147.tar`` and so on, and ``<prefix>/trees/<split>.json``, which has
name, size, SHA-256 and number of files of each shard. It goes up last, so an index in the bucket means that every shard
that it names is there.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ansible.module_utils.imagenet_ops.aws.s3 import ListedObject, StoredObject, crc32_text
from ansible.module_utils.imagenet_ops.backup.tar_shards import Shard, ShardReader, plan_shards
from ansible.module_utils.imagenet_ops.backup.tree_index import (
    TREE_FOLDER,
    IndexedShard,
    TreeIndex,
    index_name,
    parse_index,
    shard_names,
)
from ansible.module_utils.imagenet_ops.backup.upload import READERS, Sent, Uploader
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile, Warn

_RECORD = Kind(
    "s3_backup record of verified tars",
    1,
    {"shards": {str: {"etag": str, "tree_sha256": str, "sha256": str}}},
    starts_over="the trees are read and compared with the bucket again",
    upgrade=lambda value: {"shards": value},
)
_NO_SHA256 = "0" * 64  # as long as any


@dataclass
class _ShardObject:
    """A shard and its object: ``listed`` as the bucket shows it, ``sha256`` where it is known ("": not yet)."""

    name: str
    shard: Shard
    listed: ListedObject | None
    sha256: str = ""


class TreeJournal:
    """Remembers which shards were proved to be in which object, in the state file ``path``.

    ``warn`` is called where that cannot be read.
    """

    def __init__(self, path: str, warn: Warn) -> None:
        self._file = StateFile(path, _RECORD, warn)
        self._records: dict[str, dict[str, str]] = (self._file.read() or {"shards": {}})["shards"]
        self._lock = threading.Lock()

    def sha256(self, uri: str, etag: str, tree_sha256: str) -> str:
        """Return the SHA-256 of the object at ``uri``; "" unless it has ``etag`` and is the shard of these files."""
        record = self._records.get(uri, {})
        known = (record.get("etag"), record.get("tree_sha256")) == (etag, tree_sha256)
        return record["sha256"] if known else ""

    def keep(self, uri: str, etag: str, tree_sha256: str, sha256: str) -> None:
        """Note that a shard is proved."""
        with self._lock:
            self._records[uri] = {"etag": etag, "tree_sha256": tree_sha256, "sha256": sha256}
            self._file.write({"shards": self._records})


class TreeBackup:
    """Brings the tree of one split into the bucket: first `look`, and then, unless `is_complete`, `upload`."""

    def __init__(
        self, uploader: Uploader, prefix: str, tree: str, journal: TreeJournal, shard_bytes: int, read_back: bool
    ) -> None:
        """Keep the settings: ``tree`` is the folder, whose name is the split's.

        ``shard_bytes`` does not apply to a tree that has its index in the bucket: it stays as it was cut. With
        ``read_back`` a shard counts as proved only once it was read from the bucket and hashed.
        """
        self.split = os.path.basename(tree)
        self._bucket = uploader.bucket
        self._uploader = uploader
        self._folder = f"{prefix}/{TREE_FOLDER}"
        self._tree = tree
        self._journal = journal
        self._shard_bytes = shard_bytes
        self._read_back = read_back
        self._index: TreeIndex | None = None
        self._objects: list[_ShardObject] = []
        self._unproved: list[_ShardObject] = []
        self._unsent: list[_ShardObject] = []
        self._lock = threading.Lock()

    def look(self, listed: Mapping[str, ListedObject]) -> None:
        """See what is in the bucket (``listed``) and what of it is proved; reads no file of the tree.

        Raises OpsError where the bucket has another tree for this split.
        """
        self._index = self._read_index(listed)
        if self._index is not None:
            self._shard_bytes = self._index.shard_bytes
        shards = plan_shards(self._tree, self._shard_bytes)
        names = shard_names(self.split, len(shards))
        self._objects = [_ShardObject(name, shard, listed.get(self._key(name))) for name, shard in zip(names, shards)]
        if self._index is not None:
            self._compare_with(self._index)
        with ThreadPoolExecutor(READERS) as pool:
            proved = list(pool.map(self._is_proved, self._objects))
        self._unproved = [found for found, is_there in zip(self._objects, proved) if not is_there]
        self._unsent = [found for found in self._unproved if not self._has_its_size(found)]

    @property
    def objects(self) -> int:
        """How many objects the tree has, its index among them."""
        return len(self._objects) + 1

    @property
    def is_complete(self) -> bool:
        """Whether everything is in the bucket and proved."""
        return self._index is not None and not self._unproved

    @property
    def planned_objects(self) -> int:
        """How many objects are uploaded; before `upload`, an object that has the size of its shard counts as it."""
        return len(self._unsent) + (self._index is None)

    @property
    def planned_bytes(self) -> int:
        """The size of these."""
        return sum(found.shard.size_bytes for found in self._unsent) + self._index_bytes

    @property
    def unproved_bytes(self) -> int:
        """How much `upload` has to read or send."""
        return sum(found.shard.size_bytes for found in self._unproved) + self._index_bytes

    @property
    def size_bytes(self) -> int:
        """The size of all objects of the tree, those that are there already too."""
        return sum(found.shard.size_bytes for found in self._objects) + len(self._make_index().content())

    @property
    def _index_bytes(self) -> int:
        """The size of the index, where it is to be uploaded."""
        return len(self._make_index().content()) if self._index is None else 0

    def upload(self) -> None:
        """Upload, or prove by reading the tree, what is not proved, and then the index."""
        self._uploader.each(self._unproved, self._upload_shard)
        if self._index is None:
            self._put_index()

    def _key(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _uri(self, name: str) -> str:
        return self._bucket.uri(self._key(name))

    def _read_index(self, listed: Mapping[str, ListedObject]) -> TreeIndex | None:
        key = self._key(index_name(self.split))
        if key not in listed:
            return None
        content = self._bucket.read(key, 0, listed[key].size_bytes, listed[key].etag) if listed[key].size_bytes else b""
        return parse_index(content, self.split, self._bucket.uri(key))

    def _make_index(self) -> TreeIndex:
        shards = [
            IndexedShard(found.name, found.shard.size_bytes, found.sha256 or _NO_SHA256, found.shard.files)
            for found in self._objects
        ]
        return TreeIndex(self.split, self._shard_bytes, shards)

    def _compare_with(self, index: TreeIndex) -> None:
        """Raise OpsError where the tree is not the one that the index in the bucket names."""
        ours = self._make_index()
        if [(shard.name, shard.size_bytes, shard.files) for shard in ours.shards] != [
            (shard.name, shard.size_bytes, shard.files) for shard in index.shards
        ]:
            raise self._other_tree(
                f"it has {ours.files} files in {len(ours.shards)} shards, and the index {index.files} files in "
                f"{len(index.shards)} shards"
            )
        for found, shard in zip(self._objects, index.shards):
            found.sha256 = shard.sha256

    def _other_tree(self, why: str) -> OpsError:
        return OpsError(
            f"Tree {self._tree}",
            f"it is not the one of {self._uri(index_name(self.split))}, and a backup is never overwritten by another: "
            f"{why}",
            "Lay the tree out again as it was, or choose an unused prefix",
        )

    def _has_its_size(self, found: _ShardObject) -> bool:
        return found.listed is not None and found.listed.size_bytes == found.shard.size_bytes

    def _is_proved(self, found: _ShardObject) -> bool:
        """Say whether the journal knows the object as the shard."""
        if found.listed is None or not self._has_its_size(found):
            return False
        known = self._journal.sha256(self._uri(found.name), found.listed.etag, found.shard.tree_sha256)
        if not known:
            return False
        if found.sha256 not in ("", known):
            raise self._other_tree(
                f"checksum mismatch of {found.name}: expected SHA-256 {found.sha256} (index), got {known}"
            )
        if self._read_back and self._stored_sha256(found, found.listed.etag) != known:
            found.listed = None
            return False
        found.sha256 = known
        return True

    def _stored_sha256(self, found: _ShardObject, etag: str) -> str:
        return self._uploader.stored_sha256(self._key(found.name), found.shard.size_bytes, etag)

    def _upload_shard(self, found: _ShardObject) -> None:
        if self._has_its_size(found):
            local = self._uploader.digest(ShardReader(self._tree, found.shard), found.shard.size_bytes)
            self._check(found, local.sha256)
            stored = self._bucket.stored(self._key(found.name))
            if stored is not None and self._is_stored(found, local, stored):
                self._keep(found, local.sha256, stored.etag)
                return
            with self._lock:
                self._unsent.append(found)
        key = self._key(found.name)
        sent = self._uploader.upload(
            key,
            ShardReader(self._tree, found.shard),
            found.shard.size_bytes,
            begin=lambda: self._bucket.begin_upload(key),
            check=functools.partial(self._check, found),
        )
        stored = self._bucket.stored(key)
        if stored is None or not self._is_what_was_sent(found, sent, stored):
            raise OpsError(
                self._bucket.uri(key),
                f"upload verification failed: expected {found.shard.size_bytes} bytes with CRC32 {sent.crc32}, "
                "S3 reports "
                + ("no such object" if stored is None else f"{stored.size_bytes} bytes with CRC32 {stored.crc32}"),
                "Run again: verified objects are not sent again. If it persists, something else writes to the bucket",
            )
        self._keep(found, sent.sha256, stored.etag)

    def _check(self, found: _ShardObject, sha256: str) -> None:
        if found.sha256 not in ("", sha256):
            raise self._other_tree(
                f"checksum mismatch of {found.name}: expected SHA-256 {found.sha256} (index), got {sha256}"
            )

    def _is_what_was_sent(self, found: _ShardObject, sent: Sent, stored: StoredObject) -> bool:
        """Say whether what is stored is what was sent; a server that keeps no CRC32 has compared it on the way."""
        if (stored.size_bytes, stored.crc32 or sent.crc32) != (found.shard.size_bytes, sent.crc32):
            return False
        return not self._read_back or self._stored_sha256(found, stored.etag) == sent.sha256

    def _is_stored(self, found: _ShardObject, local: Sent, stored: StoredObject) -> bool:
        """Say whether an object that nothing is known of is the shard; where S3 keeps no CRC32 it is read."""
        if stored.size_bytes != found.shard.size_bytes or stored.crc32 not in ("", local.crc32):
            return False
        if stored.crc32 and not self._read_back:
            return True
        return self._stored_sha256(found, stored.etag) == local.sha256

    def _keep(self, found: _ShardObject, sha256: str, etag: str) -> None:
        found.sha256 = sha256
        self._journal.keep(self._uri(found.name), etag, found.shard.tree_sha256, sha256)

    def _put_index(self) -> None:
        content = self._make_index().content()
        sha256, key = hashlib.sha256(content).hexdigest(), self._key(index_name(self.split))
        if self._bucket.put_new(key, content, sha256, crc32_text(zlib.crc32(content))):
            self._uploader.count(len(content), sent=True)
        stored = self._bucket.stored(key)
        if stored is None or stored.sha256 != sha256:
            raise self._other_tree("another index was put there in the meantime")
