"""The seeds of a test that kills a run at random points."""

from __future__ import annotations

from typing import Any

import pytest


def kill_seeds(count: int, *before: Any) -> list[Any]:
    """Return cases for ``parametrize``, ``before`` and a seed each; all but the first are marked slow_kill."""
    return [pytest.param(*before, seed, marks=pytest.mark.slow_kill if seed else ()) for seed in range(count)]
