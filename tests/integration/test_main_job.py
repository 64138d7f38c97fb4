"""The main job in the lab, in the order in which a user does it: look, prepare, deploy, again, fail, tear down.

The tests of this file build on each other: each begins where the one before it ended.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.config import Paths
from tests.integration.harness import Lab

RECORDS = "/data/imagenet/recordio"
OURS = [{"Name": "tag:Project", "Values": ["imagenet-ops"]}, {"Name": "tag:Dataset", "Values": ["imagenet"]}]
HOSTS = ["gpu-1", "gpu-2", "gpu-3", "gpu-4"]

# Reads every record's label out of a .rec by its .idx, in the words of the format alone, with the host's own Python.
READ_LABELS = """
import json, struct
labels = {}
paths = {line.split("\\t")[0]: line.rstrip("\\n").split("\\t")[2] for line in open("validation.lst")}
with open("validation.rec", "rb") as rec:
    for line in open("validation.idx"):
        key, offset = line.split()
        rec.seek(int(offset))
        magic, length, flag, label, record_id, _ = struct.unpack("<IIIfQQ", rec.read(32))
        assert (magic, flag, record_id) == (0xCED7230A, 0, int(key))
        labels[paths[key].split("/")[-1]] = int(label)
print(json.dumps(labels))
"""


def ours(lab: Lab) -> dict[str, list[str]]:
    """What the project has in the lab's AWS, by kind; terminated instances do not count."""
    ec2 = lab.ec2()
    live = [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
    instances = ec2.describe_instances(Filters=[*OURS, *live])["Reservations"]
    return {
        "instances": [one["InstanceId"] for entry in instances for one in entry["Instances"]],
        "volumes": [one["VolumeId"] for one in ec2.describe_volumes(Filters=OURS)["Volumes"]],
        "snapshots": [one["SnapshotId"] for one in ec2.describe_snapshots(Filters=OURS)["Snapshots"]],
        "keys": [one["KeyName"] for one in ec2.describe_key_pairs(Filters=OURS)["KeyPairs"]],
        "groups": [one["GroupId"] for one in ec2.describe_security_groups(Filters=OURS)["SecurityGroups"]],
    }


@pytest.fixture(scope="module")
def manifest(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.ssh("gpu-1", "cat /data/imagenet/manifest.json"))
    return found


def test_check_mode_on_a_blank_account_makes_nothing(lab: Lab) -> None:
    run = lab.playbook("playbooks/prepare.yml", "--check", "--diff")
    assert run.changed("localhost") > 0, "check mode says that it would make something"
    assert ours(lab) == {"instances": [], "volumes": [], "snapshots": [], "keys": [], "groups": []}


def test_deploy_without_a_snapshot_says_so(lab: Lab) -> None:
    run = lab.playbook("playbooks/deploy.yml", "--limit", "gpu-1", expect_success=False)
    assert "There is no complete snapshot of imagenet in us-east-1. Run playbooks/prepare.yml first." in run.text


def snapshots_by_role(lab: Lab) -> dict[str, dict[str, Any]]:
    """The snapshots of the data set by their Role tag; there must be one of each at most."""
    found = lab.ec2().describe_snapshots(Filters=OURS)["Snapshots"]
    by_role = {tag["Value"]: one for one in found for tag in one["Tags"] if tag["Key"] == "Role"}
    assert len(by_role) == len(found)
    return by_role


def test_prepare_killed_while_it_fills_the_volume_for_the_fleet_and_run_again(lab: Lab) -> None:
    """Two kills: with the volume mounted and half full, and with its snapshot begun. Nothing is made twice or left."""
    lab.kill_playbook_at("TASK [fleet_snapshot : Create | Copy records, labels and manifest]", "playbooks/prepare.yml")
    assert snapshots_by_role(lab) == {}
    lab.kill_playbook_at("TASK [data_volume_snapshot : Read the DatasetVersion", "playbooks/prepare.yml")
    assert list(snapshots_by_role(lab)) == ["deploy_snapshot"]


def test_prepare_goes_from_archives_to_a_snapshot(lab: Lab) -> None:
    made = snapshots_by_role(lab)["deploy_snapshot"]["SnapshotId"]
    run = lab.playbook("playbooks/prepare.yml")
    left = ours(lab)
    assert (len(left["instances"]), len(left["volumes"]), len(left["snapshots"])) == (0, 1, 2)
    snapshots = snapshots_by_role(lab)
    assert sorted(snapshots) == ["deploy_snapshot", "snapshot"]
    snapshot = snapshots["deploy_snapshot"]
    assert (snapshot["SnapshotId"], snapshot["VolumeSize"]) == (made, 1), "one alone, of a volume just large enough"
    tags = {tag["Key"]: tag["Value"] for tag in snapshot["Tags"]}
    assert re.fullmatch(r"[0-9a-f]{12}", tags["DatasetVersion"])
    assert re.fullmatch(r"[0-9a-f]{12}", tags["DatasetSettings"])
    assert f"DatasetVersion {tags['DatasetVersion']}" in run.text
    assert snapshot["Encrypted"]
    volume = lab.ec2().describe_volumes(VolumeIds=left["volumes"])["Volumes"][0]
    assert (volume["State"], volume["VolumeType"], volume["Encrypted"]) == ("available", "sc1", True)


def test_backup_is_private_versioned_encrypted_and_whole(lab: Lab) -> None:
    s3 = lab.s3()
    bucket = "imagenet-ops-lab"
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    blocked = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    assert all(blocked.values())
    rules = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    (statement,) = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]
    assert (statement["Effect"], statement["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})
    assert statement["Resource"] == [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    (rule,) = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert (rule["Status"], rule["AbortIncompleteMultipartUpload"]) == ("Enabled", {"DaysAfterInitiation": 7})
    names = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket, Prefix="imagenet/")["Contents"]]
    manifest_key = next(name for name in names if name.endswith("/manifest.json"))
    body = s3.get_object(Bucket=bucket, Key=manifest_key)["Body"].read()
    version = hashlib.sha256(body).hexdigest()[:12]
    assert manifest_key == f"imagenet/{version}/manifest.json"
    manifest = json.loads(body)
    named = [f"archives/{archive['name']}" for archive in manifest["archives"]]
    named += [f"recordio/{name}" for split in manifest["splits"].values() for name in split["files"]]
    assert sorted(names) == sorted(f"imagenet/{version}/{name}" for name in [*named, "labels.tsv", "manifest.json"])
    for split in manifest["splits"].values():
        for name, file in split["files"].items():
            stored = s3.get_object(Bucket=bucket, Key=f"imagenet/{version}/recordio/{name}")["Body"].read()
            assert hashlib.sha256(stored).hexdigest() == file["sha256"]


def test_prepare_again_changes_nothing(lab: Lab) -> None:
    before = ours(lab)
    assert lab.playbook("playbooks/prepare.yml").all_unchanged()
    assert ours(lab) == before


def test_a_new_image_launches_no_second_host(lab: Lab) -> None:
    """ec2_instance compares the image unless it is told what to look for."""
    keep = ("-e", "download_host_keep=true", "-e", "data_jpeg_quality=90")
    lab.playbook("playbooks/steps/provision.yml", *keep)
    first = ours(lab)["instances"]
    assert len(first) == 1
    image = lab.ec2().create_image(InstanceId=first[0], Name="a-newer-image")["ImageId"]
    run = lab.playbook("playbooks/steps/provision.yml", *keep, "-e", f"download_host_image_id={image}")
    assert run.all_unchanged()
    assert ours(lab)["instances"] == first
    # ec2_key would import the key once more under a name of its own, without tags: the documented policy denies that.
    assert {"ImportKeyPair", "DeleteKeyPair"} & lab.calls().keys() == set()


def test_a_stopped_host_starts_and_other_networks_may_reach_it(lab: Lab) -> None:
    keep = ("-e", "download_host_keep=true", "-e", "data_jpeg_quality=90")
    ec2, (instance_id,) = lab.ec2(), ours(lab)["instances"]
    ec2.stop_instances(InstanceIds=[instance_id])
    ec2.get_waiter("instance_stopped").wait(InstanceIds=[instance_id], WaiterConfig={"Delay": 1})
    lab.playbook("playbooks/steps/provision.yml", *keep)
    assert ours(lab)["instances"] == [instance_id]

    def networks() -> set[str]:
        (group,) = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0][
            "SecurityGroups"
        ]
        found = ec2.describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"][0]["IpPermissions"]
        return {one["CidrIp"] for rule in found for one in rule["IpRanges"]}

    before = networks()
    wider = json.dumps({"download_host_ssh_cidrs": [*before, "203.0.113.0/24"]})
    lab.playbook("playbooks/steps/provision.yml", *keep, "-e", wider)
    assert networks() == {*before, "203.0.113.0/24"}
    lab.playbook("playbooks/steps/provision.yml", *keep)
    assert networks() == before


