"""Hosts that come up with the data set, without a controller: the template, what it launches, and what goes wrong."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lab.config import IMAGE_ID
from tests.integration import neighbours, pocket
from tests.integration.harness import Lab

NAME = "pocket"
PLAYBOOK = "playbooks/launch_template.yml"
SETTINGS = (
    *pocket.arguments(NAME),
    *("-e", f"launch_template_image_id={IMAGE_ID}"),
    *("-e", "launch_template_instance_type=g5.xlarge"),
    *("-e", "launch_template_key_name=lab"),
    *("-e", "launch_template_wait_seconds=3"),
)
FAST = (*SETTINGS, "-e", "launch_template_throughput_mib_s=500", "-e", "launch_template_initialization_rate_mib_s=300")


class Pocket(NamedTuple):
    lab: Lab
    snapshot: str
    version: str


@pytest.fixture(scope="module")
def first(lab: Lab) -> Iterator[Pocket]:
    """The lab with a snapshot of the small data set; what was launched from templates is gone afterwards."""
    yield Pocket(lab, *pocket.make_snapshot(lab, NAME, 1))
    ec2 = lab.ec2()
    filters = [{"Name": "tag-key", "Values": ["aws:ec2launchtemplate:id"]}]
    launched = [
        instance["InstanceId"]
        for entry in ec2.describe_instances(Filters=filters)["Reservations"]
        for instance in entry["Instances"]
    ]
    if launched:
        ec2.terminate_instances(InstanceIds=launched)
    for template in templates(lab):
        ec2.delete_launch_template(LaunchTemplateId=template["LaunchTemplateId"])
    for snapshot in ec2.describe_snapshots(Filters=[{"Name": "tag:Dataset", "Values": [NAME]}])["Snapshots"]:
        ec2.delete_snapshot(SnapshotId=snapshot["SnapshotId"])


def templates(lab: Lab) -> list[dict[str, Any]]:
    """All templates but the neighbour's."""
    found: list[dict[str, Any]] = lab.ec2().describe_launch_templates()["LaunchTemplates"]
    return [template for template in found if template["LaunchTemplateName"] != neighbours.TEMPLATE]


def latest(lab: Lab) -> dict[str, Any]:
    answer = lab.ec2().describe_launch_template_versions(LaunchTemplateName=NAME, Versions=["$Latest"])
    found: dict[str, Any] = answer["LaunchTemplateVersions"][0]
    return found


def launch(lab: Lab, **options: Any) -> str:
    """Launch an instance from the template and return its id, when its user data has left an outcome."""
    ec2 = lab.ec2()
    request = {"LaunchTemplate": {"LaunchTemplateName": NAME}, "MinCount": 1, "MaxCount": 1, **options}
    instance = str(ec2.run_instances(**request)["Instances"][0]["InstanceId"])
    ec2.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1})
    end = time.monotonic() + 30
    while not lab.ssh(instance, f"ls /var/lib/imagenet-ops/{NAME}.* 2>/dev/null || true").strip():
        assert time.monotonic() < end, lab.ssh(instance, "cat /var/log/cloud-init-output.log")
        time.sleep(0.2)
    return instance


def volume_of(lab: Lab, instance: str) -> dict[str, Any]:
    filters = [{"Name": "attachment.instance-id", "Values": [instance]}]
    volumes = lab.ec2().describe_volumes(Filters=filters)["Volumes"]
    (found,) = [volume for volume in volumes if volume["Attachments"][0]["Device"] == "/dev/sdf"]
    return dict(found)


def test_check_mode_makes_no_template(first: Pocket) -> None:
    run = first.lab.playbook(PLAYBOOK, *FAST, "--check", "--diff")
    assert run.changed("localhost") == 1
    assert re.search(rf"^\+.*SnapshotId.*{first.snapshot}", run.text, re.MULTILINE)
    assert templates(first.lab) == []


