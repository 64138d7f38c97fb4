from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import manifest_info
import pytest
from ansible.module_utils.testing import patch_module_args

from tests.fakes.s3 import write_dataset


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        manifest_info.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.parametrize("check_mode", [False, True])
def test_the_manifest_is_read_in_check_mode_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, check_mode: bool
) -> None:
    write_dataset(tmp_path, {"recordio/train.rec": bytes(3000), "labels.tsv": b"0\tn01440764\ttench\n"})
    answer = run_module(capsys, root=str(tmp_path), _ansible_check_mode=check_mode)
    assert (answer["changed"], answer["records"], answer["classes"]) == (False, {"train": 1}, 1)
    assert answer["deploy_volume_gib"] == 1
    assert len(answer["dataset_version"]) == 12


def test_no_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, root=str(tmp_path))
    assert answer["failed"] is True
    assert answer["msg"].startswith(f"Manifest {tmp_path}/manifest.json: it cannot be read")
