from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ebs_snapshot_info
import pytest
from ansible.module_utils.testing import patch_module_args

from tests.fakes.clients import StubEc2


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args({"region": "us-east-1", **arguments}), pytest.raises(SystemExit):
        ebs_snapshot_info.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.parametrize("check_mode", [False, True])
def test_snapshots_are_found_by_tag_in_check_mode_too(
    ec2: Any, capsys: pytest.CaptureFixture[str], *, check_mode: bool
) -> None:
    volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=8)["VolumeId"]
    made = {}
    for role in ("deploy_snapshot", "snapshot"):
        tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "Role", "Value": role}]}]
        made[role] = ec2.create_snapshot(VolumeId=volume, TagSpecifications=tags)["SnapshotId"]
    answer = run_module(capsys, filters={"tag:Role": "deploy_snapshot"}, _ansible_check_mode=check_mode)
    assert answer["changed"] is False
    assert [one["snapshot_id"] for one in answer["snapshots"]] == [made["deploy_snapshot"]]
    assert answer["snapshots"][0]["tags"] == {"Role": "deploy_snapshot"}
    assert len(run_module(capsys, filters={"tag:Role": list(made)})["snapshots"]) == 2


def test_complete_ones_are_not_waited_for(ec2: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=8)
    snapshot = ec2.create_snapshot(VolumeId=volume["VolumeId"])["SnapshotId"]
    state_dir = tmp_path / "state"
    answer = run_module(capsys, filters={"snapshot-id": snapshot}, wait=True, state_dir=str(state_dir))
    assert (answer["changed"], answer["waited"]) == (False, False)
    assert [one["snapshot_id"] for one in answer["snapshots"]] == [snapshot]
    assert not state_dir.exists()


def test_pending_ones_are_waited_for_but_not_in_check_mode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Pending(StubEc2):
        """One snapshot, pending when it is seen for the first and second time."""

        def __init__(self) -> None:
            self.looks = 0

        def describe_snapshots(self, **_: Any) -> dict[str, Any]:
            self.looks += 1
            state = "pending" if self.looks <= 2 else "completed"
            start = datetime(2026, 1, 1, tzinfo=timezone.utc)
            return {"Snapshots": [{"SnapshotId": "snap-1", "State": state, "VolumeSize": 8, "StartTime": start}]}

    wait = {"filters": {"snapshot-id": "snap-1"}, "wait": True, "state_dir": str(tmp_path / "state")}
    monkeypatch.setattr("time.sleep", lambda _: None)
    client = Pending()
    monkeypatch.setattr("ebs_snapshot_info.AnsibleAWSModule.client", lambda *_, **__: client)
    checked = run_module(capsys, **wait, _ansible_check_mode=True)
    assert (checked["waited"], checked["snapshots"][0]["state"], client.looks) == (False, "pending", 1)
    answer = run_module(capsys, **wait)
    assert (answer["changed"], answer["waited"], answer["snapshots"][0]["state"]) == (False, True, "completed")
    assert (tmp_path / "state" / "ebs_snapshot_info.progress.json").exists()


@pytest.mark.usefixtures("ec2")
def test_nothing_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_module(capsys, filters={"tag:Project": "imagenet-ops"})["snapshots"] == []
