"""Packs a data set: trees to .rec, .idx and .lst for each split, labels.tsv, and the manifest, which is written last.

What is found finished is left alone, what was begun goes on, and what was made with other settings or from another
source is made anew, with a warning; files in use stay whole until their successors are complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import cv2
from ansible.module_utils.imagenet_ops.archives import read_verified
from ansible.module_utils.imagenet_ops.devkit import read_words
from ansible.module_utils.imagenet_ops.errors import OpsError
from ansible.module_utils.imagenet_ops.images import MAX_SIDE_PIXELS, Recipe
from ansible.module_utils.imagenet_ops.listing import SAMPLES, Listing, Tree, check_counts, choose_classes
from ansible.module_utils.imagenet_ops.manifest import (
    ENGINE_VERSION,
    LABELS_NAME,
    MANIFEST_NAME,
    RECORD_FOLDER,
    VERSION_DIGITS,
    FileEntry,
    SplitEntry,
    build_manifest,
    labels_tsv,
    read_manifest,
)
from ansible.module_utils.imagenet_ops.split_packer import Packed, SplitPacker
from ansible.module_utils.imagenet_ops.state import Progress, exclusive, write_atomic
from ansible.module_utils.imagenet_ops.workers import usable_processors

QUARANTINE_FOLDER = "quarantine"


@dataclass(frozen=True)
class SplitRequest:
    """A split to pack: the tree ``source``, and how many images are expected in all and in each class (0: any)."""

    name: str
    source: str
    expected_images: int = 0
    class_images_min: int = 0
    class_images_max: int = 0


@dataclass(frozen=True)
class PackRequest:
    """A data set to pack; the fields are the options of the module recordio_pack.

    ``devkit`` lists the classes; where it is None, they are the first split's directories. ``shuffle_seed`` None keeps
    the sorted order. ``workers`` 0 means all processors that may be used.
    """

    dataset: str
    root: str
    state_dir: str
    splits: Sequence[SplitRequest]
    recipe: Recipe
    devkit: str | None = None
    expected_classes: int = 0
    shuffle_seed: int | None = 100
    on_bad_image: str = "fail"
    workers: int = 0

    def settings(self) -> dict[str, Any]:
        """Return the settings as the manifest names them."""
        return {
            **self.recipe._asdict(),
            "shuffle": self.shuffle_seed is not None,
            "shuffle_seed": self.shuffle_seed,
            "on_bad_image": self.on_bad_image,
        }


@dataclass
class _Outcome:
    """What became of a split: ``packed`` is None where check mode says that it would be packed."""

    packer: SplitPacker
    packed: Packed | None
    changed: bool


def pack_dataset(request: PackRequest, check: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Pack what ``request`` asks for and return the result of the module recordio_pack; ``check`` only looks.

    ``warn`` is given a sentence about each thing that a person should know. Raises OpsError.
    """
    _validate(request)
    cv2.setNumThreads(0)  # the work is divided by images; OpenCV's own threads would only get in the way
    if check:
        return _pack(request, None, warn)
    try:
        os.makedirs(request.state_dir, exist_ok=True)
        with exclusive(os.path.join(request.state_dir, "recordio_pack.lock")):
            progress = Progress(request.state_dir, "recordio_pack")
            result = _pack(request, progress, warn)
            progress.finish()
            return result
    except OSError as error:
        raise OpsError(
            f"Data set {request.dataset} in {request.root}",
            f"{error.filename or 'a file'} cannot be written ({error.strerror})",
            "See to space and permissions there and run again: what is finished is kept",
        ) from error


def _validate(request: PackRequest) -> None:
    recipe = request.recipe
    names = [split.name for split in request.splits]
    faults = [
        (not names, "splits is empty"),
        (len(set(names)) != len(names), "two splits have the same name"),
        (any(not re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names), "a split's name may have A-Z a-z 0-9 _ -"),
        (not 1 <= recipe.quality <= 100, f"quality is {recipe.quality}, it must be 1 to 100"),
        (
            not 0 <= recipe.short_side_pixels <= MAX_SIDE_PIXELS,
            f"short_side_pixels is {recipe.short_side_pixels}, it must be 0 to {MAX_SIDE_PIXELS}",
        ),
        (recipe.max_image_pixels < 1, f"max_image_pixels is {recipe.max_image_pixels}, it must be at least 1"),
        (request.workers < 0, f"workers is {request.workers}, it must be 0 (all) or more"),
    ]
    for is_fault, text in faults:
        if is_fault:
            raise OpsError("Options of recordio_pack", text, "Correct it and run again")


