"""Reads the images of an archive in one sequential pass, each with its class, and refuses whatever is not the data set.

A pass may begin after any image that an earlier one gave (`ResumePoint`), so a run that was killed reads nothing twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ansible.module_utils.imagenet_ops.devkit import read_validation_labels
from ansible.module_utils.imagenet_ops.errors import OpsError
from ansible.module_utils.imagenet_ops.label_file import read_label_file
from ansible.module_utils.imagenet_ops.tar_stream import (
    BLOCK_BYTES,
    DIRECTORY,
    FILE,
    ArchiveReader,
    Member,
    TarError,
    members,
)

CLASS_ARCHIVES = "class_archives"
LABELLED_FILES = "labelled_files"

# Larger entries are no images; the largest of ILSVRC2012 has 15 MB.
_LARGEST_IMAGE_BYTES = 256 * 1024 * 1024


class ResumePoint(NamedTuple):
    """Where to go on reading: after an image, or between class archives; fit for JSON.

    ``offset`` counts the bytes of the unpacked archive. Within a class archive ``class_name`` is its class, and
    ``class_end`` the offset at which it ends.
    """

    offset: int = 0
    class_name: str = ""
    class_end: int = 0


BEGIN = ResumePoint()


class ArchiveImage(NamedTuple):
    """An image: its class, its plain file name and its bytes.

    ``offset`` is where the bytes begin in the unpacked archive, ``after`` is where a later pass may go on.
    """

    class_name: str
    name: str
    content: bytes
    offset: int
    after: ResumePoint


@dataclass(frozen=True)
class ArchiveRules:
    """Which names are right, and how an image comes to its class.

    ``layout`` is CLASS_ARCHIVES (an archive of archives, one for each class) or LABELLED_FILES (images whose classes
    are in a file with ``labels``, in a form of `label_file`, or in the ``devkit``). ``split`` says which names are
    right: those of ILSVRC2012's ``train`` or ``validation``, or ``any``.
    """

    split: str
    layout: str
    devkit: str | None = None
    labels: str | None = None

    def is_class(self, name: str) -> bool:
        """Return whether ``name`` can be a class: a WordNet id, or for other data sets any plain name."""
        pattern = r"[A-Za-z0-9][A-Za-z0-9._ +-]*" if self.split == "any" else r"n\d{8}"
        return re.fullmatch(pattern, name) is not None

    def is_image(self, class_name: str, name: str) -> bool:
        """Return whether ``name`` can be an image; ``class_name`` is empty where the name does not tell it."""
        if self.split == "train":
            return re.fullmatch(rf"{class_name or 'n[0-9]{8}'}_[0-9]+\.JPEG", name) is not None
        if self.split == "validation":
            return re.fullmatch(r"ILSVRC2012_val_[0-9]{8}\.JPEG", name) is not None
        return re.fullmatch(r"[^/\0-\x1f]+\.(jpe?g|png)", name, re.IGNORECASE) is not None and not name.startswith(".")

    def label_of(self, labels: Mapping[str, str], name: str) -> str:
        """Return the class that ``labels`` have for the image ``name``. Raises OpsError where they have none."""
        label = labels.get(name)
        if label is None or not self.is_class(label):
            place = "development kit" if self.labels is None else "file with labels"
            why = "has no label for it" if label is None else f"gives it {label!r}, which is not named like a class"
            raise OpsError(
                f"Image {name}",
                f"the {place} {self.labels or self.devkit} {why}",
                f"Use the {place} that belongs to the images; nothing was put into the tree",
            )
        return label


def labels_for(rules: ArchiveRules) -> dict[str, str]:
    """Return the class of each image by its name, where the ``rules`` take it from labels; else nothing.

    Raises OpsError.
    """
    if rules.layout != LABELLED_FILES:
        return {}
    return read_validation_labels(rules.devkit or "") if rules.labels is None else read_label_file(rules.labels)


def require_archive(path: str) -> int:
    """Return the size of the archive at ``path`` in bytes. Raises OpsError where there is none."""
    if not os.path.isfile(path):
        raise OpsError(f"Archive {path}", "there is no such file", "Fetch it first, with archive_fetch")
    return os.path.getsize(path)


class ImageArchive:
    """The images of the archive at ``path`` (tar, or tar in gzip). A context manager.

    ``labels`` are those of `labels_for`. ``size_bytes`` is the size of the file.
    """

    def __init__(self, path: str, rules: ArchiveRules, labels: Mapping[str, str] | None) -> None:
        """Look at the file. Raises OpsError where there is none."""
        self.path = path
        self.size_bytes = require_archive(path)
        self._rules = rules
        self._labels = labels or {}

    def __enter__(self) -> ImageArchive:  # noqa: PYI034 (Self is newer than Python 3.9)
        """Open the file."""
        self._reader = ArchiveReader(self.path)
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self._reader.__exit__(*exception)

    @property
    def compressed(self) -> bool:
        """Whether the images take more space than the file."""
        return self._reader.compressed

    @property
    def file_position(self) -> int:
        """How far the file itself is read, in bytes."""
        return self._reader.file_position

    def images(self, start: ResumePoint = BEGIN, finished: Collection[str] = ()) -> Iterator[ArchiveImage]:
        """Yield the images from ``start`` to the end, in the archive's order; once each time that it is opened.

        ``finished`` are classes whose archives earlier passes read: one of them again is refused, as is a name that
        this pass meets twice. Raises OpsError, with the entry and its offset, for what does not belong to the data set
        and for damage.
        """
        refusals = _Refusals(self.path)
        refusals.skip_to(self._reader, start.offset)
        if self._rules.layout == CLASS_ARCHIVES:
            return self._of_class_archives(start, refusals, set(finished))
        return self._of_labelled_files(refusals)

    def _of_class_archives(self, start: ResumePoint, refusals: _Refusals, seen: set[str]) -> Iterator[ArchiveImage]:
        if start.class_name:
            seen.add(start.class_name)
            yield from self._of_class(start.class_name, start.class_end)
            # An entry's data is followed by zeros up to the next whole block.
            refusals.skip_to(self._reader, -(-start.class_end // BLOCK_BYTES) * BLOCK_BYTES)
        for member in refusals.entries(self._reader):
            class_name, extension = os.path.splitext(member.name)
            if extension != ".tar" or not self._rules.is_class(class_name):
                raise refusals.error(member, "is not named like the archive of a class")
            if class_name in seen:
                raise refusals.error(member, "is there twice")
            seen.add(class_name)
            images = self._of_class(class_name, member.data_offset + member.size)
            first = next(images, None)
            if first is None:
                raise refusals.error(member, "holds no image")
            yield first
            yield from images

    def _of_class(self, class_name: str, class_end: int) -> Iterator[ArchiveImage]:
        """Yield what is left of the archive of one class."""
        within = _Refusals(self.path, f"{class_name}.tar")
        names: set[str] = set()
        for image in within.entries(self._reader, class_end):
            if not self._rules.is_image(class_name, image.name):
                raise within.error(image, f"is not named like an image of {class_name}")
            if image.name in names:
                raise within.error(image, "is there twice")
            names.add(image.name)
            content = within.read(self._reader, image)
            after = ResumePoint(image.end, class_name, class_end)
            yield ArchiveImage(class_name, image.name, content, image.data_offset, after)

    def _of_labelled_files(self, refusals: _Refusals) -> Iterator[ArchiveImage]:
        names: set[str] = set()
        for member in refusals.entries(self._reader):
            if not self._rules.is_image("", member.name):
                raise refusals.error(member, f"is not named like an image of the {self._rules.split} split")
            if member.size > _LARGEST_IMAGE_BYTES:
                raise refusals.error(member, f"has {member.size} bytes, too many for an image")
            class_name = self._rules.label_of(self._labels, member.name)
            if member.name in names:
                raise refusals.error(member, "is there twice")
            names.add(member.name)
            content = refusals.read(self._reader, member)
            yield ArchiveImage(class_name, member.name, content, member.data_offset, ResumePoint(member.end))


@dataclass(frozen=True)
class _Refusals:
    """Says what is wrong with an entry of ``archive``; ``within`` is empty, or the class archive that it lies in."""

    archive: str
    within: str = ""

    def error(self, member: Member, why: str) -> OpsError:
        """Return the error for an entry that has no place in the data set."""
        place = f"{self.within}: " if self.within else ""
        return OpsError(
            f"Archive {self.archive}",
            f"{place}the entry {member.name!r} at byte {member.offset} {why}",
            "This is not the archive that was published; fetch it again, archive_fetch compares its MD5",
        )

    def damage(self, error: TarError) -> OpsError:
        """Return the error for an archive that cannot be read on."""
        place = f"the class archive {self.within}" if self.within else "the archive"
        return OpsError(
            f"Archive {self.archive}",
            f"{place} is damaged at byte {error.offset}: {error}",
            "Fetch it again, archive_fetch compares its MD5; what was laid out before that byte is kept",
        )

    def entries(self, reader: ArchiveReader, end: int | None = None) -> Iterator[Member]:
        """Yield the files of the archive, each with a plain name; anything else, but ``./``, is refused."""
        try:
            for member in members(reader, end):
                name = member.name.removeprefix("./")
                if member.kind == DIRECTORY and name in ("", ".", "/."):
                    continue
                if member.kind != FILE:
                    raise self.error(member, f"is a {member.kind}")
                if "/" in name or name in ("", ".", "..") or "\0" in name:
                    raise self.error(member, "has a path where a plain name belongs")
                if member.size > _LARGEST_IMAGE_BYTES and self.within:
                    raise self.error(member, f"has {member.size} bytes, too many for an image")
                yield Member(name, member.kind, member.size, member.offset, member.data_offset)
        except TarError as error:
            raise self.damage(error) from error

    def read(self, reader: ArchiveReader, member: Member) -> bytes:
        """Return the data of ``member``."""
        try:
            return reader.read(member.size)
        except TarError as error:
            raise self.damage(error) from error

    def skip_to(self, reader: ArchiveReader, position: int) -> None:
        """Go on reading at ``position``."""
        try:
            reader.skip_to(position)
        except TarError as error:
            raise self.damage(error) from error
