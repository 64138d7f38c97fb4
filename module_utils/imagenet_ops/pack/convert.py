"""Adds formats to a packed data set, from the records that are there, without decoding an image.

The result is the data set that packing all formats at once would have made, to the last byte of the manifest. The files
that are there are not touched, and the manifest is replaced when the new ones are complete.
"""

from __future__ import annotations

import itertools
import os
import random
from array import array
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable

from ansible.module_utils.imagenet_ops.core.concurrency import ordered_map, usable_processors
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import exclusive
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.dataset.manifest import (
    MANIFEST_NAME,
    RECORD_FOLDER,
    Manifest,
    build_manifest,
    file_stems,
    read_manifest,
)
from ansible.module_utils.imagenet_ops.dataset.verify import read_labels, unreadable_files
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Format, Sample
from ansible.module_utils.imagenet_ops.formats.lst import read_list
from ansible.module_utils.imagenet_ops.formats.recordio import image_record_bytes
from ansible.module_utils.imagenet_ops.formats.registry import FORMATS
from ansible.module_utils.imagenet_ops.pack.describe import (
    describe_formats,
    format_key,
    refuse_names,
    split_entry,
    tools_of,
    write_if_different,
)
from ansible.module_utils.imagenet_ops.pack.listing import LeftOut
from ansible.module_utils.imagenet_ops.pack.stream import EntryFile, output_file
from ansible.module_utils.imagenet_ops.pack.tree_source import RecordBatch, encoded_batch
from ansible.module_utils.imagenet_ops.pack.writer import FinishedSplit, Outputs, Packed, SplitPacker

_BATCH_IMAGES = 32
_BATCH_BYTES = 8 * 1024 * 1024
_SOURCES = ("recordio", "mds", "webdataset", "tfrecord", "parquet")  # those that hold the ids come first
_ADVICE = "Restore it from the backup, or pack the data set again"


@dataclass(frozen=True)
class ConvertRequest:
    """What the module dataset_convert is asked for; the fields are its options.

    ``shard_bytes`` is as in `PackRequest`. ``source`` "" is the first of the formats that are there. ``workers`` 0
    means all processors that may be used.
    """

    root: str
    state_dir: str
    formats: Sequence[str]
    shard_bytes: int = 256 * 1024 * 1024
    source: str = ""
    workers: int = 0


