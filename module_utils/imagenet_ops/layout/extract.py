"""Extracts the archives of a data set to trees: ``<dest>/<class>/<image>``, the common form for training by class.

An archive is read once, sequentially. The tree grows in ``<dest>.partial`` and is renamed when it is complete and its
counts are right, so that no reader sees half of it. A checkpoint in the state directory has the byte of the archive up
to which all images are durable; a run that was killed resumes there. Annotations are put next to the images of the
complete tree.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ansible.module_utils.imagenet_ops.archive.images import (
    CLASS_ARCHIVES,
    LABELLED_FILES,
    ArchiveImage,
    ImageArchive,
    ResumePoint,
    labels_for,
    missing_images,
    require_archive,
)
from ansible.module_utils.imagenet_ops.archive.labels import find_label
from ansible.module_utils.imagenet_ops.core.disk import disk_error, require_space, sync_filesystem
from ansible.module_utils.imagenet_ops.core.errors import SAMPLES, OpsError
from ansible.module_utils.imagenet_ops.core.files import exclusive, fsync_directory
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.core.state_file import Warn
from ansible.module_utils.imagenet_ops.layout.annotations import annotate
from ansible.module_utils.imagenet_ops.layout.checkpoint import (
    COMPLETE,
    EXTRACTED,
    EXTRACTING,
    Checkpoint,
    changed_since,
    check_counts,
    count_tree,
    digest,
    is_complete,
    is_source,
    mark_complete,
    read_checkpoint,
    source_of,
    write_checkpoint,
)
from ansible.module_utils.imagenet_ops.layout.move import has_more, move, plan_moves
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest
from ansible.module_utils.imagenet_ops.layout.tree_writer import TreeWriter

# A kill loses at most the work since the last checkpoint. A thread makes the checkpoints: each syncs what was written
# so far, so that the disk is not idle until the page cache is full.
_CHECKPOINT_SECONDS = 5.0
_CHECKPOINT_BYTES = 128 * 1024**2


def lay_out(request: LayoutRequest, *, check_mode: bool = False, warn: Warn = warnings.warn) -> dict[str, Any]:
    """Ensure that the tree is at ``request.dest``; return the result of the module imagenet_layout. Raises OpsError.

    ``warn`` is called with a sentence about what a new tree does not hold: files that are no images, images that only
    have labels, and classes without an image.
    """
    request = _checked(request)
    try:
        if check_mode:
            return _predict(request)
        os.makedirs(request.state_dir, exist_ok=True)
        with exclusive(os.path.join(request.state_dir, "imagenet_layout.lock")):
            checkpoint, changed = _images(request)
            if changed:
                for warning in _left_out(request, checkpoint):
                    warn(f"Tree {request.dest}: {warning}")
            before = "not laid out" if changed else _describe(checkpoint)
            if request.annotations is not None and not _is_annotated(request, checkpoint, request.annotations):
                _annotate(request, checkpoint, request.annotations)
                changed = True
            return _result(request, checkpoint, before) if changed else _result(request, checkpoint)
    except OSError as error:
        raise disk_error(request.dest, error) from error


def _images(request: LayoutRequest) -> tuple[Checkpoint, bool]:
    """Ensure that the tree has its images; return its checkpoint, and whether anything was changed."""
    checkpoint = read_checkpoint(request)
    if checkpoint is not None and not has_more(request) and is_complete(request, checkpoint):
        if checkpoint.state != COMPLETE:
            mark_complete(request, checkpoint)
        return checkpoint, False
    if request.directory is not None:
        return move(request, request.directory)
    return _extract(request, checkpoint), True


def _left_out(request: LayoutRequest, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a sentence for each kind of thing that the new tree does not hold."""
    where = request.archive or request.directory or ""
    files = checkpoint.beside.warning(where)
    if files:
        yield files
    labels = labels_for(request.rules)
    if len(labels) > checkpoint.images and not request.expected_images:
        names = {
            name for class_name in checkpoint.classes for name in os.listdir(os.path.join(request.dest, class_name))
        }
        found = dict.fromkeys(names, "")
        missing = sorted(name for name in labels if find_label(found, name) is None)
        if missing:
            yield missing_images(missing, where)
    empty = sorted(name for name, images in checkpoint.classes.items() if not images)
    if empty:
        samples = ", ".join(empty[:SAMPLES])
        yield f"{len(empty)} classes have no image ({samples}); to pack them, set devkit or label_order"


