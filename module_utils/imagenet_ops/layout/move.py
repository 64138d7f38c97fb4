"""Takes images that are unpacked already into a tree, by renaming them or the directories of their classes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ansible.module_utils.imagenet_ops.archive.images import ANNOTATION_SUFFIX, LABELLED_FILES, labels_for
from ansible.module_utils.imagenet_ops.core.disk import existing_parent, sync_filesystem
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.layout.journal import (
    COMPLETE,
    MOVING,
    Journal,
    check_counts,
    digest,
    mark_complete,
    write_journal,
)
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest


class Move(NamedTuple):
    """What is renamed: an image, or the directory of a class, from ``source`` to ``target``."""

    source: str
    target: str


@dataclass(frozen=True)
class Plan:
    """What moves where; ``journal`` counts the tree as it will be afterwards."""

    moves: list[Move]
    journal: Journal


def has_more(request: LayoutRequest) -> bool:
    """Return whether the directory holds anything that is still to be moved into the tree."""
    directory = request.directory
    if directory is None or not os.path.isdir(directory):
        return False
    if request.layout == LABELLED_FILES:
        return bool(_flat_files(directory))
    return not _is_tree(request, directory) and bool(os.listdir(directory))


def move(request: LayoutRequest, directory: str) -> tuple[Journal, bool]:
    """Rename what is in ``directory`` into the tree, once it is certain that everything has its place."""
    plan = plan_moves(request, directory)
    if plan.moves:
        plan.journal.state = MOVING
        write_journal(request, plan.journal)
        progress = Progress(request.state_dir, "imagenet_layout")
        progress.start(f"Moving what is in {directory}", len(plan.moves), "names")
        for parent in sorted({os.path.dirname(move.target) for move in plan.moves}):
            os.makedirs(parent, mode=0o755, exist_ok=True)
        for number, (source, target) in enumerate(plan.moves):
            os.rename(source, target)
            progress.update(number)
        sync_filesystem(request.dest)
        progress.finish()
    mark_complete(request, plan.journal)
    return plan.journal, bool(plan.moves)


def plan_moves(request: LayoutRequest, directory: str) -> Plan:
    """Look at every file before the first one moves. Raises OpsError, with nothing moved, where one is out of place."""
    if not os.path.isdir(directory):
        raise OpsError(f"Directory {directory}", "there is no such directory", "Name the one with the unpacked images")
    if os.stat(directory).st_dev != os.stat(existing_parent(request.dest)).st_dev:
        raise OpsError(
            f"Directory {directory}",
            f"it is not on the volume of {request.dest}, so its files cannot be moved by renaming them",
            "Name a dest on the same volume, or copy the directory there first",
        )
    labels = labels_for(request.rules)
    journal = Journal(COMPLETE, request.layout, {}, digest(labels))
    flat = request.layout == LABELLED_FILES
    moves = _flat_moves(request, directory, labels, journal) if flat else _class_moves(request, directory, journal)
    arriving = {move.target for move in moves}
    for class_name, name, size_bytes in _tree_files(request, request.dest, apart=directory if flat else None):
        path = os.path.join(request.dest, class_name, name)
        if flat and labels.get(name) != class_name:
            raise _out_of_place(path, "it is not where its label belongs")
        if path in arriving or os.path.dirname(path) in arriving:
            raise _out_of_place(path, f"{directory} has it as well")
        journal.count(class_name, size_bytes)
    journal.classes, journal.class_bytes = (
        dict(sorted(kept.items())) for kept in (journal.classes, journal.class_bytes)
    )
    check_counts(request, journal, directory)
    return Plan(moves, journal)


def _flat_moves(request: LayoutRequest, directory: str, labels: Mapping[str, str], journal: Journal) -> list[Move]:
    """Return the moves of flat images to the directories of their classes, and count them in ``journal``."""
    rules = request.rules
    moves = []
    for name in _flat_files(directory):
        path = os.path.join(directory, name)
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            raise _out_of_place(path, "it is not a regular file")
        if not rules.is_image("", name):
            raise _out_of_place(path, f"it is not named like an image of the {request.split} split")
        class_name = rules.label_of(labels, name)
        moves.append(Move(path, os.path.join(request.dest, class_name, name)))
        journal.count(class_name, status.st_size)
    # One class after another: each directory that grows is at hand until it is done.
    return sorted(moves, key=lambda move: move.target)


def _class_moves(request: LayoutRequest, directory: str, journal: Journal) -> list[Move]:
    """Return the moves of whole directories of classes, and count their images in ``journal``; none within the tree."""
    if _is_tree(request, directory):
        return []
    for class_name, _, size_bytes in _tree_files(request, directory):
        journal.count(class_name, size_bytes)
    return [Move(os.path.join(directory, name), os.path.join(request.dest, name)) for name in sorted(journal.classes)]


def _is_tree(request: LayoutRequest, directory: str) -> bool:
    """Return whether ``directory`` is the tree itself."""
    return os.path.isdir(request.dest) and os.path.samefile(directory, request.dest)


def _out_of_place(path: str, why: str) -> OpsError:
    return OpsError(f"File {path}", why, "Move it away and run again; nothing was moved")


def _flat_files(directory: str) -> list[str]:
    """Return the sorted names of everything in ``directory`` that is not a directory; none where it does not exist."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _tree_files(request: LayoutRequest, tree: str, apart: str | None = None) -> Iterator[tuple[str, str, int]]:
    """Yield class, name and size of each image of a ``tree`` that an earlier run or another tool made.

    Where the tree is the directory ``apart`` too, its flat files are not looked at here. Raises OpsError for what is no
    image in the directory of a class; annotations may lie beside theirs.
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
            raise _out_of_place(class_entry.path, "it is not the directory of a class")
        if not rules.is_class(class_entry.name):
            raise _out_of_place(class_entry.path, "it is not named like a class")
        with os.scandir(class_entry.path) as images:
            for image in images:
                if not image.is_file(follow_symlinks=False):
                    raise _out_of_place(image.path, "it is not a regular file")
                if image.name.endswith(ANNOTATION_SUFFIX):
                    continue
                if not rules.is_image(class_entry.name, image.name):
                    raise _out_of_place(image.path, f"it is not named like an image of {class_entry.name}")
                yield class_entry.name, image.name, image.stat().st_size
