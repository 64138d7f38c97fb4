"""Turns the archives of a data set into trees: ``<dest>/<class>/<image>``, for training by class as everyone reads it.

An archive is read once, forwards. The tree grows in ``<dest>.partial`` and gets its name when it is complete and its
counts are right, so that nobody ever reads half of one. A journal in the state directory says up to which byte of the
archive everything is safe on disk; a run that was killed goes on from there. Annotations are put beside the images of
the complete tree.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
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
    require_archive,
)
from ansible.module_utils.imagenet_ops.core.disk import disk_error, require_space, sync_filesystem
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import exclusive, fsync_directory
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.layout.annotations import annotate
from ansible.module_utils.imagenet_ops.layout.journal import (
    COMPLETE,
    EXTRACTED,
    EXTRACTING,
    Journal,
    changed_since,
    check_counts,
    count_tree,
    digest,
    is_complete,
    is_source,
    mark_complete,
    read_journal,
    source_of,
    write_journal,
)
from ansible.module_utils.imagenet_ops.layout.move import has_more, move, plan_moves
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest
from ansible.module_utils.imagenet_ops.layout.tree_writer import TreeWriter

# Between journal points at most this much work is lost to a kill. They are made beside the reading: each sends to the
# disk what was written so far, so that it is not idle until the page cache is full.
_JOURNAL_SECONDS = 5.0
_JOURNAL_BYTES = 128 * 1024**2


def lay_out(request: LayoutRequest, *, check_mode: bool = False) -> dict[str, Any]:
    """Make sure that the tree is at ``request.dest``; return what imagenet_layout returns. Raises OpsError."""
    request = _checked(request)
    try:
        if check_mode:
            return _predict(request)
        os.makedirs(request.state_dir, exist_ok=True)
        with exclusive(os.path.join(request.state_dir, "imagenet_layout.lock")):
            journal, changed = _images(request)
            before = "not laid out" if changed else _in_words(journal)
            if request.annotations is not None and not _is_annotated(request, journal, request.annotations):
                _annotate(request, journal, request.annotations)
                changed = True
            return _result(request, journal, before) if changed else _result(request, journal)
    except OSError as error:
        raise disk_error(request.dest, error) from error


def _images(request: LayoutRequest) -> tuple[Journal, bool]:
    """Make sure that the tree has its images; return its journal, and whether something was done."""
    journal = read_journal(request)
    if journal is not None and not has_more(request) and is_complete(request, journal):
        if journal.state != COMPLETE:
            mark_complete(request, journal)
        return journal, False
    if request.directory is not None:
        return move(request, request.directory)
    return _extract(request, journal), True


def _checked(request: LayoutRequest) -> LayoutRequest:
    """Return ``request``, with ``dest`` free of a slash at its end; OpsError where its parts do not fit together."""
    if (request.archive is None) == (request.directory is None):
        why = "one of archive and directory is needed, and not both"
    elif request.layout == LABELLED_FILES and request.devkit is None and request.labels is None:
        why = "labelled_files need labels: a file with them, or the devkit"
    else:
        return replace(request, dest=os.path.abspath(request.dest))
    raise OpsError("Options of imagenet_layout", why, "Correct them and run again")


def _result(request: LayoutRequest, journal: Journal, before: str | None = None) -> dict[str, Any]:
    """Return what the module returns; ``before`` says in words what there was, where something was changed."""
    result = {
        "changed": before is not None,
        "split": request.split,
        "images": journal.images,
        "classes": len(journal.classes),
        "bytes": journal.bytes,
        "annotations": journal.annotations.get("annotations", 0),
        "annotations_without_image": journal.annotations.get("without_image", 0),
    }
    if before is not None:
        name = os.path.basename(request.dest)
        result["diff"] = {"before": f"{name}: {before}\n", "after": f"{name}: {_in_words(journal)}\n"}
    return result


def _in_words(journal: Journal) -> str:
    words = f"{journal.images} images in {len(journal.classes)} classes"
    annotations = journal.annotations.get("annotations", 0)
    return f"{words}, {annotations} annotations" if annotations else words


# Annotations


def _is_annotated(request: LayoutRequest, journal: Journal, archive: str) -> bool:
    """Return whether the annotations of this archive are in the tree. Raises OpsError where some of them are not."""
    done = journal.annotations
    if "annotations" not in done or not is_source(archive, request.annotations_folder, done["source"]):
        return False
    found = count_tree(request.dest).annotations
    if found != done["annotations"]:
        why = f"it holds {found} annotations, and when they were laid out it held {done['annotations']}"
        raise changed_since(request, f"{why}: files were removed or added since")
    return True


def _annotate(request: LayoutRequest, journal: Journal, archive: str) -> None:
    """Put the annotations beside their images; a run that was killed meanwhile writes all of them once more."""
    require_archive(archive)
    journal.annotations = {"source": source_of(archive, request.annotations_folder)}
    write_journal(request, journal)
    progress = Progress(request.state_dir, "imagenet_layout")
    counts = annotate(request.dest, archive, request.annotations_folder, progress)
    found = count_tree(request.dest).annotations
    if found != counts.annotations:
        raise OpsError(
            f"Tree {request.dest}",
            f"it holds {found} annotations, and {archive} has {counts.annotations} for it",
            "Remove those of another archive (*.xml) and run again",
        )
    journal.annotations = {**journal.annotations, **counts._asdict()}
    write_journal(request, journal)


# From an archive


def _extract(request: LayoutRequest, journal: Journal | None) -> Journal:
    """Read the archive from where the journal says, and give the tree its name."""
    archive = request.archive or ""
    require_archive(archive)
    labels = labels_for(request.rules)
    fresh = Journal(EXTRACTING, request.layout, source_of(archive, request.folder), digest(labels))
    journal = _begin(request, journal, fresh)
    if journal.state == EXTRACTING:
        with _Extraction(request, archive, journal, labels) as extraction:
            extraction.run()
    check_counts(request, journal, request.partial)
    _finish(request, journal)
    return journal


def _begin(request: LayoutRequest, journal: Journal | None, fresh: Journal) -> Journal:
    """Return the journal to go on with, and leave in ``.partial`` only what it knows of.

    A directory that we did not make is never touched: what is in ``.partial`` is ours when there is a journal.
    """
    if os.path.isdir(request.dest) and os.listdir(request.dest):
        raise OpsError(
            f"Tree {request.dest}",
            "it holds files that imagenet_layout did not put there",
            "Move them away, or name another dest",
        )
    if journal is None and os.path.exists(request.partial):
        raise OpsError(
            f"Tree {request.partial}",
            f"it is there, but its journal {request.journal} is not",
            "Remove it and run again",
        )
    if journal is None or journal.state not in (EXTRACTING, EXTRACTED) or not journal.continues(fresh):
        journal = fresh
    if not os.path.isdir(request.partial):
        journal = fresh
    write_journal(request, journal)
    os.makedirs(request.partial, mode=0o755, exist_ok=True)
    fsync_directory(os.path.dirname(request.partial))
    for entry in os.listdir(request.partial):
        if entry not in journal.classes:
            shutil.rmtree(os.path.join(request.partial, entry))
    return journal


def _finish(request: LayoutRequest, journal: Journal) -> None:
    """Put the complete tree in its place."""
    os.rename(request.partial, request.dest)
    fsync_directory(os.path.dirname(request.dest))
    mark_complete(request, journal)


class _Extraction:
    """One pass over an archive, from the journal's resume point to its end. A context manager."""

    def __init__(self, request: LayoutRequest, archive: str, journal: Journal, labels: Mapping[str, str]) -> None:
        self._request = request
        self._archive = ImageArchive(archive, request.rules, labels)
        self._journal = journal
        self._last_time = time.monotonic()
        self._last_offset = journal.offset
        self._point = ResumePoint(journal.offset, journal.class_name, journal.class_end)
        self._keeping: Future[None] | None = None
        self._progress = Progress(request.state_dir, "imagenet_layout")

    def __enter__(self) -> _Extraction:  # noqa: PYI034 (Self is newer than Python 3.9)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._archive)
            self._writer = stack.enter_context(TreeWriter(self._request.partial))
            self._keeper = stack.enter_context(ThreadPoolExecutor(max_workers=1))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def run(self) -> None:
        """Lay out what is left of the archive; afterwards all of it is durable, and the journal says so."""
        journal = self._journal
        remaining_bytes = self._archive.remaining_bytes(self._point)
        if remaining_bytes is not None:
            require_space(self._request.dest, remaining_bytes)
        name = os.path.basename(self._archive.path)
        self._progress.start(f"Laying out {name}", self._archive.size_bytes, "bytes", journal.offset)
        for image in self._images():
            self._writer.make_directory(image.class_name)
            self._writer.write(image.class_name, image.name, image.content)
            journal.count(image.class_name, len(image.content))
            self._point = image.after
            self._progress.update(self._archive.file_position)
            self._journal_point()
        self._keep_last_point()
        self._refuse_lost_files()
        journal.state = EXTRACTED
        write_journal(self._request, journal)
        self._progress.finish()

    def _images(self) -> Iterator[ArchiveImage]:
        """Yield what is left of the archive; where reading it ends early, what came before is kept."""
        finished = self._journal.classes if self._request.layout == CLASS_ARCHIVES else ()
        try:
            yield from self._archive.images(self._point, finished)
        except (OpsError, KeyboardInterrupt):
            self._keep_last_point()
            raise

    def _journal_point(self) -> None:
        """Now and then make everything durable that was written so far, and then say so; both beside the reading."""
        due = (
            time.monotonic() - self._last_time >= _JOURNAL_SECONDS
            or self._point.offset - self._last_offset >= _JOURNAL_BYTES
        )
        if due and (self._keeping is None or self._keeping.done()):
            self._writer.flush()
            self._raise_failure()
            self._keeping = self._keeper.submit(self._keep, self._snapshot())
            self._last_time, self._last_offset = time.monotonic(), self._point.offset

    def _keep_last_point(self) -> None:
        self._writer.flush()
        self._raise_failure()
        self._keep(self._snapshot())

    def _snapshot(self) -> Journal:
        """Return the journal of this moment, which the work that goes on does not change."""
        self._journal.offset, self._journal.class_name, self._journal.class_end = self._point
        classes, class_bytes = dict(self._journal.classes), dict(self._journal.class_bytes)
        return replace(self._journal, classes=classes, class_bytes=class_bytes)

    def _keep(self, journal: Journal) -> None:
        sync_filesystem(self._request.partial)
        write_journal(self._request, journal)

    def _raise_failure(self) -> None:
        if self._keeping is not None:
            self._keeping.result()
            self._keeping = None

    def _refuse_lost_files(self) -> None:
        """Compare the tree with what was counted: a name that came before a restart and after it would show here."""
        if count_tree(self._request.partial).classes != self._journal.classes:
            raise OpsError(
                f"Tree {self._request.partial}",
                f"it does not hold the {self._journal.images} images of {self._archive.path}: a name is there twice, or"
                " something else wrote to the tree",
                f"Remove {self._request.partial} and {self._request.journal}, then run again",
            )


