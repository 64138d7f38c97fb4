"""Strangers' resources under the names that we use, as a real account has them; no run of ours may change them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lab.config import IMAGE_ID
from tests.integration.harness import Lab

STRANGER = {"Owner": "alice", "CostCenter": "42"}


def tags(**named: str) -> list[dict[str, str]]:
    """Tags as EC2 and IAM want them."""
    return [{"Key": key, "Value": value} for key, value in named.items()]


class Neighbours:
    """What somebody else has in the account: planted once, and compared to the last tag."""

    def __init__(self, lab: Lab) -> None:
        self.ec2 = lab.ec2()
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
        return {
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
