"""Old versions in the lab: what they cost, what uses them, and what goes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from lab.config import IMAGE_ID
from tests.integration import pocket
from tests.integration.harness import Lab

NAME = "ageing"
PLAYBOOK = "playbooks/retire.yml"
BUCKET = "imagenet-ops-ageing"
CONFIRMED = (*pocket.arguments(NAME), "-e", f"version_retirement_confirm={NAME}")


class Ageing(NamedTuple):
    lab: Lab
    snapshots: list[str]
    versions: list[str]


@pytest.fixture(scope="module")
def ageing(lab: Lab) -> Iterator[Ageing]:
    """The lab with five versions of a small data set, the oldest first; of two of them there is a backup."""
    s3 = lab.s3()
    s3.create_bucket(Bucket=BUCKET)
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    made = []
    for edition in range(5):
        made.append(pocket.make_snapshot(lab, NAME, edition))
        for name in ("labels.tsv", "manifest.json", "manifest.json") if edition in (0, 4) else ():
            s3.put_object(Bucket=BUCKET, Key=f"{NAME}/{made[-1][1]}/{name}", Body=b"x")
    yield Ageing(lab, [snapshot for snapshot, _ in made], [version for _, version in made])
    ec2 = lab.ec2()
    for volume in ec2.describe_volumes(Filters=[{"Name": "tag:Dataset", "Values": [NAME]}])["Volumes"]:
        if volume["Attachments"]:
            ec2.detach_volume(VolumeId=volume["VolumeId"])
            ec2.get_waiter("volume_available").wait(VolumeIds=[volume["VolumeId"]], WaiterConfig={"Delay": 1})
        ec2.delete_volume(VolumeId=volume["VolumeId"])
    for snapshot in existing(lab):
        ec2.delete_snapshot(SnapshotId=snapshot)


def existing(lab: Lab) -> list[str]:
    found = lab.ec2().describe_snapshots(Filters=[{"Name": "tag:Dataset", "Values": [NAME]}])["Snapshots"]
    return sorted(snapshot["SnapshotId"] for snapshot in found)


def fleet_volume(ageing: Ageing, edition: int) -> str:
    """A volume as deploy.yml makes it of that edition."""
    zone = ageing.lab.instance(pocket.HOST)["Placement"]["AvailabilityZone"]
    tags = {"Project": "imagenet-ops", "Dataset": NAME, "Role": "fleet", "DatasetVersion": ageing.versions[edition]}
    made = ageing.lab.ec2().create_volume(
        AvailabilityZone=zone,
        SnapshotId=ageing.snapshots[edition],
        VolumeType="gp3",
        TagSpecifications=[{"ResourceType": "volume", "Tags": pocket.tag_list(tags)}],
    )
    return str(made["VolumeId"])


def verdicts(rows: list[list[str]]) -> dict[str, str]:
    return {row[1]: row[5] for row in rows}


def test_without_the_name_nothing_goes(ageing: Ageing) -> None:
    run = ageing.lab.playbook(PLAYBOOK, *pocket.arguments(NAME), expect_success=False)
    assert f"-e version_retirement_confirm={NAME}" in run.text
    assert len(existing(ageing.lab)) == 5


def test_old_versions_go_and_what_is_in_use_stays(ageing: Ageing) -> None:
    lab, ec2 = ageing.lab, ageing.lab.ec2()
    # Edition 0 is nowhere, 1 on a host, 2 in a launch template and 3 on a volume that no host has; 4 is the newest.
    served, idle = fleet_volume(ageing, 1), fleet_volume(ageing, 3)
    instance = lab.instance(pocket.HOST)["InstanceId"]
    ec2.attach_volume(VolumeId=served, InstanceId=instance, Device="/dev/sdy")
    mapping = {"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": ageing.snapshots[2]}}
    data = {"ImageId": IMAGE_ID, "BlockDeviceMappings": [mapping]}
    ec2.create_launch_template(LaunchTemplateName="ageing", LaunchTemplateData=data)
    one = (*CONFIRMED, "-e", "version_retirement_keep=1")

    before = existing(lab)
    predicted = lab.playbook(PLAYBOOK, *one, "--check", "--diff")
    assert predicted.task_changed("version_retirement : Remove unused resources of old versions")
    assert existing(lab) == before
    rows = predicted.table("kind", "result")
    zero, first, second, third, newest = ageing.snapshots
    assert verdicts(rows) == {
        zero: "would be removed",
        first: f"in use by volume {served}",
        second: "in use by launch template ageing version 1",
        third: "would be removed",
        newest: "version 1 of the 1 newest",
        served: f"attached to {instance}",
        idle: "would be removed",
    }
    assert next(row[3:5] for row in rows if row[1] == idle) == ["1.0", "0.08"]
    assert f"-snapshot {zero} {ageing.versions[0]}" in predicted.text

    done = lab.playbook(PLAYBOOK, *one)
    assert verdicts(done.table("kind", "result"))[zero] == "removed"
    assert re.search(r"removed: 3, at most 0\.\d\d USD a month", done.text)
    assert existing(lab) == sorted([first, second, newest])
    assert ec2.describe_volumes(Filters=[{"Name": "volume-id", "Values": [idle]}])["Volumes"] == []
    assert lab.playbook(PLAYBOOK, *one).all_unchanged()

    ec2.delete_launch_template(LaunchTemplateName="ageing")
    lab.playbook(PLAYBOOK, *one)
    assert existing(lab) == sorted([first, newest])


def test_backups_of_old_versions_go_where_that_is_asked(ageing: Ageing) -> None:
    lab, s3 = ageing.lab, ageing.lab.s3()
    old, newest = (f"{NAME}/{ageing.versions[edition]}/" for edition in (0, 4))
    bucket = (*CONFIRMED, "-e", f"version_retirement_bucket_name={BUCKET}", "-e", "version_retirement_keep=1")
    assert lab.playbook(PLAYBOOK, *bucket).all_unchanged()
    asked = (*bucket, "-e", "version_retirement_backups=true")
    predicted = lab.playbook(PLAYBOOK, *asked, "--check")
    assert verdicts(predicted.table("kind", "result"))[f"s3://{BUCKET}/{old}"] == "would be removed"
    assert len(s3.list_object_versions(Bucket=BUCKET)["Versions"]) == 6
    assert not lab.playbook(PLAYBOOK, *asked).all_unchanged()
    left = {entry["Key"] for entry in s3.list_object_versions(Bucket=BUCKET)["Versions"]}
    assert left == {f"{newest}labels.tsv", f"{newest}manifest.json"}
    assert lab.playbook(PLAYBOOK, *asked).all_unchanged()


def test_a_bucket_must_be_named(ageing: Ageing) -> None:
    unnamed = (*CONFIRMED, "-e", "version_retirement_backups=true", "-e", "backup_bucket_name=")
    run = ageing.lab.playbook(PLAYBOOK, *unnamed, expect_success=False)
    assert "backup_bucket_name is not set" in run.text
