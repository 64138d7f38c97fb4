"""The checkpoint of the layout of a tree, and the check of a finished tree against it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ansible.module_utils.imagenet_ops.archive.images import ANNOTATION_SUFFIX, NOTHING_BESIDE, Beside
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import canonical_json
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile, fits, natural
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest, checkpoint_path

# The states of a tree: growing in .partial; complete there; images being moved into it; in place.
EXTRACTING = "extracting"
EXTRACTED = "extracted"
MOVING = "moving"
COMPLETE = "complete"
# The layout of a tree that was restored from a backup, which does not say from which archives it was made.
_RESTORED = "restored"
_SOURCE = {"name": str, "folder": str, "size_bytes": natural, "mtime_ns": int}


def _is_source(value: Any) -> bool:
    return value == {} or fits(value, _SOURCE)


def _is_annotated(value: Any) -> bool:
    counts = {"annotations": natural, "without_image": natural}
    return value == {} or fits(value, {"source": _SOURCE}) or fits(value, {"source": _SOURCE, **counts})


# The fields of a `Checkpoint`.
_FIELDS = {
    "state": lambda value: value in (EXTRACTING, EXTRACTED, MOVING, COMPLETE),
    "layout": str,
    "source": _is_source,
    "labels": str,
    "offset": natural,
    "class_name": str,
    "class_end": natural,
    "classes": {str: natural},
    "class_bytes": {str: natural},
    "annotations": _is_annotated,
}
# Written only where there is something.
_OPTIONAL_FIELDS = {"beside": ([str], natural, [str])}


def _is_checkpoint(value: Any) -> bool:
    return fits(value, _FIELDS) or fits(value, {**_FIELDS, **_OPTIONAL_FIELDS})


@dataclass
class Checkpoint:
    """How far the work is: all images before byte ``offset`` of the archive are durable, and counted in ``classes``.

    ``class_bytes`` has the bytes of each class's images. ``class_name`` and ``class_end`` are those of a `ResumePoint`.
    ``source`` identifies the archive, ``labels`` the labels (a SHA-256): work that was done with others is discarded.
    ``annotations`` is empty, or has the ``source`` of the annotations and, once they are all there, their counts.
    ``beside`` is what the archive has before that byte and is no image. A class may have a directory and no image.
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
    beside: Beside = NOTHING_BESIDE

    @property
    def images(self) -> int:
        """Number of images in the tree."""
        return sum(self.classes.values())

    @property
    def bytes(self) -> int:
        """Size of the images in bytes."""
        return sum(self.class_bytes.values())

    def count(self, class_name: str, size_bytes: int) -> None:
        """Count one more image."""
        self.classes[class_name] = self.classes.get(class_name, 0) + 1
        self.class_bytes[class_name] = self.class_bytes.get(class_name, 0) + size_bytes

    def continues(self, fresh: Checkpoint) -> bool:
        """Return whether this checkpoint is of the same work as ``fresh``, which has just begun."""
        return (self.layout, self.source, self.labels) == (fresh.layout, fresh.source, fresh.labels)


def read_checkpoint(request: LayoutRequest) -> Checkpoint | None:
    """Return the checkpoint of the tree; None if there is none. Raises OpsError for one that cannot be used."""
    file = _state_file(request.dest, request.state_dir)
    found = file.read()
    if found is None:
        return None
    if found["classes"].keys() != found["class_bytes"].keys():
        file.discard("it is damaged: the classes with images are not those with bytes")
    return Checkpoint(**{**found, "beside": Beside(*found.get("beside", ()))})


def left_out_of(dest: str, state_dir: str) -> Beside:
    """Return what was not laid out in the tree at ``dest``; nothing where its checkpoint is missing or damaged."""
    try:
        found = _state_file(os.path.abspath(dest), state_dir).read()
    except OpsError:
        return NOTHING_BESIDE
    return Beside(*found.get("beside", ())) if found is not None and found["state"] == COMPLETE else NOTHING_BESIDE


