"""Running commands beside each other, and what they cost."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Cost(NamedTuple):
    """What a process took: seconds on the clock, and of processors (user and system), its children's included."""

    wall_seconds: float
    cpu_seconds: float


def run(command: Sequence[str], log: Path) -> Cost:
    """Run ``command`` to its end, its output in ``log``, and return its cost. Raises RuntimeError if it fails."""
    with log.open("w") as output:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall_seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return Cost(wall_seconds, usage.ru_utime + usage.ru_stime)


def interleaved(runs: Mapping[str, Callable[[], Cost]], rounds: int) -> list[dict[str, Cost]]:
    """Run each of ``runs`` in turn, ``rounds`` times, and return the costs of each round."""
    return [{name: execute() for name, execute in runs.items()} for _ in range(rounds)]


def median(rounds: Sequence[dict[str, Cost]], figure: Callable[[dict[str, Cost]], float]) -> float:
    """Return the median of ``figure`` over the rounds: what disturbs a round disturbs all that it compares."""
    return statistics.median(map(figure, rounds))


def drop_caches() -> None:
    """Forget the page cache, as root may."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


class LoopDisk:
    """A disk of its own with XFS on a sparse file, whose requests are counted. A context manager; needs root."""

    def __init__(self, folder: Path, size_gib: int) -> None:
        self._file = folder / "disk.img"
        self.mount = folder / "disk"
        self._size_gib = size_gib

    def __enter__(self) -> LoopDisk:  # noqa: PYI034 (the house's way)
        """Make, format and mount it; no request is longer than 1 MiB, as on the volumes that count them."""
        with self._file.open("wb") as file:
            file.truncate(self._size_gib << 30)
        command = ["losetup", "--find", "--show", "--direct-io=on", str(self._file)]
        self._device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        self._block = Path("/sys/block") / Path(self._device).name
        (self._block / "queue" / "max_sectors_kb").write_text("1024\n")
        self.mount.mkdir()
        subprocess.run(["mkfs.xfs", "-q", self._device], check=True)
        subprocess.run(["mount", self._device, str(self.mount)], check=True)
        return self

    def __exit__(self, *exception: object) -> None:
        """Unmount and remove it."""
        subprocess.run(["umount", str(self.mount)], check=True)
        subprocess.run(["losetup", "--detach", self._device], check=True)
        self._file.unlink()
        self.mount.rmdir()

    def requests(self) -> int:
        """Return how many reads and writes the disk has completed (Documentation/block/stat.rst, fields 1 and 5)."""
        os.sync()
        fields = (self._block / "stat").read_text().split()
        return int(fields[0]) + int(fields[4])
