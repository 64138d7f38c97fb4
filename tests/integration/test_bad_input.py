"""What a person gets wrong, and what the lab's AWS refuses: a clear error each time, and nothing lost.

A data set of its own, `scratch`, with the lab's archives, so that the main job's is left alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest

from lab.config import CONTROLLER_ACCESS_KEY, CONTROLLER_SECRET_KEY
from tests.contract import tree
from tests.integration.harness import Lab

HOST = "scratch-download"
# A type that the first of the two zones does not have.
RARE_TYPE = "trn1.32xlarge"
SETTINGS = {
    "download_host_name": HOST,
    "data_volume_name": "scratch-data",
    "download_host_keep": True,
    "download_host_instance_type": RARE_TYPE,
}
# A controller that is somewhere in the internet.
FROM_OUTSIDE = {"download_host_ssh_cidrs": ["203.0.113.7/32"]}


def scratch_set(lab: Lab, **archives: dict[str, Any]) -> tuple[str, ...]:
    """Arguments that make the lab's data set `scratch`, with these changes to its archives."""
    changed = lab.facts()
    changed["name"] = "scratch"
    for key, values in archives.items():
        changed["archives"][key].update(values)
    return ("-e", json.dumps({**SETTINGS, "dataset_overrides": changed}))


@pytest.fixture(scope="module")
def scratch(lab: Lab) -> Iterator[Lab]:
    """The lab with a provisioned download host for `scratch`; all of it is removed afterwards."""
    lab.playbook("playbooks/steps/provision.yml", *scratch_set(lab))
    yield lab
    lab.playbook("playbooks/teardown.yml", *scratch_set(lab), "-e", "project_removal_confirm=scratch")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["aws_access_key=WRONG"],
            "The security token included in the request is invalid",
        ),
        (["download_host_zone=us-east-1z"], "us-east-1z is not an availability zone of us-east-1"),
        (
            ["backup_bucket_name=imagenet-ops-taken"],
            "imagenet-ops-taken exists and does not belong to account 123456789012",
        ),
        (["backup_bucket_name=Not_A_Bucket"], "'Not_A_Bucket' is not a valid S3 bucket name"),
        (
            ['{"download_host_ssh_cidrs": []}'],
            "download_host_ssh_cidrs is empty: no network could reach the SSH port of the download host",
        ),
        (["download_host_public_key_file=/nowhere.pub"], "SSH public key /nowhere.pub does not exist"),
        (['{"imagenet_accept_terms": false}'], "set it in your inventory: imagenet_accept_terms: true"),
        (['{"data_volume_size_gib": 0}'], "Increase data_volume_size_gib"),
        (["dataset_backup_storage_class=TAPE"], "value of dataset_backup_storage_class must be one of: STANDARD, "),
    ],
)
def test_preflight_names_what_is_wrong(lab: Lab, arguments: list[str], text: str) -> None:
    extra = [part for argument in arguments for part in ("-e", argument)]
    assert text in lab.playbook("playbooks/steps/preflight.yml", *extra, expect_success=False).text


