"""The API as boto3 sees it: AWS's rules where moto has none. It runs alone here, without hosts, so it needs no root."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from lab.config import CONTROLLER_ACCESS_KEY, CONTROLLER_SECRET_KEY, IMAGE_ID, OTHER_ACCOUNT_BUCKET, OTHER_ACCOUNT_ID

ROOT = Path(__file__).resolve().parents[3]
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE2fLWcZmZ0b5x7zP2yC3h1kQ8m4Yw9s6t5u4v3w2x1y"
OTHER_KEY = "SOMEBODYELSE"


class Server:
    """The API on a port of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def client(self, service: str, key: str = CONTROLLER_ACCESS_KEY, **credentials: Any) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=key,
            **{"aws_secret_access_key": CONTROLLER_SECRET_KEY, **credentials},
            config=Config(proxies={}, retries={"total_max_attempts": 1}),
        )

    def calls(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/lab/calls") as answer:
            counts: dict[str, Any] = json.load(answer)
        return counts

    def reset_calls(self) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/lab/reset", method="POST")).close()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    running: list[subprocess.Popen[str]] = []

    def starter(*options: str) -> Server:
        folder = tmp_path_factory.mktemp("api")
        command = [sys.executable, "-m", "lab", "serve", "--api-only", "--directory", str(folder), *options]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        running.append(process)
        assert process.stdout is not None
        word, port = process.stdout.readline().split()
        assert word == "ready"
        return Server(f"http://127.0.0.1:{port}")

    yield starter
    for process in running:
        process.terminate()
        assert process.stdout is not None
        process.stdout.close()
        process.wait(timeout=10)


@pytest.fixture(scope="module")
def server(start: Callable[..., Server]) -> Server:
    server = start()
    server.client("ec2").import_key_pair(KeyName="lab", PublicKeyMaterial=PUBLIC_KEY)
    return server


@pytest.fixture
def ec2(server: Server) -> Any:
    return server.client("ec2")


def code(call: Callable[..., Any], **arguments: Any) -> str:
    with pytest.raises(ClientError) as error:
        call(**arguments)
    return str(error.value.response["Error"]["Code"])


def launch(ec2: Any, **options: Any) -> dict[str, Any]:
    request = {
        "ImageId": IMAGE_ID,
        "InstanceType": "t3.micro",
        "KeyName": "lab",
        "MinCount": 1,
        "MaxCount": 1,
        **options,
    }
    instance: dict[str, Any] = ec2.run_instances(**request)["Instances"][0]
    return instance


def volume_in(ec2: Any, zone: str, **options: Any) -> str:
    return str(ec2.create_volume(**{"AvailabilityZone": zone, "Size": 10, "VolumeType": "gp3", **options})["VolumeId"])


def state(ec2: Any, volume: str) -> str:
    return str(ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["State"])


def test_the_region_has_two_zones_each_with_its_default_subnet(ec2: Any) -> None:
    zones = [zone["ZoneName"] for zone in ec2.describe_availability_zones()["AvailabilityZones"]]
    assert zones == ["us-east-1a", "us-east-1b"]
    subnets = {subnet["AvailabilityZone"]: subnet["CidrBlock"] for subnet in ec2.describe_subnets()["Subnets"]}
    assert subnets == {"us-east-1a": "172.31.0.0/20", "us-east-1b": "172.31.16.0/20"}
    assert [region["RegionName"] for region in ec2.describe_regions()["Regions"]] == ["us-east-1"]


def test_the_one_image_is_found_as_debian_s_are_on_aws(ec2: Any) -> None:
    filters = [{"Name": "name", "Values": ["debian-12-amd64-*"]}, {"Name": "state", "Values": ["available"]}]
    images = ec2.describe_images(Owners=["136693071363"], Filters=filters)["Images"]
    assert [image["ImageId"] for image in images] == [IMAGE_ID]


def test_an_instance_lies_in_its_zone_with_addresses_that_lead_nowhere_else(ec2: Any) -> None:
    instance = launch(ec2, Placement={"AvailabilityZone": "us-east-1b"})
    assert instance["Placement"]["AvailabilityZone"] == "us-east-1b"
    assert instance["PrivateIpAddress"].startswith("172.31.16.")
    found = ec2.describe_instances(InstanceIds=[instance["InstanceId"]])["Reservations"][0]["Instances"][0]
    assert found["PublicIpAddress"].startswith("198.18.")
    assert found["State"]["Name"] == "running"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"KeyName": "unknown"}, "InvalidKeyPair.NotFound"),
        ({"ImageId": "ami-0123456789abcdef0"}, "InvalidAMIID.NotFound"),
        ({"InstanceType": "z9.nano"}, "InvalidInstanceType.NotFound"),
        ({"Placement": {"AvailabilityZone": "us-east-1f"}}, "InvalidParameterValue"),
    ],
)
def test_a_launch_of_something_unknown_is_refused(ec2: Any, options: dict[str, Any], expected: str) -> None:
    assert code(launch, ec2=ec2, **options) == expected