def test_a_kept_host_runs_every_step_again_without_a_change(lab: Lab) -> None:
    """Other settings: the archives and trees of the kept volume are taken as they are, and only records are new."""
    settings = ("-e", "download_host_keep=true", "-e", "data_jpeg_quality=90")
    first = lab.playbook("playbooks/prepare.yml", *settings, expect_warnings=True)
    assert "quality 95 is now 90); it is packed again" in first.text
    assert not first.task_changed("dataset_archives : Fetch the archives")
    assert not first.task_changed("dataset_layout : Extract the splits into one directory per class")
    assert first.task_changed("dataset_records : Pack the splits into records")
    before = ours(lab)
    assert len(before["snapshots"]) == 4
    assert lab.playbook("playbooks/prepare.yml", *settings).all_unchanged()
    assert ours(lab) == before
    assert lab.playbook("playbooks/prepare.yml", *settings, "--check").all_unchanged()
    other = lab.playbook(
        "playbooks/steps/backup.yml", *settings, "-e", "backup_bucket_abandoned_upload_days=3", "--check"
    )
    assert other.task_changed("backup_bucket : Preview the changes")
    assert "Bucket imagenet-ops-lab would be changed: lifecycle" in other.text


@pytest.fixture
def partners_bucket(lab: Lab) -> Iterator[str]:
    """A bucket of the account with a partner's policy, ACLs, a lifecycle and objects, which blocks public access."""
    s3, name = lab.s3(), "imagenet-partner"
    s3.create_bucket(Bucket=name, ObjectOwnership="ObjectWriter")
    everything = {"BlockPublicAcls": True, "IgnorePublicAcls": True, "BlockPublicPolicy": True}
    s3.put_public_access_block(
        Bucket=name, PublicAccessBlockConfiguration={**everything, "RestrictPublicBuckets": True}
    )
    s3.put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [PARTNER]}))
    s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": [{"Key": "Owner", "Value": "alice"}]})
    rule = {"ID": "alice", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 3}}
    s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": [rule]})
    s3.put_object(Bucket=name, Key="alice/thesis.txt", Body=b"years of work")
    yield name
    for entry in s3.list_object_versions(Bucket=name).get("Versions", []):
        s3.delete_object(Bucket=name, Key=entry["Key"], VersionId=entry["VersionId"])
    s3.delete_bucket(Bucket=name)


