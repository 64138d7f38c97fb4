"""Packing beside im2rec.py, a bare loop of the same codec calls, cat, and the disk itself.

Ours is the engine that the module recordio_pack calls, in a fresh process each time, imports and all; im2rec.py is that
of MXNet 1.9.1 in .venv-conformance. Both pack the same tree in the order of the same list.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ansible.module_utils.imagenet_ops.recordio import RecordWriter, frame, image_data

from bench.measure import Cost, LoopDisk, drop_caches, interleaved, run
from bench.report import Bench, Target
from lab.archives import TRAIN, prepare

TARGETS = (
    Target("pack.floor_ratio", "<=", 1.05, "", "a bare loop of the same decode, resize, encode"),
    Target("pack.im2rec_cpu_ratio", "<=", 0.95, "", "im2rec.py --num-thread 2"),
    Target("pack.im2rec_wall_ratio_2_workers", "<=", 0.8, "", "im2rec.py --num-thread 2"),
    Target("pack.two_worker_speedup", ">=", 1.85, "", "one worker"),
    Target("pack.rss_mib", "<=", 250, "MiB", "two workers"),
    Target("pack.rss_growth_10x", "<=", 1.1, "", "a tenth of the images"),
    Target("pack.passthrough_vs_cat", ">=", 0.6, "", "cat of the same files to the same disk"),
    Target("pack.writer_records_per_s", ">=", 60_000, "1/s", "the disk"),
    Target("pack.block_requests_ratio", "<=", 0.15, "", "tar, then im2rec.py on the shuffled list"),
)

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT.parent / "shared" / "imagenet-sample" / TRAIN
IMAGES = 5_000
ROUNDS = 3
RECORD_BYTES = 43_000  # what an image of ImageNet has at 256 pixels and quality 95
WRITER_RECORDS = 60_000


def measure(bench: Bench) -> None:
    """Measure every figure of packing."""
    images = _images(bench, int(IMAGES * bench.scale))
    tree = _write_tree(bench.directory / "tree", images)
    _beside_im2rec(bench, tree, images)
    _memory(bench, images)
    _beside_cat(bench, tree)
    _writer(bench)
    shutil.rmtree(tree)
    _block_requests(bench, images)


def _images(bench: Bench, count: int) -> list[bytes]:
    """Return ``count`` photographs: those of the sample again and again, or synthetic ones where there is no sample."""
    archive = SAMPLE
    if not SAMPLE.exists():
        prepare(bench.directory / "synthetic", None)
        archive = bench.directory / "synthetic" / TRAIN
    found = []
    with tarfile.open(archive) as outer:
        for member in outer:
            content = outer.extractfile(member)
            if content is not None:
                with tarfile.open(fileobj=io.BytesIO(content.read())) as inner:
                    found += [inner.extractfile(image).read() for image in inner]  # type: ignore[union-attr]
    print(f"  {count} images, the {len(found)} of {archive.name} again and again", flush=True)
    return [found[number % len(found)] for number in range(count)]


def _names(images: list[bytes]) -> Iterable[tuple[str, str, bytes]]:
    """Yield class, name and content of each image, in 50 classes."""
    for number, content in enumerate(images):
        class_name = f"n{number % 50:08d}"
        yield class_name, f"{class_name}_{number}.JPEG", content


def _write_tree(root: Path, images: list[bytes]) -> Path:
    for class_name, name, content in _names(images):
        folder = root / class_name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return root


def _ours(bench: Bench, name: str, **request: Any) -> Callable[[], Cost]:
    """Return what packs once into a fresh folder ``name``."""
    root = Path(request.pop("folder", bench.directory)) / name
    path = bench.directory / f"{name}.json"
    path.write_text(json.dumps({"workers": 2, **request, "root": str(root)}))

    def execute() -> Cost:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        os.sync()
        return run([sys.executable, "-m", "bench.pack_once", str(path)], bench.directory / f"{name}.log")

    return execute


def _peak_mib(bench: Bench, name: str) -> float:
    """Return what the last run of `_ours` called ``name`` says of its memory."""
    return int((bench.directory / f"{name}.log").read_text().split()[-1]) / 1024


def _im2rec(bench: Bench, prefix: Path, tree: Path) -> Callable[[], Cost]:
    """Return what runs im2rec.py with two threads on the list ``<prefix>.lst``."""
    (script,) = (ROOT / ".venv-conformance").glob("lib/python3*/site-packages/mxnet/tools/im2rec.py")
    python = str(ROOT / ".venv-conformance" / "bin" / "python")
    options = ["--resize", "256", "--quality", "95", "--num-thread", "2"]
    command = [python, str(script), str(prefix), str(tree), *options]

    def execute() -> Cost:
        os.sync()
        return run(command, bench.directory / "im2rec.log")

    return execute


def _floor_cpu_seconds(images: list[bytes]) -> float:
    """Return the CPU seconds of the codec alone: the same calls on the same bytes, in one thread."""
    cv2.setNumThreads(0)
    began = time.process_time()
    for data in images:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            raise RuntimeError("a photograph of the sample does not decode")
        height, width = pixels.shape[:2]
        size = (256, height * 256 // width) if height > width else (width * 256 // height, 256)
        cv2.imencode(".jpg", cv2.resize(pixels, size), (cv2.IMWRITE_JPEG_QUALITY, 95))
    return time.process_time() - began


def _beside_im2rec(bench: Bench, tree: Path, images: list[bytes]) -> None:
    ours = {workers: _ours(bench, f"ours-{workers}", source=str(tree), workers=workers) for workers in (1, 2)}
    ours[2]()
    records = bench.directory / "ours-2" / "recordio"
    theirs = bench.directory / "theirs"
    theirs.mkdir()
    shutil.copy(records / "train.lst", theirs)
    # The same process with next to nothing to do is its start-up.
    few = _write_tree(bench.directory / "few", images[:1])
    floors: list[float] = []

    def floor() -> Cost:
        floors.append(_floor_cpu_seconds(images))
        return Cost(0, 0)

    costs = interleaved(
        {
            "start": _ours(bench, "start", source=str(few), workers=1),
            "one": ours[1],
            "floor": floor,
            "two": ours[2],
            "theirs": _im2rec(bench, theirs / "train", tree),
        },
        ROUNDS,
    )
    for suffix in ("rec", "idx"):
        if (records / f"train.{suffix}").read_bytes() != (theirs / f"train.{suffix}").read_bytes():
            raise RuntimeError(f"our train.{suffix} is not that of im2rec.py")
    one, two, peer = costs["one"], costs["two"], costs["theirs"]
    net, bare = one.cpu_seconds - costs["start"].cpu_seconds, statistics.median(floors)
    bench.record("pack.floor_ratio", net / bare, f"{net:.2f} s of CPU, the codec alone {bare:.2f} s")
    both = f"{two.cpu_seconds:.2f} s of CPU, im2rec.py {peer.cpu_seconds:.2f} s"
    bench.record("pack.im2rec_cpu_ratio", two.cpu_seconds / peer.cpu_seconds, both)
    both = f"{two.wall_seconds:.2f} s, im2rec.py {peer.wall_seconds:.2f} s"
    bench.record("pack.im2rec_wall_ratio_2_workers", two.wall_seconds / peer.wall_seconds, both)
    both = f"{one.wall_seconds:.2f} s with one worker, {two.wall_seconds:.2f} s with two"
    bench.record("pack.two_worker_speedup", one.wall_seconds / two.wall_seconds, both)
    bench.record("pack.rss_mib", _peak_mib(bench, "ours-2"))
    for path in (few, theirs, bench.directory / "ours-1", bench.directory / "ours-2"):
        shutil.rmtree(path)


def _memory(bench: Bench, images: list[bytes]) -> None:
    peaks = {}
    for name, chosen in (("tenth", images[: len(images) // 10]), ("all", images)):
        tree = _write_tree(bench.directory / f"tree-{name}", chosen)
        _ours(bench, f"memory-{name}", source=str(tree))()
        peaks[name] = _peak_mib(bench, f"memory-{name}")
        shutil.rmtree(tree)
        shutil.rmtree(bench.directory / f"memory-{name}")
    both = f"{peaks['tenth']:.0f} MiB for {len(images) // 10} images, {peaks['all']:.0f} MiB for {len(images)}"
    bench.record("pack.rss_growth_10x", peaks["all"] / peaks["tenth"], both)


def _beside_cat(bench: Bench, tree: Path) -> None:
    size_mb = sum(path.stat().st_size for path in tree.rglob("*.JPEG")) / 1e6
    copy = bench.directory / "cat"
    cat = ["sh", "-c", f"find {tree} -name '*.JPEG' -print0 | xargs -0 cat > {copy} && sync {copy}"]
    costs = interleaved(
        {
            "ours": _ours(bench, "passed", source=str(tree), pass_through=True),
            "cat": lambda: run(cat, bench.directory / "cat.log"),
        },
        ROUNDS,
    )
    ours, theirs = (size_mb / costs[name].wall_seconds for name in ("ours", "cat"))
    bench.record("pack.passthrough_vs_cat", ours / theirs, f"{ours:.0f} MB/s, cat {theirs:.0f} MB/s")
    copy.unlink()
    shutil.rmtree(bench.directory / "passed")


def _writer(bench: Bench) -> None:
    """Measure the writer alone, and what the disk takes of the same bytes in the same calls."""
    image = os.urandom(RECORD_BYTES - 32)
    count = int(WRITER_RECORDS * bench.scale) // 32 * 32
    record = frame(image_data(1, 1.0, image))
    path, index = bench.directory / "writer.rec", bench.directory / "writer.idx"

    def seconds(write: Callable[[int, int], None]) -> float:
        for name in (path, index):
            name.unlink(missing_ok=True)
        os.sync()
        flags = os.O_WRONLY | os.O_CREAT
        rec, idx = os.open(path, flags), os.open(index, flags)
        began = time.monotonic()
        write(rec, idx)
        took = time.monotonic() - began
        os.close(rec)
        os.close(idx)
        return took

    def ours(rec: int, idx: int) -> None:
        writer = RecordWriter(rec, idx)
        for begin in range(0, count, 32):
            # Framing is part of a record's way to the disk.
            records = [frame(image_data(number, 1.0, image)) for number in range(begin, begin + 32)]
            writer.write(range(begin, begin + 32), records)

    def plain(rec: int, _: int) -> None:
        for _begin in range(0, count, 32):
            os.writev(rec, [record] * 32)

    rates = [(count / seconds(ours), count / seconds(plain)) for _ in range(ROUNDS)]
    mine, disk = (statistics.median(values) for values in zip(*rates, strict=True))
    limit = f"the disk takes {disk:.0f} such records a second by plain writes"
    bench.record("pack.writer_records_per_s", mine, limit)
    bench.record("pack.writer_vs_plain_write", mine / disk, limit)
    for name in (path, index):
        name.unlink()


def _block_requests(bench: Bench, images: list[bytes]) -> None:
    counts = {}
    with LoopDisk(bench.directory, 8) as disk:
        archive = disk.mount / "train.tar"
        _write_archive(archive, images)
        drop_caches()
        before = disk.requests()
        _ours(bench, "requests", archive=str(archive), folder=str(disk.mount))()
        counts["ours"] = disk.requests() - before
        lst = (disk.mount / "requests" / "recordio" / "train.lst").read_bytes()
        ours = (disk.mount / "requests" / "recordio" / "train.rec").read_bytes()
        shutil.rmtree(disk.mount / "requests")
        theirs = disk.mount / "theirs"
        tree = theirs / "tree"
        tree.mkdir(parents=True)
        (theirs / "train.lst").write_bytes(lst)
        drop_caches()
        before = disk.requests()
        unpack = "tar -xf $0 && for t in *.tar; do mkdir ${t%.tar} && tar -xf $t -C ${t%.tar} && rm $t; done"
        run(["sh", "-ec", f"cd {tree}; {unpack}", str(archive)], bench.directory / "tar.log")
        drop_caches()
        _im2rec(bench, theirs / "train", tree)()
        counts["theirs"] = disk.requests() - before
        if (theirs / "train.rec").read_bytes() != ours:
            raise RuntimeError("our train.rec from the archive is not that of im2rec.py")
    both = f"{counts['ours']} requests, tar and im2rec.py {counts['theirs']}"
    bench.record("pack.block_requests_ratio", counts["ours"] / counts["theirs"], both)


def _write_archive(path: Path, images: list[bytes]) -> None:
    """Write the images as a tar of tars, one for each class."""
    classes: dict[str, list[tuple[str, bytes]]] = {}
    for class_name, name, content in _names(images):
        classes.setdefault(class_name, []).append((name, content))
    with tarfile.open(path, "w") as outer:
        for class_name, members in classes.items():
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for name, content in members:
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    inner.addfile(entry, io.BytesIO(content))
            entry = tarfile.TarInfo(f"{class_name}.tar")
            entry.size = buffer.tell()
            buffer.seek(0)
            outer.addfile(entry, buffer)
