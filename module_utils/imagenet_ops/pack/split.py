"""A split from where it lies to its record files: out of a tree, or straight out of an archive.

Both give the same files. A tree is listed first and then read in the order of the records; an archive is read once, in
its own order, into a spool, which is brought into the order of the records afterwards.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Callable, NamedTuple

import cv2
from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules, ImageArchive, labels_for
from ansible.module_utils.imagenet_ops.core.disk import disk_error
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import canonical_json
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.dataset.manifest import ENGINE_VERSION
from ansible.module_utils.imagenet_ops.download.verified import find_verified
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.listing import ImageNames, Listing, Tree
from ansible.module_utils.imagenet_ops.pack.spool import ArchiveSpool
from ansible.module_utils.imagenet_ops.pack.spool_source import SpoolSource, bad_archive_image
from ansible.module_utils.imagenet_ops.pack.tree_source import RecordSource, TreeSource, bad_tree_image, rec_bytes
from ansible.module_utils.imagenet_ops.pack.writer import FinishedSplit, Packed, SplitPacker


class Session(NamedTuple):
    """What one run of packing has for all its splits.

    ``settings`` is what the bytes depend on besides the images. ``quarantine`` keeps a bad image (split, path, bytes),
    where that is wanted. ``progress`` is None in check mode, which only looks; ``warn`` is given sentences for people.
    """

    state_dir: str
    recipe: Recipe
    settings: Mapping[str, Any]
    shuffle_seed: int | None
    shards: int
    workers: int
    stop_at_bad: bool
    quarantine: Callable[[str, str, bytes], bool] | None
    progress: Progress | None
    warn: Callable[[str], None]


class SplitInput(ABC):
    """A split's images. ``where`` is what they are in.

    ``counts`` has the number of images of each class after `read`, or None where that cannot be known yet.
    ``is_sequential`` says that to read a few images again is to read them all.
    """

    is_sequential = False

    def __init__(self, finished: FinishedSplit, session: Session, where: str) -> None:
        self.name = finished.name
        self.where = where
        self.counts: Mapping[str, int] | None = None
        self._finished = finished
        self._session = session

    @abstractmethod
    def read(self) -> None:
        """Find out what images there are, before any record is written. Raises OpsError."""

    @abstractmethod
    def pack(self, classes: Sequence[str] | None) -> tuple[Packed | None, bool]:
        """Pack the split unless it is packed; return what there is and whether it is new. Raises OpsError.

        ``classes`` is None only where check mode could not know them. What check mode would pack is (None, True).
        """

    @abstractmethod
    def bad_image(self, path: str, reason: str) -> OpsError:
        """Return the error that names a bad image."""

    @abstractmethod
    def contents(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield path and bytes of the images at ``paths``, in any order."""

    def rec_bytes(self) -> int:
        """Return how long the .rec files would be together; 0 where that is not known before they are written."""
        return 0

    def _key(self, classes: Sequence[str] | None) -> dict[str, Any]:
        digest = hashlib.sha256("\n".join(classes or []).encode()).hexdigest()
        return {**self._session.settings, "classes": digest}

    def _packer(self, names: ImageNames, classes: Sequence[str], origin: Mapping[str, Any]) -> SplitPacker:
        listing = Listing(names, classes, self._session.shuffle_seed)
        return SplitPacker(self._finished, self._key(classes), origin, listing, self._session.shards)

    def _found(self, key: Mapping[str, Any]) -> Packed | None:
        """Return the finished split if it is of ``key``; a person is told why it is not."""
        packed, reason = self._finished.find(key)
        if packed is None and reason and self._session.progress:
            self._session.warn(f"Split {self.name}: {reason}; it is packed again")
        if packed is not None and self._session.progress:
            self._finished.remember(packed)
        return packed

    def _write(self, packer: SplitPacker, source: RecordSource, progress: Progress) -> Packed:
        session = self._session
        return packer.pack(source, session.workers, session.stop_at_bad, progress, session.warn)


