"""A copy is whole and right or it has no manifest; a volume of the size that is named holds it."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core import disk
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.dataset.copy import copy_dataset, deploy_volume_gib, manifest_info
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.killed import NEVER, Kills
from tests.fakes.s3 import write_dataset
from tests.fakes.seeds import kill_seeds

RECORDS = random.Random(5).randbytes(200_000)
FILES = {
    "archives/ILSVRC2012_img_val.tar": bytes(5000),
    "recordio/train.rec": RECORDS,
    "recordio/train.idx": b"0\t0\n",
    "recordio/train.lst": b"0\t0\tn01440764/a.JPEG\n",
    "labels.tsv": b"0\tn01440764\ttench\n",
}
COPIED = [*(name for name in FILES if not name.startswith("archives")), "manifest.json"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "imagenet"
    root.mkdir()
    write_dataset(root, FILES)
    return root


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "mounted" / "imagenet"


def copy(root: Path, dest: Path, *, check_mode: bool = False) -> dict[str, Any]:
    return copy_dataset(str(root), str(dest), str(root / ".state"), check_mode=check_mode)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_gpu_hosts_need_is_copied_and_nothing_else(root: Path, dest: Path) -> None:
    expected = {name: (root / name).read_bytes() for name in COPIED}
    predicted = copy(root, dest, check_mode=True)
    assert not dest.exists()
    assert not (root / ".state").exists()
    made = copy(root, dest)
    assert made == predicted
    assert (made["changed"], made["files"], made["copied"]) == (True, 5, 5)
    assert made["bytes"] == sum(len(FILES[name]) for name in COPIED[:-1])
    assert made["dataset_version"] == hashlib.sha256(expected["manifest.json"]).hexdigest()[:12]
    assert contents(dest) == expected
    for check_mode in (True, False):
        again = copy(root, dest, check_mode=check_mode)
        assert (again["changed"], again["copied"]) == (False, 0)


def test_a_file_that_went_missing_or_short_is_copied_again_and_only_that(root: Path, dest: Path) -> None:
    copy(root, dest)
    whole = contents(dest)
    (dest / "labels.tsv").unlink()
    os.truncate(dest / "recordio" / "train.idx", 2)
    repaired = copy(root, dest)
    assert (repaired["changed"], repaired["copied"]) == (True, 2)
    assert contents(dest) == whole


def test_records_that_were_changed_since_they_were_packed_are_not_passed_on(root: Path, dest: Path) -> None:
    changed = RECORDS[:100_000] + b"x" + RECORDS[100_001:]
    (root / "recordio" / "train.rec").write_bytes(changed)
    with pytest.raises(OpsError) as caught:
        copy(root, dest)
    assert str(caught.value) == (
        f"File {root}/recordio/train.rec: checksum mismatch: expected SHA-256 {hashlib.sha256(RECORDS).hexdigest()} "
        f"(manifest), got {hashlib.sha256(changed).hexdigest()}. It has changed since it was packed: restore it from "
        "the backup, or pack the data set again"
    )
    assert "recordio/train.rec" not in contents(dest)
    assert "manifest.json" not in contents(dest)


def test_what_a_lost_host_left_of_a_file_is_not_believed(root: Path, dest: Path) -> None:
    (dest / "recordio").mkdir(parents=True)
    (dest / "recordio" / "train.rec.part").write_bytes(bytes(100_000))
    (dest / "recordio" / "train.idx.part").write_bytes(b"longer than the file itself")
    copy(root, dest)
    assert contents(dest) == {name: (root / name).read_bytes() for name in COPIED}


def test_a_volume_that_is_too_small_is_told_before_anything_is_written(
    root: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _: 150_000)
    with pytest.raises(OpsError, match=r"0\.00 GiB are needed and 0\.00 GiB are free\. Free space or enlarge"):
        copy(root, dest)
    assert not dest.exists()


def test_a_directory_without_a_manifest(tmp_path: Path, dest: Path) -> None:
    expected = r"Manifest .*manifest.json: it cannot be read \(No such file or directory\)"
    with pytest.raises(OpsError, match=expected):
        copy(tmp_path, dest)
    with pytest.raises(OpsError, match=expected):
        manifest_info(str(tmp_path))


# --- kills


@pytest.fixture(scope="module")
def kills() -> Iterator[Kills]:
    with Kills() as running:
        yield running


@pytest.mark.parametrize("seed", kill_seeds(10))
def test_killed_anywhere_and_run_again(root: Path, dest: Path, kills: Kills, seed: int) -> None:
    arguments = {"root": str(root), "dest": str(dest), "state_dir": str(root / ".state")}
    chance = random.Random(seed)
    kept = 0
    for _ in range(3):
        kills.run("copy", arguments, chance.randint(1, 30))
        copied = contents(dest) if dest.exists() else {}
        if "manifest.json" in copied:
            assert all(copied[name] == FILES[name] for name in COPIED[:-1])
        size = sum(len(content) for content in copied.values())
        assert size >= kept, "an earlier run's work is kept"
        kept = size
    kills.run("copy", arguments, NEVER)
    assert contents(dest) == {name: (root / name).read_bytes() for name in COPIED}
    assert copy(root, dest)["changed"] is False


# --- the size of the volume


def test_the_manifest_s_numbers(root: Path) -> None:
    info = manifest_info(str(root))
    assert (info["changed"], info["records"], info["classes"], info["deploy_volume_gib"]) == (False, {"train": 1}, 1, 1)
    assert info["bytes"] == sum((root / name).stat().st_size for name in COPIED)


@given(st.lists(st.integers(0, 200 << 30), max_size=40))
def test_a_volume_is_not_much_larger_than_its_files(sizes: list[int]) -> None:
    data_bytes = sum(sizes)
    size_bytes = deploy_volume_gib(sizes) << 30
    upper_bytes = 1.021 * (data_bytes + 4096 * len(sizes)) + (64 << 20) + (1 << 30)
    assert data_bytes < size_bytes <= upper_bytes
    assert deploy_volume_gib([*sizes, 1 << 30]) > deploy_volume_gib(sizes)


@pytest.mark.parametrize("data_gib", [0.1, 0.9, 1, 1.9, 7, 30, 62, 119, 137.9, 300, 1100])
def test_ext4_on_such_a_volume_has_room_for_the_files(tmp_path: Path, data_gib: float) -> None:
    """mkfs.ext4 itself is asked, on a sparse file."""
    if not shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
        pytest.skip("mkfs.ext4 is missing (Debian package e2fsprogs)")
    size_bytes = int(data_gib * (1 << 30))
    image = tmp_path / "volume.img"
    with image.open("wb") as file:
        file.truncate(deploy_volume_gib([size_bytes]) << 30)
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "LC_ALL": "C"}
    subprocess.run(
        ["mkfs.ext4", "-q", "-F", "-m", "0", "-T", "largefile4", image],
        check=True,
        capture_output=True,
        env=environment,
    )
    told = subprocess.run(["dumpe2fs", "-h", image], check=True, capture_output=True, text=True, env=environment).stdout
    image.unlink()
    facts = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    # An extent tree takes a block for every 340 extents of 128 MiB.
    extents_bytes = 4096 * (size_bytes // (340 * (128 << 20)) + 1)
    assert int(facts["Free blocks"]) * int(facts["Block size"]) >= size_bytes + extents_bytes
