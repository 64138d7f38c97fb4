"""Moves images that are already unpacked into a tree, by renaming them or their class directories."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ansible.module_utils.imagenet_ops.archive.images import ANNOTATION_SUFFIX, LABELLED_FILES, labels_for
from ansible.module_utils.imagenet_ops.archive.labels import find_label
from ansible.module_utils.imagenet_ops.core.disk import existing_parent, sync_filesystem
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.layout.checkpoint import (
    COMPLETE,
    MOVING,
    Checkpoint,
    check_counts,
    digest,
    mark_complete,
    write_checkpoint,
)
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest


class Move(NamedTuple):
    """A rename of an image or a class directory from ``source`` to ``target``."""

    source: str
    target: str


@dataclass(frozen=True)
class MovePlan:
    """The moves; ``checkpoint`` has the counts of the tree after them."""

    moves: list[Move]
    checkpoint: Checkpoint


def has_more(request: LayoutRequest) -> bool:
    """Return whether the directory has anything to move into the tree."""
    directory = request.directory
    if directory is None or not os.path.isdir(directory):
        return False
    if request.layout == LABELLED_FILES:
        return bool(_flat_files(directory))
    return not _is_tree(request, directory) and bool(os.listdir(directory))


def move(request: LayoutRequest, directory: str) -> tuple[Checkpoint, bool]:
    """Move the content of ``directory`` into the tree, after all of it was checked. Raises OpsError and OSError."""
    plan = plan_moves(request, directory)
    if plan.moves:
        plan.checkpoint.state = MOVING
        write_checkpoint(request, plan.checkpoint)
        progress = Progress(request.state_dir, "imagenet_layout")
        progress.start(f"Moving {directory}", len(plan.moves), "names")
        for parent in sorted({os.path.dirname(move.target) for move in plan.moves}):
            os.makedirs(parent, mode=0o755, exist_ok=True)
        for number, (source, target) in enumerate(plan.moves):
            os.rename(source, target)
            progress.update(number)
        sync_filesystem(request.dest)
        progress.finish()
    mark_complete(request, plan.checkpoint)
    return plan.checkpoint, bool(plan.moves)


def plan_moves(request: LayoutRequest, directory: str) -> MovePlan:
    """Check every file before any of them is moved. Raises OpsError for a misplaced one."""
    if not os.path.isdir(directory):
        raise OpsError(f"Directory {directory}", "there is no such directory", "Use the one with the unpacked images")
    if os.stat(directory).st_dev != os.stat(existing_parent(request.dest)).st_dev:
        raise OpsError(
            f"Directory {directory}",
            f"it is not on the volume of {request.dest}, so its files cannot be renamed into it",
            "Use a dest on the same volume, or copy the directory there first",
        )
    labels = labels_for(request.rules)
    checkpoint = Checkpoint(COMPLETE, request.layout, {}, digest(labels))
    flat = request.layout == LABELLED_FILES
    moves = (
        _flat_moves(request, directory, labels, checkpoint) if flat else _class_moves(request, directory, checkpoint)
    )
    arriving = {move.target for move in moves}
    for class_name, name, size_bytes in _tree_files(request, request.dest, apart=directory if flat else None):
        path = os.path.join(request.dest, class_name, name)
        if flat and find_label(labels, name) != class_name:
            raise _misplaced(path, "its directory is not the class of its label")
        if path in arriving or os.path.dirname(path) in arriving:
            raise _misplaced(path, f"{directory} has it too")
        checkpoint.count(class_name, size_bytes)
    _count_empty(request.dest, checkpoint)
    checkpoint.classes, checkpoint.class_bytes = (
        dict(sorted(kept.items())) for kept in (checkpoint.classes, checkpoint.class_bytes)
    )
    check_counts(request, checkpoint, directory)
    return MovePlan(moves, checkpoint)


def _flat_moves(
    request: LayoutRequest, directory: str, labels: Mapping[str, str], checkpoint: Checkpoint
) -> list[Move]:
    """Return the moves of flat images to their class directories, and count them in ``checkpoint``."""
    rules = request.rules
    moves = []
    for name in _flat_files(directory):
        path = os.path.join(directory, name)
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            raise _misplaced(path, "it is not a regular file")
        if not rules.is_image("", name):
            raise _misplaced(path, f"its name is not valid for an image of the {request.name_rules} split")
        class_name = rules.label_of(labels, name)
        moves.append(Move(path, os.path.join(request.dest, class_name, name)))
        checkpoint.count(class_name, status.st_size)
    # Sorted by class, so that each directory stays in the cache until it is complete.
    return sorted(moves, key=lambda move: move.target)


def _class_moves(request: LayoutRequest, directory: str, checkpoint: Checkpoint) -> list[Move]:
    """Return the moves of whole class directories, and count their images in ``checkpoint``; none within the tree."""
    if _is_tree(request, directory):
        return []
    for class_name, _, size_bytes in _tree_files(request, directory):
        checkpoint.count(class_name, size_bytes)
    _count_empty(directory, checkpoint)
    return [
        Move(os.path.join(directory, name), os.path.join(request.dest, name)) for name in sorted(checkpoint.classes)
    ]


def _count_empty(tree: str, checkpoint: Checkpoint) -> None:
    """Count the class directories of ``tree`` that have no image: later labels would shift without them."""
    if not os.path.isdir(tree):
        return
    with os.scandir(tree) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                checkpoint.classes.setdefault(entry.name, 0)
                checkpoint.class_bytes.setdefault(entry.name, 0)


def _is_tree(request: LayoutRequest, directory: str) -> bool:
    """Return whether ``directory`` is the tree itself."""
    return os.path.isdir(request.dest) and os.path.samefile(directory, request.dest)


def _misplaced(path: str, why: str) -> OpsError:
    return OpsError(f"File {path}", why, "Move it away and rerun; no file was moved")


def _flat_files(directory: str) -> list[str]:
    """Return the sorted names of everything in ``directory`` that is not a directory; none where it does not exist."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _tree_files(request: LayoutRequest, tree: str, apart: str | None = None) -> Iterator[tuple[str, str, int]]:
    """Yield class, name and size of each image of a ``tree`` that an earlier run or another tool made.

    If the tree is also the directory ``apart``, its flat files are skipped. Raises OpsError for anything but images in
    class directories; annotations next to them are skipped.
    """
    if not os.path.isdir(tree):
        return
    rules = request.rules
    passes_files = apart is not None and os.path.samefile(tree, apart)
    with os.scandir(tree) as entries:
        classes = sorted(entries, key=lambda entry: entry.name)
    for class_entry in classes:
        if not class_entry.is_dir(follow_symlinks=False):
            if passes_files:
                continue
            raise _misplaced(class_entry.path, "it is not a class directory")
        if not rules.is_class(class_entry.name):
            raise _misplaced(class_entry.path, "its name is not a valid class")
        with os.scandir(class_entry.path) as images:
            for image in images:
                if not image.is_file(follow_symlinks=False):
                    raise _misplaced(image.path, "it is not a regular file")
                if image.name.endswith(ANNOTATION_SUFFIX):
                    continue
                if not rules.is_image(class_entry.name, image.name):
                    raise _misplaced(image.path, f"its name is not valid for an image of class {class_entry.name}")
                yield class_entry.name, image.name, image.stat().st_size
