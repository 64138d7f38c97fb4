"""Writes one split: a source makes records in their order, each format's files grow, and a killed run can be resumed.

The unfinished files are hidden ones next to the final ones (`stream`). Every few seconds they are synced, and then the
checkpoint ``recordio_pack.<split>.part.json`` says how far they are valid; a restart truncates them there. At the end
the checkpoint lists sizes and hashes, the files are renamed, and ``recordio_pack.<split>.json`` records what was made
from what, so that a later run need not read anything again.

A split is one set of files in each format, or several (shards), each with consecutive records of the order. What the
formats besides RecordIO need of a record when its shard is sealed, its entry, is in ``recordio_pack.<split>.entries``
until the split is finished.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Callable, NamedTuple, Protocol

from ansible.module_utils.imagenet_ops.core.checkpoint import SyncJournal, open_part
from ansible.module_utils.imagenet_ops.core.disk import require_space
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import fsync_directory
from ansible.module_utils.imagenet_ops.core.hashing import hash_file
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile, Warn, fits, natural
from ansible.module_utils.imagenet_ops.dataset.manifest import (
    MANIFEST_NAME,
    RECORD_FOLDER,
    SUFFIXES,
    file_stems,
    read_manifest,
)
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Format, content_lines
from ansible.module_utils.imagenet_ops.formats.recordio import RECORDIO, write_all
from ansible.module_utils.imagenet_ops.pack.listing import LeftOut
from ansible.module_utils.imagenet_ops.pack.stream import (
    Cut,
    EncodedBatch,
    EntryFile,
    OutputFile,
    SealedShard,
    ShardStream,
    StreamPosition,
    discard_unfinished,
    output_file,
)
from ansible.module_utils.imagenet_ops.pack.tree_source import RecordBatch, RecordSource

_FILE = (natural, str, int)
_FILES = {str: _FILE}
_CONVERTED = {"cmyk": natural, "grey": natural, "png": natural}
_PACKED = {
    "key": {str: object},
    "records": natural,
    "images": {str: natural},
    "bad": [(str, str)],
    "converted": _CONVERTED,
    "files": _FILES,
    "formats": {str: {"shards": [(str, natural, natural)], "files": _FILES}},
    "content_sha256": str,
    "left_out": {str: {"count": natural, "samples": [str]}},
}
# What a record of a finished split lacks where there is nothing to say, as in earlier versions.
_OPTIONAL = {"formats": {}, "content_sha256": "", "left_out": {}}
_STREAM = {
    "shard": natural,
    "records": natural,
    "image_bytes": natural,
    "sizes": [natural],
    "entries_begin": natural,
    "entries_end": natural,
    "sealed": [(natural, natural, [_FILE])],
}
_POSITION = {
    "place": natural,
    "records": natural,
    "entries_bytes": natural,
    "bad": [(str, str)],
    "converted": _CONVERTED,
    "streams": {str: _STREAM},
}
_POSITION_BEFORE = {
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
    if not isinstance(value, dict) or not fits({**_OPTIONAL, **value}, _PACKED):
        return False
    stems = {os.path.splitext(name)[0] for name in value["files"]}
    shards = value["key"].get("shards") if "recordio" in value["key"].get("formats", ["recordio"]) else 0
    return (
        sum(value["images"].values()) == value["records"] + len(value["bad"])
        and set(value["files"]) == {f"{stem}.{suffix}" for stem in stems for suffix in SUFFIXES}
        and bool(len(stems) == shards)
    )


def _is_checkpoint(value: Any) -> bool:
    if value.get("stage") == "renaming":
        return fits(value, {"stage": str, "packed": _is_packed, "unfinished": {str: str}})
    return value.get("stage") == "packing" and fits(
        value, {"stage": str, "key": {str: object}, "position": _POSITION, "tails": {str: [str]}}
    )


def _upgrade(value: Any) -> Any:
    """Return the checkpoint of a version that knew RecordIO alone in today's form."""
    if not isinstance(value, dict):
        return value
    if value.get("stage") == "renaming" and _is_packed(value.get("packed")):
        parts = {f"{RECORD_FOLDER}/{name}": f"{RECORD_FOLDER}/.{name}.part" for name in value["packed"]["files"]}
        return {"unfinished": parts, **value}
    position: Any = value.get("position")
    if value.get("stage") != "packing" or not fits(position, _POSITION_BEFORE):
        return value
    stems = sorted({os.path.splitext(name)[0] for name in position["finished"]})
    sealed = [[0, 0, [position["finished"].get(f"{stem}.{suffix}") for suffix in ("rec", "idx")]] for stem in stems]
    stream = {
        "shard": position["shard"],
        "records": 0,
        "image_bytes": 0,
        "sizes": [position["rec_bytes"], position["idx_bytes"]],
        "entries_begin": 0,
        "entries_end": 0,
        "sealed": sealed,
    }
    kept = {name: position[name] for name in ("place", "records", "bad", "converted")}
    return {**value, "position": {**kept, "entries_bytes": 0, "streams": {"recordio": stream}}, "tails": {}}


