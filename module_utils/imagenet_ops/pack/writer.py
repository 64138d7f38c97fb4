"""Writes one split: a source makes records in their order, one thread writes them, and a killed run can be resumed.

The unfinished files are ``.<name>.rec.part`` and ``.<name>.idx.part`` next to the final ones. Every few seconds they
are synced, and then the checkpoint ``recordio_pack.<split>.part.json`` says how far they are valid; a restart truncates
them there. At the end the checkpoint lists sizes and hashes, the files are renamed, and ``recordio_pack.<split>.json``
records what was made from what, so that a later run need not read anything again.

A split is one set of files, or several (shards), each with consecutive records of the order.
"""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Callable, NamedTuple

from ansible.module_utils.imagenet_ops.core.checkpoint import SyncJournal, open_part
from ansible.module_utils.imagenet_ops.core.disk import require_space
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import fsync_directory
from ansible.module_utils.imagenet_ops.core.hashing import FollowingHash, hash_file
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile, Warn, fits, natural
from ansible.module_utils.imagenet_ops.dataset.manifest import SUFFIXES, file_stems
from ansible.module_utils.imagenet_ops.formats.recordio import RecordReader, RecordWriter, parse_image_data
from ansible.module_utils.imagenet_ops.pack.listing import LeftOut, Listing
from ansible.module_utils.imagenet_ops.pack.tree_source import RecordBatch, RecordSource

_LINE_BYTES = 64  # more than the longest line of an index: two numbers of at most 20 digits


_FILES = {str: (natural, str, int)}
_CONVERTED = {"cmyk": natural, "grey": natural, "png": natural}
_PACKED = {
    "key": {str: object},
    "records": natural,
    "images": {str: natural},
    "bad": [(str, str)],
    "converted": _CONVERTED,
    "files": _FILES,
}
_LEFT_OUT = {str: {"count": natural, "samples": [str]}}
_POSITION = {
    "place": natural,
    "records": natural,
    "shard": natural,
    "rec_bytes": natural,
    "idx_bytes": natural,
    "bad": [(str, str)],
    "converted": _CONVERTED,
    "finished": _FILES,
}


def _is_packed(value: Any) -> bool:
    """Return whether ``value`` describes a finished split: every image a record or bad, every shard with its files."""
    if not (fits(value, _PACKED) or fits(value, {**_PACKED, "left_out": _LEFT_OUT})):
        return False
    stems = {os.path.splitext(name)[0] for name in value["files"]}
    return (
        sum(value["images"].values()) == value["records"] + len(value["bad"])
        and set(value["files"]) == {f"{stem}.{suffix}" for stem in stems for suffix in SUFFIXES}
        and bool(len(stems) == value["key"].get("shards"))
    )


def _is_checkpoint(value: Any) -> bool:
    if value.get("stage") == "renaming":
        return fits(value, {"stage": str, "packed": _is_packed})
    return value.get("stage") == "packing" and fits(value, {"stage": str, "key": {str: object}, "position": _POSITION})


FINISHED = Kind("recordio_pack record of a finished split", 1, _is_packed, starts_over="the split is packed again")
CHECKPOINT = Kind("recordio_pack checkpoint", 1, _is_checkpoint, starts_over="packing starts over")


class OutputFile(NamedTuple):
    """A finished file; the modification time shows a later run whether it was changed."""

    size_bytes: int
    sha256: str
    mtime_ns: int


@dataclass
class Position:
    """How far a split is: the next place in the order, and the files of the current shard up to there.

    ``bad`` has [path, reason] of each bad image, ``converted`` counts the kinds of `Header.converted`, ``finished`` has
    the .rec and .idx of the shards before the current one.
    """

    place: int = 0
    records: int = 0
    shard: int = 0
    rec_bytes: int = 0
    idx_bytes: int = 0
    bad: list[list[str]] = field(default_factory=list)
    converted: dict[str, int] = field(default_factory=lambda: {"cmyk": 0, "grey": 0, "png": 0})
    finished: dict[str, OutputFile] = field(default_factory=dict)


