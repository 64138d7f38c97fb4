from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ebs_initialization_info
import pytest
from ansible.module_utils.testing import patch_module_args

from tests.fakes.clients import StubEc2


class Client(StubEc2):
    """EC2 with one volume of which a half, and then all, is there."""

    def __init__(self) -> None:
        self.percents = [50, 100]

    def describe_volume_status(self, **request: Any) -> dict[str, Any]:
        details = {"InitializationType": "provisioned-rate", "Progress": self.percents.pop(0)}
        return {"VolumeStatuses": [{"VolumeId": request["VolumeIds"][0], "InitializationStatusDetails": details}]}


def run_module(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> dict[str, Any]:
    client = Client()
    monkeypatch.setattr("ebs_initialization_info.AnsibleAWSModule.client", lambda *_, **__: client)
    monkeypatch.setattr("time.sleep", lambda _: None)
    given = {"region": "us-east-1", "volume_ids": ["vol-1"], **arguments}
    with patch_module_args(given), pytest.raises(SystemExit):
        ebs_initialization_info.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_it_looks_waits_and_waits_not_in_check_mode(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wait = {"wait": True, "state_dir": str(tmp_path), "data_bytes": 1024}
    assert run_module(capsys, monkeypatch)["volumes"]["vol-1"]["percent"] == 50
    assert run_module(capsys, monkeypatch, **wait, _ansible_check_mode=True)["initialized"] == 0
    answer = run_module(capsys, monkeypatch, **wait)
    assert (answer["changed"], answer["initialized"]) == (False, 1)
