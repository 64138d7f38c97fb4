"""Packs a data set: trees to .rec, .idx and .lst for each split, labels.tsv, and the manifest, which is written last.

Finished splits are kept, interrupted ones are resumed, and those that were made with other settings or from another
source are packed again, with a warning; files in use are replaced only when their successors are complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable

import cv2
from ansible.module_utils.imagenet_ops.archive.devkit import read_words
from ansible.module_utils.imagenet_ops.archive.images import LABELLED_FILES, ArchiveRules
from ansible.module_utils.imagenet_ops.core.concurrency import reuse_memory, usable_processors
from ansible.module_utils.imagenet_ops.core.errors import SAMPLES, OpsError
from ansible.module_utils.imagenet_ops.core.files import exclusive
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.dataset.manifest import (
    ENGINE_VERSION,
    LABELS_NAME,
    MANIFEST_NAME,
    MAX_SHARDS,
    VERSION_DIGITS,
    ArchiveEntry,
    FileEntry,
    build_manifest,
    labels_tsv,
    read_manifest,
)
from ansible.module_utils.imagenet_ops.download.verified import read_verified
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo
from ansible.module_utils.imagenet_ops.formats.registry import FORMATS
from ansible.module_utils.imagenet_ops.pack.decoder import DEFAULT_LIMITS, Limits, Transformer
from ansible.module_utils.imagenet_ops.pack.describe import (
    describe_formats,
    format_key,
    format_settings,
    split_entry,
    tools_of,
    write_if_different,
)
from ansible.module_utils.imagenet_ops.pack.image import LENIENT, MAX_SIDE_PIXELS, STRICT, Recipe
from ansible.module_utils.imagenet_ops.pack.in_hand import InHand
from ansible.module_utils.imagenet_ops.pack.listing import (
    Expected,
    choose_classes,
    read_label_order,
    refuse_unknown_classes,
)
from ansible.module_utils.imagenet_ops.pack.split import ArchiveInput, PackContext, PreparedSplit, SplitInput, TreeInput
from ansible.module_utils.imagenet_ops.pack.writer import FinishedSplit, Packed

QUARANTINE_FOLDER = "quarantine"
SCRATCH_FOLDER = ".scratch"
LEAST_MEMORY_MIB = 256  # a decoder with its libraries needs part of it before the first image


@dataclass(frozen=True)
class SplitRequest:
    """A split to pack: from the tree ``source``, or from ``archive``, read by ``rules``.

    The other fields are the expected numbers of images, in total and in each class (0: any).
    """

    name: str
    source: str | None = None
    archive: str | None = None
    rules: ArchiveRules | None = None
    expected_images: int = 0
    class_images_min: int = 0
    class_images_max: int = 0

    @property
    def expected(self) -> Expected:
        """The expected numbers."""
        return Expected(self.expected_images, self.class_images_min, self.class_images_max)


@dataclass(frozen=True)
class PackRequest:
    """A data set to pack; the fields are the options of the module recordio_pack.

    ``label_order`` is a file that lists the classes in the order of their labels; without it they are sorted.
    ``devkit`` lists the classes too; where there is neither, they are those of the first split. ``shuffle_seed`` None
    keeps the sorted order. ``formats`` are keys of `FORMATS`; RecordIO has ``shards`` shards a split, and so have
    the others if ``shard_bytes`` is 0; if not, theirs have about so many bytes. ``workers`` 0 means all processors that
    may be used. ``scratch_dir`` is where archives are spooled, ``bucket_bytes`` how much of the page cache shuffling
    them may take. ``limits`` are those for one image.
    """

    dataset: str
    root: str
    state_dir: str
    splits: Sequence[SplitRequest]
    recipe: Recipe
    devkit: str | None = None
    label_order: str | None = None
    expected_classes: int = 0
    shuffle_seed: int | None = 100
    shards: int = 1
    formats: Sequence[str] = ("recordio",)
    shard_bytes: int = 256 * 1024 * 1024
    on_bad_image: str = "fail"
    workers: int = 0
    scratch_dir: str | None = None
    bucket_bytes: int = 256 * 1024 * 1024
    limits: Limits = DEFAULT_LIMITS

    def settings(self) -> dict[str, Any]:
        """Return the settings, under the names of the manifest."""
        return {
            **self.recipe.settings(),
            "shuffle": self.shuffle_seed is not None,
            "shuffle_seed": self.shuffle_seed,
            "shards": self.shards,
            "label_order": "file" if self.label_order else "sorted",
            "on_bad_image": self.on_bad_image,
            **format_settings(self.formats, self.shard_bytes),
        }


@dataclass
class _Outcome:
    """The result of a split: ``packed`` is None where check mode would pack it.

    ``size_bytes`` is the size of its files, or of the .rec where check mode knows it (else 0).
    """

    split: PreparedSplit
    packed: Packed | None
    changed: bool
    size_bytes: int


def pack_dataset(request: PackRequest, check: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Pack the data set of ``request`` and return the result of the module recordio_pack; ``check`` writes nothing.

    ``warn`` is called with each warning. Raises OpsError.
    """
    _validate(request)
    reuse_memory()
    cv2.setNumThreads(0)  # the images are divided among our threads; OpenCV's own would compete with them
    if check:
        return _pack(request, None, Transformer(request.recipe), warn)
    try:
        os.makedirs(request.state_dir, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(exclusive(os.path.join(request.state_dir, "recordio_pack.lock")))
            in_hand = InHand(request.state_dir, _workers(request), warn)
            stack.callback(in_hand.close)
            transformer = stack.enter_context(Transformer(request.recipe, request.limits, in_hand))
            progress = Progress(request.state_dir, "recordio_pack")
            result = _pack(request, progress, transformer, warn)
            progress.finish()
            return result
    except OSError as error:
        raise OpsError(
            f"Data set {request.dataset} in {request.root}",
            f"{error.filename or 'a file'} cannot be written ({error.strerror})",
            "Check free space and permissions there and rerun: completed work is kept",
        ) from error


def _workers(request: PackRequest) -> int:
    return request.workers or usable_processors()


def _validate(request: PackRequest) -> None:
    recipe, limits = request.recipe, request.limits
    names = [split.name for split in request.splits]
    faults = [
        (not names, "splits is empty"),
        (len(set(names)) != len(names), "two splits have the same name"),
        (
            any(not re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names),
            "a split name may only have A-Z a-z 0-9 _ -",
        ),
        (not 1 <= recipe.quality <= 100, f"quality is {recipe.quality}, it must be 1 to 100"),
        (
            not 0 <= recipe.short_side_pixels <= MAX_SIDE_PIXELS,
            f"short_side_pixels is {recipe.short_side_pixels}, it must be 0 to {MAX_SIDE_PIXELS}",
        ),
        (recipe.max_image_pixels < 1, f"max_image_pixels is {recipe.max_image_pixels}, it must be at least 1"),
        (recipe.max_jpeg_scans < 1, f"max_jpeg_scans is {recipe.max_jpeg_scans}, it must be at least 1"),
        (
            recipe.jpeg_check not in (LENIENT, STRICT),
            f"jpeg_check is {recipe.jpeg_check}, it must be lenient or strict",
        ),
        (limits.seconds < 1, f"max_image_seconds is {limits.seconds}, it must be at least 1"),
        (
            limits.memory_mib < LEAST_MEMORY_MIB,
            f"max_image_memory_mib is {limits.memory_mib}, it must be at least {LEAST_MEMORY_MIB}",
        ),
        (request.workers < 0, f"workers is {request.workers}, it must be 0 (all) or more"),
        (not 1 <= request.shards <= MAX_SHARDS, f"shards is {request.shards}, it must be 1 to {MAX_SHARDS}"),
        (not request.formats, "formats is empty"),
        (len(set(request.formats)) != len(request.formats), "formats names one twice"),
        (
            any(name not in FORMATS for name in request.formats),
            f"formats is {', '.join(request.formats)}, they must be of {', '.join(FORMATS)}",
        ),
        (request.shard_bytes < 0, "shard_mib must be 0 (by number) or more"),
        (recipe.channels not in (1, 3), f"channels is {recipe.channels}, it must be 3 (colour) or 1 (grey)"),
        (request.bucket_bytes < 1, "shuffle_memory_mib must be at least 1"),
        *(
            ((split.source is None) == (split.archive is None), f"split {split.name} needs either source or archive")
            for split in request.splits
        ),
        *(
            (_lacks_labels(split), f"split {split.name} has the layout labelled_files, which requires labels or devkit")
            for split in request.splits
        ),
    ]
    for is_fault, text in faults:
        if is_fault:
            raise OpsError("Options of recordio_pack", text, "Correct it and rerun")


def _lacks_labels(split: SplitRequest) -> bool:
    if split.archive is None or split.rules is None:
        return False
    return split.rules.layout == LABELLED_FILES and not (split.rules.labels or split.rules.devkit)


def _pack(
    request: PackRequest, progress: Progress | None, transformer: Transformer, warn: Callable[[str], None]
) -> dict[str, Any]:
    """Pack the splits; without ``progress`` (check mode) only check them."""
    before = _identity_before(request.root)
    words = None if request.devkit is None else read_words(request.devkit)
    context = _context(request, words or {}, progress, transformer, warn)
    inputs = [_input(request, split, context) for split in request.splits]
    # All images are listed and counted before the first record is written.
    if progress:
        progress.start("listing the images", len(inputs), "splits")
    splits = [source.prepare() for source in inputs]
    classes = _classes(request, words, splits[0])
    if classes is not None:
        for requested, split in zip(request.splits, splits):
            _check(requested.expected, split, classes)
    outcomes = {split.name: _pack_split(request, split, classes, check=progress is None) for split in splits}
    labels = labels_tsv(classes or [], words or {})
    info = DatasetInfo(request.dataset, classes or [], words or {}, request.shard_bytes)
    result = _describe(request, info, labels, outcomes, check=progress is None)
    after = {"dataset_version": result["dataset_version"], "settings": request.settings(), "records": result["records"]}
    return {**result, "diff": {"before": before, "after": after if result["changed"] else before}}


def _context(
    request: PackRequest,
    words: Mapping[str, str],
    progress: Progress | None,
    transformer: Transformer,
    warn: Callable[[str], None],
) -> PackContext:
    # on_bad_image is not part of the settings: it decides whether to continue, not what the bytes are.
    settings = {
        **request.recipe.settings(),
        "shuffle_seed": request.shuffle_seed,
        "shards": request.shards,
        "opencv": cv2.__version__,
        "engine": ENGINE_VERSION,
    }
    settings |= format_key(request.formats, request.shard_bytes, tools_of(request.formats), request.dataset, words)
    quarantine = partial(_quarantine, request, check=progress is None)
    return PackContext(
        state_dir=request.state_dir,
        transformer=transformer,
        settings=settings,
        shuffle_seed=request.shuffle_seed,
        formats=[FORMATS[name] for name in sorted(request.formats)],
        dataset=request.dataset,
        words=words,
        shards=request.shards,
        shard_bytes=request.shard_bytes,
        workers=_workers(request),
        stop_at_bad=request.on_bad_image == "fail",
        quarantine=quarantine if request.on_bad_image == "quarantine" else None,
        progress=progress,
        warn=warn,
    )


def _input(request: PackRequest, split: SplitRequest, context: PackContext) -> SplitInput:
    finished = FinishedSplit(split.name, request.root, request.state_dir, context.warn)
    if split.source is not None:
        return TreeInput(finished, context, split.source)
    scratch_dir = request.scratch_dir or os.path.join(request.root, SCRATCH_FOLDER)
    spool_folder = os.path.join(scratch_dir, split.name)
    rules = split.rules or ArchiveRules("any", "class_archives")
    is_counted = bool(split.expected_images)
    return ArchiveInput(finished, context, split.archive or "", rules, spool_folder, request.bucket_bytes, is_counted)


def _classes(request: PackRequest, words: Mapping[str, str] | None, first: PreparedSplit) -> list[str] | None:
    """Return the classes in the order of their labels; None if they are in an archive that was not read yet."""
    known = sorted(words) if words is not None else None
    if request.label_order is not None:
        known = read_label_order(request.label_order)
    if known is None and first.counts is None:
        return None
    classes = choose_classes(first.counts or {}, first.where, known)
    if request.expected_classes and len(classes) != request.expected_classes:
        raise OpsError(
            f"Data set {request.dataset}",
            f"there are {len(classes)} classes, expected {request.expected_classes}",
            "Complete the first split, or correct expected_classes; no record was written",
        )
    return classes


def _check(expected: Expected, split: PreparedSplit, classes: Sequence[str]) -> None:
    """Compare the images of a split, if they are known, with ``classes`` and ``expected``. Raises OpsError."""
    if split.counts is None:
        return
    refuse_unknown_classes(split.where, split.counts, classes)
    expected.check(split.name, split.where, split.counts, classes)
    if not any(split.counts.values()):
        raise OpsError(f"Split {split.name}", f"there is no image in {split.where}", "Lay out the archive first")


def _pack_split(request: PackRequest, split: PreparedSplit, classes: Sequence[str] | None, check: bool) -> _Outcome:
    packed, changed = split.run(classes)
    if packed is None:
        return _Outcome(split, None, changed, split.rec_bytes())
    if request.on_bad_image == "fail" and packed.bad:
        raise split.bad_image(*packed.bad[0])
    if request.on_bad_image == "quarantine":
        paths = [path for path, _ in packed.bad]
        if split.is_sequential:  # its bad images were put into quarantine while it was read
            paths = [path for path in paths if not os.path.exists(_quarantine_path(request, split.name, path))]
        for path, content in split.contents(paths) if paths else ():
            changed |= _quarantine(request, split.name, path, content, check)
    return _Outcome(split, packed, changed, sum(file.size_bytes for file in packed.all_files().values()))


def _quarantine_path(request: PackRequest, split: str, path: str) -> str:
    return os.path.join(request.root, QUARANTINE_FOLDER, split, path)


def _quarantine(request: PackRequest, split: str, path: str, content: bytes, check: bool) -> bool:
    target = _quarantine_path(request, split, path)
    if not check:
        os.makedirs(os.path.dirname(target), exist_ok=True)
    return write_if_different(target, content, check)


def _describe(
    request: PackRequest, info: DatasetInfo, labels: bytes, outcomes: Mapping[str, _Outcome], check: bool
) -> dict[str, Any]:
    """Write what describes all splits if it differs, the manifest last, and return the result of the module."""
    finished = {name: outcome.packed for name, outcome in outcomes.items() if outcome.packed is not None}
    result: dict[str, Any] = {
        "changed": any(outcome.changed for outcome in outcomes.values()),
        "classes": len(info.classes),
        "records": {split.name: _foreseen_records(split, outcomes[split.name]) for split in request.splits},
        "bytes": sum(outcome.size_bytes for outcome in outcomes.values()),
        "bad_images": 0,
        "samples": [],
        "dataset_version": "",
        "manifest_sha256": "",
    }
    if len(finished) == len(outcomes):
        archives = {
            archive.name: ArchiveEntry(archive.size_bytes, archive.md5, archive.sha256)
            for archive in read_verified(request.state_dir)
        }
        described, formats = describe_formats(request.formats, info, finished)
        manifest = build_manifest(
            request.dataset,
            request.settings(),
            cv2.__version__,
            archives,
            FileEntry(len(labels), hashlib.sha256(labels).hexdigest()),
            len(info.classes),
            {name: split_entry(packed) for name, packed in finished.items()},
            formats=formats,
            tools=tools_of(request.formats),
        )
        for name, content in {LABELS_NAME: labels, **described, MANIFEST_NAME: manifest}.items():
            result["changed"] |= write_if_different(os.path.join(request.root, name), content, check)
        bad = [f"{name}/{path}: {reason}" for name, packed in finished.items() for path, reason in packed.bad]
        sha256 = hashlib.sha256(manifest).hexdigest()
        result.update(
            records={name: packed.records for name, packed in finished.items()},
            bad_images=len(bad),
            samples=bad[:SAMPLES],
            dataset_version=sha256[:VERSION_DIGITS],
            manifest_sha256=sha256,
        )
    return result


def _foreseen_records(split: SplitRequest, outcome: _Outcome) -> int:
    """Return how many records a split will have: the expected number if its archive was not read yet."""
    return split.expected_images if outcome.split.counts is None else sum(outcome.split.counts.values())


def _identity_before(root: str) -> dict[str, Any]:
    """Return what the diff shows of the present manifest; nothing if there is none."""
    try:
        manifest = read_manifest(root)
    except OpsError:
        return {}
    return {
        "dataset_version": manifest.dataset_version,
        "settings": manifest.settings,
        "records": {name: split.records for name, split in manifest.splits.items()},
    }