PARTNER = {
    "Sid": "Partner",
    "Effect": "Allow",
    "Principal": {"AWS": "arn:aws:iam::222222222222:root"},
    "Action": "s3:GetObject",
    "Resource": "arn:aws:s3:::imagenet-partner/*",
}


def settings_of(lab: Lab, bucket: str) -> dict[str, Any]:
    """What a bucket's owner has set."""
    s3 = lab.s3()
    return {
        "policy": json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"],
        "versioning": s3.get_bucket_versioning(Bucket=bucket).get("Status"),
        "ownership": s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"],
        "tags": s3.get_bucket_tagging(Bucket=bucket)["TagSet"],
        "lifecycle": s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"],
    }


def test_a_bucket_that_was_there_before_is_used_as_it_is(lab: Lab, partners_bucket: str) -> None:
    """Adopted, it gets our settings beside what it had; neither way does teardown delete it."""
    s3 = lab.s3()
    before = settings_of(lab, partners_bucket)
    settings = ("-e", "data_jpeg_quality=90", "-e", f"backup_bucket_name={partners_bucket}")
    step = ("playbooks/steps/backup.yml", *settings)
    # The host's role may write to the bucket of the last provisioning, which does nothing if the snapshots are there.
    lab.playbook("playbooks/steps/provision.yml", *settings, "-e", "data_jpeg_quality=91")
    used = " ".join(lab.playbook(*step).text.split())
    assert (
        "It differs from a bucket that prepare.yml creates in encryption, lifecycle, ownership, policy, tags, "
        "versioning; backup_bucket_adopt=true changes that" in used
    )
    assert settings_of(lab, partners_bucket) == before
    names = [entry["Key"] for entry in s3.list_objects_v2(Bucket=partners_bucket)["Contents"]]
    assert "alice/thesis.txt" in names
    assert any(name.endswith("/manifest.json") for name in names)
    adopt = (*settings, "-e", "backup_bucket_adopt=true")
    refused = " ".join(lab.playbook(step[0], *adopt, expect_success=False, expect_denied=True).text.split())
    assert (
        "Bucket imagenet-partner is configured differently in encryption, lifecycle, ownership, policy, tags, "
        "versioning, and could not be changed" in refused
    )
    assert "an administrator runs playbooks/steps/iam.yml once with the same variables" in refused
    assert settings_of(lab, partners_bucket) == before
    adopted = lab.playbook("playbooks/steps/iam.yml", *adopt, "-e", json.dumps({"iam_setup_playbooks": []}))
    assert adopted.task_changed("backup_bucket : Create the bucket, private, versioned, encrypted, TLS only")
    after = settings_of(lab, partners_bucket)
    assert [statement["Sid"] for statement in after["policy"]] == ["Partner", "TlsOnly"]
    assert after["policy"][0] == before["policy"][0]
    assert {rule["ID"]: rule.get("Filter") for rule in after["lifecycle"]} == {
        "alice": {"Prefix": "tmp/"},
        "imagenet-ops-abandoned-uploads-imagenet": {"Prefix": "imagenet/"},
    }
    assert after["versioning"] == "Enabled"
    assert lab.playbook(*step).all_unchanged()
    torn = ("-e", "project_removal_confirm=imagenet", "-e", "project_removal_bucket=true", *settings, "--check")
    listed = " ".join(lab.playbook("playbooks/teardown.yml", *torn).text.split())
    assert f"bucket: {partners_bucket} is kept: it was not created for this data set" in listed
    s3.delete_public_access_block(Bucket=partners_bucket)
    s3.put_bucket_tagging(Bucket=partners_bucket, Tagging={"TagSet": before["tags"]})
    opened = " ".join(lab.playbook(*step, expect_success=False).text.split())
    assert f"Bucket {partners_bucket} was not created by this project and does not block public access" in opened


