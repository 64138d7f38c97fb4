"""Where the records of a split come from: the source's part of packing, and the source that is a tree."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from ansible.module_utils.imagenet_ops.core.concurrency import ordered_map
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.formats.recordio import frame_images, image_record_bytes
from ansible.module_utils.imagenet_ops.pack.image import BadImageError, Recipe, transform_all
from ansible.module_utils.imagenet_ops.pack.listing import ImageNames, Listing

# What one thread takes at a time: one image a task costs a third more, and a few huge ones must not fill the memory.
_CHUNK_IMAGES = 32
_CHUNK_BYTES = 8 * 1024 * 1024


class Chunk(NamedTuple):
    """The records of a stretch of the order that ends before place ``stop``.

    ``bad`` has [path, reason] of each bad image there, which has no record, ``converted`` the `Header.converted` of
    each image that was no colour JPEG.
    """

    stop: int
    ids: list[int]
    records: Sequence[bytes | memoryview]
    bad: list[list[str]]
    converted: list[str]


class Gathered:
    """The images of a stretch of ``listing``'s order, gathered one after another to become a `Chunk`."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._ids: list[int] = []
        self._images: list[bytes | memoryview] = []
        self._bad: list[list[str]] = []
        self._converted: list[str] = []

    def add(self, row: int, image: bytes | memoryview, converted: str) -> None:
        """Add what the record of the image in ``row`` will hold, and the `Header.converted` of the original."""
        self._ids.append(row)
        self._images.append(image)
        if converted:
            self._converted.append(converted)

    def add_bad(self, path: str, reason: str) -> None:
        """Add an image that gets no record."""
        self._bad.append([path, reason])

    def chunk(self, stop: int) -> Chunk:
        """Return all that was added, of the stretch that ends before place ``stop``."""
        labels = [self._listing.label(row) for row in self._ids]
        records = frame_images(self._ids, labels, self._images)
        return Chunk(stop, self._ids, records, self._bad, self._converted)


class RecordSource(Protocol):
    """Gives the records of a split in their order."""

    def chunks(self, begin: int, stop: int, workers: int) -> Generator[Chunk, None, None]:
        """Yield the records from place ``begin`` to before ``stop``, made by ``workers`` threads. Raises OpsError."""

    def rec_bytes(self) -> int | None:
        """Return how long the .rec files will be together, as `image_record_bytes` says it; None if it is unknown."""

    def release(self, place: int) -> None:
        """Free the disk of what is only needed before ``place``: the records up to there are safe."""

    def bad_image(self, path: str, reason: str) -> OpsError:
        """Return the error that names a bad image."""


class TreeSource:
    """Reads the images of ``listing``, that of a tree, in the order of the records, and transforms them."""

    def __init__(self, listing: Listing, recipe: Recipe) -> None:
        self._listing = listing
        self._recipe = recipe

    def chunks(self, begin: int, stop: int, workers: int) -> Generator[Chunk, None, None]:
        """Yield the records; see `RecordSource`."""
        sizes, order = self._listing.names.sizes, self._listing.order
        in_order = (sizes[order[place]] for place in range(begin, stop))
        return ordered_map(self._transform, stretches(begin, in_order), workers)

    def rec_bytes(self) -> int | None:
        """Return the size where the images are passed through: that is known from their files, if none is bad."""
        return rec_bytes(self._listing.names) if self._recipe.pass_through else None

    def release(self, place: int) -> None:
        """Keep the tree: it is not ours."""

    def bad_image(self, path: str, reason: str) -> OpsError:
        """Return the error that names a bad image of the tree."""
        return bad_tree_image(self._listing.names.where, path, reason)

    def _transform(self, places: range) -> Chunk:
        """Return the records of the images at ``places``; runs in the worker threads."""
        listing = self._listing
        gathered = Gathered(listing)
        rows = listing.order[places.start : places.stop]
        paths = [listing.names.path(row) for row in rows]
        contents = [self._read(row, path) for row, path in zip(rows, paths)]
        for row, path, result in zip(rows, paths, transform_all(contents, self._recipe)):
            if isinstance(result, BadImageError):
                gathered.add_bad(path, str(result))
            else:
                gathered.add(row, *result)
        return gathered.chunk(places.stop)

    def _full_path(self, path: str) -> str:
        return os.path.join(self._listing.names.where, path)

    def _read(self, row: int, path: str) -> bytes:
        full_path = self._full_path(path)
        todo = "Check the disk and that nothing changes the tree, then run again: packing goes on from here"
        size = self._listing.names.sizes[row]
        try:
            # Half the system calls of open().read(): the size is known. One byte more shows a file that has grown.
            descriptor = os.open(full_path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                content = os.read(descriptor, size + 1)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OpsError(f"Image {full_path}", f"it cannot be read ({error.strerror})", todo) from error
        if len(content) != size:
            why = f"{len(content)} bytes were read, it had {size} when the tree was listed"
            raise OpsError(f"Image {full_path}", why, todo)
        return content


def rec_bytes(names: ImageNames) -> int:
    """Return how long the .rec files of images that are passed through are together (see `image_record_bytes`)."""
    return sum(map(image_record_bytes, names.sizes))


def bad_tree_image(directory: str, path: str, reason: str) -> OpsError:
    """Return the error that names a bad image of the tree ``directory``."""
    return OpsError(
        f"Image {os.path.join(directory, path)}",
        reason,
        "Replace it and run again (packing goes on from here), or set on_bad_image to skip or quarantine",
    )


def stretches(begin: int, sizes: Iterable[int]) -> Iterator[range]:
    """Yield the places from ``begin`` on, whose images have ``sizes`` bytes, in stretches for one thread each."""
    place = begin
    size_bytes = 0
    for place, size in enumerate(sizes, begin + 1):
        size_bytes += size
        if place - begin == _CHUNK_IMAGES or size_bytes >= _CHUNK_BYTES:
            yield range(begin, place)
            begin, size_bytes = place, 0
    if begin < place:
        yield range(begin, place)