def test_a_repeated_launch_with_one_client_token_launches_once(ec2: Any) -> None:
    first = launch(ec2, ClientToken="launch-once")
    assert launch(ec2, ClientToken="launch-once")["InstanceId"] == first["InstanceId"]
    assert code(launch, ec2=ec2, ClientToken="launch-once", InstanceType="t3.small") == "IdempotentParameterMismatch"
    ec2.terminate_instances(InstanceIds=[first["InstanceId"]])
    assert code(launch, ec2=ec2, ClientToken="launch-once") == "IdempotentInstanceTerminated"


def test_a_launch_gives_as_many_as_the_maximum_and_the_profile_to_all(server: Server, ec2: Any) -> None:
    iam = server.client("iam")
    iam.create_role(RoleName="several", AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName="several")
    iam.add_role_to_instance_profile(InstanceProfileName="several", RoleName="several")
    request = {"ImageId": IMAGE_ID, "InstanceType": "t3.micro", "KeyName": "lab", "MinCount": 1, "MaxCount": 3}
    launched = ec2.run_instances(**request, IamInstanceProfile={"Name": "several"})["Instances"]
    found = ec2.describe_instances(InstanceIds=[instance["InstanceId"] for instance in launched])["Reservations"]
    profiles = [instance.get("IamInstanceProfile") for entry in found for instance in entry["Instances"]]
    assert len(profiles) == 3
    assert all(profiles)


def test_a_volume_goes_to_one_instance_in_its_own_zone_on_a_free_device(ec2: Any) -> None:
    first = launch(ec2, Placement={"AvailabilityZone": "us-east-1a"})["InstanceId"]
    second = launch(ec2, Placement={"AvailabilityZone": "us-east-1a"})["InstanceId"]
    elsewhere = launch(ec2, Placement={"AvailabilityZone": "us-east-1b"})["InstanceId"]
    volume, other = volume_in(ec2, "us-east-1a"), volume_in(ec2, "us-east-1a")

    def attach(volume: str, instance: str, device: str = "/dev/sdf") -> None:
        ec2.attach_volume(VolumeId=volume, InstanceId=instance, Device=device)

    assert code(attach, volume=volume, instance=elsewhere) == "InvalidVolume.ZoneMismatch"
    attach(volume, first)
    assert state(ec2, volume) == "in-use"
    assert code(attach, volume=volume, instance=second) == "VolumeInUse"
    assert code(attach, volume=other, instance=first) == "InvalidParameterValue"
    assert code(ec2.delete_volume, VolumeId=volume) == "VolumeInUse"
    assert code(ec2.detach_volume, VolumeId=volume, InstanceId=second) == "InvalidAttachment.NotFound"
    ec2.detach_volume(VolumeId=volume)
    assert state(ec2, volume) == "available"
    assert code(ec2.detach_volume, VolumeId=volume) == "IncorrectState"


