"""Layout against the manual way: GNU tar in a shell loop, and a script of mkdir and mv.

Ours is the engine that the module imagenet_layout calls, in a fresh process each time, imports and all. Whatever is
compared runs on the same disk with a cold cache, and what was written is on the disk when the clock is stopped.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.measure import Cost, drop_caches, interleaved, median, run
from bench.report import Bench, Target

TARGETS = (
    Target("layout.tar_wall_ratio", "<=", 0.8, "", "tar, then a loop of mkdir, tar and rm over the classes"),
    Target("layout.validation_script_ratio", "<=", 0.05, "", "a script of 1,000 mkdir and 50,000 mv"),
    Target("layout.rerun_seconds_50k", "<=", 5, "s", "the same once more"),
)

ROUNDS = 5
# A round of the script takes a minute or more.
SCRIPT_ROUNDS = 3
# The average of ILSVRC2012's training images: 147,897,477,120 bytes of archive, 1,281,167 images.
IMAGE_BYTES = 115_000
IMAGES = 10_000
CLASS_IMAGES = 100
VALIDATION_IMAGES = 50_000
VALIDATION_CLASSES = 1_000


def measure(bench: Bench) -> None:
    """Measure every figure of laying out."""
    _beside_tar(bench)
    _beside_the_script(bench)


def _ours(bench: Bench, name: str, prepare: Callable[[], None], **request: Any) -> Callable[[], Cost]:
    """Return what lays out once, after ``prepare``; its answer is in ``<name>.log``."""
    path = bench.directory / f"{name}.json"
    path.write_text(json.dumps({"state_dir": str(bench.directory / ".state"), **request}))
    once = f"{sys.executable} -m bench.layout_once {path} && sync -f {bench.directory}"

    def execute() -> Cost:
        prepare()
        drop_caches()
        return run(["sh", "-ec", once], bench.directory / f"{name}.log")

    return execute


def _theirs(bench: Bench, prepare: Callable[[], None], script: str) -> Callable[[], Cost]:
    """Return what runs the shell ``script``, after ``prepare``."""
    path = bench.directory / "script.sh"
    path.write_text(f"set -e\n{script}sync -f {bench.directory}\n")
    command = ["sh", str(path)]

    def execute() -> Cost:
        prepare()
        drop_caches()
        return run(command, bench.directory / "theirs.log")

    return execute


def _answer(bench: Bench, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((bench.directory / f"{name}.log").read_text())
    return answer


def _wall(rounds: list[dict[str, Cost]], name: str) -> float:
    return median(rounds, lambda costs: costs[name].wall_seconds)


def _ratio(rounds: list[dict[str, Cost]], ours: str, theirs: str) -> float:
    return median(rounds, lambda costs: costs[ours].wall_seconds / costs[theirs].wall_seconds)


def _beside_tar(bench: Bench) -> None:
    archive = bench.directory / "train.tar"
    count = max(CLASS_IMAGES, int(IMAGES * bench.scale))
    _write_train_archive(archive, count)
    ours, theirs, state = (bench.directory / name for name in ("ours", "theirs", ".state"))

    def forget() -> None:
        for folder in (ours, state):
            shutil.rmtree(folder, ignore_errors=True)

    def empty() -> None:
        shutil.rmtree(theirs, ignore_errors=True)
        theirs.mkdir()

    loop = 'for t in *.tar; do d="${t%.tar}"; mkdir "$d"; tar -xf "$t" -C "$d"; rm "$t"; done'
    request = {"name_rules": "train", "layout": "class_archives", "archive": str(archive), "dest": str(ours)}
    rounds = interleaved(
        {
            "ours": _ours(bench, "train", forget, **request, expected_images=count),
            "theirs": _theirs(bench, empty, f"cd {theirs}\ntar -xf {archive}\n{loop}\n"),
        },
        ROUNDS,
    )
    subprocess.run(["diff", "-r", str(ours), str(theirs)], check=True)
    both = f"{_wall(rounds, 'ours'):.2f} s for {count} images, tar {_wall(rounds, 'theirs'):.2f} s"
    bench.record("layout.tar_wall_ratio", _ratio(rounds, "ours", "theirs"), both)
    for folder in (ours, theirs, state):
        shutil.rmtree(folder, ignore_errors=True)
    archive.unlink()


def _write_train_archive(path: Path, count: int) -> None:
    """Write a tar of tars with ``count`` images that do not compress, of the sizes that photographs have."""
    chance = random.Random(1)  # noqa: S311 (reproducible on purpose)
    noise = chance.randbytes(4 * IMAGE_BYTES)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as outer:
        for number in range(count // CLASS_IMAGES):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as inner:
                for image in range(CLASS_IMAGES):
                    size, begin = chance.randrange(2 * IMAGE_BYTES), chance.randrange(2 * IMAGE_BYTES)
                    _add(inner, f"n{number:08d}_{image}.JPEG", noise[begin : begin + size])
            _add(outer, f"n{number:08d}.tar", buffer.getvalue())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _beside_the_script(bench: Bench) -> None:
    count = int(VALIDATION_IMAGES * bench.scale)
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, count + 1)]
    chance = random.Random(2)  # noqa: S311 (reproducible on purpose)
    wnids = [f"n{chance.randrange(VALIDATION_CLASSES):08d}" for _ in names]
    labels = bench.directory / "labels.txt"
    labels.write_text("".join(f"{wnid}\n" for wnid in wnids))
    ours, theirs, state = (bench.directory / name for name in ("ours", "theirs", ".state"))

    def flat(folder: Path) -> None:
        for old in (folder, state):
            shutil.rmtree(old, ignore_errors=True)
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"\xff\xd8")

    lines = [f"cd {theirs}", *(f"mkdir -p {wnid}" for wnid in sorted(set(wnids)))]
    lines += [f"mv {name} {wnid}/" for name, wnid in zip(names, wnids, strict=True)]
    request = {"name_rules": "validation", "layout": "labelled_files", "labels": str(labels), "expected_images": count}
    request |= {"directory": str(ours), "dest": str(ours)}
    reruns: list[float] = []

    def again() -> Cost:
        cost = _ours(bench, "again", lambda: None, **request)()
        if _answer(bench, "again")["changed"]:
            raise RuntimeError("the second run changed something")
        reruns.append(cost.wall_seconds)
        return cost

    rounds = interleaved(
        {
            "ours": _ours(bench, "validation", lambda: flat(ours), **request),
            "again": again,
            "theirs": _theirs(bench, lambda: flat(theirs), "".join(f"{line}\n" for line in lines)),
        },
        SCRIPT_ROUNDS,
    )
    subprocess.run(["diff", "-r", str(ours), str(theirs)], check=True)
    both = f"{_wall(rounds, 'ours'):.2f} s for {count} files, the script {_wall(rounds, 'theirs'):.2f} s"
    bench.record("layout.validation_script_ratio", _ratio(rounds, "ours", "theirs"), both)
    bench.record("layout.rerun_seconds_50k", statistics.median(reruns), f"{count} files, nothing to do, cold cache")
    for folder in (ours, theirs, state):
        shutil.rmtree(folder, ignore_errors=True)
