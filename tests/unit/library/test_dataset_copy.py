from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dataset_copy
import pytest
from ansible.module_utils.testing import patch_module_args

from tests.fakes.s3 import write_dataset


def run_module(capsys: pytest.CaptureFixture[str], folder: Path, **arguments: Any) -> dict[str, Any]:
    given = {"root": str(folder / "root"), "dest": str(folder / "dest"), "state_dir": str(folder / "state")}
    with patch_module_args({**given, **arguments}), pytest.raises(SystemExit):
        dataset_copy.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_check_copy_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "root").mkdir()
    write_dataset(tmp_path / "root", {"recordio/train.rec": bytes(3000), "labels.tsv": b"0\tn01440764\ttench\n"})
    predicted = run_module(capsys, tmp_path, _ansible_check_mode=True)
    assert not (tmp_path / "dest").exists()
    made = run_module(capsys, tmp_path)
    for answer in (predicted, made):
        assert (answer["changed"], answer["files"], answer["copied"]) == (True, 3, 3)
    assert (tmp_path / "dest" / "recordio" / "train.rec").read_bytes() == bytes(3000)
    progress = json.loads((tmp_path / "state" / "dataset_copy.progress.json").read_text())
    assert (progress["finished"], progress["unit"]) == (True, "bytes")
    for check_mode in (True, False):
        again = run_module(capsys, tmp_path, _ansible_check_mode=check_mode)
        assert (again["changed"], again["copied"]) == (False, 0)


def test_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, tmp_path)
    assert answer["failed"] is True
    assert answer["msg"].startswith(f"Manifest {tmp_path}/root/manifest.json: it cannot be read")
