"""A data set in a bucket: every file that the manifest names, and last the manifest.

So a manifest in the bucket means that everything it names is there. A file is hashed while it is uploaded, and its
upload is completed only if it is what the manifest says; until then S3 shows nothing under its key. A run that was
killed is taken up where it stopped: parts that S3 has already, with the right checksum, are not sent again.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import threading
import warnings
import zlib
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, ListedObject, crc32_text
from ansible.module_utils.imagenet_ops.backup.tree_backup import TreeBackup, TreeJournal
from ansible.module_utils.imagenet_ops.backup.upload import MIB, Uploader
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile, Warn, hexadecimal
from ansible.module_utils.imagenet_ops.dataset.manifest import MANIFEST_NAME, parse_manifest, read_manifest


def _is_proof(value: Any) -> bool:
    """Return whether ``value`` is what a verified object is recorded with: its ETag and the SHA-256 of the file."""
    return isinstance(value, str) and re.fullmatch(r"\S+ [0-9a-f]{64}", value) is not None


_UPLOADS = Kind(
    "s3_backup record of unfinished uploads",
    1,
    {"uploads": {str: hexadecimal(64)}},
    starts_over="unfinished uploads are discarded and their files sent from the start",
    upgrade=lambda value: {"uploads": value},
)
_ETAGS = Kind(
    "s3_backup record of verified objects",
    1,
    {"etags": {str: _is_proof}},
    starts_over="each object is queried again",
    upgrade=lambda value: {"etags": value},
)


@dataclass(frozen=True)
class BackupFile:
    """A file of the data set: ``path`` below its root, which is also its key below the prefix, and what it must be."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class BackupPlan:
    """What a backup consists of: all files but the manifest, and the manifest's own bytes."""

    root: str
    default_prefix: str
    files: list[BackupFile]
    manifest: bytes

    @property
    def manifest_sha256(self) -> str:
        """The SHA-256 of the manifest: the identity of the data set."""
        return hashlib.sha256(self.manifest).hexdigest()

    @property
    def size_bytes(self) -> int:
        """The size of all files and the manifest."""
        return sum(file.size_bytes for file in self.files) + len(self.manifest)


def make_plan(root: str) -> BackupPlan:
    """Return what is to be backed up of the data set in ``root``, by its manifest."""
    read_manifest(root)
    path = os.path.join(root, MANIFEST_NAME)
    with open(path, "rb") as file:
        content = file.read()
    manifest = parse_manifest(content, path)
    named = [BackupFile(path, entry.size_bytes, entry.sha256) for path, entry in manifest.files().items()]
    files = sorted(named, key=lambda file: (-file.size_bytes, file.path))
    return BackupPlan(root, f"{manifest.dataset}/{manifest.dataset_version}", files, content)


