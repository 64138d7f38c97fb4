"""The record of a verified archive: written by archive_fetch, read by whoever says which archives data came from."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from typing import Any

from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import fsync_directory, read_json, write_json

# What a record must hold, and as what type: the fields of VerifiedArchive.
_FIELDS = {"name": str, "size_bytes": int, "mtime_ns": int, "md5": str, "sha256": str}


@dataclass(frozen=True)
class VerifiedArchive:
    """An archive whose every byte was hashed: file ``name``, its size, and its MD5 and SHA-256 in lower-case hex.

    ``mtime_ns`` is the modification time that the file had right then; while size and time are unchanged the bytes are
    taken to be unchanged too, as make and rsync do.
    """

    name: str
    size_bytes: int
    mtime_ns: int
    md5: str
    sha256: str


def _directory(state_dir: str) -> str:
    return os.path.join(state_dir, "archives")


def _record_path(state_dir: str, name: str) -> str:
    return os.path.join(_directory(state_dir), f"{name}.json")


def write_verified(state_dir: str, archive: VerifiedArchive) -> None:
    """Keep ``archive`` as ``<state_dir>/archives/<name>.json``, durable when this returns."""
    if not os.path.isdir(_directory(state_dir)):
        os.makedirs(_directory(state_dir), exist_ok=True)
        fsync_directory(state_dir)
    write_json(_record_path(state_dir, archive.name), asdict(archive))


def read_verified(state_dir: str) -> list[VerifiedArchive]:
    """Return every verified archive of ``state_dir``, sorted by name; an empty list where none was verified yet.

    Raises OpsError for a record that is not one of ours.
    """
    try:
        entries = os.listdir(_directory(state_dir))
    except FileNotFoundError:
        return []
    paths = [os.path.join(_directory(state_dir), entry) for entry in entries if entry.endswith(".json")]
    return sorted((_parse(path, read_json(path)) for path in paths), key=lambda archive: archive.name)


def read_record(state_dir: str, name: str) -> VerifiedArchive | None:
    """Return the record of archive ``name``, or None where it has none, whatever became of its file since."""
    path = _record_path(state_dir, name)
    value = read_json(path)
    return None if value is None else _parse(path, value)


def find_verified(state_dir: str, path: str) -> VerifiedArchive | None:
    """Return the record of the archive at ``path``, or None where it has none or was touched since (size, mtime)."""
    archive = read_record(state_dir, os.path.basename(path))
    if archive is None:
        return None
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    unchanged = (status.st_size, status.st_mtime_ns) == (archive.size_bytes, archive.mtime_ns)
    return archive if unchanged else None


def _parse(path: str, value: Any) -> VerifiedArchive:
    """Return the record in ``value``, read from ``path``, or raise OpsError where a field is missing or odd."""
    fields = value if isinstance(value, dict) else {}
    well_typed = set(fields) == set(_FIELDS) and all(isinstance(fields[name], kind) for name, kind in _FIELDS.items())
    hashes_fit = well_typed and re.fullmatch(r"[0-9a-f]{32} [0-9a-f]{64}", "{md5} {sha256}".format(**fields))
    if not hashes_fit or os.path.basename(path) != f"{fields['name']}.json":
        raise OpsError(
            f"Archive record {path}",
            "it does not hold a name, size_bytes, mtime_ns, md5 and sha256 of the archive that it is named after",
            "Remove it and run archive_fetch again; an archive that is already there is hashed, not downloaded",
        )
    return VerifiedArchive(**fields)
