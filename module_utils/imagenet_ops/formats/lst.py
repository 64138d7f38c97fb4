"""The lines of a .lst: the image and the label of each record."""

from __future__ import annotations

from typing import NamedTuple

from ansible.module_utils.imagenet_ops.core.errors import OpsError


class ListLine(NamedTuple):
    """A line of a .lst: the image's id, its label and its path below the split's directory."""

    record_id: int
    label: float
    path: str


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
            "The file is damaged; restore it from the backup or pack the data set again",
        ) from error
