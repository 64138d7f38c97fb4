"""A data set back from a bucket: what its manifest names, each file proved by its SHA-256, and last the manifest.

A file grows as ``<file>.part``, hashed as it comes, beside a checkpoint of what of it is safe (``<file>.part.json``),
and gets its name when it is whole and right. So whatever ended a run, the next one takes only what is missing, and a
manifest in the folder means that everything that was wanted is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, ListedObject
from ansible.module_utils.imagenet_ops.backup.request import RestoreFile, RestoreRequest, find_prefix
from ansible.module_utils.imagenet_ops.backup.tree_restore import TreeRestore
from ansible.module_utils.imagenet_ops.backup.verified_files import VerifiedFiles
from ansible.module_utils.imagenet_ops.core.disk import disk_error, require_space
from ansible.module_utils.imagenet_ops.core.errors import CancelledError, OpsError
from ansible.module_utils.imagenet_ops.core.files import remove_durably, write_atomic
from ansible.module_utils.imagenet_ops.core.hashing import BLOCK_BYTES
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.core.state_file import Kind, Warn
from ansible.module_utils.imagenet_ops.dataset.manifest import (
    ARCHIVE_FOLDER,
    MANIFEST_NAME,
    VERSION_DIGITS,
    Manifest,
    parse_manifest,
)
from ansible.module_utils.imagenet_ops.download.digests import Sha256
from ansible.module_utils.imagenet_ops.download.engine import Policy, Target, transfer
from ansible.module_utils.imagenet_ops.download.part_file import DONE, ResumablePartFile
from ansible.module_utils.imagenet_ops.download.ranges import Ranges
from ansible.module_utils.imagenet_ops.download.s3 import S3Source
from ansible.module_utils.imagenet_ops.download.source import Facts
from ansible.module_utils.imagenet_ops.download.verified import VerifiedArchive, write_verified

_CHECKPOINT = Kind(
    "s3_restore checkpoint", 1, {**DONE, "sha256": str, "etag": str}, starts_over="the file is restored from its start"
)
# Files that are hashed at a time: SHA-256 is a single chain, so one file alone is as fast as one core.
_LARGE_AT_ONCE = 2
# A file up to here is one request and is held in memory; for larger ones several connections pay.
_SMALL_BYTES = 8 << 20
_RETRIES = 8
_RECORD_INTERVAL_SECONDS = 1.0  # how much hashing of finished files a kill costs the next run


@dataclass
class _Work:
    """What a run finds: what is to be restored, how many files are there already, and whether the manifest is."""

    missing: list[RestoreFile] = field(default_factory=list)
    missing_trees: list[TreeRestore] = field(default_factory=list)
    present: int = 0
    has_manifest: bool = True


class Restore:
    """Brings one data set out of one bucket. Use an object for one run."""

    def __init__(self, bucket: Bucket, request: RestoreRequest, warn: Warn = warnings.warn) -> None:
        """``warn`` is called with a sentence where what an earlier run left cannot be used."""
        self.bucket = bucket
        self.request = request
        self.prefix = ""
        self._progress = Progress(request.state_dir, "s3_restore")
        self._warn = warn
        self._kept: dict[str, Ranges] = {}
        self._verified = VerifiedFiles(request.root, os.path.join(request.state_dir, "s3_restore.json"), warn)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._proved_bytes: dict[str, int] = {}

    def run(self, *, check_mode: bool) -> dict[str, Any]:
        """Restore what is missing (in check mode: only look) and return the module's result."""
        try:
            return self._run(check_mode)
        except OSError as error:
            raise disk_error(self.request.root, error) from error

    def _run(self, check_mode: bool) -> dict[str, Any]:
        self.prefix = find_prefix(self.bucket, self.request)
        objects = self.bucket.objects(f"{self.prefix}/")
        content = self._read_manifest(objects)
        manifest = parse_manifest(content, self.bucket.uri(f"{self.prefix}/{MANIFEST_NAME}"))
        self._check_version(manifest)
        files = self._select(manifest, objects)
        work = _Work(has_manifest=self._has_manifest(content))
        self._look(files, work, manifest, check_mode)
        for file in work.missing:
            self._check_object(file)
        self._look_at_trees(objects, work, check_mode)
        needed_bytes = self._needed_bytes(work)
        require_space(self.request.root, needed_bytes)
        result = self._result(manifest, work, needed_bytes)
        if not check_mode:
            self._restore_missing(work, manifest, content)
        return result

    def _restore_missing(self, work: _Work, manifest: Manifest, content: bytes) -> None:
        """Restore what is missing, and last the manifest."""
        if (work.missing or work.missing_trees) and not work.has_manifest:
            # One of another version must not describe these files.
            remove_durably(os.path.join(self.request.root, MANIFEST_NAME))
        if work.missing:
            self._restore_all(work.missing, manifest)
        for tree in work.missing_trees:
            tree.restore()
        if not work.has_manifest:
            write_atomic(os.path.join(self.request.root, MANIFEST_NAME), content)
        if work.missing or work.missing_trees or not work.has_manifest:
            self._progress.finish()

    def _result(self, manifest: Manifest, work: _Work, needed_bytes: int) -> dict[str, Any]:
        restored = len(work.missing) + sum(tree.files for tree in work.missing_trees) + (not work.has_manifest)
        total = work.present + restored
        resumed_bytes = sum(self._resumable(file).total for file in work.missing)
        resumed_bytes += sum(tree.resumed_bytes for tree in work.missing_trees)
        size_bytes = sum(file.size_bytes for file in work.missing)
        size_bytes += sum(tree.size_bytes for tree in work.missing_trees)
        where = f"under {self.request.root}, version {manifest.dataset_version}\n"
        return {
            "changed": restored > 0,
            "restored_files": restored,
            "restored_bytes": size_bytes - resumed_bytes,
            "resumed_bytes": resumed_bytes,
            "needed_bytes": needed_bytes,
            "present_files": work.present,
            "dataset_version": manifest.dataset_version,
            "manifest_uri": self.bucket.uri(f"{self.prefix}/{MANIFEST_NAME}"),
            "diff": {
                "before": f"{work.present} of {total} files {where}",
                "after": f"{total} of {total} files {where}",
            },
        }

    def _path(self, file: RestoreFile) -> str:
        return os.path.join(self.request.root, file.path)

    def _uri(self, file: RestoreFile) -> str:
        return self.bucket.uri(f"{self.prefix}/{file.path}")

    def _read_manifest(self, objects: dict[str, ListedObject]) -> bytes:
        key = f"{self.prefix}/{MANIFEST_NAME}"
        if key not in objects:
            raise OpsError(
                self.bucket.uri(key),
                "there is no manifest, so nothing says that a backup is complete and what is in it",
                "Check the bucket, the prefix and the version; rerun a backup that was interrupted to complete it",
            )
        return self._get(key, objects[key])

    def _check_version(self, manifest: Manifest) -> None:
        """Compare the manifest with its name: the version is the beginning of its SHA-256."""
        named = self.request.dataset_version or self.prefix.rpartition("/")[2]
        if self.request.prefix and not self.request.dataset_version:
            return
        if manifest.dataset_version != named:
            raise OpsError(
                self.bucket.uri(f"{self.prefix}/{MANIFEST_NAME}"),
                f"it is not the manifest of version {named}, but of {manifest.dataset_version}",
                "It was changed after the backup: retrieve its first version (the bucket keeps them) or restore "
                "another version of the data set",
            )

    def _select(self, manifest: Manifest, objects: dict[str, ListedObject]) -> list[RestoreFile]:
        """Return the files that were asked for, the largest first, so that none is left for the end."""
        files = [
            RestoreFile(path, entry.size_bytes, entry.sha256, objects.get(f"{self.prefix}/{path}"))
            for path, entry in manifest.files(self.request.content).items()
        ]
        return sorted(files, key=lambda file: (-file.size_bytes, file.path))

    def _has_manifest(self, content: bytes) -> bool:
        """Say whether nothing is to be done about the manifest; raises OpsError where another version lies there."""
        if self.request.content == "archives":
            return True
        path = os.path.join(self.request.root, MANIFEST_NAME)
        try:
            with open(path, "rb") as file:
                found = file.read()
        except FileNotFoundError:
            return False
        if found != content and not self.request.replace:
            raise OpsError(
                f"Manifest {path}",
                f"it is of version {hashlib.sha256(found).hexdigest()[:VERSION_DIGITS]}, and version "
                f"{hashlib.sha256(content).hexdigest()[:VERSION_DIGITS]} is to be restored; nothing was changed",
                "Restore into another folder, or set replace",
            )
        return found == content

    def _look(self, files: Iterable[RestoreFile], work: _Work, manifest: Manifest, check_mode: bool) -> None:
        """Sort ``files`` into those that are there and right, and those to restore; raises OpsError for wrong ones.

        A file that nothing is known of is hashed, once; in check mode its size alone decides.
        """
        unknown: list[RestoreFile] = []
        for file in files:
            found = self._verified.look(file)
            if found == "unknown" and not check_mode:
                unknown.append(file)
            elif found == "absent":
                work.missing.append(file)
            elif found == "different":
                self._refuse_unless_replacing(file, "size")
                work.missing.append(file)
            else:
                work.present += 1
                if not check_mode:
                    self._part(file).remove_stray_checkpoint()
        if not unknown:
            return
        self._progress.start("Verifying existing files", sum(file.size_bytes for file in unknown), "bytes")
        done = 0
        for file in unknown:
            if self._hash(file, done) == file.sha256:
                work.present += 1
                self._part(file).remove_stray_checkpoint()
                self._keep(file, manifest)
            else:
                self._refuse_unless_replacing(file, "SHA-256")
                work.missing.append(file)
            done += file.size_bytes
        self._verified.save()

    def _refuse_unless_replacing(self, file: RestoreFile, why: str) -> None:
        if not self.request.replace:
            raise OpsError(
                f"File {self._path(file)}",
                f"the existing file differs from the manifest ({why}); it was not changed",
                "Move it away or set replace, and run again",
            )

    def _hash(self, file: RestoreFile, done: int) -> str:
        sha256 = hashlib.sha256()
        with open(self._path(file), "rb", buffering=0) as source:
            while block := source.read(BLOCK_BYTES):
                sha256.update(block)
                done += len(block)
                self._progress.update(done)
        return sha256.hexdigest()

    def _check_object(self, file: RestoreFile) -> None:
        """Raise OpsError where the bucket does not have what the manifest names, before the first byte is taken."""
        todo = (
            "Complete the backup from where the data still is (playbooks/steps/backup.yml uploads what is missing), "
            "retrieve an earlier version of the object (the bucket keeps them), or restore another version of the data "
            "set"
        )
        if file.object is None:
            raise OpsError(self._uri(file), "the manifest names this object, but it does not exist", todo)
        if file.object.size_bytes != file.size_bytes:
            why = f"size mismatch: expected {file.size_bytes} bytes (manifest), got {file.object.size_bytes}"
            raise OpsError(self._uri(file), why, todo)

    def _look_at_trees(self, objects: dict[str, ListedObject], work: _Work, check_mode: bool) -> None:
        request = self.request
        for split in dict.fromkeys(request.trees):
            tree = TreeRestore(
                self.bucket,
                self.prefix,
                request.root,
                split,
                request.state_dir,
                self._progress,
                request.connections,
                self._warn,
            )
            tree.look(objects, replace=request.replace, check_mode=check_mode)
            if tree.is_present:
                work.present += tree.files
            else:
                work.missing_trees.append(tree)

    def _needed_bytes(self, work: _Work) -> int:
        """Return how much disk is still needed; what an earlier run has allocated is there already."""
        needed = sum(tree.needed_bytes for tree in work.missing_trees)
        return needed + sum(self._part(file).missing_bytes for file in work.missing)

    def _restore_all(self, files: Sequence[RestoreFile], manifest: Manifest) -> None:
        for folder in {os.path.dirname(self._path(file)) for file in files}:
            os.makedirs(folder, exist_ok=True)
        self._progress.start("Restoring", sum(file.size_bytes for file in files), "bytes")
        self._restore_some(
            _LARGE_AT_ONCE, self._fetch_large, [f for f in files if f.size_bytes > _SMALL_BYTES], manifest
        )
        self._restore_some(
            self.request.connections, self._fetch_small, [f for f in files if f.size_bytes <= _SMALL_BYTES], manifest
        )
        self._verified.save()

    def _restore_some(
        self, at_once: int, fetch: Callable[[RestoreFile], None], files: Sequence[RestoreFile], manifest: Manifest
    ) -> None:
        """Restore ``files``, some at a time; the first failure of any ends all and is raised."""

        def restore(file: RestoreFile) -> None:
            if self._stop.is_set():
                return
            try:
                fetch(file)
                self._keep(file, manifest)
            except BaseException as error:  # noqa: BLE001 (raised below)
                with self._lock:
                    if self._failure is None or isinstance(self._failure, CancelledError):
                        self._failure = error
                self._stop.set()

        with ThreadPoolExecutor(at_once) as pool:
            pool.map(restore, files)
        if self._failure is not None:
            with contextlib.suppress(OSError):
                self._verified.save()
            raise self._failure

    def _keep(self, file: RestoreFile, manifest: Manifest) -> None:
        """Record a file that is finished and proved, so that the next run need not read it."""
        with self._lock:
            self._verified.remember(file)
            self._verified.save(at_most_every_seconds=_RECORD_INTERVAL_SECONDS)
        folder, _, name = file.path.rpartition("/")
        if folder == ARCHIVE_FOLDER:
            archive = manifest.archives[name]
            mtime_ns = os.stat(self._path(file)).st_mtime_ns
            # What archive_fetch would have found out: the MD5 belongs to the bytes that have this SHA-256.
            record = VerifiedArchive(name, archive.size_bytes, mtime_ns, archive.md5, archive.sha256)
            write_verified(self.request.state_dir, record)

    def _fetch_large(self, file: RestoreFile) -> None:
        """Bring one file over several connections, from what an earlier run left on."""
        part = self._part(file)
        done = self._resumable(file)
        with part.open(done) as target:
            sha256 = self._transfer(file, part, target, done)
        if sha256 != file.sha256:
            part.reject()
            raise self._wrong_bytes(file, sha256)
        part.commit()

    def _part(self, file: RestoreFile) -> ResumablePartFile:
        key = {"sha256": file.sha256, "etag": _facts(file).validator}
        return ResumablePartFile(self._path(file), file.size_bytes, _CHECKPOINT, key, self._warn)

    def _resumable(self, file: RestoreFile) -> Ranges:
        """Return what of the file's part can be kept; its checkpoint is read, and warned of, once."""
        if file.path not in self._kept:
            self._kept[file.path] = self._part(file).resumable()
        return self._kept[file.path]

    def _transfer(self, file: RestoreFile, part: ResumablePartFile, target: Target, done: Ranges) -> str:
        """Fill ``target``, with checkpoints and progress, and return its SHA-256."""
        facts = _facts(file)
        source = S3Source(self.bucket, f"{self.prefix}/{file.path}", facts=facts, stop=self._stop)

        def report(_done_bytes: int, hashed_bytes: int) -> None:
            if self._stop.is_set():
                raise CancelledError
            self._report(file, hashed_bytes)

        part.checkpoint(done.pairs())
        connections = max(1, self.request.connections // _LARGE_AT_ONCE)
        policy = Policy(connections, _RETRIES, part.checkpoint, report)
        digests = transfer([(source, facts)], target, done, policy, hashes=Sha256())
        self._report(file, file.size_bytes)
        return digests.sha256

    def _fetch_small(self, file: RestoreFile) -> None:
        """Bring one file in one request."""
        content = self._get(f"{self.prefix}/{file.path}", file.object) if file.size_bytes and file.object else b""
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != file.sha256:
            raise self._wrong_bytes(file, sha256)
        write_atomic(self._path(file), content)
        self._report(file, file.size_bytes)

    def _get(self, key: str, found: ListedObject) -> bytes:
        """Return all bytes of an object."""
        return self.bucket.read(key, 0, found.size_bytes, found.etag, self._pause)

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise CancelledError

    def _report(self, file: RestoreFile, proved_bytes: int) -> None:
        with self._lock:
            self._proved_bytes[file.path] = proved_bytes
            self._progress.update(sum(self._proved_bytes.values()))

    def _wrong_bytes(self, file: RestoreFile, sha256: str) -> OpsError:
        return OpsError(
            self._uri(file),
            f"checksum mismatch: expected SHA-256 {file.sha256} (manifest), got {sha256}; download discarded",
            "Run again in case the network damaged it. If it persists, the object is damaged: retrieve an earlier "
            "version of it (the bucket keeps them) or restore another version of the data set",
        )


def _facts(file: RestoreFile) -> Facts:
    return Facts(file.size_bytes, ranges=True, validator=file.object.etag if file.object else "")
