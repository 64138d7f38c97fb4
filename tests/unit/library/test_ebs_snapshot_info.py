from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import ebs_snapshot_info
import pytest
from ansible.module_utils.imagenet_ops.ebs.snapshots import find_started
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


def test_a_snapshot_that_ec2_does_not_list_yet_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else it would not be waited for, and the run would keep the host."""

    class Late(StubEc2):
        """Two snapshots; the second is listed from the third look on, or never."""

        def __init__(self, looks_without: float) -> None:
            self.looks = 0
            self.looks_without = looks_without

        def describe_snapshots(self, **_: Any) -> dict[str, Any]:
            self.looks += 1
            listed = ("deploy_snapshot",) if self.looks <= self.looks_without else ("deploy_snapshot", "snapshot")
            start = datetime(2026, 1, 1, tzinfo=timezone.utc)
            return {
                "Snapshots": [
                    {
                        "SnapshotId": f"snap-{role}",
                        "State": "completed",
                        "VolumeSize": 8,
                        "StartTime": start,
                        "Tags": [{"Key": "Role", "Value": role}],
                    }
                    for role in listed
                ]
            }

    now = [0.0]
    monkeypatch.setattr("ebs_snapshot_info.find_started", partial(find_started, sleep=slept(now), clock=lambda: now[0]))
    expected = {"filters": {"tag:Dataset": "imagenet"}, "expected_roles": ["deploy_snapshot", "snapshot"]}
    wait = {**expected, "wait": True, "state_dir": str(tmp_path / "state")}
    client = Late(2)
    monkeypatch.setattr("ebs_snapshot_info.AnsibleAWSModule.client", lambda *_, **__: client)
    assert len(run_module(capsys, **wait, _ansible_check_mode=True)["snapshots"]) == 1
    assert len(run_module(capsys, **wait)["snapshots"]) == 2
    client = Late(float("inf"))
    assert run_module(capsys, **wait)["msg"] == (
        "Snapshots with Role snapshot: EC2 has not listed any of these settings for 60 s. Run playbooks/prepare.yml "
        "again: it starts the snapshots that are missing"
    )


def slept(now: list[float]) -> Callable[[float], None]:
    """A sleep that only moves the time."""

    def sleep(seconds: float) -> None:
        now[0] += seconds

    return sleep


@pytest.mark.usefixtures("ec2")
def test_nothing_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_module(capsys, filters={"tag:Project": "imagenet-ops"})["snapshots"] == []
