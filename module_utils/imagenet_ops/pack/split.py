"""Packs one split from its source to its record files: from a tree, or directly from an archive.

Both give the same files. A tree is listed first and then read in the order of the records; an archive is read once, in
its own order, into a spool, which is shuffled into the order of the records afterwards.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

import cv2
from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules, ImageArchive, labels_for, missing_images
from ansible.module_utils.imagenet_ops.core.disk import disk_error
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import canonical_json
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.dataset.manifest import ENGINE_VERSION
from ansible.module_utils.imagenet_ops.download.verified import find_verified
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Format
from ansible.module_utils.imagenet_ops.layout.checkpoint import left_out_of
from ansible.module_utils.imagenet_ops.pack.decoder import Transformer
from ansible.module_utils.imagenet_ops.pack.describe import refuse_names
from ansible.module_utils.imagenet_ops.pack.listing import ImageNames, Listing, Tree, left_out_files
from ansible.module_utils.imagenet_ops.pack.spool import ArchiveSpool, SpooledImages
from ansible.module_utils.imagenet_ops.pack.spool_source import SpoolSource, bad_archive_image
from ansible.module_utils.imagenet_ops.pack.tree_source import (
    RecordSource,
    TreeSource,
    bad_tree_image,
    needs_entries,
    rec_bytes,
)
from ansible.module_utils.imagenet_ops.pack.writer import FinishedSplit, Outputs, Packed, SplitPacker


class PackContext(NamedTuple):
    """The settings of one run of packing that all its splits share.

    ``settings`` is what the bytes depend on besides the images. ``formats`` are those to write, ``shard_bytes`` is as
    in `Outputs`, ``dataset`` and ``words`` (by class) are for their metadata. ``quarantine`` keeps a bad image (split,
    path, bytes); None if it is not wanted. ``progress`` is None in check mode, which writes nothing; ``warn`` shows a
    warning.
    """

    state_dir: str
    transformer: Transformer
    settings: Mapping[str, Any]
    shuffle_seed: int | None
    formats: Sequence[Format]
    dataset: str
    words: Mapping[str, str]
    shards: int
    shard_bytes: int
    workers: int
    stop_at_bad: bool
    quarantine: Callable[[str, str, bytes], bool] | None
    progress: Progress | None
    warn: Callable[[str], None]


@dataclass(frozen=True)
class SplitInput(ABC):
    """A split whose images are in ``where``; ``finished`` is what earlier runs left of it."""

    finished: FinishedSplit
    context: PackContext
    where: str

    @property
    def name(self) -> str:
        """The name of the split."""
        return self.finished.name

    @abstractmethod
    def prepare(self) -> PreparedSplit:
        """Find the images of the split, before any record is written. Raises OpsError."""

    def _finish_renaming(self) -> bool:
        """Complete the renaming of a run that was killed; return whether there was one."""
        return self.context.progress is not None and self.finished.finish_renaming()


class PreparedSplit(ABC):
    """A split whose images are found, ready to be packed.

    ``counts`` has the number of images of each class, or None where check mode cannot know it. ``renamed`` is whether
    the renaming of an earlier run was completed. ``is_sequential`` is whether reading a few images again means reading
    all of them.
    """

    is_sequential = False

    def __init__(self, source: SplitInput, counts: Mapping[str, int] | None, renamed: bool) -> None:
        self.name = source.name
        self.where = source.where
        self.counts = counts
        self._finished = source.finished
        self._context = source.context
        self._renamed = renamed

    @abstractmethod
    def run(self, classes: Sequence[str] | None) -> tuple[Packed | None, bool]:
        """Pack the split unless it is packed; return the result and whether it is new. Raises OpsError.

        ``classes`` is None only where check mode could not know them. What check mode would pack is (None, True).
        """

    @abstractmethod
    def bad_image(self, path: str, reason: str) -> OpsError:
        """Return the error for a bad image."""

    @abstractmethod
    def contents(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield path and bytes of the images at ``paths``, in any order. Raises OpsError and OSError."""

    def rec_bytes(self) -> int:
        """Return the total length of the .rec files; 0 if it is not known before they are written."""
        return 0

    def _key(self, classes: Sequence[str] | None) -> dict[str, Any]:
        digest = hashlib.sha256("\n".join(classes or []).encode()).hexdigest()
        return {**self._context.settings, "classes": digest}

    def _packer(self, listing: Listing, origin: Mapping[str, Any]) -> SplitPacker:
        context = self._context
        info = DatasetInfo(context.dataset, listing.classes, context.words, context.shard_bytes)
        keeps_entries = needs_entries(context.formats)
        outputs = Outputs(context.formats, info, context.shards, context.shard_bytes, keeps_entries)
        return SplitPacker(self._finished, self._key(listing.classes), origin, listing, outputs)

    def _listing(self, names: ImageNames, classes: Sequence[str]) -> Listing:
        return Listing(names, classes, self._context.shuffle_seed)

    def _find(self, key: Mapping[str, Any]) -> Packed | None:
        """Return the finished split if it has this ``key``; otherwise warn why it does not."""
        packed, reason = self._finished.find(key)
        if packed is None and reason and self._context.progress:
            self._context.warn(f"Split {self.name}: {reason}; it is packed again")
        if packed is not None and self._context.progress:
            self._finished.remember(packed)
        return packed

    def _write(self, packer: SplitPacker, names: ImageNames, source: RecordSource, progress: Progress) -> Packed:
        context = self._context
        refuse_names(context.formats, names.where, lambda: map(names.path, range(len(names))))
        return packer.pack(source, context.workers, context.stop_at_bad, progress, context.warn)