# Check mode


def _predict(request: LayoutRequest) -> dict[str, Any]:
    """Return what `lay_out` would, without writing: by the journal, or by looking at the directory.

    What an archive holds is known only after reading it, so the expected counts stand for its own, and annotations that
    are to come are not counted; an archive that is not there yet is taken to be fetched by an earlier task of the play.
    """
    journal, before = _foreseen_images(request)
    if journal is None:
        name = os.path.basename(request.dest)
        expected = _result(request, Journal(EXTRACTING, request.layout, {}, ""), before)
        after = f"{name}: {request.expected_images} images\n"
        counts = {"images": request.expected_images, "classes": request.expected_classes}
        return {**expected, **counts, "diff": {**expected["diff"], "after": after}}
    if request.annotations is not None and (before or not _is_annotated(request, journal, request.annotations)):
        result = _result(request, journal, before or _in_words(journal))
        result["diff"]["after"] = f"{result['diff']['after'].rstrip()}, with annotations\n"
        return result
    return _result(request, journal, before)


def _foreseen_images(request: LayoutRequest) -> tuple[Journal | None, str | None]:
    """Return the journal of the tree that there would be, if that can be known, and in words what there is instead."""
    journal = read_journal(request)
    if journal is not None and not has_more(request) and is_complete(request, journal):
        return journal, None
    if request.directory is None:
        return None, "not laid out"
    plan = plan_moves(request, request.directory)
    return plan.journal, "not laid out" if plan.moves else None
