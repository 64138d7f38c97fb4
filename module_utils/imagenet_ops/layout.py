"""Turns the archives of a data set into trees: ``<dest>/<class>/<image>``, for training by class as everyone reads it.

An archive is read once, forwards. The tree grows in ``<dest>.partial`` and gets its name when it is complete and its
counts are right, so that nobody ever reads half of one. A journal in the state directory says up to which byte of the
archive everything is safe on disk; a run that was killed goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ansible.module_utils.imagenet_ops.disk import disk_error, existing_parent, require_space, sync_filesystem
from ansible.module_utils.imagenet_ops.errors import OpsError
from ansible.module_utils.imagenet_ops.image_archive import (
    CLASS_ARCHIVES,
    LABELLED_FILES,
    ArchiveImage,
    ArchiveRules,
    ImageArchive,
    ResumePoint,
    labels_for,
    require_archive,
)
from ansible.module_utils.imagenet_ops.state import (
    Progress,
    canonical_json,
    exclusive,
    fsync_directory,
    read_json,
    write_json,
)
from ansible.module_utils.imagenet_ops.tree_writer import TreeWriter

_JOURNAL_FORMAT = 1
# A journal point costs a sync of the volume; in between at most this much work is lost to a kill.
_JOURNAL_SECONDS = 15.0
_JOURNAL_BYTES = 4 * 1024**3

# What the journal says of a tree: growing in .partial; complete there; in place.
_EXTRACTING = "extracting"
_EXTRACTED = "extracted"
_MOVING = "moving"
_COMPLETE = "complete"


@dataclass(frozen=True)
class LayoutRequest:
    """What to lay out: ``archive`` or ``directory`` (flat, already unpacked) to the tree at ``dest``.

    ``layout`` is CLASS_ARCHIVES (an archive of archives, one for each class) or LABELLED_FILES (images whose classes
    are in a file with ``labels``, in a form of `label_file`, or in the ``devkit``). ``split`` says which names are
    right: those of ILSVRC2012's ``train`` or ``validation``, or ``any``. Counts of 0 are not checked.
    """

    split: str
    layout: str
    dest: str
    state_dir: str
    archive: str | None = None
    directory: str | None = None
    devkit: str | None = None
    labels: str | None = None
    expected_images: int = 0
    expected_classes: int = 0

    @property
    def rules(self) -> ArchiveRules:
        """Which names are right, and where the classes come from."""
        return ArchiveRules(self.split, self.layout, self.devkit, self.labels)

    @property
    def partial(self) -> str:
        """Where the tree grows."""
        return f"{self.dest}.partial"

    @property
    def journal(self) -> str:
        """Where the journal lies."""
        return os.path.join(self.state_dir, f"imagenet_layout.{os.path.basename(self.dest)}.json")


@dataclass
class Journal:
    """How far the work is: everything before byte ``offset`` of the archive is durable, and ``classes`` counts it.

    ``class_name`` and ``class_end`` are those of a `ResumePoint`.
    ``source`` identifies the archive, ``labels`` the labels (a SHA-256): what was done with others is of no use.
    """

    state: str
    layout: str
    source: dict[str, Any]
    labels: str
    offset: int = 0
    class_name: str = ""
    class_end: int = 0
    bytes: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    format: int = _JOURNAL_FORMAT

    @property
    def images(self) -> int:
        """How many images are in the tree."""
        return sum(self.classes.values())

    def continues(self, fresh: Journal) -> bool:
        """Whether this journal is of the same work as ``fresh``, one that has just begun."""
        return (self.layout, self.source, self.labels) == (fresh.layout, fresh.source, fresh.labels)


def lay_out(request: LayoutRequest, *, check_mode: bool = False) -> dict[str, Any]:
    """Make sure that the tree is at ``request.dest``; return what imagenet_layout returns. Raises OpsError."""
    request = _checked(request)
    try:
        if check_mode:
            return _predict(request)
        os.makedirs(request.state_dir, exist_ok=True)
        with exclusive(os.path.join(request.state_dir, "imagenet_layout.lock")):
            journal = _read_journal(request)
            if journal is not None and _is_complete(request, journal):
                if journal.state != _COMPLETE:
                    _mark_complete(request, journal)
                return _result(request, journal, changed=False)
            if request.directory is not None:
                return _move(request, request.directory)
            return _extract(request, journal)
    except OSError as error:
        raise disk_error(request.dest, error) from error


def _checked(request: LayoutRequest) -> LayoutRequest:
    """Return ``request``, with ``dest`` free of a slash at its end; OpsError where its parts do not fit together."""
    if (request.archive is None) == (request.directory is None):
        why = "one of archive and directory is needed, and not both"
    elif request.layout == CLASS_ARCHIVES and request.archive is None:
        why = "class_archives are read from an archive"
    elif request.layout == LABELLED_FILES and request.devkit is None and request.labels is None:
        why = "labelled_files need labels: a file with them, or the devkit"
    else:
        return replace(request, dest=os.path.abspath(request.dest))
    raise OpsError("Options of imagenet_layout", why, "Correct them and run again")


def _result(request: LayoutRequest, journal: Journal, *, changed: bool) -> dict[str, Any]:
    return {
        "changed": changed,
        "split": request.split,
        "images": journal.images,
        "classes": len(journal.classes),
        "bytes": journal.bytes,
    }


def _changed_result(request: LayoutRequest, journal: Journal) -> dict[str, Any]:
    name = os.path.basename(request.dest)
    after = f"{name}: {journal.images} images in {len(journal.classes)} classes\n"
    return {
        **_result(request, journal, changed=True),
        "diff": {"before": f"{name}: not laid out\n", "after": after},
    }


# The journal and the finished tree


def _read_journal(request: LayoutRequest) -> Journal | None:
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


def _write_journal(request: LayoutRequest, journal: Journal) -> None:
    write_json(request.journal, asdict(journal))


def _is_complete(request: LayoutRequest, journal: Journal) -> bool:
    """Return whether the tree is finished and still there, judged by the journal and by counting, not by reading.

    Raises OpsError where the tree is not what the journal says, or was made from something else.
    """
    # A run may have been killed after it gave the tree its name, before it could say so.
    renamed = journal.state == _EXTRACTED and not os.path.exists(request.partial)
    if not (journal.state == _COMPLETE or renamed) or not os.path.isdir(request.dest):
        return False
    _refuse_other_source(request, journal)
    counts = count_tree(request.dest)
    if request.directory is not None and _flat_files(request.directory):
        return False
    if counts != journal.classes:
        images = sum(counts.values())
        raise OpsError(
            f"Tree {request.dest}",
            f"it holds {images} images in {len(counts)} classes, and when it was completed it held {journal.images} in"
            f" {len(journal.classes)}: files were removed or added since",
            f"Put things right, or remove the tree and {request.journal} to make it anew",
        )
    _check_counts(request, journal, request.dest)
    return True


def _refuse_other_source(request: LayoutRequest, journal: Journal) -> None:
    """Raise OpsError where the archive has another name or size than the one that the tree was made from."""
    if request.archive is None or not os.path.exists(request.archive) or not journal.source:
        return
    now = _source(request.archive)
    made_from = (journal.source["name"], journal.source["size_bytes"])
    if (now["name"], now["size_bytes"]) != made_from:
        raise OpsError(
            f"Tree {request.dest}",
            f"it was made from {made_from[0]} of {made_from[1]} bytes, not from {now['name']} of {now['size_bytes']}",
            f"Name another dest, or remove the tree and {request.journal} to make it anew",
        )


def count_tree(path: str) -> dict[str, int]:
    """Return the number of entries of each class directory of the tree at ``path``."""
    with os.scandir(path) as entries:
        classes = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    return {os.path.basename(directory): len(os.listdir(directory)) for directory in classes}


def _check_counts(request: LayoutRequest, journal: Journal, where: str) -> None:
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


def _source(archive: str) -> dict[str, Any]:
    """Return what tells this archive from another without reading it."""
    status = os.stat(archive)
    return {"name": os.path.basename(archive), "size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


# From an archive


def _extract(request: LayoutRequest, journal: Journal | None) -> dict[str, Any]:
    """Read the archive from where the journal says, and give the tree its name."""
    archive = request.archive or ""
    require_archive(archive)
    labels = labels_for(request.rules)
    fresh = Journal(_EXTRACTING, request.layout, _source(archive), _digest(labels))
    journal = _begin(request, journal, fresh)
    if journal.state == _EXTRACTING:
        with _Extraction(request, archive, journal, labels) as extraction:
            extraction.run()
    _check_counts(request, journal, request.partial)
    _finish(request, journal)
    return _changed_result(request, journal)


def _digest(labels: Mapping[str, str]) -> str:
    return hashlib.sha256(canonical_json(labels)).hexdigest() if labels else ""


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
    if journal is None or journal.state not in (_EXTRACTING, _EXTRACTED) or not journal.continues(fresh):
        journal = fresh
    if not os.path.isdir(request.partial):
        journal = fresh
    _write_journal(request, journal)
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
    _mark_complete(request, journal)


def _mark_complete(request: LayoutRequest, journal: Journal) -> None:
    journal.state = _COMPLETE
    _write_journal(request, journal)


class _Extraction:
    """One pass over an archive, from the journal's resume point to its end. A context manager."""

    def __init__(self, request: LayoutRequest, archive: str, journal: Journal, labels: Mapping[str, str]) -> None:
        self._request = request
        self._archive = ImageArchive(archive, request.rules, labels)
        self._journal = journal
        self._last_time = time.monotonic()
        self._last_offset = journal.offset
        self._progress = Progress(request.state_dir, "imagenet_layout")

    def __enter__(self) -> _Extraction:  # noqa: PYI034 (Self is newer than Python 3.9)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._archive)
            self._writer = stack.enter_context(TreeWriter(self._request.partial))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def run(self) -> None:
        """Lay out what is left of the archive; afterwards all of it is durable, and the journal says so."""
        journal = self._journal
        size_bytes = self._archive.size_bytes
        if not self._archive.compressed:
            require_space(self._request.dest, size_bytes - journal.offset)
        name = os.path.basename(self._archive.path)
        self._progress.start(f"Laying out {name}", size_bytes, "bytes", journal.offset)
        start = ResumePoint(journal.offset, journal.class_name, journal.class_end)
        for image in self._archive.images(start, journal.classes if self._request.layout == CLASS_ARCHIVES else ()):
            self._image(image)
            self._progress.update(self._archive.file_position)
            self._journal_point(image.after)
        self._writer.sync()
        self._refuse_lost_files()
        journal.state = _EXTRACTED
        _write_journal(self._request, journal)
        self._progress.finish()

    def _image(self, image: ArchiveImage) -> None:
        self._writer.make_directory(image.class_name)
        self._writer.write(image.class_name, image.name, image.content)
        self._journal.classes[image.class_name] = self._journal.classes.get(image.class_name, 0) + 1
        self._journal.bytes += len(image.content)

    def _journal_point(self, point: ResumePoint) -> None:
        """Now and then make everything before ``point`` durable, and say so."""
        now = time.monotonic()
        if now - self._last_time < _JOURNAL_SECONDS and point.offset - self._last_offset < _JOURNAL_BYTES:
            return
        self._writer.sync()
        self._journal.offset, self._journal.class_name, self._journal.class_end = point
        _write_journal(self._request, self._journal)
        self._last_time, self._last_offset = time.monotonic(), point.offset

    def _refuse_lost_files(self) -> None:
        """Compare the tree with what was counted: a name that came before a restart and after it would show here."""
        if count_tree(self._request.partial) != self._journal.classes:
            raise OpsError(
                f"Tree {self._request.partial}",
                f"it does not hold the {self._journal.images} images of {self._archive.path}: a name is there twice, or"
                " something else wrote to the tree",
                f"Remove {self._request.partial} and {self._request.journal}, then run again",
            )


