"""One lab for all integration tests: up with four GPU hosts before the first, down after the last."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lab.lazy_files import missing_for_lazy_files
from lab.machine import extend_path, missing_kernel_features, missing_programs
from tests.integration.harness import ROOT, Lab

HOSTS = 4


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab, started for these tests; one that a person has running is not ours to use."""
    extend_path()
    missing = missing_programs() or ([] if os.geteuid() == 0 else ["root"]) or missing_kernel_features()
    if missing:
        pytest.skip(f"the lab needs what is missing here: {', '.join(missing)}")
    status = subprocess.run([sys.executable, "-m", "lab", "status"], cwd=ROOT, capture_output=True, check=False)
    if status.returncode == 0:
        pytest.fail("a lab is up already: stop it with make lab-down before these tests", pytrace=False)
    # Volumes are as cold as AWS's where this machine can show it. The rates of two volumes are more than the quota.
    lazy = ["--lazy-mib-s", "5", "--initialization-quota-mib-s", "250", "--fast-restore-hour-seconds", "20"]
    _lab("up", "--hosts", str(HOSTS), "--delay", "0", *([] if missing_for_lazy_files() else lazy))
    try:
        yield Lab()
    finally:
        _lab("down")


def _lab(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "lab", *arguments], cwd=ROOT, check=True)