def test_an_attachment_hangs_on_the_devices_that_a_tag_names_until_it_is_taken_back(ec2: Any) -> None:
    zone = {"AvailabilityZone": "us-east-1a"}
    instance, volume = launch(ec2, Placement=zone)["InstanceId"], volume_in(ec2, "us-east-1a")
    ec2.create_tags(Resources=[instance], Tags=[{"Key": "LabHangingDevices", "Value": "/dev/sdf /dev/sdg"}])

    def attached(device: str) -> str:
        ec2.attach_volume(VolumeId=volume, InstanceId=instance, Device=device)
        return str(ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["Attachments"][0]["State"])

    for device, expected in (("/dev/sdf", "attaching"), ("/dev/sdh", "attached"), ("/dev/sdg", "attaching")):
        assert attached(device) == expected
        ec2.detach_volume(VolumeId=volume)
        assert state(ec2, volume) == "available"


def test_a_root_volume_stays_where_it_is(ec2: Any) -> None:
    instance = launch(ec2)["InstanceId"]
    found = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    (root,) = found["BlockDeviceMappings"]
    assert root["DeviceName"] == "/dev/xvda"
    assert code(ec2.detach_volume, VolumeId=root["Ebs"]["VolumeId"]) == "OperationNotPermitted"


def test_termination_deletes_the_volumes_that_it_should_and_keeps_the_others(ec2: Any) -> None:
    mapping = {"DeviceName": "/dev/sdg", "Ebs": {"VolumeSize": 5, "VolumeType": "gp3", "DeleteOnTermination": True}}
    instance = launch(ec2, BlockDeviceMappings=[mapping])
    zone, instance_id = instance["Placement"]["AvailabilityZone"], instance["InstanceId"]
    kept = volume_in(ec2, zone)
    ec2.attach_volume(VolumeId=kept, InstanceId=instance_id, Device="/dev/sdh")
    found = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]
    volumes = {entry["DeviceName"]: entry["Ebs"]["VolumeId"] for entry in found["BlockDeviceMappings"]}
    assert set(volumes) == {"/dev/xvda", "/dev/sdg", "/dev/sdh"}
    ec2.terminate_instances(InstanceIds=[instance_id])
    left = {volume["VolumeId"] for volume in ec2.describe_volumes()["Volumes"]}
    assert left & set(volumes.values()) == {kept}
    assert state(ec2, kept) == "available"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"Size": 124, "VolumeType": "sc1"}, "InvalidParameterValue"),
        ({"AvailabilityZone": "us-east-1z"}, "InvalidZone.NotFound"),
        ({"SnapshotId": "snap-0123456789abcdef0"}, "InvalidSnapshot.NotFound"),
    ],
)
def test_a_volume_that_ec2_would_not_make_is_not_made(ec2: Any, options: dict[str, Any], expected: str) -> None:
    before = len(ec2.describe_volumes()["Volumes"])
    assert code(volume_in, ec2=ec2, zone="us-east-1a", **options) == expected
    assert len(ec2.describe_volumes()["Volumes"]) == before


def test_a_repeated_request_for_a_volume_with_one_client_token_makes_one(ec2: Any) -> None:
    first = volume_in(ec2, "us-east-1a", ClientToken="volume-once")
    assert volume_in(ec2, "us-east-1a", ClientToken="volume-once") == first
    assert code(volume_in, ec2=ec2, zone="us-east-1b", ClientToken="volume-once") == "IdempotentParameterMismatch"


def test_the_answers_have_the_keys_that_amazon_aws_reads(ec2: Any) -> None:
    volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1, VolumeType="gp3", Encrypted=True)
    assert (volume["SnapshotId"], volume["MultiAttachEnabled"], volume["Encrypted"]) == ("", False, True)


def test_a_snapshot_keeps_its_size_and_a_volume_from_it_is_as_encrypted_as_it_was(ec2: Any) -> None:
    volume = volume_in(ec2, "us-east-1a", Size=20, Encrypted=True)
    snapshot = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    ec2.modify_volume(VolumeId=volume, Size=30)
    assert ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]["VolumeSize"] == 20
    copy = ec2.create_volume(
        AvailabilityZone="us-east-1b", SnapshotId=snapshot, VolumeType="gp3", VolumeInitializationRate=300
    )
    assert (copy["Size"], copy["Encrypted"], copy["VolumeInitializationRate"]) == (20, True, 300)
    assert code(volume_in, ec2=ec2, zone="us-east-1b", SnapshotId=snapshot, Size=19) == "InvalidParameterValue"
    assert code(ec2.modify_volume, VolumeId=volume, Size=29) == "InvalidParameterValue"


