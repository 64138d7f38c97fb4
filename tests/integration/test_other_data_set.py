"""A data set that is not ImageNet, from one archive of both its splits to a snapshot: only the profile differs.

It has the shape of Imagenette, and the archive is on the download host already, as it is for many.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.images import write_imagenette
from tests.integration.harness import FAST_RESTORE_HOUR_SECONDS, Lab
from tests.integration.neighbours import by_name, tags

HOST = "imagenette-download"
ARCHIVE = "/var/tmp/imagenette2.tgz"
BUCKET = "imagenet-ops-lab"
TWIN_ARCHIVE = "twin/source/imagenette2.tgz"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "imagenette2.tgz"
    write_imagenette(path)
    return path


@pytest.fixture(scope="module")
def arguments(archive: Path) -> tuple[str, ...]:
    """What makes the profile datasets/imagenette.yml that of the small archive."""
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    images = {"urls": [ARCHIVE], "size_bytes": archive.stat().st_size, "md5": md5}
    overrides = {
        "archives": {"images": images},
        "classes": 4,
        "splits": {
            "train": {"images": 16, "class_images_min": 4, "class_images_max": 4},
            "validation": {"images": 8, "class_images_min": 2, "class_images_max": 2},
        },
    }
    given = {"download_host_keep": True, "dataset_name": "imagenette", "dataset_overrides": overrides}
    return ("-e", json.dumps(given))


@pytest.fixture(scope="module")
def imagenette(lab: Lab, archive: Path, arguments: tuple[str, ...]) -> Iterator[Lab]:
    """The lab with a download host that has the archive, beside another data set; it is removed afterwards."""
    ec2 = lab.ec2()
    imagenets = tags(Project="imagenet-ops", Dataset="imagenet", Role="data", Name="imagenet-data")
    volume_id = ec2.create_volume(
        AvailabilityZone="us-east-1a",
        Size=125,
        VolumeType="sc1",
        TagSpecifications=[{"ResourceType": "volume", "Tags": imagenets}],
    )["VolumeId"]
    lab.playbook("playbooks/steps/provision.yml", *arguments)
    with archive.open("rb") as content:
        put = ["ssh", "-F", ".lab/ssh_config", HOST, f"cat > {ARCHIVE}"]
        subprocess.run(put, cwd=lab.checkout, stdin=content, check=True, timeout=120)
    yield lab
    lab.playbook("playbooks/teardown.yml", *arguments, "-e", "project_removal_confirm=imagenette")
    (volume,) = ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
    assert (volume["State"], by_name(volume)) == ("available", {tag["Key"]: tag["Value"] for tag in imagenets})
    ec2.delete_volume(VolumeId=volume_id)


def manifest(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.ssh(HOST, "cat /data/imagenette/manifest.json"))
    return found


def test_prepare_takes_both_splits_from_one_archive(imagenette: Lab, arguments: tuple[str, ...]) -> None:
    imagenette.playbook("playbooks/prepare.yml", *arguments)
    made = manifest(imagenette)
    assert {name: split["records"] for name, split in made["splits"].items()} == {"train": 16, "validation": 8}
    assert [entry["name"] for entry in made["archives"]] == ["imagenette2.tgz"]
    labels = imagenette.ssh(HOST, "cat /data/imagenette/labels.tsv").splitlines()
    assert [line.split("\t")[1] for line in labels[-4:]] == [f"n{number:08d}" for number in range(4)]
    assert imagenette.playbook("playbooks/prepare.yml", *arguments).all_unchanged()


def test_uploads_that_were_never_completed_are_aborted(imagenette: Lab, arguments: tuple[str, ...]) -> None:
    """S3 bills their parts, and no listing shows them."""
    s3, bucket = imagenette.s3(), BUCKET
    (sha256,) = imagenette.ssh(HOST, "sha256sum < /data/imagenette/manifest.json | cut -c1-12").split()
    keys = [f"imagenette/{sha256}/{name}" for name in ("manifest.json", "archives/imagenette2.tgz")]
    before = s3.head_object(Bucket=bucket, Key=keys[1])["ContentLength"]
    for key in keys:
        s3.delete_object(Bucket=bucket, Key=key)
    upload = s3.create_multipart_upload(Bucket=bucket, Key=keys[1])["UploadId"]
    s3.upload_part(Bucket=bucket, Key=keys[1], UploadId=upload, PartNumber=1, Body=b"of a run that was killed")
    imagenette.playbook("playbooks/steps/backup.yml", *arguments)
    assert s3.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
    assert s3.head_object(Bucket=bucket, Key=keys[1])["ContentLength"] == before


def test_the_trees_are_those_of_the_archive(imagenette: Lab, archive: Path, tmp_path: Path) -> None:
    for split, folder in (("train", "train"), ("validation", "val")):
        expected = write_imagenette(tmp_path / "again.tgz")[folder]
        assert (tmp_path / "again.tgz").read_bytes() == archive.read_bytes()
        wanted = {f"./{name}": hashlib.sha256(content).hexdigest() for name, content in expected.items()}
        lines = imagenette.ssh(
            HOST, f"cd /data/imagenette/{split} && find . -type f -exec sha256sum {{}} +"
        ).splitlines()
        assert {line.split(maxsplit=1)[1]: line.split(maxsplit=1)[0] for line in lines} == wanted


def test_the_trees_give_the_records_of_the_archive(imagenette: Lab, arguments: tuple[str, ...]) -> None:
    before = manifest(imagenette)
    folder = "cd /data/imagenette && sudo"
    imagenette.ssh(HOST, f"{folder} cp -a .state archives.state && sudo rm .state/recordio_pack.*.json manifest.json")
    imagenette.playbook("playbooks/steps/pack.yml", *arguments, "-e", "dataset_records_source=tree")
    assert manifest(imagenette) == before
    # The next test packs from the archive, and there is nothing for it to do.
    imagenette.ssh(HOST, f"{folder} rm -r .state && sudo mv archives.state .state")


@pytest.fixture(scope="module")
def twin(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """A second data set of the same images and settings, so that nothing but its name tells it from the first."""
    given = json.loads(arguments[1])
    images = {**given["dataset_overrides"]["archives"]["images"], "urls": [f"s3://{BUCKET}/{TWIN_ARCHIVE}"]}
    overrides = {**given["dataset_overrides"], "name": "twin", "archives": {"images": images}}
    return ("-e", json.dumps({**given, "dataset_overrides": overrides, "download_host_keep": False}))


def test_a_host_that_fails_ends_the_run_though_one_of_another_data_set_goes_on(
    imagenette: Lab, twin: tuple[str, ...]
) -> None:
    """Both are in the group download_host. The next play looks for the snapshots, for a minute."""
    run = imagenette.playbook("playbooks/prepare.yml", *twin, expect_success=False)
    assert run.failed_hosts() == ["twin-download"]
    assert f"s3://{BUCKET}/{TWIN_ARCHIVE}" in " ".join(run.text.split())
    assert "PLAY [Fetch the archives]" in run.text
    assert "PLAY [Extract the archives into trees]" not in run.text
    assert HOST in run.recap


def whole(lab: Lab, dataset: str) -> dict[str, Any]:
    """What an account has of a data set by kind: all with its tags, its role, its backup, as AWS describes it now."""
    filters = [{"Name": "tag:Project", "Values": ["imagenet-ops"]}, {"Name": "tag:Dataset", "Values": [dataset]}]
    live = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}
    ec2, iam, s3 = lab.ec2(), lab.iam(), lab.s3()
    instances = [
        one for entry in ec2.describe_instances(Filters=[*filters, live])["Reservations"] for one in entry["Instances"]
    ]
    groups = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    return {
        "instances": {one["InstanceId"]: (one["State"]["Name"], by_name(one)) for one in instances},
        "volumes": {
            one["VolumeId"]: (one["State"], [held["InstanceId"] for held in one["Attachments"]], by_name(one))
            for one in ec2.describe_volumes(Filters=filters)["Volumes"]
        },
        "snapshots": {
            one["SnapshotId"]: (one["State"], by_name(one))
            for one in ec2.describe_snapshots(Filters=filters)["Snapshots"]
        },
        "groups": {one["GroupId"]: (one["IpPermissions"], by_name(one)) for one in groups},
        "keys": {one["KeyName"]: by_name(one) for one in ec2.describe_key_pairs(Filters=filters)["KeyPairs"]},
        "roles": {
            one["RoleName"]: iam.get_role_policy(RoleName=one["RoleName"], PolicyName="backup")["PolicyDocument"]
            for one in iam.list_roles()["Roles"]
            if one["RoleName"] == f"{dataset}-download"
        },
        "backup": {
            one["Key"]: one["ETag"] for one in s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{dataset}/")["Contents"]
        },
    }


def test_a_second_data_set_comes_and_goes_and_the_first_stays_whole(
    imagenette: Lab, arguments: tuple[str, ...], twin: tuple[str, ...], archive: Path
) -> None:
    lab, to_host, elsewhere = imagenette, ("--limit", "gpu-1"), ("-e", "data_mount_path=/data2")
    lab.s3().put_object(Bucket=BUCKET, Key=TWIN_ARCHIVE, Body=archive.read_bytes())
    lab.playbook("playbooks/prepare.yml", *twin)
    lab.playbook("playbooks/deploy.yml", *arguments, *to_host)
    # With what few deployments want: a volume that ends with its host, made warm by fast snapshot restore.
    few = {
        "fleet_volumes_delete_on_termination": True,
        "fleet_warmup_mode": "fsr",
        "fleet_warmup_fsr_hour_seconds": FAST_RESTORE_HOUR_SECONDS,
    }
    lab.playbook("playbooks/deploy.yml", *twin, *to_host, *elsewhere, "-e", json.dumps(few))
    made = whole(lab, "twin")
    assert {kind for kind, found in made.items() if not found} == {"instances"}
    mapped = [one["Ebs"] for one in lab.instance("gpu-1")["BlockDeviceMappings"]]
    assert [one["DeleteOnTermination"] for one in mapped if one["VolumeId"] in made["volumes"]] == [True]
    before, sums = whole(lab, "imagenette"), "find /data/imagenette -type f -exec sha256sum {} + | sort"
    assert {kind for kind, found in before.items() if not found} == set()
    content = lab.ssh("gpu-1", sums)
    assert lab.ssh("gpu-1", sums.replace("/data/imagenette", "/data2/twin")).count("\n") == content.count("\n") > 0

    lab.playbook("playbooks/teardown.yml", *twin, *elsewhere, "-e", "project_removal_confirm=twin")
    left = whole(lab, "twin")
    assert {kind for kind, found in left.items() if found} == {"backup"}
    assert left["backup"] == made["backup"]
    assert whole(lab, "imagenette") == before
    assert lab.ssh("gpu-1", sums) == content
    # Each of them verifies what it finds: the records on the host, and the snapshots of the settings.
    assert lab.playbook("playbooks/deploy.yml", *arguments, *to_host).all_unchanged()
    assert lab.playbook("playbooks/prepare.yml", *arguments).all_unchanged()


def test_formats_are_added_to_the_records_that_are_there(imagenette: Lab, arguments: tuple[str, ...]) -> None:
    """No archive is needed, and packing finds what was converted."""
    formats = ("-e", json.dumps({"data_formats": ["recordio", "webdataset"]}))
    sums = "cd /data/imagenette && sha256sum recordio/* labels.tsv"
    before, records = manifest(imagenette), imagenette.ssh(HOST, sums)
    foreseen = imagenette.playbook("playbooks/convert.yml", *arguments, *formats, "--check")
    assert foreseen.task_changed("dataset_formats : Write the records in the missing formats")
    assert manifest(imagenette) == before
    imagenette.ssh(HOST, "sudo mv /data/imagenette/archives /data/imagenette/away")
    run = imagenette.playbook("playbooks/convert.yml", *arguments, *formats)
    imagenette.ssh(HOST, "sudo mv /data/imagenette/away /data/imagenette/archives")
    assert run.task_changed("dataset_formats : Write the records in the missing formats")
    made = manifest(imagenette)
    assert made["settings"]["formats"] == ["recordio", "webdataset"]
    assert {split["records"] for split in made["splits"].values()} == {16, 8}
    listed = imagenette.ssh(HOST, "tar -tf /data/imagenette/webdataset/train-000000.tar | grep -c [.]jpg")
    assert int(listed) == 16
    assert imagenette.ssh(HOST, sums) == records
    assert imagenette.playbook("playbooks/convert.yml", *arguments, *formats).all_unchanged()
    assert imagenette.playbook("playbooks/steps/pack.yml", *arguments, *formats).all_unchanged()
    assert manifest(imagenette) == made
