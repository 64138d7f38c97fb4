"""Holds the files of a packed data set against its manifest and against each other. Writes nothing, anywhere.

``sizes`` compares every size, reads the small files (index, list, labels) whole, and some records, spread evenly.
``full`` reads every byte, compares every SHA-256 and looks at every record. Memory does not grow with the data set.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, BinaryIO, NamedTuple, TextIO

from ansible.module_utils.imagenet_ops.core.concurrency import ordered_map, usable_processors
from ansible.module_utils.imagenet_ops.core.errors import SAMPLES, OpsError
from ansible.module_utils.imagenet_ops.core.hashing import hash_file
from ansible.module_utils.imagenet_ops.dataset.manifest import (
    LABELS_NAME,
    RECORD_FOLDER,
    SUFFIXES,
    FileEntry,
    Manifest,
    file_stems,
    read_manifest,
)
from ansible.module_utils.imagenet_ops.dataset.verify_formats import ADVICE, Content, Decode, FormatVerifier, check_hash
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Sample
from ansible.module_utils.imagenet_ops.formats.lst import ListLine, parse_list_line
from ansible.module_utils.imagenet_ops.formats.recordio import ImageRecord, RecordReader, parse_image_data
from ansible.module_utils.imagenet_ops.formats.registry import FORMATS

_MIB = 1 << 20
_BUFFER_BYTES = _MIB
_CHUNK_IMAGES = 32


class _Entry(NamedTuple):
    """A record as index and list have it: ``place`` in the file, bytes ``begin`` to ``end``."""

    place: int
    line: ListLine
    begin: int
    end: int


class _HashingFile(io.RawIOBase):
    """A file read once from front to back, hashed on the way."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.sha256 = hashlib.sha256()
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by close)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self.sha256.update(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def verify_dataset(
    root: str,
    dataset_version: str | None,
    full: bool,
    decode_samples: int,
    decode: Decode,
    formats: Collection[str] = (),
) -> dict[str, Any]:
    """Verify the data set in ``root`` and return the result of the module recordio_verify.

    ``dataset_version``, if given, must be that of the manifest. ``formats`` are those that must be there, all of the
    manifest's if there are none. ``decode_samples`` images of each split are decoded in each format, all if it is
    negative, by ``decode``, which threads call concurrently. Raises OpsError that names the file, and where it can the
    byte, at the first difference.
    """
    started = time.monotonic()
    with unreadable_files(root):
        manifest = checked_manifest(root, dataset_version, full, formats)
        formats = formats or manifest.format_names
        labels = read_labels(root, manifest)
        decoded = 0
        if RECORD_FOLDER in formats:
            decoded += sum(
                _verify_split(
                    manifest, name, os.path.join(root, RECORD_FOLDER), list(labels), full, decode_samples, decode
                )
                for name in manifest.splits
            )
        info = DatasetInfo(manifest.dataset, list(labels), labels, manifest.settings.get("shard_bytes", 0))
        for name in formats:
            if name != RECORD_FOLDER:
                decoded += FormatVerifier(FORMATS[name], root, manifest, info, decode).run(full, decode_samples)
    result = describe(manifest, decoded, formats)
    # Of the whole verification, for that is what a user waits for; without `full` most bytes are not read.
    speed = result["bytes"] / _MIB / (time.monotonic() - started) if full else 0.0
    return {**result, "mib_s": round(speed, 1)}


@contextmanager
def unreadable_files(root: str) -> Iterator[None]:
    """Turn an OSError about a file of the data set in ``root`` into an OpsError that names it."""
    try:
        yield
    except OSError as error:
        raise OpsError(f"File {error.filename or root}", f"it cannot be read ({error.strerror})", ADVICE) from error


def checked_manifest(root: str, dataset_version: str | None, full: bool, formats: Collection[str] = ()) -> Manifest:
    """Return the manifest of the data set in ``root`` after comparing its version and the size of every file.

    The files are those of ``formats``, or of all that the manifest has. ``full`` also compares the SHA-256 of every
    file of RecordIO but the .rec, which are hashed while they are read. Raises OpsError.
    """
    manifest = read_manifest(root)
    if dataset_version and dataset_version != manifest.dataset_version:
        raise OpsError(
            f"Data set in {root}",
            f"it is version {manifest.dataset_version}, not {dataset_version}",
            "Mount the volume of that version or ask for this one; where they should be the same, it was changed",
        )
    unknown = set(formats) - set(manifest.format_names)
    if unknown:
        raise OpsError(
            f"Data set in {root}",
            f"it does not have {', '.join(sorted(unknown))}, but {', '.join(manifest.format_names)}",
            "Ask for formats that it has (data_deploy_formats), or convert it",
        )
    for name, split in manifest.splits.items() if RECORD_FOLDER in manifest.format_names else ():
        stems = file_stems(name, manifest.settings.get("shards", 1))
        if set(split.files) != {f"{stem}.{suffix}" for stem in stems for suffix in SUFFIXES}:
            why = f"it does not name the {', '.join(SUFFIXES)} of split {name}, and no others"
            raise OpsError(f"Manifest in {root}", why, ADVICE)
    for name, entry in manifest.files("records", formats).items():
        is_small = name.partition("/")[0] in (RECORD_FOLDER, LABELS_NAME) and not name.endswith(".rec")
        _check_file(os.path.join(root, name), entry, full and is_small)
    return manifest


def describe(manifest: Manifest, decoded: int, formats: Collection[str]) -> dict[str, Any]:
    """Return the result of the module recordio_verify: ``decoded`` images were decoded, of ``formats``."""
    files = manifest.files("records", formats)
    return {
        "changed": False,
        "dataset_version": manifest.dataset_version,
        "manifest_sha256": manifest.sha256,
        "records": {name: split.records for name, split in manifest.splits.items()},
        "classes": manifest.classes,
        "content_sha256": {name: split.content_sha256 for name, split in manifest.splits.items()},
        "formats": sorted(formats),
        "bytes": sum(entry.size_bytes for path, entry in files.items() if path != LABELS_NAME),
        "decoded": decoded,
    }


def open_text(path: str) -> TextIO:
    """Open a text file for reading line by line; bytes that are not UTF-8 are for the comparisons to find."""
    return open(path, encoding="utf-8", errors="surrogateescape", newline="\n")


def _check_file(path: str, entry: FileEntry, compare_hash: bool) -> None:
    size_bytes = os.stat(path).st_size
    if size_bytes != entry.size_bytes:
        raise OpsError(f"File {path}", f"it has {size_bytes} bytes, the manifest says {entry.size_bytes}", ADVICE)
    if compare_hash:
        check_hash(path, hash_file(path), entry)


def read_labels(root: str, manifest: Manifest) -> dict[str, str]:
    """Return the classes of labels.tsv in the order of their labels, with their words.

    Raises OpsError where it is no such file.
    """
    path = os.path.join(root, LABELS_NAME)
    classes: list[str] = []
    words: list[str] = []
    with open_text(path) as file:
        for index, line in enumerate(file):
            fields = line.rstrip("\n").split("\t")
            if len(fields) != 3 or fields[0] != str(index):
                raise OpsError(f"File {path}, line {index + 1}", f"it is no label {index}: {line[:80]!r}", ADVICE)
            classes.append(fields[1])
            words.append(fields[2])
    by_file = manifest.settings.get("label_order") == "file"
    if len(classes) != manifest.classes or (sorted(classes) if by_file else classes) != sorted(set(classes)):
        order = "" if by_file else " in sorted order"
        raise OpsError(f"File {path}", f"it does not hold {manifest.classes} classes{order}", ADVICE)
    return dict(zip(classes, words))


def _verify_split(
    manifest: Manifest,
    name: str,
    folder: str,
    classes: Sequence[str],
    full: bool,
    decode_samples: int,
    decode: Decode,
) -> int:
    """Verify all shards of a split and return how many images were decoded."""
    split = manifest.splits[name]
    wanted = _choose(split.records, decode_samples, manifest.sha256)
    counts: Counter[str] = Counter()
    index_of = {name: index for index, name in enumerate(classes)}
    content = Content() if full and split.content_sha256 else None
    records = decoded = 0
    for stem in file_stems(name, manifest.settings.get("shards", 1)):
        entry = split.files[f"{stem}.rec"]
        shard = _ShardVerifier(os.path.join(folder, stem), entry, records, index_of, full, counts, decode, content)
        decoded += shard.run(wanted)
        records += shard.records
    if records != split.records:
        why = f"its lists have {records} lines, the manifest says {split.records}"
        raise OpsError(f"Split {name} in {folder}", why, ADVICE)
    if content:
        content.check(split.content_sha256, f"Split {name} in {folder}")
    odd = [f"{name} ({counts[name]}, not {count})" for name, count in split.classes.items() if counts[name] != count]
    if odd:
        why = f"{len(odd)} classes do not have the records that the manifest says: {', '.join(odd[:SAMPLES])}"
        raise OpsError(f"Split {name}", why, ADVICE)
    return decoded


class _ShardVerifier:
    """Verifies one .rec with its .idx and .lst, those with the path ``stem``.

    ``rec_entry`` is what the manifest says of the .rec, ``first_place`` the place of its first record in the split.
    ``index_of`` has the label of each class, ``counts`` is where the records of each class are counted, ``full`` and
    ``decode`` are as in `verify_dataset`. ``content`` gets every record, if it is given. After `run`, ``records`` is
    how many there are.
    """

    def __init__(
        self,
        stem: str,
        rec_entry: FileEntry,
        first_place: int,
        index_of: Mapping[str, int],
        full: bool,
        counts: Counter[str],
        decode: Decode,
        content: Content | None,
    ) -> None:
        self._rec, self._idx, self._lst = (f"{stem}.{suffix}" for suffix in SUFFIXES)
        self._rec_entry = rec_entry
        self._first_place = first_place
        self._index_of = index_of
        self._full = full
        self._counts = counts
        self._decode = decode
        self._content = content
        self.records = 0

    def run(self, wanted: Container[int]) -> int:
        """Verify and decode the records at the places ``wanted`` of the split; return how many these were."""
        decoded = 0
        raw: BinaryIO | _HashingFile
        raw = _HashingFile(self._rec) if self._full else open(self._rec, "rb", buffering=0)  # noqa: SIM115 (closing, below)
        with closing(raw), io.BufferedReader(raw, _BUFFER_BYTES) as file:
            reader = RecordReader(file, self._rec)
            with closing(ordered_map(self._decode_all, self._chunks(reader, wanted), usable_processors())) as chunks:
                decoded = sum(chunks)
            if isinstance(raw, _HashingFile):
                check_hash(self._rec, raw.sha256.hexdigest(), self._rec_entry)
        return decoded

    def _chunks(self, reader: RecordReader, wanted: Container[int]) -> Iterator[list[tuple[_Entry, ImageRecord]]]:
        """Check the records, all or the ``wanted`` ones, and yield the wanted ones for decoding."""
        chunk = []
        for entry in self._entries():
            is_wanted = self._first_place + entry.place in wanted
            if not self._full and not is_wanted:
                continue
            record = self._read(reader, entry)
            if self._content:
                self._content.add(Sample(record.record_id, int(record.label), entry.line.path, record.image))
            if is_wanted:
                chunk.append((entry, record))
                if len(chunk) == _CHUNK_IMAGES:
                    yield chunk
                    chunk = []
        yield chunk

    def _read(self, reader: RecordReader, entry: _Entry) -> ImageRecord:
        """Return the record of ``entry`` after comparing place, id and label."""
        if reader.offset != entry.begin:
            reader.seek(entry.begin)
        data = reader.read()
        try:
            record = parse_image_data(data or b"")
        except ValueError as error:
            raise self._error(entry, str(error)) from error
        if reader.offset != entry.end:
            raise self._error(entry, f"it ends at byte {reader.offset}, {self._idx} says {entry.end}")
        if record.record_id != entry.line.record_id:
            raise self._error(entry, f"it has the id {record.record_id}, {self._idx} says {entry.line.record_id}")
        if record.label != entry.line.label:
            raise self._error(entry, f"it has the label {record.label:g}, {self._lst} says {entry.line.label:g}")
        return record

    def _decode_all(self, chunk: list[tuple[_Entry, ImageRecord]]) -> int:
        """Decode the images of some records and return their number; runs in the threads."""
        for entry, record in chunk:
            reason = self._decode(record.image)
            if reason:
                raise self._error(entry, f"its image ({entry.line.path}) cannot be decoded: {reason}")
        return len(chunk)

    def _entries(self) -> Iterator[_Entry]:
        """Yield what index and list say of each record, after comparing the two."""
        with ExitStack() as stack:
            idx, lst = (stack.enter_context(open_text(path)) for path in (self._idx, self._lst))
            begins = itertools.chain(self._index_lines(idx), [(-1, self._rec_entry.size_bytes)])
            record_id, begin = next(begins)
            place = 0
            for place, text in enumerate(lst, 1):
                line = parse_list_line(text, f"File {self._lst}, line {place}")
                if record_id != line.record_id:
                    found = "has ended" if record_id < 0 else f"has the id {record_id}"
                    why = f"the list has the id {line.record_id}, the index {found}"
                    raise OpsError(f"File {self._idx}, line {place}", why, ADVICE)
                self._check_label(line, place)
                next_id, end = next(begins)
                if end <= begin:
                    why = f"the record at byte {begin} cannot be followed by one at byte {end}"
                    raise OpsError(f"File {self._idx}, line {place + 1}", why, ADVICE)
                yield _Entry(place - 1, line, begin, end)
                record_id, begin = next_id, end
            if record_id >= 0:
                raise OpsError(f"File {self._idx}, line {place + 1}", "the list has no such line", ADVICE)
            self.records = place

    def _index_lines(self, file: Iterator[str]) -> Iterator[tuple[int, int]]:
        for number, line in enumerate(file, 1):
            try:
                record_id, offset = line.split("\t")
                values = int(record_id), int(offset)
            except ValueError as error:
                why = f"it does not hold an id and an offset: {line[:80]!r}"
                raise OpsError(f"File {self._idx}, line {number}", why, ADVICE) from error
            if values[1] > self._rec_entry.size_bytes:
                why = f"no record begins at {offset.strip()[:40]}: {self._rec} has {self._rec_entry.size_bytes} bytes"
                raise OpsError(f"File {self._idx}, line {number}", why, ADVICE)
            if number == 1 and values[1] != 0:
                raise OpsError(f"File {self._idx}, line 1", f"the first record begins at {values[1]}, not 0", ADVICE)
            yield values

    def _check_label(self, line: ListLine, number: int) -> None:
        """Compare a line's label with the class directory in its path, and count the class."""
        name = line.path.partition("/")[0]
        if self._index_of.get(name) != line.label:
            why = f"the label {line.label:g} is not that of the class in {line.path}"
            raise OpsError(f"File {self._lst}, line {number}", why, ADVICE)
        self._counts[name] += 1

    def _error(self, entry: _Entry, why: str) -> OpsError:
        return OpsError(f"Record file {self._rec}, record {entry.place} at byte {entry.begin}", why, ADVICE)


def _choose(records: int, samples: int, seed: str) -> Container[int]:
    """Return the places of ``samples`` records, one in each of as many equal stretches; all if negative."""
    if samples < 0 or samples >= records:
        return range(records)
    generator = random.Random(seed)  # noqa: S311 (the same sample each time, not a secret)
    stretches = ((number * records // samples, (number + 1) * records // samples) for number in range(samples))
    return {generator.randrange(begin, end) for begin, end in stretches}