FINISHED = Kind("recordio_pack record of a finished split", 1, _is_packed, starts_over="the split is packed again")
CHECKPOINT = Kind("recordio_pack checkpoint", 2, _is_checkpoint, starts_over="packing starts over", upgrade=_upgrade)


@dataclass(frozen=True)
class Position:
    """How far a split is: the next place in the order, and where the files of each format are then.

    ``bad`` has [path, reason] of each bad image, ``converted`` counts the kinds of `Header.converted`,
    ``entries_bytes`` is the length of the file of entries.
    """

    place: int = 0
    records: int = 0
    entries_bytes: int = 0
    bad: list[list[str]] = field(default_factory=list)
    converted: dict[str, int] = field(default_factory=lambda: {"cmyk": 0, "grey": 0, "png": 0})
    streams: dict[str, StreamPosition] = field(default_factory=dict)


class FormatFiles(NamedTuple):
    """The finished files of a format besides RecordIO, by path below its folder.

    ``shards`` has the path, the number of records and the sum of the images in bytes of each shard, in their order.
    """

    shards: list[tuple[str, int, int]]
    files: dict[str, OutputFile]


@dataclass
class Packed:
    """A finished split: what it was made from (``key``), bad and converted images, and the files by name.

    ``images`` has the number of images of each class, including bad ones. ``files`` are those of RecordIO, ``formats``
    has those of the others. ``content_sha256`` is over all images (`content_lines`), "" if RecordIO is the only format.
    ``left_out`` is that of `ImageNames`.
    """

    key: dict[str, Any]
    records: int
    images: dict[str, int]
    bad: list[list[str]]
    converted: dict[str, int]
    files: dict[str, OutputFile]
    formats: dict[str, FormatFiles] = field(default_factory=dict)
    content_sha256: str = ""
    left_out: dict[str, LeftOut] = field(default_factory=dict)

    def all_files(self) -> dict[str, OutputFile]:
        """Return all files by path below the root of the data set."""
        files = {f"{RECORD_FOLDER}/{name}": file for name, file in self.files.items()}
        for form, made in self.formats.items():
            files.update({f"{form}/{name}": file for name, file in made.files.items()})
        return files

    def as_json(self) -> dict[str, Any]:
        """Return the fields for a state file; those that earlier versions lack only where there is something."""
        formats = {name: made._asdict() for name, made in self.formats.items()}
        fields = {**asdict(self), "formats": formats}
        return {name: value for name, value in fields.items() if value or name not in _OPTIONAL}


class Outputs(NamedTuple):
    """What a split is written as: ``formats``, with ``info`` in their metadata, and where their shards end.

    RecordIO has ``shards`` shards. So have the others if ``shard_bytes`` is 0; else their shards have about so many
    bytes. ``keeps_entries`` is whether the source makes the entries of the records.
    """

    formats: Sequence[Format]
    info: DatasetInfo
    shards: int = 1
    shard_bytes: int = 0
    keeps_entries: bool = False


