"""Backing up and restoring beside s5cmd, the AWS CLI and s3_sync, with `rclone serve s3` on loopback, in memory.

Ours is the engine that the module s3_backup calls, in a fresh process each time, imports and all. It hashes every file,
sends checksums with every part and queries what is stored; the others do neither. A tree goes up as tar shards by
us, and file by file by them. What is restored is synced on both sides.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
from ansible.module_utils.imagenet_ops.core.files import canonical_json

from bench.measure import Cost, interleaved, median, run
from bench.report import Bench, Target

TARGETS = (
    Target("backup.s5cmd_wall_ratio_large", "<=", 1.05, "", "s5cmd cp"),
    Target("backup.awscli_wall_ratio_large", "<=", 1.0, "", "aws s3 cp --recursive"),
    Target("backup.tree_awscli_wall_ratio", "<=", 0.25, "", "aws s3 cp --recursive of the files"),
    Target("backup.tree_s5cmd_wall_ratio", "<=", 0.9, "", "s5cmd cp of the files"),
    Target("backup.s3_sync_wall_ratio", "<=", 0.15, "", "community.aws.s3_sync of the files"),
    Target("backup.tree_rss_mib", "<=", 300, "MiB", ""),
    Target("backup.rss_mib", "<=", 300, "MiB", "4 files"),
    Target("backup.rss_growth_1000_files", "<=", 1.1, "", "4 files"),
    Target("restore.s5cmd_wall_ratio_large", "<=", 1.05, "", "s5cmd cp, and sync"),
)

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-s3-peers" / "bin"
BUCKET = "imagenet-bench"
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret", "AWS_REGION": "us-east-1"}
FILES = 4
FILE_BYTES = 512 << 20
IMAGES = 5000
CLASSES = 10
MEAN_IMAGE_BYTES = 110_000  # of ImageNet's training images
ROUNDS = 5
TREE_ROUNDS = 3  # s3_sync takes minutes


def measure(bench: Bench) -> None:
    """Measure the figures of large files, of a tree, of memory, and of the restore."""
    subprocess.run([ROOT / "bin" / "setup", "s3-peers"], check=True)
    os.environ.update(KEYS)
    with _server(bench) as server:
        _large(bench, server)
        _many(bench, server)
        _tree(bench, server)
        _restore(bench, server)


class _Server:
    """An endpoint, and where its objects lie."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._folder = folder
        self._runs = 0

    def fresh_prefix(self) -> str:
        """Remove every object and return a prefix that was not used: rclone remembers for a while what was there."""
        for path in (self._folder / BUCKET).iterdir():
            shutil.rmtree(path)
        self._runs += 1
        return f"run-{self._runs}"


