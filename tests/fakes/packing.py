"""Packs a tree or a tar of it as recordio_pack does, in a child with its decoders, and says what became of each file.

As a program, `python -m tests.fakes.packing SOURCE ROOT POLICY WORKERS`, it can be killed.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import ansible.module_utils

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules  # noqa: E402
from ansible.module_utils.imagenet_ops.core import checkpoint  # noqa: E402
from ansible.module_utils.imagenet_ops.dataset.manifest import read_manifest  # noqa: E402
from ansible.module_utils.imagenet_ops.pack.decoder import CLOCK_SECONDS, Limits  # noqa: E402
from ansible.module_utils.imagenet_ops.pack.image import Recipe  # noqa: E402
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset  # noqa: E402
from ansible.module_utils.imagenet_ops.pack.supervision import supervised  # noqa: E402

SPLIT = "train"
RECIPE = Recipe(short_side_pixels=64, quality=90, resize_filter="linear", max_image_pixels=10_000_000)
LIMITS = Limits(seconds=10, memory_mib=1024)
RULES = ArchiveRules("any", "class_directories")


class Packed(NamedTuple):
    """What became of the files: how many are ``records``, and why each of the others is ``bad``, by its path."""

    records: int
    bad: dict[str, str]
    warnings: list[str]


def pack(
    source: Path, root: Path, policy: str, workers: int, recipe: Recipe = RECIPE, limits: Limits = LIMITS
) -> Packed:
    """Pack the tree or the archive ``source`` into ``root``. Raises OpsError."""
    is_tree = source.is_dir()
    split = SplitRequest(SPLIT, str(source) if is_tree else None, None if is_tree else str(source), RULES)
    request = PackRequest(
        "odd",
        str(root),
        str(root / ".state"),
        [split],
        recipe,
        shuffle_seed=1,
        on_bad_image=policy,
        workers=workers,
        limits=limits,
    )
    warnings: list[str] = []
    supervised(
        lambda warn: pack_dataset(request, check=False, warn=warn),
        request.state_dir,
        limits.seconds * CLOCK_SECONDS,
        warnings.append,
    )
    made = read_manifest(str(root)).splits[SPLIT]
    return Packed(made.records, dict(made.bad_images), warnings)


def made_files(root: Path) -> dict[str, bytes]:
    """Return the files of the data set in ``root``, without state and quarantine."""
    paths = [root / "manifest.json", root / "labels.tsv", *sorted((root / "recordio").iterdir())]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def quarantined(root: Path) -> set[str]:
    """Return the paths of the files in quarantine, below their split."""
    folder = root / "quarantine" / SPLIT
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def start(source: Path, root: Path, policy: str, workers: int) -> subprocess.Popen[bytes]:
    """Begin to pack in a process that can be killed; `finish` waits for it."""
    command = [sys.executable, "-m", "tests.fakes.packing", str(source), str(root), policy, str(workers)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Return the fields of `Packed`, and ``peak_mib``, the most memory that a process took."""
    output = process.communicate()[0]
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(output)
    return found


def main() -> None:
    """Pack, and print the result with the most memory that a process took, in MiB."""
    source, root, policy, workers = sys.argv[1:]
    checkpoint.JOURNAL_INTERVAL_SECONDS = 0.0  # so that a kill leaves something to resume
    result: dict[str, Any] = pack(Path(source), Path(root), policy, int(workers))._asdict()
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