def write_checkpoint(request: LayoutRequest, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` durably."""
    _state_file(request.dest, request.state_dir).write(_fields(checkpoint))


def _fields(checkpoint: Checkpoint) -> dict[str, Any]:
    fields = asdict(checkpoint)
    if checkpoint.beside == NOTHING_BESIDE:
        del fields["beside"]
    return fields


def _state_file(dest: str, state_dir: str) -> StateFile:
    return StateFile(checkpoint_path(dest, state_dir), checkpoint_kind(dest))


def checkpoint_kind(dest: str) -> Kind:
    """Return the kind of state file that the checkpoint of the tree at ``dest`` is.

    Nothing else says which files of a tree are ours, so if it is damaged a person decides.
    """
    todo = f"Delete it, and {dest} and {dest}.partial if they exist, and rerun"
    return Kind("imagenet_layout checkpoint", 2, _is_checkpoint, todo=todo)


def is_complete(request: LayoutRequest, checkpoint: Checkpoint) -> bool:
    """Return whether the tree is finished and still there, by its checkpoint and file counts; no file is read.

    Raises OpsError where the tree differs from its checkpoint, or was made from another source.
    """
    # A run may have been killed after it renamed the tree and before it wrote the checkpoint.
    renamed = checkpoint.state == EXTRACTED and not os.path.exists(request.partial)
    if not (checkpoint.state == COMPLETE or renamed) or not os.path.isdir(request.dest):
        return False
    _refuse_other_source(request, checkpoint)
    counts = count_tree(request.dest)
    if counts.classes != checkpoint.classes:
        images = sum(counts.classes.values())
        raise changed_since(
            request,
            f"it has {images} images in {len(counts.classes)} classes, but had {checkpoint.images} in"
            f" {len(checkpoint.classes)} when it was completed: files were added or removed",
        )
    check_counts(request, checkpoint, request.dest)
    if request.deep_check:
        _check_deeply(request, checkpoint)
    return True


def changed_since(request: LayoutRequest, why: str) -> OpsError:
    """Return the error for a finished tree that differs from its checkpoint."""
    todo = f"Repair the tree, or delete it and {request.checkpoint_path} to rebuild it"
    return OpsError(f"Tree {request.dest}", why, todo)


def _refuse_other_source(request: LayoutRequest, checkpoint: Checkpoint) -> None:
    """Raise OpsError where the archive has another name or size than the one that the tree was made from."""
    if (
        request.archive is None
        or not checkpoint.source
        or is_source(request.archive, request.folder, checkpoint.source)
    ):
        return
    now = source_of(request.archive, request.folder)
    made_from, requested = (_describe_source(source) for source in (checkpoint.source, now))
    raise OpsError(
        f"Tree {request.dest}",
        f"it was made from {made_from}, not from {requested}",
        f"Use another dest, or delete the tree and {request.checkpoint_path} to rebuild it",
    )


def _describe_source(source: Mapping[str, Any]) -> str:
    folder = f"{source['folder']} in " if source["folder"] else ""
    return f"{folder}{source['name']} ({source['size_bytes']} bytes)"


class TreeCounts(NamedTuple):
    """What a tree holds: the number of images of each class, by name, and the total number of annotations."""

    classes: dict[str, int]
    annotations: int


def count_tree(path: str) -> TreeCounts:
    """Count the files in the class directories of the tree at ``path``, by their names alone. Raises OSError."""
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


def _check_deeply(request: LayoutRequest, checkpoint: Checkpoint) -> None:
    """Check every image of the finished tree. Raises OpsError for anything but files, and for a wrong size."""
    progress = Progress(request.state_dir, "imagenet_layout")
    progress.start(f"Checking {os.path.basename(request.dest)}", checkpoint.images, "images")
    done = 0
    for class_name, expected_bytes in sorted(checkpoint.class_bytes.items()):
        found_bytes = 0
        with os.scandir(os.path.join(request.dest, class_name)) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False):
                    raise changed_since(request, f"{class_name}/{entry.name} is not a regular file")
                if not entry.name.endswith(ANNOTATION_SUFFIX):
                    found_bytes += entry.stat(follow_symlinks=False).st_size
        if found_bytes != expected_bytes:
            why = f"the images of {class_name} have {found_bytes} bytes, but had {expected_bytes} when it was completed"
            raise changed_since(request, f"{why}: files were changed")
        done += checkpoint.classes[class_name]
        progress.update(done)
    progress.finish()


def check_counts(request: LayoutRequest, checkpoint: Checkpoint, where: str) -> None:
    """Raise OpsError where the counts differ from the expected ones."""
    for name, found, expected in (
        ("images", checkpoint.images, request.expected_images),
        ("classes", len(checkpoint.classes), request.expected_classes),
    ):
        if expected and found != expected:
            raise OpsError(
                f"Tree {where}",
                f"it has {found} {name}, expected {expected}",
                "Check that the source is complete (archive_fetch compares its MD5), or correct the expected counts",
            )


def source_of(archive: str, folder: str) -> dict[str, Any]:
    """Return the identity of an archive and a folder in it, without reading it. Raises OSError."""
    status = os.stat(archive)
    return {
        "name": os.path.basename(archive),
        "folder": folder,
        "size_bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }


def is_source(archive: str, folder: str, made_from: Mapping[str, Any]) -> bool:
    """Return whether ``made_from`` is the identity of this archive; a missing archive is taken to be the same.

    The modification time is not compared: a copy has another one.
    """
    if not os.path.exists(archive):
        return True
    now = source_of(archive, folder)
    return all(now[name] == made_from[name] for name in ("name", "folder", "size_bytes"))


def digest(labels: Mapping[str, str]) -> str:
    """Return a SHA-256 of ``labels``; "" where there are none."""
    return hashlib.sha256(canonical_json(labels)).hexdigest() if labels else ""


def mark_complete(request: LayoutRequest, checkpoint: Checkpoint) -> None:
    """Record that the tree is complete and in place."""
    checkpoint.state = COMPLETE
    write_checkpoint(request, checkpoint)


def count_as_laid_out(tree: str, dest: str, state_dir: str) -> None:
    """Write the checkpoint of the finished tree at ``dest`` for ``tree``, which is about to be renamed to that path.

    Nothing is written for a tree without class directories: imagenet_layout does not make such trees.
    """
    checkpoint = Checkpoint(COMPLETE, _RESTORED, {}, "")
    with os.scandir(tree) as classes:
        for found in classes:
            if not found.is_dir(follow_symlinks=False) or not _count_class(checkpoint, found):
                return
    _state_file(dest, state_dir).write(_fields(checkpoint))


def _count_class(checkpoint: Checkpoint, folder: os.DirEntry[str]) -> bool:
    """Count the images of a class; return whether it has nothing but files."""
    with os.scandir(folder.path) as entries:
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                return False
            if not entry.name.endswith(ANNOTATION_SUFFIX):
                checkpoint.count(folder.name, entry.stat(follow_symlinks=False).st_size)
    return True
