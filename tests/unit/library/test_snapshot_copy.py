from __future__ import annotations

import json
from typing import Any

import boto3
import pytest
import snapshot_copy
from ansible.module_utils.testing import patch_module_args

TAGS = {"Project": "imagenet-ops", "Dataset": "imagenet", "Role": "snapshot", "DatasetVersion": "1f2e3d4c5b6a"}


@pytest.fixture
def snapshot_id(ec2: Any) -> str:
    volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=8, Encrypted=True)
    tags = [{"Key": name, "Value": value} for name, value in TAGS.items()]
    specification = [{"ResourceType": "snapshot", "Tags": tags}]
    return str(ec2.create_snapshot(VolumeId=volume["VolumeId"], TagSpecifications=specification)["SnapshotId"])


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args({"source_region": "us-east-1", **arguments}), pytest.raises(SystemExit):
        snapshot_copy.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_check_copy_and_again(snapshot_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    there = boto3.client("ec2", region_name="eu-west-1")
    key = boto3.client("kms", region_name="eu-west-1").create_key()["KeyMetadata"]
    wanted = {"snapshot_id": snapshot_id, "region": "eu-west-1", "kms_key_id": key["KeyId"], "completion_minutes": 30}
    predicted = run_module(capsys, **wanted, _ansible_check_mode=True)
    assert (predicted["changed"], predicted["snapshot_id"]) == (True, "")
    made = run_module(capsys, **wanted)
    assert (made["changed"], made["state"]) == (True, "pending")
    copied = there.describe_snapshots(SnapshotIds=[made["snapshot_id"]])["Snapshots"][0]
    tags = {tag["Key"]: tag["Value"] for tag in copied["Tags"]}
    assert (copied["KmsKeyId"], tags) == (key["Arn"], {**TAGS, "CopiedFrom": f"us-east-1/{snapshot_id}"})
    again = run_module(capsys, **wanted)
    assert (again["changed"], again["snapshot_id"]) == (False, made["snapshot_id"])


def test_a_refusal_says_what_to_do(snapshot_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, snapshot_id=snapshot_id, region="us-east-1")
    assert answer["failed"] is True
    assert answer["msg"].startswith(
        f"Copy of {snapshot_id} to us-east-1: it would be in the same Region under the same"
    )