def test_a_launch_takes_all_that_its_template_says(ec2: Any) -> None:
    snapshot = ec2.create_snapshot(VolumeId=volume_in(ec2, "us-east-1a"))["SnapshotId"]
    performance = {"Iops": 4000, "Throughput": 500, "VolumeInitializationRate": 200}
    mapping = {"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": snapshot, "VolumeType": "gp3", **performance}}
    data = {
        "ImageId": IMAGE_ID,
        "InstanceType": "g5.xlarge",
        "KeyName": "lab",
        "BlockDeviceMappings": [mapping],
        "TagSpecifications": [{"ResourceType": "volume", "Tags": [{"Key": "Edition", "Value": "7"}]}],
    }
    own_tags = [{"ResourceType": "launch-template", "Tags": [{"Key": "Project", "Value": "a"}]}]
    ec2.create_launch_template(LaunchTemplateName="gpu", LaunchTemplateData=data, TagSpecifications=own_tags)
    (version,) = ec2.describe_launch_template_versions(LaunchTemplateName="gpu")["LaunchTemplateVersions"]
    assert version["LaunchTemplateData"] == data
    request = {"LaunchTemplate": {"LaunchTemplateName": "gpu"}, "MinCount": 1, "MaxCount": 1}
    instance = ec2.run_instances(**request, InstanceType="g5.2xlarge")["Instances"][0]
    assert (instance["ImageId"], instance["InstanceType"], instance["KeyName"]) == (IMAGE_ID, "g5.2xlarge", "lab")
    volumes = {entry["DeviceName"]: entry["Ebs"] for entry in instance["BlockDeviceMappings"]}
    assert (sorted(volumes), volumes["/dev/sdf"]["DeleteOnTermination"]) == (["/dev/sdf", "/dev/xvda"], True)
    volume = ec2.describe_volumes(VolumeIds=[volumes["/dev/sdf"]["VolumeId"]])["Volumes"][0]
    assert (volume["Size"], volume["SnapshotId"], volume["Tags"]) == (10, snapshot, [{"Key": "Edition", "Value": "7"}])
    assert {name: volume[name] for name in performance} == performance
    wrong = {"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": snapshot, "VolumeSize": 5}}
    assert code(ec2.run_instances, **request, BlockDeviceMappings=[wrong]) == "InvalidParameterValue"


def test_versions_of_a_template_inherit_and_can_be_deleted_but_for_the_default(ec2: Any) -> None:
    ebs = {"SnapshotId": "snap-0123456789abcdef0", "VolumeType": "gp3"}
    data = {"ImageId": IMAGE_ID, "BlockDeviceMappings": [{"DeviceName": "/dev/sdf", "Ebs": ebs}]}
    ec2.create_launch_template(LaunchTemplateName="versions", LaunchTemplateData=data)
    named = {"LaunchTemplateName": "versions"}
    ec2.create_launch_template_version(**named, SourceVersion="1", LaunchTemplateData={"KeyName": "lab"})
    newest = ec2.describe_launch_template_versions(**named, Versions=["$Latest"])["LaunchTemplateVersions"][0]
    without_snapshot = [{"DeviceName": "/dev/sdf", "Ebs": {"VolumeType": "gp3"}}]
    assert newest["LaunchTemplateData"] == {
        "ImageId": IMAGE_ID,
        "KeyName": "lab",
        "BlockDeviceMappings": without_snapshot,
    }
    assert (
        code(ec2.delete_launch_template_versions, **named, Versions=["1"]) == "InvalidLaunchTemplateId.VersionNotFound"
    )
    ec2.modify_launch_template(**named, DefaultVersion="2")
    ec2.delete_launch_template_versions(**named, Versions=["1"])
    left = ec2.describe_launch_template_versions(**named)["LaunchTemplateVersions"]
    assert [version["VersionNumber"] for version in left] == [2]


