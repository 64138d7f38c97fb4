from __future__ import annotations

import base64
import copy
from dataclasses import replace
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.ebs.launch_template import (
    LaunchTemplateUpdate,
    TemplateResult,
    TemplateSettings,
    VolumeMapping,
)

from tests.fakes.clients import StubEc2

VOLUME = VolumeMapping(device_name="/dev/sdf", snapshot_id="snap-1", throughput_mib_s=500)
SETTINGS = TemplateSettings(
    name="imagenet",
    volume=VOLUME,
    user_data="#!/bin/bash\ntrue\n",
    tags={"Project": "imagenet-ops"},
    volume_tags={"DatasetVersion": "0123456789ab"},
    image_id="ami-1",
)


class FakeEc2(StubEc2):
    """Launch templates as EC2 keeps them; it adds what EC2 adds to what it describes."""

    def __init__(self) -> None:
        self.versions: list[dict[str, Any]] = []
        self.deleted: set[int] = set()
        self.default = 1
        self.tags: list[dict[str, str]] = []
        self.calls: list[str] = []
        self.meanwhile: list[dict[str, Any]] = []

    def describe_launch_templates(self, **request: Any) -> dict[str, Any]:
        assert request["Filters"] == [{"Name": "launch-template-name", "Values": ["imagenet"]}]
        return {"LaunchTemplates": [self._template()] if self.versions else []}

    def describe_launch_template_versions(self, **request: Any) -> dict[str, Any]:
        found = [
            {"VersionNumber": number, "LaunchTemplateData": self._described(data)}
            for number, data in reversed(list(enumerate(self.versions, 1)))
            if number not in self.deleted
        ]
        if request.get("Versions") == ["$Latest"]:
            return {"LaunchTemplateVersions": found[:1]}
        # A page for each version, as for somebody with very many.
        place = int(request.get("NextToken", 0))
        more = {"NextToken": str(place + 1)} if place + 1 < len(found) else {}
        return {"LaunchTemplateVersions": found[place : place + 1], **more}

    def create_launch_template(self, **request: Any) -> dict[str, Any]:
        self.calls.append("create_launch_template")
        self.versions.append(request["LaunchTemplateData"])
        self.tags = request["TagSpecifications"][0]["Tags"]
        return {"LaunchTemplate": self._template()}

    def create_launch_template_version(self, **request: Any) -> dict[str, Any]:
        self.calls.append("create_launch_template_version")
        assert "State" not in request["LaunchTemplateData"].get("MetadataOptions", {})
        source = copy.deepcopy(self.versions[int(request["SourceVersion"]) - 1])
        for mapping in source.get("BlockDeviceMappings", []):
            mapping["Ebs"].pop("SnapshotId", None)  # "ignored [...] unless they are explicitly included"
        self.versions += [*self.meanwhile, {**source, **request["LaunchTemplateData"]}]
        return {"LaunchTemplateVersion": {"VersionNumber": len(self.versions)}}

    def modify_launch_template(self, **request: Any) -> dict[str, Any]:
        self.calls.append("modify_launch_template")
        self.default = int(request["DefaultVersion"])
        return {}

    def create_tags(self, **request: Any) -> dict[str, Any]:
        self.calls.append("create_tags")
        new = {tag["Key"] for tag in request["Tags"]}
        self.tags = [tag for tag in self.tags if tag["Key"] not in new] + request["Tags"]
        return {}

    def delete_launch_template_versions(self, **request: Any) -> dict[str, Any]:
        self.calls.append("delete_launch_template_versions")
        numbers = {int(number) for number in request["Versions"]}
        assert self.default not in numbers
        self.deleted |= numbers
        return {}

    def _template(self) -> dict[str, Any]:
        numbers = {"DefaultVersionNumber": self.default, "LatestVersionNumber": len(self.versions)}
        return {"LaunchTemplateId": "lt-1", "LaunchTemplateName": "imagenet", **numbers, "Tags": self.tags}

    def _described(self, data: dict[str, Any]) -> dict[str, Any]:
        described = copy.deepcopy(data)
        if "MetadataOptions" in described:
            described["MetadataOptions"]["State"] = "applied"
        if "TagSpecifications" in described:
            described["TagSpecifications"].reverse()
        return described


