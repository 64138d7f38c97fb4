"""Puts annotations beside the images that they belong to: ``<tree>/<class>/<image>.xml``, from an archive of them.

ILSVRC2012's bounding boxes come so, in PASCAL VOC's form, in ``ILSVRC2012_bbox_train_v2.tar.gz`` and
``ILSVRC2012_bbox_val_v3.tgz``: X.xml describes X.JPEG (the development kit's readme). Only the name decides, so the
archive's directories may be what they like. One pass writes what it finds, and another one writes the same.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from ansible.module_utils.imagenet_ops.archive.entry import Entry
from ansible.module_utils.imagenet_ops.archive.images import (
    ANNOTATION_SUFFIX,
    ArchiveRules,
    Refusals,
    open_archive,
    require_archive,
)
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.layout.tree_writer import TreeWriter

# The largest of ILSVRC2012 has some 20 KB.
_LARGEST_ANNOTATION_BYTES = 16 * 1024 * 1024
# The class of a stem that several images have.
_AMBIGUOUS = ""


class Annotated(NamedTuple):
    """How many annotations lie beside their images, and how many of the archive have no image in the tree."""

    annotations: int
    without_image: int


def annotate(tree: str, archive: str, folder: str, progress: Progress) -> Annotated:
    """Write the annotations in ``folder`` of ``archive`` (zip, or tar in any compression) into the finished ``tree``.

    What has no image in the tree is counted and left out. All of it is durable on return. Raises OpsError for damage,
    for paths and links that lead elsewhere, and for an annotation that is there twice.
    """
    size_bytes = require_archive(archive)
    classes = _classes_by_stem(tree)
    rules = ArchiveRules("any", "", folder=folder)
    refusals = Refusals(archive)
    without_image = 0
    seen: set[str] = set()
    progress.start(f"Laying out {os.path.basename(archive)}", size_bytes, "bytes")
    with open_archive(archive) as reader, TreeWriter(tree) as writer:
        for entry in refusals.translated(refusals.files(reader.entries(0))):
            stem, extension = os.path.splitext(os.path.basename(rules.path_within(entry.name)))
            if extension != ANNOTATION_SUFFIX or stem.startswith("."):
                continue
            _refuse(refusals, entry, stem in seen, ambiguous=classes.get(stem) == _AMBIGUOUS)
            seen.add(stem)
            if stem in classes:
                writer.write(classes[stem], f"{stem}{ANNOTATION_SUFFIX}", refusals.content(reader, entry))
            else:
                without_image += 1
            progress.update(reader.file_position)
        writer.sync()
    progress.finish()
    if not seen:
        where = f"its directory {folder}" if folder else "it"
        raise OpsError(f"Archive {archive}", f"{where} holds no annotation (*.xml)", "Name an archive of annotations")
    return Annotated(len(seen) - without_image, without_image)


def _refuse(refusals: Refusals, entry: Entry, twice: bool, ambiguous: bool) -> None:
    if twice:
        raise refusals.error(entry, "is there twice")
    if ambiguous:
        raise refusals.error(entry, "belongs to more than one image of the tree")
    if entry.size > _LARGEST_ANNOTATION_BYTES:
        raise refusals.error(entry, f"has {entry.size} bytes, too many for an annotation")


def _classes_by_stem(tree: str) -> dict[str, str]:
    """Return the class of each image of the tree by its name without extension."""
    classes: dict[str, str] = {}
    for class_name in sorted(os.listdir(tree)):
        for name in os.listdir(os.path.join(tree, class_name)):
            stem, extension = os.path.splitext(name)
            if extension != ANNOTATION_SUFFIX:
                classes[stem] = _AMBIGUOUS if stem in classes else class_name
    return classes
