"""The manifest: what a packed data set is made of and from. Its SHA-256 is the identity of the data set.

It holds no time, host or path, so the same archives with the same settings and tools give the same manifest everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import canonical_json
from ansible.module_utils.imagenet_ops.core.state_file import fits, natural
from ansible.module_utils.imagenet_ops.download.verified import VerifiedArchive

SUFFIXES = ("rec", "idx", "lst")

MANIFEST_FORMAT = 1
ENGINE_VERSION = "1"  # goes up when the same images and settings would give other bytes than before
MANIFEST_NAME = "manifest.json"
LABELS_NAME = "labels.tsv"
RECORD_FOLDER = "recordio"
ARCHIVE_FOLDER = "archives"
VERSION_DIGITS = 12
MAX_SHARDS = 99_999  # that five digits can name
# Which files belong to which content, by the beginning of their path; the manifest describes the records.
CONTENTS = {
    "all": (ARCHIVE_FOLDER, RECORD_FOLDER, LABELS_NAME),
    "records": (RECORD_FOLDER, LABELS_NAME),
    "archives": (ARCHIVE_FOLDER,),
}


def file_stems(split: str, shards: int) -> list[str]:
    """Return the names, without .rec, .idx and .lst, of the files of a split: its own, or one for each shard."""
    if shards == 1:
        return [split]
    return [f"{split}-{shard:05d}-of-{shards:05d}" for shard in range(shards)]


class FileEntry(NamedTuple):
    """A file of the data set by its size and its SHA-256 in hex."""

    size_bytes: int
    sha256: str


class ArchiveEntry(NamedTuple):
    """An archive that a data set was made from: size, and MD5 and SHA-256 in hex."""

    size_bytes: int
    md5: str
    sha256: str


class SplitEntry(NamedTuple):
    """A split: ``classes`` has the number of records of each class, ``files`` the .rec, .idx and .lst by name.

    ``converted`` counts what was not a colour JPEG ("cmyk", "grey", "png"), ``bad_images`` has the reason by path.
    """

    records: int
    classes: Mapping[str, int]
    converted: Mapping[str, int]
    bad_images: Mapping[str, str]
    files: Mapping[str, FileEntry]


class Manifest(NamedTuple):
    """A manifest that was read: its parts, and ``sha256``, that of the file's bytes."""

    dataset: str
    settings: dict[str, Any]
    labels: FileEntry
    classes: int
    splits: dict[str, SplitEntry]
    sha256: str
    archives: dict[str, ArchiveEntry]

    def files(self, content: str = "all") -> dict[str, FileEntry]:
        """Return the files of ``content`` (a key of `CONTENTS`) besides the manifest, by their path below the root."""
        archives = {
            f"{ARCHIVE_FOLDER}/{name}": FileEntry(archive.size_bytes, archive.sha256)
            for name, archive in self.archives.items()
        }
        records = {
            f"{RECORD_FOLDER}/{name}": entry for split in self.splits.values() for name, entry in split.files.items()
        }
        files = {LABELS_NAME: self.labels, **archives, **records}
        return {path: entry for path, entry in files.items() if path.partition("/")[0] in CONTENTS[content]}

    @property
    def dataset_version(self) -> str:
        """The short name of the identity, as in tags and object keys."""
        return self.sha256[:VERSION_DIGITS]


def labels_tsv(classes: Sequence[str], words: Mapping[str, str]) -> bytes:
    """Return labels.tsv: a line ``index<tab>WNID<tab>words`` for each class; ``words`` may lack some."""
    return "".join(f"{index}\t{name}\t{words.get(name, '')}\n" for index, name in enumerate(classes)).encode()


def build_manifest(
    dataset: str,
    settings: Mapping[str, Any],
    opencv_version: str,
    archives: Sequence[VerifiedArchive],
    labels: FileEntry,
    classes: int,
    splits: Mapping[str, SplitEntry],
) -> bytes:
    """Return the bytes of manifest.json: canonical JSON."""
    return canonical_json(
        {
            "format": MANIFEST_FORMAT,
            "dataset": dataset,
            "settings": dict(settings),
            "tools": {"opencv": opencv_version, "imagenet_ops": ENGINE_VERSION},
            "archives": [
                {
                    "name": archive.name,
                    "size_bytes": archive.size_bytes,
                    "md5": archive.md5,
                    "sha256": archive.sha256,
                }
                for archive in sorted(archives, key=lambda archive: archive.name)
            ],
            "labels": {**labels._asdict(), "classes": classes},
            "splits": {name: _split_value(split) for name, split in splits.items()},
        }
    )