def _pack(request: PackRequest, progress: Progress | None, warn: Callable[[str], None]) -> dict[str, Any]:
    """Do the work; without ``progress`` (check mode) only look."""
    before = _identity_before(request.root)
    words = None if request.devkit is None else read_words(request.devkit)
    classes, listings = _read_trees(request, words, progress, warn)
    outcomes = {}
    for split in request.splits:
        packer = _packer(request, split, listings[split.name], classes)
        outcome = _predict(packer) if progress is None else _pack_split(request, packer, progress, warn)
        if outcome.packed is not None:
            outcome.changed |= _treat_bad_images(request, packer, outcome.packed, check=progress is None)
        outcomes[split.name] = outcome
    labels = labels_tsv(classes, words or {})
    result = _describe(request, len(classes), labels, outcomes, check=progress is None)
    after = {"dataset_version": result["dataset_version"], "settings": request.settings(), "records": result["records"]}
    return {**result, "diff": {"before": before, "after": after if result["changed"] else before}}


def _read_trees(
    request: PackRequest,
    words: Mapping[str, str] | None,
    progress: Progress | None,
    warn: Callable[[str], None],
) -> tuple[list[str], dict[str, Listing]]:
    """Return the classes and each split's listing, all counts compared, before anything is packed."""
    if progress:
        progress.start("reading the trees", len(request.splits), "splits")
    trees = []
    for split in request.splits:
        tree = Tree(split.source)
        if tree.ignored:
            samples = ", ".join(tree.ignored_samples)
            warn(f"Split {split.name}: {tree.ignored} files of {split.source} are no images by name ({samples})")
        trees.append(tree)
    classes = choose_classes(trees[0], words)
    if request.expected_classes and len(classes) != request.expected_classes:
        raise OpsError(
            f"Data set {request.dataset}",
            f"there are {len(classes)} classes, {request.expected_classes} are expected",
            "Complete the tree of the first split (nothing was packed), or correct expected_classes",
        )
    listings = {}
    for split, tree in zip(request.splits, trees):
        listing = Listing(tree, classes, request.shuffle_seed)
        check_counts(
            split.name, listing, classes, split.expected_images, split.class_images_min, split.class_images_max
        )
        if not len(listing):
            raise OpsError(f"Split {split.name}", f"there is no image in {split.source}", "Lay the archive out first")
        listings[split.name] = listing
    return classes, listings


def _packer(request: PackRequest, split: SplitRequest, listing: Listing, classes: Sequence[str]) -> SplitPacker:
    # on_bad_image is not part of the key: it decides whether to go on, not what the bytes are.
    key = {
        **request.recipe._asdict(),
        "shuffle_seed": request.shuffle_seed,
        "opencv": cv2.__version__,
        "engine": ENGINE_VERSION,
        "classes": hashlib.sha256("\n".join(classes).encode()).hexdigest(),
        "names": listing.tree.names_digest,
    }
    folder = os.path.join(request.root, RECORD_FOLDER)
    manifest_path = os.path.join(request.root, MANIFEST_NAME)
    return SplitPacker(split.name, folder, request.state_dir, manifest_path, key, listing)


def _predict(packer: SplitPacker) -> _Outcome:
    packed, _ = packer.packed()
    return _Outcome(packer, packed, changed=packed is None)


def _pack_split(request: PackRequest, packer: SplitPacker, progress: Progress, warn: Callable[[str], None]) -> _Outcome:
    renamed = packer.finish_renaming()
    packed, reason = packer.packed()
    if packed is not None:
        packer.remember(packed)
        return _Outcome(packer, packed, changed=renamed)
    if reason:
        warn(f"Split {packer.name}: {reason}; it is packed again")
    stop_at_bad = request.on_bad_image == "fail"
    workers = request.workers or usable_processors()
    return _Outcome(packer, packer.pack(request.recipe, workers, stop_at_bad, progress, warn), changed=True)


