from __future__ import annotations

import json
from typing import Any

import ebs_mount
import pytest
from ansible.module_utils.imagenet_ops.host.mount import MountRequest
from ansible.module_utils.testing import patch_module_args


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        ebs_mount.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_what_is_asked_for_reaches_the_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[MountRequest] = []

    def fake(host: Any, request: MountRequest, *, check_mode: bool) -> dict[str, Any]:
        asked.append(request)
        return {"changed": check_mode, "device": host.run_command(["echo", "by-id"])[1].strip()}

    monkeypatch.setattr(ebs_mount, "mount_volume", fake)
    answer = run_module(capsys, volume_id="vol-01234567", path="/data", replaces=["vol-1"], _ansible_check_mode=True)
    assert (answer["changed"], answer["device"]) == (True, "by-id")
    assert asked == [MountRequest("vol-01234567", "/data", "ext4", ("vol-1",), disturb=False, timeout_seconds=120)]


def test_a_volume_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, volume_id="vol-0123456789abcdef0", path="/data", timeout_seconds=0)
    assert answer["failed"] is True
    assert answer["msg"].startswith("Volume vol-0123456789abcdef0: no device /dev/disk/by-id/nvme-Amazon_Elastic_Block")
