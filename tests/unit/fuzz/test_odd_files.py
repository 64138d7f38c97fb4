"""Odd files, a few: none of them ends the packing. tests/drill/test_odd_files.py has thousands."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError

from tests.fakes.odd_files import odd_files, write_odd_files
from tests.fakes.packing import finish, made_files, pack, quarantined, start

FILES = 150


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tree, archive = write_odd_files(tmp_path_factory.mktemp("odd"), FILES)
    return {"tree": tree, "tar": archive}


def records_of(root: Path) -> dict[str, bytes]:
    """Return what was made but the manifest, which names the policy."""
    return {name: content for name, content in made_files(root).items() if name != "manifest.json"}


@pytest.mark.parametrize(("kind", "policy"), [("tree", "quarantine"), ("tar", "skip")])
def test_each_odd_file_is_a_record_or_is_named(
    tmp_path: Path, sources: dict[str, Path], kind: str, policy: str
) -> None:
    made = []
    for workers in (1, 4):
        root = tmp_path / str(workers)
        packed = pack(sources[kind], root, policy, workers)
        assert packed.records + len(packed.bad) == FILES
        assert packed.records >= 20
        assert all(packed.bad.values())
        assert packed.warnings == []
        assert quarantined(root) == (set(packed.bad) if policy == "quarantine" else set())
        made.append(made_files(root))
    assert made[0] == made[1]
    pack(sources["tree"], tmp_path / "tree", "skip", 2)
    assert records_of(tmp_path / "1") == records_of(tmp_path / "tree")


def test_the_run_that_stops_names_an_odd_file(tmp_path: Path, sources: dict[str, Path]) -> None:
    with pytest.raises(OpsError) as caught:
        pack(sources["tree"], tmp_path / "fail", "fail", 2)
    bad = pack(sources["tree"], tmp_path / "skip", "skip", 2).bad
    name = caught.value.what.removeprefix(f"Image {sources['tree']}/")
    assert bad[name] == caught.value.why


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path, sources: dict[str, Path]) -> None:
    pack(sources["tree"], tmp_path / "whole", "skip", 2)
    process = start(sources["tree"], tmp_path / "killed", "skip", 2)
    checkpoint = tmp_path / "killed" / ".state" / "recordio_pack.train.part.json"
    # Until some records are durable; it ends with the process, if that ends.
    while process.poll() is None and not (
        checkpoint.exists() and json.loads(checkpoint.read_text())["position"]["place"]
    ):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finish(start(sources["tree"], tmp_path / "killed", "skip", 2))
    assert made_files(tmp_path / "killed") == made_files(tmp_path / "whole")


def test_odd_files_are_the_same_for_the_same_seed() -> None:
    assert list(odd_files(60)) == list(odd_files(60))
    assert list(odd_files(60)) != list(odd_files(60, seed=1))