def apply(ec2: FakeEc2, settings: TemplateSettings, *, check_mode: bool = False) -> TemplateResult:
    return LaunchTemplateUpdate(ec2, settings).present(check_mode=check_mode)


def refusal(ec2: FakeEc2, settings: TemplateSettings) -> str:
    with pytest.raises(OpsError) as error:
        apply(ec2, settings)
    return str(error.value)


def test_the_version_that_becomes_the_default_is_ours_and_not_one_that_was_made_meanwhile() -> None:
    ec2 = FakeEc2()
    apply(ec2, SETTINGS)
    ec2.meanwhile = [{"ImageId": "ami-of-another"}]
    made = apply(ec2, replace(SETTINGS, image_id="ami-2"))
    assert (made["version"], ec2.default, len(ec2.versions)) == (3, 3, 3)
    assert ec2.versions[ec2.default - 1]["ImageId"] == "ami-2"


def test_a_new_version_keeps_the_snapshots_of_the_old_one() -> None:
    ec2 = FakeEc2()
    apply(ec2, SETTINGS)
    before = ec2.versions[0]["BlockDeviceMappings"]
    assert before[0]["Ebs"]["SnapshotId"] == SETTINGS.volume.snapshot_id
    assert apply(ec2, replace(SETTINGS, user_data="#!/bin/sh\n"))["version"] == 2
    assert ec2.versions[1]["BlockDeviceMappings"] == before
    assert apply(ec2, replace(SETTINGS, user_data="#!/bin/sh\n"))["changed"] is False


def test_check_create_and_again() -> None:
    ec2 = FakeEc2()
    predicted = apply(ec2, SETTINGS, check_mode=True)
    assert (predicted["changed"], predicted["template_id"], predicted["version"], ec2.calls) == (True, "", 1, [])
    made = apply(ec2, SETTINGS)
    assert (made["changed"], made["template_id"], made["version"]) == (True, "lt-1", 1)
    assert made["diff"] == predicted["diff"]
    for check_mode in (True, False):
        again = apply(ec2, SETTINGS, check_mode=check_mode)
        assert (again["changed"], again["version"], again["diff"]["before"]) == (False, 1, again["diff"]["after"])
    assert ec2.calls == ["create_launch_template"]


def test_what_the_template_says() -> None:
    ec2 = FakeEc2()
    apply(ec2, replace(SETTINGS, instance_profile="gpu", security_group_ids=("sg-1",), instance_tags={"Team": "a"}))
    data = ec2.versions[0]
    ebs = {
        "SnapshotId": "snap-1",
        "VolumeType": "gp3",
        "Throughput": 500,
        "Encrypted": True,
        "DeleteOnTermination": True,
    }
    assert data["BlockDeviceMappings"] == [{"DeviceName": "/dev/sdf", "Ebs": ebs}]
    assert base64.b64decode(data["UserData"]).decode() == SETTINGS.user_data
    assert (data["ImageId"], data["IamInstanceProfile"], data["SecurityGroupIds"]) == (
        "ami-1",
        {"Name": "gpu"},
        ["sg-1"],
    )
    assert data["MetadataOptions"] == {"HttpTokens": "required"}
    assert "InstanceType" not in data
    assert data["TagSpecifications"] == [
        {"ResourceType": "instance", "Tags": [{"Key": "Team", "Value": "a"}]},
        {"ResourceType": "volume", "Tags": [{"Key": "DatasetVersion", "Value": "0123456789ab"}]},
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"volume": replace(VOLUME, snapshot_id="snap-2")},
        {"volume": replace(VOLUME, throughput_mib_s=0)},
        {"volume": replace(VOLUME, initialization_rate_mib_s=300)},
        {"volume": replace(VOLUME, delete_on_termination=False)},
        {"user_data": "#!/bin/bash\nfalse\n"},
        {"image_id": "ami-2"},
        {"metadata_hops": 2},
        {"volume_tags": {"DatasetVersion": "ba9876543210"}},
    ],
)
def test_a_change_makes_one_new_version_and_the_default(change: dict[str, Any]) -> None:
    ec2 = FakeEc2()
    apply(ec2, SETTINGS)
    changed = replace(SETTINGS, **change)
    assert apply(ec2, changed, check_mode=True)["version"] == 2
    assert len(ec2.versions) == 1
    result = apply(ec2, changed)
    assert (result["changed"], result["version"], len(ec2.versions), ec2.default) == (True, 2, 2, 2)
    assert apply(ec2, changed)["changed"] is False


