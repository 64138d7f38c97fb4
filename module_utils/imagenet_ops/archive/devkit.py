"""The ILSVRC2012 development kit: the classes, and the class of each validation image.

Its readme describes ``data/meta.mat`` (a MATLAB struct array ``synsets``; those without children are the classes, with
the lowest ILSVRC2012_IDs) and ``data/ILSVRC2012_validation_ground_truth.txt`` (one ILSVRC2012_ID a line, in ascending
order of the image files' names). The IDs are not in the order of the WNIDs, and the order within an archive is
irrelevant.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.imagenet_ops.archive.member import FILE, DamagedArchiveError
from ansible.module_utils.imagenet_ops.archive.tar import TarReader
from ansible.module_utils.imagenet_ops.core.child import ChildError, in_child
from ansible.module_utils.imagenet_ops.core.errors import OpsError

_META = "data/meta.mat"
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
# The real files have at most 1 MB; something much larger is not a development kit.
_LARGEST_FILE_BYTES = 64 * 1024 * 1024
_ID = re.compile(r"[0-9]{1,9}")
# Reading the real meta.mat takes a tenth of a second.
_MOST_SECONDS = 60
_MOST_MEMORY_MIB = 2048


@dataclass(frozen=True)
class Synset:
    """A class: its ILSVRC2012_ID, its WordNet id (``n01440764``) and its words (``tench, Tinca tinca``)."""

    ilsvrc_id: int
    wnid: str
    words: str


def read_synsets(devkit: str) -> list[Synset]:
    """Return the classes, in the order of their ILSVRC2012_IDs, of the development kit at path ``devkit``.

    That is the archive (``ILSVRC2012_devkit_t12.tar.gz``) or the directory that was unpacked from it. Raises OpsError.
    """
    meta = _read(devkit, _META)
    synsets = _synsets_of(devkit, meta)
    if len({synset.wnid for synset in synsets}) != len(synsets) or not synsets:
        raise _broken(devkit, f"{_META} lists no class, or a class twice")
    return sorted(synsets, key=lambda synset: synset.ilsvrc_id)


def read_words(devkit: str) -> dict[str, str]:
    """Return the words of each class by WNID; ``devkit`` as in `read_synsets`. Raises OpsError."""
    return {synset.wnid: synset.words for synset in read_synsets(devkit)}


def read_validation_labels(devkit: str) -> dict[str, str]:
    """Return the WNID of each validation image by its file name; ``devkit`` as in `read_synsets`. Raises OpsError."""
    wnids = {synset.ilsvrc_id: synset.wnid for synset in read_synsets(devkit)}
    lines = _read(devkit, _GROUND_TRUTH).decode("utf-8-sig", errors="replace").split()
    labels = {}
    for number, line in enumerate(lines, start=1):
        wnid = wnids.get(int(line)) if _ID.fullmatch(line) else None
        if wnid is None:
            raise _broken(devkit, f"line {number} of {_GROUND_TRUTH} is {line!r}, which is not the ID of a class")
        labels[f"ILSVRC2012_val_{number:08d}.JPEG"] = wnid
    return labels


def _synsets_of(devkit: str, meta: bytes) -> list[Synset]:
    """Return the synsets without children that the MATLAB file ``meta`` holds."""
    try:
        import numpy as np  # noqa: PLC0415 (half a second that only the devkit costs)
        from scipy.io import loadmat  # noqa: PLC0415
    except ImportError as error:
        raise OpsError(
            f"Development kit {devkit}",
            f"reading its meta.mat requires numpy and scipy ({error})",
            "Install them for the Python that runs the module (role python_environment)",
        ) from error

    def read() -> list[tuple[int, str, str]]:
        rows: Any = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        return [
            (int(row["ILSVRC2012_ID"]), str(row["WNID"]), _text(row["words"]))
            for row in rows
            if int(row["num_children"]) == 0
        ]

    try:
        # On a damaged file the reader raises whatever exception its code happens to, or crashes.
        return [Synset(*row) for row in in_child(read, _MOST_SECONDS, _MOST_MEMORY_MIB)]
    except ChildError as error:
        raise _broken(devkit, f"{_META} cannot be read ({error})") from error


def _text(value: Any) -> str:
    """Return a text of MATLAB; an empty one is read as an empty array."""
    return value if isinstance(value, str) else ""


def _read(devkit: str, name: str) -> bytes:
    """Return the content of the file ``name`` (relative to the kit's own folder) of the development kit."""
    try:
        if os.path.isdir(devkit):
            with open(os.path.join(devkit, name), "rb") as file:
                return file.read(_LARGEST_FILE_BYTES)
        found = None
        with TarReader(devkit) as archive:
            # To the end in any case, for the checksum of the compressed file is there.
            for member in archive.members(0):
                if found is None and member.kind == FILE and f"/{member.name}".endswith(f"/{name}"):
                    found = archive.read(min(member.size, _LARGEST_FILE_BYTES))
    except (OSError, DamagedArchiveError) as error:
        raise _broken(devkit, f"it cannot be read ({error})") from error
    if found is None:
        raise _broken(devkit, f"it has no {name}")
    return found


def _broken(devkit: str, why: str) -> OpsError:
    return OpsError(
        f"Development kit {devkit}", why, "Fetch ILSVRC2012_devkit_t12.tar.gz again (archive_fetch checks its MD5)"
    )