class TreeInput(SplitInput):
    """A split that lies as a tree, ``<where>/<class>/<image>``."""

    def read(self) -> None:
        """List the tree; see `SplitInput`."""
        self._renamed = self._session.progress is not None and self._finished.finish_renaming()
        self._tree = Tree(self.where)
        self.counts = self._tree.counts()
        if self._tree.ignored:
            samples = ", ".join(self._tree.ignored_samples)
            ignored = f"{self._tree.ignored} files of {self.where} are no images by name ({samples})"
            self._session.warn(f"Split {self.name}: {ignored}")

    def pack(self, classes: Sequence[str] | None) -> tuple[Packed | None, bool]:
        """Pack the tree; see `SplitInput`."""
        packer = self._packer(self._tree, classes or [], {})
        packed = self._found(packer.key())
        if packed is not None or self._session.progress is None:
            return packed, packed is None or self._renamed
        source = TreeSource(packer.listing, self._session.recipe)
        return self._write(packer, source, self._session.progress), True

    def bad_image(self, path: str, reason: str) -> OpsError:
        """Return the error that names a bad image of the tree."""
        return bad_tree_image(self.where, path, reason)

    def contents(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield files of the tree."""
        for path in paths:
            with open(os.path.join(self.where, path), "rb") as file:
                yield path, file.read()

    def rec_bytes(self) -> int:
        """Return the size where images are passed through."""
        return rec_bytes(self._tree) if self._session.recipe.pass_through else 0


class ArchiveInput(SplitInput):
    """A split that lies in the archive ``where``, whose images ``rules`` explain.

    ``spool_folder`` is for its spool; shuffling may take ``bucket_bytes`` of the page cache.
    """

    is_sequential = True

    def __init__(
        self,
        finished: FinishedSplit,
        session: Session,
        where: str,
        rules: ArchiveRules,
        spool_folder: str,
        bucket_bytes: int,
    ) -> None:
        super().__init__(finished, session, where)
        self._rules = rules
        self._spool_folder = spool_folder
        self._bucket_bytes = bucket_bytes

    def read(self) -> None:
        """Read the archive into the spool, unless its records are there; see `SplitInput`."""
        session = self._session
        self._renamed = session.progress is not None and self._finished.finish_renaming()
        self._labels: Mapping[str, str] = {}
        self._origin: dict[str, Any] = {}
        if os.path.exists(self.where):
            self._labels = labels_for(self._rules)
            self._origin = {"archive": self._identity()}
        state_dir = os.path.dirname(self._finished.journal_path)
        journal_path = os.path.join(state_dir, f"recordio_pack.{self.name}.spool.json")
        self._spool = ArchiveSpool(self._spool_folder, journal_path, {**session.recipe.settings(), **self._made_by()})
        packed, _ = self._finished.find({**session.settings, **self._origin})
        if packed is not None:
            self.counts = packed.images
        elif session.progress is not None:
            self._fill(session.progress)

    def _identity(self) -> dict[str, Any]:
        """Return what tells the archive, and how it is read, from others: its hash if it has one, or its time."""
        status = os.stat(self.where)
        name = os.path.basename(self.where)
        rules = {name: value for name, value in asdict(self._rules).items() if name not in ("devkit", "labels")}
        labels = hashlib.sha256(canonical_json(dict(self._labels))).hexdigest()
        identity = {"name": name, "size_bytes": status.st_size, "rules": rules, "labels": labels}
        verified = find_verified(self._session.state_dir, self.where)
        return identity | ({"mtime_ns": status.st_mtime_ns} if verified is None else {"sha256": verified.sha256})

    def _made_by(self) -> dict[str, Any]:
        return {**self._origin, "opencv": cv2.__version__, "engine": ENGINE_VERSION}

    def _on_bad(self, path: str, reason: str, content: bytes) -> None:
        if self._session.stop_at_bad:
            raise self.bad_image(path, reason)
        if self._session.quarantine:
            self._session.quarantine(self.name, path, content)

    def _fill(self, progress: Progress) -> None:
        archive = ImageArchive(self.where, self._rules, self._labels)
        try:
            self._spool.fill(
                archive,
                self._session.recipe,
                self._session.workers,
                self._on_bad,
                self._finished.folder,
                progress,
            )
        except OSError as error:
            raise disk_error(self._spool_folder, error) from error
        self._spooled = self._spool.images(self.where)
        self.counts = self._spooled.names.counts()

    def pack(self, classes: Sequence[str] | None) -> tuple[Packed | None, bool]:
        """Pack the archive; see `SplitInput`."""
        session = self._session
        packed = self._found({**self._key(classes), **self._origin})
        if packed is not None:
            if session.progress:
                self._spool.discard()
            return packed, self._renamed
        if session.progress is None:
            return None, True
        if self._spool.is_reading():
            self._fill(session.progress)
        packer, source = self._shuffled(classes or [])
        if not source.is_usable():
            session.warn(f"Split {self.name}: its spool was shuffled with other settings, the archive is read again")
            self._spool.discard()
            self._fill(session.progress)
            packer, source = self._shuffled(classes or [])
        try:
            source.deal(session.progress)
        except OSError as error:
            raise disk_error(self._spool_folder, error) from error
        packed = self._write(packer, source, session.progress)
        self._spool.discard()
        return packed, True

    def _shuffled(self, classes: Sequence[str]) -> tuple[SplitPacker, SpoolSource]:
        packer = self._packer(self._spooled.names, classes, self._origin)
        order_key = f"{self._key(classes)['classes']} {self._session.shuffle_seed}"
        return packer, SpoolSource(self._spool, self._spooled, packer.listing, order_key, self._bucket_bytes)

    def bad_image(self, path: str, reason: str) -> OpsError:
        """Return the error that names a bad image of the archive."""
        return bad_archive_image(self.where, path, reason)

    def contents(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Read the archive once more and yield some of its images."""
        wanted = set(paths)
        with ImageArchive(self.where, self._rules, self._labels) as archive:
            for class_name, name, content, *_ in archive.images():
                if f"{class_name}/{name}" in wanted:
                    yield f"{class_name}/{name}", content
