"""The record of a verified archive: written by archive_fetch, read by whoever says which archives data came from."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from ansible.module_utils.imagenet_ops.core.files import fsync_directory
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile, hexadecimal, natural

_RECORD = Kind(
    "archive_fetch record of a verified archive",
    1,
    {"name": str, "size_bytes": natural, "mtime_ns": int, "md5": hexadecimal(32), "sha256": hexadecimal(64)},
    todo="Remove it and run archive_fetch again; an archive that is already there is hashed, not downloaded",
)


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
    StateFile(_record_path(state_dir, archive.name), _RECORD).write(asdict(archive))


def read_verified(state_dir: str) -> list[VerifiedArchive]:
    """Return every verified archive of ``state_dir``, sorted by name; an empty list where none was verified yet.

    Raises OpsError for a record that is not one of ours.
    """
    try:
        entries = os.listdir(_directory(state_dir))
    except FileNotFoundError:
        return []
    names = sorted(entry[: -len(".json")] for entry in entries if entry.endswith(".json"))
    return [archive for name in names if (archive := read_record(state_dir, name)) is not None]


def read_record(state_dir: str, name: str) -> VerifiedArchive | None:
    """Return the record of archive ``name``, or None where it has none, whatever became of its file since.

    Raises OpsError for a record that is not one of ours.
    """
    file = StateFile(_record_path(state_dir, name), _RECORD)
    found = file.read()
    if found is not None and found["name"] != name:
        file.discard(f"it is the record of {found['name']}")
    return None if found is None else VerifiedArchive(**found)


def find_verified(state_dir: str, path: str) -> VerifiedArchive | None:
    """Return the record of the archive at ``path``, or None where it has none or was touched since (size, mtime).

    Raises OpsError for a record that is not one of ours.
    """
    archive = read_record(state_dir, os.path.basename(path))
    if archive is None:
        return None
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    unchanged = (status.st_size, status.st_mtime_ns) == (archive.size_bytes, archive.mtime_ns)
    return archive if unchanged else None
