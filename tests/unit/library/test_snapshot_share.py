from __future__ import annotations

import json
from typing import Any

import boto3
import pytest
import snapshot_share
from ansible.module_utils.testing import patch_module_args

ONE, TWO = "222222222222", "333333333333"


@pytest.fixture
def snapshot_id(ec2: Any) -> str:
    """A snapshot under a key of one's own; of others moto does not say the key."""
    key = boto3.client("kms", region_name="us-east-1").create_key()["KeyMetadata"]["Arn"]
    volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=8, Encrypted=True)["VolumeId"]
    source = {"SourceSnapshotId": ec2.create_snapshot(VolumeId=volume)["SnapshotId"], "SourceRegion": "us-east-1"}
    return str(ec2.copy_snapshot(**source, KmsKeyId=key)["SnapshotId"])


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args({"region": "us-east-1", **arguments}), pytest.raises(SystemExit):
        snapshot_share.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def permitted(ec2: Any, snapshot_id: str) -> set[str]:
    answer = ec2.describe_snapshot_attribute(SnapshotId=snapshot_id, Attribute="createVolumePermission")
    return {entry["UserId"] for entry in answer["CreateVolumePermissions"]}


def test_check_share_again_and_revoke(ec2: Any, snapshot_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    both = {"snapshot_id": snapshot_id, "accounts": [ONE, TWO]}
    predicted = run_module(capsys, **both, _ansible_check_mode=True)
    assert (predicted["changed"], permitted(ec2, snapshot_id)) == (True, set())
    assert run_module(capsys, **both)["added"] == [ONE, TWO]
    assert permitted(ec2, snapshot_id) == {ONE, TWO}
    assert run_module(capsys, **both)["changed"] is False
    one = {"snapshot_id": snapshot_id, "accounts": [ONE]}
    assert run_module(capsys, **one)["unlisted"] == [TWO]
    assert run_module(capsys, **one, revoke_unlisted=True)["revoked"] == [TWO]
    assert permitted(ec2, snapshot_id) == {ONE}


def test_a_refusal_says_what_to_do(snapshot_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, snapshot_id=snapshot_id, accounts=["all"])
    assert answer["failed"] is True
    assert answer["msg"].startswith(f"Snapshot {snapshot_id}: it would be public")
