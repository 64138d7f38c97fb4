"""Strangers' resources under the names that we use, as a real account has them; no run of ours may change them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lab.config import IMAGE_ID
from tests.integration.harness import Lab

STRANGER = {"Owner": "alice", "CostCenter": "42"}
BUCKET = "imagenet-ops-lab-of-alice"
ROLE = "imagenet-download-of-alice"
TEMPLATE = "imagenet-of-alice"


def tags(**named: str) -> list[dict[str, str]]:
    """Tags as EC2 and IAM want them."""
    return [{"Key": key, "Value": value} for key, value in named.items()]


class Neighbours:
    """What somebody else has in the account: planted once, and compared to the last tag."""

    def __init__(self, lab: Lab) -> None:
        self.ec2, self.iam, self.s3 = lab.ec2(), lab.iam(), lab.s3()
        instance = self._launch("us-east-1b")
        free = self._volume("us-east-1a", Name="imagenet-data")
        scratch = self._volume("us-east-1a", Name="imagenet-drill")
        in_use = self._volume("us-east-1b", Name="imagenette-data", Project="imagenet-ops")
        self.ec2.attach_volume(VolumeId=in_use, InstanceId=instance, Device="/dev/sdf")
        # Everything that our own has, but for the project.
        like_ours = tags(**STRANGER, Dataset="imagenet", Role="deploy_snapshot", DatasetVersion="f" * 12)
        snapshot = self.ec2.create_snapshot(
            VolumeId=free, TagSpecifications=[{"ResourceType": "snapshot", "Tags": like_ours}]
        )["SnapshotId"]
        key = tags(**STRANGER)
        self.ec2.create_key_pair(
            KeyName="imagenet-download", TagSpecifications=[{"ResourceType": "key-pair", "Tags": key}]
        )
        self.group_id = self._group()
        self._role()
        self._bucket()
        self.ec2.create_launch_template(
            LaunchTemplateName=TEMPLATE,
            LaunchTemplateData={"ImageId": IMAGE_ID},
            TagSpecifications=[{"ResourceType": "launch-template", "Tags": tags(**STRANGER, Dataset="imagenet")}],
        )
        self.volume_ids = [free, scratch, in_use]
        self.snapshot_id = snapshot
        self.instance_id = instance
        self.planted = self.now()

    def now(self) -> dict[str, Any]:
        """All of it as AWS describes it now; what has vanished fails the look."""
        volumes = self.ec2.describe_volumes(VolumeIds=self.volume_ids)["Volumes"]
        snapshot = self.ec2.describe_snapshots(SnapshotIds=[self.snapshot_id])["Snapshots"][0]
        key = self.ec2.describe_key_pairs(KeyNames=["imagenet-download"])["KeyPairs"][0]
        reservation = self.ec2.describe_instances(InstanceIds=[self.instance_id])["Reservations"][0]
        instance = reservation["Instances"][0]
        group = self.ec2.describe_security_groups(GroupIds=[self.group_id])["SecurityGroups"][0]
        template = self.ec2.describe_launch_templates(LaunchTemplateNames=[TEMPLATE])["LaunchTemplates"][0]
        role = self.iam.get_role(RoleName=ROLE)["Role"]
        profile = self.iam.get_instance_profile(InstanceProfileName=ROLE)["InstanceProfile"]
        return {
            "group": (group["IpPermissions"], group["IpPermissionsEgress"], by_name(group)),
            "template": (template["LatestVersionNumber"], template["DefaultVersionNumber"], by_name(template)),
            "role": (
                role["AssumeRolePolicyDocument"],
                self.iam.list_role_policies(RoleName=ROLE)["PolicyNames"],
                by_name(role),
            ),
            "profile": ([one["RoleName"] for one in profile["Roles"]], by_name(profile)),
            "bucket": {
                "policy": self.s3.get_bucket_policy(Bucket=BUCKET)["Policy"],
                "acl": self.s3.get_bucket_acl(Bucket=BUCKET)["Grants"],
                "lifecycle": self.s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"],
                "tags": self.s3.get_bucket_tagging(Bucket=BUCKET)["TagSet"],
                "objects": [
                    (one["Key"], one["ETag"]) for one in self.s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])
                ],
            },
            "volumes": sorted(
                (
                    volume["VolumeId"],
                    volume["State"],
                    [one["InstanceId"] for one in volume.get("Attachments", [])],
                    by_name(volume),
                )
                for volume in volumes
            ),
            "snapshot": by_name(snapshot),
            "key": (key["KeyFingerprint"], by_name(key)),
            "instance": (instance["State"]["Name"], by_name(instance)),
        }

    def _group(self) -> str:
        """A security group under our name, in another VPC; names are unique within one alone."""
        vpc_id = self.ec2.create_vpc(CidrBlock="10.42.0.0/16")["Vpc"]["VpcId"]
        group_id: str = self.ec2.create_security_group(
            GroupName="imagenet-download",
            Description="alice's",
            VpcId=vpc_id,
            TagSpecifications=[{"ResourceType": "security-group", "Tags": tags(**STRANGER, Project="imagenet-ops")}],
        )["GroupId"]
        everybody = [{"CidrIp": "0.0.0.0/0"}]
        rule = {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": everybody}
        self.ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[rule])
        return group_id

    def _role(self) -> None:
        """A role and a profile whose names begin as ours do."""
        trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
        document = {"Version": "2012-10-17", "Statement": [trust]}
        self.iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps(document), Tags=tags(**STRANGER))
        self.iam.create_instance_profile(InstanceProfileName=ROLE, Tags=tags(**STRANGER))
        self.iam.add_role_to_instance_profile(InstanceProfileName=ROLE, RoleName=ROLE)

    def _bucket(self) -> None:
        """A bucket whose name begins as ours does, with a policy, a lifecycle, the project's tag and an object."""
        self.s3.create_bucket(Bucket=BUCKET, ObjectOwnership="ObjectWriter", ACL="authenticated-read")
        read = {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::222222222222:root"}, "Action": "s3:GetObject"}
        statement = {**read, "Resource": f"arn:aws:s3:::{BUCKET}/*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self.s3.put_bucket_policy(Bucket=BUCKET, Policy=policy)
        rule = {"ID": "alice", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 3}}
        self.s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [rule]})
        self.s3.put_bucket_tagging(Bucket=BUCKET, Tagging={"TagSet": tags(**STRANGER, Project="imagenet-ops")})
        self.s3.put_object(Bucket=BUCKET, Key="imagenet/0123456789ab/manifest.json", Body=b"{}")

    def _launch(self, zone: str) -> str:
        launched = self.ec2.run_instances(
            ImageId=IMAGE_ID,
            InstanceType="m5.large",
            MinCount=1,
            MaxCount=1,
            Placement={"AvailabilityZone": zone},
            TagSpecifications=[{"ResourceType": "instance", "Tags": tags(**STRANGER, Name="imagenet-download-2")}],
        )
        instance_id: str = launched["Instances"][0]["InstanceId"]
        self.ec2.get_waiter("instance_running").wait(InstanceIds=[instance_id], WaiterConfig={"Delay": 1})
        return instance_id

    def _volume(self, zone: str, **named: str) -> str:
        volume_id: str = self.ec2.create_volume(
            AvailabilityZone=zone,
            Size=1,
            VolumeType="gp3",
            TagSpecifications=[{"ResourceType": "volume", "Tags": tags(**STRANGER, **named)}],
        )["VolumeId"]
        self.ec2.get_waiter("volume_available").wait(VolumeIds=[volume_id], WaiterConfig={"Delay": 1})
        return volume_id


def by_name(resource: dict[str, Any]) -> dict[str, str]:
    """The tags of a resource by name."""
    return {tag["Key"]: tag["Value"] for tag in resource.get("Tags", [])}


@contextmanager
def untouched(lab: Lab) -> Iterator[Neighbours]:
    """Plant the neighbours, and fail where one of them was changed meanwhile."""
    neighbours = Neighbours(lab)
    yield neighbours
    assert neighbours.now() == neighbours.planted, "a neighbour's resources were changed"