def test_the_template_carries_the_snapshot_and_the_script(first: Pocket) -> None:
    run = first.lab.playbook(PLAYBOOK, *FAST)
    assert run.changed("localhost") == 1
    (template,) = templates(first.lab)
    assert {"Key": "Project", "Value": "imagenet-ops"} in template["Tags"]
    data = latest(first.lab)["LaunchTemplateData"]
    assert data["BlockDeviceMappings"] == [
        {
            "DeviceName": "/dev/sdf",
            "Ebs": {
                "SnapshotId": first.snapshot,
                "VolumeType": "gp3",
                "Throughput": 500,
                "VolumeInitializationRate": 300,
                "Encrypted": True,
                "DeleteOnTermination": True,
            },
        }
    ]
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert base64.b64decode(data["UserData"]).startswith(b"#!/bin/bash\n")
    assert first.lab.playbook(PLAYBOOK, *FAST).all_unchanged()
    assert first.lab.playbook(PLAYBOOK, *FAST, "--check").all_unchanged()
    assert latest(first.lab)["VersionNumber"] == 1


def test_a_host_comes_up_with_the_data_mounted_and_verified(first: Pocket) -> None:
    lab = first.lab
    instance = launch(lab, Placement={"AvailabilityZone": "us-east-1b"})
    ready = lab.ssh(instance, f"cat /var/lib/imagenet-ops/{NAME}.ready")
    assert ready.startswith(
        f"version {first.version}, 4 files and 3 records as the manifest says, from /dev/disk/by-id"
    )
    assert "ro" in lab.ssh(instance, "findmnt -n -o OPTIONS /data").strip().split(",")
    assert f"{NAME} is ready: version {first.version}" in lab.ssh(instance, "cat /var/log/imagenet-ops.log")
    assert f"{NAME} is ready: version {first.version}" in lab.ssh(instance, "cat /var/log/cloud-init-output.log")
    volume = volume_of(lab, instance)
    assert (volume["AvailabilityZone"], volume["SnapshotId"], volume["Encrypted"]) == (
        "us-east-1b",
        first.snapshot,
        True,
    )
    assert (volume["VolumeType"], volume["Throughput"], volume["VolumeInitializationRate"]) == ("gp3", 500, 300)
    tags = {tag["Key"]: tag["Value"] for tag in volume["Tags"]}
    assert (tags["DatasetVersion"], "Project" in tags) == (first.version, False)
    device = volume["VolumeId"].replace("-", "")
    (line,) = [line for line in lab.ssh(instance, "cat /etc/fstab").splitlines() if "/data" in line]
    assert line.split()[0].endswith(device)
    assert {"ro", "nofail"} <= set(line.split()[3].split(","))
    # Run again by hand, as after a reboot: nothing is mounted twice, and the outcome is the same.
    lab.ssh(instance, "sudo bash /var/lib/cloud/instance/user-data.txt")
    assert lab.ssh(instance, f"cat /var/lib/imagenet-ops/{NAME}.ready") == ready
    assert len(lab.ssh(instance, "findmnt -n /data").splitlines()) == 1
    lab.ec2().terminate_instances(InstanceIds=[instance])
    assert lab.ec2().describe_volumes(Filters=[{"Name": "volume-id", "Values": [volume["VolumeId"]]}])["Volumes"] == []


def test_a_host_without_the_volume_says_so(first: Pocket) -> None:
    none = {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "VolumeType": "gp3"}}
    instance = launch(first.lab, BlockDeviceMappings=[none])
    blank = volume_of(first.lab, instance)["VolumeId"].replace("-", "")
    reason = first.lab.ssh(instance, f"cat /var/lib/imagenet-ops/{NAME}.failed")
    assert reason.startswith(f"no volume holds version {first.version} after 3 s; seen: {blank} (no {NAME}).")
    assert first.lab.ssh(instance, "findmnt -n /data || echo none").strip() == "none"
    assert "/data" not in first.lab.ssh(instance, "cat /etc/fstab")