def test_a_snapshot_is_copied_under_a_key_and_shared_only_under_one_s_own(server: Server, ec2: Any) -> None:
    snapshot = ec2.create_snapshot(VolumeId=volume_in(ec2, "us-east-1a", Encrypted=True))["SnapshotId"]
    found = ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]
    assert server.client("kms").describe_key(KeyId=found["KmsKeyId"])["KeyMetadata"]["KeyManager"] == "AWS"
    permission = {"Attribute": "createVolumePermission", "OperationType": "add"}
    assert code(ec2.modify_snapshot_attribute, SnapshotId=snapshot, UserIds=[OTHER_ACCOUNT_ID], **permission) == (
        "InvalidParameter"
    )
    source = {"SourceRegion": "us-east-1", "SourceSnapshotId": snapshot}
    assert code(ec2.copy_snapshot, **source, CompletionDurationMinutes=20) == "InvalidParameterValue"
    assert code(ec2.copy_snapshot, **source, KmsKeyId="alias/nowhere").startswith("InvalidKMSKey")
    key = server.client("kms").create_key()["KeyMetadata"]["Arn"]
    copied = ec2.copy_snapshot(**source, KmsKeyId=key)["SnapshotId"]
    assert ec2.describe_snapshots(SnapshotIds=[copied])["Snapshots"][0]["KmsKeyId"] == key
    ec2.modify_snapshot_attribute(SnapshotId=copied, UserIds=[OTHER_ACCOUNT_ID], **permission)
    shared = ec2.describe_snapshot_attribute(SnapshotId=copied, Attribute="createVolumePermission")
    assert shared["CreateVolumePermissions"] == [{"UserId": OTHER_ACCOUNT_ID}]
    assert code(ec2.modify_snapshot_attribute, SnapshotId=copied, GroupNames=["all"], **permission) == (
        "OperationNotPermitted"
    )


def test_own_snapshots_are_told_from_those_of_the_image(ec2: Any) -> None:
    snapshot = ec2.create_snapshot(VolumeId=volume_in(ec2, "us-east-1a"))["SnapshotId"]
    own = {entry["SnapshotId"] for entry in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}
    every = {entry["SnapshotId"] for entry in ec2.describe_snapshots()["Snapshots"]}
    assert snapshot in own
    assert len(every) == len(own) + 1


def test_what_the_lab_does_not_have_is_said_as_aws_would(ec2: Any) -> None:
    assert code(ec2.describe_volume_status, MaxResults=5) == "UnsupportedOperation"
    assert code(ec2.enable_volume_io, VolumeId="vol-1") == "UnsupportedOperation"


@pytest.mark.parametrize(
    ("service", "action", "expected"),
    [
        ("ec2", "describe_volumes", "AuthFailure"),
        ("sts", "get_caller_identity", "InvalidClientTokenId"),
        ("iam", "list_users", "InvalidClientTokenId"),
        ("s3", "list_buckets", "InvalidAccessKeyId"),
    ],
)
def test_a_key_that_the_lab_did_not_give_opens_nothing(
    server: Server, service: str, action: str, expected: str
) -> None:
    assert code(getattr(server.client(service, key=OTHER_KEY), action)) == expected


def test_the_controller_is_a_user_of_the_account(server: Server) -> None:
    identity = server.client("sts").get_caller_identity()
    assert (identity["Account"], identity["Arn"]) == ("123456789012", "arn:aws:iam::123456789012:user/lab-controller")


