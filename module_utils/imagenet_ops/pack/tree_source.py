"""The sources of records: their interface, the batches that they make, and the source that reads a tree."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from ansible.module_utils.imagenet_ops.core.concurrency import ordered_map
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.formats.format import Buffer, Format, Sample, entry_line, entry_of
from ansible.module_utils.imagenet_ops.formats.recordio import RECORDIO, image_record_bytes
from ansible.module_utils.imagenet_ops.pack.decoder import Transformer
from ansible.module_utils.imagenet_ops.pack.image import BadImageError
from ansible.module_utils.imagenet_ops.pack.listing import ImageNames, Listing

# The work of a thread at a time: single images cost a third more, and a few huge ones must not fill the memory.
_BATCH_IMAGES = 32
_BATCH_BYTES = 8 * 1024 * 1024


class RecordBatch(NamedTuple):
    """Consecutive records of the order, up to the one before place ``stop``.

    ``places`` and ``ids`` are those of the records, ``image_bytes`` the lengths of their images. ``records`` has the
    pieces of each in each format, ``entries`` the line of each for the file of entries, where one is kept.
    ``bad`` has [path, reason] of each bad image among them, which has no record, ``converted`` the `Header.converted`
    of each image that was not a colour JPEG.
    """

    stop: int
    places: Sequence[int]
    ids: list[int]
    image_bytes: list[int]
    records: dict[str, Sequence[Sequence[Buffer]]]
    entries: list[bytes]
    bad: list[list[str]]
    converted: list[str]


class BatchBuilder:
    """Collects consecutive images of the order of ``listing`` for a `RecordBatch` in ``formats``."""

    def __init__(self, listing: Listing, formats: Sequence[Format]) -> None:
        self._listing = listing
        self._formats = formats
        self._places: list[int] = []
        self._samples: list[Sample] = []
        self._bad: list[list[str]] = []
        self._converted: list[str] = []

    def add(self, place: int, row: int, image: Buffer, converted: str) -> None:
        """Add the packed image of ``row``, at ``place`` in the order, and the `Header.converted` of the original."""
        names = self._listing.names
        self._places.append(place)
        self._samples.append(Sample(row, self._listing.label(row), names.path(row), image))
        if converted:
            self._converted.append(converted)

    def add_bad(self, path: str, reason: str) -> None:
        """Add a bad image, which gets no record."""
        self._bad.append([path, reason])

    def batch(self, stop: int) -> RecordBatch:
        """Return the records of all added images; ``stop`` is the place after the last one. Raises OpsError."""
        batch = encoded_batch(stop, self._places, self._samples, self._formats, needs_entries(self._formats))
        return batch._replace(bad=self._bad, converted=self._converted)


def needs_entries(formats: Sequence[Format]) -> bool:
    """Return whether packing keeps the entries of the records: RecordIO alone does without them."""
    return list(formats) != [RECORDIO]


def encoded_batch(
    stop: int, places: Sequence[int], samples: Sequence[Sample], formats: Sequence[Format], with_entries: bool
) -> RecordBatch:
    """Return the records of ``samples``, which are at ``places``, in each format. Raises OpsError."""
    return RecordBatch(
        stop=stop,
        places=places,
        ids=[sample.record_id for sample in samples],
        image_bytes=[len(sample.image) for sample in samples],
        records={form.name: form.encode_all(samples) for form in formats},
        entries=[entry_line(entry_of(sample)) for sample in samples] if with_entries else [],
        bad=[],
        converted=[],
    )


class RecordSource(Protocol):
    """Makes the records of a split in their order."""

    def batches(self, begin: int, stop: int, workers: int) -> Generator[RecordBatch, None, None]:
        """Yield the records from place ``begin`` to before ``stop``, made by ``workers`` threads. Raises OpsError."""

    def rec_bytes(self) -> int | None:
        """Return the total length of the .rec files, by `image_record_bytes`; None if it is unknown."""

    def release(self, place: int) -> None:
        """Free disk space that is not needed any more: the records before ``place`` are durable."""

    def bad_image(self, path: str, reason: str) -> OpsError:
        """Return the error for a bad image."""


class TreeSource:
    """Reads the images of ``listing``, that of a tree, in the order of the records, and transforms them.

    Their records are made in each of ``formats``.
    """

    def __init__(self, listing: Listing, transformer: Transformer, formats: Sequence[Format]) -> None:
        self._listing = listing
        self._formats = formats
        self._transformer = transformer

    def batches(self, begin: int, stop: int, workers: int) -> Generator[RecordBatch, None, None]:
        """Yield the records; see `RecordSource`."""
        sizes, order = self._listing.names.sizes, self._listing.order
        in_order = (sizes[order[place]] for place in range(begin, stop))
        return ordered_map(self._transform, place_batches(begin, in_order), workers)

    def rec_bytes(self) -> int | None:
        """Return the length if the images are passed through: it follows from the sizes of the files."""
        return rec_bytes(self._listing.names) if self._transformer.recipe.pass_through else None

    def release(self, place: int) -> None:
        """Do nothing: the tree is not ours to delete."""

    def bad_image(self, path: str, reason: str) -> OpsError:
        """Return the error for a bad image of the tree."""
        return bad_tree_image(self._listing.names.where, path, reason)

    def _transform(self, places: range) -> RecordBatch:
        """Return the records of the images at ``places``; runs in the worker threads."""
        listing = self._listing
        builder = BatchBuilder(listing, self._formats)
        rows = listing.order[places.start : places.stop]
        paths = [listing.names.path(row) for row in rows]
        full_paths = [self._full_path(path) for path in paths]
        contents = [self._read(row, path) for row, path in zip(rows, full_paths)]
        results = self._transformer.transform_all(full_paths, contents)
        for place, row, path, result in zip(places, rows, paths, results):
            if isinstance(result, BadImageError):
                builder.add_bad(path, str(result))
            else:
                builder.add(place, row, *result)
        return builder.batch(places.stop)

    def _full_path(self, path: str) -> str:
        return os.path.join(self._listing.names.where, path)

    def _read(self, row: int, full_path: str) -> bytes:
        todo = "Check the disk and that no other process changes the tree, then rerun: packing resumes here"
        size = self._listing.names.sizes[row]
        try:
            # Half the system calls of open().read(), as the size is known. One byte more detects a file that has grown.
            descriptor = os.open(full_path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                content = os.read(descriptor, size + 1)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OpsError(f"Image {full_path}", f"it cannot be read ({error.strerror})", todo) from error
        if len(content) != size:
            why = f"{len(content)} bytes were read, but it had {size} when the tree was listed"
            raise OpsError(f"Image {full_path}", why, todo)
        return content


def rec_bytes(names: ImageNames) -> int:
    """Return the total length of the .rec files of images that are passed through (see `image_record_bytes`)."""
    return sum(map(image_record_bytes, names.sizes))


def bad_tree_image(directory: str, path: str, reason: str) -> OpsError:
    """Return the error for a bad image of the tree ``directory``."""
    return OpsError(
        f"Image {os.path.join(directory, path)}",
        reason,
        "Replace it and rerun (packing resumes here), or set on_bad_image to skip or quarantine",
    )


def place_batches(begin: int, sizes: Iterable[int]) -> Iterator[range]:
    """Yield the places from ``begin`` on, whose images have ``sizes`` bytes, in batches for one thread each."""
    place = begin
    size_bytes = 0
    for place, size in enumerate(sizes, begin + 1):
        size_bytes += size
        if place - begin == _BATCH_IMAGES or size_bytes >= _BATCH_BYTES:
            yield range(begin, place)
            begin, size_bytes = place, 0
    if begin < place:
        yield range(begin, place)
