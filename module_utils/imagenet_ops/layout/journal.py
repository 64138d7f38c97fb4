"""The journal of how far a tree is laid out, and whether a finished tree is still what it was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ansible.module_utils.imagenet_ops.archive.images import ANNOTATION_SUFFIX
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import canonical_json, read_json, write_json
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest, journal_path

_JOURNAL_FORMAT = 2

# What the journal says of a tree: growing in .partial; complete there; in place.
EXTRACTING = "extracting"
EXTRACTED = "extracted"
MOVING = "moving"
COMPLETE = "complete"
# The layout of a tree that came back from a backup: from which archives it was made is not known there.
_RESTORED = "restored"


@dataclass
class Journal:
    """How far the work is: everything before byte ``offset`` of the archive is durable, and ``classes`` counts it.

    ``class_bytes`` has the bytes of each class's images. ``class_name`` and ``class_end`` are those of a `ResumePoint`.
    ``source`` identifies the archive, ``labels`` the labels (a SHA-256): what was done with others is of no use.
    ``annotations`` is empty, or has the ``source`` of the annotations and, once they are all there, their counts.
    """

    state: str
    layout: str
    source: dict[str, Any]
    labels: str
    offset: int = 0
    class_name: str = ""
    class_end: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    class_bytes: dict[str, int] = field(default_factory=dict)
    annotations: dict[str, Any] = field(default_factory=dict)
    format: int = _JOURNAL_FORMAT

    @property
    def images(self) -> int:
        """How many images are in the tree."""
        return sum(self.classes.values())

    @property
    def bytes(self) -> int:
        """How many bytes they have."""
        return sum(self.class_bytes.values())

    def count(self, class_name: str, size_bytes: int) -> None:
        """Count one more image."""
        self.classes[class_name] = self.classes.get(class_name, 0) + 1
        self.class_bytes[class_name] = self.class_bytes.get(class_name, 0) + size_bytes

    def continues(self, fresh: Journal) -> bool:
        """Whether this journal is of the same work as ``fresh``, one that has just begun."""
        return (self.layout, self.source, self.labels) == (fresh.layout, fresh.source, fresh.labels)


def read_journal(request: LayoutRequest) -> Journal | None:
    """Return the journal of the tree; None where there is none. Raises OpsError for one that is not ours."""
    value = read_json(request.journal)
    if value is None:
        return None
    if not isinstance(value, dict) or value.get("format") != _JOURNAL_FORMAT:
        raise OpsError(
            f"Journal {request.journal}",
            "it was written by another version of imagenet_layout",
            f"Remove it, and {request.partial} where that exists, and run again",
        )
    return Journal(**value)


def write_journal(request: LayoutRequest, journal: Journal) -> None:
    """Keep ``journal``, durably."""
    write_json(request.journal, asdict(journal))


def is_complete(request: LayoutRequest, journal: Journal) -> bool:
    """Return whether the tree is finished and still there, judged by the journal and by counting, not by reading.

    Raises OpsError where the tree is not what the journal says, or was made from something else.
    """
    # A run may have been killed after it gave the tree its name, before it could say so.
    renamed = journal.state == EXTRACTED and not os.path.exists(request.partial)
    if not (journal.state == COMPLETE or renamed) or not os.path.isdir(request.dest):
        return False
    _refuse_other_source(request, journal)
    counts = count_tree(request.dest)
    if counts.classes != journal.classes:
        images = sum(counts.classes.values())
        raise changed_since(
            request,
            f"it holds {images} images in {len(counts.classes)} classes, and when it was completed it held"
            f" {journal.images} in {len(journal.classes)}: files were removed or added since",
        )
    check_counts(request, journal, request.dest)
    if request.deep_check:
        _check_deeply(request, journal)
    return True


def changed_since(request: LayoutRequest, why: str) -> OpsError:
    """Return the error for a finished tree that is not what its journal says."""
    todo = f"Put things right, or remove the tree and {request.journal} to make it anew"
    return OpsError(f"Tree {request.dest}", why, todo)


def _refuse_other_source(request: LayoutRequest, journal: Journal) -> None:
    """Raise OpsError where the archive has another name or size than the one that the tree was made from."""
    if request.archive is None or not journal.source or is_source(request.archive, request.folder, journal.source):
        return
    now = source_of(request.archive, request.folder)
    made_from, named = (_source_in_words(source) for source in (journal.source, now))
    raise OpsError(
        f"Tree {request.dest}",
        f"it was made from {made_from}, not from {named}",
        f"Name another dest, or remove the tree and {request.journal} to make it anew",
    )


def _source_in_words(source: Mapping[str, Any]) -> str:
    folder = f"{source['folder']} in " if source["folder"] else ""
    return f"{folder}{source['name']} of {source['size_bytes']} bytes"


class TreeCounts(NamedTuple):
    """What is in a tree: the number of images of each class, by name, and of annotations in all."""

    classes: dict[str, int]
    annotations: int


def count_tree(path: str) -> TreeCounts:
    """Count what lies in the class directories of the tree at ``path``, by reading these and nothing else."""
    with os.scandir(path) as entries:
        directories = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    classes = {}
    annotations = 0
    for directory in directories:
        names = os.listdir(directory)
        annotated = sum(name.endswith(ANNOTATION_SUFFIX) for name in names)
        classes[os.path.basename(directory)] = len(names) - annotated
        annotations += annotated
    return TreeCounts(classes, annotations)


def _check_deeply(request: LayoutRequest, journal: Journal) -> None:
    """Look at every image of the finished tree. Raises OpsError where one is not a file, or a class's sizes differ."""
    progress = Progress(request.state_dir, "imagenet_layout")
    progress.start(f"Checking {os.path.basename(request.dest)}", journal.images, "images")
    done = 0
    for class_name, expected_bytes in sorted(journal.class_bytes.items()):
        found_bytes = 0
        with os.scandir(os.path.join(request.dest, class_name)) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False):
                    raise changed_since(request, f"{class_name}/{entry.name} is not a regular file")
                if not entry.name.endswith(ANNOTATION_SUFFIX):
                    found_bytes += entry.stat(follow_symlinks=False).st_size
        if found_bytes != expected_bytes:
            why = f"the images of {class_name} have {found_bytes} bytes, and when it was completed {expected_bytes}"
            raise changed_since(request, f"{why}: files were changed since")
        done += journal.classes[class_name]
        progress.update(done)
    progress.finish()