class FinishedSplit:
    """The results of split ``name``: finished files below ``root``, and their record in the state directory.

    The manifest, and what else describes all splits, is deleted before finished files are replaced, for it describes
    the old ones. ``warn`` is called if a state file cannot be used.
    """

    def __init__(self, name: str, root: str, state_dir: str, warn: Warn = warnings.warn) -> None:
        self.name = name
        self.root = root
        self.checkpoint_path = os.path.join(state_dir, f"recordio_pack.{name}.part.json")
        self.entries_path = os.path.join(state_dir, f"recordio_pack.{name}.entries")
        self.checkpoint = StateFile(self.checkpoint_path, CHECKPOINT, warn)
        self._record = StateFile(os.path.join(state_dir, f"recordio_pack.{name}.json"), FINISHED, warn)

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
        for folder, files in [(RECORD_FOLDER, packed.files), *((n, made.files) for n, made in packed.formats.items())]:
            for name, file in files.items():
                seen, fault = _look_again(os.path.join(self.root, folder, name), file)
                if fault:
                    return None, f"{name} {fault} since it was packed"
                files[name] = seen
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
        self._rename(packed_from_json(checkpoint["packed"]), checkpoint["unfinished"])
        return True

    def put_in_place(self, packed: Packed, unfinished: Mapping[str, str]) -> None:
        """Give the files of ``packed`` their names; after a kill, the next run completes it. Raises OSError.

        ``unfinished`` has the present path of each by its final one, both below the root.
        """
        self.checkpoint.write({"stage": "renaming", "packed": packed.as_json(), "unfinished": dict(unfinished)})
        self._rename(packed, unfinished)

    def _rename(self, packed: Packed, unfinished: Mapping[str, str]) -> None:
        """Rename the unfinished files; a run that was killed may have done any of the steps."""
        before = self.read()
        outdated = set() if before is None else set(before.all_files()) - set(packed.all_files())
        for path in (*self._descriptions(outdated | set(unfinished)), *sorted(outdated)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.root, path))
        fsync_directory(self.root)
        folders = sorted({os.path.dirname(os.path.join(self.root, name)) for name in unfinished})
        for folder in folders:
            os.makedirs(folder, exist_ok=True)
            fsync_directory(os.path.dirname(folder))
        for name, present in unfinished.items():
            with contextlib.suppress(FileNotFoundError):
                os.replace(os.path.join(self.root, present), os.path.join(self.root, name))
        for folder in sorted({name.partition("/")[0] for name in unfinished}):
            discard_unfinished(os.path.join(self.root, folder), self.name)
        for folder in folders:
            fsync_directory(folder)
        self._record.write(packed.as_json())
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.entries_path)
        os.unlink(self.checkpoint_path)
        fsync_directory(os.path.dirname(self.checkpoint_path))

    def _descriptions(self, replaced: Collection[str]) -> list[str]:
        """Return the paths of what describes all splits: the index files of the formats, and the manifest last.

        There is none where no file that the manifest describes is to be ``replaced``: a format was added.
        """
        try:
            manifest = read_manifest(self.root)
        except OpsError:
            return [MANIFEST_NAME]
        if not manifest.files("records").keys() & set(replaced):
            return []
        indices = [f"{name}/{path}" for name, made in manifest.formats.items() for path in made.index_files]
        return [*indices, MANIFEST_NAME]


class SplitListing(Protocol):
    """The images of a split in the order of the records."""

    @property
    def left_out(self) -> dict[str, LeftOut]:
        """What the manifest says of what is no record."""

    def __len__(self) -> int:
        """Return the number of places, those of bad images among them."""

    def key(self, places: int) -> dict[str, Any]:
        """Return what the first ``places`` records depend on."""

    def counts(self) -> dict[str, int]:
        """Return the number of images of each class, bad ones among them."""

    def lines(self, begin: int, stop: int, left_out: Collection[str]) -> Iterator[bytes]:
        """Yield the lines of a .lst with the records from place ``begin`` to before ``stop``, without ``left_out``."""