@pytest.fixture(scope="module")
def subnets(lab: Lab) -> Iterator[dict[str, str]]:
    """Subnets that are no default, by what is wrong with them: `private`, `unrouted`."""
    ec2 = lab.ec2()
    vpc = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    found = {
        name: ec2.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone="us-east-1a")["Subnet"]["SubnetId"]
        for name, block in (("private", "172.31.200.0/24"), ("unrouted", "172.31.201.0/24"))
    }
    ec2.modify_subnet_attribute(SubnetId=found["unrouted"], MapPublicIpOnLaunch={"Value": True})
    table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    association = ec2.associate_route_table(RouteTableId=table, SubnetId=found["unrouted"])["AssociationId"]
    yield found
    ec2.disassociate_route_table(AssociationId=association)
    ec2.delete_route_table(RouteTableId=table)
    for subnet in found.values():
        ec2.delete_subnet(SubnetId=subnet)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"download_host_subnet_id": "subnet-0123456789abcdef0"},
            "Subnet subnet-0123456789abcdef0 does not exist in us-east-1, so the download host cannot be launched in",
        ),
        (
            {"download_host_subnet_id": "private", **FROM_OUTSIDE},
            "Subnet {private} gives no public address to its hosts, and download_host_ssh_cidrs has public networks",
        ),
        (
            {"download_host_subnet_id": "unrouted", **FROM_OUTSIDE},
            "Subnet {unrouted} has no route to an internet gateway, and download_host_ssh_cidrs has public networks",
        ),
        (
            {"download_host_instance_type": RARE_TYPE, "download_host_zone": "us-east-1a"},
            "Instance type trn1.32xlarge is not offered in us-east-1a: us-east-1 has it in us-east-1b",
        ),
        (
            {"download_host_instance_type": RARE_TYPE, "download_host_subnet_id": "private"},
            "Instance type trn1.32xlarge is not offered in us-east-1a: us-east-1 has it in us-east-1b",
        ),
        (
            {"download_host_instance_type": "c99.giant"},
            "Instance type c99.giant is not offered in a zone with a default subnet: us-east-1 has it in no zone",
        ),
    ],
)
def test_a_host_that_cannot_run_or_be_reached_is_not_launched(
    lab: Lab, subnets: dict[str, str], settings: dict[str, Any], text: str
) -> None:
    given = settings.get("download_host_subnet_id", "")
    settings = {**settings, "download_host_subnet_id": subnets.get(given, given)}
    for playbook in ("playbooks/steps/preflight.yml", "playbooks/drill.yml"):
        run = lab.playbook(playbook, "-e", json.dumps(settings), expect_success=False)
        assert text.format(**subnets) in " ".join(run.text.split())
        assert lab.changes() == 0


@pytest.mark.parametrize(
    "settings",
    [
        FROM_OUTSIDE,
        {"download_host_subnet_id": "private"},
        {"download_host_subnet_id": "private", "download_host_ssh_required": False, "download_host_ssh_cidrs": []},
        {
            "download_host_subnet_id": "private",
            "ansible_ssh_common_args": "-o ProxyJump=bastion.example.com",
            **FROM_OUTSIDE,
        },
    ],
)
def test_a_network_that_somebody_reaches_is_accepted(
    lab: Lab, subnets: dict[str, str], settings: dict[str, Any]
) -> None:
    given = settings.get("download_host_subnet_id", "")
    settings = {**settings, "download_host_subnet_id": subnets.get(given, given)}
    assert lab.playbook("playbooks/steps/preflight.yml", "-e", json.dumps(settings)).all_unchanged()


def test_a_subnet_in_another_zone_than_the_data_volume_is_refused(
    lab: Lab, scratch: Lab, subnets: dict[str, str]
) -> None:
    """Before the launch: afterwards the volume could not be attached, and the host would have cost money."""
    for playbook in ("playbooks/steps/preflight.yml", "playbooks/drill.yml"):
        given = ("-e", f"download_host_subnet_id={subnets['private']}", "-e", "download_host_instance_type=c6i.xlarge")
        run = scratch.playbook(playbook, *scratch_set(lab), *given, expect_success=False)
        wanted = f"Subnet {subnets['private']} is in us-east-1a, and the data volume is in us-east-1b"
        assert wanted in " ".join(run.text.split())
        assert lab.changes() == 0


@pytest.fixture
def account_without_network(lab: Lab, tmp_path: Path) -> Iterator[str]:
    """The URL of another AWS beside the lab's, without hosts, whose account has no default subnets."""
    command = [sys.executable, "-m", "lab", "serve", "--api-only", "--directory", str(tmp_path)]
    with subprocess.Popen(command, cwd=lab.checkout, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().split()[1]}"
        ec2 = lab.ec2(url)
        for subnet in ec2.describe_subnets()["Subnets"]:
            ec2.delete_subnet(SubnetId=subnet["SubnetId"])
        yield url
        process.terminate()


