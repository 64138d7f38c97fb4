from __future__ import annotations

import json
from typing import Any

import launch_template_update
import pytest
from ansible.module_utils.testing import patch_module_args

WANTED = {"name": "imagenet", "snapshot_id": "snap-1", "user_data": "#!/bin/sh\n", "tags": {"Project": "imagenet-ops"}}


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args({"region": "us-east-1", **arguments}), pytest.raises(SystemExit):
        launch_template_update.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_every_option_reaches_the_template(ec2: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "device_name": "/dev/sdg",
        "volume_type": "io2",
        "iops": 5000,
        "size_gib": 200,
        "initialization_rate_mib_s": 200,
        "kms_key_id": "alias/imagenet",
        "delete_on_termination": False,
        "image_id": "ami-1",
        "instance_type": "g5.xlarge",
        "key_name": "gpu",
        "instance_profile": "gpu",
        "security_group_ids": ["sg-1"],
        "volume_tags": {"Edition": 7},
        "instance_tags": {"Team": "vision"},
    }
    predicted = run_module(capsys, **WANTED, **options, _ansible_check_mode=True)
    assert (predicted["changed"], predicted["version"]) == (True, 1)
    assert ec2.describe_launch_templates()["LaunchTemplates"] == []
    made = run_module(capsys, **WANTED, **options)
    assert (made["changed"], made["version"], made["deleted_versions"]) == (True, 1, 0)
    request = {"LaunchTemplateId": made["template_id"], "Versions": ["$Latest"]}
    data = ec2.describe_launch_template_versions(**request)["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    (mapping,) = data["BlockDeviceMappings"]
    assert mapping == {
        "DeviceName": "/dev/sdg",
        "Ebs": {
            "SnapshotId": "snap-1",
            "VolumeType": "io2",
            "Iops": 5000,
            "VolumeSize": 200,
            "VolumeInitializationRate": 200,
            "KmsKeyId": "alias/imagenet",
            "Encrypted": True,
            "DeleteOnTermination": False,
        },
    }
    assert (data["ImageId"], data["InstanceType"], data["KeyName"]) == ("ami-1", "g5.xlarge", "gpu")
    assert (data["IamInstanceProfile"], data["SecurityGroupIds"]) == ({"Name": "gpu"}, ["sg-1"])
    tags = {entry["ResourceType"]: entry["Tags"] for entry in data["TagSpecifications"]}
    assert (tags["volume"], tags["instance"]) == (
        [{"Key": "Edition", "Value": "7"}],
        [{"Key": "Team", "Value": "vision"}],
    )
    assert run_module(capsys, **WANTED, **options)["changed"] is False


def test_a_refusal_says_what_to_do(ec2: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ec2.create_launch_template(LaunchTemplateName="imagenet", LaunchTemplateData={"ImageId": "ami-7"})
    answer = run_module(capsys, **WANTED)
    assert answer["failed"] is True
    assert answer["msg"].startswith("Launch template imagenet: it exists and does not have the tag Project=")