@dataclass
class Packed:
    """A finished split: what it was made from (``key``), bad and converted images, and the files by name.

    ``images`` has the number of images of each class, including bad ones. ``left_out`` is that of `ImageNames`.
    """

    key: dict[str, Any]
    records: int
    images: dict[str, int]
    bad: list[list[str]]
    converted: dict[str, int]
    files: dict[str, OutputFile]
    left_out: dict[str, LeftOut] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the fields for a state file; without ``left_out`` where there is nothing, as earlier versions."""
        fields = asdict(self)
        return fields if self.left_out else {name: value for name, value in fields.items() if name != "left_out"}


class FinishedSplit:
    """The results of split ``name``: finished files in ``folder``, and their record in the state directory.

    The manifest at ``manifest_path`` is deleted before finished files are replaced, for it describes the old ones.
    ``warn`` is called if a state file cannot be used.
    """

    def __init__(self, name: str, folder: str, state_dir: str, manifest_path: str, warn: Warn = warnings.warn) -> None:
        self.name = name
        self.folder = folder
        self.checkpoint_path = os.path.join(state_dir, f"recordio_pack.{name}.part.json")
        self.checkpoint = StateFile(self.checkpoint_path, CHECKPOINT, warn)
        self._record = StateFile(os.path.join(state_dir, f"recordio_pack.{name}.json"), FINISHED, warn)
        self._manifest_path = manifest_path

    def find(self, key: Mapping[str, Any]) -> tuple[Packed | None, str]:
        """Return the finished split if it has this ``key`` and its files are intact; else None and the reason.

        The reason is empty if there is no finished split yet. A file with another time but the same size is hashed
        again; if it is the same, the result has the new time, and `remember` writes it. Raises OpsError and OSError.
        """
        packed = self.read()
        if packed is None:
            return None, ""
        known = {name: packed.key.get(name) for name in key}
        if known != key:
            return None, f"it was packed with other settings or another source ({difference(known, key)})"
        for name, file in packed.files.items():
            seen, fault = _look_again(os.path.join(self.folder, name), file)
            if fault:
                return None, f"{name} {fault} since it was packed"
            packed.files[name] = seen
        return packed, ""

    def read(self) -> Packed | None:
        """Return the finished split as recorded, without checking its files. Raises OpsError."""
        value = self._record.read()
        return None if value is None else packed_from_json(value)

    def remember(self, packed: Packed) -> None:
        """Write the result of `find`, if it differs from the record. Raises OSError."""
        if self.read() != packed:
            self._record.write(packed.as_json())

    def finish_renaming(self) -> bool:
        """Complete the renaming of a run that was killed; return whether there was one. Raises OpsError and OSError."""
        checkpoint = self.checkpoint.read()
        if checkpoint is None or checkpoint["stage"] != "renaming":
            return False
        self._rename(packed_from_json(checkpoint["packed"]))
        return True

    def put_in_place(self, packed: Packed) -> None:
        """Rename the part files of ``packed``; after a kill, the next run completes it. Raises OSError."""
        self.checkpoint.write({"stage": "renaming", "packed": packed.as_json()})
        self._rename(packed)

    def part(self, name: str) -> str:
        """Return the path of the unfinished file ``name``."""
        return os.path.join(self.folder, f".{name}.part")

    def _rename(self, packed: Packed) -> None:
        """Rename the part files; a run that was killed may have done any of the steps."""
        before = self.read()
        outdated = set() if before is None else set(before.files) - set(packed.files)
        for path in (self._manifest_path, *(os.path.join(self.folder, name) for name in sorted(outdated))):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        fsync_directory(os.path.dirname(self._manifest_path))
        for name in packed.files:
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.part(name), os.path.join(self.folder, name))
        fsync_directory(self.folder)
        self._record.write(packed.as_json())
        os.unlink(self.checkpoint_path)
        fsync_directory(os.path.dirname(self.checkpoint_path))


class SplitPacker:
    """Packs one split: its listing and settings, and where its files and its checkpoint are.

    ``key`` has everything that the bytes depend on: names, settings, tools. A run resumes only if the key is the same
    and the images that were packed still have the same sizes; so a bad image may be replaced before it resumes.
    ``origin``, the identity of the archive if there is one, is recorded with the finished split.
    """

    def __init__(
        self,
        finished: FinishedSplit,
        key: Mapping[str, Any],
        origin: Mapping[str, Any],
        listing: Listing,
        shards: int = 1,
    ) -> None:
        self.name = finished.name
        self.folder = finished.folder
        self.listing = listing
        self._finished = finished
        self._own_key = {**key, "shards": shards, "names": listing.names.names_digest}
        self._origin = origin
        self._stems = file_stems(self.name, shards)

    def key(self) -> dict[str, Any]:
        """Return the key of the finished split."""
        return self._key(len(self.listing))

    def _key(self, places: int) -> dict[str, Any]:
        """Return the key of the first ``places`` records."""
        return {**self._own_key, "sizes": self.listing.sizes_digest(places)}

    # Resuming

    def _resume_point(self) -> tuple[Position, str]:
        """Return where to resume, and a warning if the work of an interrupted run cannot be used."""
        checkpoint = self._finished.checkpoint.read()
        if checkpoint is None or checkpoint["stage"] != "packing":
            return Position(), ""
        position = _position(checkpoint["position"])
        key = self._key(position.place)
        if checkpoint["key"] != key:
            what = f"other settings or another source ({difference(checkpoint['key'], key)})"
            return Position(), f"the interrupted run had {what}; its files are discarded"
        if not self._part_is_whole(position):
            return Position(), "the files of the interrupted run do not match its checkpoint and are discarded"
        return position, ""

    def _part_is_whole(self, position: Position) -> bool:
        """Return whether the part files reach ``position`` and their last record there matches the index."""
        before = range(min(position.shard, len(self._stems)))
        if position.finished.keys() != {
            self._file_name(shard, suffix) for shard in before for suffix in ("rec", "idx")
        }:
            return False
        if position.shard >= len(self._stems) or position.records != position.place - len(position.bad):
            return False
        if position.rec_bytes == 0:
            return True
        rec_path, idx_path = self._parts(position.shard)
        try:
            with open(idx_path, "rb") as idx, open(rec_path, "rb") as rec:
                last_bytes = min(_LINE_BYTES, position.idx_bytes)
                idx.seek(position.idx_bytes - last_bytes)
                last_line = idx.read(last_bytes).splitlines(keepends=True)[-1]
                if not last_line.endswith(b"\n"):
                    return False
                record_id, offset = (int(number) for number in last_line.split(b"\t"))
                reader = RecordReader(rec, rec_path)
                reader.seek(offset)
                data = reader.read()
                fits = data is not None and parse_image_data(data).record_id == record_id
                return fits and reader.offset == position.rec_bytes
        except (FileNotFoundError, ValueError, IndexError, OpsError):
            return False

    # Packing

    def pack(
        self,
        source: RecordSource,
        workers: int,
        stop_at_bad: bool,
        progress: Progress,
        warn: Callable[[str], None],
    ) -> Packed:
        """Pack the split, or the rest of it, and return what was made.

        Raises OpsError for an image that cannot be read, for a full disk, and with ``stop_at_bad`` for the first bad
        image. The next run resumes there.
        """
        position, warning = self._resume_point()
        if warning:
            warn(f"Split {self.name}: {warning}; packing starts over")
        if stop_at_bad and position.bad:
            raise source.bad_image(*position.bad[0])
        try:
            self._make_folder()
            stage = f"packing {self.name}"
            rec_bytes = source.rec_bytes()
            if rec_bytes is not None:
                stage = f"{stage} ({rec_bytes} bytes of records)"
                written = sum(file.size_bytes for name, file in position.finished.items() if name.endswith(".rec"))
                require_space(self.folder, rec_bytes - written - position.rec_bytes)
            progress.start(stage, len(self.listing), "images", position.place)
            # Before the files are changed: an older checkpoint must not be taken for theirs.
            self._write_checkpoint(position)
            for shard in range(position.shard, len(self._stems)):
                batches = source.batches(position.place, self._bounds(shard)[1], workers)
                position = self._append(batches, position, source, stop_at_bad, progress)
            return self._complete(position)
        except OSError as error:
            raise self._unwritable(error) from error

    def _bounds(self, shard: int) -> tuple[int, int]:
        """Return the first place of ``shard``, and the first after it."""
        total, shards = len(self.listing), len(self._stems)
        return shard * total // shards, (shard + 1) * total // shards

    def _make_folder(self) -> None:
        if not os.path.isdir(self.folder):
            os.makedirs(self.folder, exist_ok=True)
            fsync_directory(os.path.dirname(self.folder))

    def _append(
        self,
        batches: Generator[RecordBatch, None, None],
        position: Position,
        source: RecordSource,
        stop_at_bad: bool,
        progress: Progress,
    ) -> Position:
        """Append ``batches``, the rest of a shard, to its part files at ``position``; return where the next begins."""
        rec_path, idx_path = self._parts(position.shard)

        def keep(reached: Position) -> None:
            self._write_checkpoint(reached)
            source.release(reached.place)

        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(batches))
            rec = stack.enter_context(open_part(rec_path, position.rec_bytes))
            idx = stack.enter_context(open_part(idx_path, position.idx_bytes))
            fsync_directory(self.folder)
            hashing = stack.enter_context(FollowingHash(rec_path).running())
            hashing.advance(position.rec_bytes)
            checkpoint = stack.enter_context(SyncJournal(keep, (rec, idx)).running())
            writer = RecordWriter(rec, idx, position.rec_bytes, position.idx_bytes)
            try:
                for batch in batches:
                    if stop_at_bad and batch.bad:
                        raise source.bad_image(*batch.bad[0])
                    writer.write(batch.ids, batch.records)
                    position = _after(position, batch, writer)
                    hashing.advance(position.rec_bytes)
                    checkpoint.offer(position)
                    progress.update(position.place)
            finally:
                checkpoint.close(position)
            files = {
                **position.finished,
                self._file_name(position.shard, "rec"): _output_file(rec_path, hashing.finish()),
                self._file_name(position.shard, "idx"): _output_file(idx_path, hash_file(idx_path)),
            }
        return replace(position, shard=position.shard + 1, rec_bytes=0, idx_bytes=0, finished=files)

    def _unwritable(self, error: OSError) -> OpsError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            todo = "Free or add space and rerun: packing resumes"
            return OpsError(f"Split {self.name} in {self.folder}", f"the disk is full ({error.strerror})", todo)
        return OpsError(
            f"Split {self.name} in {self.folder}",
            f"its files cannot be written ({error.strerror})",
            "Check the disk (dmesg) and rerun: packing resumes",
        )

    def _write_checkpoint(self, position: Position) -> None:
        value = {"stage": "packing", "key": self._key(position.place), "position": asdict(position)}
        self._finished.checkpoint.write(value)

    # Finishing

    def _complete(self, position: Position) -> Packed:
        """Write the .lst files, record sizes and hashes, and rename all files."""
        left_out = {path for path, _ in position.bad}
        files = dict(position.finished)
        for shard in range(len(self._stems)):
            name = self._file_name(shard, "lst")
            with open(self._finished.part(name), "wb") as lst:
                lst.writelines(self.listing.lines(*self._bounds(shard), left_out))
                lst.flush()
                os.fsync(lst.fileno())
            files[name] = _output_file(self._finished.part(name), hash_file(self._finished.part(name)))
        images = dict.fromkeys(self.listing.classes, 0) | self.listing.names.counts()
        key = {**self.key(), **self._origin}
        left_out_names = self.listing.names.left_out
        packed = Packed(key, position.records, images, position.bad, position.converted, files, left_out_names)
        self._finished.put_in_place(packed)
        return packed

    def _file_name(self, shard: int, suffix: str) -> str:
        return f"{self._stems[shard]}.{suffix}"

    def _parts(self, shard: int) -> tuple[str, str]:
        """Return the paths of a shard's unfinished .rec and .idx."""
        return self._finished.part(self._file_name(shard, "rec")), self._finished.part(self._file_name(shard, "idx"))


