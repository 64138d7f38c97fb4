"""Reads the images of an archive in one sequential pass, each with its class, and rejects what is not in the data set.

A pass may start after any image of an earlier one (`ResumePoint`), so a run that was killed reads nothing twice.
"""

from __future__ import annotations

import bisect
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, NamedTuple, TypeVar

from ansible.module_utils.imagenet_ops.archive.devkit import read_validation_labels
from ansible.module_utils.imagenet_ops.archive.labels import find_label, read_label_file
from ansible.module_utils.imagenet_ops.archive.member import (
    DIRECTORY,
    FILE,
    DamagedArchiveError,
    Member,
    UnsupportedArchiveError,
)
from ansible.module_utils.imagenet_ops.archive.tar import BLOCK_BYTES, TarReader, read_members
from ansible.module_utils.imagenet_ops.archive.zip import ZipReader, is_zip
from ansible.module_utils.imagenet_ops.core.errors import SAMPLES, OpsError

_Item = TypeVar("_Item")

CLASS_ARCHIVES = "class_archives"
LABELLED_FILES = "labelled_files"

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")  # im2rec.py --exts
# What lies beside an image and belongs to it: its annotation, X.xml of X.JPEG.
ANNOTATION_SUFFIX = ".xml"

# A class of an unknown data set: a letter or digit, followed by what a path and a checkpoint can hold.
_PLAIN_NAME = r"[^\W_]([^/\\\0-\x1f\x7f\ud800-\udfff]*[^/\\\0-\x1f\x7f\ud800-\udfff\s])?"
_UNKNOWN_TODO = "Check layout, folder and name rules of the split, and that the archive is complete"
# Larger members are not images; the largest of ILSVRC2012 has 15 MB.
_LARGEST_IMAGE_BYTES = 256 * 1024 * 1024


class ResumePoint(NamedTuple):
    """Where to resume reading: after an image, or between class archives; serializable as JSON.

    ``offset`` counts the bytes of the unpacked archive (of the file, if it is a zip). Within a class archive
    ``class_name`` is its class, and ``class_end`` the offset at which it ends.
    """

    offset: int = 0
    class_name: str = ""
    class_end: int = 0


BEGIN = ResumePoint()


class Beside(NamedTuple):
    """What an archive holds beside its images, as far as it was read; serializable as JSON.

    ``empty_classes`` have a directory and no image in this pass. ``files`` is how many files were left out because they
    are no images by their names, ``samples`` has a few of them.
    """

    empty_classes: Sequence[str] = ()
    files: int = 0
    samples: Sequence[str] = ()

    def warning(self, where: str) -> str | None:
        """Return a sentence about the files that were left out of ``where``; None where there are none."""
        if not self.files:
            return None
        return f"{self.files} files in {where} are not images by their names ({', '.join(self.samples)})"


class ArchiveImage(NamedTuple):
    """An image: its class, its plain file name and its bytes.

    ``offset`` is where the bytes begin in the unpacked archive (where their header does, in a zip), ``after`` is where
    a later pass may resume.
    """

    class_name: str
    name: str
    content: bytes
    offset: int
    after: ResumePoint


NOTHING_BESIDE = Beside()


class LeftOutFiles:
    """Counts the files that are left out because they are no images by their names; ``samples`` has the first ones.

    They are the first in sorted order, so that archives and trees with the same content tell the same.
    """

    def __init__(self) -> None:
        self.count = 0
        self.samples: list[str] = []

    def add(self, path: str) -> None:
        """Count the file at ``path``, unless it is an annotation (of an archive of its own) or of a desktop."""
        if path.endswith(ANNOTATION_SUFFIX) or is_desktop_file(path):
            return
        self.count += 1
        bisect.insort(self.samples, os.fsencode(path).decode(errors="backslashreplace"))
        del self.samples[SAMPLES:]