def _split_value(split: SplitEntry) -> dict[str, Any]:
    return {
        "records": split.records,
        "classes": dict(split.classes),
        "converted": dict(split.converted),
        "bad_images": [{"name": name, "reason": reason} for name, reason in sorted(split.bad_images.items())],
        "files": {name: file._asdict() for name, file in split.files.items()},
    }


def read_manifest(root: str) -> Manifest:
    """Return the manifest of the data set in ``root``; raises OpsError where there is none, or none of this format."""
    path = os.path.join(root, MANIFEST_NAME)
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise OpsError(
            f"Manifest {path}",
            f"it cannot be read ({error.strerror})",
            "Pack the data set (recordio_pack writes the manifest last), or check that the right volume is mounted",
        ) from error
    return parse_manifest(content, path)


def parse_manifest(content: bytes, path: str) -> Manifest:
    """Return what the bytes of a manifest say; raises OpsError, which names ``path``, where they are none."""
    try:
        value = json.loads(content)
        _check_format(value["format"])
        labels = value["labels"]
        manifest = Manifest(
            dataset=value["dataset"],
            settings=value["settings"],
            labels=FileEntry(labels["size_bytes"], labels["sha256"]),
            classes=labels["classes"],
            splits={name: _split_entry(split) for name, split in value["splits"].items()},
            sha256=hashlib.sha256(content).hexdigest(),
            archives={
                archive["name"]: ArchiveEntry(archive["size_bytes"], archive["md5"], archive["sha256"])
                for archive in value["archives"]
            },
        )
        _refuse_impossible_values(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OpsError(
            f"Manifest {path}",
            f"it is not a manifest of format {MANIFEST_FORMAT} ({type(error).__name__}: {error})",
            "Restore it from the backup, or pack the data set again",
        ) from error
    _refuse_files_elsewhere(manifest, path)
    return manifest


def _refuse_files_elsewhere(manifest: Manifest, where: str) -> None:
    for path in manifest.files():
        if os.path.normpath(path) != path or path.count("/") > 1 or "\0" in path:
            raise OpsError(
                f"Manifest {where}",
                f"it names a file outside of the data set: {path!r}",
                "Do not use this manifest; it was not written by recordio_pack",
            )


def _check_format(number: object) -> None:
    if number != MANIFEST_FORMAT:
        raise ValueError(f"its format is {number}")


def _refuse_impossible_values(manifest: Manifest) -> None:
    """Raise ValueError where a part of ``manifest`` is of another kind."""
    shards = manifest.settings.get("shards", 1) if isinstance(manifest.settings, dict) else 0
    is_sound = {
        "dataset": fits(manifest.dataset, str),
        "settings": natural(shards) and 1 <= shards <= MAX_SHARDS,
        "labels": _is_entry(manifest.labels) and natural(manifest.classes),
        "archives": all(isinstance(name, str) for name in manifest.archives)
        and all(map(_is_entry, manifest.archives.values())),
        "splits": all(map(_is_split, manifest.splits.values())),
    }
    for name, is_right in is_sound.items():
        if not is_right:
            raise ValueError(f"its field {name} has an impossible value")


def _is_split(split: SplitEntry) -> bool:
    counts = {str: natural}
    return (
        natural(split.records)
        and fits(split.classes, counts)
        and fits(split.converted, counts)
        and fits(split.bad_images, {str: str})
        and all(map(_is_entry, split.files.values()))
    )


def _is_entry(entry: FileEntry | ArchiveEntry) -> bool:
    return natural(entry.size_bytes) and all(isinstance(digest, str) for digest in entry[1:])


def _split_entry(value: dict[str, Any]) -> SplitEntry:
    return SplitEntry(
        records=value["records"],
        classes=value["classes"],
        converted=value["converted"],
        bad_images={image["name"]: image["reason"] for image in value["bad_images"]},
        files={name: FileEntry(file["size_bytes"], file["sha256"]) for name, file in value["files"].items()},
    )
