"""Fetching beside aria2 and curl, from one origin to one disk.

Ours is the engine that the module archive_fetch calls, in a fresh process each time, imports and all. It also computes
MD5, SHA-256 and piece checksums, and syncs its file; so the files of aria2 and curl are synced too. That aria2 verifies
nothing is its gain; what it takes with the same MD5 given to it stands beside.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.measure import Cost, interleaved, median, run
from bench.report import Bench, Target

TARGETS = (
    Target("fetch.aria2_wall_ratio", "<=", 1.0, "", "aria2c -x16 -s16, 4 MB/s for each connection"),
    Target("fetch.aria2_wall_ratio_free", "<=", 1.2, "", "aria2c -x16 -s16, unthrottled"),
    Target("fetch.curl_wall_ratio_throttled", "<=", 0.1, "", "curl, 4 MB/s for each connection"),
    Target("fetch.peak_mib", "<=", 150, "MiB", "16 connections"),
)

ROOT = Path(__file__).resolve().parent.parent
CONNECTIONS = 16
THROTTLE_BYTES_PER_SECOND = 4_000_000
ROUNDS = 5
# 16 seconds for 16 throttled connections.
THROTTLED_BYTES = 1_024_000_000
# A minute for the one connection of curl, which the origin's clock makes as regular as that.
CURL_ROUNDS = 3
CURL_BYTES = 256_000_000
FREE_BYTES = 2_000_000_000
# So large that whatever grows with the file would show.
LARGE_BYTES = 8_000_000_000
# Debian's package of each program that is compared with.
PEERS = {"aria2c": "aria2", "curl": "curl"}


def measure(bench: Bench) -> None:
    """Measure every figure of fetching."""
    _install_peers()
    (bench.directory / "served").mkdir()
    with _origin(bench, THROTTLE_BYTES_PER_SECOND) as url:
        _beside_aria2(bench, url, "fetch.aria2_wall_ratio", THROTTLED_BYTES)
        _beside_curl(bench, url)
    with _origin(bench, 0) as url:
        _beside_aria2(bench, url, "fetch.aria2_wall_ratio_free", FREE_BYTES)
        _memory(bench, url)
    shutil.rmtree(bench.directory / "served")


def _install_peers() -> None:
    missing = [package for program, package in PEERS.items() if shutil.which(program) is None]
    if missing:
        print(f"  installing {', '.join(missing)}", flush=True)
        install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def _origin(bench: Bench, bytes_per_second_per_connection: int) -> Iterator[str]:
    """Run the lab's origin in a process of its own, for it must share no interpreter with what is measured."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    config = bench.directory / "origin.json"
    config.write_text(
        json.dumps(
            {
                "directory": str(bench.directory / "served"),
                "addresses": [["127.0.0.1", port]],
                "bytes_per_second_per_connection": bytes_per_second_per_connection,
            }
        )
    )
    process = subprocess.Popen([sys.executable, "-m", "lab.origin", "--config", str(config)], cwd=ROOT)
    try:
        _await_server(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _await_server(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the origin does not listen") from None
            time.sleep(0.05)


def _serve(bench: Bench, size_bytes: int) -> Path:
    """Put a file into the origin's folder and return it: every megabyte random, and no two alike."""
    path = bench.directory / "served" / "archive.tar"
    block = os.urandom(1_000_000 - 8)
    with path.open("wb") as file:
        for number in range(max(1, int(size_bytes * bench.scale) // 1_000_000)):
            file.write(number.to_bytes(8, "big") + block)
    return path


def _fresh(folder: Path) -> None:
    """Give each run the same start: an empty folder and a disk with nothing to do."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()


def _ours(bench: Bench, url: str) -> Callable[[], Cost]:
    folder = bench.directory / "ours"
    path = bench.directory / "ours.json"
    dest = str(folder / "archive.tar")
    request = {"urls": [url], "dest": dest, "state_dir": str(folder / ".state"), "connections": CONNECTIONS}
    path.write_text(json.dumps(request))

    def execute() -> Cost:
        _fresh(folder)
        return run([sys.executable, "-m", "bench.fetch_once", str(path)], bench.directory / "ours.log")

    return execute


def _theirs(bench: Bench, name: str, command: str) -> Callable[[], Cost]:
    """Return what runs ``command`` in an empty folder ``name`` and syncs its archive.tar, as ours is synced."""
    folder = bench.directory / name

    def execute() -> Cost:
        _fresh(folder)
        shell = ["sh", "-ec", f"cd {folder}; {command}; sync archive.tar"]
        return run(shell, bench.directory / f"{name}.log")

    return execute


def _compare(bench: Bench, served: Path, *names: str) -> None:
    """End the bench where a file that was fetched is not the one that was served; remove them."""
    for name in names:
        if not filecmp.cmp(served, bench.directory / name / "archive.tar", shallow=False):
            raise RuntimeError(f"what {name} fetched is not what was served")
        shutil.rmtree(bench.directory / name)


def _beside_aria2(bench: Bench, origin: str, figure: str, size_bytes: int) -> None:
    served = _serve(bench, size_bytes)
    url = f"{origin}/archive.tar"
    with served.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    aria2 = f"aria2c --quiet -x{CONNECTIONS} -s{CONNECTIONS}"
    rounds = interleaved(
        {
            "ours": _ours(bench, url),
            "aria2": _theirs(bench, "aria2", f"{aria2} {url}"),
            "verified": _theirs(bench, "verified", f"{aria2} --checksum=md5={md5} {url}"),
        },
        ROUNDS,
    )
    _compare(bench, served, "ours", "aria2", "verified")
    seconds = {name: median(rounds, _wall_of(name)) for name in rounds[0]}
    both = f"{seconds['ours']:.2f} s, aria2 {seconds['aria2']:.2f} s, {seconds['verified']:.2f} s where it checks MD5"
    bench.record(figure, median(rounds, lambda c: c["ours"].wall_seconds / c["aria2"].wall_seconds), both)
    cpu = median(rounds, lambda costs: costs["ours"].cpu_seconds)
    bench.record(f"{figure}_verified", median(rounds, _ratio_to_verified), f"{cpu:.2f} s of CPU are ours")


def _ratio_to_verified(costs: dict[str, Cost]) -> float:
    return costs["ours"].wall_seconds / costs["verified"].wall_seconds


def _wall_of(name: str) -> Callable[[dict[str, Cost]], float]:
    return lambda costs: costs[name].wall_seconds


def _beside_curl(bench: Bench, origin: str) -> None:
    served = _serve(bench, CURL_BYTES)
    url = f"{origin}/archive.tar"
    curl = _theirs(bench, "curl", f"curl --silent --show-error --fail --output archive.tar {url}")
    rounds = interleaved({"ours": _ours(bench, url), "curl": curl}, CURL_ROUNDS)
    _compare(bench, served, "ours", "curl")
    both = f"{median(rounds, _wall_of('ours')):.2f} s, curl {median(rounds, _wall_of('curl')):.2f} s"
    ratio = median(rounds, lambda costs: costs["ours"].wall_seconds / costs["curl"].wall_seconds)
    bench.record("fetch.curl_wall_ratio_throttled", ratio, both)


def _memory(bench: Bench, origin: str) -> None:
    """Measure the peak for a small file and for a large one; nothing but its size matters, so it is empty."""
    peaks = []
    for size_bytes in (LARGE_BYTES // 100, LARGE_BYTES):
        os.truncate(bench.directory / "served" / "archive.tar", 0)
        os.truncate(bench.directory / "served" / "archive.tar", int(size_bytes * bench.scale))
        _ours(bench, f"{origin}/archive.tar")()
        peaks.append(int((bench.directory / "ours.log").read_text().split()[-1]) / 1024)
    shutil.rmtree(bench.directory / "ours")
    bench.record("fetch.peak_mib", max(peaks), f"{peaks[0]:.0f} MiB for a hundredth of the size")