def has_image_suffix(name: str) -> bool:
    """Return whether ``name`` ends as those of images do."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_class_name(name: str) -> bool:
    """Return whether ``name`` can be a class of any data set."""
    return re.fullmatch(_PLAIN_NAME, name) is not None


def is_desktop_file(path: str) -> bool:
    """Return whether ``path``, in an archive or a tree, is one of those that desktops leave behind unasked."""
    name = path.rpartition("/")[2]
    return path.startswith("__MACOSX/") or name.startswith("._") or name in (".DS_Store", "Thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class ArchiveRules:
    """Which names are valid, and how an image gets its class.

    ``layout`` is CLASS_ARCHIVES (an archive of archives, one for each class), "class_directories" (``<class>/<image>``)
    or LABELLED_FILES (images whose classes are in a file with ``labels``, in a form of `labels`, or in the
    ``devkit``). ``name_rules`` is which names are valid: ILSVRC2012's ``train`` or ``validation``, or ``any``.
    ``folder`` is the directory of the archive in which the split lies (``imagenette2/train``); what is elsewhere
    belongs to other splits.
    """

    name_rules: str
    layout: str
    devkit: str | None = None
    labels: str | None = None
    folder: str = ""

    def is_class(self, name: str) -> bool:
        """Return whether ``name`` can be a class: a WordNet id, or for other data sets any plain name."""
        return is_class_name(name) if self.name_rules == "any" else re.fullmatch(r"n\d{8}", name) is not None

    def is_image(self, class_name: str, name: str) -> bool:
        """Return whether ``name`` can be an image; ``class_name`` is empty where the name does not imply it."""
        if self.name_rules == "train":
            return re.fullmatch(rf"{class_name or 'n[0-9]{8}'}_[0-9]+\.JPEG", name) is not None
        if self.name_rules == "validation":
            return re.fullmatch(r"ILSVRC2012_val_[0-9]{8}\.JPEG", name) is not None
        return re.fullmatch(r"[^/\0-\x1f]+\.(jpe?g|png)", name, re.IGNORECASE) is not None and not name.startswith(".")

    def path_within(self, path: str) -> str:
        """Return ``path``, that of a member of the archive, as it is below ``folder``; "" where it is not there."""
        folder = self.folder.strip("/")
        if not folder:
            return path
        return path[len(folder) + 1 :] if path.startswith(f"{folder}/") else ""

    def passes_over(self, path: str) -> bool:
        """Return whether ``path``, below ``folder``, is not part of the data set and yet no error.

        These are the files of unknown data sets that are not images by their names, and those that desktops leave
        behind.
        """
        if self.name_rules != "any" or self.layout == CLASS_ARCHIVES:
            return False
        name = path.rpartition("/")[2]
        return is_desktop_file(path) or name.startswith(".") or not has_image_suffix(name)

    def label_of(self, labels: Mapping[str, str], name: str) -> str:
        """Return the class that ``labels`` have for the image ``name``. Raises OpsError where they have none."""
        label = find_label(labels, name)
        if label is None or not self.is_class(label):
            place = "development kit" if self.labels is None else "file with labels"
            why = "has no label for it" if label is None else f"labels it {label!r}, which is not a valid class name"
            raise OpsError(
                f"Image {name}",
                f"the {place} {self.labels or self.devkit} {why}",
                f"Use the {place} of these images; the tree was not changed",
            )
        return label


def labels_for(rules: ArchiveRules) -> dict[str, str]:
    """Return the class of each image by its name, where the ``rules`` take it from labels; else nothing.

    Raises OpsError.
    """
    if rules.layout != LABELLED_FILES:
        return {}
    return read_validation_labels(rules.devkit or "") if rules.labels is None else read_label_file(rules.labels)


def missing_images(names: Sequence[str], where: str) -> str:
    """Return a sentence about the images ``names``, which have labels and are not in ``where``."""
    samples = ", ".join(names[:SAMPLES])
    return f"{len(names)} images that have labels are not in {where} (such as {samples})"


def require_archive(path: str) -> int:
    """Return the size of the archive at ``path`` in bytes. Raises OpsError where there is none."""
    if not os.path.isfile(path):
        raise OpsError(f"Archive {path}", "there is no such file", "Fetch it first with archive_fetch")
    return os.path.getsize(path)


class ImageArchive:
    """The images of the archive at ``path`` (zip, or tar, plain or in gzip, bzip2 or xz). A context manager.

    ``labels`` are those of `labels_for`. ``size_bytes`` is the size of the file.
    """

    def __init__(self, path: str, rules: ArchiveRules, labels: Mapping[str, str] | None) -> None:
        """Read the size of the file. Raises OpsError where there is none."""
        self.path = path
        self.size_bytes = require_archive(path)
        self._rules = rules
        self._labels = labels or {}
        self._beside: Beside | None = NOTHING_BESIDE
        self._empty_classes: set[str] = set()
        self._left_out = LeftOutFiles()

    @property
    def beside(self) -> Beside:
        """What the pass found beside the images; before a pass that resumes, set it to what was kept with the point."""
        if self._beside is None:
            left_out = self._left_out
            self._beside = Beside(tuple(sorted(self._empty_classes)), left_out.count, tuple(left_out.samples))
        return self._beside

    @beside.setter
    def beside(self, found: Beside) -> None:
        self._beside = found
        self._empty_classes = set(found.empty_classes)
        self._left_out.count = found.files
        self._left_out.samples = list(found.samples)

    def __enter__(self) -> ImageArchive:  # noqa: PYI034 (Self is newer than Python 3.9)
        """Open the file. Raises OpsError where it is a zip archive with a damaged central directory."""
        self._reader = open_archive(self.path)
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self._reader.__exit__(*exception)

    def remaining_bytes(self, start: ResumePoint) -> int | None:
        """Return the approximate size of the images from ``start`` on; None if only unpacking could show it."""
        return self._reader.remaining_bytes(start.offset)

    @property
    def file_position(self) -> int:
        """How far the file itself is read, in bytes."""
        return self._reader.file_position

    def images(self, start: ResumePoint = BEGIN, finished: Collection[str] = ()) -> Iterator[ArchiveImage]:
        """Yield the images from ``start`` to the end, in the archive's order; once per opening.

        ``finished`` are classes whose archives earlier passes read. A second archive of one of them is an error, as is
        a duplicate name within this pass. Raises OpsError, with the member and its offset, for what is not in the data
        set and for damage, and if there is no image at all.
        """
        refusals = self._refusals()
        if self._rules.layout == CLASS_ARCHIVES:
            found = self._of_class_archives(start, refusals, set(finished))
        else:
            found = self._of_files(start, refusals)
        images = refusals.translated(found)
        first = next(images, None)
        if first is None and start == BEGIN:
            where = f"its directory {self._rules.folder}" if self._rules.folder else "it"
            todo = "Correct the archive, or its folder and layout"
            raise OpsError(f"Archive {self.path}", f"{where} has no images", todo)
        if first is not None:
            yield first
            yield from images

    def _refusals(self, within: str = "") -> Refusals:
        # The published archives of other data sets are unknown here, so the profile may be wrong as well.
        return (
            Refusals(self.path, within, _UNKNOWN_TODO)
            if self._rules.name_rules == "any"
            else Refusals(self.path, within)
        )

    def _of_class_archives(self, start: ResumePoint, refusals: Refusals, seen: set[str]) -> Iterator[ArchiveImage]:
        reader = self._reader
        if not isinstance(reader, TarReader):
            todo = "Use another layout, or a tar archive"
            raise OpsError(f"Archive {self.path}", "class_archives requires a tar archive, and this is a zip", todo)
        position = start.offset
        if start.class_name:
            seen.add(start.class_name)
            reader.skip_to(start.offset)
            yield from self._of_class(reader, start.class_name, start.class_end)
            # A member's data is followed by zeros up to the next whole block.
            position = -(-start.class_end // BLOCK_BYTES) * BLOCK_BYTES
        for member in refusals.files(reader.members(position)):
            path = self._rules.path_within(member.name)
            if not path:
                continue
            class_name, extension = os.path.splitext(refusals.plain(member, path))
            if extension != ".tar" or not self._rules.is_class(class_name):
                raise refusals.error(member, "is not a valid name for the archive of a class")
            if class_name in seen:
                raise refusals.error(member, "is a duplicate")
            seen.add(class_name)
            images = self._of_class(reader, class_name, member.data_offset + member.size)
            first = next(images, None)
            if first is None:
                raise refusals.error(member, "has no images")
            yield first
            yield from images

    def _of_class(self, reader: TarReader, class_name: str, class_end: int) -> Iterator[ArchiveImage]:
        """Yield what is left of the archive of one class."""
        within = self._refusals(f"{class_name}.tar")
        return within.translated(self._of_class_members(within, reader, class_name, class_end))

    def _of_class_members(
        self, within: Refusals, reader: TarReader, class_name: str, class_end: int
    ) -> Iterator[ArchiveImage]:
        names: set[str] = set()
        for member in within.files(read_members(reader, class_end)):
            name = within.plain(member, member.name)
            if not self._rules.is_image(class_name, name):
                raise within.error(member, f"is not a valid image name for class {class_name}")
            self._refuse_twice_or_too_large(within, member, name, names)
            after = ResumePoint(member.end, class_name, class_end)
            yield ArchiveImage(class_name, name, reader.content(member), member.data_offset, after)

    def _of_files(self, start: ResumePoint, refusals: Refusals) -> Iterator[ArchiveImage]:
        """Yield the images that lie in the archive itself, in the directories of their classes or by their labels."""
        names: dict[str, set[str]] = {}

        def see_class(class_name: str) -> None:
            if self._rules.layout != LABELLED_FILES and self._rules.is_class(class_name) and class_name not in names:
                self._empty_classes.add(class_name)
                self._beside = None

        def see_directory(path: str) -> None:
            see_class(self._rules.path_within(path).partition("/")[0])

        for member in refusals.files(self._reader.members(start.offset), see_directory):
            path = self._rules.path_within(member.name)
            if not path:
                continue
            if self._rules.passes_over(path):
                see_class(path.rpartition("/")[0].partition("/")[0])
                self._left_out.add(path)
                self._beside = None
                continue
            class_name, name = self._place(refusals, member, path)
            if class_name not in names and class_name in self._empty_classes:
                self._empty_classes.remove(class_name)
                self._beside = None
            self._refuse_twice_or_too_large(refusals, member, name, names.setdefault(class_name, set()))
            content = self._reader.content(member)
            yield ArchiveImage(class_name, name, content, member.data_offset, ResumePoint(member.end))

    def _place(self, refusals: Refusals, member: Member, path: str) -> tuple[str, str]:
        """Return the class and the name of the image at ``path`` below the split's folder."""
        rules = self._rules
        if rules.layout == LABELLED_FILES:
            name = refusals.plain(member, path)
            if not rules.is_image("", name):
                raise refusals.error(member, f"is not a valid image name for the {rules.name_rules} split")
            return rules.label_of(self._labels, name), name
        class_name, slash, name = path.partition("/")
        if not slash or "/" in name:
            raise refusals.error(member, "is not in a class directory (<class>/<image>)")
        if not rules.is_class(class_name):
            raise refusals.error(member, "is in a directory whose name is not a valid class")
        if not rules.is_image(class_name, name):
            raise refusals.error(member, f"is not a valid image name for class {class_name}")
        return class_name, name

    def _refuse_twice_or_too_large(self, refusals: Refusals, member: Member, name: str, names: set[str]) -> None:
        if member.size > _LARGEST_IMAGE_BYTES:
            raise refusals.error(member, f"has {member.size} bytes, which is too large for an image")
        if name in names:
            raise refusals.error(member, "is a duplicate")
        names.add(name)


