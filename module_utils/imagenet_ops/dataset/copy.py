"""What GPU hosts need of a packed data set, copied to a filesystem of its own that is just large enough.

The snapshot that a fleet's volumes are made of should hold the records and nothing besides: the time and the price of
initialising a volume, and the credits of fast snapshot restore, go by its size. Every file is hashed on the way and
compared with the manifest, and the manifest goes last: where it is, the copy is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterable
from typing import Any, Callable

from ansible.module_utils.imagenet_ops.core.disk import disk_error, require_space
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import exclusive, write_atomic
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.dataset.manifest import (
    MANIFEST_NAME,
    FileEntry,
    read_manifest,
)
from ansible.module_utils.imagenet_ops.download.part_file import PartFile, part_path

_GIB = 1 << 30
_BLOCK_BYTES = 4 << 20
# So much is written between two syncs: what a lost host loses, and small enough that progress is that of the disk.
_SYNC_BYTES = 256 << 20
_FILESYSTEM_BLOCK_BYTES = 4096
# What ext4 made with `-m 0 -T largefile4` keeps for itself, as mkfs.ext4 1.47 makes it: a journal of some 1.5 % that
# ends at 1 GiB, bitmaps and inode tables of 0.015 %, and reserved group descriptors. A test asks mkfs.ext4.
_JOURNAL_RATIO = 0.02
_JOURNAL_BYTES_MAX = 1.25 * _GIB
_TABLES_RATIO = 0.001
_SMALLEST_OVERHEAD_BYTES = 64 << 20


def deploy_volume_gib(file_bytes: Iterable[int]) -> int:
    """Return the size in GiB of the smallest volume whose ext4 (`mkfs.ext4 -m 0 -T largefile4`) holds these files."""
    blocks = sum(-(-size // _FILESYSTEM_BLOCK_BYTES) for size in file_bytes)
    data_bytes = blocks * _FILESYSTEM_BLOCK_BYTES
    journal_bytes = min(_JOURNAL_RATIO * data_bytes, _JOURNAL_BYTES_MAX)
    needed_bytes = data_bytes * (1 + _TABLES_RATIO) + journal_bytes + _SMALLEST_OVERHEAD_BYTES
    return int(-(-needed_bytes // _GIB))


def manifest_info(root: str, formats: Collection[str] = ()) -> dict[str, Any]:
    """Return the result of the module manifest_info for the records in ``formats``, or all.

    Raises OpsError where ``root`` has no manifest.
    """
    manifest = read_manifest(root)
    sizes = [entry.size_bytes for entry in manifest.files("records", formats).values()]
    sizes.append(os.path.getsize(os.path.join(root, MANIFEST_NAME)))
    return {
        "changed": False,
        "dataset_version": manifest.dataset_version,
        "records": {name: split.records for name, split in manifest.splits.items()},
        "classes": manifest.classes,
        "bytes": sum(sizes),
        "deploy_volume_gib": deploy_volume_gib(sizes),
    }


def copy_dataset(
    root: str, dest: str, state_dir: str, formats: Collection[str] = (), *, check_mode: bool
) -> dict[str, Any]:
    """Copy the packed data set in ``root`` to ``dest`` and return the result of the module dataset_copy.

    The records are those in ``formats``, or all. What an earlier run copied is kept, and the file that it was at is
    resumed. Raises OpsError where a file is not what the manifest says, or where the filesystem of ``dest`` is full.
    """
    manifest = read_manifest(root)
    files = manifest.files("records", formats)
    result = {
        "dataset_version": manifest.dataset_version,
        "files": len(files) + 1,
        "bytes": sum(entry.size_bytes for entry in files.values()),
    }
    missing = {name: entry for name, entry in files.items() if not _is_copied(dest, name, entry)}
    with open(os.path.join(root, MANIFEST_NAME), "rb") as file:
        content = file.read()
    lacks_manifest = _read(os.path.join(dest, MANIFEST_NAME)) != content
    changes = bool(missing) or lacks_manifest
    if check_mode or not changes:
        return {"changed": changes, "copied": len(missing) + lacks_manifest, **result}
    os.makedirs(state_dir, exist_ok=True)
    try:
        with exclusive(os.path.join(state_dir, "dataset_copy.lock")):
            _copy_files(root, dest, missing, Progress(state_dir, "dataset_copy"))
            write_atomic(os.path.join(dest, MANIFEST_NAME), content)
    except OSError as error:
        raise disk_error(dest, error) from error
    return {"changed": True, "copied": len(missing) + lacks_manifest, **result}


def _is_copied(dest: str, name: str, entry: FileEntry) -> bool:
    """Say whether a file is there: it gets its name when it is whole, hashed and on disk."""
    try:
        return os.path.getsize(os.path.join(dest, name)) == entry.size_bytes
    except FileNotFoundError:
        return False


def _copy_files(root: str, dest: str, missing: dict[str, FileEntry], progress: Progress) -> None:
    total = sum(entry.size_bytes for entry in missing.values())
    begun = sum(_size(part_path(os.path.join(dest, name))) for name in missing)
    require_space(dest, total - begun)
    progress.start("copy", total, "bytes", done=begun)
    done = 0
    for name, entry in missing.items():
        _copy_file(root, dest, name, entry, _reporter(progress, done))
        done += entry.size_bytes
    progress.finish()


def _reporter(progress: Progress, before: int) -> Callable[[int], None]:
    """Return what tells ``progress`` how far a file is, ``before`` bytes having been copied of others."""
    return lambda copied: progress.update(before + copied)


def _copy_file(root: str, dest: str, name: str, entry: FileEntry, report: Callable[[int], None]) -> None:
    """Copy a file to its part, hash it on the way, and give it its name when it is what the manifest says."""
    source, part = os.path.join(root, name), PartFile(os.path.join(dest, name))
    os.makedirs(os.path.dirname(part.path), exist_ok=True)
    resumed = _size(part.part) > 0
    digest = _append(source, part.part, report)
    if digest != entry.sha256 and resumed:
        # What a host that lost its power left of the part may be anything.
        part.reject()
        digest = _append(source, part.part, report)
    if digest != entry.sha256:
        part.reject()
        raise OpsError(
            f"File {source}",
            f"checksum mismatch: expected SHA-256 {entry.sha256} (manifest), got {digest}",
            "It has changed since it was packed: restore it from the backup, or pack the data set again",
        )
    part.commit()


def _append(source: str, part: str, report: Callable[[int], None]) -> str:
    """Write to file ``part`` what it lacks of ``source``, sync it, and return the SHA-256 of all of it in hex."""
    digest = hashlib.sha256()
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        done = 0
        while block := os.pread(descriptor, _BLOCK_BYTES, done):
            digest.update(block)
            done += len(block)
            report(done)
        os.lseek(descriptor, done, os.SEEK_SET)
        synced = done
        with open(source, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            file.seek(done)
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                written = 0
                while written < len(block):
                    written += os.write(descriptor, memoryview(block)[written:])
                done += len(block)
                if done - synced >= _SYNC_BYTES:
                    os.fdatasync(descriptor)
                    synced = done
                report(done)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _size(path: str) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.path.getsize(path)
    return 0


def _read(path: str) -> bytes | None:
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        return file.read()
    return None
