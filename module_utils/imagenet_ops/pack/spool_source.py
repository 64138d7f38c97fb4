"""Shuffles a spool into the order of the records, for disks where only long reads and writes are cheap.

The spool is read once more, sequentially, and each image is dealt into one of some hundred buckets by its place in the
order. Then one bucket after another is read into the page cache, and its images are picked from there in their order. A
spool that is no larger than one bucket is used as the bucket.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
from ansible.module_utils.imagenet_ops.core.checkpoint import JOURNAL_INTERVAL_SECONDS, open_part
from ansible.module_utils.imagenet_ops.core.concurrency import ordered_map
from ansible.module_utils.imagenet_ops.core.disk import sync_filesystem
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.formats.format import Format
from ansible.module_utils.imagenet_ops.formats.recordio import image_record_bytes, write_all
from ansible.module_utils.imagenet_ops.pack.listing import ImageNames, Listing
from ansible.module_utils.imagenet_ops.pack.spool import DEALING, DEALT, READ, ArchiveSpool, SpooledImages
from ansible.module_utils.imagenet_ops.pack.tree_source import BatchBuilder, RecordBatch, place_batches

# Each is an open file while the spool is dealt; the default limit of a process is 1024.
MOST_BUCKETS = 512
# Bytes that are collected for all buckets before they are written; this bounds the memory.
_DEALT_AT_ONCE_BYTES = 48 * 1024 * 1024
_READ_BYTES = 1024 * 1024
_BUCKET = "bucket-"
_MOST_BUFFERS = 1024  # of one writev (IOV_MAX)


class SpoolSource:
    """Makes the records of ``listing`` in ``formats`` from the images ``spooled`` in ``spool``; a `RecordSource`.

    ``order_key`` identifies the order. ``bucket_bytes`` is how much of the page cache a bucket may take.
    """

    def __init__(
        self,
        spool: ArchiveSpool,
        spooled: SpooledImages,
        listing: Listing,
        formats: Sequence[Format],
        order_key: str,
        bucket_bytes: int,
    ) -> None:
        self._spool = spool
        self._spooled = spooled
        self._listing = listing
        self._formats = formats
        self._order_key = order_key
        self._numbers = spooled.numbers[np.frombuffer(listing.order, np.uint32)]
        total_bytes = int(spooled.lengths.sum(dtype=np.uint64))
        self._buckets = max(1, min(MOST_BUCKETS, len(listing), -(-total_bytes // bucket_bytes)))

    @property
    def names(self) -> ImageNames:
        """The images of the archive."""
        return self._listing.names

    def is_usable(self) -> bool:
        """Return whether the spool, or the buckets that it was dealt into, can be used for this order."""
        checkpoint = self._spool.checkpoint()
        return checkpoint is not None and (checkpoint["stage"] != DEALT or checkpoint["order"] == self._order_key)

    # Dealing

    def deal(self, progress: Progress) -> None:
        """Deal the spool, or the rest of it, into buckets. Raises OSError."""
        checkpoint = self._spool.checkpoint() or {}
        if checkpoint.get("order") == self._order_key and (checkpoint["stage"] == DEALT or self._are_whole(checkpoint)):
            self._buckets = checkpoint["buckets"]
        else:
            self._remove_buckets()
            checkpoint = {"stage": READ, "done": 0, "offset": 0, "lengths": [0] * self._buckets}
        if checkpoint["stage"] != DEALT and self._buckets > 1:
            self._deal(checkpoint["done"], checkpoint["offset"], checkpoint["lengths"], progress)
        if self._buckets > 1:
            self._write_checkpoint(DEALT)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._spool.spool_path)

    def _deal(self, done: int, offset: int, lengths: list[int], progress: Progress) -> None:
        """Deal the images from number ``done`` on, which begins at ``offset``, into buckets that have ``lengths``."""
        progress.start("shuffling the spool", len(self._numbers), "images", done)
        bucket_of = np.empty(len(self._numbers), np.uint32)
        bucket_of[self._numbers] = np.arange(len(self._numbers), dtype=np.uint64) * self._buckets // len(self._numbers)
        with contextlib.ExitStack() as stack:
            spool = stack.enter_context(open(self._spool.spool_path, "rb", buffering=_READ_BYTES))
            spool.seek(offset)
            os.posix_fadvise(spool.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            buckets = [stack.enter_context(open_part(self._path(b), length)) for b, length in enumerate(lengths)]
            self._write_checkpoint(DEALING, done=done, offset=offset, lengths=lengths)
            saved = time.monotonic()
            pending: list[list[bytes]] = [[] for _ in buckets]
            pending_bytes = 0
            for number in range(done, len(bucket_of)):
                image = spool.read(int(self._spooled.lengths[number]))
                pending[bucket_of[number]].append(image)
                pending_bytes += len(image)
                if pending_bytes < _DEALT_AT_ONCE_BYTES and number + 1 < len(bucket_of):
                    continue
                for bucket, images in enumerate(pending):
                    for begin in range(0, len(images), _MOST_BUFFERS):
                        write_all(buckets[bucket], images[begin : begin + _MOST_BUFFERS])
                    lengths[bucket] += sum(map(len, images))
                    images.clear()
                offset += pending_bytes
                pending_bytes = 0
                progress.update(number + 1)
                if time.monotonic() - saved >= JOURNAL_INTERVAL_SECONDS:
                    sync_filesystem(self._spool.folder)
                    self._write_checkpoint(DEALING, done=number + 1, offset=offset, lengths=lengths)
                    saved = time.monotonic()
        sync_filesystem(self._spool.folder)

    def _write_checkpoint(self, stage: str, **values: Any) -> None:
        self._spool.write_checkpoint(stage, order=self._order_key, buckets=self._buckets, **values)

    def _are_whole(self, checkpoint: dict[str, Any]) -> bool:
        """Return whether the buckets have at least the lengths in the ``checkpoint``."""
        paths = [os.path.join(self._spool.folder, _bucket_name(bucket)) for bucket in range(checkpoint["buckets"])]
        return all(
            os.path.exists(path) and os.path.getsize(path) >= length
            for path, length in zip(paths, checkpoint["lengths"])
        )

    def _remove_buckets(self) -> None:
        for name in os.listdir(self._spool.folder):
            if name.startswith(_BUCKET):
                os.unlink(os.path.join(self._spool.folder, name))

    def _path(self, bucket: int) -> str:
        if self._buckets == 1:
            return self._spool.spool_path
        return os.path.join(self._spool.folder, _bucket_name(bucket))

    def _bounds(self, bucket: int) -> tuple[int, int]:
        """Return the first place of ``bucket`` and the first after it: those that `_deal` puts there."""
        total = len(self._numbers)
        return -(-bucket * total // self._buckets), -(-(bucket + 1) * total // self._buckets)

    # Picking

    def batches(self, begin: int, stop: int, workers: int) -> Generator[RecordBatch, None, None]:
        """Yield the records from place ``begin`` to before ``stop``; see `RecordSource`."""
        for bucket in range(self._buckets):
            first, end = self._bounds(bucket)
            if first < stop and end > begin:
                yield from self._pick(bucket, max(begin, first), min(stop, end), workers)

    def rec_bytes(self) -> int | None:
        """Return the length: all images are in the spool."""
        good = (
            length for number, length in enumerate(self._spooled.lengths.tolist()) if number not in self._spooled.bad
        )
        return sum(map(image_record_bytes, good))

    def release(self, place: int) -> None:
        """Delete the buckets whose images all come before ``place``."""
        for bucket in range(self._buckets):
            if self._buckets > 1 and self._bounds(bucket)[1] <= place:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path(bucket))

    def bad_image(self, path: str, reason: str) -> OpsError:
        """Return the error for a bad image of the archive."""
        return bad_archive_image(self._listing.names.where, path, reason)

    def _pick(self, bucket: int, begin: int, stop: int, workers: int) -> Iterator[RecordBatch]:
        """Yield the records from place ``begin`` to before ``stop``, which are all in ``bucket``."""
        first, end = self._bounds(bucket)
        numbers = np.sort(self._numbers[first:end])
        lengths = self._spooled.lengths[numbers].astype(np.uint64)
        offsets = np.cumsum(lengths) - lengths
        try:
            descriptor = os.open(self._path(bucket), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise OpsError(
                f"Scratch file {self._path(bucket)}",
                "it is missing, but its records are not written yet",
                f"Delete {self._spool.folder} and rerun: the archive is read again",
            ) from error
        try:
            _read_through(descriptor)

            def pick(places: range) -> RecordBatch:
                builder = BatchBuilder(self._listing, self._formats)
                here = self._numbers[places.start : places.stop]
                where = np.searchsorted(numbers, here)
                rows = self._listing.order[places.start : places.stop]
                extents = zip(lengths[where].tolist(), offsets[where].tolist())
                for place, row, number, extent in zip(places, rows, here.tolist(), extents):
                    self._add(builder, place, row, number, (descriptor, *extent))
                return builder.batch(places.stop)

            sizes = self._spooled.lengths[self._numbers[begin:stop]].tolist()
            with contextlib.closing(ordered_map(pick, place_batches(begin, sizes), workers)) as picked:
                yield from picked
        finally:
            os.close(descriptor)

    def _add(self, builder: BatchBuilder, place: int, row: int, number: int, extent: tuple[int, int, int]) -> None:
        """Add the image in ``row``, or that it is bad; ``extent`` is its descriptor, length and offset."""
        reason = self._spooled.bad.get(number)
        if reason is not None:
            builder.add_bad(self._listing.names.path(row), reason)
            return
        image = os.pread(*extent)
        if len(image) != extent[1]:
            raise OpsError(
                f"Scratch files in {self._spool.folder}",
                f"the image {self._listing.names.path(row)} is truncated",
                "Delete that folder and rerun: the archive is read again",
            )
        builder.add(place, row, image, self._spooled.converted.get(number, ""))


def _bucket_name(bucket: int) -> str:
    return f"{_BUCKET}{bucket:03d}"


def bad_archive_image(archive: str, path: str, reason: str) -> OpsError:
    """Return the error for a bad image of an archive."""
    return OpsError(
        f"Image {path} of {archive}",
        reason,
        "Set on_bad_image to skip or quarantine and rerun (reading resumes here), or check that the archive is the"
        " published one",
    )


def _read_through(descriptor: int) -> None:
    """Read a file sequentially, so that it is in the page cache, with long requests."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    buffer = bytearray(_READ_BYTES)
    offset = 0
    while count := os.preadv(descriptor, [buffer], offset):
        offset += count