def _treat_bad_images(request: PackRequest, packer: SplitPacker, packed: Packed, check: bool) -> bool:
    """Apply on_bad_image to the bad images of a finished split; say whether files were put into quarantine."""
    if request.on_bad_image == "fail" and packed.bad:
        raise packer.bad_image(*packed.bad[0])
    if request.on_bad_image != "quarantine":
        return False
    folder = os.path.join(request.root, QUARANTINE_FOLDER, packer.name)
    changed = False
    for path, _ in packed.bad:
        source = os.path.join(packer.listing.tree.directory, path)
        changed |= _put_into_quarantine(source, os.path.join(folder, path), check)
    return changed


def _put_into_quarantine(source: str, target: str, check: bool) -> bool:
    """Link or copy ``source`` to ``target`` unless it is there; say whether that was (or would be) done."""
    if os.path.exists(target) and os.path.getsize(target) == os.path.getsize(source):
        return False
    if not check:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        temporary = f"{target}.tmp"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        try:
            os.link(source, temporary)
        except OSError:  # another filesystem, or one without links
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    return True


def _describe(
    request: PackRequest, classes: int, labels: bytes, outcomes: Mapping[str, _Outcome], check: bool
) -> dict[str, Any]:
    """Write labels.tsv and the manifest where they differ, and return the module's result."""
    finished = {name: outcome.packed for name, outcome in outcomes.items() if outcome.packed is not None}
    result: dict[str, Any] = {
        "changed": any(outcome.changed for outcome in outcomes.values()),
        "classes": classes,
        "records": {name: len(outcome.packer.listing) for name, outcome in outcomes.items()},
        "bytes": 0,
        "bad_images": 0,
        "samples": [],
        "dataset_version": "",
        "manifest_sha256": "",
    }
    if len(finished) == len(outcomes):
        splits = {name: _split_entry(outcomes[name].packer.listing, packed) for name, packed in finished.items()}
        entry = FileEntry(len(labels), hashlib.sha256(labels).hexdigest())
        archives = read_verified(request.state_dir)
        manifest = build_manifest(
            request.dataset, request.settings(), cv2.__version__, archives, entry, classes, splits
        )
        for name, content in ((LABELS_NAME, labels), (MANIFEST_NAME, manifest)):
            result["changed"] |= _write_if_different(os.path.join(request.root, name), content, check)
        bad = [f"{name}/{path}: {reason}" for name, packed in finished.items() for path, reason in packed.bad]
        sha256 = hashlib.sha256(manifest).hexdigest()
        result.update(
            records={name: packed.records for name, packed in finished.items()},
            bytes=sum(file.size_bytes for packed in finished.values() for file in packed.files.values()),
            bad_images=len(bad),
            samples=bad[:SAMPLES],
            dataset_version=sha256[:VERSION_DIGITS],
            manifest_sha256=sha256,
        )
    return result


def _split_entry(listing: Listing, packed: Packed) -> SplitEntry:
    bad = Counter(path.split("/")[0] for path, _ in packed.bad)
    there = listing.tree.counts()
    return SplitEntry(
        records=packed.records,
        classes={name: there.get(name, 0) - bad[name] for name in listing.classes},
        converted=packed.converted,
        bad_images=dict(packed.bad),
        files={name: FileEntry(file.size_bytes, file.sha256) for name, file in packed.files.items()},
    )


def _identity_before(root: str) -> dict[str, Any]:
    """Return what the diff shows of the manifest that is there; nothing where there is none."""
    try:
        manifest = read_manifest(root)
    except OpsError:
        return {}
    return {
        "dataset_version": manifest.dataset_version,
        "settings": manifest.settings,
        "records": {name: split.records for name, split in manifest.splits.items()},
    }


def _write_if_different(path: str, content: bytes, check: bool) -> bool:
    try:
        with open(path, "rb") as file:
            if file.read() == content:
                return False
    except FileNotFoundError:
        pass
    if not check:
        write_atomic(path, content)
    return True