class Backup:
    """Brings one data set into one bucket. Use an object for one run."""

    def __init__(
        self,
        bucket: Bucket,
        plan: BackupPlan,
        state_dir: str,
        *,
        prefix: str = "",
        workers: int = 3,
        part_size_bytes: int = 16 * MIB,
        read_back: bool = False,
        trees: Sequence[str] = (),
        shard_bytes: int = 1024 * MIB,
        warn: Warn = warnings.warn,
    ) -> None:
        """``prefix`` "" is that of the plan, ``workers`` the parts in flight at a time.

        ``state_dir`` keeps which uploads are ours, for a later run to take up, which objects were proved, and the
        progress. With ``read_back`` an object counts as proved only once it was read from the bucket and hashed.
        ``trees`` are the splits whose trees go up too, in tars of about ``shard_bytes``. ``warn`` is called with a
        sentence where what an earlier run left cannot be used.
        """
        self.bucket = bucket
        self.plan = plan
        self.prefix = prefix.strip("/") or plan.default_prefix
        self.workers = workers
        self._uploads_record = StateFile(os.path.join(state_dir, "s3_backup.uploads.json"), _UPLOADS, warn)
        self._uploads: dict[str, str] = {}
        self._etags_record = StateFile(os.path.join(state_dir, "s3_backup.etags.json"), _ETAGS, warn)
        self._known_etags: dict[str, str] = (self._etags_record.read() or {"etags": {}})["etags"]
        self._etags: dict[str, str] = {}
        self._read_back = read_back
        self._progress = Progress(state_dir, "s3_backup")
        self._uploader = Uploader(bucket, self._progress, workers, part_size_bytes)
        journal = TreeJournal(os.path.join(state_dir, "s3_backup.trees.json"), warn)
        self._trees = [
            TreeBackup(self._uploader, self.prefix, os.path.join(plan.root, split), journal, shard_bytes, read_back)
            for split in trees
        ]
        self._lock = threading.Lock()

    def key(self, path: str) -> str:
        """Return the key of a file of the data set."""
        return f"{self.prefix}/{path}"

    def run(self, *, check_mode: bool) -> dict[str, Any]:
        """Upload what is missing (in check mode: only look) and return the module's result."""
        listed = self.bucket.objects(f"{self.prefix}/")
        complete = self._has_manifest(listed)
        missing = self._missing(listed)
        for file in missing:
            self._check_size(file)
        for tree in self._trees:
            tree.look(listed)
        planned_bytes = sum(file.size_bytes for file in missing) + (0 if complete else len(self.plan.manifest))
        if check_mode:
            sent_bytes = planned_bytes + sum(tree.planned_bytes for tree in self._trees)
        else:
            self._upload(missing, planned_bytes, complete=complete)
            sent_bytes = self._uploader.sent_bytes
        total = len(self.plan.files) + 1 + sum(tree.objects for tree in self._trees)
        planned = len(missing) + (not complete) + sum(tree.planned_objects for tree in self._trees)
        return {
            "changed": planned > 0,
            "uploaded_objects": planned,
            "uploaded_bytes": sent_bytes,
            "present_objects": total - planned,
            "size_bytes": self.plan.size_bytes + sum(tree.size_bytes for tree in self._trees),
            "manifest_uri": self.bucket.uri(self.key(MANIFEST_NAME)),
            "diff": {
                "before": f"{total - planned} of {total} objects under {self.bucket.uri(self.prefix)}\n",
                "after": f"{total} of {total} objects under {self.bucket.uri(self.prefix)}\n",
            },
        }

    def _upload(self, missing: list[BackupFile], planned_bytes: int, *, complete: bool) -> None:
        """Upload what is missing, and then what says that it is there: the indexes of the trees, and the manifest."""
        trees = [tree for tree in self._trees if not tree.is_complete]
        try:
            if missing or trees or not complete:
                total_bytes = planned_bytes + sum(tree.unproved_bytes for tree in trees)
                self._progress.start("upload", total_bytes, "bytes")
            if missing or trees:
                unfinished = self._unfinished_uploads(missing)
                self._uploader.each(missing, functools.partial(self._upload_file, unfinished))
        finally:
            self._etags_record.write({"etags": self._etags})
        for tree in trees:
            tree.upload()
        if missing or trees:
            self._unfinished_uploads([])  # one whose id was lost with the answer; its parts would be paid for
        if not complete:
            self._put_manifest()
        if missing or trees or not complete:
            self._progress.finish()

    def _has_manifest(self, listed: Container[str]) -> bool:
        """Say whether our manifest is in the bucket; raises OpsError where another one is in its place."""
        key = self.key(MANIFEST_NAME)
        if key not in listed:
            return False
        stored = self.bucket.stored(key)
        if stored is None or stored.sha256 != self.plan.manifest_sha256:
            raise OpsError(
                self.bucket.uri(key),
                "it is the manifest of another version of the data set, and a backup is never overwritten by another",
                "Leave the prefix out, so that each version gets its own, or choose an unused one",
            )
        return True

    def _missing(self, listed: dict[str, ListedObject]) -> list[BackupFile]:
        """Return the files that nothing proves to be in the bucket."""
        with ThreadPoolExecutor(self.workers) as pool:
            proved = pool.map(lambda file: self._is_proved(file, listed.get(self.key(file.path))), self.plan.files)
            return [file for file, is_there in zip(self.plan.files, proved) if not is_there]

    def _is_proved(self, file: BackupFile, listed: ListedObject | None) -> bool:
        """Say whether the object is the file: by the SHA-256 it carries, or as the one that was proved before."""
        if listed is None or listed.size_bytes != file.size_bytes:
            return False
        uri = self.bucket.uri(self.key(file.path))
        etag = listed.etag
        if self._known_etags.get(uri) != f"{etag} {file.sha256}":
            stored = self.bucket.stored(self.key(file.path))
            if stored is None or (stored.size_bytes, stored.sha256) != (file.size_bytes, file.sha256):
                return False
            etag = stored.etag
        if self._read_back and self._stored_sha256(file, etag) != file.sha256:
            return False
        self._remember(file, etag)
        return True

    def _remember(self, file: BackupFile, etag: str) -> None:
        """Keep that the object with ``etag`` is the file, so that the next run needs only the listing to know it."""
        with self._lock:
            self._etags[self.bucket.uri(self.key(file.path))] = f"{etag} {file.sha256}"

    def _stored_sha256(self, file: BackupFile, etag: str) -> str:
        return self._uploader.stored_sha256(self.key(file.path), file.size_bytes, etag)

    def _check_size(self, file: BackupFile) -> None:
        path = os.path.join(self.plan.root, file.path)
        try:
            size_bytes = os.path.getsize(path)
        except OSError as error:
            raise self._wrong_file(
                path, f"it cannot be read ({error.strerror}), and the bucket does not have it"
            ) from error
        if size_bytes != file.size_bytes:
            raise self._wrong_file(
                path, f"size mismatch: expected {file.size_bytes} bytes (manifest), got {size_bytes}"
            )

    def _wrong_file(self, path: str, why: str) -> OpsError:
        todo = "Recreate the file (playbooks/steps: fetch for an archive, pack for records) and run again"
        return OpsError(f"File {path}", why, todo)

    def _unfinished_uploads(self, files: list[BackupFile]) -> dict[str, str]:
        """Return for each file the id of the upload that an earlier run began, by path; abort all others.

        Which upload is of which bytes is known from the state alone: S3 does not tell the metadata of an upload.
        """
        known = (self._uploads_record.read() or {"uploads": {}})["uploads"]
        wanted = {(self.key(file.path), file.sha256): file.path for file in files}
        found = {}
        for upload in self.bucket.uploads(f"{self.prefix}/"):
            path = wanted.get((upload.key, known.get(upload.upload_id, "")))
            if path is None:
                self.bucket.abort_upload(upload.key, upload.upload_id)
            else:
                found[path] = upload.upload_id
        self._uploads = {upload_id: known[upload_id] for upload_id in found.values()}
        return found

    def _begin_upload(self, file: BackupFile) -> str:
        upload_id = self.bucket.begin_upload(self.key(file.path), file.sha256)
        with self._lock:
            self._uploads[upload_id] = file.sha256
            self._uploads_record.write({"uploads": self._uploads})
        return upload_id

    def _upload_file(self, unfinished: dict[str, str], file: BackupFile) -> None:
        """Upload one file, from where the unfinished upload of it stopped, and prove that it has arrived."""
        key = self.key(file.path)
        try:
            with open(os.path.join(self.plan.root, file.path), "rb") as source:
                sent = self._uploader.upload(
                    key,
                    source,
                    file.size_bytes,
                    begin=lambda: self._begin_upload(file),
                    check=lambda sha256: self._check_hash(file, sha256),
                    upload_id=unfinished.get(file.path),
                )
        except OSError as error:
            why = f"it cannot be read ({error.strerror})"
            raise self._wrong_file(error.filename or file.path, why) from error
        self._verify(file, sent.crc32)

    def _check_hash(self, file: BackupFile, sha256: str) -> None:
        if sha256 != file.sha256:
            path = os.path.join(self.plan.root, file.path)
            raise self._wrong_file(
                path, f"checksum mismatch: expected SHA-256 {file.sha256} (manifest), got {sha256}; not uploaded"
            )

    def _verify(self, file: BackupFile, crc32: str) -> None:
        """Compare with what S3 says that it has stored."""
        stored = self.bucket.stored(self.key(file.path))
        expected = (file.size_bytes, file.sha256, crc32)
        if stored is None or (stored.size_bytes, stored.sha256, stored.crc32 or crc32) != expected:
            raise OpsError(
                self.bucket.uri(self.key(file.path)),
                f"upload verification failed: expected {_in_words(*expected)}, S3 reports "
                + ("no such object" if stored is None else _in_words(stored.size_bytes, stored.sha256, stored.crc32)),
                "Run again: verified objects are not sent again. If it persists, something else writes to the bucket",
            )
        if self._read_back:
            sha256 = self._stored_sha256(file, stored.etag)
            if sha256 != file.sha256:
                raise OpsError(
                    self.bucket.uri(self.key(file.path)),
                    f"checksum mismatch when read back: expected SHA-256 {file.sha256} (manifest), got {sha256}",
                    "Run again to upload this object again. If it persists, the S3 server is faulty",
                )
        self._remember(file, stored.etag)

    def _put_manifest(self) -> None:
        content, sha256 = self.plan.manifest, self.plan.manifest_sha256
        key, crc32 = self.key(MANIFEST_NAME), crc32_text(zlib.crc32(content))
        if self.bucket.put_new(key, content, sha256, crc32):
            self._uploader.count(len(content), sent=True)
        self._has_manifest({key})


def _in_words(size_bytes: int, sha256: str, crc32: str) -> str:
    return f"{size_bytes} bytes with SHA-256 {sha256 or 'unknown'} and CRC32 {crc32 or 'unknown'}"
