"""The manifest: what a packed data set is made of and from. Its SHA-256 is the identity of the data set.

It holds no time, host or path, so the same archives with the same settings and tools give the same manifest everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import canonical_json
from ansible.module_utils.imagenet_ops.core.state_file import fits, natural

SUFFIXES = ("rec", "idx", "lst")

MANIFEST_FORMAT = 1
ENGINE_VERSION = "1"  # goes up when the same images and settings would give other bytes than before
MANIFEST_NAME = "manifest.json"
LABELS_NAME = "labels.tsv"
RECORD_FOLDER = "recordio"
ARCHIVE_FOLDER = "archives"
VERSION_DIGITS = 12
# What a user may ask for; the records are those of all formats, with labels.tsv.
CONTENTS = ("all", "records", "archives")
MAX_SHARDS = 99_999  # that five digits can name


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
    ``content_sha256`` is over all images in their order and equal for all formats (`formats.format.content_lines`);
    "" in a data set that has RecordIO alone.
    ``left_out`` has the ``count`` and a few ``samples`` of other things that are no records: files that are no images
    by their names.
    """

    records: int
    classes: Mapping[str, int]
    converted: Mapping[str, int]
    bad_images: Mapping[str, str]
    files: Mapping[str, FileEntry]
    content_sha256: str = ""
    left_out: Mapping[str, Any] = MappingProxyType({})


class FormatEntry(NamedTuple):
    """The files of a format besides RecordIO, by path below its folder.

    ``shards`` has path and number of records of the shards of each split, in their order; ``files`` are the shards and
    what belongs to one each, ``index_files`` describe all of it.
    """

    shards: Mapping[str, Sequence[tuple[str, int]]]
    files: Mapping[str, FileEntry]
    index_files: Mapping[str, FileEntry]


class Manifest(NamedTuple):
    """A manifest that was read: its parts, and ``sha256``, that of the file's bytes."""

    dataset: str
    settings: dict[str, Any]
    labels: FileEntry
    classes: int
    splits: dict[str, SplitEntry]
    sha256: str
    archives: dict[str, ArchiveEntry]
    formats: dict[str, FormatEntry]
    tools: dict[str, str]

    def files(self, content: str = "all", formats: Collection[str] = ()) -> dict[str, FileEntry]:
        """Return the files of ``content`` (one of `CONTENTS`) besides the manifest, by their path below the root.

        Records are those of all formats, or of ``formats`` if there are any.
        """
        archives = {
            f"{ARCHIVE_FOLDER}/{name}": FileEntry(archive.size_bytes, archive.sha256)
            for name, archive in self.archives.items()
        }
        records = {
            f"{RECORD_FOLDER}/{name}": entry for split in self.splits.values() for name, entry in split.files.items()
        }
        for name, made in self.formats.items():
            records.update({f"{name}/{path}": entry for path, entry in {**made.files, **made.index_files}.items()})
        if content == "archives":
            return archives
        if formats:
            records = {path: entry for path, entry in records.items() if path.partition("/")[0] in formats}
        return {LABELS_NAME: self.labels, **(archives if content == "all" else {}), **records}

    @property
    def format_names(self) -> list[str]:
        """The names of the formats that the data set has, sorted."""
        return list(self.settings.get("formats", [RECORD_FOLDER]))

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
    archives: Mapping[str, ArchiveEntry],
    labels: FileEntry,
    classes: int,
    splits: Mapping[str, SplitEntry],
    *,
    formats: Mapping[str, FormatEntry],
    tools: Mapping[str, str],
) -> bytes:
    """Return the bytes of manifest.json: canonical JSON.

    ``tools`` are the versions of libraries that the formats besides RecordIO are made with. A data set that has
    RecordIO alone gets the manifest that it got before there were others, so that its version stays.
    """
    others = {"formats": {name: _format_value(made) for name, made in formats.items()}} if formats else {}
    return canonical_json(
        {
            **others,
            "format": MANIFEST_FORMAT,
            "dataset": dataset,
            "settings": dict(settings),
            "tools": {"opencv": opencv_version, "imagenet_ops": ENGINE_VERSION, **tools},
            "archives": [{"name": name, **archive._asdict()} for name, archive in sorted(archives.items())],
            "labels": {**labels._asdict(), "classes": classes},
            "splits": {name: _split_value(split) for name, split in splits.items()},
        }
    )


def _split_value(split: SplitEntry) -> dict[str, Any]:
    # What earlier versions lack stands here only where there is something, so that other data sets keep their identity.
    return {
        "records": split.records,
        "classes": dict(split.classes),
        "converted": dict(split.converted),
        "bad_images": [{"name": name, "reason": reason} for name, reason in sorted(split.bad_images.items())],
        "files": {name: file._asdict() for name, file in split.files.items()},
        **({"content_sha256": split.content_sha256} if split.content_sha256 else {}),
        **({"left_out": dict(split.left_out)} if split.left_out else {}),
    }


def _format_value(made: FormatEntry) -> dict[str, Any]:
    return {
        "shards": {
            split: [{"name": name, "records": records} for name, records in shards]
            for split, shards in made.shards.items()
        },
        "files": {name: file._asdict() for name, file in made.files.items()},
        "index_files": {name: file._asdict() for name, file in made.index_files.items()},
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
            formats={name: _format_entry(made) for name, made in value.get("formats", {}).items()},
            tools=value["tools"],
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
        # Archives and RecordIO have no folders, other formats do.
        is_deep = path.count("/") > 1 and path.partition("/")[0] in (ARCHIVE_FOLDER, RECORD_FOLDER)
        if os.path.normpath(path) != path or path.startswith(("/", "..")) or "\0" in path or is_deep:
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
        "formats": isinstance(manifest.settings, dict)
        and fits(manifest.format_names, [str])
        and all(map(_is_format, manifest.formats.values())),
        "tools": fits(manifest.tools, {str: str}),
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
        and isinstance(split.content_sha256, str)
        and fits(split.left_out, {str: {"count": natural, "samples": [str]}})
    )


def _is_format(made: FormatEntry) -> bool:
    shards = [shard for of in made.shards.values() for shard in of]
    return (
        all(isinstance(name, str) and natural(records) for name, records in shards)
        and {name for name, _ in shards} <= made.files.keys()
        and all(map(_is_entry, [*made.files.values(), *made.index_files.values()]))
    )


def _is_entry(entry: FileEntry | ArchiveEntry) -> bool:
    return natural(entry.size_bytes) and all(isinstance(digest, str) for digest in entry[1:])


def _split_entry(value: dict[str, Any]) -> SplitEntry:
    return SplitEntry(
        records=value["records"],
        classes=value["classes"],
        converted=value["converted"],
        bad_images={image["name"]: image["reason"] for image in value["bad_images"]},
        files=_file_entries(value["files"]),
        content_sha256=value.get("content_sha256", ""),
        left_out=value.get("left_out", {}),
    )


def _format_entry(value: dict[str, Any]) -> FormatEntry:
    return FormatEntry(
        shards={
            split: [(shard["name"], shard["records"]) for shard in shards] for split, shards in value["shards"].items()
        },
        files=_file_entries(value["files"]),
        index_files=_file_entries(value["index_files"]),
    )


def _file_entries(value: dict[str, Any]) -> dict[str, FileEntry]:
    return {name: FileEntry(file["size_bytes"], file["sha256"]) for name, file in value.items()}