def test_a_bucket_with_objects_of_others_stays(lab: Lab) -> None:
    lab.s3().put_object(Bucket="imagenet-ops-lab", Key="another-set/0123456789ab/manifest.json", Body=b"{}")
    torn = ("-e", "project_removal_confirm=imagenet", "-e", "project_removal_bucket=true", "--check")
    listed = " ".join(lab.playbook("playbooks/teardown.yml", *torn).text.split())
    assert (
        "bucket: imagenet-ops-lab is kept: it holds other objects too, such as another-set/0123456789ab/manifest.json"
        in listed
    )
    versions = lab.s3().list_object_versions(Bucket="imagenet-ops-lab", Prefix="another-set/")["Versions"]
    for entry in versions:
        lab.s3().delete_object(Bucket="imagenet-ops-lab", Key=entry["Key"], VersionId=entry["VersionId"])


def test_the_trees_give_the_bytes_of_the_archives(lab: Lab) -> None:
    """Packed from the archives before, and once more from the trees: the manifest names every byte of both."""
    (host,) = ours(lab)["instances"]
    before = lab.ssh(host, "sha256sum /data/imagenet/manifest.json")
    lab.ssh(host, "sudo rm /data/imagenet/.state/recordio_pack.train.json /data/imagenet/manifest.json")
    settings = ("-e", "data_jpeg_quality=90", "-e", "dataset_records_source=tree", "-e", "dataset_verify_reader=mxnet")
    run = lab.playbook("playbooks/steps/pack.yml", *settings)
    assert run.task_changed("dataset_records : Pack the splits into records")
    assert not run.task_changed("dataset_verify : MXNet | Read every record with ImageRecordIter")
    assert lab.ssh(host, "sha256sum /data/imagenet/manifest.json") == before