@contextlib.contextmanager
def _server(bench: Bench) -> Iterator[_Server]:
    """Run `rclone serve s3` on a file system in memory: the endpoint must not be what is measured.

    By itself it hashes every object whole, as it is stored and again for an ETag when that is first requested, which no
    object store does, and MD5 takes it longer than a client needs for everything. So it has xxh3 instead, which costs
    next to nothing, and no ETag. What is left is the MD5 of each part, which any store computes.
    """
    folder = bench.directory / "objects"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=90%", "tmpfs", str(folder)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    key = f"{KEYS['AWS_ACCESS_KEY_ID']},{KEYS['AWS_SECRET_ACCESS_KEY']}"
    command = [str(PEERS / "rclone"), "serve", "s3", str(folder), "--addr", address, "--auth-key", key]
    command += ["--local-hashes", "xxh3", "--etag-hash", ""]
    with (bench.directory / "rclone.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(f"http://{address}")
        boto3.client("s3", endpoint_url=f"http://{address}", region_name="us-east-1").create_bucket(Bucket=BUCKET)
        yield _Server(f"http://{address}", folder)
    finally:
        process.terminate()
        process.wait()
        subprocess.run(["umount", str(folder)], check=True)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url)  # noqa: S310 (our own server)
        except urllib.error.HTTPError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _write_set(root: Path, files: int, file_bytes: int) -> Path:
    """Write a data set of so many archives of random bytes, with its manifest."""
    (root / "archives").mkdir(parents=True)
    (root / "labels.tsv").write_bytes(b"")
    archives = []
    for number in range(files):
        content = os.urandom(file_bytes)
        name = f"{number:05}.tar"
        (root / "archives" / name).write_bytes(content)
        entry = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        archives.append({"name": name, "md5": hashlib.md5(content, usedforsecurity=False).hexdigest(), **entry})
    labels = {"classes": 1, "size_bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    manifest: dict[str, Any] = {"format": 1, "dataset": "bench", "settings": {}, "tools": {}, "splits": {}}
    (root / "manifest.json").write_bytes(canonical_json({**manifest, "archives": archives, "labels": labels}))
    return root


def _write_tree(root: Path, images: int) -> Path:
    """Write a tree of so many images of random bytes and of sizes about the mean, and a manifest of nothing else."""
    _write_set(root, 0, 0)
    for number in range(images):
        path = root / "train" / f"n{number % CLASSES:08}" / f"n{number % CLASSES:08}_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(MEAN_IMAGE_BYTES // 2 + number * 7919 % MEAN_IMAGE_BYTES))
    return root


def _ours(bench: Bench, server: _Server, root: Path, *trees: str) -> Callable[[], Cost]:
    """Return what backs up once into an empty bucket, with no state of another run."""
    state = bench.directory / "state"
    request = {
        "root": str(root),
        "state_dir": str(state),
        "endpoint_url": server.url,
        "bucket": BUCKET,
        "trees": trees,
    }
    path = bench.directory / "ours.json"

    def execute() -> Cost:
        path.write_text(json.dumps({**request, "prefix": server.fresh_prefix()}))
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir()
        return run([sys.executable, "-m", "bench.backup_once", str(path)], bench.directory / "ours.log")

    return execute


def _peak_mib(bench: Bench) -> float:
    """Return what the last run of ours says of its memory."""
    return int((bench.directory / "ours.log").read_text().split()[-1]) / 1024


def _theirs(bench: Bench, server: _Server, program: str, *arguments: str) -> Callable[[], Cost]:
    """Return what runs a peer once with ``arguments`` and the place to copy to."""
    command = [str(PEERS / program), "--endpoint-url", server.url, *arguments]

    def execute() -> Cost:
        return run([*command, f"s3://{BUCKET}/{server.fresh_prefix()}/"], bench.directory / "theirs.log")

    return execute


def _large(bench: Bench, server: _Server) -> None:
    root = _write_set(bench.directory / "large", FILES, int(FILE_BYTES * bench.scale))
    source = str(root / "archives")
    rounds = interleaved(
        {
            "ours": _ours(bench, server, root),
            "s5cmd": _theirs(bench, server, "s5cmd", "cp", f"{source}/*"),
            "awscli": _theirs(bench, server, "aws", "s3", "cp", "--recursive", "--only-show-errors", source),
        },
        ROUNDS,
    )
    for peer in ("s5cmd", "awscli"):
        _record_ratio(bench, f"backup.{peer}_wall_ratio_large", rounds, peer)
    _ours(bench, server, root)()
    bench.record("backup.rss_mib", _peak_mib(bench))
    shutil.rmtree(root)


def _record_ratio(bench: Bench, name: str, rounds: list[dict[str, Cost]], peer: str) -> None:
    ours = median(rounds, lambda costs: costs["ours"].wall_seconds)
    theirs = median(rounds, lambda costs: costs[peer].wall_seconds)
    ratio = median(rounds, lambda costs: costs["ours"].wall_seconds / costs[peer].wall_seconds)
    bench.record(name, ratio, f"{ours:.2f} s, {peer} {theirs:.2f} s")


def _many(bench: Bench, server: _Server) -> None:
    """Compare the memory for a thousand files with that for the large ones."""
    root = _write_set(bench.directory / "many", int(1000 * bench.scale), 1 << 20)
    _ours(bench, server, root)()
    peak = _peak_mib(bench)
    large = bench.figures["backup.rss_mib"]
    bench.record("backup.rss_growth_1000_files", peak / large, f"{large:.0f} MiB for 4 files, {peak:.0f} MiB for 1000")
    shutil.rmtree(root)


def _tree(bench: Bench, server: _Server) -> None:
    root = _write_tree(bench.directory / "tree", int(IMAGES * bench.scale))
    source = str(root / "train")
    rounds = interleaved(
        {
            "ours": _ours(bench, server, root, "train"),
            "s5cmd": _theirs(bench, server, "s5cmd", "cp", f"{source}/*"),
            "awscli": _theirs(bench, server, "aws", "s3", "cp", "--recursive", "--only-show-errors", source),
            "s3_sync": _s3_sync(bench, server, source),
        },
        TREE_ROUNDS,
    )
    _record_ratio(bench, "backup.tree_s5cmd_wall_ratio", rounds, "s5cmd")
    _record_ratio(bench, "backup.tree_awscli_wall_ratio", rounds, "awscli")
    _record_ratio(bench, "backup.s3_sync_wall_ratio", rounds, "s3_sync")
    _ours(bench, server, root, "train")()
    bench.record("backup.tree_rss_mib", _peak_mib(bench))
    shutil.rmtree(root)


def _s3_sync(bench: Bench, server: _Server, source: str) -> Callable[[], Cost]:
    """Return what copies ``source`` once by the module community.aws.s3_sync."""
    program = Path(sys.executable).parent / "ansible"
    connection = ["localhost", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}"]
    options = {"bucket": BUCKET, "file_root": source, "endpoint_url": server.url, "region": KEYS["AWS_REGION"]}

    def execute() -> Cost:
        arguments = json.dumps({**options, "key_prefix": server.fresh_prefix()})
        command = [str(program), *connection, "-m", "community.aws.s3_sync", "-a", arguments]
        return run(command, bench.directory / "theirs.log")

    return execute


def _restore(bench: Bench, server: _Server) -> None:
    """Compare what brings large files back, to the same disk and for good: ours ends with fsync, so theirs must too."""
    root = _write_set(bench.directory / "large", FILES, int(FILE_BYTES * bench.scale))
    prefix, copy = server.fresh_prefix(), bench.directory / "restored"
    request = {"endpoint_url": server.url, "bucket": BUCKET, "prefix": prefix}
    path = bench.directory / "restore.json"
    path.write_text(json.dumps({**request, "root": str(root), "state_dir": str(root), "trees": []}))
    run([sys.executable, "-m", "bench.backup_once", str(path)], bench.directory / "ours.log")
    shutil.rmtree(root)
    path.write_text(json.dumps({**request, "root": str(copy), "state_dir": str(copy / ".state")}))
    s5cmd = f"{PEERS / 's5cmd'} --endpoint-url {server.url} cp 's3://{BUCKET}/{prefix}/archives/*' {copy}/"

    def to_fresh_folder(command: list[str], log: str) -> Callable[[], Cost]:
        def execute() -> Cost:
            shutil.rmtree(copy, ignore_errors=True)
            (copy / ".state").mkdir(parents=True)
            os.sync()
            return run(command, bench.directory / log)

        return execute

    ours = to_fresh_folder([sys.executable, "-m", "bench.restore_once", str(path)], "ours.log")
    theirs = to_fresh_folder(["sh", "-c", f"{s5cmd} && sync {copy}/*"], "theirs.log")
    rounds = interleaved({"ours": ours, "s5cmd": theirs}, ROUNDS)
    _record_ratio(bench, "restore.s5cmd_wall_ratio_large", rounds, "s5cmd")
    shutil.rmtree(copy)