def open_archive(path: str) -> TarReader | ZipReader:
    """Return a reader of the archive at ``path``.

    Raises OpsError if its first or last bytes are damaged, and if it is of a kind that is not read.
    """
    try:
        if is_zip(path):
            return ZipReader(path)
        reader = TarReader(path)
        try:
            reader.require_tar()
        except UnsupportedArchiveError:
            reader.__exit__()
            raise
    except DamagedArchiveError as error:
        raise Refusals(path).damage(error) from error
    except UnsupportedArchiveError as error:
        raise OpsError(f"Archive {path}", str(error), error.todo) from error
    return reader


@dataclass(frozen=True)
class Refusals:
    """Makes the errors for members of ``archive``.

    ``within`` is empty, or the class archive that the member lies in.
    """

    archive: str
    within: str = ""
    todo: str = "This is not the published archive; fetch it again (archive_fetch compares its MD5)"

    def error(self, member: Member, why: str) -> OpsError:
        """Return the error for a member that is not in the data set."""
        place = f"{self.within}: " if self.within else ""
        why = f"{place}the member {member.name!r} at byte {member.offset} {why}"
        return OpsError(f"Archive {self.archive}", why, self.todo)

    def damage(self, error: DamagedArchiveError) -> OpsError:
        """Return the error for an archive that is damaged at some byte."""
        place = f"the class archive {self.within}" if self.within else "the archive"
        return OpsError(
            f"Archive {self.archive}",
            f"{place} is damaged at byte {error.offset}: {error}",
            error.todo or "Fetch it again (archive_fetch compares its MD5); the images before that byte are kept",
        )

    def content(self, reader: TarReader | ZipReader, member: Member) -> bytes:
        """Return the data of ``member``, which ``reader`` yielded last."""
        try:
            return reader.content(member)
        except DamagedArchiveError as error:
            raise self.damage(error) from error

    def translated(self, items: Iterator[_Item]) -> Iterator[_Item]:
        """Yield ``items``; where the archive turns out to be damaged, raise that as an OpsError."""
        try:
            yield from items
        except DamagedArchiveError as error:
            raise self.damage(error) from error

    def files(self, members: Iterator[Member], see_directory: Callable[[str], None] | None = None) -> Iterator[Member]:
        """Yield the files among ``members``, their paths in plain form; those of directories go to ``see_directory``.

        Raises OpsError for a path outside of the archive, and for what is neither a file nor a directory.
        """
        for member in members:
            parts = [part for part in member.name.split("/") if part not in ("", ".")]
            if member.name.startswith("/") or ".." in parts or "\0" in member.name:
                raise self.error(member, "has a path outside of the archive")
            if member.kind == DIRECTORY:
                if see_directory:
                    see_directory("/".join(parts))
                continue
            if member.kind != FILE or not parts:
                article = "an" if member.kind[0] in "aeiou" else "a"
                raise self.error(member, f"is {article} {member.kind}" if parts else "has no name")
            yield member._replace(name="/".join(parts))

    def plain(self, member: Member, path: str) -> str:
        """Return ``path`` if it is a plain name; raise OpsError otherwise."""
        if "/" in path:
            raise self.error(member, "is in a directory, but must be at the top level")
        return path
