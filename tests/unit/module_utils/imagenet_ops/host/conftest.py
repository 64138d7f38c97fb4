"""A block device of this machine, for the real programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    if os.geteuid() != 0 or shutil.which("losetup") is None or not os.path.exists("/dev/loop-control"):
        pytest.skip("a loop device needs root, losetup and /dev/loop-control")
    image = tmp_path / "volume"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    device = subprocess.check_output(["losetup", "--find", "--show", str(image)], text=True).strip()
    yield device
    subprocess.check_call(["losetup", "--detach", device])
