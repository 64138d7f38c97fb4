from __future__ import annotations

import json
from typing import Any

import ebs_device_info
import pytest
from ansible.module_utils.testing import patch_module_args


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        ebs_device_info.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_the_answer_is_that_of_the_host(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fake(host: Any, volume_id: str, timeout_seconds: float, mount_path: str) -> dict[str, Any]:
        status, output, _ = host.run_command(["echo", volume_id])
        return {"device": output.strip(), "size_bytes": timeout_seconds, "blank": status == 0, "mounted": mount_path}

    monkeypatch.setattr(ebs_device_info, "device_info", fake)
    answer = run_module(capsys, volume_id="vol-01234567", mount_path="/data")
    answer.pop("invocation", None)  # newer Ansible adds it only when asked
    assert answer == {"changed": False, "device": "vol-01234567", "size_bytes": 60, "blank": True, "mounted": "/data"}


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_volume_that_is_not_there_is_an_error_in_check_mode_too(
    capsys: pytest.CaptureFixture[str], *, check_mode: bool
) -> None:
    answer = run_module(capsys, volume_id="vol-0123456789abcdef0", timeout_seconds=0, _ansible_check_mode=check_mode)
    assert answer["failed"] is True
    assert answer["msg"].startswith("Volume vol-0123456789abcdef0: no device /dev/disk/by-id/nvme-Amazon_Elastic_Block")


def test_the_volume_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_module(capsys)["msg"] == "missing required arguments: volume_id"