def _checked(request: LayoutRequest) -> LayoutRequest:
    """Return ``request``, with an absolute ``dest``; raise OpsError for invalid combinations of options."""
    if (request.archive is None) == (request.directory is None):
        why = "exactly one of archive and directory is required"
    elif request.layout == LABELLED_FILES and request.devkit is None and request.labels is None:
        why = "labelled_files requires labels or devkit"
    else:
        return replace(request, dest=os.path.abspath(request.dest))
    raise OpsError("Options of imagenet_layout", why, "Correct them and rerun")


def _result(request: LayoutRequest, checkpoint: Checkpoint, before: str | None = None) -> dict[str, Any]:
    """Return the result of the module; ``before`` describes what was there if anything was changed."""
    result = {
        "changed": before is not None,
        "split": request.name_rules,
        "images": checkpoint.images,
        "classes": len(checkpoint.classes),
        "bytes": checkpoint.bytes,
        "annotations": checkpoint.annotations.get("annotations", 0),
        "annotations_without_image": checkpoint.annotations.get("without_image", 0),
    }
    if before is not None:
        name = os.path.basename(request.dest)
        result["diff"] = {"before": f"{name}: {before}\n", "after": f"{name}: {_describe(checkpoint)}\n"}
    return result


def _describe(checkpoint: Checkpoint) -> str:
    words = f"{checkpoint.images} images in {len(checkpoint.classes)} classes"
    annotations = checkpoint.annotations.get("annotations", 0)
    return f"{words}, {annotations} annotations" if annotations else words


# Annotations


def _is_annotated(request: LayoutRequest, checkpoint: Checkpoint, archive: str) -> bool:
    """Return whether the annotations of this archive are in the tree. Raises OpsError if some are missing."""
    done = checkpoint.annotations
    if "annotations" not in done or not is_source(archive, request.annotations_folder, done["source"]):
        return False
    found = count_tree(request.dest).annotations
    if found != done["annotations"]:
        why = f"it has {found} annotations, but had {done['annotations']} when they were laid out"
        raise changed_since(request, f"{why}: files were added or removed")
    return True


def _annotate(request: LayoutRequest, checkpoint: Checkpoint, archive: str) -> None:
    """Put the annotations next to their images; after a kill, all of them are written again."""
    require_archive(archive)
    checkpoint.annotations = {"source": source_of(archive, request.annotations_folder)}
    write_checkpoint(request, checkpoint)
    progress = Progress(request.state_dir, "imagenet_layout")
    counts = annotate(request.dest, archive, request.annotations_folder, progress)
    found = count_tree(request.dest).annotations
    if found != counts.annotations:
        raise OpsError(
            f"Tree {request.dest}",
            f"it has {found} annotations, {archive} has {counts.annotations} for it",
            "Delete the annotations (*.xml) of other archives and rerun",
        )
    checkpoint.annotations = {**checkpoint.annotations, **counts._asdict()}
    write_checkpoint(request, checkpoint)


# From an archive


def _extract(request: LayoutRequest, checkpoint: Checkpoint | None) -> Checkpoint:
    """Read the archive from the checkpoint on, and rename the complete tree."""
    archive = request.archive or ""
    require_archive(archive)
    labels = labels_for(request.rules)
    fresh = Checkpoint(EXTRACTING, request.layout, source_of(archive, request.folder), digest(labels))
    checkpoint = _begin(request, checkpoint, fresh)
    if checkpoint.state == EXTRACTING:
        with _Extraction(request, archive, checkpoint, labels) as extraction:
            extraction.run()
    check_counts(request, checkpoint, request.partial)
    _finish(request, checkpoint)
    return checkpoint