def test_without_a_default_network_a_subnet_is_required(lab: Lab, account_without_network: str) -> None:
    other = (
        *("-e", f"aws_endpoint_url={account_without_network}"),
        *("-e", f"aws_access_key={CONTROLLER_ACCESS_KEY}"),
        *("-e", f"aws_secret_key={CONTROLLER_SECRET_KEY}"),
    )
    run = lab.playbook("playbooks/steps/preflight.yml", *other, expect_success=False)
    wanted = "us-east-1 has no default subnet, as the account has no default VPC there, and download_host_subnet_id is"
    assert wanted in " ".join(run.text.split())


def test_without_a_zone_one_that_has_the_instance_type_is_chosen(scratch: Lab) -> None:
    """ec2_instance would take us-east-1a, the first, where the launch fails."""
    assert scratch.instance(HOST)["Placement"]["AvailabilityZone"] == "us-east-1b"
    assert scratch.instance(HOST)["InstanceType"] == RARE_TYPE


@pytest.mark.parametrize(
    "setting", ["backup_bucket_kms_key_id", "fleet_snapshot_kms_key_id", "fleet_volumes_kms_key_id"]
)
def test_a_kms_key_that_is_of_no_use_is_found_before_anything_is_made(lab: Lab, setting: str) -> None:
    def preflight(key: str, *, expect_success: bool) -> str:
        run = lab.playbook("playbooks/steps/preflight.yml", "-e", f"{setting}={key}", expect_success=expect_success)
        assert lab.changes() == 0
        return " ".join(run.text.split())

    unknown = "1234abcd-12ab-34cd-56ef-1234567890ab"
    assert f"KMS key {unknown} was not found: it does not exist in us-east-1" in preflight(
        unknown, expect_success=False
    )
    key = lab.kms().create_key()["KeyMetadata"]["KeyId"]
    preflight(key, expect_success=True)
    lab.kms().disable_key(KeyId=key)
    assert f"KMS key {key} is in state Disabled, so nothing can be encrypted with it" in preflight(
        key, expect_success=False
    )


def test_the_root_volume_is_encrypted_and_the_data_volume_outlives_its_host(lab: Lab, scratch: Lab) -> None:
    """The launch with a mapping, and a second run that finds the host: not changed."""
    mappings = {one["DeviceName"]: one["Ebs"] for one in scratch.instance(HOST)["BlockDeviceMappings"]}
    root = mappings.pop("/dev/xvda")
    (data,) = mappings.values()
    assert (root["DeleteOnTermination"], data["DeleteOnTermination"]) == (True, False)
    assert lab.ec2().describe_volumes(VolumeIds=[root["VolumeId"]])["Volumes"][0]["Encrypted"]
    assert scratch.playbook("playbooks/steps/provision.yml", *scratch_set(lab)).all_unchanged()


def test_an_address_that_another_host_had_before_is_reached(lab: Lab, tmp_path: Path) -> None:
    """With the options of inventories/aws for SSH; by its address alone, the host's key is refused as a changed one."""
    ours, other = lab.instance("gpu-1"), lab.instance("gpu-2")
    known = (lab.checkout / ".lab" / "known_hosts").read_text()
    keys = dict(line.split(" ", 1) for line in known.splitlines())
    found = tmp_path / "known_hosts"
    found.write_text(f"{ours['PublicIpAddress']} {keys[other['PublicIpAddress']]}\n")
    settings = tree.yaml_of("inventories/aws/group_vars/all/main.yml")["ansible_ssh_common_args"]
    options = jinja2.Environment(autoescape=True).from_string(settings).render(instance_id=ours["InstanceId"]).split()

    def reach(*options: str) -> subprocess.CompletedProcess[str]:
        command = ["ssh", "-F", ".lab/ssh_config", "-o", f"UserKnownHostsFile={found}", *options, "gpu-1", "true"]
        return subprocess.run(command, cwd=lab.checkout, capture_output=True, text=True, timeout=60, check=False)

    without_alias = options[: options.index(f"HostKeyAlias={ours['InstanceId']}") - 1]
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in reach(*without_alias).stderr
    for _ in range(2):  # accepted, then known
        assert reach(*options).returncode == 0
    assert ours["InstanceId"] in found.read_text()