# From a directory


@dataclass(frozen=True)
class _Plan:
    """What moves where: ``moves`` maps the names of flat files to classes; ``journal`` counts the tree afterwards."""

    moves: dict[str, str]
    journal: Journal


def _move(request: LayoutRequest, directory: str) -> dict[str, Any]:
    """Rename the flat files of ``directory`` into the tree, once it is certain that each has its place."""
    plan = _plan(request, directory)
    if plan.moves:
        plan.journal.state = _MOVING
        _write_journal(request, plan.journal)
        progress = Progress(request.state_dir, "imagenet_layout")
        progress.start(f"Moving the files of {directory}", len(plan.moves), "images")
        for class_name in sorted(set(plan.moves.values())):
            os.makedirs(os.path.join(request.dest, class_name), mode=0o755, exist_ok=True)
        for number, (name, class_name) in enumerate(plan.moves.items()):
            os.rename(os.path.join(directory, name), os.path.join(request.dest, class_name, name))
            progress.update(number)
        sync_filesystem(request.dest)
        progress.finish()
    _mark_complete(request, plan.journal)
    return _changed_result(request, plan.journal) if plan.moves else _result(request, plan.journal, changed=False)


def _plan(request: LayoutRequest, directory: str) -> _Plan:
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
    moves = {name: _planned_class(request, labels, directory, name) for name in _flat_files(directory)}
    journal = Journal(_COMPLETE, request.layout, {}, _digest(labels))
    for name, class_name in moves.items():
        journal.classes[class_name] = journal.classes.get(class_name, 0) + 1
        journal.bytes += os.lstat(os.path.join(directory, name)).st_size
    for class_name, name, size_bytes in _tree_files(request, directory):
        if labels.get(name) != class_name:
            raise _out_of_place(os.path.join(request.dest, class_name, name), "it is not where its label belongs")
        if name in moves:
            raise _out_of_place(os.path.join(directory, name), f"{class_name} in {request.dest} has it already")
        journal.classes[class_name] = journal.classes.get(class_name, 0) + 1
        journal.bytes += size_bytes
    journal.classes = dict(sorted(journal.classes.items()))
    _check_counts(request, journal, directory)
    return _Plan(moves, journal)


