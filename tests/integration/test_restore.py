"""A backup comes back: to a host without EBS, to a new download host, into prepare.yml, and in a drill.

The tests of this file build on each other: each begins where the one before it ended.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.config import CONTROLLER_ACCESS_KEY, CONTROLLER_SECRET_KEY, Paths
from tests.integration.harness import Lab, Run

BUCKET = "imagenet-ops-lab"
OURS = [{"Name": "tag:Project", "Values": ["imagenet-ops"]}, {"Name": "tag:Dataset", "Values": ["imagenet"]}]
LIVE = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}
VERIFY = "cd {root} && sha256sum manifest.json labels.tsv recordio/*"
BACK_UP_TREES = ("-e", '{"dataset_backup_trees": ["train", "validation"]}')
RESTORE_TREES = ("-e", '{"dataset_restore_trees": ["train", "validation"]}')
ALL_FORMATS = ["mds", "parquet", "recordio", "tfrecord", "webdataset"]
DEPLOYED = ["recordio", "webdataset"]
FORMATS = ("-e", json.dumps({"data_formats": ALL_FORMATS, "data_deploy_formats": DEPLOYED, "data_shard_mib": 1}))
# Of prepare.yml, where it has everything to do.
TASK_LINES_MAX = 120
OURS = [{"Name": "tag:Project", "Values": ["imagenet-ops"]}, {"Name": "tag:Dataset", "Values": ["imagenet"]}]
TEARDOWN = ("playbooks/teardown.yml", "-e", "project_removal_confirm=imagenet")


def with_role(lab: Lab, role: str) -> dict[str, int]:
    """How many live instances and volumes carry the Role tag."""
    filters = [*OURS, {"Name": "tag:Role", "Values": [role]}]
    reservations = lab.ec2().describe_instances(Filters=[*filters, LIVE])["Reservations"]
    volumes = lab.ec2().describe_volumes(Filters=filters)["Volumes"]
    return {"instances": sum(len(entry["Instances"]) for entry in reservations), "volumes": len(volumes)}


def reports(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*-imagenet.json"))]


def tree_files(lab: Lab, version: str, split: str) -> int:
    """How many files the backup has of a tree."""
    answer = lab.s3().get_object(Bucket=BUCKET, Key=f"imagenet/{version}/trees/{split}.json")
    return int(json.loads(answer["Body"].read())["files"])


@pytest.fixture(scope="module")
def prepared(lab: Lab) -> Run:
    """The run of prepare.yml that made everything in all formats, with the trees in the backup."""
    return lab.playbook("playbooks/prepare.yml", *FORMATS, *BACK_UP_TREES)


@pytest.fixture(scope="module")
def version(prepared: Run) -> str:
    """The DatasetVersion of that backup."""
    return str(re.findall(r"DatasetVersion ([0-9a-f]{12})", prepared.text)[-1])


@pytest.fixture
def credentials(lab: Lab) -> Iterator[None]:
    """Give gpu-1, which has no instance profile, credentials of its own, as a host outside of AWS has them."""
    text = f"[default]\\naws_access_key_id={CONTROLLER_ACCESS_KEY}\\naws_secret_access_key={CONTROLLER_SECRET_KEY}\\n"
    lab.ssh("gpu-1", f"mkdir -p ~/.aws && printf '{text}' > ~/.aws/credentials")
    yield
    lab.ssh("gpu-1", "rm -r ~/.aws")


def test_the_whole_of_prepare_is_read_in_a_few_screens(prepared: Run) -> None:
    lines = [line for line in prepared.text.splitlines() if line.startswith("TASK [")]
    # It launched, fetched, packed, backed up and snapshotted, and so had all tasks to show.
    assert any("fleet_snapshot : Create | Start the snapshot" in line for line in lines)
    assert any("download_host : Absent | Terminate the download host" in line for line in lines)
    assert len(lines) <= TASK_LINES_MAX, "\n".join(lines)
    assert [line for line in lines if "Validating arguments" in line] == []
    for check in ("Assert that aws_region is set", "Validate the data set profile"):
        assert len([line for line in lines if f"data : {check}" in line]) == 1


def test_four_hosts_get_the_formats_that_are_deployed(lab: Lab, version: str) -> None:
    run = lab.playbook("playbooks/deploy.yml", *FORMATS)
    assert len(re.findall(rf" {version} .* ok$", run.text, re.MULTILINE)) == 4
    for number in range(1, 5):
        found = lab.ssh(f"gpu-{number}", "cd /data/imagenet && ls").split()
        assert found == sorted([*DEPLOYED, "labels.tsv", "manifest.json"])
        tar = "tar -tf webdataset/train-000000.tar | grep -c jpg$"
        assert int(lab.ssh(f"gpu-{number}", f"cd /data/imagenet && {tar}")) > 0
    manifest = json.loads(lab.ssh("gpu-1", "cat /data/imagenet/manifest.json"))
    assert sorted(manifest["settings"]["formats"]) == ALL_FORMATS
    assert lab.playbook("playbooks/deploy.yml", *FORMATS).all_unchanged()


@pytest.mark.usefixtures("credentials")
def test_records_to_a_host_without_ebs(lab: Lab, version: str) -> None:
    options = (
        "playbooks/restore.yml",
        "-e",
        "restore_hosts=gpu",
        "--limit",
        "gpu-1",
        "-e",
        "data_mount_path=/srv/data",
        *FORMATS,
    )
    records = (*options, "-e", "dataset_restore_content=records", "-e", f"data_version={version}")
    lab.ssh("gpu-1", "sudo rm -rf /opt/imagenet-ops")  # it may have the environment that an earlier test needed
    assert lab.playbook(*records, "--check").task_changed("python_environment : Install | Create the environment")
    run = lab.playbook(*records)
    assert run.task_changed("dataset_restore : Restore the data set")
    listed = lab.ssh(
        "gpu-1", "cd /srv/data/imagenet && find . -path ./.state -prune -o -type f -exec sha256sum {} +"
    ).splitlines()
    sums = {path.removeprefix("./"): sha256 for sha256, path in map(str.split, listed)}
    assert sums["manifest.json"].startswith(version)
    manifest = json.loads(lab.ssh("gpu-1", "cat /srv/data/imagenet/manifest.json"))
    named = {f"recordio/{name}": file for split in manifest["splits"].values() for name, file in split["files"].items()}
    named["labels.tsv"] = manifest["labels"]
    for form, made in manifest["formats"].items():
        named |= {f"{form}/{name}": file for name, file in (made["files"] | made["index_files"]).items()}
    assert {name: file["sha256"] for name, file in named.items()} == {
        name: value for name, value in sums.items() if name != "manifest.json"
    }
    assert set(lab.ssh("gpu-1", "ls /srv/data/imagenet").split()) == {"labels.tsv", "manifest.json", *ALL_FORMATS}
    assert lab.playbook(*records).all_unchanged()


def test_a_drill_passes_and_leaves_nothing_but_its_report(lab: Lab, version: str, tmp_path: Path) -> None:
    options = ("-e", f"restore_drill_report_dir={tmp_path}", "-e", f"data_version={version}", *FORMATS)
    # A host that is lost takes the scratch volume with it; here the controller is, and the next drill cleans up.
    # Key pair and security group are those of a new account: not there.
    ec2 = lab.ec2()
    for group in ec2.describe_security_groups(Filters=OURS)["SecurityGroups"]:
        ec2.delete_security_group(GroupId=group["GroupId"])
    for pair in ec2.describe_key_pairs(Filters=OURS)["KeyPairs"]:
        ec2.delete_key_pair(KeyName=pair["KeyName"])
    begun = "TASK [dataset_restore : Create the directory of the data set]"
    lab.kill_playbook_at(begun, "playbooks/drill.yml", *options)
    mappings = lab.instance("imagenet-download-drill")["BlockDeviceMappings"]
    assert [mapping["Ebs"]["DeleteOnTermination"] for mapping in mappings] == [True, True]
    lab.playbook("playbooks/drill.yml", *options, *BACK_UP_TREES)
    (report,) = reports(tmp_path)
    assert (report["passed"], report["why"], report["dataset_version"]) == (True, "", version)
    trees = ["train", "validation"]
    assert report["trees"] == trees
    answer = lab.s3().get_object(Bucket=BUCKET, Key=f"imagenet/{version}/manifest.json")
    manifest = json.loads(answer["Body"].read())
    made = [files for form in manifest["formats"].values() for files in (form["files"], form["index_files"])]
    # Archives and records of RecordIO, labels and manifest; the other formats; the trees.
    assert report["restored_files"] == 11 + sum(map(len, made)) + sum(
        tree_files(lab, version, split) for split in trees
    )
    assert report["records"].keys() == {"train", "validation"}
    assert with_role(lab, "drill_host") == {"instances": 0, "volumes": 0}
    assert with_role(lab, "scratch") == {"instances": 0, "volumes": 0}


def test_a_drill_of_a_damaged_backup_fails_names_the_object_and_cleans_up(
    lab: Lab, version: str, tmp_path: Path
) -> None:
    key = f"imagenet/{version}/recordio/train.rec"
    whole = lab.s3().get_object(Bucket=BUCKET, Key=key)["Body"].read()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    lab.s3().put_object(Bucket=BUCKET, Key=key, Body=bytes(damaged))
    try:
        run = lab.playbook(
            "playbooks/drill.yml",
            "-e",
            f"restore_drill_report_dir={tmp_path}",
            "-e",
            f"data_version={version}",
            *FORMATS,
            expect_success=False,
        )
    finally:
        lab.s3().put_object(Bucket=BUCKET, Key=key, Body=whole)
    assert "The restore drill of imagenet failed" in run.text
    (report,) = reports(tmp_path)
    assert report["passed"] is False
    assert f"s3://{BUCKET}/imagenet/{version}/recordio/train.rec: checksum mismatch: expected SHA-256" in report["why"]
    assert with_role(lab, "drill_host") == {"instances": 0, "volumes": 0}
    assert with_role(lab, "scratch") == {"instances": 0, "volumes": 0}


def test_everything_to_a_new_download_host(lab: Lab, version: str) -> None:
    lab.playbook(*TEARDOWN)
    restore = ("playbooks/restore.yml", "-e", f"data_version={version}", *FORMATS, *RESTORE_TREES)
    lab.playbook(*restore)
    assert with_role(lab, "download_host")["instances"] == 1
    sums = lab.ssh("imagenet-download", VERIFY.format(root="/data/imagenet"))
    assert any(line.startswith(version) and line.endswith("manifest.json") for line in sums.splitlines())
    for split in ("train", "validation"):
        found = lab.ssh("imagenet-download", f"find /data/imagenet/{split} -name '*.JPEG' -size +0 | wc -l")
        assert int(found) == tree_files(lab, version, split) > 0
    assert not lab.playbook(*restore).task_changed("dataset_restore : Restore the data set")
    assert lab.playbook("playbooks/steps/layout.yml").all_unchanged()


def test_prepare_starts_from_the_backup(lab: Lab, version: str) -> None:
    lab.playbook(*TEARDOWN)
    asked_before = Paths(lab.checkout).origin_log.read_text().count("GET ")
    run = lab.playbook("playbooks/prepare.yml", *FORMATS, "-e", "dataset_archives_source=backup")
    assert run.task_changed("dataset_restore : Restore the data set")
    assert not run.task_changed("dataset_archives : Fetch the archives")
    assert Paths(lab.checkout).origin_log.read_text().count("GET ") == asked_before
    assert f"DatasetVersion {version}" in run.text
    lab.playbook(*TEARDOWN, "-e", "project_removal_bucket=true")