def test_nothing_is_fetched_before_the_terms_are_accepted(scratch: Lab) -> None:
    refused = ("-e", '{"imagenet_accept_terms": false}')
    run = scratch.playbook("playbooks/steps/fetch.yml", *scratch_set(scratch), *refused, expect_success=False)
    text = " ".join(run.text.split())
    assert "ImageNet is for non-commercial research and education only" in text
    assert "set it in your inventory: imagenet_accept_terms: true" in text


def test_an_unknown_version_is_named(lab: Lab) -> None:
    wanted = ("-e", "data_version=000000000000", "--limit", "gpu-1")
    run = lab.playbook("playbooks/deploy.yml", *wanted, expect_success=False)
    assert "There is no complete snapshot of imagenet with DatasetVersion 000000000000 in us-east-1" in run.text


def test_a_zone_without_hosts_is_an_error(lab: Lab) -> None:
    run = lab.playbook("playbooks/deploy.yml", "--limit", "gpu_z", expect_success=False, expect_warnings=True)
    assert "gpu_z" in run.text


def test_a_volume_that_holds_something_is_not_formatted(scratch: Lab) -> None:
    scratch.ssh(HOST, "echo precious | sudo tee /data/precious")
    scratch.ssh(HOST, "sudo umount /data")
    other = (*scratch_set(scratch), "-e", "volume_mount_fstype=xfs")
    run = scratch.playbook("playbooks/steps/provision.yml", *other, expect_success=False)
    assert "holds ext4 and not xfs: it was not touched" in " ".join(run.text.split())
    scratch.playbook("playbooks/steps/provision.yml", *scratch_set(scratch))
    assert scratch.ssh(HOST, "cat /data/precious").strip() == "precious"


def test_a_data_volume_of_another_zone_is_refused(lab: Lab, scratch: Lab) -> None:
    """ec2_vol would take it by its name whatever its zone, and attach nothing."""
    host_zone = lab.instance(HOST)["Placement"]["AvailabilityZone"]
    other_zone = {"us-east-1a": "us-east-1b", "us-east-1b": "us-east-1a"}[host_zone]
    tags = {"Project": "imagenet-ops", "Dataset": "scratch", "Role": "data", "Name": "scratch-data"}
    stray = lab.ec2().create_volume(
        AvailabilityZone=other_zone,
        Size=125,
        VolumeType="sc1",
        TagSpecifications=[{"ResourceType": "volume", "Tags": [{"Key": key, "Value": tags[key]} for key in tags]}],
    )["VolumeId"]
    run = scratch.playbook("playbooks/steps/provision.yml", *scratch_set(lab), expect_success=False)
    assert f"{stray} in {other_zone}" in " ".join(run.text.split())
    lab.ec2().delete_volume(VolumeId=stray)


def test_a_wrong_md5_sets_the_archive_aside(scratch: Lab) -> None:
    run = scratch.playbook(
        "playbooks/steps/fetch.yml", *scratch_set(scratch, devkit={"md5": "0" * 32}), expect_success=False
    )
    name = "ILSVRC2012_devkit_t12.tar.gz"
    assert f"/data/scratch/archives/{name}.rejected" in run.text
    left = scratch.ssh(HOST, "ls /data/scratch/archives").split()
    assert f"{name}.rejected" in left
    assert name not in left


def test_a_page_instead_of_an_archive_is_quoted(scratch: Lab) -> None:
    page = {"urls": ["http://aws.lab:14566/moto-api/"], "md5": "0" * 32}
    run = scratch.playbook("playbooks/steps/fetch.yml", *scratch_set(scratch, devkit=page), expect_success=False)
    assert "HTML" in run.text
    assert "ILSVRC2012_devkit_t12.tar.gz" not in scratch.ssh(HOST, "ls /data/scratch/archives").split()


