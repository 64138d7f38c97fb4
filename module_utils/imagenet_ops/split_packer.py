"""Packs one split: threads shrink images, one thread writes records in order, a journal lets a killed run go on.

While it works, the files are ``.<split>.rec.part`` and ``.<split>.idx.part`` beside the final ones. Every few seconds
they are synced, and only then the journal ``recordio_pack.<split>.part.json`` says how far they are good; a restart
cuts them back to that. At the end the journal lists sizes and hashes, the files are renamed, and
``recordio_pack.<split>.json`` remembers what was made of what, so that a later run need not read anything again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, NamedTuple

from ansible.module_utils.imagenet_ops.errors import OpsError
from ansible.module_utils.imagenet_ops.following_hash import FollowingHash
from ansible.module_utils.imagenet_ops.images import BadImageError, Recipe, shrink
from ansible.module_utils.imagenet_ops.listing import Listing
from ansible.module_utils.imagenet_ops.recordio import RecordReader, RecordWriter, frame, image_data, parse_image_data
from ansible.module_utils.imagenet_ops.state import Progress, fsync_directory, read_json, write_json
from ansible.module_utils.imagenet_ops.workers import ordered_map

JOURNAL_INTERVAL_SECONDS = 5.0  # about as much work as a kill costs
SUFFIXES = ("rec", "idx", "lst")

_CHUNK_IMAGES = 32
_HASH_BLOCK_BYTES = 1 << 20
_LINE_BYTES = 64  # more than the longest line of an index: two numbers of at most 20 digits


@dataclass
class Position:
    """How far a split is: the next place in the order, and the files up to there.

    ``bad`` has [path, reason] of each bad image, ``converted`` counts the kinds of `Header.converted`.
    """

    place: int = 0
    records: int = 0
    rec_bytes: int = 0
    idx_bytes: int = 0
    bad: list[list[str]] = field(default_factory=list)
    converted: dict[str, int] = field(default_factory=lambda: {"cmyk": 0, "grey": 0, "png": 0})


class OutputFile(NamedTuple):
    """A finished file; the modification time tells a later run whether it was touched."""

    size_bytes: int
    sha256: str
    mtime_ns: int


@dataclass
class Packed:
    """A finished split: what it was made from (``key``), what was met on the way, and the files by name."""

    key: dict[str, Any]
    records: int
    bad: list[list[str]]
    converted: dict[str, int]
    files: dict[str, OutputFile]


class _Chunk(NamedTuple):
    """Some records in their order, and the images of the same stretch that are bad."""

    stop: int
    ids: list[int]
    records: list[bytes]
    bad: list[list[str]]
    converted: list[str]


class SplitPacker:
    """One split: where it comes from, what is made of it, and where its files and its journal are.

    ``key`` names all that the bytes depend on: names, settings, tools. A run goes on only where the key is the same and
    the images that were packed still have the sizes that they had, so one that was bad may be replaced meanwhile.
    ``manifest_path`` is removed before finished files are replaced, for it describes the old ones.
    """

    def __init__(
        self, name: str, folder: str, state_dir: str, manifest_path: str, key: dict[str, Any], listing: Listing
    ) -> None:
        self.name = name
        self.folder = folder
        self.key = key
        self.listing = listing
        self._manifest_path = manifest_path
        self._journal_path = os.path.join(state_dir, f"recordio_pack.{name}.part.json")
        self._packed_path = os.path.join(state_dir, f"recordio_pack.{name}.json")

    # What there is already

    def finish_renaming(self) -> bool:
        """Complete the renaming that a killed run began; say whether there was one."""
        journal = read_json(self._journal_path)
        if journal is None or journal["stage"] != "renaming":
            return False
        self._rename(_packed(journal["packed"]))
        return True

    def packed(self) -> tuple[Packed | None, str]:
        """Return the finished split if it is of the same key and its files are whole; else None and why it is not used.

        The reason is empty where there is simply nothing yet. A file with another time but the same size is hashed
        again, and if it is the same, the result has the new time; `remember` keeps it.
        """
        value = read_json(self._packed_path)
        if value is None:
            return None, ""
        packed = _packed(value)
        key = self._key(len(self.listing))
        if packed.key != key:
            return None, f"it was packed with other settings or another source ({_difference(packed.key, key)})"
        for name, file in packed.files.items():
            seen, fault = _look_again(os.path.join(self.folder, name), file)
            if fault:
                return None, f"{name} {fault} since it was packed"
            packed.files[name] = seen
        return packed, ""

    def remember(self, packed: Packed) -> None:
        """Keep what `packed` found, if that is news."""
        value = read_json(self._packed_path)
        if value is None or _packed(value) != packed:
            write_json(self._packed_path, asdict(packed))

    def _resume_point(self) -> tuple[Position, str]:
        """Return where to go on, and a warning if an unfinished run's work cannot be used."""
        journal = read_json(self._journal_path)
        if journal is None:
            return Position(), ""
        position = Position(**journal["position"])
        key = self._key(position.place)
        if journal["key"] != key:
            what = f"other settings or another source ({_difference(journal['key'], key)})"
            return Position(), f"an unfinished run had {what}, its part is dropped"
        if not self._part_is_whole(position):
            return Position(), "the files of an unfinished run do not hold what its journal says, they are dropped"
        return position, ""

    def _part_is_whole(self, position: Position) -> bool:
        """Say whether the part files reach the journal's point and the last record there is what the index says."""
        if position.records == 0:
            return True
        try:
            with open(self._part("idx"), "rb") as idx, open(self._part("rec"), "rb") as rec:
                last_bytes = min(_LINE_BYTES, position.idx_bytes)
                idx.seek(position.idx_bytes - last_bytes)
                last_line = idx.read(last_bytes).splitlines(keepends=True)[-1]
                if not last_line.endswith(b"\n"):
                    return False
                record_id, offset = (int(number) for number in last_line.split(b"\t"))
                reader = RecordReader(rec, self._part("rec"))
                reader.seek(offset)
                data = reader.read()
                fits = data is not None and parse_image_data(data).record_id == record_id
                return fits and reader.offset == position.rec_bytes
        except (FileNotFoundError, ValueError, IndexError, OpsError):
            return False

    # Packing

    def pack(
        self,
        recipe: Recipe,
        workers: int,
        stop_at_bad: bool,
        progress: Progress,
        warn: Callable[[str], None],
    ) -> Packed:
        """Pack the split, or the rest of it, and return what was made.

        With ``stop_at_bad`` the first bad image is an OpsError; so are a full disk and an image that cannot be read. A
        next run goes on where this one ended.
        """
        position, warning = self._resume_point()
        if warning:
            warn(f"Split {self.name}: {warning}, packing begins anew")
        if stop_at_bad and position.bad:
            raise self.bad_image(*position.bad[0])
        progress.start(f"packing {self.name}", len(self.listing), "images", position.place)
        try:
            chunks = self._chunks(position.place, recipe, workers)
            position, rec_sha256 = self._append(chunks, position, stop_at_bad, progress)
            return self._complete(position, rec_sha256)
        except OSError as error:
            raise self._unwritable(error) from error

    def _append(
        self, chunks: Generator[_Chunk, None, None], position: Position, stop_at_bad: bool, progress: Progress
    ) -> tuple[Position, str]:
        """Append ``chunks`` to the part files at ``position``; return where that ends and the .rec's SHA-256."""
        if not os.path.isdir(self.folder):
            os.makedirs(self.folder, exist_ok=True)
            fsync_directory(os.path.dirname(self.folder))
        # Before the files are touched: an older journal must not be taken for theirs.
        self._write_journal(position)
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(chunks))
            rec = stack.enter_context(_open_part(self._part("rec"), position.rec_bytes))
            idx = stack.enter_context(_open_part(self._part("idx"), position.idx_bytes))
            fsync_directory(self.folder)
            hashing = stack.enter_context(FollowingHash(self._part("rec")).running())
            hashing.advance(position.rec_bytes)
            journal = stack.enter_context(_Journal(self._write_journal, (rec, idx)).running())
            writer = RecordWriter(rec, idx, position.rec_bytes, position.idx_bytes)
            try:
                for chunk in chunks:
                    if stop_at_bad and chunk.bad:
                        raise self.bad_image(*chunk.bad[0])
                    writer.write(chunk.ids, chunk.records)
                    position = _after(position, chunk, writer)
                    hashing.advance(position.rec_bytes)
                    journal.offer(position)
                    progress.update(position.place)
            finally:
                journal.close(position)
            return position, hashing.finish()

    def _chunks(self, place: int, recipe: Recipe, workers: int) -> Generator[_Chunk, None, None]:
        begins = range(place, len(self.listing), _CHUNK_IMAGES)
        return ordered_map(lambda begin: self._shrink(begin, recipe), begins, workers)

    def _shrink(self, begin: int, recipe: Recipe) -> _Chunk:
        """Return the records of the images from place ``begin`` on; runs in the worker threads."""
        listing = self.listing
        stop = min(begin + _CHUNK_IMAGES, len(listing))
        chunk = _Chunk(stop, [], [], [], [])
        for row in listing.order[begin:stop]:
            path = listing.tree.path(row)
            try:
                image, converted = shrink(self._read(row, path), recipe)
            except BadImageError as error:
                chunk.bad.append([path, str(error)])
                continue
            chunk.ids.append(row)
            chunk.records.append(frame(image_data(row, float(listing.label(row)), image)))
            if converted:
                chunk.converted.append(converted)
        return chunk

    def _read(self, row: int, path: str) -> bytes:
        full_path = os.path.join(self.listing.tree.directory, path)
        todo = "Check the disk and that nothing changes the tree, then run again: packing goes on from here"
        try:
            with open(full_path, "rb", buffering=0) as file:
                content = file.read()
        except OSError as error:
            raise OpsError(f"Image {full_path}", f"it cannot be read ({error.strerror})", todo) from error
        if len(content) != self.listing.tree.sizes[row]:
            why = f"{len(content)} bytes were read, it had {self.listing.tree.sizes[row]} when the tree was listed"
            raise OpsError(f"Image {full_path}", why, todo)
        return content

    def bad_image(self, path: str, reason: str) -> OpsError:
        """Return the error that names a bad image of this split."""
        return OpsError(
            f"Image {os.path.join(self.listing.tree.directory, path)}",
            reason,
            "Replace it and run again (packing goes on from here), or set on_bad_image to skip or quarantine",
        )

    def _unwritable(self, error: OSError) -> OpsError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            todo = "Free or add space and run again: packing goes on where it stopped"
            return OpsError(f"Split {self.name} in {self.folder}", f"the disk is full ({error.strerror})", todo)
        return OpsError(
            f"Split {self.name} in {self.folder}",
            f"its files cannot be written ({error.strerror})",
            "Check the disk (dmesg) and run again: packing goes on where it stopped",
        )

    def _write_journal(self, position: Position) -> None:
        value = {"stage": "packing", "key": self._key(position.place), "position": asdict(position)}
        write_json(self._journal_path, value)

    def _key(self, places: int) -> dict[str, Any]:
        """Return what the first ``places`` records depend on."""
        return {**self.key, "sizes": self.listing.sizes_digest(places)}

    # The end

    def _complete(self, position: Position, rec_sha256: str) -> Packed:
        """Write the .lst, note sizes and hashes, and put all three files in their places."""
        left_out = {path for path, _ in position.bad}
        with open(self._part("lst"), "wb") as lst:
            lst.writelines(self.listing.lines(left_out))
            lst.flush()
            os.fsync(lst.fileno())
        files = {}
        for suffix in SUFFIXES:
            path = self._part(suffix)
            status = os.stat(path)
            sha256 = rec_sha256 if suffix == "rec" else hash_file(path)
            files[f"{self.name}.{suffix}"] = OutputFile(status.st_size, sha256, status.st_mtime_ns)
        packed = Packed(self._key(position.place), position.records, position.bad, position.converted, files)
        write_json(self._journal_path, {"stage": "renaming", "packed": asdict(packed)})
        self._rename(packed)
        return packed

    def _rename(self, packed: Packed) -> None:
        """Put the part files in place; each step may have been done already by a run that was killed."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._manifest_path)
            fsync_directory(os.path.dirname(self._manifest_path))
        for suffix in SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._part(suffix), os.path.join(self.folder, f"{self.name}.{suffix}"))
        fsync_directory(self.folder)
        write_json(self._packed_path, asdict(packed))
        os.unlink(self._journal_path)
        fsync_directory(os.path.dirname(self._journal_path))

    def _part(self, suffix: str) -> str:
        return os.path.join(self.folder, f".{self.name}.{suffix}.part")


class _Journal:
    """Syncs files and then writes the journal, beside the packing, at most once in `JOURNAL_INTERVAL_SECONDS`."""

    def __init__(self, write: Callable[[Position], None], descriptors: tuple[int, ...]) -> None:
        self._write = write
        self._descriptors = descriptors
        self._last = time.monotonic()
        self._running: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1)

    @contextlib.contextmanager
    def running(self) -> Iterator[_Journal]:
        """Hold the thread that syncs for the duration of the block."""
        with self._pool:
            yield self

    def offer(self, position: Position) -> None:
        """Keep ``position`` if it is time to; raises what the syncing before failed with."""
        busy = self._running is not None and not self._running.done()
        if busy or time.monotonic() - self._last < JOURNAL_INTERVAL_SECONDS:
            return
        self._raise_failure()
        self._last = time.monotonic()
        self._running = self._pool.submit(self._sync, position)

    def close(self, position: Position) -> None:
        """Keep the last ``position`` in any case."""
        self._raise_failure()
        self._sync(position)

    def _sync(self, position: Position) -> None:
        for descriptor in self._descriptors:
            os.fdatasync(descriptor)
        self._write(position)

    def _raise_failure(self) -> None:
        if self._running is not None:
            self._running.result()
            self._running = None


def _after(position: Position, chunk: _Chunk, writer: RecordWriter) -> Position:
    converted = dict(position.converted)
    for kind in chunk.converted:
        converted[kind] += 1
    return Position(
        chunk.stop,
        position.records + len(chunk.ids),
        writer.rec_bytes,
        writer.idx_bytes,
        position.bad + chunk.bad if chunk.bad else position.bad,
        converted,
    )


@contextlib.contextmanager
def _open_part(path: str, size_bytes: int) -> Iterator[int]:
    """Open ``path`` for appending after its first ``size_bytes``; what an earlier run wrote beyond is cut off."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.ftruncate(descriptor, size_bytes)
        yield descriptor
    finally:
        os.close(descriptor)


def hash_file(path: str) -> str:
    """Return the SHA-256 of the file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _look_again(path: str, file: OutputFile) -> tuple[OutputFile, str]:
    """Return a finished file as it is now, and what happened to it, or "" if it is whole."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return file, "has gone"
    if status.st_size != file.size_bytes:
        return file, f"has changed from {file.size_bytes} to {status.st_size} bytes"
    if status.st_mtime_ns != file.mtime_ns and hash_file(path) != file.sha256:
        return file, "has got other contents"
    return file._replace(mtime_ns=status.st_mtime_ns), ""


def _packed(value: dict[str, Any]) -> Packed:
    files = {name: OutputFile(*file) for name, file in value["files"].items()}
    return Packed(value["key"], value["records"], value["bad"], value["converted"], files)


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Name what differs between two keys; hashes by their first digits."""
    names = sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
    return ", ".join(f"{name} {str(before.get(name))[:12]} is now {str(after.get(name))[:12]}" for name in names)