class SplitPacker:
    """Packs one split: its listing and settings, and where its files and its checkpoint are.

    ``key`` has everything that the bytes depend on: names, settings, tools. A run resumes only if the key is the same
    and the images that were packed still have the same sizes; so a bad image may be replaced before it resumes.
    ``origin``, the identity of the archive if there is one, is recorded with the finished split. ``merge`` adds what is
    finished already to what was packed.
    """

    def __init__(
        self,
        finished: FinishedSplit,
        key: Mapping[str, Any],
        origin: Mapping[str, Any],
        listing: SplitListing,
        outputs: Outputs,
        merge: Callable[[Packed], Packed] = lambda packed: packed,
    ) -> None:
        self.name = finished.name
        self.listing = listing
        self._finished = finished
        self._own_key = {**key, "shards": outputs.shards}
        self._origin = origin
        self._merge = merge
        self._outputs = outputs
        self._keeps_entries = outputs.keeps_entries

    def key(self) -> dict[str, Any]:
        """Return the key of the finished split."""
        return self._key(len(self.listing))

    def _key(self, places: int) -> dict[str, Any]:
        """Return the key of the first ``places`` records."""
        return {**self._own_key, **self.listing.key(places)}

    def _streams(self, position: Position) -> list[ShardStream]:
        """Return what writes each format from ``position`` on."""
        outputs = self._outputs
        by_number = Cut.by_number(len(self.listing), outputs.shards)
        by_bytes = Cut((), outputs.shard_bytes) if outputs.shard_bytes else by_number
        return [
            ShardStream(
                form,
                self.name,
                outputs.info,
                os.path.join(self._finished.root, form.name),
                by_number if form is RECORDIO else by_bytes,
                position.streams.get(form.name, StreamPosition()),
                self._finished.entries_path,
            )
            for form in outputs.formats
        ]

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
        if not self._files_match(position, checkpoint["tails"]):
            return Position(), "the files of the interrupted run do not match its checkpoint and are discarded"
        return position, ""

    def _files_match(self, position: Position, tails: Mapping[str, list[str]]) -> bool:
        """Return whether the files reach ``position``, and the growing ones end there as they did."""
        formats = {form.name for form in self._outputs.formats}
        if position.streams.keys() - formats or position.records > position.place - len(position.bad):
            return False
        if self._keeps_entries and _size(self._finished.entries_path) < position.entries_bytes:
            return False
        return all(stream.is_whole(tails.get(stream.form.name)) for stream in self._streams(position))

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
            streams = self._streams(position)
            if position == Position():
                for form in self._outputs.formats:
                    discard_unfinished(os.path.join(self._finished.root, form.name), self.name)
            stage = f"packing {self.name}"
            rec_bytes = source.rec_bytes()
            if rec_bytes is not None:
                stage = f"{stage} ({rec_bytes} bytes of records)"
                require_space(self._finished.root, self._needed_bytes(rec_bytes, position))
            progress.start(stage, len(self.listing), "images", position.place)
            # Before the files are changed: an older checkpoint must not be taken for theirs.
            self._write_checkpoint(position, streams)
            position = self._append_all(source, workers, stop_at_bad, position, streams, progress)
            return self._complete(position, streams)
        except OSError as error:
            raise self._unwritable(error) from error

    def _needed_bytes(self, rec_bytes: int, position: Position) -> int:
        """Return how many bytes will be written from ``position`` on, if all records are ``rec_bytes`` in RecordIO."""
        needed = 0
        for form in self._outputs.formats:
            stream = position.streams.get(form.name, StreamPosition())
            written = sum(shard.files[0].size_bytes for shard in stream.sealed) + sum(stream.sizes[:1])
            total = rec_bytes if form is RECORDIO else rec_bytes + form.overhead_bytes * len(self.listing)
            # What is not in place is there twice while it is sealed.
            needed += total - written + (0 if form.in_place else self._outputs.shard_bytes or total)
        return needed

    def _append_all(
        self,
        source: RecordSource,
        workers: int,
        stop_at_bad: bool,
        position: Position,
        streams: Sequence[ShardStream],
        progress: Progress,
    ) -> Position:
        """Append the records from ``position`` on, seal all shards, and return the position at the end."""

        def keep(reached: Position) -> None:
            self._write_checkpoint(reached, streams)
            source.release(reached.place)
            for stream in streams:
                stream.release(reached.streams[stream.form.name])

        with contextlib.ExitStack() as stack:
            entries = None
            if self._keeps_entries:
                entries = stack.enter_context(open_part(self._finished.entries_path, position.entries_bytes))
            for stream in streams:
                stack.enter_context(stream.running())
            run_each = _in_threads(stack, streams)
            checkpoint = stack.enter_context(SyncJournal(keep, partial(_sync, streams, entries)).running())
            batches = source.batches(position.place, len(self.listing), workers)
            stack.enter_context(contextlib.closing(batches))
            position = replace(position, streams={stream.form.name: stream.position for stream in streams})
            try:
                for batch in batches:
                    if stop_at_bad and batch.bad:
                        raise source.bad_image(*batch.bad[0])
                    position = _append(batch, position, streams, entries, run_each)
                    checkpoint.offer(position)
                    progress.update(position.place)
            finally:
                checkpoint.close(position)
            run_each(lambda stream: stream.complete())
            return replace(position, streams={stream.form.name: stream.position for stream in streams})

    def _unwritable(self, error: OSError) -> OpsError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            todo = "Free or add space and rerun: packing resumes"
            return OpsError(f"Split {self.name} in {self._finished.root}", f"the disk is full ({error.strerror})", todo)
        return OpsError(
            f"Split {self.name} in {self._finished.root}",
            f"its files cannot be written ({error.strerror})",
            "Check the disk (dmesg) and rerun: packing resumes",
        )

    def _write_checkpoint(self, position: Position, streams: Sequence[ShardStream]) -> None:
        tails = {
            stream.form.name: stream.tails(position.streams[stream.form.name])
            for stream in streams
            if stream.form.name in position.streams
        }
        self._finished.checkpoint.write(
            {
                "stage": "packing",
                "key": self._key(position.place),
                "position": asdict(position),
                "tails": tails,
            }
        )

    # Finishing

    def _complete(self, position: Position, streams: Sequence[ShardStream]) -> Packed:
        """Record sizes and hashes, and rename all files; those of RecordIO get their lists first."""
        unfinished: dict[str, str] = {}
        made: dict[str, FormatFiles] = {}
        for stream in streams:
            sealed = position.streams[stream.form.name].sealed
            made[stream.form.name] = self._name_files(stream, sealed, unfinished)
        recordio = made.pop(RECORDIO.name, FormatFiles([], {}))
        if RECORDIO in self._outputs.formats:
            self._write_lists({path for path, _ in position.bad}, recordio.files, unfinished)
        content_sha256 = ""
        if self._keeps_entries:
            digest = hashlib.sha256()
            for line in content_lines(EntryFile(self._finished.entries_path, 0, position.records)):
                digest.update(line)
            content_sha256 = digest.hexdigest()
        key = {**self.key(), **self._origin}
        packed = Packed(
            key=key,
            records=position.records,
            images=self.listing.counts(),
            bad=position.bad,
            converted=position.converted,
            files=recordio.files,
            formats=made,
            content_sha256=content_sha256,
            left_out=self.listing.left_out,
        )
        packed = self._merge(packed)
        self._finished.put_in_place(packed, unfinished)
        return packed

    def _name_files(
        self, stream: ShardStream, sealed: Sequence[SealedShard], unfinished: dict[str, str]
    ) -> FormatFiles:
        """Return the files of a stream by their final names; add the present path of each to ``unfinished``."""
        found = FormatFiles([], {})
        for number, shard in enumerate(sealed):
            names = stream.names(number, len(sealed))
            found.shards.append((names[0], shard.records, shard.image_bytes))
            for name, path, file in zip(names, stream.unfinished(number), shard.files):
                found.files[name] = file
                unfinished[f"{stream.form.name}/{name}"] = os.path.relpath(path, self._finished.root)
        return found

    def _write_lists(self, left_out: set[str], files: dict[str, OutputFile], unfinished: dict[str, str]) -> None:
        """Write the .lst of each shard of RecordIO, without the images in ``left_out``."""
        stems = file_stems(self.name, self._outputs.shards)
        bounds = [0, *Cut.by_number(len(self.listing), len(stems)).bounds]
        for stem, begin, stop in zip(stems, bounds, bounds[1:]):
            name = f"{stem}.lst"
            path = os.path.join(self._finished.root, RECORD_FOLDER, f".{name}.part")
            with open(path, "wb") as lst:
                lst.writelines(self.listing.lines(begin, stop, left_out))
                lst.flush()
                os.fsync(lst.fileno())
            files[name] = output_file(path, hash_file(path))
            unfinished[f"{RECORD_FOLDER}/{name}"] = os.path.relpath(path, self._finished.root)


