from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import boto3
import ebs_snapshot_info
import pytest
from ansible.module_utils.testing import patch_module_args
from moto import mock_aws


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    with mock_aws():
        yield boto3.client("ec2", region_name="us-east-1")


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


@pytest.mark.usefixtures("ec2")
def test_nothing_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_module(capsys, filters={"tag:Project": "imagenet-ops"})["snapshots"] == []
