from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.dataset import warm as warm_module
from ansible.module_utils.imagenet_ops.dataset.warm import MIB, Segment, list_segments, warm_dataset

from tests.fakes.s3 import write_dataset

RECORDS = 5 * MIB + 17


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "set", {"recordio/train.rec": bytes(RECORDS), "labels.tsv": b"0\tn01440764\ttench\n"})
    return tmp_path / "set"


def warm(root: Path, volume: str = "vol-1", readers: int = 4, check_mode: bool = False) -> dict[str, Any]:
    return warm_dataset(str(root), volume, str(root.parent / "state"), readers, check_mode=check_mode)


def test_everything_is_read_once_and_another_volume_anew(root: Path) -> None:
    predicted = warm(root, check_mode=True)
    assert not (root.parent / "state").exists()
    first = warm(root)
    total = sum(os.path.getsize(path) for path in root.rglob("*") if path.is_file())
    for answer in (predicted, first):
        assert (answer["changed"], answer["read_bytes"], answer["bytes"]) == (True, total, total)
    assert first["mib_s"] > 0
    again = warm(root)
    assert (again["changed"], again["read_bytes"], again["mib_s"]) == (False, 0, 0)
    assert warm(root, check_mode=True)["changed"] is False
    assert warm(root, volume="vol-2")["read_bytes"] == total


def test_the_segments_cover_every_byte_of_every_file_once(root: Path) -> None:
    segments, _ = list_segments(str(root), [])
    for path in root.rglob("*"):
        if path.is_file():
            mine = sorted(segment[1:] for segment in segments if segment.name == str(path.relative_to(root)))
            ends = [offset + length for offset, length in mine]
            assert [offset for offset, _ in mine] == [0, *ends[:-1]]
            assert ends[-1] == path.stat().st_size
    assert max(segment.length for segment in segments) == MIB


def test_a_killed_run_goes_on_where_it_stopped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_module, "SAVE_SECONDS", 0.0)
    read, lock, seen = warm_module.read_segment, threading.Lock(), []

    def die_in_the_third(path: str, segment: Segment) -> None:
        with lock:
            seen.append(segment)
            if len(seen) >= 3:  # the reader would take the next one before the run has ended
                raise KeyboardInterrupt
        read(path, segment)

    monkeypatch.setattr(warm_module, "read_segment", die_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        warm(root, readers=1)
    done = sum(segment.length for segment in seen[:2])
    monkeypatch.setattr(warm_module, "read_segment", read)
    rest = warm(root)
    assert rest["read_bytes"] == rest["bytes"] - done
    progress = json.loads((root.parent / "state/dataset_warm.progress.json").read_text())
    assert (progress["done"], progress["finished"]) == (rest["bytes"], True)


def test_a_file_that_ends_early_is_named(root: Path) -> None:
    os.truncate(root / "recordio/train.rec", MIB)
    with pytest.raises(OpsError) as error:
        warm(root)
    assert str(error.value) == (
        f"File {root}/recordio/train.rec: it has {MIB} bytes, the manifest says more. "
        "Create the volume again from a snapshot"
    )


def test_a_file_that_is_missing_is_named(root: Path) -> None:
    (root / "recordio/train.rec").unlink()
    with pytest.raises(OpsError, match=r"recordio/train.rec: No such file or directory"):
        warm(root)


def test_a_filesystem_without_direct_access_is_read_through_the_cache(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    real = os.open

    def refuse(path: str, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument", path)
        opened.append(flags)
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    answer = warm(root)
    assert answer["read_bytes"] == answer["bytes"]
    assert opened


def test_no_reader_is_no_reading(root: Path) -> None:
    with pytest.raises(OpsError, match=r"0 readers: that reads nothing\. Give at least 1"):
        warm(root, readers=0)
