"""What the manifest and the index files of the formats say of finished splits."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Callable

from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import canonical_json, write_atomic
from ansible.module_utils.imagenet_ops.dataset.manifest import FileEntry, FormatEntry, SplitEntry
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Format, ShardInfo
from ansible.module_utils.imagenet_ops.formats.recordio import RECORDIO
from ansible.module_utils.imagenet_ops.formats.registry import FORMATS
from ansible.module_utils.imagenet_ops.pack.stream import OutputFile
from ansible.module_utils.imagenet_ops.pack.writer import Packed


def format_settings(formats: Collection[str], shard_bytes: int) -> dict[str, Any]:
    """Return the settings of the formats; none for RecordIO alone, whose manifest stays what it always was."""
    if list(formats) == [RECORDIO.name]:
        return {}
    return {"formats": sorted(formats), "shard_bytes": shard_bytes}


def format_key(
    formats: Collection[str], shard_bytes: int, tools: Mapping[str, str], dataset: str, words: Mapping[str, str]
) -> dict[str, Any]:
    """Return what the bytes of the formats depend on; nothing for RecordIO alone. ``tools`` are as in `tools_of`."""
    settings = format_settings(formats, shard_bytes)
    if not settings:
        return {}
    names = {name: text for name, text in words.items() if text}
    digest = hashlib.sha256(canonical_json([dataset, names])).hexdigest()
    return {**settings, **tools, "dataset": digest}


def tools_of(formats: Collection[str]) -> dict[str, str]:
    """Return the versions of the libraries that the formats are made with. Raises OpsError where one is missing."""
    return {tool: version for name in formats for tool, version in FORMATS[name].tools().items()}


def refuse_names(formats: Iterable[Format], where: str, names: Callable[[], Iterable[str]]) -> None:
    """Raise OpsError where a format cannot hold images of these ``names``, sorted, which are in ``where``."""
    for form in formats:
        why = form.refusal(names())
        if why:
            todo = f"Rename one of them, or leave {form.name} out of data_formats"
            raise OpsError(f"Images of {where}", why, todo)


def split_entry(packed: Packed) -> SplitEntry:
    """Return what the manifest says of a split."""
    bad = Counter(path.split("/")[0] for path, _ in packed.bad)
    return SplitEntry(
        records=packed.records,
        classes={name: count - bad[name] for name, count in packed.images.items()},
        converted=packed.converted,
        bad_images=dict(packed.bad),
        files=_entries(packed.files),
        content_sha256=packed.content_sha256,
        left_out=packed.left_out,
    )


def describe_formats(
    formats: Collection[str], info: DatasetInfo, finished: Mapping[str, Packed]
) -> tuple[dict[str, bytes], dict[str, FormatEntry]]:
    """Return the index files by path below the root, and what the manifest says of each format besides RecordIO."""
    files: dict[str, bytes] = {}
    entries: dict[str, FormatEntry] = {}
    for name in sorted(set(formats) - {RECORDIO.name}):
        made = {split: packed.formats[name] for split, packed in finished.items()}
        shards = {
            split: [
                ShardInfo(path, records, of.files[path].size_bytes, of.files[path].sha256, image_bytes)
                for path, records, image_bytes in of.shards
            ]
            for split, of in made.items()
        }
        index = FORMATS[name].index_files(info, shards)
        files.update({f"{name}/{path}": content for path, content in index.items()})
        entries[name] = FormatEntry(
            shards={split: [(path, records) for path, records, _ in of.shards] for split, of in made.items()},
            files={path: entry for of in made.values() for path, entry in _entries(of.files).items()},
            index_files={
                path: FileEntry(len(content), hashlib.sha256(content).hexdigest()) for path, content in index.items()
            },
        )
    return files, entries


def write_if_different(path: str, content: bytes, check: bool) -> bool:
    """Write a file unless it has this content, and return whether it has not; ``check`` writes nothing."""
    try:
        with open(path, "rb") as file:
            if file.read() == content:
                return False
    except FileNotFoundError:
        pass
    if not check:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_atomic(path, content)
    return True


def _entries(files: Mapping[str, OutputFile]) -> dict[str, FileEntry]:
    return {name: FileEntry(file.size_bytes, file.sha256) for name, file in files.items()}
