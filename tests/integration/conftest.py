"""One lab for all integration tests: up with four GPU hosts before the first, down after the last."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.harness import FAST_RESTORE_HOUR_SECONDS, Lab, running_lab
from tests.integration.neighbours import untouched


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab, started for these tests, in an account that has neighbours."""
    hour = ("--fast-restore-hour-seconds", str(FAST_RESTORE_HOUR_SECONDS))
    with running_lab("--hosts", "4", "--delay", "0", *hour) as running, untouched(running):
        yield running