_RunEach = Callable[[Callable[[ShardStream], StreamPosition]], "list[StreamPosition]"]


def _in_threads(stack: contextlib.ExitStack, streams: Sequence[ShardStream]) -> _RunEach:
    """Return what calls a function with each stream at the same time, and returns the results in their order."""
    if len(streams) == 1:
        return lambda work: [work(streams[0])]
    pool = stack.enter_context(ThreadPoolExecutor(len(streams)))
    return lambda work: list(pool.map(work, streams))


def _sync(streams: Sequence[ShardStream], entries: int | None) -> None:
    """Make durable what was appended so far. Raises OSError."""
    if entries is not None:
        os.fdatasync(entries)
    for stream in streams:
        stream.sync()


def _append(
    batch: RecordBatch,
    position: Position,
    streams: Sequence[ShardStream],
    entries: int | None,
    run_each: _RunEach,
) -> Position:
    """Append a batch to the files of all formats and return the position after it."""
    entry_ends: list[int] = []
    if entries is not None:
        # First, for what is sealed reads them.
        write_all(entries, batch.entries)
        entry_ends = list(itertools.accumulate(map(len, batch.entries), initial=position.entries_bytes))[1:]

    def append(stream: ShardStream) -> StreamPosition:
        records = batch.records[stream.form.name]
        return stream.append(EncodedBatch(batch.places, batch.ids, batch.image_bytes, records, entry_ends))

    reached = run_each(append)
    converted = dict(position.converted)
    for kind in batch.converted:
        converted[kind] += 1
    return Position(
        place=batch.stop,
        records=position.records + len(batch.ids),
        entries_bytes=entry_ends[-1] if entry_ends else position.entries_bytes,
        bad=position.bad + batch.bad if batch.bad else position.bad,
        converted=converted,
        streams={stream.form.name: at for stream, at in zip(streams, reached)},
    )


def _position(value: dict[str, Any]) -> Position:
    return Position(**{**value, "streams": {name: _stream_position(at) for name, at in value["streams"].items()}})


def _stream_position(value: dict[str, Any]) -> StreamPosition:
    sealed = tuple(
        SealedShard(records, image_bytes, [OutputFile(*file) for file in files])
        for records, image_bytes, files in value["sealed"]
    )
    return StreamPosition(**{**value, "sizes": tuple(value["sizes"]), "sealed": sealed})


def _size(path: str) -> int:
    """Return the size of a file in bytes; -1 where there is none."""
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return -1


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
    formats = {
        name: FormatFiles([(path, records, size) for path, records, size in made["shards"]], _files(made["files"]))
        for name, made in value.get("formats", {}).items()
    }
    return Packed(**{**_OPTIONAL, **value, "files": _files(value["files"]), "formats": formats})


def _files(value: Mapping[str, Any]) -> dict[str, OutputFile]:
    return {name: OutputFile(*file) for name, file in value.items()}


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Describe the differences between two keys; hashes by their first digits."""
    names = sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
    return ", ".join(f"{name} {str(before.get(name))[:12]} is now {str(after.get(name))[:12]}" for name in names)
