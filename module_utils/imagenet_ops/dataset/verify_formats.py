"""Holds the shards of the formats besides RecordIO against the manifest, by the readers of the formats.

``sizes`` has compared the size of every file before; here the small files are hashed and the first records of some
shards read, spread evenly. ``full`` reads every record, compares every SHA-256, and computes the hash over the content
of each split again, which is equal for all formats. Memory does not grow with the data set.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Callable

from ansible.module_utils.imagenet_ops.core.concurrency import ordered_map, usable_processors
from ansible.module_utils.imagenet_ops.core.errors import SAMPLES, OpsError
from ansible.module_utils.imagenet_ops.core.hashing import hash_file
from ansible.module_utils.imagenet_ops.dataset.manifest import FileEntry, Manifest
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Format, Sample, content_lines, entry_of

# Returns why an image does not decode, or "". It may kill what decodes it, so that it is not done here.
Decode = Callable[[bytes], str]
ADVICE = "Restore it from the backup, create the volume again from a snapshot, or pack the data set again"
_CHUNK_IMAGES = 32


def check_hash(path: str, sha256: str, entry: FileEntry) -> None:
    """Compare the SHA-256 of a file with the manifest. Raises OpsError."""
    if sha256 != entry.sha256:
        raise OpsError(f"File {path}", f"its SHA-256 is {sha256}, the manifest says {entry.sha256}", ADVICE)


class Content:
    """Computes the ``content_sha256`` of a split from its records (`content_lines`)."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, sample: Sample) -> None:
        """Add the next record."""
        self._digest.update(b"".join(content_lines([entry_of(sample)])))

    def check(self, expected: str, what: str) -> None:
        """Compare with the hash that is ``expected``. Raises OpsError about ``what``."""
        found = self._digest.hexdigest()
        if found != expected:
            raise OpsError(what, f"content_sha256 is {found}, the manifest says {expected}", ADVICE)


class FormatVerifier:
    """Verifies the shards of the format ``form`` in the data set in ``root``, of which ``info`` and ``manifest`` tell.

    ``decode`` is as in `verify_dataset`.
    """

    def __init__(self, form: Format, root: str, manifest: Manifest, info: DatasetInfo, decode: Decode) -> None:
        self._form = form
        self._folder = os.path.join(root, form.name)
        self._manifest = manifest
        self._made = manifest.formats[form.name]
        self._info = info
        self._decode = decode

    def run(self, full: bool, decode_samples: int) -> int:
        """Verify all splits and return how many images were decoded; see `verify_dataset`. Raises OpsError, OSError."""
        shards = {name for of in self._made.shards.values() for name, _ in of}
        for name, entry in {**self._made.files, **self._made.index_files}.items():
            if name not in shards:
                self._check_hash(name, entry)
        if not self._form.can_read():
            for name in shards:
                self._form.check_frame(os.path.join(self._folder, name))
                if full:
                    self._check_hash(name, self._made.files[name])
            return 0
        return sum(self._verify_split(split, full, decode_samples) for split in self._made.shards)

    def _check_hash(self, name: str, entry: FileEntry) -> None:
        path = os.path.join(self._folder, name)
        check_hash(path, hash_file(path), entry)

    def _verify_split(self, split: str, full: bool, decode_samples: int) -> int:
        shards = self._made.shards[split]
        entry = self._manifest.splits[split]
        records = sum(count for _, count in shards)
        if records != entry.records:
            why = f"its shards have {records} records, the split has {entry.records}"
            raise OpsError(f"Split {split} of {self._form.name} in the manifest", why, ADVICE)
        wanted = records if decode_samples < 0 else min(decode_samples, records)
        if full:
            return self._decode_all(self._choose(self._read_all(split, shards), wanted, records))
        return self._decode_all(self._heads(shards, wanted))

    def _read_all(self, split: str, shards: Sequence[tuple[str, int]]) -> Iterator[Sample]:
        """Yield every sample of a split, and compare what they make with the manifest."""
        entry = self._manifest.splits[split]
        counts: Counter[str] = Counter()
        content = Content()
        for name, records in shards:
            path = os.path.join(self._folder, name)
            # First, so that the reader finds the shard in the page cache.
            self._check_hash(name, self._made.files[name])
            found = 0
            for sample in self._form.read(path, self._info):
                found += 1
                counts[sample.name.partition("/")[0]] += 1
                content.add(sample)
                yield sample
            if found != records:
                raise OpsError(f"Shard {path}", f"it has {found} records, the manifest says {records}", ADVICE)
        odd = [
            f"{name} ({counts[name]}, not {count})" for name, count in entry.classes.items() if counts[name] != count
        ]
        if odd:
            why = f"{len(odd)} classes do not have the records that the manifest says: {', '.join(odd[:SAMPLES])}"
            raise OpsError(f"Split {split} of {self._form.name}", why, ADVICE)
        content.check(entry.content_sha256, f"Split {split} of {self._form.name}")

    def _heads(self, shards: Sequence[tuple[str, int]], wanted: int) -> Iterator[Sample]:
        """Yield the first samples of some shards, as many from each."""
        holding = [(name, records) for name, records in shards if records]
        chosen = min(len(holding), wanted)
        for number in range(chosen):
            name, records = holding[number * len(holding) // chosen]
            share = (number + 1) * wanted // chosen - number * wanted // chosen
            samples = self._form.read(os.path.join(self._folder, name), self._info)
            yield from itertools.islice(samples, min(share, records))

    @staticmethod
    def _choose(samples: Iterable[Sample], wanted: int, records: int) -> Iterator[Sample]:
        """Read all of ``samples`` and yield ``wanted`` of the ``records``, spread evenly."""
        for place, sample in enumerate(samples):
            if place * wanted // records != (place + 1) * wanted // records:
                yield sample

    def _decode_all(self, samples: Iterator[Sample]) -> int:
        """Decode images in threads and return their number."""
        chunks = iter(lambda: list(itertools.islice(samples, _CHUNK_IMAGES)), [])
        with closing(ordered_map(self._decode_chunk, chunks, usable_processors())) as decoded:
            return sum(decoded)

    def _decode_chunk(self, samples: Sequence[Sample]) -> int:
        for sample in samples:
            reason = self._decode(bytes(sample.image))
            if reason:
                why = f"the image {sample.name} cannot be decoded: {reason}"
                raise OpsError(f"Shards of {self._form.name} in {self._folder}", why, ADVICE)
        return len(samples)