def test_release_terminates_the_kept_host(lab: Lab) -> None:
    lab.playbook("playbooks/steps/release.yml", "-e", "data_jpeg_quality=90")
    assert ours(lab)["instances"] == []


def test_check_mode_of_deploy_says_what_it_would_do(lab: Lab) -> None:
    before = ours(lab)
    run = lab.playbook("playbooks/deploy.yml", "--check", "--diff")
    assert run.task_changed("fleet_volumes : Create and attach a volume for every host")
    assert ours(lab) == before


def test_a_failing_host_leaves_the_others_alone(lab: Lab) -> None:
    # A file where the environment's directory belongs: something that no playbook may remove.
    lab.ssh("gpu-3", "sudo touch /opt/imagenet-ops")
    # And a volume that stays attaching on the first device name that it gets: that host is served on the next.
    stuck = lab.instance("gpu-4")["InstanceId"]
    lab.ec2().create_tags(Resources=[stuck], Tags=[{"Key": "LabHangingDevices", "Value": "/dev/sdf"}])
    version = versions_by_quality(lab)[95]
    given = ("-e", f"data_version={version}", "-e", "fleet_volumes_attach_timeout_seconds=2")
    run = lab.playbook("playbooks/deploy.yml", *given, expect_success=False)
    assert run.failed_hosts() == ["gpu-3"]
    attached = {one["DeviceName"] for one in lab.instance("gpu-4")["BlockDeviceMappings"]}
    assert attached == {"/dev/xvda", "/dev/sdg"}
    calls = lab.calls()
    assert (calls["CreateVolume"], calls["AttachVolume"], calls["DetachVolume"]) == (4, 5, 1)
    rows = run.table("host", "result")
    assert [row[0] for row in rows] == HOSTS
    served = lab.facts()["splits"]
    for row in rows:
        if row[0] == "gpu-3":
            assert row[-1] == "Look up the installed environment: Not a directory"
        else:
            records = f"{served['train']['images']} + {served['validation']['images']}"
            assert [row[3], row[4], row[6], row[-1]] == ["gp3", version, records, "ok"]
    lab.ssh("gpu-3", "sudo rm /opt/imagenet-ops")
    lab.ec2().delete_tags(Resources=[stuck], Tags=[{"Key": "LabHangingDevices"}])


def versions_by_quality(lab: Lab) -> dict[int, str]:
    """DatasetVersion by JPEG quality, as the manifests in the backup say."""
    s3 = lab.s3()
    found = {}
    for entry in s3.list_objects_v2(Bucket="imagenet-ops-lab", Prefix="imagenet/")["Contents"]:
        if entry["Key"].endswith("/manifest.json"):
            manifest = json.loads(s3.get_object(Bucket="imagenet-ops-lab", Key=entry["Key"])["Body"].read())
            found[manifest["settings"]["quality"]] = entry["Key"].split("/")[1]
    return found


def test_deploy_serves_the_host_that_failed_and_leaves_the_others(lab: Lab) -> None:
    version = versions_by_quality(lab)[95]
    run = lab.playbook("playbooks/deploy.yml", "-e", f"data_version={version}")
    assert run.changed("gpu-3") > 0
    assert [run.changed(host) for host in HOSTS if host != "gpu-3"] == [0, 0, 0]
    assert [row[-1] for row in run.table("host", "result")] == ["ok"] * 4