def test_a_new_version_of_the_data_makes_a_new_version_of_the_template(first: Pocket) -> None:
    """What a person added to the template stays, and so does what is no longer given."""
    lab = first.lab
    ec2 = lab.ec2()
    added = {"EbsOptimized": True}
    ec2.create_launch_template_version(LaunchTemplateName=NAME, SourceVersion="$Latest", LaunchTemplateData=added)
    # Its manifest lies about the size of a file, as a damaged volume would.
    snapshot, version = pocket.make_snapshot(lab, NAME, 2, size_bytes=5000)
    run = lab.playbook(PLAYBOOK, *pocket.arguments(NAME), "--diff")
    assert f"DatasetVersion {version}, {snapshot}" in run.text
    found = latest(lab)
    assert (found["VersionNumber"], found["DefaultVersion"]) == (3, True)
    data = found["LaunchTemplateData"]
    assert (data["EbsOptimized"], data["InstanceType"]) == (True, "g5.xlarge")
    ebs = data["BlockDeviceMappings"][0]["Ebs"]
    assert (ebs["SnapshotId"], "VolumeInitializationRate" in ebs) == (snapshot, False)
    assert lab.playbook(PLAYBOOK, *pocket.arguments(NAME)).all_unchanged()


def test_a_host_whose_data_is_damaged_does_not_serve_it(first: Pocket) -> None:
    instance = launch(first.lab)
    reason = first.lab.ssh(instance, f"cat /var/lib/imagenet-ops/{NAME}.failed")
    assert "recordio/train.idx has 4096 bytes, the manifest says 5000" in reason
    assert first.lab.ssh(instance, "findmnt -n /data || echo none").strip() == "none"
    assert "/data" not in first.lab.ssh(instance, "cat /etc/fstab")


def test_an_older_version_and_fewer_versions_kept(first: Pocket) -> None:
    lab = first.lab
    older = (*pocket.arguments(NAME), "-e", f"data_version={first.version}", "-e", "launch_template_versions_kept=2")
    assert lab.playbook(PLAYBOOK, *older).changed("localhost") == 1
    numbers = [
        entry["VersionNumber"]
        for entry in lab.ec2().describe_launch_template_versions(LaunchTemplateName=NAME)["LaunchTemplateVersions"]
    ]
    assert sorted(numbers) == [3, 4]
    assert lab.playbook(PLAYBOOK, *older).all_unchanged()


def test_the_script_alone_for_a_template_of_another(first: Pocket, tmp_path: Path) -> None:
    script = tmp_path / "mount_data.sh"
    wanted = (
        *pocket.arguments(NAME),
        "-e",
        f"data_version={first.version}",
        "-e",
        f"launch_template_script_file={script}",
    )
    before = latest(first.lab)["VersionNumber"]
    run = first.lab.playbook(PLAYBOOK, *wanted, "-e", "launch_template_create=false")
    assert run.changed("localhost") == 1
    assert latest(first.lab)["VersionNumber"] == before
    # The same script as user data of a plain launch, with the volume on another device name.
    mapping = {"DeviceName": "/dev/sdh", "Ebs": {"SnapshotId": first.snapshot, "VolumeType": "gp3"}}
    ec2 = first.lab.ec2()
    template = {"ImageId": IMAGE_ID, "InstanceType": "g5.xlarge", "KeyName": "lab", "BlockDeviceMappings": [mapping]}
    encoded = base64.b64encode(script.read_bytes()).decode()
    ec2.create_launch_template(LaunchTemplateName="theirs", LaunchTemplateData={**template, "UserData": encoded})
    instance = launch(first.lab, LaunchTemplate={"LaunchTemplateName": "theirs"})
    assert first.lab.ssh(instance, f"cat /var/lib/imagenet-ops/{NAME}.ready").startswith(f"version {first.version},")


def test_a_template_of_another_is_refused(first: Pocket) -> None:
    theirs = (*pocket.arguments(NAME), "-e", "launch_template_name=theirs")
    run = first.lab.playbook(PLAYBOOK, *theirs, expect_success=False)
    text = " ".join(run.text.split())
    assert "it exists and does not have the tag Project=imagenet-ops, so it was not changed" in text


def test_teardown_removes_our_template_and_leaves_theirs(first: Pocket) -> None:
    confirmed = (*pocket.arguments(NAME), "-e", f"project_removal_confirm={NAME}")
    listed = first.lab.playbook("playbooks/teardown.yml", *confirmed, "--check")
    assert f"launch templates: {NAME}" in listed.text
    assert len(templates(first.lab)) == 2
    first.lab.playbook("playbooks/teardown.yml", *confirmed)
    assert [template["LaunchTemplateName"] for template in templates(first.lab)] == ["theirs"]
    assert first.lab.playbook("playbooks/teardown.yml", *confirmed).all_unchanged()
