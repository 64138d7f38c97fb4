"""A data set in a bucket: every file that the manifest names, and last the manifest.

So a manifest in the bucket means that everything it names is there. A file is hashed while it is uploaded, and its
upload is completed only if it is what the manifest says; until then S3 shows nothing under its key. A run that was
killed is taken up where it stopped: parts that S3 has already, with the right checksum, are not sent again.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import zlib
from collections.abc import Container
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

from ansible.module_utils.imagenet_ops.errors import OpsError
from ansible.module_utils.imagenet_ops.manifest import MANIFEST_NAME, parse_manifest, read_manifest
from ansible.module_utils.imagenet_ops.s3 import Bucket, Buffer, ListedObject, StoredPart, crc32_text
from ansible.module_utils.imagenet_ops.state import Progress, read_json, write_json

MIB = 1 << 20
# S3's limits ("Amazon S3 multipart upload limits" in its User Guide).
MOST_PARTS = 10_000
LEAST_PART_BYTES = 5 * MIB
# Files that are read and hashed at a time: SHA-256 is a single chain, so one file alone is as fast as one core.
READERS = 4


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
        self,
        bucket: Bucket,
        plan: BackupPlan,
        state_dir: str,
        *,
        prefix: str = "",
        workers: int = 8,
        part_size_bytes: int = 16 * MIB,
        read_back: bool = False,
    ) -> None:
        """Keep the settings; ``prefix`` "" is that of the plan, ``workers`` the parts in flight at a time.

        ``state_dir`` keeps which uploads are ours, for a later run to take up, which objects were proved, and the
        progress. With ``read_back`` an object counts as proved only once it was read from the bucket and hashed.
        """
        self.bucket = bucket
        self.plan = plan
        self.prefix = prefix.strip("/") or plan.default_prefix
        self.part_size_bytes = part_size_bytes
        self.workers = workers
        self._uploads_path = os.path.join(state_dir, "s3_backup.uploads.json")
        self._uploads: dict[str, str] = {}
        self._etags_path = os.path.join(state_dir, "s3_backup.etags.json")
        self._known_etags: dict[str, str] = read_json(self._etags_path) or {}
        self._etags: dict[str, str] = {}
        self._read_back = read_back
        self._progress = Progress(state_dir, "s3_backup")
        self._lock = threading.Lock()
        self._done_bytes = 0
        self._sent_bytes = 0
        self._failure: BaseException | None = None
        # A part lies in one of these from when it is read until S3 has it. They are all the memory there is for parts,
        # and are used again: fresh memory for each part costs the processor as much as its checksum.
        self._buffers: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for _ in range(workers + READERS):
            self._buffers.put(bytearray())

    def key(self, path: str) -> str:
        """Return the key of a file of the data set."""
        return f"{self.prefix}/{path}"

    def run(self, *, check_mode: bool) -> dict[str, Any]:
        """Upload what is missing (in check mode: only look) and return the module's result."""
        listed = self.bucket.objects(f"{self.prefix}/")
        complete = self._has_manifest(listed)
        missing = self._missing(listed)
        total = len(self.plan.files) + 1
        planned = len(missing) + (not complete)
        planned_bytes = sum(file.size_bytes for file in missing) + (0 if complete else len(self.plan.manifest))
        for file in missing:
            self._check_size(file)
        if check_mode:
            self._sent_bytes = planned_bytes
        elif planned:
            self._upload(missing, planned_bytes, complete=complete)
        else:
            write_json(self._etags_path, self._etags)
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

    def _upload(self, missing: list[BackupFile], planned_bytes: int, *, complete: bool) -> None:
        try:
            self._upload_files(missing, planned_bytes)
        finally:
            write_json(self._etags_path, self._etags)
        if not complete:
            self._put_manifest()
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
                "Leave the prefix out, so that each version gets its own, or choose one that is not used",
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
        """Read an object back and return its SHA-256."""
        sha256 = hashlib.sha256()
        for start in range(0, file.size_bytes, self.part_size_bytes):
            end = min(start + self.part_size_bytes, file.size_bytes)
            sha256.update(self.bucket.read(self.key(file.path), start, end, etag))
        return sha256.hexdigest()

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

    def _upload_files(self, files: list[BackupFile], total_bytes: int) -> None:
        self._progress.start("upload", total_bytes, "bytes")
        unfinished = self._unfinished_uploads(files) if files else {}
        with ThreadPoolExecutor(self.workers) as sender, ThreadPoolExecutor(READERS) as readers:
            for file in files:
                readers.submit(self._upload_file, sender, file, unfinished.get(file.path))
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

    def _upload_file(self, sender: ThreadPoolExecutor, file: BackupFile, upload_id: str | None) -> None:
        """Upload one file and prove that it has arrived; the first failure of any stops all."""
        try:
            if file.size_bytes <= part_bytes(file.size_bytes, self.part_size_bytes):
                crc32 = self._upload_small(file)
            else:
                crc32 = self._upload_large(sender, file, upload_id)
            self._verify(file, crc32)
        except OSError as error:
            self._fail(self._wrong_file(error.filename or file.path, f"it cannot be read ({error.strerror})"))
        except BaseException as error:  # noqa: BLE001 - raised by _upload_files
            self._fail(error)

    def _upload_small(self, file: BackupFile) -> str:
        with open(os.path.join(self.plan.root, file.path), "rb") as source:
            buffer = self._read(source, file.size_bytes)
        try:
            self._check_hash(file, hashlib.sha256(buffer).hexdigest())
            crc32 = crc32_text(zlib.crc32(buffer))
            self.bucket.put(self.key(file.path), buffer, file.sha256, crc32)
            self._count(len(buffer), sent=True)
        finally:
            self._buffers.put(buffer)
        return crc32

    def _upload_large(self, sender: ThreadPoolExecutor, file: BackupFile, upload_id: str | None) -> str:
        key = self.key(file.path)
        old_parts = {} if upload_id is None else self.bucket.parts(key, upload_id)
        if upload_id is None:
            upload_id = self._begin_upload(file)
        sha256, crc32 = hashlib.sha256(), 0
        parts: dict[int, StoredPart] = {}
        sent: dict[int, Future[StoredPart]] = {}
        size = part_bytes(file.size_bytes, self.part_size_bytes)
        with open(os.path.join(self.plan.root, file.path), "rb") as source:
            for number, start in enumerate(range(0, file.size_bytes, size), 1):
                buffer = self._read(source, min(size, file.size_bytes - start))
                sha256.update(buffer)
                crc32 = zlib.crc32(buffer, crc32)
                part_crc32 = crc32_text(zlib.crc32(buffer))
                old = old_parts.get(number)
                if old is not None and is_same_part(old, buffer, part_crc32):
                    parts[number] = old._replace(crc32=part_crc32)
                    self._count(len(buffer), sent=False)
                    self._buffers.put(buffer)
                else:
                    sent[number] = sender.submit(self._send_part, key, upload_id, number, buffer, part_crc32)
        parts.update({number: future.result() for number, future in sent.items()})
        try:
            self._check_hash(file, sha256.hexdigest())
        except OpsError:
            self.bucket.abort_upload(key, upload_id)
            raise
        self.bucket.complete_upload(key, upload_id, parts, crc32_text(crc32))
        return crc32_text(crc32)

    def _send_part(self, key: str, upload_id: str, number: int, buffer: bytearray, crc32: str) -> StoredPart:
        try:
            self._check_running()
            part = self.bucket.put_part(key, upload_id, number, buffer, crc32)
            self._count(len(buffer), sent=True)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._buffers.put(buffer)
        return part

    def _read(self, source: BufferedReader, size_bytes: int) -> bytearray:
        """Return the next bytes of a file, fewer at its end, in a buffer that is to be put back into ``_buffers``."""
        buffer = self._buffers.get()
        try:
            self._check_running()
            if len(buffer) < size_bytes:
                buffer = bytearray(size_bytes)
            del buffer[size_bytes:]
            del buffer[source.readinto(buffer) :]
        except BaseException:
            self._buffers.put(buffer)
            raise
        return buffer

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
        if self._read_back:
            sha256 = self._stored_sha256(file, stored.etag)
            if sha256 != file.sha256:
                raise OpsError(
                    self.bucket.uri(self.key(file.path)),
                    f"read back, its SHA-256 is {sha256}, and the manifest says {file.sha256}",
                    "Run again, and this object is sent again. If it comes back, do not trust this endpoint",
                )
        self._remember(file, stored.etag)

    def _put_manifest(self) -> None:
        content, sha256 = self.plan.manifest, self.plan.manifest_sha256
        key, crc32 = self.key(MANIFEST_NAME), crc32_text(zlib.crc32(content))
        if self.bucket.put_new(key, content, sha256, crc32):
            self._count(len(content), sent=True)
        self._has_manifest({key})

    def _count(self, size_bytes: int, *, sent: bool) -> None:
        with self._lock:
            self._done_bytes += size_bytes
            self._sent_bytes += size_bytes if sent else 0
            self._progress.update(self._done_bytes)


class _StoppedError(Exception):
    """Something else failed, so this was given up."""


def is_same_part(part: StoredPart, data: Buffer, crc32: str) -> bool:
    """Say whether a part that S3 has is ``data``: by the CRC32 that S3 kept, else by the ETag, which is then an MD5."""
    if part.size_bytes != len(data):
        return False
    if part.crc32:
        return part.crc32 == crc32
    return part.etag.strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()