def test_every_host_has_a_volume_of_its_own_zone(lab: Lab) -> None:
    volumes = lab.ec2().describe_volumes(Filters=[*OURS, {"Name": "tag:Role", "Values": ["fleet"]}])["Volumes"]
    by_instance = {volume["Attachments"][0]["InstanceId"]: volume for volume in volumes}
    assert len(by_instance) == len(volumes) == 4
    zones = set()
    for host in HOSTS:
        instance = lab.instance(host)
        zone = instance["Placement"]["AvailabilityZone"]
        assert by_instance[instance["InstanceId"]]["AvailabilityZone"] == zone
        zones.add(zone)
    assert zones == {"us-east-1a", "us-east-1b"}


def test_every_host_has_the_same_records_read_only(lab: Lab, manifest: dict[str, Any]) -> None:
    for host in HOSTS:
        for split, name in (("train", "train.rec"), ("validation", "validation.rec")):
            digest = lab.ssh(host, f"sha256sum {RECORDS}/{name}").split()[0]
            assert digest == manifest["splits"][split]["files"][name]["sha256"]
        assert "ro" in lab.ssh(host, "findmnt -n -o OPTIONS /data").strip().split(",")
        source = lab.ssh(host, "awk '$2 == \"/data\" { print $1, $4 }' /etc/fstab").split()
        assert source[0].startswith("/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol")
        assert "nofail" in source[1].split(",")


def test_counts_and_labels_are_those_of_the_archives(lab: Lab, manifest: dict[str, Any]) -> None:
    facts = lab.facts()
    assert manifest["splits"]["train"]["records"] == facts["splits"]["train"]["images"]
    assert manifest["splits"]["validation"]["records"] == facts["splits"]["validation"]["images"]
    assert manifest["labels"]["classes"] == facts["classes"]
    assert manifest["splits"]["train"]["converted"]["cmyk"] == 2
    assert manifest["splits"]["train"]["converted"]["png"] == 1
    assert manifest["splits"]["train"]["bad_images"] == []
    labels = dict(line.split("\t")[:2] for line in lab.ssh("gpu-1", "cat /data/imagenet/labels.tsv").splitlines())
    packed = json.loads(lab.ssh("gpu-1", f"cd {RECORDS} && python3 -c '{READ_LABELS}'"))
    folder = Path(json.loads(Paths(lab.checkout).origin_config.read_text())["directory"])
    truth = dict(line.split() for line in (folder / "validation_synsets.txt").read_text().splitlines())
    assert {name: labels[str(label)] for name, label in packed.items()} == truth


def test_deploy_again_changes_nothing_and_limit_reaches_only_its_hosts(lab: Lab) -> None:
    version = versions_by_quality(lab)[95]
    again = lab.playbook("playbooks/deploy.yml", "-e", f"data_version={version}")
    assert again.all_unchanged()
    calls = lab.calls()
    assert lab.changes() == 0, f"a second run changes nothing in AWS: {calls}"
    assert sum(calls.values()) <= 12, f"and asks little, whatever the number of hosts: {calls}"
    limited = lab.playbook("playbooks/deploy.yml", "-e", f"data_version={version}", "--limit", "gpu_b")
    assert sorted(limited.recap) == ["gpu-2", "gpu-4"]
    assert limited.all_unchanged()


def test_a_wrong_setting_fails_every_host_with_the_reason(lab: Lab) -> None:
    run = lab.playbook("playbooks/deploy.yml", "-e", "fleet_warmup_mode=rates", expect_success=False)
    assert run.failed_hosts() == HOSTS
    reasons = {row[-1] for row in run.table("host", "result")}
    assert len(reasons) == 1, reasons
    assert "value of fleet_warmup_mode must be one of: auto, none, read, rate, fsr, got: rates" in reasons.pop()
    assert lab.changes() == 0


def test_deploy_may_end_with_the_reader_that_training_uses(lab: Lab) -> None:
    run = lab.playbook("playbooks/deploy.yml", "--limit", "gpu-1", "-e", "dataset_verify_reader=mxnet")
    assert not run.task_changed("dataset_verify : MXNet | Read every record with ImageRecordIter")
    assert run.table("host", "result")[0][-1] == "ok"
    assert lab.playbook("playbooks/deploy.yml", "--limit", "gpu-1", "-e", "dataset_verify_reader=mxnet").all_unchanged()


