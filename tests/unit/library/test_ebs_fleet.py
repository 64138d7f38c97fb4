from __future__ import annotations

import json
from typing import Any

import ebs_fleet
import pytest
from ansible.module_utils.testing import patch_module_args

TAGS = {"Project": "imagenet-ops", "DatasetVersion": "1f2e3d4c5b6a"}


@pytest.fixture
def snapshot_id(ec2: Any) -> str:
    volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=8)
    return str(ec2.create_snapshot(VolumeId=volume["VolumeId"])["SnapshotId"])


@pytest.fixture
def instance_ids(ec2: Any) -> list[str]:
    image = ec2.register_image(Name="any")["ImageId"]
    ids = []
    for zone in ("us-east-1a", "us-east-1b"):
        placement = {"AvailabilityZone": zone}
        answer = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, Placement=placement, InstanceType="t3.micro")
        ids.append(answer["Instances"][0]["InstanceId"])
    return ids


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args({"region": "us-east-1", "tags": TAGS, **arguments}), pytest.raises(SystemExit):
        ebs_fleet.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_check_create_again_and_remove(
    ec2: Any, snapshot_id: str, instance_ids: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {"instance_ids": instance_ids, "snapshot_id": snapshot_id, "throughput_mib_s": 500, "iops": 4000}
    predicted = run_module(capsys, **wanted, _ansible_check_mode=True)
    made = run_module(capsys, **wanted)
    for answer in (predicted, made):
        assert (answer["changed"], answer["created"], answer["attached"]) == (True, 2, 2)
    assert [made["volumes"][instance_id]["zone"] for instance_id in instance_ids] == ["us-east-1a", "us-east-1b"]
    ids = [made["volumes"][instance_id]["volume_id"] for instance_id in instance_ids]
    for volume in ec2.describe_volumes(VolumeIds=ids)["Volumes"]:
        assert (volume["VolumeType"], volume["Iops"], volume["Throughput"], volume["Size"]) == ("gp3", 4000, 500, 8)
        assert volume["Encrypted"] is True
        assert {"Key": "Project", "Value": "imagenet-ops"} in volume["Tags"]

    again = run_module(capsys, **wanted)
    assert (again["changed"], again["volumes"], again["api_calls"]["mutating"]) == (False, made["volumes"], 0)

    kept = run_module(capsys, state="absent", instance_ids=[], except_tags={"DatasetVersion": "1f2e3d4c5b6a"})
    assert (kept["changed"], kept["deleted"]) == (False, 0)

    gone = run_module(capsys, state="absent", instance_ids=[])
    assert (gone["changed"], gone["detached"], gone["deleted"], gone["volumes"]) == (True, 2, 2, {})
    assert not ec2.describe_volumes(Filters=[{"Name": "volume-id", "Values": ids}])["Volumes"]
    assert run_module(capsys, state="absent", instance_ids=[])["changed"] is False


def test_one_instance_that_is_not_there(
    snapshot_id: str, instance_ids: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = run_module(capsys, instance_ids=[*instance_ids, "i-0123456789abcdef0"], snapshot_id=snapshot_id)
    assert sorted(answer["volumes"]) == sorted(instance_ids)
    assert answer["failed_instances"] == {
        "i-0123456789abcdef0": "instance i-0123456789abcdef0 does not exist in this Region. Correct the inventory"
    }


def test_an_unknown_snapshot(instance_ids: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, instance_ids=instance_ids, snapshot_id="snap-0123456789abcdef0")
    assert answer["failed"] is True
    assert answer["msg"].startswith("Snapshot snap-0123456789abcdef0: it does not exist in this Region")


def test_no_credentials(
    instance_ids: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    answer = run_module(capsys, instance_ids=instance_ids, snapshot_id="snap-0123456789abcdef0")
    assert answer["msg"].startswith("EC2 describe_instances: NoCredentialsError: Unable to locate credentials. Give")


def test_a_snapshot_or_a_size_is_needed_to_make_volumes(capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, instance_ids=[])
    assert answer["msg"] == "state is present but any of the following are missing: snapshot_id, size_gib"
