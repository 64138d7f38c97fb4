"""A folder of thousands of odd files: none of them ends the packing, and each is a record or is named with its reason.

`make drill ARGS="-k odd_files -s"` prints the figures.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.pack.decoder import Transformer
from ansible.module_utils.imagenet_ops.pack.image import STRICT, BadImageError

from tests.fakes.odd_files import write_odd_files
from tests.fakes.packing import LIMITS, RECIPE, finish, made_files, quarantined, start

FILES = 3000
KILLS = 4
# A decoder process with its libraries, or the packing, and a few small images.
MOST_MEMORY_MIB = 512


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tree, archive = write_odd_files(tmp_path_factory.mktemp("odd"), FILES)
    return {"tree": tree, "tar": archive}


@pytest.fixture(scope="module")
def expected(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that any run must make of these images."""
    root = tmp_path_factory.mktemp("expected")
    finish(start(sources["tree"], root, "skip", 2))
    return made_files(root)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("policy", ["skip", "quarantine"])
@pytest.mark.parametrize("kind", ["tree", "tar"])
def test_each_of_the_odd_files_is_a_record_or_is_named(
    tmp_path: Path, sources: dict[str, Path], expected: dict[str, bytes], kind: str, policy: str, workers: int
) -> None:
    generator = random.Random(f"{kind} {policy} {workers}")
    began = time.monotonic()
    whole = finish(start(sources[kind], tmp_path / "whole", policy, workers))
    seconds = time.monotonic() - began
    kills = 0
    for _ in range(KILLS):
        process = start(sources[kind], tmp_path / "killed", policy, workers)
        try:
            process.wait(seconds * generator.uniform(0.2, 0.9))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
    resumed = finish(start(sources[kind], tmp_path / "killed", policy, workers))
    bad = whole["bad"]
    sys.stdout.write(
        f"\n{kind}, {policy}, {workers} workers: {whole['records']} records + {len(bad)} bad = {FILES} files,"
        f" {seconds:.1f} s, peak {whole['peak_mib']} MiB; {kills} kills\n"
    )
    assert whole["records"] + len(bad) == FILES
    assert all(bad.values())
    assert (resumed["records"], resumed["bad"]) == (whole["records"], bad)
    assert whole["peak_mib"] < MOST_MEMORY_MIB
    for root in (tmp_path / "whole", tmp_path / "killed"):
        made = made_files(root)
        # The manifest names the policy.
        assert {name: content for name, content in made.items() if name != "manifest.json"} == {
            name: content for name, content in expected.items() if name != "manifest.json"
        }
        assert quarantined(root) == (set(bad) if policy == "quarantine" else set())
    assert made_files(tmp_path / "whole") == made_files(tmp_path / "killed")


def test_no_odd_file_takes_long(sources: dict[str, Path]) -> None:
    took: list[tuple[float, str, str]] = []
    with Transformer(RECIPE._replace(jpeg_check=STRICT), LIMITS) as transformer:
        for path in sorted(sources["tree"].rglob("*.*")):
            began = time.monotonic()
            (outcome,) = transformer.transform_all([path.name], [path.read_bytes()])
            reason = str(outcome) if isinstance(outcome, BadImageError) else "record"
            took.append((time.monotonic() - began, path.name, reason))
    sys.stdout.writelines(f"\n{seconds:.3f} s {name}: {reason}\n" for seconds, name, reason in sorted(took)[-3:])
    assert len(took) == FILES
    assert max(took)[0] < LIMITS.seconds
