"""An account in which others have what we would make, and runs that would leave what costs money: each ends red."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import Lab
from tests.integration.neighbours import STRANGER, by_name, tags

CONFIRMED = ("-e", "project_removal_confirm=imagenet")
TEARDOWN = ("playbooks/teardown.yml", *CONFIRMED)
PROVISION = "playbooks/steps/provision.yml"
NAME = "imagenet-download"
OURS = {"Project": "imagenet-ops", "Dataset": "imagenet"}
THEIR_TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}


def instances(lab: Lab) -> list[str]:
    """The instances of the project that are not on their way out."""
    live = [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
    found = lab.ec2().describe_instances(Filters=[*live, {"Name": "tag-key", "Values": ["Project"]}])["Reservations"]
    return [one["InstanceId"] for entry in found for one in entry["Instances"]]


@pytest.fixture
def namesakes(lab: Lab) -> Iterator[Any]:
    """A stranger's security group, role and instance profile under the names of the download host's; yields a look."""
    ec2, iam = lab.ec2(), lab.iam()
    vpc_id = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    group_id = ec2.create_security_group(
        GroupName=NAME,
        Description="alice's",
        VpcId=vpc_id,
        TagSpecifications=[{"ResourceType": "security-group", "Tags": tags(**STRANGER)}],
    )["GroupId"]
    # The tags of another data set of ours: its role is not ours to change either.
    other = tags(Project="imagenet-ops", Dataset="imagenette")
    iam.create_role(RoleName=NAME, AssumeRolePolicyDocument=json.dumps(THEIR_TRUST), Tags=other)
    iam.create_instance_profile(InstanceProfileName=NAME, Tags=tags(**STRANGER))

    def look() -> dict[str, Any]:
        group = ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"][0]
        role = iam.get_role(RoleName=NAME)["Role"]
        profile = iam.get_instance_profile(InstanceProfileName=NAME)["InstanceProfile"]
        return {
            "group": (by_name(group), group["IpPermissions"], group["IpPermissionsEgress"]),
            "role": (
                by_name(role),
                role["AssumeRolePolicyDocument"],
                iam.list_role_policies(RoleName=NAME)["PolicyNames"],
            ),
            "profile": (by_name(profile), [one["RoleName"] for one in profile["Roles"]]),
        }

    yield group_id, look
    ec2.delete_security_group(GroupId=group_id)
    iam.delete_instance_profile(InstanceProfileName=NAME)
    iam.delete_role(RoleName=NAME)


def test_what_others_have_under_our_names_is_refused_and_survives_teardown(lab: Lab, namesakes: Any) -> None:
    group_id, look = namesakes
    before = look()
    refused = " ".join(lab.playbook(PROVISION, expect_success=False).text.split())
    assert (
        f"security group {group_id} exists without the tags Project=imagenet-ops, Dataset=imagenet, so it was not "
        "created for imagenet and is left unchanged. Set download_host_name to a name that is free."
    ) in refused
    assert lab.changes() == 0
    elsewhere = ("-e", "download_host_name=free", "-e", f"download_host_role_name={NAME}")
    refused = " ".join(lab.playbook(PROVISION, *elsewhere, expect_success=False).text.split())
    assert (
        f"role {NAME} and instance profile {NAME} exist without the tags Project=imagenet-ops, Dataset=imagenet, so "
        "they were not created for imagenet and are left unchanged. Set download_host_name to a name that is free, or "
        "download_host_instance_profile to use the profile as it is."
    ) in refused
    assert lab.changes() == 0
    lab.playbook(*TEARDOWN)
    assert look() == before
    assert instances(lab) == []


def test_a_host_that_the_inventory_does_not_list_ends_the_run(lab: Lab) -> None:
    """As with another Region, profile or project in the inventory than in the settings: all plays would be skipped."""
    elsewhere = ("-e", "data_project=elsewhere")
    run = " ".join(lab.playbook(PROVISION, *elsewhere, expect_success=False).text.split())
    (host,) = instances(lab)
    assert f"Instance {host} runs in us-east-1, and group download_host of the inventory does not list it" in run
    assert f"aws ec2 terminate-instances --region us-east-1 --instance-ids {host}, removes it" in run
    lab.playbook(*TEARDOWN, *elsewhere)
    assert instances(lab) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["playbooks/deploy.yml", "--limit", "elsewhere"], "No host of this run matches 'gpu': nothing to do."),
        (["playbooks/restore.yml", "-e", "restore_hosts=trainers"], "No host of this run matches 'trainers'"),
    ],
)
def test_a_run_that_serves_nobody_ends_red(lab: Lab, tmp_path: Path, arguments: list[str], text: str) -> None:
    other = tmp_path / "hosts.yml"
    other.write_text("all: {hosts: {elsewhere: }}")
    run = lab.playbook(*arguments, "-i", str(other), expect_success=False, expect_warnings=True)
    assert text in " ".join(run.text.split())


@pytest.fixture
def volume_in_use(lab: Lab) -> Iterator[str]:
    """A volume of the data set that a host has mounted where no playbook looks, so that it cannot be detached."""
    ec2, host = lab.ec2(), lab.instance("gpu-1")
    volume_id = ec2.create_volume(
        AvailabilityZone=host["Placement"]["AvailabilityZone"],
        Size=1,
        VolumeType="gp3",
        TagSpecifications=[{"ResourceType": "volume", "Tags": tags(**OURS, Role="fleet", DatasetVersion="0" * 12)}],
    )["VolumeId"]
    ec2.attach_volume(VolumeId=volume_id, InstanceId=host["InstanceId"], Device="/dev/sdk")
    device = f"/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{volume_id.replace('-', '')}"
    lab.ssh("gpu-1", f"sudo mkfs.ext4 -q {device} && sudo mkdir -p /srv/kept && sudo mount {device} /srv/kept")
    yield volume_id
    lab.ssh("gpu-1", "sudo umount /srv/kept && sudo rmdir /srv/kept")
    lab.playbook(*TEARDOWN)
    assert volume_id not in [one["VolumeId"] for one in ec2.describe_volumes()["Volumes"]]


def test_teardown_that_leaves_a_volume_ends_red_and_names_it(lab: Lab, volume_in_use: str) -> None:
    run = lab.playbook(*TEARDOWN, "-e", "project_removal_timeout_seconds=3", expect_success=False)
    text = " ".join(run.text.split())
    assert "The removal of imagenet is incomplete: " in text
    assert f"Still there, and billed: volume {volume_in_use} (1 GiB gp3, 0.08 USD a month)" in text
    assert run.failed_hosts() == ["localhost"]


def test_teardown_that_may_not_delete_a_volume_names_it_with_its_price(lab: Lab) -> None:
    ec2 = lab.ec2()
    kept = tags(**OURS, Role="fleet", DatasetVersion="0" * 12)
    specification = [{"ResourceType": "volume", "Tags": kept}]
    volume_id = ec2.create_volume(
        AvailabilityZone="us-east-1a", Size=1000, VolumeType="gp3", TagSpecifications=specification
    )["VolumeId"]
    with lab.runners.denied("teardown", "ec2:DeleteVolume"):
        run = lab.playbook(*TEARDOWN, expect_success=False, expect_denied=True)
    text = " ".join(run.text.split())
    assert f"Still there, and billed: volume {volume_id} (1000 GiB gp3, 80.00 USD a month)" in text
    assert "not authorized to perform" in text
    run = lab.playbook(*TEARDOWN)
    assert "Nothing in us-east-1 carries Project=imagenet-ops, Dataset=imagenet now" in " ".join(run.text.split())


def test_teardown_disables_fast_snapshot_restore_of_a_snapshot_that_stays(lab: Lab) -> None:
    """As a deploy with fleet_warmup_mode=fsr leaves it when it is killed."""
    ec2 = lab.ec2()
    volume_id = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1, VolumeType="gp3")["VolumeId"]
    made = tags(**OURS, Role="deploy_snapshot", FastRestoreZones="us-east-1a")
    specification = [{"ResourceType": "snapshot", "Tags": made}]
    snapshot_id = ec2.create_snapshot(VolumeId=volume_id, TagSpecifications=specification)["SnapshotId"]
    ec2.enable_fast_snapshot_restores(AvailabilityZones=["us-east-1a"], SourceSnapshotIds=[snapshot_id])
    look = [
        {"Name": "snapshot-id", "Values": [snapshot_id]},
        {"Name": "state", "Values": ["enabling", "optimizing", "enabled"]},
    ]
    assert len(ec2.describe_fast_snapshot_restores(Filters=look)["FastSnapshotRestores"]) == 1
    lab.playbook(*TEARDOWN, "-e", "project_removal_snapshots=false")
    assert ec2.describe_fast_snapshot_restores(Filters=look)["FastSnapshotRestores"] == []
    (kept,) = ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
    assert "FastRestoreZones" not in by_name(kept)
    lab.playbook(*TEARDOWN)
    ec2.delete_volume(VolumeId=volume_id)