def _begin(request: LayoutRequest, checkpoint: Checkpoint | None, fresh: Checkpoint) -> Checkpoint:
    """Return the checkpoint to resume from, and remove from ``.partial`` the classes that it does not list.

    A directory of somebody else is never touched: ``.partial`` is ours only if there is a checkpoint.
    """
    if os.path.isdir(request.dest) and os.listdir(request.dest):
        raise OpsError(
            f"Tree {request.dest}",
            "it has files that imagenet_layout did not put there",
            "Move them away, or use another dest",
        )
    if checkpoint is None and os.path.exists(request.partial):
        raise OpsError(
            f"Tree {request.partial}",
            f"it exists, but its checkpoint {request.checkpoint_path} does not",
            "Delete it and rerun",
        )
    if checkpoint is None or checkpoint.state not in (EXTRACTING, EXTRACTED) or not checkpoint.continues(fresh):
        checkpoint = fresh
    if not os.path.isdir(request.partial):
        checkpoint = fresh
    write_checkpoint(request, checkpoint)
    os.makedirs(request.partial, mode=0o755, exist_ok=True)
    fsync_directory(os.path.dirname(request.partial))
    for entry in os.listdir(request.partial):
        if entry not in checkpoint.classes:
            shutil.rmtree(os.path.join(request.partial, entry))
    return checkpoint


def _finish(request: LayoutRequest, checkpoint: Checkpoint) -> None:
    """Rename the complete tree to its final path."""
    os.rename(request.partial, request.dest)
    fsync_directory(os.path.dirname(request.dest))
    mark_complete(request, checkpoint)


