"""The lines of a .lst: the image and the label of each record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.formats.format import DAMAGED_TODO


class ListLine(NamedTuple):
    """A line of a .lst: the image's id, its label and its path below the split's directory."""

    record_id: int
    label: float
    path: str


def read_list(path: str) -> Iterator[ListLine]:
    """Yield the lines of the .lst at ``path``. Raises OpsError for an invalid one, and OSError."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            yield parse_list_line(line, f"File {path}, line {number}")


def parse_list_line(line: str, where: str) -> ListLine:
    """Parse a ``line`` of a .lst. Raises OpsError, with ``where`` (file and line), for an invalid one."""
    fields = line.rstrip("\n").split("\t")
    try:
        record_id, label, path = fields
        return ListLine(int(record_id), float(label), path)
    except ValueError as error:
        raise OpsError(
            where,
            f"it does not have an id, a label and a path: {line[:80]!r}",
            DAMAGED_TODO,
        ) from error