def check_counts(request: LayoutRequest, journal: Journal, where: str) -> None:
    """Raise OpsError where the counts are not those expected."""
    for name, found, expected in (
        ("images", journal.images, request.expected_images),
        ("classes", len(journal.classes), request.expected_classes),
    ):
        if expected and found != expected:
            raise OpsError(
                f"Tree {where}",
                f"it holds {found} {name}, and {expected} were expected",
                "Check that the source is complete (archive_fetch compares its MD5), and the expected counts",
            )


def source_of(archive: str, folder: str) -> dict[str, Any]:
    """Return what tells this archive, and the directory in it, from another without reading it."""
    status = os.stat(archive)
    return {
        "name": os.path.basename(archive),
        "folder": folder,
        "size_bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }


def is_source(archive: str, folder: str, made_from: Mapping[str, Any]) -> bool:
    """Return whether something was ``made_from`` this archive; one that was removed since is taken to be the same.

    Its time does not matter: a copy has another one.
    """
    if not os.path.exists(archive):
        return True
    now = source_of(archive, folder)
    return all(now[name] == made_from[name] for name in ("name", "folder", "size_bytes"))


def digest(labels: Mapping[str, str]) -> str:
    """Return a SHA-256 of ``labels``; "" where there are none."""
    return hashlib.sha256(canonical_json(labels)).hexdigest() if labels else ""


def mark_complete(request: LayoutRequest, journal: Journal) -> None:
    """Say that the tree is complete and in its place."""
    journal.state = COMPLETE
    write_journal(request, journal)


def count_as_laid_out(tree: str, dest: str, state_dir: str) -> None:
    """Write the journal that says that ``dest`` is laid out, for the complete ``tree`` that is about to get this name.

    A tree that is not one of class directories has none: it cannot come from imagenet_layout.
    """
    journal = Journal(COMPLETE, _RESTORED, {}, "")
    with os.scandir(tree) as classes:
        for found in classes:
            if not found.is_dir(follow_symlinks=False) or not _count_class(journal, found):
                return
    write_json(journal_path(dest, state_dir), asdict(journal))


def _count_class(journal: Journal, folder: os.DirEntry[str]) -> bool:
    """Count the images of a class; say whether there is nothing but files."""
    with os.scandir(folder.path) as entries:
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                return False
            if not entry.name.endswith(ANNOTATION_SUFFIX):
                journal.count(folder.name, entry.stat(follow_symlinks=False).st_size)
    return True