class _Extraction:
    """One pass over an archive, from the checkpoint to the end. A context manager."""

    def __init__(self, request: LayoutRequest, archive: str, checkpoint: Checkpoint, labels: Mapping[str, str]) -> None:
        self._request = request
        self._archive = ImageArchive(archive, request.rules, labels)
        self._checkpoint = checkpoint
        self._last_time = time.monotonic()
        self._last_offset = checkpoint.offset
        self._point = ResumePoint(checkpoint.offset, checkpoint.class_name, checkpoint.class_end)
        self._archive.beside = self._beside = checkpoint.beside
        self._saving: Future[None] | None = None
        self._progress = Progress(request.state_dir, "imagenet_layout")

    def __enter__(self) -> _Extraction:  # noqa: PYI034 (Self is newer than Python 3.9)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._archive)
            self._writer = stack.enter_context(TreeWriter(self._request.partial))
            self._saver = stack.enter_context(ThreadPoolExecutor(max_workers=1))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def run(self) -> None:
        """Lay out the rest of the archive; on return all of it is durable, and the checkpoint says so."""
        checkpoint = self._checkpoint
        remaining_bytes = self._archive.remaining_bytes(self._point)
        if remaining_bytes is not None:
            require_space(self._request.dest, remaining_bytes)
        name = os.path.basename(self._archive.path)
        self._progress.start(f"Extracting {name}", self._archive.size_bytes, "bytes", checkpoint.offset)
        for image in self._images():
            self._writer.make_directory(image.class_name)
            self._writer.write(image.class_name, image.name, image.content)
            checkpoint.count(image.class_name, len(image.content))
            self._point, self._beside = image.after, self._archive.beside
            self._progress.update(self._archive.file_position)
            self._save_when_due()
        beside = self._archive.beside
        for class_name in beside.empty_classes:
            self._writer.make_directory(class_name)
            checkpoint.classes.setdefault(class_name, 0)
            checkpoint.class_bytes.setdefault(class_name, 0)
        self._save_last()
        self._require_all_files()
        checkpoint.state = EXTRACTED
        checkpoint.beside = beside
        write_checkpoint(self._request, checkpoint)
        self._progress.finish()

    def _images(self) -> Iterator[ArchiveImage]:
        """Yield the rest of the archive; if reading fails, save a checkpoint of what came before."""
        finished = self._checkpoint.classes if self._request.layout == CLASS_ARCHIVES else ()
        try:
            yield from self._archive.images(self._point, finished)
        except (OpsError, KeyboardInterrupt):
            self._save_last()
            raise

    def _save_when_due(self) -> None:
        """Every few seconds, sync what was written so far and save a checkpoint of it, in a thread of its own."""
        due = (
            time.monotonic() - self._last_time >= _CHECKPOINT_SECONDS
            or self._point.offset - self._last_offset >= _CHECKPOINT_BYTES
        )
        if due and (self._saving is None or self._saving.done()):
            self._writer.flush()
            self._raise_failure()
            self._saving = self._saver.submit(self._save, self._snapshot())
            self._last_time, self._last_offset = time.monotonic(), self._point.offset

    def _save_last(self) -> None:
        self._writer.flush()
        self._raise_failure()
        self._save(self._snapshot())

    def _snapshot(self) -> Checkpoint:
        """Return a copy of the checkpoint that the continuing work does not change."""
        self._checkpoint.offset, self._checkpoint.class_name, self._checkpoint.class_end = self._point
        self._checkpoint.beside = self._beside
        classes, class_bytes = dict(self._checkpoint.classes), dict(self._checkpoint.class_bytes)
        return replace(self._checkpoint, classes=classes, class_bytes=class_bytes)

    def _save(self, checkpoint: Checkpoint) -> None:
        sync_filesystem(self._request.partial)
        write_checkpoint(self._request, checkpoint)

    def _raise_failure(self) -> None:
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def _require_all_files(self) -> None:
        """Compare the tree with the counts: this finds a name that came both before a restart and after it."""
        if count_tree(self._request.partial).classes != self._checkpoint.classes:
            raise OpsError(
                f"Tree {self._request.partial}",
                f"it does not have the {self._checkpoint.images} images of {self._archive.path}: the archive has a"
                " duplicate name, or another process wrote to the tree",
                f"Delete {self._request.partial} and {self._request.checkpoint_path}, then rerun",
            )


# Check mode


def _predict(request: LayoutRequest) -> dict[str, Any]:
    """Return what `lay_out` would return, without writing: by the checkpoint, or by listing the directory.

    The content of an archive is known only after reading it, so the expected counts are returned, and future
    annotations are not counted; a missing archive is assumed to be fetched by an earlier task of the play.
    """
    checkpoint, before = _foreseen_images(request)
    if checkpoint is None:
        name = os.path.basename(request.dest)
        expected = _result(request, Checkpoint(EXTRACTING, request.layout, {}, ""), before)
        after = f"{name}: {request.expected_images} images\n"
        counts = {"images": request.expected_images, "classes": request.expected_classes}
        return {**expected, **counts, "diff": {**expected["diff"], "after": after}}
    if request.annotations is not None and (before or not _is_annotated(request, checkpoint, request.annotations)):
        result = _result(request, checkpoint, before or _describe(checkpoint))
        result["diff"]["after"] = f"{result['diff']['after'].rstrip()}, with annotations\n"
        return result
    return _result(request, checkpoint, before)


def _foreseen_images(request: LayoutRequest) -> tuple[Checkpoint | None, str | None]:
    """Return the future checkpoint of the tree, if it can be known, and a description of what is there now."""
    checkpoint = read_checkpoint(request)
    if checkpoint is not None and not has_more(request) and is_complete(request, checkpoint):
        return checkpoint, None
    if request.directory is None:
        return None, "not laid out"
    plan = plan_moves(request, request.directory)
    return plan.checkpoint, "not laid out" if plan.moves else None