class TreeInput(SplitInput):
    """A split in a tree, ``<where>/<class>/<image>``."""

    def prepare(self) -> PreparedTree:
        """List the tree; see `SplitInput`."""
        renamed = self._finish_renaming()
        tree = Tree(self.where)
        warning = tree.beside.warning(self.where)
        if warning:
            self.context.warn(f"Split {self.name}: {warning}")
        tree.left_out = left_out_files(tree.beside, left_out_of(self.where, self.context.state_dir))
        return PreparedTree(self, tree, renamed)


class PreparedTree(PreparedSplit):
    """A split in a ``tree`` that was listed."""

    def __init__(self, source: TreeInput, tree: Tree, renamed: bool) -> None:
        super().__init__(source, tree.counts(), renamed)
        self._tree = tree

    def run(self, classes: Sequence[str] | None) -> tuple[Packed | None, bool]:
        """Pack the tree; see `PreparedSplit`."""
        listing = self._listing(self._tree, classes or [])
        packer = self._packer(listing, {})
        packed = self._find(packer.key())
        if packed is not None or self._context.progress is None:
            return packed, packed is None or self._renamed
        source = TreeSource(listing, self._context.transformer, self._context.formats)
        return self._write(packer, self._tree, source, self._context.progress), True

    def bad_image(self, path: str, reason: str) -> OpsError:
        """Return the error for a bad image of the tree."""
        return bad_tree_image(self.where, path, reason)

    def contents(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield files of the tree. Raises OSError."""
        for path in paths:
            with open(os.path.join(self.where, path), "rb") as file:
                yield path, file.read()

    def rec_bytes(self) -> int:
        """Return the length if images are passed through."""
        return rec_bytes(self._tree) if self._context.transformer.recipe.pass_through else 0


@dataclass(frozen=True)
class ArchiveInput(SplitInput):
    """A split in the archive ``where``, read by ``rules``.

    The spool is in ``spool_folder``; shuffling it may take ``bucket_bytes`` of the page cache. ``is_counted`` is
    whether the number of images is compared with an expected one anyway.
    """

    rules: ArchiveRules
    spool_folder: str
    bucket_bytes: int
    is_counted: bool

    def prepare(self) -> PreparedArchive:
        """Read the archive into the spool, unless its records are there; see `SplitInput`."""
        context = self.context
        renamed = self._finish_renaming()
        labels: Mapping[str, str] = {}
        origin: dict[str, Any] = {}
        if os.path.exists(self.where):
            labels = labels_for(self.rules)
            origin = {"archive": self._identity(labels)}
        state_dir = os.path.dirname(self.finished.checkpoint_path)
        checkpoint_path = os.path.join(state_dir, f"recordio_pack.{self.name}.spool.json")
        made_by = {**origin, "opencv": cv2.__version__, "engine": ENGINE_VERSION}
        settings = {**context.transformer.recipe.settings(), **made_by}
        spool = ArchiveSpool(self.spool_folder, checkpoint_path, settings, context.warn)
        reader = _ArchiveReader(self, labels, spool)
        packed, _ = self.finished.find({**context.settings, **origin})
        if packed is not None:
            return PreparedArchive(reader, origin, None, packed.images, renamed)
        if context.progress is None:
            return PreparedArchive(reader, origin, None, None, renamed)
        spooled = reader.fill(context.progress)
        return PreparedArchive(reader, origin, spooled, spooled.names.counts(), renamed)

    def _identity(self, labels: Mapping[str, str]) -> dict[str, Any]:
        """Return the identity of the archive and of how it is read, with its hash if it was verified, or its time."""
        status = os.stat(self.where)
        name = os.path.basename(self.where)
        rules = {"split": self.rules.name_rules, "layout": self.rules.layout, "folder": self.rules.folder}
        digest = hashlib.sha256(canonical_json(dict(labels))).hexdigest()
        identity = {"name": name, "size_bytes": status.st_size, "rules": rules, "labels": digest}
        verified = find_verified(self.context.state_dir, self.where)
        return identity | ({"mtime_ns": status.st_mtime_ns} if verified is None else {"sha256": verified.sha256})


class _ArchiveReader:
    """Reads the archive of ``source``, whose images have ``labels``, into its ``spool``."""

    def __init__(self, source: ArchiveInput, labels: Mapping[str, str], spool: ArchiveSpool) -> None:
        self.source = source
        self.spool = spool
        self._labels = labels

    def fill(self, progress: Progress) -> SpooledImages:
        """Read the archive, or the rest of it, into the spool. Raises OpsError."""
        source, context = self.source, self.source.context
        try:
            self.spool.fill(
                self._archive(),
                context.transformer,
                context.workers,
                self._on_bad,
                source.finished.root,
                len(context.formats),
                progress,
            )
        except OSError as error:
            raise disk_error(source.spool_folder, error) from error
        spooled = self.spool.images(source.where)
        missing = self._without_image(spooled.names)
        spooled.names.left_out = left_out_files(spooled.beside)
        for warning in (spooled.beside.warning(source.where), missing and missing_images(missing, source.where)):
            if warning:
                context.warn(f"Split {source.name}: {warning}")
        return spooled

    def _without_image(self, names: ImageNames) -> list[str]:
        """Return the images that have labels and are not among ``names``, unless their number is an expected one."""
        if len(self._labels) <= len(names) or self.source.is_counted:
            return []
        found = {unicodedata.normalize("NFC", names.path(row).partition("/")[2]) for row in range(len(names))}
        return sorted(name for name in self._labels if unicodedata.normalize("NFC", name) not in found)

    def contents(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Read the archive again and yield some of its images. Raises OpsError."""
        wanted = set(paths)
        with self._archive() as archive:
            for class_name, name, content, *_ in archive.images():
                if f"{class_name}/{name}" in wanted:
                    yield f"{class_name}/{name}", content

    def _archive(self) -> ImageArchive:
        return ImageArchive(self.source.where, self.source.rules, self._labels)

    def _on_bad(self, path: str, reason: str, content: bytes) -> None:
        context = self.source.context
        if context.stop_at_bad:
            raise bad_archive_image(self.source.where, path, reason)
        if context.quarantine:
            context.quarantine(self.source.name, path, content)


class PreparedArchive(PreparedSplit):
    """A split in an archive that was read into its spool; ``spooled`` is None if that was not needed, or not allowed.

    ``origin`` is the identity of the archive, empty if it is missing.
    """

    is_sequential = True

    def __init__(
        self,
        reader: _ArchiveReader,
        origin: Mapping[str, Any],
        spooled: SpooledImages | None,
        counts: Mapping[str, int] | None,
        renamed: bool,
    ) -> None:
        super().__init__(reader.source, counts, renamed)
        self._reader = reader
        self._spool = reader.spool
        self._origin = origin
        self._spooled = spooled

    def run(self, classes: Sequence[str] | None) -> tuple[Packed | None, bool]:
        """Pack the archive; see `PreparedSplit`."""
        progress = self._context.progress
        packed = self._find({**self._key(classes), **self._origin})
        if packed is not None:
            if progress:
                self._spool.discard()
            return packed, self._renamed
        if progress is None:
            return None, True
        packer, source = self._shuffle(self._spooled or self._reader.fill(progress), classes or [])
        if not source.is_usable():
            warning = "its spool was shuffled with other settings; the archive is read again"
            self._context.warn(f"Split {self.name}: {warning}")
            self._spool.discard()
            packer, source = self._shuffle(self._reader.fill(progress), classes or [])
        try:
            source.deal(progress)
        except OSError as error:
            raise disk_error(self._spool.folder, error) from error
        packed = self._write(packer, source.names, source, progress)
        self._spool.discard()
        return packed, True

    def _shuffle(self, spooled: SpooledImages, classes: Sequence[str]) -> tuple[SplitPacker, SpoolSource]:
        listing = self._listing(spooled.names, classes)
        packer = self._packer(listing, self._origin)
        order_key = f"{self._key(classes)['classes']} {self._context.shuffle_seed}"
        bucket_bytes = self._reader.source.bucket_bytes
        return packer, SpoolSource(self._spool, spooled, listing, self._context.formats, order_key, bucket_bytes)

    def bad_image(self, path: str, reason: str) -> OpsError:
        """Return the error for a bad image of the archive."""
        return bad_archive_image(self.where, path, reason)

    def contents(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Read the archive again and yield some of its images."""
        return self._reader.contents(paths)