@pytest.fixture(scope="module")
def role(server: Server) -> Callable[..., Any]:
    """A role that may put objects below bucket writable/data/ and list that bucket."""
    iam = server.client("iam")
    statements = [
        {"Effect": "Allow", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::writable/data/*"},
        {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": "arn:aws:s3:::writable"},
    ]
    arn = iam.create_role(RoleName="writer", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    iam.put_role_policy(RoleName="writer", PolicyName="write", PolicyDocument=policy)
    server.client("s3").create_bucket(Bucket="writable")
    keys = server.client("sts").assume_role(RoleArn=arn, RoleSessionName="i-1")["Credentials"]

    def client(service: str, token: str = keys["SessionToken"]) -> Any:
        secret = {"aws_secret_access_key": keys["SecretAccessKey"], "aws_session_token": token}
        return server.client(service, key=keys["AccessKeyId"], **secret)

    return client


def test_a_role_may_do_what_its_policy_says_and_nothing_else(role: Callable[..., Any]) -> None:
    s3 = role("s3")
    s3.put_object(Bucket="writable", Key="data/a", Body=b"x")
    s3.head_bucket(Bucket="writable")
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket="writable")["Contents"]] == ["data/a"]
    assert code(s3.put_object, Bucket="writable", Key="other/a", Body=b"x") == "AccessDenied"
    assert code(s3.get_object, Bucket="writable", Key="data/a") == "AccessDenied"
    assert code(s3.list_buckets) == "AccessDenied"
    assert code(role("ec2").describe_volumes) == "UnauthorizedOperation"
    assert role("sts").get_caller_identity()["Arn"].endswith(":assumed-role/writer/i-1")


def test_a_role_s_key_is_nothing_without_its_token(role: Callable[..., Any]) -> None:
    assert code(role("s3", token="another").head_bucket, Bucket="writable") == "400"
    assert code(role("s3", token="another").list_objects_v2, Bucket="writable") == "InvalidToken"


def test_a_bucket_of_somebody_else_is_closed_and_its_name_taken(server: Server) -> None:
    s3 = server.client("s3")
    assert code(s3.head_bucket, Bucket=OTHER_ACCOUNT_BUCKET) == "403"
    assert code(s3.get_object, Bucket=OTHER_ACCOUNT_BUCKET, Key="a") == "AccessDenied"
    assert code(s3.put_object, Bucket=OTHER_ACCOUNT_BUCKET, Key="a", Body=b"x") == "AccessDenied"
    assert code(s3.create_bucket, Bucket=OTHER_ACCOUNT_BUCKET) == "BucketAlreadyExists"
    assert OTHER_ACCOUNT_BUCKET not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]


def test_a_bucket_whose_owner_is_not_the_expected_one_is_closed(server: Server) -> None:
    s3 = server.client("s3")
    s3.create_bucket(Bucket="expected-owner")
    s3.head_bucket(Bucket="expected-owner", ExpectedBucketOwner="123456789012")
    assert code(s3.head_bucket, Bucket="expected-owner", ExpectedBucketOwner=OTHER_ACCOUNT_ID) == "403"


def test_an_upload_whose_checksum_is_not_that_of_its_parts_is_refused(server: Server) -> None:
    s3 = server.client("s3")
    s3.create_bucket(Bucket="checked")
    wrong = {"ChecksumCRC32": "AAAAAA=="}
    assert code(s3.put_object, Bucket="checked", Key="a", Body=b"x", **wrong) == "BadDigest"
    where = {"Bucket": "checked", "Key": "b"}
    upload = s3.create_multipart_upload(**where, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")["UploadId"]
    part = {**where, "UploadId": upload, "PartNumber": 1}
    assert code(s3.upload_part, **part, Body=b"x", **wrong) == "BadDigest"
    etag = s3.upload_part(**part, Body=b"123456789", ChecksumCRC32="y/Q5Jg==")["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    whole = {**where, "UploadId": upload, "MultipartUpload": parts, "ChecksumType": "FULL_OBJECT"}
    assert code(s3.complete_multipart_upload, **whole, **wrong) == "BadDigest"
    s3.complete_multipart_upload(**whole, ChecksumCRC32="y/Q5Jg==")
    assert s3.head_object(**where, ChecksumMode="ENABLED")["ChecksumCRC32"] == "y/Q5Jg=="


def test_a_request_without_signature_reads_nothing(server: Server) -> None:
    server.client("s3").create_bucket(Bucket="private-bucket")
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{server.url}/private-bucket?list-type=2")
    assert error.value.code == 403
    error.value.close()


def test_the_calls_are_counted_and_the_count_can_be_reset(server: Server, ec2: Any) -> None:
    server.reset_calls()
    ec2.describe_volumes()
    ec2.describe_volumes()
    server.client("s3").list_buckets()
    assert server.calls() == {"total": 3, "calls": {"ec2:DescribeVolumes": 2, "s3:ListBuckets": 1}}


def test_a_throttled_api_says_so_when_its_burst_is_spent(start: Callable[..., Server]) -> None:
    ec2 = start("--throttle-rate", "0.001", "--throttle-burst", "2").client("ec2")
    ec2.describe_volumes()
    ec2.describe_volumes()
    with pytest.raises(ClientError) as error:
        ec2.describe_volumes()
    assert error.value.response["Error"]["Code"] == "RequestLimitExceeded"
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503


@pytest.fixture(scope="module")
def slow(start: Callable[..., Server]) -> Any:
    ec2 = start("--delay", "1.0").client("ec2")
    ec2.import_key_pair(KeyName="lab", PublicKeyMaterial=PUBLIC_KEY)
    return ec2


def states_until(last: str, read: Callable[[], str]) -> list[str]:
    """The different states that ``read`` shows, one after the other, until ``last``."""
    seen = [read()]
    end = time.monotonic() + 20
    while seen[-1] != last and time.monotonic() < end:
        now = read()
        if now != seen[-1]:
            seen.append(now)
    return seen


def test_with_a_delay_every_transition_shows_its_states_and_what_is_not_ready_is_refused(slow: Any) -> None:
    instance = launch(slow)
    zone, instance_id = instance["Placement"]["AvailabilityZone"], instance["InstanceId"]

    def instance_state() -> str:
        return str(
            slow.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]["State"]["Name"]
        )

    volume = volume_in(slow, zone, Size=125, VolumeType="sc1")
    device = {"VolumeId": volume, "InstanceId": instance_id, "Device": "/dev/sdf"}
    assert code(slow.attach_volume, **device) == "IncorrectState"
    assert code(slow.delete_volume, VolumeId=volume) == "IncorrectState"
    assert states_until("available", lambda: state(slow, volume)) == ["creating", "available"]
    assert states_until("running", instance_state)[-1] == "running"

    def attachment() -> str:
        attachments = slow.describe_volumes(VolumeIds=[volume])["Volumes"][0]["Attachments"]
        return str(attachments[0]["State"]) if attachments else "none"

    slow.attach_volume(**device)
    assert states_until("attached", attachment) == ["attaching", "attached"]
    snapshot = slow.create_snapshot(VolumeId=volume)
    assert (snapshot["State"], code(slow.create_snapshot, VolumeId=volume)) == (
        "pending",
        "ConcurrentSnapshotLimitExceeded",
    )
    from_snapshot = {"SnapshotId": snapshot["SnapshotId"]}
    assert code(volume_in, ec2=slow, zone=zone, Size=125, **from_snapshot) == "IncorrectState"

    def progress() -> str:
        found = slow.describe_snapshots(SnapshotIds=[snapshot["SnapshotId"]])["Snapshots"][0]
        return f"{found['State']} {found['Progress']}"

    shown = states_until("completed 100%", progress)
    assert shown[-1] == "completed 100%"
    assert all(entry.startswith("pending ") for entry in shown[:-1])
    slow.detach_volume(VolumeId=volume)
    assert states_until("none", attachment) == ["detaching", "none"]
    slow.terminate_instances(InstanceIds=[instance_id])
    assert states_until("terminated", instance_state) == ["shutting-down", "terminated"]


@pytest.fixture(scope="module")
def lazy(start: Callable[..., Server]) -> Any:
    """EC2 with lazily loaded volumes; an hour of fast snapshot restore is 2 s, and 400 MiB/s may be provisioned."""
    options = ("--lazy-mib-s", "5", "--fast-restore-hour-seconds", "2", "--initialization-quota-mib-s", "400")
    return start(*options).client("ec2")


def snapshot_of(ec2: Any, size_gib: int) -> str:
    return str(ec2.create_snapshot(VolumeId=volume_in(ec2, "us-east-1a", Size=size_gib))["SnapshotId"])


def initialization(ec2: Any, volume: str) -> dict[str, Any] | None:
    status: dict[str, Any] = ec2.describe_volume_status(VolumeIds=[volume])["VolumeStatuses"][0]
    return status.get("InitializationStatusDetails")


def test_the_initialization_of_a_volume_from_a_snapshot_can_be_followed(lazy: Any) -> None:
    snapshot = snapshot_of(lazy, 1)
    assert lazy.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]["FullSnapshotSizeInBytes"] == 2**30
    plain = volume_in(lazy, "us-east-1a", SnapshotId=snapshot)
    assert initialization(lazy, plain) == {"InitializationType": "default", "Progress": 0}
    rated = volume_in(lazy, "us-east-1a", SnapshotId=snapshot, VolumeInitializationRate=300)
    first = initialization(lazy, rated)
    assert first is not None
    assert first["InitializationType"] == "provisioned-rate"
    assert 0 <= first["EstimatedTimeToCompleteInSeconds"] <= 4
    end = time.monotonic() + 10
    while initialization(lazy, rated) != {**first, "Progress": 100, "EstimatedTimeToCompleteInSeconds": 0}:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert initialization(lazy, volume_in(lazy, "us-east-1a")) is None


def test_without_lazy_blocks_every_volume_is_initialized_at_once(ec2: Any) -> None:
    volume = volume_in(ec2, "us-east-1a", SnapshotId=snapshot_of(ec2, 10))
    assert initialization(ec2, volume) == {"InitializationType": "default", "Progress": 100}


def test_rates_beyond_the_quota_are_refused_until_others_are_done(lazy: Any) -> None:
    request = {"ec2": lazy, "zone": "us-east-1a", "SnapshotId": snapshot_of(lazy, 20), "Size": 20}
    first = volume_in(**request, VolumeInitializationRate=300)
    assert code(volume_in, **request, VolumeInitializationRate=101) == "VolumeInitializationRateLimitExceeded"
    lazy.delete_volume(VolumeId=first)
    volume_in(**request, VolumeInitializationRate=101)


def test_fast_snapshot_restore_makes_as_many_warm_volumes_as_there_are_credits(lazy: Any) -> None:
    snapshot = snapshot_of(lazy, 500)  # 2.048 credits an hour, 2 at most; optimized in half an hour
    where = {"AvailabilityZones": ["us-east-1a"], "SourceSnapshotIds": [snapshot]}
    answer = lazy.enable_fast_snapshot_restores(**where)
    assert (answer["Successful"][0]["State"], answer["Unsuccessful"]) == ("optimizing", [])
    filters = [{"Name": "snapshot-id", "Values": [snapshot]}, {"Name": "state", "Values": ["enabled"]}]
    end = time.monotonic() + 10
    while not (found := lazy.describe_fast_snapshot_restores(Filters=filters)["FastSnapshotRestores"]):
        assert time.monotonic() < end
        time.sleep(0.05)
    full = found[0]["EnabledTime"].timestamp() + 3  # the API tells whole seconds
    time.sleep(max(0, full - time.time()))
    volumes = [volume_in(lazy, "us-east-1a", SnapshotId=snapshot, Size=500) for _ in range(3)]
    restored = [volume["FastRestored"] for volume in lazy.describe_volumes(VolumeIds=volumes)["Volumes"]]
    assert restored == [True, True, False]
    assert [(initialization(lazy, volume) or {})["Progress"] for volume in volumes] == [100, 100, 0]
    assert lazy.disable_fast_snapshot_restores(**where)["Successful"][0]["State"] == "disabled"
    assert lazy.disable_fast_snapshot_restores(**where)["Unsuccessful"][0]["SnapshotId"] == snapshot
