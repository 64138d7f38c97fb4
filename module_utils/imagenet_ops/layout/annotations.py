"""Extracts annotations from an archive and puts each next to its image: ``<tree>/<class>/<image>.xml``.

ILSVRC2012's bounding boxes, in the format of PASCAL VOC, are ``ILSVRC2012_bbox_train_v2.tar.gz`` and
``ILSVRC2012_bbox_val_v3.tgz``: X.xml describes X.JPEG (the development kit's readme). Only the name counts; the
directories of the archive may have any name. A second pass writes the same files again.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from ansible.module_utils.imagenet_ops.archive.images import (
    ANNOTATION_SUFFIX,
    ArchiveRules,
    Refusals,
    open_archive,
    require_archive,
)
from ansible.module_utils.imagenet_ops.archive.member import Member
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.layout.tree_writer import TreeWriter

# The largest of ILSVRC2012 has some 20 KB.
_LARGEST_ANNOTATION_BYTES = 16 * 1024 * 1024
# The class of a stem that several images have.
_AMBIGUOUS = ""


class Annotated(NamedTuple):
    """How many annotations are next to their images, and how many of the archive have no image in the tree."""

    annotations: int
    without_image: int


def annotate(tree: str, archive: str, folder: str, progress: Progress) -> Annotated:
    """Write the annotations in ``folder`` of ``archive`` (zip, or tar in any compression) into the finished ``tree``.

    Annotations without an image in the tree are counted and skipped. All files are durable on return. Raises OpsError
    for damage, for links and paths outside of the archive, and for duplicate annotations.
    """
    size_bytes = require_archive(archive)
    classes = _classes_by_stem(tree)
    rules = ArchiveRules("any", "", folder=folder)
    refusals = Refusals(archive)
    without_image = 0
    seen: set[str] = set()
    progress.start(f"Laying out {os.path.basename(archive)}", size_bytes, "bytes")
    with open_archive(archive) as reader, TreeWriter(tree) as writer:
        for member in refusals.translated(refusals.files(reader.members(0))):
            stem, extension = os.path.splitext(os.path.basename(rules.path_within(member.name)))
            if extension != ANNOTATION_SUFFIX or stem.startswith("."):
                continue
            _refuse(refusals, member, stem in seen, ambiguous=classes.get(stem) == _AMBIGUOUS)
            seen.add(stem)
            if stem in classes:
                writer.write(classes[stem], f"{stem}{ANNOTATION_SUFFIX}", refusals.content(reader, member))
            else:
                without_image += 1
            progress.update(reader.file_position)
        writer.sync()
    progress.finish()
    if not seen:
        where = f"its directory {folder}" if folder else "it"
        raise OpsError(f"Archive {archive}", f"{where} has no annotations (*.xml)", "Use an archive of annotations")
    return Annotated(len(seen) - without_image, without_image)


def _refuse(refusals: Refusals, member: Member, twice: bool, ambiguous: bool) -> None:
    if twice:
        raise refusals.error(member, "is a duplicate")
    if ambiguous:
        raise refusals.error(member, "fits more than one image of the tree")
    if member.size > _LARGEST_ANNOTATION_BYTES:
        raise refusals.error(member, f"has {member.size} bytes, which is too large for an annotation")


def _classes_by_stem(tree: str) -> dict[str, str]:
    """Return the class of each image of the tree by its name without extension."""
    classes: dict[str, str] = {}
    for class_name in sorted(os.listdir(tree)):
        for name in os.listdir(os.path.join(tree, class_name)):
            stem, extension = os.path.splitext(name)
            if extension != ANNOTATION_SUFFIX:
                classes[stem] = _AMBIGUOUS if stem in classes else class_name
    return classes
