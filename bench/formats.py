"""The record formats: all five from one pass, conversion beside the formats' own tools, and their readers beside ours.

Ours is the engine of recordio_pack, in a fresh process each time. The peers are in .venv-judges (`bin/setup judges`).
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

from bench.convert_once import LIMIT_BYTES
from bench.measure import Cost, interleaved, median, run
from bench.pack import IMAGES, ROOT, ROUNDS, _images, _ours, _peak_mib, _repeat, _wall_of, _write_tree
from bench.report import Bench, Target

TARGETS = (
    Target("formats.all_five_wall_ratio", "<=", 1.15, "", "recordio alone"),
    Target("formats.convert_litdata_wall_ratio", "<=", 0.33, "", "litdata.optimize, two workers"),
    Target("formats.convert_mds_wall_ratio", "<=", 0.5, "", "MDSWriter"),
    Target("formats.convert_litdata_net_ratio", "<=", 0.33, "", "litdata.optimize, imports left out, 50,000 images"),
    Target("formats.convert_mds_net_ratio", "<=", 0.5, "", "MDSWriter, imports left out, 50,000 images"),
    Target("formats.rss_mib", "<=", 250, "MiB", "two workers"),
    Target("formats.reader_ratio", ">=", 1.0, "", "webdataset, Streaming and LitData, the fastest of them"),
)

ALL = ["recordio", "webdataset", "tfrecord", "mds", "parquet"]
PEERS = ("webdataset", "streaming", "litdata")
TIMES = 10  # as many images for the ratios without imports
NET_ROUNDS = 3
READ_SHARD_BYTES = 8 << 20  # so that webdataset has some for each worker, whatever the scale


def measure(bench: Bench) -> None:
    """Measure every figure of the formats."""
    tree = _write_tree(bench.directory / "tree", _images(bench, int(IMAGES * bench.scale)))
    peaks = [_all_five(bench, tree), *_convert(bench, tree)]
    bench.record("formats.rss_mib", max(peaks), "of all five, and of the conversions")
    _readers(bench, tree)
    shutil.rmtree(tree)


def _all_five(bench: Bench, tree: Path) -> float:
    """Measure all formats beside one; return the peak memory in MiB."""
    runs = {
        "one": _ours(bench, "one", source=str(tree), formats=["recordio"], shard_bytes=LIMIT_BYTES),
        "all": _ours(bench, "all", source=str(tree), formats=ALL, shard_bytes=LIMIT_BYTES),
    }
    rounds = interleaved(runs, ROUNDS)
    one, every = (median(rounds, _wall_of(name)) for name in runs)
    cpu_one, cpu_every = (median(rounds, _cpu_of(name)) for name in runs)
    ratio = median(rounds, lambda c: c["all"].wall_seconds / c["one"].wall_seconds)
    bench.record("formats.all_five_wall_ratio", ratio, f"{every:.2f} s, recordio alone {one:.2f} s")
    ratio = median(rounds, lambda c: c["all"].cpu_seconds / c["one"].cpu_seconds)
    bench.record("formats.all_five_cpu_ratio", ratio, f"{cpu_every:.2f} s of CPU, recordio alone {cpu_one:.2f} s")
    if any(not (bench.directory / "all" / name).is_dir() for name in ALL):
        raise RuntimeError("packing did not write all five formats")
    for name in runs:
        shutil.rmtree(bench.directory / name)
    return _peak_mib(bench, "all")


def _convert(bench: Bench, tree: Path) -> list[float]:
    """Measure passing images through to MDS beside the peers; return the peaks of memory in MiB."""
    runs = _converters(bench, tree)
    rounds = interleaved(runs, ROUNDS)
    peaks = [_peak_mib(bench, "ours")]
    for name in ("litdata", "mds"):
        _record_ratio(bench, f"formats.convert_{name}_wall_ratio", rounds, name)
    more = _repeat(tree, bench.directory / "more", TIMES)
    timed = {name: _timed_inside(bench, name, execute) for name, execute in _converters(bench, more).items()}
    rounds = interleaved(timed, NET_ROUNDS)
    peaks.append(_peak_mib(bench, "ours"))
    for name in ("litdata", "mds"):
        _record_ratio(bench, f"formats.convert_{name}_net_ratio", rounds, name)
    for path in (more, *(bench.directory / name for name in runs)):
        shutil.rmtree(path)
    return peaks


def _converters(bench: Bench, tree: Path) -> dict[str, Callable[[], Cost]]:
    request = {"source": str(tree), "pass_through": True, "formats": ["mds"], "shard_bytes": LIMIT_BYTES}
    return {
        "ours": _ours(bench, "ours", **request),
        **{tool: _peer(bench, tool, "bench.convert_once", str(tree), tool) for tool in ("litdata", "mds")},
    }


def _record_ratio(bench: Bench, figure: str, rounds: list[dict[str, Cost]], peer: str) -> None:
    ours, theirs = (median(rounds, _wall_of(name)) for name in ("ours", peer))
    ratio = median(rounds, lambda c: c["ours"].wall_seconds / c[peer].wall_seconds)
    bench.record(figure, ratio, f"{ours:.2f} s, {peer} {theirs:.2f} s")


def _peer(bench: Bench, tool: str, program: str, source: str, name: str) -> Callable[[], Cost]:
    """Return what converts ``source`` once into a fresh folder ``name`` with a program of .venv-judges."""
    folder = bench.directory / name
    command = [str(ROOT / ".venv-judges" / "bin" / "python"), "-m", program, tool, source, str(folder)]

    def execute() -> Cost:
        if folder.exists():
            shutil.rmtree(folder)
        os.sync()
        return run(command, bench.directory / f"{name}.log")

    return execute


def _timed_inside(bench: Bench, name: str, execute: Callable[[], Cost]) -> Callable[[], Cost]:
    """Return what runs ``execute`` and gives as wall time the seconds that the process itself says."""

    def timed() -> Cost:
        cost = execute()
        words = (bench.directory / f"{name}.log").read_text().split()
        return cost._replace(wall_seconds=float(words[-2 if name == "ours" else -1]))

    return timed


def _readers(bench: Bench, tree: Path) -> None:
    """Measure the readers on the same images."""
    formats = ["recordio", "webdataset", "mds"]
    request = {"source": str(tree), "pass_through": True, "formats": formats, "shard_bytes": READ_SHARD_BYTES}
    _ours(bench, "read", **request)()
    _peer(bench, "litdata", "bench.convert_once", str(tree), "litdata")()
    root = bench.directory / "read"
    folders = {
        "ours": root,
        "webdataset": root / "webdataset",
        "streaming": root / "mds" / "train",
        "litdata": bench.directory / "litdata",
    }
    rounds = [
        {reader: _images_per_second(bench, reader, folder) for reader, folder in folders.items()} for _ in range(ROUNDS)
    ]
    ratios = {}
    for peer in PEERS:
        ratios[peer] = statistics.median(rates["ours"] / rates[peer] for rates in rounds)
        ours, theirs = (statistics.median(rates[name] for rates in rounds) for name in ("ours", peer))
        bench.record(f"formats.reader_ratio_{peer}", ratios[peer], f"{ours:.0f} images/s, {peer} {theirs:.0f}")
    worst = min(PEERS, key=ratios.__getitem__)
    bench.record("formats.reader_ratio", ratios[worst], f"{worst}, the fastest of webdataset, Streaming and LitData")
    for path in (root, folders["litdata"]):
        shutil.rmtree(path)


def _images_per_second(bench: Bench, reader: str, folder: Path) -> float:
    log = bench.directory / f"read-{reader}.log"
    run([str(ROOT / ".venv-judges" / "bin" / "python"), "-m", "bench.read_once", reader, str(folder)], log)
    return float(log.read_text().split()[-1])


def _cpu_of(name: str) -> Callable[[dict[str, Cost]], float]:
    return lambda costs: costs[name].cpu_seconds