def test_what_others_put_into_the_template_stays() -> None:
    ec2 = FakeEc2()
    apply(ec2, SETTINGS)
    root = {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 100}}
    mappings = [root, *ec2.versions[0]["BlockDeviceMappings"]]
    options = {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
    added = {"EbsOptimized": True, "BlockDeviceMappings": mappings, "MetadataOptions": options}
    ec2.versions.append({**ec2.versions[0], **added})
    ec2.default = 2
    assert apply(ec2, SETTINGS)["changed"] is False
    apply(ec2, replace(SETTINGS, volume=replace(VOLUME, snapshot_id="snap-2"), image_id=""))
    data = ec2.versions[2]
    assert (data["EbsOptimized"], data["MetadataOptions"], data["ImageId"]) == (True, options, "ami-1")
    apply(ec2, replace(SETTINGS, metadata_hops=3))
    assert ec2.versions[3]["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 3}
    devices = {entry["DeviceName"]: entry["Ebs"] for entry in data["BlockDeviceMappings"]}
    assert (devices["/dev/xvda"], devices["/dev/sdf"]["SnapshotId"]) == (root["Ebs"], "snap-2")


def test_a_run_that_was_killed_between_its_calls_is_finished() -> None:
    ec2 = FakeEc2()
    apply(ec2, SETTINGS)
    newer = replace(SETTINGS, image_id="ami-2", tags={"Project": "imagenet-ops", "DatasetVersion": "0123456789ab"})
    apply(ec2, newer)
    ec2.default = 1
    ec2.tags = [{"Key": "Project", "Value": "imagenet-ops"}, {"Key": "Team", "Value": "a"}]
    ec2.calls.clear()
    assert apply(ec2, newer)["changed"] is True
    assert ec2.calls == ["modify_launch_template", "create_tags"]
    assert {"Key": "Team", "Value": "a"} in ec2.tags
    assert apply(ec2, newer)["changed"] is False


def test_old_versions_go_and_the_newest_stay() -> None:
    ec2 = FakeEc2()
    for number in range(5):
        apply(ec2, replace(SETTINGS, image_id=f"ami-{number}"))
    kept = replace(SETTINGS, image_id="ami-9", versions_kept=2)
    predicted = apply(ec2, kept, check_mode=True)
    assert (predicted["version"], predicted["deleted_versions"], ec2.deleted) == (6, 4, set())
    assert apply(ec2, kept)["deleted_versions"] == 4
    assert ec2.deleted == {1, 2, 3, 4}
    assert apply(ec2, kept)["changed"] is False


def test_a_template_of_another_is_left_alone() -> None:
    ec2 = FakeEc2()
    ec2.versions.append({"ImageId": "ami-7"})
    assert refusal(ec2, SETTINGS) == (
        "Launch template imagenet: it exists and does not have the tag Project=imagenet-ops, so it was not "
        "changed. Choose another launch_template_name, or put the script of launch_template_script_file into your own"
    )
    assert ec2.calls == []


def test_user_data_that_ec2_would_not_take() -> None:
    assert refusal(FakeEc2(), replace(SETTINGS, user_data="x" * 16385)) == (
        "Launch template imagenet: its user data has 16385 bytes, and EC2 accepts 16384. Make it shorter, or let it "
        "download what it runs"
    )


def test_a_template_that_would_not_be_ours() -> None:
    text = refusal(FakeEc2(), replace(SETTINGS, tags={"Name": "x"}))
    assert text == "Launch template imagenet: its tags do not hold Project. Give Project among the tags"
