"""Sending objects to a bucket: several are read at a time, each from its begin to its end, and their parts are sent.

All parts lie in one set of buffers, so that memory is bounded whatever is sent. The first failure ends everything.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, Buffer, StoredPart, crc32_text
from ansible.module_utils.imagenet_ops.core.errors import CancelledError, OpsError
from ansible.module_utils.imagenet_ops.core.hashing import combine_crc32
from ansible.module_utils.imagenet_ops.core.progress import Progress

MIB = 1 << 20
# S3's limits ("Amazon S3 multipart upload limits" in its User Guide).
MOST_PARTS = 10_000
LEAST_PART_BYTES = 5 * MIB
# Objects that are read and hashed at a time: SHA-256 is a single chain, so one alone is as fast as one core.
READERS = 4

_Item = TypeVar("_Item")


class Source(Protocol):
    """What is sent: read forwards, into a buffer that it fills but at its end."""

    def readinto(self, buffer: bytearray, /) -> int:
        """Fill ``buffer`` from the source and return how many bytes there were."""


class Sent(NamedTuple):
    """The hashes of what was read: SHA-256 in hex, CRC32 as S3 writes it."""

    sha256: str
    crc32: str


def part_bytes(size_bytes: int, least_bytes: int) -> int:
    """Return the size of the parts of an object of ``size_bytes``: whole MiB, within S3's limits."""
    needed = -(-size_bytes // MOST_PARTS)
    return -(-max(needed, least_bytes, LEAST_PART_BYTES) // MIB) * MIB


def is_same_part(part: StoredPart, data: Buffer, crc32: str) -> bool:
    """Say whether a part that S3 has is ``data``: by the CRC32 that S3 kept, else by the ETag, which is then an MD5."""
    if part.size_bytes != len(data):
        return False
    if part.crc32:
        return part.crc32 == crc32
    return part.etag.strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()


class Uploader:
    """Sends objects to one bucket; `upload` and `digest` are for the jobs of `each`."""

    def __init__(self, bucket: Bucket, progress: Progress, workers: int, part_size_bytes: int) -> None:
        """Keep the settings: ``workers`` parts are in flight at a time; ``progress`` is told the bytes that are done.

        Parts have ``part_size_bytes``, or more where S3's limits want it.
        """
        self.bucket = bucket
        self.sent_bytes = 0
        self._progress = progress
        self._workers = workers
        self._part_size_bytes = part_size_bytes
        self._done_bytes = 0
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        # A part lies in one of these from when it is read until S3 has it. They are all the memory there is for parts,
        # and are used again: fresh memory for each part costs the processor as much as its checksum.
        self._buffers: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for _ in range(workers + READERS):
            self._buffers.put(bytearray())

    def each(self, items: Iterable[_Item], job: Callable[[_Item], None]) -> None:
        """Do ``job`` for each of ``items``, some at a time; the first failure of any ends all and is raised."""
        with ThreadPoolExecutor(self._workers) as self._sender, ThreadPoolExecutor(READERS) as readers:
            for item in items:
                readers.submit(self._do, job, item)
        if self._failure is not None:
            raise self._failure

    def _do(self, job: Callable[[_Item], None], item: _Item) -> None:
        try:
            self._check_running()
            job(item)
        except BaseException as error:  # noqa: BLE001 (raised by each)
            self._fail(error)

    def upload(
        self,
        key: str,
        source: Source,
        size_bytes: int,
        *,
        begin: Callable[[], str],
        check: Callable[[str], None],
        upload_id: str | None = None,
    ) -> Sent:
        """Store ``size_bytes`` of ``source`` under ``key`` and return their hashes.

        Nothing is stored unless ``check`` lets the SHA-256 of all pass; it raises OpsError where it is wrong. What does
        not fit into one part goes into the upload that ``begin`` returns the id of, or on into ``upload_id``: parts
        that S3 has already are not sent again.
        """
        if size_bytes <= part_bytes(size_bytes, self._part_size_bytes):
            return self._upload_small(key, source, size_bytes, check)
        old_parts = {} if upload_id is None else self.bucket.parts(key, upload_id)
        if upload_id is None:
            upload_id = begin()
        sha256, crc32 = hashlib.sha256(), 0
        parts: dict[int, StoredPart] = {}
        sent: dict[int, Future[StoredPart]] = {}
        size = part_bytes(size_bytes, self._part_size_bytes)
        for number, start in enumerate(range(0, size_bytes, size), 1):
            buffer = self._read(source, min(size, size_bytes - start))
            sha256.update(buffer)
            sum_of_part = zlib.crc32(buffer)
            crc32 = combine_crc32(crc32, sum_of_part, len(buffer))
            part_crc32 = crc32_text(sum_of_part)
            old = old_parts.get(number)
            if old is not None and is_same_part(old, buffer, part_crc32):
                parts[number] = old._replace(crc32=part_crc32)
                self.count(len(buffer), sent=False)
                self._buffers.put(buffer)
            else:
                sent[number] = self._sender.submit(self._send_part, key, upload_id, number, buffer, part_crc32)
        parts.update({number: future.result() for number, future in sent.items()})
        try:
            check(sha256.hexdigest())
        except OpsError:
            self.bucket.abort_upload(key, upload_id)
            raise
        self.bucket.complete_upload(key, upload_id, parts, crc32_text(crc32))
        return Sent(sha256.hexdigest(), crc32_text(crc32))

    def _upload_small(self, key: str, source: Source, size_bytes: int, check: Callable[[str], None]) -> Sent:
        buffer = self._read(source, size_bytes)
        try:
            sent = Sent(hashlib.sha256(buffer).hexdigest(), crc32_text(zlib.crc32(buffer)))
            check(sent.sha256)
            self.bucket.put(key, buffer, *sent)
            self.count(len(buffer), sent=True)
        finally:
            self._buffers.put(buffer)
        return sent

    def digest(self, source: Source, size_bytes: int) -> Sent:
        """Return the hashes of ``size_bytes`` of ``source``; nothing is sent."""
        sha256, crc32 = hashlib.sha256(), 0
        for start in range(0, size_bytes, self._part_size_bytes):
            buffer = self._read(source, min(self._part_size_bytes, size_bytes - start))
            sha256.update(buffer)
            crc32 = zlib.crc32(buffer, crc32)
            self.count(len(buffer), sent=False)
            self._buffers.put(buffer)
        return Sent(sha256.hexdigest(), crc32_text(crc32))

    def stored_sha256(self, key: str, size_bytes: int, etag: str) -> str:
        """Read the object of ``size_bytes`` that has ``etag`` back and return its SHA-256."""
        sha256 = hashlib.sha256()
        for start in range(0, size_bytes, self._part_size_bytes):
            end = min(start + self._part_size_bytes, size_bytes)
            sha256.update(self.bucket.read(key, start, end, etag))
        return sha256.hexdigest()

    def count(self, size_bytes: int, *, sent: bool) -> None:
        """Note that so many bytes more are done, and whether they were ``sent``."""
        with self._lock:
            self._done_bytes += size_bytes
            self.sent_bytes += size_bytes if sent else 0
            self._progress.update(self._done_bytes)

    def _send_part(self, key: str, upload_id: str, number: int, buffer: bytearray, crc32: str) -> StoredPart:
        try:
            self._check_running()
            part = self.bucket.put_part(key, upload_id, number, buffer, crc32)
            self.count(len(buffer), sent=True)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._buffers.put(buffer)
        return part

    def _read(self, source: Source, size_bytes: int) -> bytearray:
        """Return the next bytes of a source, fewer at its end, in a buffer that is to be put back into ``_buffers``."""
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
            raise CancelledError
