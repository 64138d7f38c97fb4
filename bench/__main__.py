"""`python -m bench [--scale S] [AREA ...]`: measures, keeps artifacts/bench.json, prints the table."""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
from pathlib import Path

import ansible.module_utils

ROOT = Path(__file__).resolve().parent.parent
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

from bench.report import Bench, Target, keep, table  # noqa: E402 (needs the path above)

AREAS = ("pack", "formats", "fetch", "layout", "backup", "fleet")


def main() -> int:
    """Measure; 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"what to measure: {', '.join(AREAS)} (all)")
    parser.add_argument("--scale", type=float, default=1.0, help="a fraction of the work, to test the benchmarks")
    parser.add_argument("--directory", type=Path, help="folder for scratch files, on the disk to measure")
    arguments = parser.parse_args()
    unknown = set(arguments.areas) - set(AREAS)
    if unknown:
        parser.error(f"unknown area {', '.join(sorted(unknown))}; choose from {', '.join(AREAS)}")
    targets: list[Target] = []
    with tempfile.TemporaryDirectory(prefix="imagenet-ops-bench-", dir=arguments.directory) as directory:
        bench = Bench(Path(directory), arguments.scale)
        for name in arguments.areas or AREAS:
            print(f"==> {name}", flush=True)
            area = importlib.import_module(f"bench.{name}")
            targets += area.TARGETS
            is_met = False
            try:
                area.measure(bench)
                is_met = all(target.is_met(bench.figures.get(target.name)) for target in area.TARGETS)
            finally:
                if not is_met:
                    _keep_logs(bench.directory, ROOT / "artifacts" / f"bench-{name}-logs")
    print(table(targets, bench))
    if arguments.scale == 1.0:
        keep(ROOT / "artifacts" / "bench.json", bench.figures)
    else:
        print("A run with --scale only shows that the benchmarks work: no results were saved.")
    return int(not all(target.is_met(bench.figures.get(target.name)) for target in targets))


def _keep_logs(directory: Path, kept: Path) -> None:
    """Save the output of the runs of an area before the scratch files are deleted."""
    logs = sorted(directory.glob("*.log"))
    if logs:
        if kept.exists():
            shutil.rmtree(kept)
        kept.mkdir(parents=True)
        for log in logs:
            shutil.copy(log, kept)
        print(f"  the output of the runs is in {kept}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
