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
    common = {"volume_id": "vol-01234567", "path": "/data"}
    answer = run_module(capsys, **common, replace_volume_ids=["vol-1"], _ansible_check_mode=True)
    assert (answer["changed"], answer["device"]) == (True, "by-id")
    assert asked.pop() == MountRequest("vol-01234567", "/data", replace_volume_ids=("vol-1",))
    run_module(
        capsys, **common, read_only=False, mount_by="uuid", format_allowed=True, mkfs_options="-m 0", owner="ec2-user"
    )
    assert asked.pop() == MountRequest(
        "vol-01234567",
        "/data",
        read_only=False,
        mount_by="uuid",
        format_allowed=True,
        mkfs_options=("-m", "0"),
        owner="ec2-user",
    )


def test_the_names_of_options_of_earlier_releases_are_understood(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests: list[MountRequest] = []

    def fake(_: Any, request: MountRequest, **__: bool) -> dict[str, Any]:
        requests.append(request)
        return {"changed": False}

    monkeypatch.setattr(ebs_mount, "mount_volume", fake)
    run_module(capsys, volume_id="vol-01234567", path="/data", replaces=["vol-1"], disturb=True)
    assert requests == [MountRequest("vol-01234567", "/data", replace_volume_ids=("vol-1",), lazy_unmount=True)]


def test_a_volume_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, volume_id="vol-0123456789abcdef0", path="/data", timeout_seconds=0)
    assert answer["failed"] is True
    assert answer["msg"].startswith("Volume vol-0123456789abcdef0: no device /dev/disk/by-id/nvme-Amazon_Elastic_Block")
