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
from ansible.module_utils.imagenet_ops.formats.recordio import RECORDIO, frame, image_data, write_all

from bench.measure import Cost, LoopDisk, drop_caches, interleaved, median, run
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
ROUNDS = 5
RECORD_BYTES = 43_000  # what an image of ImageNet has at 256 pixels and quality 95
WRITER_RECORDS = 60_000


def measure(bench: Bench) -> None:
    """Measure every figure of packing."""
    images = _images(bench, int(IMAGES * bench.scale))
    tree = _write_tree(bench.directory / "tree", images)
    _beside_im2rec(bench, tree, images)
    _memory(bench, tree, len(images))
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
                    files = (inner.extractfile(image) for image in inner)
                    found += [file.read() for file in files if file is not None]
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


def _floor(images: list[bytes]) -> Cost:
    """Return the cost of the codec alone: the same calls on the same bytes, in one thread."""
    cv2.setNumThreads(0)
    began, cpu_began = time.monotonic(), time.process_time()
    for data in images:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            raise RuntimeError("a photograph of the sample does not decode")
        height, width = pixels.shape[:2]
        size = (256, height * 256 // width) if height > width else (width * 256 // height, 256)
        cv2.imencode(".jpg", cv2.resize(pixels, size), (cv2.IMWRITE_JPEG_QUALITY, 95))
    return Cost(time.monotonic() - began, time.process_time() - cpu_began)


def _beside_im2rec(bench: Bench, tree: Path, images: list[bytes]) -> None:
    ours = {workers: _ours(bench, f"ours-{workers}", source=str(tree), workers=workers) for workers in (1, 2)}
    ours[2]()
    records = bench.directory / "ours-2" / "recordio"
    theirs = bench.directory / "theirs"
    theirs.mkdir()
    shutil.copy(records / "train.lst", theirs)
    # The same process with next to nothing to do is its start-up.
    few = _write_tree(bench.directory / "few", images[:1])

    rounds = interleaved(
        {
            "start": _ours(bench, "start", source=str(few), workers=1),
            "one": ours[1],
            "floor": lambda: _floor(images),
            "two": ours[2],
            "theirs": _im2rec(bench, theirs / "train", tree),
        },
        ROUNDS,
    )
    for suffix in ("rec", "idx"):
        if (records / f"train.{suffix}").read_bytes() != (theirs / f"train.{suffix}").read_bytes():
            raise RuntimeError(f"our train.{suffix} is not that of im2rec.py")

    def cpu(name: str) -> float:
        return median(rounds, lambda costs: costs[name].cpu_seconds)

    def wall(name: str) -> float:
        return median(rounds, lambda costs: costs[name].wall_seconds)

    bench.record(
        "pack.floor_ratio",
        median(rounds, lambda c: (c["one"].cpu_seconds - c["start"].cpu_seconds) / c["floor"].cpu_seconds),
        f"{cpu('one') - cpu('start'):.2f} s of CPU, the codec alone {cpu('floor'):.2f} s",
    )
    bench.record(
        "pack.im2rec_cpu_ratio",
        median(rounds, lambda c: c["two"].cpu_seconds / c["theirs"].cpu_seconds),
        f"{cpu('two'):.2f} s of CPU, im2rec.py {cpu('theirs'):.2f} s",
    )
    bench.record(
        "pack.im2rec_wall_ratio_2_workers",
        median(rounds, lambda c: c["two"].wall_seconds / c["theirs"].wall_seconds),
        f"{wall('two'):.2f} s, im2rec.py {wall('theirs'):.2f} s",
    )
    bench.record(
        "pack.two_worker_speedup",
        median(rounds, lambda c: c["one"].wall_seconds / c["two"].wall_seconds),
        f"{wall('one'):.2f} s with one worker, {wall('two'):.2f} s with two",
    )
    bench.record("pack.rss_mib", _peak_mib(bench, "ours-2"))
    for path in (few, theirs, bench.directory / "ours-1", bench.directory / "ours-2"):
        shutil.rmtree(path)


def _repeat(tree: Path, root: Path, times: int) -> Path:
    """Make a tree with each image of ``tree`` so many times, as links: more records of the same few bytes on disk."""
    for path in sorted(tree.rglob("*.JPEG")):
        folder = root / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(times):
            (folder / f"{path.stem}_{number}.JPEG").hardlink_to(path)
    return root


def _memory(bench: Bench, tree: Path, count: int) -> None:
    peaks = []
    for times in (1, 10):
        source = _repeat(tree, bench.directory / f"times-{times}", times)
        _ours(bench, "memory", source=str(source))()
        peaks.append(_peak_mib(bench, "memory"))
        shutil.rmtree(source)
        shutil.rmtree(bench.directory / "memory")
    both = f"{peaks[0]:.0f} MiB for {count} images, {peaks[1]:.0f} MiB for {10 * count}"
    bench.record("pack.rss_growth_10x", peaks[1] / peaks[0], both)


def _beside_cat(bench: Bench, tree: Path) -> None:
    source = _repeat(tree, bench.directory / "four", 4)
    size_mb = sum(path.stat().st_size for path in source.rglob("*.JPEG")) / 1e6
    copy = bench.directory / "cat"
    cat = ["sh", "-c", f"find {source} -name '*.JPEG' -print0 | xargs -0 cat > {copy} && sync {copy}"]

    def remove_and_cat() -> Cost:
        copy.unlink(missing_ok=True)
        os.sync()
        return run(cat, bench.directory / "cat.log")

    passed = _ours(bench, "passed", source=str(source), pass_through=True)
    rounds = interleaved({"ours": passed, "cat": remove_and_cat}, ROUNDS)
    ours, theirs = (size_mb / median(rounds, _wall_of(name)) for name in ("ours", "cat"))
    ratio = median(rounds, lambda c: c["cat"].wall_seconds / c["ours"].wall_seconds)
    bench.record("pack.passthrough_vs_cat", ratio, f"{ours:.0f} MB/s, cat {theirs:.0f} MB/s")
    copy.unlink()
    for path in (source, bench.directory / "passed"):
        shutil.rmtree(path)


def _wall_of(name: str) -> Callable[[dict[str, Cost]], float]:
    return lambda costs: costs[name].wall_seconds


def _writer(bench: Bench) -> None:
    """Measure the writer alone, and what the disk takes of the same bytes in the same calls."""
    count = int(WRITER_RECORDS * bench.scale) // 32 * 32
    # Framed already, for that is the workers' part; different ones, for one alone would lie in the processor's cache.
    records = [frame(image_data(number, 1.0, os.urandom(RECORD_BYTES - 32))) for number in range(1024)]
    chunks = [records[begin : begin + 32] for begin in range(0, len(records), 32)]
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
        offset = 0
        for begin in range(0, count, 32):
            lines = []
            records = chunks[begin // 32 % len(chunks)]
            for number, record in enumerate(records, begin):
                lines.append(RECORDIO.index_line(number, offset))
                offset += len(record)
            write_all(rec, records)
            write_all(idx, ["".join(lines).encode("ascii")])

    def plain(rec: int, _: int) -> None:
        for begin in range(0, count, 32):
            os.writev(rec, chunks[begin // 32 % len(chunks)])

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
