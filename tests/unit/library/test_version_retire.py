from __future__ import annotations

import json
from typing import Any

import boto3
import pytest
import version_retire
from ansible.module_utils.testing import patch_module_args

from tests.fakes.s3_server import S3Server

TAGS = {"Project": "imagenet-ops", "Dataset": "imagenet"}
PRICES = {"snapshot": "0.05", "backup": 0.02, "gp2": 0.1}
OLD, NEW = "aaaaaaaaaaaa", "bbbbbbbbbbbb"


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    given = {"region": "us-east-1", "tags": TAGS, "keep": 1, "prices_usd_gib_month": PRICES, **arguments}
    with patch_module_args(given), pytest.raises(SystemExit):
        version_retire.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def snapshots(ec2: Any) -> list[str]:
    filters = [{"Name": "tag:Project", "Values": ["imagenet-ops"]}]
    return [found["SnapshotId"] for found in ec2.describe_snapshots(Filters=filters)["Snapshots"]]


def test_check_retire_and_again_with_backups(ec2: Any, capsys: pytest.CaptureFixture[str]) -> None:
    volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=8)["VolumeId"]
    tags = [{"Key": name, "Value": value} for name, value in {**TAGS, "DatasetVersion": OLD}.items()]
    specification = [{"ResourceType": "snapshot", "Tags": tags}]
    old = ec2.create_snapshot(VolumeId=volume, TagSpecifications=specification)["SnapshotId"]
    s3 = boto3.client("s3", region_name="us-east-1")
    s3.create_bucket(Bucket="backups")
    s3.put_bucket_versioning(Bucket="backups", VersioningConfiguration={"Status": "Enabled"})
    for version in (OLD, NEW):
        for _ in range(2):
            s3.put_object(Bucket="backups", Key=f"imagenet/{version}/manifest.json", Body=b"{}")
    assert run_module(capsys)["changed"] is False
    # In the same second, the later version of the two is the one whose name is the larger.
    predicted = run_module(capsys, bucket="backups", _ansible_check_mode=True)
    assert (predicted["changed"], predicted["removed"], predicted["kept_versions"]) == (True, 2, [NEW])
    assert snapshots(ec2) == [old]
    assert run_module(capsys, bucket="backups")["removed"] == 2
    assert snapshots(ec2) == []
    left = {entry["Key"] for entry in s3.list_object_versions(Bucket="backups")["Versions"]}
    assert left == {f"imagenet/{NEW}/manifest.json"}
    assert run_module(capsys, bucket="backups")["changed"] is False


def test_a_refusal_says_what_to_do(ec2: Any, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, keep=0)
    assert (answer["failed"], snapshots(ec2)) == (True, [])
    assert (
        answer["msg"] == "Versions of imagenet: 0 were to be kept. Keep at least 1; playbooks/teardown.yml removes all"
    )


@pytest.mark.usefixtures("ec2")
def test_backups_on_another_server(capsys: pytest.CaptureFixture[str]) -> None:
    with S3Server({f"imagenet/{version}/manifest.json": b"{}" for version in (OLD, NEW)}) as server:
        elsewhere = {
            "bucket": "imagenet-backup",
            "s3_endpoint_url": server.url,
            "s3_addressing_style": "path",
            "s3_access_key": "user",
            "s3_secret_key": "only-for-tests",
        }
        answer = run_module(capsys, **elsewhere, _ansible_check_mode=True)
        assert (answer["changed"], answer["removed"], answer["kept_versions"]) == (True, 1, [NEW])
        assert [item["name"] for item in answer["items"]] == [
            f"s3://imagenet-backup/imagenet/{version}/" for version in (OLD, NEW)
        ]
        assert run_module(capsys, **{**elsewhere, "s3_secret_key": ""})["failed"] is True
