from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dataset_warm
import pytest
from ansible.module_utils.testing import patch_module_args

from tests.fakes.s3 import write_dataset


def run_module(capsys: pytest.CaptureFixture[str], root: Path, **arguments: Any) -> dict[str, Any]:
    given = {"root": str(root / "set"), "volume_id": "vol-1", "state_dir": str(root / "state"), **arguments}
    with patch_module_args(given), pytest.raises(SystemExit):
        dataset_warm.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_check_read_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "set", {"recordio/train.rec": bytes(1 << 20), "labels.tsv": b"0\tn01440764\ttench\n"})
    changed = [
        run_module(capsys, tmp_path, _ansible_check_mode=True)["changed"],
        run_module(capsys, tmp_path)["changed"],
        run_module(capsys, tmp_path)["changed"],
    ]
    assert changed == [True, True, False]


def test_no_data_set_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, tmp_path)
    assert answer["failed"]
    assert "manifest.json" in answer["msg"]
