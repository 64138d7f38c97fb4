"""What the results of modules have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict


class Difference(TypedDict):
    """What ``--diff`` shows: text before and after."""

    before: str
    after: str


def difference(before: Iterable[str], after: Iterable[str]) -> Difference:
    """Return the difference between two texts, each given by its lines."""
    return {"before": "".join(f"{line}\n" for line in before), "after": "".join(f"{line}\n" for line in after)}