def test_wrong_credentials_are_said_to_be_wrong(scratch: Lab) -> None:
    wrong = ("-e", "dataset_archives_password=not-the-password")
    run = scratch.playbook("playbooks/steps/fetch.yml", *scratch_set(scratch), *wrong, expect_success=False)
    assert "credentials" in run.text
    assert "not-the-password" not in run.text


def test_a_full_disk_is_said_to_be_full_and_the_run_goes_on_later(scratch: Lab) -> None:
    scratch.ssh(HOST, "rm -rf /data/scratch/archives /data/scratch/.state")
    size_bytes = scratch.facts()["archives"]["train"]["size_bytes"]
    free = int(scratch.ssh(HOST, "df --output=avail -B1 /data | tail -1"))
    scratch.ssh(HOST, f"sudo fallocate -l {free - size_bytes // 2} /data/ballast")
    run = scratch.playbook("playbooks/steps/fetch.yml", *scratch_set(scratch), expect_success=False)
    assert "space" in run.text
    scratch.ssh(HOST, "sudo rm /data/ballast")
    scratch.playbook("playbooks/steps/fetch.yml", *scratch_set(scratch))


def test_validation_images_that_lie_there_extracted_are_moved_into_classes(scratch: Lab) -> None:
    """As in the original post: the validation archive unpacked flat, and the devkit beside it."""
    name = Path(scratch.facts()["archives"]["validation"]["urls"][0]).name
    scratch.ssh(HOST, f"mkdir -p /data/flat && tar -xf /data/scratch/archives/{name} -C /data/flat")
    flat = ("-e", json.dumps({"dataset_layout_directories": {"validation": "/data/flat"}}))
    scratch.playbook("playbooks/steps/layout.yml", *scratch_set(scratch), *flat)
    count = scratch.ssh(HOST, "find /data/scratch/validation -mindepth 2 -type f | wc -l")
    assert int(count) == scratch.facts()["splits"]["validation"]["images"]
    assert scratch.ssh(HOST, "find /data/flat -type f | wc -l").strip() == "0"
    assert scratch.playbook("playbooks/steps/layout.yml", *scratch_set(scratch), *flat).all_unchanged()


def test_a_lost_controller_costs_nothing(scratch: Lab) -> None:
    """It dies as soon as the host packs; the next one waits for the host's own work, and finds it done."""
    scratch.kill_playbook_at("scratch-download | recordio_pack | ", "playbooks/steps/pack.yml", *scratch_set(scratch))
    scratch.playbook("playbooks/steps/pack.yml", *scratch_set(scratch))
    assert scratch.playbook("playbooks/steps/pack.yml", *scratch_set(scratch)).all_unchanged()
    assert ".part" not in scratch.ssh(HOST, "ls -A /data/scratch/recordio")


def test_a_device_slot_that_is_taken_is_left_alone(lab: Lab, scratch: Lab) -> None:
    """ec2_vol would answer ok with the other volume's id; the fleet takes the next free slot."""
    instance = lab.instance("gpu-1")
    zone = instance["Placement"]["AvailabilityZone"]
    theirs = lab.ec2().create_volume(AvailabilityZone=zone, Size=1, VolumeType="gp3")["VolumeId"]
    lab.ec2().attach_volume(VolumeId=theirs, InstanceId=instance["InstanceId"], Device="/dev/sdf")
    for step in ("layout", "pack", "backup", "snapshot"):
        scratch.playbook(f"playbooks/steps/{step}.yml", *scratch_set(lab))
    run = scratch.playbook("playbooks/deploy.yml", *scratch_set(lab), "--limit", "gpu-1")
    served = run.table("host", "result")[0]
    assert served[2] != theirs
    assert served[-1] == "ok"
    scratch.playbook("playbooks/teardown.yml", *scratch_set(lab), "-e", "project_removal_confirm=scratch")
    assert lab.ec2().describe_volumes(VolumeIds=[theirs])["Volumes"][0]["State"] == "in-use"
    lab.ec2().detach_volume(VolumeId=theirs)
    lab.ec2().delete_volume(VolumeId=theirs)