def _planned_class(request: LayoutRequest, labels: Mapping[str, str], directory: str, name: str) -> str:
    path = os.path.join(directory, name)
    if os.path.islink(path) or not os.path.isfile(path):
        raise _out_of_place(path, "it is not a regular file")
    if not request.rules.is_image("", name):
        raise _out_of_place(path, f"it is not named like an image of the {request.split} split")
    return request.rules.label_of(labels, name)


def _out_of_place(path: str, why: str) -> OpsError:
    return OpsError(f"File {path}", why, "Move it away and run again; nothing was moved")


def _flat_files(directory: str) -> list[str]:
    """Return the sorted names of everything in ``directory`` that is not a directory; none where it does not exist."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _tree_files(request: LayoutRequest, directory: str) -> Iterator[tuple[str, str, int]]:
    """Yield class, name and size of each file that is in the tree already, from an earlier run or another tool."""
    if not os.path.isdir(request.dest):
        return
    with os.scandir(request.dest) as entries:
        classes = sorted(entries, key=lambda entry: entry.name)
    for class_entry in classes:
        if not class_entry.is_dir(follow_symlinks=False):
            if os.path.samefile(request.dest, directory):
                continue
            raise _out_of_place(class_entry.path, "it is not the directory of a class")
        if not request.rules.is_class(class_entry.name):
            raise _out_of_place(class_entry.path, "it is not named like a class")
        with os.scandir(class_entry.path) as images:
            for image in images:
                if not image.is_file(follow_symlinks=False):
                    raise _out_of_place(image.path, "it is not a regular file")
                yield class_entry.name, image.name, image.stat().st_size


# Check mode


def _predict(request: LayoutRequest) -> dict[str, Any]:
    """Return what `lay_out` would, without writing: by the journal, or by looking at the directory.

    What an archive holds is known only after reading it, so the expected counts stand for its own; and one that is not
    there yet is taken to be fetched by an earlier task of the same play.
    """
    journal = _read_journal(request)
    if journal is not None and _is_complete(request, journal):
        return _result(request, journal, changed=False)
    if request.directory is not None:
        plan = _plan(request, request.directory)
        return _changed_result(request, plan.journal) if plan.moves else _result(request, plan.journal, changed=False)
    expected = _changed_result(request, Journal(_EXTRACTING, request.layout, {}, ""))
    after = f"{os.path.basename(request.dest)}: {request.expected_images} images\n"
    return {
        **expected,
        "images": request.expected_images,
        "classes": request.expected_classes,
        "diff": {**expected["diff"], "after": after},
    }