def fleet_volumes(lab: Lab, host: str) -> list[str]:
    """The volumes of the data set that are attached to a host."""
    attached = [{"Name": "attachment.instance-id", "Values": [lab.instance(host)["InstanceId"]]}]
    return [one["VolumeId"] for one in lab.ec2().describe_volumes(Filters=[*OURS, *attached])["Volumes"]]


def test_a_new_version_takes_the_place_of_the_old_one(lab: Lab) -> None:
    """A program that reads the old version is left alone unless told, and keeps it; when it has ended, that is gone."""
    newest = versions_by_quality(lab)[90]
    (old,) = fleet_volumes(lab, "gpu-2")
    lab.ssh("gpu-2", f"nohup sleep 600 < {RECORDS}/train.rec > /dev/null 2>&1 & echo $! > /tmp/reader")
    held = lab.playbook("playbooks/deploy.yml", "--limit", "gpu-2", expect_success=False)
    assert "(sleep); not unmounted. Rerun when these processes exit" in held.text
    assert len(fleet_volumes(lab, "gpu-2")) == 2
    before = lab.ssh("gpu-2", "cat /data/imagenet/manifest.json")
    assert hashlib.sha256(before.encode()).hexdigest()[:12] != newest
    run = lab.playbook("playbooks/deploy.yml", "--limit", "gpu-2", "-e", "fleet_host_lazy_unmount=true")
    assert run.table("host", "result")[0][4] == newest
    assert len(fleet_volumes(lab, "gpu-2")) == 2, "the program still has a file of the old one open"
    lab.ssh("gpu-2", "kill $(cat /tmp/reader)")
    lab.playbook("playbooks/deploy.yml", "--limit", "gpu-2")
    (new,) = fleet_volumes(lab, "gpu-2")
    assert new != old
    assert old not in [one["VolumeId"] for one in lab.ec2().describe_volumes()["Volumes"]]
    body = lab.ssh("gpu-2", "cat /data/imagenet/manifest.json")
    assert hashlib.sha256(body.encode()).hexdigest()[:12] == newest
    assert lab.playbook("playbooks/deploy.yml", "--limit", "gpu-2").all_unchanged()


@pytest.mark.parametrize("name", ["", "imagenet-2"])
def test_teardown_refuses_without_the_name(lab: Lab, name: str) -> None:
    before = ours(lab)
    run = lab.playbook("playbooks/teardown.yml", "-e", f"project_removal_confirm={name}", expect_success=False)
    assert "-e project_removal_confirm=imagenet" in run.text
    assert ours(lab) == before


def test_teardown_in_check_mode_lists_what_would_go(lab: Lab) -> None:
    before = ours(lab)
    run = lab.playbook("playbooks/teardown.yml", "-e", "project_removal_confirm=imagenet", "--check")
    for name in [*before["volumes"], *before["snapshots"]]:
        assert name in run.text
    assert ours(lab) == before


def test_teardown_removes_ours_and_nothing_else(lab: Lab) -> None:
    theirs = lab.ec2().create_volume(AvailabilityZone="us-east-1a", Size=1, VolumeType="gp3")["VolumeId"]
    confirmed = ("-e", "project_removal_confirm=imagenet")
    lab.playbook("playbooks/teardown.yml", *confirmed, "-e", "project_removal_bucket=true")
    assert ours(lab) == {"instances": [], "volumes": [], "snapshots": [], "keys": [], "groups": []}
    assert "imagenet-ops-lab" not in [bucket["Name"] for bucket in lab.s3().list_buckets()["Buckets"]]
    assert lab.ec2().describe_volumes(VolumeIds=[theirs])["Volumes"][0]["State"] == "available"
    lab.ec2().delete_volume(VolumeId=theirs)
    for host in HOSTS:
        assert lab.instance(host)["State"]["Name"] == "running"
        assert lab.ssh(host, "findmnt -n /data || echo none").strip() == "none"
        assert "/data" not in lab.ssh(host, "cat /etc/fstab")
    assert lab.playbook("playbooks/teardown.yml", *confirmed).all_unchanged()
