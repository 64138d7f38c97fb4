"""State on disk as a person may find it: every file says what it is, and what it holds is judged before it is used.

A state file is a JSON object with ``kind``, ``format``, ``checksum`` and the fields of its kind. Something else may lie
in its place: a file that was damaged or edited, one of another kind, or one that a newer version wrote. One policy:

* What a newer version wrote is never touched: OpsError.
* Anything else that is not as it should be is discarded with a warning where the work can safely start over (`Kind`
  says what that costs), and is an OpsError where a person has to decide.

Files of versions that wrote neither kind nor checksum are read too; there the fields alone tell.
"""

from __future__ import annotations

import json
import re
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import canonical_json, write_json

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Kind:
    """What a state file of this kind holds: ``name`` and ``format`` as they stand in it, and its other fields.

    ``fields`` is a shape as `fits` takes it. ``starts_over`` says for people what happens when the file is discarded
    ("the download starts over"); where it is "" nothing is discarded, and ``todo`` is the advice of the OpsError.
    ``upgrade`` turns what a version without kinds wrote into today's fields; it gets JSON of any form.
    """

    name: str
    format: int
    fields: Any
    starts_over: str = ""
    todo: str = ""
    upgrade: Callable[[Any], Any] = lambda value: value


class _UnfitError(Exception):
    """The file is not one of its kind, for the reason that ``str()`` gives."""


class StateFile:
    """The state file at ``path``; ``warn`` is called with a sentence, once, where one is discarded."""

    def __init__(self, path: str, kind: Kind, warn: Warn = warnings.warn) -> None:
        self.path = path
        self.kind = kind
        self._warn = warn
        self._warned = False

    def read(self) -> dict[str, Any] | None:
        """Return the fields; None where there is no file, or none that can be used (which is warned of).

        Raises OpsError for what a newer version wrote, for what cannot be read, and, where the kind allows no starting
        over, for anything but a file of this kind.
        """
        try:
            with open(self.path, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OpsError(
                f"State file {self.path}", f"it cannot be read ({error.strerror})", "Check the disk, then run again"
            ) from error
        try:
            return self._fields(content)
        except _UnfitError as error:
            self.discard(str(error))
            return None

    def discard(self, why: str) -> None:
        """Warn that what the file says is not used. Raises OpsError where a person has to decide that."""
        if not self.kind.starts_over:
            raise OpsError(f"State file {self.path}", why, self.kind.todo)
        if not self._warned:
            self._warn(f"State file {self.path}: {why}; {self.kind.starts_over}")
        self._warned = True

    def write(self, fields: Mapping[str, Any]) -> None:
        """Replace the file by one with ``fields``, durable when this returns. Raises OSError."""
        value = {"kind": self.kind.name, "format": self.kind.format, **fields}
        write_json(self.path, {**value, "checksum": _checksum(value)})

    def _fields(self, content: bytes) -> dict[str, Any]:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _UnfitError(f"it is not JSON ({error})") from error
        if not isinstance(value, dict) or "kind" not in value:
            value = self.kind.upgrade(value)
            is_whole = True
        else:
            is_whole = value.pop("checksum", None) == _checksum(value)
        if not isinstance(value, dict):
            raise _UnfitError(f"it is damaged: it is no {self.kind.name}")
        name, number = value.pop("kind", self.kind.name), value.pop("format", self.kind.format)
        if name != self.kind.name:
            raise _UnfitError(f"it is no {self.kind.name}, but one of the kind {name!r}")
        if not fits(number, int) or number < self.kind.format:
            raise _UnfitError(f"its format is {number!r}, and this version reads {self.kind.format}")
        if number > self.kind.format:
            raise OpsError(
                f"State file {self.path}",
                f"a newer version of imagenet-ops wrote it: its format is {number}, and this version reads "
                f"{self.kind.format}",
                "Run the newer version, or remove the file to start over",
            )
        if not is_whole:
            raise _UnfitError("it is damaged: checksum mismatch")
        if not fits(value, self.kind.fields):
            raise _UnfitError(f"it is damaged: its fields are not those of the {self.kind.name}")
        return value


def _checksum(value: dict[str, Any]) -> str:
    """Return the CRC32 of a state file without its checksum: it tells a file that was damaged or edited."""
    return f"{zlib.crc32(canonical_json(value)):08x}"


def natural(value: Any) -> bool:
    """Return whether ``value`` is a count: a number of JSON, whole and not negative."""
    return type(value) is int and value >= 0


def hexadecimal(digits: int) -> Callable[[Any], bool]:
    """Return what decides whether a value is a text of so many hexadecimal digits, in lower case."""
    return lambda value: isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{digits}}}", value) is not None


def fits(value: Any, shape: Any) -> bool:
    """Return whether a value of JSON has ``shape``.

    A shape is a type (``object``: any value), a function that decides, ``[shape]`` for a list of any length, a tuple of
    shapes for a list of just these, ``{str: shape}`` for an object with any names, or an object with just these names.
    """
    if isinstance(shape, type):
        return shape is object or type(value) is shape  # isinstance would take true for a number
    if isinstance(shape, (list, tuple)):
        if not isinstance(value, list):
            return False
        shapes = shape * len(value) if isinstance(shape, list) else shape
        return len(value) == len(shapes) and all(map(fits, value, shapes))
    if not isinstance(shape, dict):
        return bool(shape(value))
    if not isinstance(value, dict):
        return False
    fields = dict.fromkeys(value, shape[str]) if str in shape else shape
    return value.keys() == fields.keys() and all(fits(value[name], part) for name, part in fields.items())
