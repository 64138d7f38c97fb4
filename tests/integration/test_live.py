"""The smoke test of a real account, run where there is none: in the lab."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lab.config import API_PORT, CONTROLLER_ACCESS_KEY, CONTROLLER_SECRET_KEY, LOOPBACK
from tests.integration.harness import Lab
from tests.live.__main__ import remains

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": CONTROLLER_ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": CONTROLLER_SECRET_KEY,
    "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{API_PORT}",
}
COMMAND = [sys.executable, "-m", "tests.live", "-i", "inventories/lab"]


def live(lab: Lab, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command in the lab's checkout, as `make live` does in a user's."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=lab.checkout,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        input=text,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_it_costs_nothing_until_it_is_confirmed(lab: Lab) -> None:
    done = live(lab, text="no\n")
    assert (done.returncode, done.stderr) == (1, "")
    assert "0.0104 USD  1 host t3.micro" in done.stdout
    assert "0.0191 USD  in all" in done.stdout
    assert done.stdout.endswith("Type yes to begin: Nothing was created.\n")
    assert remains(lab.ec2()) == []


def test_it_prepares_deploys_removes_and_leaves_nothing(lab: Lab) -> None:
    done = live(lab, text="yes\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("Prepared, deployed and removed; nothing is left.\n")
    assert remains(lab.ec2()) == []


def test_what_fails_is_removed_as_well(lab: Lab) -> None:
    done = live(lab, "--yes", "-e", "data_jpeg_quality=101")
    assert done.returncode == 1
    assert "FAILED: playbooks/prepare.yml ended 2" in done.stdout
    assert "LEFT BEHIND" not in done.stdout
    assert remains(lab.ec2()) == []
