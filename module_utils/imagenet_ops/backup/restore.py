"""A data set back from a bucket: what its manifest names, each file proved by its SHA-256, and last the manifest.

A file grows as ``<file>.part``, hashed as it comes, beside a journal of what of it is safe (``<file>.part.json``), and
gets its name when it is whole and right. So whatever ended a run, the next one takes only what is missing, and a
manifest in the folder means that everything that was asked for is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, ListedObject
from ansible.module_utils.imagenet_ops.backup.request import CONTENTS, RestoreFile, RestoreRequest, find_prefix
from ansible.module_utils.imagenet_ops.backup.tree_restore import TreeRestore
from ansible.module_utils.imagenet_ops.backup.verified_files import VerifiedFiles
from ansible.module_utils.imagenet_ops.core.disk import allocate, allocated_bytes, disk_error, require_space
from ansible.module_utils.imagenet_ops.core.errors import CancelledError, OpsError, TransientError
from ansible.module_utils.imagenet_ops.core.files import (
    fsync_directory,
    read_json,
    remove_durably,
    write_atomic,
    write_json,
)
from ansible.module_utils.imagenet_ops.core.hashing import BLOCK_BYTES
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.core.retry import Attempts
from ansible.module_utils.imagenet_ops.dataset.manifest import (
    ARCHIVE_FOLDER,
    MANIFEST_NAME,
    VERSION_DIGITS,
    Manifest,
    parse_manifest,
)
from ansible.module_utils.imagenet_ops.download.digests import Sha256
from ansible.module_utils.imagenet_ops.download.engine import Policy, Target, transfer
from ansible.module_utils.imagenet_ops.download.ranges import Ranges
from ansible.module_utils.imagenet_ops.download.s3 import BucketSource
from ansible.module_utils.imagenet_ops.download.source import Facts
from ansible.module_utils.imagenet_ops.download.verified import VerifiedArchive, write_verified

_JOURNAL_FORMAT = 1
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

    def __init__(self, bucket: Bucket, request: RestoreRequest) -> None:
        """Keep the settings."""
        self.bucket = bucket
        self.request = request
        self.prefix = ""
        self._progress = Progress(request.state_dir, "s3_restore")
        self._verified = VerifiedFiles(request.root, os.path.join(request.state_dir, "s3_restore.json"))
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
        resumed_bytes = sum(_resumable(self._path(file), file).total for file in work.missing)
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
                "Check the bucket, the prefix and the version; a backup that was cut short is completed by running it "
                "again",
            )
        return self._get(key, objects[key])

    def _check_version(self, manifest: Manifest) -> None:
        """Hold the manifest against its own name: the version is the beginning of its SHA-256."""
        named = self.request.dataset_version or self.prefix.rpartition("/")[2]
        if self.request.prefix and not self.request.dataset_version:
            return
        if manifest.dataset_version != named:
            raise OpsError(
                self.bucket.uri(f"{self.prefix}/{MANIFEST_NAME}"),
                f"it is not the manifest of version {named}: its own is {manifest.dataset_version}",
                "It was changed after the backup; fetch its first version (the bucket keeps them) or restore another "
                "version of the data set",
            )

    def _select(self, manifest: Manifest, objects: dict[str, ListedObject]) -> list[RestoreFile]:
        """Return the files that were asked for, the largest first, so that none is left for the end."""
        wanted = CONTENTS[self.request.content]
        files = []
        for path, entry in manifest.files().items():
            if os.path.normpath(path) != path or path.startswith("/") or path.count("/") > 1:
                raise OpsError(
                    self.bucket.uri(f"{self.prefix}/{MANIFEST_NAME}"),
                    f"it names a file outside of the data set: {path!r}",
                    "Do not use this manifest; it was not written by recordio_pack",
                )
            if path.partition("/")[0] in wanted:
                stored = objects.get(f"{self.prefix}/{path}")
                files.append(RestoreFile(path, entry.size_bytes, entry.sha256, stored))
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
                f"it is of version {hashlib.sha256(found).hexdigest()[:VERSION_DIGITS]}, and what is to be restored is "
                f"{hashlib.sha256(content).hexdigest()[:VERSION_DIGITS]}; nothing was touched",
                "Restore into another folder, or allow it to replace what is there",
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
                self._refuse_unless_replacing(file, "its size is another")
                work.missing.append(file)
            else:
                work.present += 1
                if not check_mode:
                    self._remove_stray_journal(file)
        if not unknown:
            return
        self._progress.start("Verifying what is there", sum(file.size_bytes for file in unknown), "bytes")
        done = 0
        for file in unknown:
            if self._hash(file, done) == file.sha256:
                work.present += 1
                self._remove_stray_journal(file)
                self._keep(file, manifest)
            else:
                self._refuse_unless_replacing(file, "its SHA-256 is another")
                work.missing.append(file)
            done += file.size_bytes
        self._verified.save()

    def _remove_stray_journal(self, file: RestoreFile) -> None:
        """Remove the journal of a file that was killed right after it got its name."""
        part = f"{self._path(file)}.part"
        if os.path.exists(f"{part}.json") and not os.path.exists(part):
            remove_durably(f"{part}.json")

    def _refuse_unless_replacing(self, file: RestoreFile, why: str) -> None:
        if not self.request.replace:
            raise OpsError(
                f"File {self._path(file)}",
                f"it is there, but {why} than the manifest says; it was left as it is",
                "Move it away, or allow the restore to replace what is there, and run again",
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
            "Make it whole from where the data still is (playbooks/steps/backup.yml uploads what is missing), fetch an "
            "earlier version of the object (the bucket keeps them), or restore another version of the data set"
        )
        if file.object is None:
            raise OpsError(self._uri(file), "the manifest names it, but there is no such object", todo)
        if file.object.size_bytes != file.size_bytes:
            why = f"it has {file.object.size_bytes} bytes, and the manifest says {file.size_bytes}"
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
            )
            tree.look(objects, replace=request.replace, check_mode=check_mode)
            if tree.is_present:
                work.present += tree.files
            else:
                work.missing_trees.append(tree)

    def _needed_bytes(self, work: _Work) -> int:
        """Return how much disk is still needed; what an earlier run has allocated is there already."""
        needed = sum(tree.needed_bytes for tree in work.missing_trees)
        for file in work.missing:
            needed += file.size_bytes - min(allocated_bytes(f"{self._path(file)}.part"), file.size_bytes)
        return needed

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
        path = self._path(file)
        part, journal = f"{path}.part", f"{path}.part.json"
        done = _resumable(path, file)
        if not done.total:
            remove_durably(journal)  # first of all: a journal must never meet a file that it was not written for
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not done.total:
                allocate(descriptor, file.size_bytes)
            target = Target(part, descriptor, file.size_bytes)
            sha256 = self._transfer(file, target, done, journal)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if sha256 != file.sha256:
            for useless in (part, journal):
                remove_durably(useless)
            raise self._wrong_bytes(file, sha256)
        os.replace(part, path)
        fsync_directory(os.path.dirname(path))
        remove_durably(journal)

    def _transfer(self, file: RestoreFile, target: Target, done: Ranges, journal: str) -> str:
        """Fill ``target``, with a journal and progress, and return its SHA-256."""
        facts = _facts(file)
        source = BucketSource(self.bucket, f"{self.prefix}/{file.path}", facts, self._stop)

        def checkpoint(ranges: list[tuple[int, int]]) -> None:
            write_json(journal, {**_journal_key(file), "done": ranges})

        def report(_done_bytes: int, hashed_bytes: int) -> None:
            if self._stop.is_set():
                raise CancelledError
            self._report(file, hashed_bytes)

        checkpoint(done.pairs())
        connections = max(1, self.request.connections // _LARGE_AT_ONCE)
        policy = Policy(connections, _RETRIES, checkpoint, report)
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
        """Return all bytes of an object, asking again where that may help."""
        attempts = Attempts(_RETRIES)
        while True:
            try:
                return self._get_once(key, found)
            except TransientError as error:  # noqa: PERF203 (each turn is a request over the network)
                if self._stop.wait(attempts.failed(self.bucket.uri(key), error, done_bytes=0)):
                    raise CancelledError from error

    def _get_once(self, key: str, found: ListedObject) -> bytes:
        facts = Facts(found.size_bytes, ranges=True, validator=found.etag)
        session = BucketSource(self.bucket, key, facts, self._stop).session()
        with contextlib.closing(session.open(0, found.size_bytes, facts)) as stream:
            content = stream.read(found.size_bytes)
        if len(content) != found.size_bytes:
            raise TransientError(f"{len(content)} of {found.size_bytes} bytes came")
        return content

    def _report(self, file: RestoreFile, proved_bytes: int) -> None:
        with self._lock:
            self._proved_bytes[file.path] = proved_bytes
            self._progress.update(sum(self._proved_bytes.values()))

    def _wrong_bytes(self, file: RestoreFile, sha256: str) -> OpsError:
        return OpsError(
            self._uri(file),
            f"its bytes are not those that were backed up: their SHA-256 is {sha256}, and the manifest says "
            f"{file.sha256}; they were thrown away",
            "Run again in case the network damaged them. If it comes back, the object is damaged: fetch an earlier "
            "version of it (the bucket keeps them) or restore another version of the data set",
        )


def _facts(file: RestoreFile) -> Facts:
    return Facts(file.size_bytes, ranges=True, validator=file.object.etag if file.object else "")


def _journal_key(file: RestoreFile) -> dict[str, Any]:
    """Return what must be the same for a part to be taken up again."""
    facts = _facts(file)
    return {
        "format": _JOURNAL_FORMAT,
        "size_bytes": file.size_bytes,
        "sha256": file.sha256,
        "etag": facts.validator,
    }


def _resumable(path: str, file: RestoreFile) -> Ranges:
    """Return what of the part file beside ``path`` can be kept: all that its journal names, if it is of this object."""
    journal = read_json(f"{path}.part.json")
    try:
        part_bytes = os.stat(f"{path}.part").st_size
    except FileNotFoundError:
        return Ranges()
    if part_bytes != file.size_bytes or not isinstance(journal, dict):
        return Ranges()
    if any(journal.get(name) != value for name, value in _journal_key(file).items()):
        return Ranges()
    return Ranges(journal["done"])
