"""Reads an archive once, sequentially, and writes the transformed images to a spool in the order of the archive.

The order of the records depends on all names, so it is known only at the end of the archive; then `spool_source`
shuffles the spool. ``folder`` has ``spool`` (the transformed images, one after another) and ``index.tsv`` (a line for
each image: class, name, bytes in the archive, bytes in the spool, and a note: a kind of `Header.converted`, or ``!``
and the reason why it is bad; at its end a line without a name for each class that has no image, and one without a class
that has the number of files left out and a few of them, as JSON). Every few seconds both are synced, and then a
checkpoint says how far they are valid.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Callable, NamedTuple

import numpy as np
from ansible.module_utils.imagenet_ops.archive.images import (
    BEGIN,
    NOTHING_BESIDE,
    ArchiveImage,
    Beside,
    ImageArchive,
    ResumePoint,
)
from ansible.module_utils.imagenet_ops.core.checkpoint import SyncJournal, open_part, sync_all
from ansible.module_utils.imagenet_ops.core.concurrency import ordered_map
from ansible.module_utils.imagenet_ops.core.disk import require_space
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import fsync_directory
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile, Warn, fits, natural
from ansible.module_utils.imagenet_ops.formats.recordio import write_all
from ansible.module_utils.imagenet_ops.pack.decoder import Transformer
from ansible.module_utils.imagenet_ops.pack.image import BadImageError
from ansible.module_utils.imagenet_ops.pack.listing import ImageNames

READING, READ, DEALING, DEALT = "reading", "read", "dealing", "dealt"

_BATCH_IMAGES = 32
_BATCH_BYTES = 8 * 1024 * 1024
# The size of the spool is estimated from this many images at the beginning of the archive, with a margin for the rest.
_SAMPLE_IMAGES = 256
_ESTIMATE_MARGIN = 1.1
_GIB = 1024**3
_POSITION = {
    "images": natural,
    "spool_bytes": natural,
    "index_bytes": natural,
    "file_position": natural,
    "after": (natural, str, natural),
}


def _is_position(value: Any) -> bool:
    return fits(value, _POSITION) or fits(value, {**_POSITION, "beside": ([str], natural, [str])})


_SHAPES: dict[str, dict[str, Any]] = {
    READING: {"position": _is_position},
    READ: {},
    DEALING: {"order": str, "buckets": natural, "done": natural, "offset": natural, "lengths": [natural]},
    DEALT: {"order": str, "buckets": natural},
}


def _is_checkpoint(value: Any) -> bool:
    stage = value.get("stage")
    return (
        isinstance(stage, str)
        and stage in _SHAPES
        and fits(value, {"stage": str, "key": {str: object}, **_SHAPES[stage]})
        and len(value.get("lengths", ())) == (value["buckets"] if stage == DEALING else 0)
    )


CHECKPOINT = Kind(
    "recordio_pack checkpoint of a spool", 1, _is_checkpoint, starts_over="the archive is read from its start"
)


@dataclass
class SpoolPosition:
    """How far the archive is read: the number of images, the lengths of the two files, and where reading resumes.

    ``beside`` is what came before that point and is no image.
    """

    images: int = 0
    spool_bytes: int = 0
    index_bytes: int = 0
    file_position: int = 0
    after: ResumePoint = BEGIN
    beside: Beside = NOTHING_BESIDE


class SpooledImages(NamedTuple):
    """The content of a spool, by the image's number in the order of the archive.

    ``lengths`` has the bytes of each in the spool (uint32; 0 for a bad one), ``bad`` the reason by number,
    ``converted`` the kind by number. ``numbers`` has the number of each row of ``names`` (uint32). ``beside`` is what
    else the archive holds.
    """

    names: ImageNames
    numbers: np.ndarray[Any, np.dtype[np.uint32]]
    lengths: np.ndarray[Any, np.dtype[np.uint32]]
    bad: dict[int, str]
    converted: dict[int, str]
    beside: Beside


class _Batch(NamedTuple):
    """Images from the archive, how far its file was read for them, and what was beside them."""

    images: list[ArchiveImage]
    file_position: int
    beside: Beside


class _Transformed(NamedTuple):
    """A batch after its transformation: what goes into the spool and into the index."""

    images: list[bytes | memoryview]
    lines: list[str]
    bad: list[tuple[str, str, bytes]]
    after: ResumePoint
    file_position: int
    beside: Beside


class ArchiveSpool:
    """The spool of one archive, in ``folder``, with its checkpoint at ``checkpoint_path``.

    ``key`` has everything that the spooled bytes depend on; a spool with another key is discarded. ``warn`` is called
    if the checkpoint cannot be used.
    """

    def __init__(self, folder: str, checkpoint_path: str, key: Mapping[str, Any], warn: Warn = warnings.warn) -> None:
        self.folder = folder
        self.spool_path = os.path.join(folder, "spool")
        self._index_path = os.path.join(folder, "index.tsv")
        self._state = StateFile(checkpoint_path, CHECKPOINT, warn)
        self._key = dict(key)

    def checkpoint(self) -> dict[str, Any] | None:
        """Return the checkpoint, with ``stage`` and its values; None if there is none with this key. Raises OpsError.

        A complete spool without its index was deleted by the user.
        """
        value = self._state.read()
        if value is None or value["key"] != self._key:
            return None
        return value if value["stage"] == READING or os.path.exists(self._index_path) else None

    def write_checkpoint(self, stage: str, **values: Any) -> None:
        """Write ``stage`` and its ``values``."""
        self._state.write({"key": self._key, "stage": stage, **values})

    def discard(self) -> None:
        """Delete the spool and its checkpoint; neither is of use without the other."""
        if os.path.isdir(self.folder):
            shutil.rmtree(self.folder)
            fsync_directory(os.path.dirname(self.folder))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._state.path)
            fsync_directory(os.path.dirname(self._state.path))

    # Writing

    def fill(
        self,
        archive: ImageArchive,
        transformer: Transformer,
        workers: int,
        on_bad: Callable[[str, str, bytes], None],
        root: str,
        formats: int,
        progress: Progress,
    ) -> None:
        """Read the ``archive``, or the rest of it, into the spool.

        ``on_bad`` is called with path, reason and bytes of each bad image; an OpsError from it ends the reading, and
        the next run reads that image again. The records will be written below ``root``, in so many ``formats``: its
        free space is checked too. Raises OpsError and OSError.
        """
        if not self.is_reading():
            return
        position = self._resume_position()
        if position is None:
            self.discard()
            os.makedirs(self.folder)
            fsync_directory(os.path.dirname(self.folder))
            position = SpoolPosition()
        self.write_checkpoint(READING, position=asdict(position))
        with archive:
            scratch_bytes = self._require_space(archive, transformer, position, root, formats)
        stage = f"reading {os.path.basename(archive.path)} (up to {scratch_bytes / _GIB:.1f} GiB of scratch space)"
        progress.start(stage, archive.size_bytes, "bytes", position.file_position)
        with archive, contextlib.ExitStack() as stack:
            spool = stack.enter_context(open_part(self.spool_path, position.spool_bytes))
            index = stack.enter_context(open_part(self._index_path, position.index_bytes))
            fsync_directory(self.folder)
            archive.beside = position.beside
            batches = _batches(archive, position.after, self._classes())
            transformed = ordered_map(lambda batch: _transform(archive.path, batch, transformer), batches, workers)
            stack.enter_context(contextlib.closing(transformed))
            checkpoint = SyncJournal(self._save_position, partial(sync_all, (spool, index)))
            stack.enter_context(checkpoint.running())
            try:
                for images in transformed:
                    for path, reason, content in images.bad:
                        on_bad(path, reason, content)
                    position = _append(spool, index, images, position)
                    checkpoint.offer(position)
                    progress.update(position.file_position)
                # Without a position of its own: a run that is killed here reads the end of the archive again.
                write_all(index, [_beside_lines(archive.beside)])
            finally:
                checkpoint.close(position)
        self.write_checkpoint(READ)

    def is_reading(self) -> bool:
        """Return whether the archive is not completely read. Raises OpsError."""
        checkpoint = self.checkpoint()
        return checkpoint is None or checkpoint["stage"] == READING

    def _resume_position(self) -> SpoolPosition | None:
        """Return how far an earlier run came; None if there was none, or its files are missing or too short."""
        checkpoint = self.checkpoint()
        if checkpoint is None:
            return None
        fields = checkpoint["position"]
        after, beside = ResumePoint(*fields["after"]), Beside(*fields.get("beside", ()))
        position = SpoolPosition(**{**fields, "after": after, "beside": beside})
        try:
            sizes = os.path.getsize(self.spool_path), os.path.getsize(self._index_path)
        except FileNotFoundError:
            return None
        whole = sizes[0] >= position.spool_bytes and sizes[1] >= position.index_bytes
        return position if whole else None

    def _save_position(self, position: SpoolPosition) -> None:
        self.write_checkpoint(READING, position=asdict(position))

    def _require_space(
        self, archive: ImageArchive, transformer: Transformer, position: SpoolPosition, root: str, formats: int
    ) -> float:
        """Return the bytes that the spool will take at most. Raises OpsError if there is not enough space.

        The spool is deleted only after it was dealt into buckets, or the records were written: at most there are two
        copies, and one for each further format. The size is estimated from the first images of the archive.
        """
        sample = _sample(archive, transformer)
        expected_bytes = archive.size_bytes * sample * _ESTIMATE_MARGIN
        records_bytes = formats * expected_bytes
        if os.stat(self.folder).st_dev != os.stat(root).st_dev:
            require_space(root, int(records_bytes))
            records_bytes = expected_bytes
        require_space(self.folder, int(expected_bytes + records_bytes) - position.spool_bytes)
        return 2 * expected_bytes

    def _classes(self) -> set[str]:
        """Return the classes of the images that are in the index."""
        with open(self._index_path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return {line.partition("\t")[0] for line in file}

    # Reading

    def images(self, where: str) -> SpooledImages:
        """Return the content of the spool of the archive ``where``. Raises OpsError for a duplicate name."""
        class_numbers: dict[str, int] = {}
        classes, sizes, lengths = array("I"), array("Q"), array("I")
        ends = array("Q")
        bad: dict[int, str] = {}
        converted: dict[int, str] = {}
        names = bytearray()
        beside = NOTHING_BESIDE
        with open(self._index_path, "rb") as file:
            for number, line in enumerate(file):
                try:
                    class_name, name, size, length, note = line[:-1].split(b"\t", 4)
                    if not name:
                        beside = _with_line(beside, _text(class_name), int(size), note)
                        continue
                    sizes.append(int(size))
                    lengths.append(int(length))
                except (ValueError, OverflowError) as error:
                    raise OpsError(
                        f"Spool {self.folder}",
                        f"line {number + 1} of its index is damaged",
                        "Delete it and rerun: the archive is read again",
                    ) from error
                classes.append(class_numbers.setdefault(_text(class_name), len(class_numbers)))
                names += name
                ends.append(len(names))
                if note.startswith(b"!"):
                    bad[number] = _text(note[1:])
                elif note:
                    converted[number] = note.decode("ascii")
        begins = array("Q", [0])
        begins.extend(ends)
        by_class = np.argsort(np.frombuffer(classes, np.uint32), kind="stable").astype(np.uint32)
        bounds = np.searchsorted(np.frombuffer(classes, np.uint32)[by_class], range(len(class_numbers) + 2))
        numbers = array("I")

        def images_of_classes() -> Iterator[tuple[str, list[tuple[str, int]]]]:
            # A class without an image has the number of none.
            empty = dict.fromkeys(beside.empty_classes, len(class_numbers))
            for class_name, index in sorted({**empty, **class_numbers}.items()):
                members = by_class[bounds[index] : bounds[index + 1]].tolist()
                images = sorted((_text(bytes(names[begins[number] : ends[number]])), number) for number in members)
                numbers.extend(number for _, number in images)
                for (name, _), (following, _) in zip(images, images[1:]):
                    if name == following:
                        raise OpsError(
                            f"Archive {where}",
                            f"the image {class_name}/{name} is a duplicate",
                            "This is not the published archive; fetch it again (archive_fetch compares its MD5)",
                        )
                yield class_name, [(name, sizes[number]) for name, number in images]

        listed = ImageNames(where, images_of_classes())
        return SpooledImages(listed, np.array(numbers, np.uint32), np.array(lengths, np.uint32), bad, converted, beside)


def _beside_lines(beside: Beside) -> bytes:
    """Return the lines of the index that hold ``beside``; none where there is nothing."""
    lines = [f"{class_name}\t\t0\t0\t\n" for class_name in beside.empty_classes]
    if beside.files:
        lines.append(f"\t\t{beside.files}\t0\t{json.dumps(beside.samples)}\n")
    return "".join(lines).encode("utf-8", errors="surrogateescape")


def _with_line(beside: Beside, class_name: str, files: int, note: bytes) -> Beside:
    """Return ``beside`` with what a line of `_beside_lines` says."""
    if class_name:
        return beside._replace(empty_classes=[*beside.empty_classes, class_name])
    return beside._replace(files=files, samples=json.loads(note))


def _text(name: bytes) -> str:
    return name.decode("utf-8", errors="surrogateescape")


def _batches(archive: ImageArchive, start: ResumePoint, finished: set[str]) -> Iterator[_Batch]:
    """Yield the images of the archive from ``start`` on, in batches of limited size."""
    images: list[ArchiveImage] = []
    size_bytes = 0
    for image in archive.images(start, finished):
        images.append(image)
        size_bytes += len(image.content)
        if len(images) == _BATCH_IMAGES or size_bytes >= _BATCH_BYTES:
            yield _Batch(images, archive.file_position, archive.beside)
            images, size_bytes = [], 0
    if images:
        yield _Batch(images, archive.file_position, archive.beside)


def _transform(archive: str, batch: _Batch, transformer: Transformer) -> _Transformed:
    """Transform a batch of the ``archive``; runs in the worker threads."""
    result = _Transformed([], [], [], batch.images[-1].after, batch.file_position, batch.beside)
    names = [f"{archive}/{image.class_name}/{image.name}" for image in batch.images]
    made = transformer.transform_all(names, [image.content for image in batch.images])
    for (class_name, name, content, *_), outcome in zip(batch.images, made):
        image: bytes | memoryview = b""
        if isinstance(outcome, BadImageError):
            note = f"!{outcome}"
            result.bad.append((f"{class_name}/{name}", str(outcome), content))
        else:
            image, note = outcome
        result.images.append(image)
        result.lines.append(f"{class_name}\t{name}\t{len(content)}\t{len(image)}\t{note}\n")
    return result


def _append(spool: int, index: int, images: _Transformed, position: SpoolPosition) -> SpoolPosition:
    lines = "".join(images.lines).encode("utf-8", errors="surrogateescape")
    write_all(spool, images.images)
    write_all(index, [lines])
    return SpoolPosition(
        position.images + len(images.images),
        position.spool_bytes + sum(map(len, images.images)),
        position.index_bytes + len(lines),
        images.file_position,
        images.after,
        images.beside,
    )


def _sample(archive: ImageArchive, transformer: Transformer) -> float:
    """Return the bytes of the spool per byte of the archive, estimated from its first images."""
    spooled = 0
    for number, image in enumerate(archive.images()):
        name = f"{archive.path}/{image.class_name}/{image.name}"
        (outcome,) = transformer.transform_all([name], [image.content])
        if not isinstance(outcome, BadImageError):
            spooled += len(outcome[0])
        if number + 1 == _SAMPLE_IMAGES:
            break
    return spooled / max(1, archive.file_position)
