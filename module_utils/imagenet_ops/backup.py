"""A data set in a bucket: every file that the manifest names, and last the manifest.

So a manifest in the bucket means that everything it names is there. A file is hashed while it is uploaded, and its
upload is completed only if it is what the manifest says; until then S3 shows nothing under its key. A run that was
killed is taken up where it stopped: parts that S3 has already, with the right checksum, are not sent again.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.imagenet_ops.errors import OpsError
from ansible.module_utils.imagenet_ops.manifest import MANIFEST_NAME, parse_manifest, read_manifest
from ansible.module_utils.imagenet_ops.s3 import Bucket, StoredPart, crc32_text
from ansible.module_utils.imagenet_ops.state import Progress, read_json, write_json

MIB = 1 << 20
# S3's limits ("Amazon S3 multipart upload limits" in its User Guide).
MOST_PARTS = 10_000
LEAST_PART_BYTES = 5 * MIB
# Files that are read and hashed at a time: SHA-256 is a single chain, so one file alone is as fast as one core.
READERS = 2


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


def part_bytes(size_bytes: int, least_bytes: int) -> int:
    """Return the size of the parts of an object of ``size_bytes``: whole MiB, within S3's limits."""
    needed = -(-size_bytes // MOST_PARTS)
    return -(-max(needed, least_bytes, LEAST_PART_BYTES) // MIB) * MIB


class Backup:
    """Brings one data set into one bucket. Use an object for one run."""

    def __init__(
        self, bucket: Bucket, plan: BackupPlan, prefix: str, workers: int, part_size_bytes: int, state_dir: str
    ) -> None:
        """Keep the settings; ``prefix`` "" is that of the plan, ``workers`` the parts in flight at a time.

        ``state_dir`` keeps which uploads are ours, for a later run to take up, and the progress.
        """
        self.bucket = bucket
        self.plan = plan
        self.prefix = prefix.strip("/") or plan.default_prefix
        self.part_size_bytes = part_size_bytes
        self.workers = workers
        self._uploads_path = os.path.join(state_dir, "s3_backup.uploads.json")
        self._uploads: dict[str, str] = {}
        self._progress = Progress(state_dir, "s3_backup")
        self._lock = threading.Lock()
        self._done_bytes = 0
        self._sent_bytes = 0
        self._failure: BaseException | None = None
        # A part is in memory from when it is read until S3 has it; with one for each reader, these are all there are.
        self._in_memory = threading.Semaphore(workers)

    def key(self, path: str) -> str:
        """Return the key of a file of the data set."""
        return f"{self.prefix}/{path}"

    def run(self, *, check_mode: bool) -> dict[str, Any]:
        """Upload what is missing (in check mode: only look) and return the module's result."""
        sizes = self.bucket.sizes(f"{self.prefix}/")
        complete = self._has_manifest(sizes)
        missing = self._missing(sizes, complete=complete)
        total = len(self.plan.files) + 1
        planned = len(missing) + (not complete)
        planned_bytes = sum(file.size_bytes for file in missing) + (0 if complete else len(self.plan.manifest))
        for file in missing:
            self._check_size(file)
        if check_mode:
            self._sent_bytes = planned_bytes
        elif planned:
            self._upload_all(missing, planned_bytes)
            if not complete:
                self._put_manifest()
            self._progress.finish()
        return {
            "changed": planned > 0,
            "uploaded_objects": planned,
            "uploaded_bytes": self._sent_bytes,
            "present_objects": total - planned,
            "manifest_uri": self.bucket.uri(self.key(MANIFEST_NAME)),
            "diff": {
                "before": f"{total - planned} of {total} objects under {self.bucket.uri(self.prefix)}\n",
                "after": f"{total} of {total} objects under {self.bucket.uri(self.prefix)}\n",
            },
        }

    def _has_manifest(self, sizes: dict[str, int]) -> bool:
        """Say whether our manifest is in the bucket; raises OpsError where another one is in its place."""
        key = self.key(MANIFEST_NAME)
        if key not in sizes:
            return False
        stored = self.bucket.stored(key)
        if stored is None or stored.sha256 != self.plan.manifest_sha256:
            raise OpsError(
                self.bucket.uri(key),
                "it is the manifest of another version of the data set, and a backup is never overwritten by another",
                "Leave the prefix out, so that each version gets its own, or choose one that is not used",
            )
        return True

    def _missing(self, sizes: dict[str, int], *, complete: bool) -> list[BackupFile]:
        """Return the files that nothing proves to be in the bucket: neither SHA-256 nor the manifest written last."""
        candidates = [file for file in self.plan.files if sizes.get(self.key(file.path)) == file.size_bytes]
        if complete:
            proved = set(candidates)
        else:
            with ThreadPoolExecutor(self.workers) as pool:
                stored = pool.map(lambda file: self.bucket.stored(self.key(file.path)), candidates)
                proved = {
                    file
                    for file, found in zip(candidates, stored)
                    if found is not None and (found.size_bytes, found.sha256) == (file.size_bytes, file.sha256)
                }
        return [file for file in self.plan.files if file not in proved]

    def _check_size(self, file: BackupFile) -> None:
        path = os.path.join(self.plan.root, file.path)
        try:
            size_bytes = os.path.getsize(path)
        except OSError as error:
            raise self._wrong_file(path, f"it cannot be read ({error.strerror}), nor is it in the bucket") from error
        if size_bytes != file.size_bytes:
            raise self._wrong_file(path, f"it has {size_bytes} bytes, and the manifest says {file.size_bytes}")

    def _wrong_file(self, path: str, why: str) -> OpsError:
        todo = "Make the file again (playbooks/steps: fetch for an archive, pack for records) and run again"
        return OpsError(f"File {path}", why, todo)

    def _upload_all(self, files: list[BackupFile], total_bytes: int) -> None:
        self._progress.start("upload", total_bytes, "bytes")
        unfinished = self._unfinished_uploads(files)
        with ThreadPoolExecutor(self.workers) as sender, ThreadPoolExecutor(READERS) as readers:
            for file in files:
                readers.submit(self._upload, sender, file, unfinished.get(file.path))
        if self._failure is not None:
            raise self._failure

    def _unfinished_uploads(self, files: list[BackupFile]) -> dict[str, str]:
        """Return for each file the id of the upload that an earlier run began, by path; abort all others.

        Which upload is of which bytes is known from the state alone: S3 does not tell the metadata of an upload.
        """
        known = read_json(self._uploads_path) or {}
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
            write_json(self._uploads_path, self._uploads)
        return upload_id

    def _upload(self, sender: ThreadPoolExecutor, file: BackupFile, upload_id: str | None) -> None:
        """Upload one file and prove that it has arrived; the first failure of any stops all."""
        try:
            if file.size_bytes <= part_bytes(file.size_bytes, self.part_size_bytes):
                crc32 = self._upload_small(file)
            else:
                crc32 = self._upload_large(sender, file, upload_id)
            self._verify(file, crc32)
        except BaseException as error:  # noqa: BLE001 - raised by _upload_all
            self._fail(error)

    def _upload_small(self, file: BackupFile) -> str:
        with self._in_memory:
            data = b"".join(self._blocks(file, max(file.size_bytes, 1)))
            self._check_hash(file, hashlib.sha256(data).hexdigest())
            crc32 = crc32_text(zlib.crc32(data))
            self.bucket.put(self.key(file.path), data, file.sha256, crc32)
        self._count(len(data), sent=True)
        return crc32

    def _upload_large(self, sender: ThreadPoolExecutor, file: BackupFile, upload_id: str | None) -> str:
        key = self.key(file.path)
        old_parts = {} if upload_id is None else self.bucket.parts(key, upload_id)
        if upload_id is None:
            upload_id = self._begin_upload(file)
        sha256, crc32 = hashlib.sha256(), 0
        parts: dict[int, StoredPart] = {}
        sent: dict[int, Future[StoredPart]] = {}
        for number, data in enumerate(self._blocks(file, part_bytes(file.size_bytes, self.part_size_bytes)), 1):
            sha256.update(data)
            crc32 = zlib.crc32(data, crc32)
            part_crc32 = crc32_text(zlib.crc32(data))
            old = old_parts.get(number)
            if old is not None and is_same_part(old, data, part_crc32):
                parts[number] = old._replace(crc32=part_crc32)
                self._count(len(data), sent=False)
            else:
                self._in_memory.acquire()
                sent[number] = sender.submit(self._send_part, key, upload_id, number, data, part_crc32)
        parts.update({number: future.result() for number, future in sent.items()})
        try:
            self._check_hash(file, sha256.hexdigest())
        except OpsError:
            self.bucket.abort_upload(key, upload_id)
            raise
        self.bucket.complete_upload(key, upload_id, parts, crc32_text(crc32))
        return crc32_text(crc32)

    def _send_part(self, key: str, upload_id: str, number: int, data: bytes, crc32: str) -> StoredPart:
        try:
            self._check_running()
            part = self.bucket.put_part(key, upload_id, number, data, crc32)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._in_memory.release()
        self._count(len(data), sent=True)
        return part

    def _blocks(self, file: BackupFile, block_bytes: int) -> Iterator[bytes]:
        path = os.path.join(self.plan.root, file.path)
        try:
            with open(path, "rb") as source:
                while block := source.read(block_bytes):
                    self._check_running()
                    yield block
        except OSError as error:
            raise self._wrong_file(path, f"it cannot be read ({error.strerror})") from error

    def _fail(self, error: BaseException) -> None:
        """Keep the first failure: it is the one to report, and it ends everything else."""
        with self._lock:
            if self._failure is None:
                self._failure = error

    def _check_running(self) -> None:
        if self._failure is not None:
            raise _StoppedError

    def _check_hash(self, file: BackupFile, sha256: str) -> None:
        if sha256 != file.sha256:
            path = os.path.join(self.plan.root, file.path)
            raise self._wrong_file(path, f"its SHA-256 is {sha256}, and the manifest says {file.sha256}; not uploaded")

    def _verify(self, file: BackupFile, crc32: str) -> None:
        """Ask S3 what it has stored, and compare."""
        stored = self.bucket.stored(self.key(file.path))
        expected = (file.size_bytes, file.sha256, crc32)
        if stored is None or (stored.size_bytes, stored.sha256, stored.crc32 or crc32) != expected:
            raise OpsError(
                self.bucket.uri(self.key(file.path)),
                f"S3 does not have what was sent: {stored} and not {expected}",
                "Run again; what is proved to be there is not sent twice. If it comes back, something writes there",
            )

    def _put_manifest(self) -> None:
        content, sha256 = self.plan.manifest, self.plan.manifest_sha256
        key, crc32 = self.key(MANIFEST_NAME), crc32_text(zlib.crc32(content))
        if self.bucket.put_new(key, content, sha256, crc32):
            self._count(len(content), sent=True)
        self._has_manifest({key: len(content)})

    def _count(self, size_bytes: int, *, sent: bool) -> None:
        with self._lock:
            self._done_bytes += size_bytes
            self._sent_bytes += size_bytes if sent else 0
            self._progress.update(self._done_bytes)


class _StoppedError(Exception):
    """Something else failed, so this was given up."""


def is_same_part(part: StoredPart, data: bytes, crc32: str) -> bool:
    """Say whether a part that S3 has is ``data``: by the CRC32 that S3 kept, else by the ETag, which is then an MD5."""
    if part.size_bytes != len(data):
        return False
    if part.crc32:
        return part.crc32 == crc32
    return part.etag.strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()
