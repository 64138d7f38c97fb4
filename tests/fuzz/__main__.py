"""`python -m tests.fuzz [SECONDS=60] [TARGET=tar,zip]`: fuzzes with coverage, and prints what each target did.

Inputs that reach new code are kept in .cache/fuzz, where the next run goes on. An input that breaks a target is written
into artifacts/fuzz, with what it did; the same command with the file instead of SECONDS shows it again:

    .venv-fuzz/bin/python -m tests.fuzz.one tar artifacts/fuzz/tar/crash-...
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import ansible.module_utils

ROOT = Path(__file__).resolve().parents[2]
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

from tests.fuzz import targets  # noqa: E402 (needs the paths above)

CORPUS = ROOT / ".cache" / "fuzz"
FINDINGS = ROOT / "artifacts" / "fuzz"
DEFAULT_SECONDS = 60
# Of one input: what takes longer, or this much memory, is a finding.
INPUT_SECONDS = 25
MEMORY_MIB = 2048
LARGEST_INPUT_BYTES = 32 * 1024


class Figures(NamedTuple):
    """What came of a target: ``finding`` is the last line of what went wrong, "" where nothing did."""

    executions: int
    seconds: float
    inputs: int
    finding: str


def main() -> int:
    """Fuzz; 1 if there is a finding."""
    options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    names = options.pop("TARGET", "").split(",") if options.get("TARGET") else list(targets.TARGETS)
    seconds = options.pop("SECONDS", str(DEFAULT_SECONDS))
    unknown = [*options, *(word for word in sys.argv[1:] if "=" not in word), *(set(names) - set(targets.TARGETS))]
    if unknown or not seconds.isdecimal():
        print(f"usage: make fuzz ARGS='SECONDS=60 TARGET=tar,zip'; targets: {', '.join(targets.TARGETS)}")
        return 2
    print(f"{'target':<16}{'executions':>11}{'seconds':>9}{'inputs':>8}  finding", flush=True)
    found = 0
    for name in names:
        figures = fuzz(name, int(seconds))
        found += bool(figures.finding)
        row = f"{name:<16}{figures.executions:>11,}{figures.seconds:>9.0f}{figures.inputs:>8,}"
        print(f"{row}  {figures.finding or 'none'}", flush=True)
    return int(bool(found))


def fuzz(name: str, seconds: int) -> Figures:
    """Fuzz the target ``name`` in a process of its own."""
    corpus, findings = CORPUS / name, FINDINGS / name
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.TARGETS[name].seeds()):
        (corpus / f"seed-{number:03d}").write_bytes(seed)
    log = findings / "log.txt"
    began = time.monotonic()
    command = [
        sys.executable, "-m", "tests.fuzz.one", name, str(corpus),
        f"-max_total_time={seconds}", f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}",
        f"-max_len={LARGEST_INPUT_BYTES}", f"-artifact_prefix={findings}/", "-print_final_stats=1",
    ]  # fmt: skip
    with log.open("wb") as output:
        status = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    text = log.read_text(encoding="utf-8", errors="replace")
    executed = map(int, re.findall(r"^(?:stat::number_of_executed_units: |#)(\d+)", text, re.MULTILINE))
    reasons = re.findall(r"^(?:[\w.]*(?:Error|Exception)\b.*|.*ERROR: libFuzzer: .*)$", text, re.MULTILINE)
    finding = "" if status == 0 else f"{reasons[0] if reasons else f'status {status}'} ({log.relative_to(ROOT)})"
    return Figures(max(executed, default=0), time.monotonic() - began, len(list(corpus.iterdir())), finding)


if __name__ == "__main__":
    sys.exit(main())