def convert_dataset(request: ConvertRequest, check: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Add the formats of ``request`` and return the result of the module dataset_convert; ``check`` writes nothing.

    What an interrupted run made is kept. Raises OpsError.
    """
    with unreadable_files(request.root):
        manifest = read_manifest(request.root)
        _validate(request, manifest)
        formats = sorted({*manifest.format_names, *request.formats})
        before = {"dataset_version": manifest.dataset_version, "formats": manifest.format_names}
        if formats == manifest.format_names:
            return _result(manifest, before, before)
        if check:
            return _result(manifest, before, {"dataset_version": "", "formats": formats})
        os.makedirs(request.state_dir, exist_ok=True)
        # The lock of packing: the two never work on one data set at the same time.
        with exclusive(os.path.join(request.state_dir, "recordio_pack.lock")):
            progress = Progress(request.state_dir, "dataset_convert")
            converted = _convert(request, manifest, formats, progress, warn)
            progress.finish()
        after = {"dataset_version": converted.dataset_version, "formats": converted.format_names}
        return _result(converted, before, after)


def _result(manifest: Manifest, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "changed": before != after,
        **after,
        "records": {name: split.records for name, split in manifest.splits.items()},
        "diff": {"before": dict(before), "after": dict(after)},
    }


def _validate(request: ConvertRequest, manifest: Manifest) -> None:
    present_bytes = manifest.settings.get("shard_bytes", request.shard_bytes)
    faults = [
        (not request.formats, "formats is empty"),
        (
            any(name not in FORMATS for name in request.formats),
            f"formats is {', '.join(request.formats)}, they must be of {', '.join(FORMATS)}",
        ),
        (request.shard_bytes < 0, "shard_mib must be 0 (by number) or more"),
        (
            bool(request.source) and request.source not in manifest.format_names,
            f"source is {request.source}, and the data set has {', '.join(manifest.format_names)}",
        ),
        (
            present_bytes != request.shard_bytes,
            f"shard_mib is {request.shard_bytes >> 20}, and {present_bytes >> 20} in the formats that are there",
        ),
    ]
    for is_fault, text in faults:
        if is_fault:
            raise OpsError("Options of dataset_convert", text, "Correct it and rerun")


def _convert(
    request: ConvertRequest,
    manifest: Manifest,
    formats: Sequence[str],
    progress: Progress,
    warn: Callable[[str], None],
) -> Manifest:
    """Make what the data set lacks of ``formats``, and the manifest that has all of them; return it."""
    words = read_labels(request.root, manifest)
    info = DatasetInfo(manifest.dataset, list(words), words, request.shard_bytes)
    source = FORMATS[request.source or next(name for name in _SOURCES if name in manifest.format_names)]
    added = [name for name in formats if name not in manifest.format_names]
    # What is there was made with the versions that the manifest names.
    before = {tool: version for tool, version in manifest.tools.items() if tool not in ("opencv", "imagenet_ops")}
    tools = {**before, **tools_of(added)}
    key = format_key(formats, request.shard_bytes, tools, manifest.dataset, words)
    finished = {}
    for split in manifest.splits:
        kept = FinishedSplit(split, request.root, request.state_dir, warn)
        kept.finish_renaming()
        packed = kept.read() or _packed(manifest, split, request.root)
        absent = [FORMATS[name] for name in added if name not in _formats_of(packed)]
        if absent:
            listing = _RecordedListing(source, request.root, manifest, split, info, kept.entries_path)
            refuse_names(absent, listing.where, listing.sorted_names)
            outputs = Outputs(absent, info, manifest.settings.get("shards", 1), request.shard_bytes, keeps_entries=True)
            packer = SplitPacker(kept, key, {}, listing, outputs, _Merge(packed, key))
            workers = request.workers or usable_processors()
            packed = packer.pack(_RecordedSource(listing, absent), workers, False, progress, warn)
        finished[split] = packed
    index_files, made = describe_formats(added, info, finished)
    content = build_manifest(
        manifest.dataset,
        {**manifest.settings, "formats": list(formats), "shard_bytes": request.shard_bytes},
        manifest.tools.get("opencv", ""),
        manifest.archives,
        manifest.labels,
        manifest.classes,
        {name: split_entry(packed) for name, packed in finished.items()},
        formats={**manifest.formats, **made},
        tools=tools,
    )
    for path, text in {**index_files, MANIFEST_NAME: content}.items():
        write_if_different(os.path.join(request.root, path), text, check=False)
    return read_manifest(request.root)


def _formats_of(packed: Packed) -> set[str]:
    return {*packed.formats, *([RECORD_FOLDER] if packed.files else [])}


def _packed(manifest: Manifest, split: str, root: str) -> Packed:
    """Return what packing recorded of a split as far as the manifest has it: the state may be on another host."""
    entry = manifest.splits[split]
    images = dict(entry.classes)
    for path in entry.bad_images:
        images[path.partition("/")[0]] += 1
    folder = os.path.join(root, RECORD_FOLDER)
    return Packed(
        key={"shards": manifest.settings.get("shards", 1), "formats": manifest.format_names},
        records=entry.records,
        images=images,
        bad=[[path, reason] for path, reason in entry.bad_images.items()],
        converted=dict(entry.converted),
        files={name: output_file(os.path.join(folder, name), file.sha256) for name, file in entry.files.items()},
        content_sha256=entry.content_sha256,
        left_out=dict(entry.left_out),
    )


class _Merge:
    """Adds what was converted to ``packed``, what was there; ``key`` has the settings of all formats."""

    def __init__(self, packed: Packed, key: Mapping[str, Any]) -> None:
        self._packed = packed
        self._key = key

    def __call__(self, made: Packed) -> Packed:
        """Return the split as if all had been packed at once. Raises OpsError where the content is another."""
        packed = self._packed
        if packed.content_sha256 not in ("", made.content_sha256):
            raise OpsError(
                "Records to convert",
                f"content_sha256 is {made.content_sha256}, the manifest says {packed.content_sha256}",
                _ADVICE,
            )
        return replace(
            packed,
            key={**packed.key, **self._key},
            files=packed.files or made.files,
            formats={**packed.formats, **made.formats},
            content_sha256=made.content_sha256,
        )


class _RecordedListing:
    """The images of a split that is packed, in the order of its records; a `SplitListing`.

    A place is that of an image in the shuffled list, bad images among them, for shards by number begin at places.
    Formats that hold no ids are read once for the names, which give them.
    """

    def __init__(
        self, source: Format, root: str, manifest: Manifest, split: str, info: DatasetInfo, entries_path: str
    ) -> None:
        self.source = source
        self.root = root
        self.where = os.path.join(root, source.name)
        self.left_out: dict[str, LeftOut] = {}
        self._manifest = manifest
        self._split = split
        self._info = info
        self._entries_path = entries_path
        entry = manifest.splits[split]
        self.records = entry.records
        self.bad_images = entry.bad_images
        self.order = array("I", range(entry.records + len(entry.bad_images)))
        if manifest.settings.get("shuffle"):
            random.Random(manifest.settings["shuffle_seed"]).shuffle(self.order)  # noqa: S311 (im2rec.py's order)

    def __len__(self) -> int:
        """Return the number of places."""
        return len(self.order)

    def key(self, places: int) -> dict[str, Any]:  # noqa: ARG002  all places have one source
        """Return what the records are made from."""
        return {"source": self.source.name, "manifest": self._manifest.sha256}

    def counts(self) -> dict[str, int]:
        """Return the number of records of each class."""
        return dict(self._manifest.splits[self._split].classes)

    def lines(self, begin: int, stop: int, left_out: Collection[str]) -> Iterator[bytes]:  # noqa: ARG002  none is bad
        """Yield the lines of a .lst; see `SplitListing`."""
        entries = EntryFile(self._entries_path, 0, self.records)
        for place, entry in zip(self._places(entry.record_id for entry in entries), entries):
            if begin <= place < stop:
                yield f"{entry.record_id}\t{entry.label:f}\t{entry.name}\n".encode()

    def samples(self, begin: int) -> Iterator[tuple[int, Sample]]:
        """Yield place and sample of each record from place ``begin`` on. Raises OpsError and OSError."""
        samples = self._identified(self._read())
        first, second = itertools.tee(samples)
        places = self._places(sample.record_id for sample in first)
        return itertools.dropwhile(lambda found: found[0] < begin, zip(places, second))

    def sorted_names(self) -> Iterator[str]:
        """Yield the names of all records by class; of RecordIO, from its lists. Raises OpsError and OSError."""
        if self.source.name == RECORD_FOLDER:
            lists = (f"{os.path.splitext(path)[0]}.lst" for path in self.shards())
            names = [line.path for path in lists for line in read_list(path)]
        else:
            names = [sample.name for sample in self._read()]
        yield from sorted(names, key=_class_and_file)

    def shards(self) -> list[str]:
        """Return the paths of the shards of the source."""
        if self.source.name == RECORD_FOLDER:
            stems = file_stems(self._split, self._manifest.settings.get("shards", 1))
            names = [f"{stem}.rec" for stem in stems]
        else:
            names = [name for name, _ in self._manifest.formats[self.source.name].shards[self._split]]
        return [os.path.join(self.where, name) for name in names]

    def _read(self) -> Iterator[Sample]:
        for path in self.shards():
            yield from self.source.read(path, self._info)

    def _identified(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """Yield the samples with their ids: the rank of the name in sorted order, as in im2rec.py's list."""
        first = next(samples, None)
        if first is None:
            return
        samples = itertools.chain([first], samples)
        if first.record_id >= 0:
            yield from samples
            return
        names = {*(sample.name for sample in self._read()), *self.bad_images}
        ids = {name: row for row, name in enumerate(sorted(names, key=_class_and_file))}
        for sample in samples:
            yield sample._replace(record_id=ids[sample.name])

    def _places(self, ids: Iterator[int]) -> Iterator[int]:
        """Yield the place of each id; between them are those of bad images. Raises OpsError for another order."""
        place = -1
        for record_id in ids:
            place += 1
            while place < len(self.order) and self.order[place] != record_id:
                place += 1
            if place == len(self.order):
                what = f"Split {self._split} in {self.where}"
                raise OpsError(what, f"the record {record_id} is not where the manifest's settings have it", _ADVICE)
            yield place


def _class_and_file(name: str) -> list[str]:
    """Return what im2rec.py sorts by: classes, and the files of each."""
    return name.split("/")


class _RecordedSource:
    """Makes the records of ``formats`` from those that are there; a `RecordSource`."""

    def __init__(self, listing: _RecordedListing, formats: Sequence[Format]) -> None:
        self._listing = listing
        self._formats = formats

    def batches(self, begin: int, stop: int, workers: int) -> Generator[RecordBatch, None, None]:
        """Yield the records from place ``begin`` on; see `RecordSource`."""
        return ordered_map(self._encode, self._chunks(begin, stop), workers)

    def _chunks(self, begin: int, stop: int) -> Iterator[tuple[int, list[int], list[Sample]]]:
        """Yield places and samples for one thread each, with the place after them."""
        places: list[int] = []
        samples: list[Sample] = []
        size_bytes = 0
        for place, sample in self._listing.samples(begin):
            if len(samples) == _BATCH_IMAGES or size_bytes > _BATCH_BYTES:
                yield place, places, samples
                places, samples, size_bytes = [], [], 0
            places.append(place)
            samples.append(sample)
            size_bytes += len(sample.image)
        yield stop, places, samples

    def _encode(self, chunk: tuple[int, list[int], list[Sample]]) -> RecordBatch:
        return encoded_batch(*chunk, self._formats, with_entries=True)

    def rec_bytes(self) -> int | None:
        """Return about what the .rec files would have: what the shards of the source have."""
        records = self._listing.records
        return sum(map(os.path.getsize, self._listing.shards())) + image_record_bytes(0) * records

    def release(self, place: int) -> None:
        """Do nothing: the source stays."""

    def bad_image(self, path: str, reason: str) -> OpsError:
        """Return the error for a bad image, of which there is none among records."""
        return OpsError(f"Image {path} in {self._listing.where}", reason, _ADVICE)