def _after(position: Position, batch: RecordBatch, writer: RecordWriter) -> Position:
    converted = dict(position.converted)
    for kind in batch.converted:
        converted[kind] += 1
    return replace(
        position,
        place=batch.stop,
        records=position.records + len(batch.ids),
        rec_bytes=writer.rec_bytes,
        idx_bytes=writer.idx_bytes,
        bad=position.bad + batch.bad if batch.bad else position.bad,
        converted=converted,
    )


def _position(value: dict[str, Any]) -> Position:
    finished = {name: OutputFile(*file) for name, file in value["finished"].items()}
    return Position(**{**value, "finished": finished})


def _output_file(path: str, sha256: str) -> OutputFile:
    status = os.stat(path)
    return OutputFile(status.st_size, sha256, status.st_mtime_ns)


def _look_again(path: str, file: OutputFile) -> tuple[OutputFile, str]:
    """Return a finished file as it is now, and what happened to it, or "" if it is intact."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return file, "was deleted"
    if status.st_size != file.size_bytes:
        return file, f"was changed from {file.size_bytes} to {status.st_size} bytes"
    if status.st_mtime_ns != file.mtime_ns and hash_file(path) != file.sha256:
        return file, "was changed (checksum mismatch)"
    return file._replace(mtime_ns=status.st_mtime_ns), ""


def packed_from_json(value: dict[str, Any]) -> Packed:
    """Return the `Packed` in the JSON ``value``."""
    return Packed(**{**value, "files": {name: OutputFile(*file) for name, file in value["files"].items()}})


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Describe the differences between two keys; hashes by their first digits."""
    names = sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
    return ", ".join(f"{name} {str(before.get(name))[:12]} is now {str(after.get(name))[:12]}" for name in names)
