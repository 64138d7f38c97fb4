"""An EC2 that is strict about volumes, slow when told to be, and fails on demand. Time passes only by `sleep`."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import format_datetime
from typing import Any

from botocore.exceptions import ClientError

from tests.fakes.clients import StubEc2


class Killed(BaseException):
    """The process ended here."""


@dataclass
class FakeVolume:
    volume_id: str
    request: dict[str, Any]
    created_at: float
    available_at: float
    state: str = ""
    instance_id: str = ""
    device: str = ""
    attached_at: float = 0.0
    detached_at: float | None = None
    delete_on_termination: bool = False
    visible_at: float = 0.0

    @property
    def tags(self) -> dict[str, str]:
        return {tag["Key"]: tag["Value"] for tag in self.request["TagSpecifications"][0]["Tags"]}


@dataclass
class FakeInstance:
    zone: str
    state: str = "running"
    devices: list[str] = field(default_factory=lambda: ["/dev/xvda"])
    instance_type: str = "g5.xlarge"
    interfaces: int = 1
    lifecycle: str = ""
    tags: dict[str, str] = field(default_factory=dict)


def refused(operation: str, code: str, message: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)


class FakeEc2(StubEc2):
    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self.controller_ahead_seconds = 0.0
        self.lock = threading.Lock()
        self.instances: dict[str, FakeInstance] = {}
        self.snapshots = {"snap-1": {"SnapshotId": "snap-1", "State": "completed", "Progress": "100%", "VolumeSize": 8}}
        self.volumes: dict[str, FakeVolume] = {}
        self.tokens: dict[str, FakeVolume] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.create_seconds = 2.0
        self.attach_seconds = 3.0
        self.invisible_seconds = 0.0
        self.page_results = 1000
        self.answered_state = "creating"
        self.device_in_use_code = "InvalidParameterValue"
        self.types: dict[str, dict[str, Any]] = {}
        self.stuck: set[str] = set()
        self.stuck_devices: set[str] = set()
        self.errors: dict[tuple[str, str], list[Exception]] = {}
        self.kill_at = -1
        self.kill_after_effect = False

    # --- what a test does with it

    def clock(self) -> float:
        """Return what the controller takes for the time."""
        return self.now + self.controller_ahead_seconds

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    def add_instances(self, count: int, zones: tuple[str, ...] = ("a", "b")) -> list[str]:
        ids = [f"i-{number:017x}" for number in range(len(self.instances), len(self.instances) + count)]
        for number, instance_id in enumerate(ids):
            self.instances[instance_id] = FakeInstance(zones[number % len(zones)])
        return ids

    def fail(self, operation: str, instance_id: str, *errors: Exception) -> None:
        """Let the next calls of ``operation`` for ``instance_id`` end in ``errors``, one after the other."""
        self.errors[operation, instance_id] = list(errors)

    def attached(self) -> dict[str, str]:
        """Return the one volume of each instance; two on one instance are a mistake of the code under test."""
        found: dict[str, str] = {}
        for volume in self.volumes.values():
            if volume.instance_id and self.state(volume) == "in-use":
                assert volume.instance_id not in found
                found[volume.instance_id] = volume.volume_id
        return found

    # --- the API

    def describe_instances(self, **request: Any) -> dict[str, Any]:
        self._count("describe_instances", request)
        wanted = self._values(request, "instance-id")
        found = [(key, instance) for key, instance in self.instances.items() if key in wanted]
        reservations = [{"Instances": [self._instance(key, instance)]} for key, instance in found]
        headers = {"date": format_datetime(datetime.fromtimestamp(self.now, timezone.utc), usegmt=True)}
        return {"Reservations": reservations, "ResponseMetadata": {"HTTPHeaders": headers}}

    def describe_instance_types(self, **request: Any) -> dict[str, Any]:
        assert request["MaxResults"] <= 100
        self._count("describe_instance_types", request)
        wanted = self._values(request, "instance-type")
        return {"InstanceTypes": [{"InstanceType": name, "EbsInfo": self.types.get(name, {})} for name in wanted]}

    def describe_snapshots(self, **request: Any) -> dict[str, Any]:
        self._count("describe_snapshots", request)
        assert request["RestorableByUserIds"] == ["self"]
        wanted = self._values(request, "snapshot-id")
        return {"Snapshots": [snapshot for key, snapshot in self.snapshots.items() if key in wanted]}

    def describe_volumes(self, **request: Any) -> dict[str, Any]:
        self._count("describe_volumes", request)
        found = [volume for volume in self.volumes.values() if self._matches(volume, request["Filters"])]
        start = int(request.get("NextToken", 0))
        page = found[start : start + self.page_results]
        more = start + self.page_results < len(found)
        answer: dict[str, Any] = {"Volumes": [self._volume(volume) for volume in page]}
        return {**answer, "NextToken": str(start + self.page_results)} if more else answer

    def create_volume(self, **request: Any) -> dict[str, Any]:
        tags = {tag["Key"]: tag["Value"] for tag in request["TagSpecifications"][0]["Tags"]}
        with self._mutating("create_volume", request, tags["InstanceId"]):
            self._check_snapshot(request)
            volume = self.tokens.get(request["ClientToken"])
            if volume is None:
                volume_id = f"vol-{len(self.tokens):017x}"
                volume = FakeVolume(volume_id, request, self.now, self.now + self.create_seconds)
                volume.visible_at = self.now + self.invisible_seconds
                self.tokens[request["ClientToken"]] = self.volumes[volume_id] = volume
            elif volume.request != request:
                raise refused("CreateVolume", "IdempotentParameterMismatch", "Different parameters")
            return {**self._volume(volume), "State": self.answered_state}

    def attach_volume(self, **request: Any) -> dict[str, Any]:
        with self._mutating("attach_volume", request, request["InstanceId"]):
            volume = self.volumes.get(request["VolumeId"])
            instance = self.instances[request["InstanceId"]]
            if volume is None:
                raise refused("AttachVolume", "InvalidVolume.NotFound", "The volume does not exist.")
            if volume.request["AvailabilityZone"] != instance.zone:
                raise refused("AttachVolume", "InvalidVolume.ZoneMismatch", "Not in the same zone")
            if instance.state != "running":
                raise refused("AttachVolume", "IncorrectState", f"Instance is not 'running': {instance.state}.")
            if self.state(volume) != "available":
                raise refused("AttachVolume", "VolumeInUse", f"{volume.volume_id} is already attached to an instance")
            device = request["Device"]
            if device in instance.devices:
                message = f"Invalid value '{device}' for unixDevice. Attachment point {device} is already in use"
                raise refused("AttachVolume", self.device_in_use_code, message)
            instance.devices.append(device)
            volume.instance_id, volume.device = request["InstanceId"], device
            volume.attached_at = self.now + self.attach_seconds
            return self._attachment(volume)

    def modify_instance_attribute(self, **request: Any) -> dict[str, Any]:
        with self._mutating("modify_instance_attribute", request, request["InstanceId"]):
            mapping = request["BlockDeviceMappings"][0]
            volume = self.volumes[mapping["Ebs"]["VolumeId"]]
            assert volume.instance_id == request["InstanceId"]
            assert volume.device == mapping["DeviceName"]
            volume.delete_on_termination = mapping["Ebs"]["DeleteOnTermination"]
            return {}

    def detach_volume(self, **request: Any) -> dict[str, Any]:
        with self._mutating("detach_volume", request, request["InstanceId"]):
            volume = self.volumes[request["VolumeId"]]
            if self.state(volume) != "in-use" or volume.detached_at is not None:
                raise refused("DetachVolume", "IncorrectState", f"Volume '{volume.volume_id}' is in the state")
            volume.detached_at = self.now + self.attach_seconds
            return {}

    def delete_volume(self, **request: Any) -> dict[str, Any]:
        volume = self.volumes.get(request["VolumeId"])
        owner = "" if volume is None else volume.tags["InstanceId"]
        with self._mutating("delete_volume", request, owner):
            if volume is None:
                raise refused("DeleteVolume", "InvalidVolume.NotFound", "The volume does not exist.")
            if self.state(volume) != "available":
                raise refused("DeleteVolume", "VolumeInUse", f"{volume.volume_id} is currently attached")
            del self.volumes[volume.volume_id]
            return {}

    # --- how it works inside

    def _check_snapshot(self, request: dict[str, Any]) -> None:
        if "SnapshotId" not in request:
            return
        snapshot = self.snapshots.get(request["SnapshotId"])
        if snapshot is None:
            raise refused("CreateVolume", "InvalidSnapshot.NotFound", "The snapshot does not exist.")
        if snapshot["State"] != "completed":
            raise refused("CreateVolume", "IncorrectState", f"Snapshot is in invalid state - {snapshot['State']}")
        if request.get("Size", snapshot["VolumeSize"]) < snapshot["VolumeSize"]:
            raise refused("CreateVolume", "InvalidParameterValue", "Volume is smaller than its snapshot")

    def state(self, volume: FakeVolume) -> str:
        if volume.state:
            return volume.state
        if self.now < volume.available_at:
            return "creating"
        if volume.detached_at is not None and self.now >= volume.detached_at:
            if volume.instance_id in self.instances:
                self.instances[volume.instance_id].devices.remove(volume.device)
            volume.instance_id, volume.detached_at = "", None
        return "in-use" if volume.instance_id else "available"

    def _instance(self, instance_id: str, instance: FakeInstance) -> dict[str, Any]:
        return {
            "InstanceId": instance_id,
            "InstanceType": instance.instance_type,
            "NetworkInterfaces": [{}] * instance.interfaces,
            "State": {"Name": instance.state},
            "Placement": {"AvailabilityZone": instance.zone},
            **({"InstanceLifecycle": instance.lifecycle} if instance.lifecycle else {}),  # on-demand ones have none
            "Tags": [{"Key": key, "Value": value} for key, value in instance.tags.items()],
            "BlockDeviceMappings": [self._mapping(instance_id, device) for device in instance.devices],
        }

    def _mapping(self, instance_id: str, device: str) -> dict[str, Any]:
        volume = next((v for v in self.volumes.values() if (v.instance_id, v.device) == (instance_id, device)), None)
        ebs = {
            "VolumeId": "vol-of-another" if volume is None else volume.volume_id,
            "DeleteOnTermination": volume is None or volume.delete_on_termination,
        }
        return {"DeviceName": device, "Ebs": ebs}

    def _attachment(self, volume: FakeVolume) -> dict[str, Any]:
        is_stuck = volume.instance_id in self.stuck or volume.device in self.stuck_devices
        arrived = self.now >= volume.attached_at and not is_stuck
        state = "detaching" if volume.detached_at is not None else "attached" if arrived else "attaching"
        return {
            "InstanceId": volume.instance_id,
            "VolumeId": volume.volume_id,
            "Device": volume.device,
            "State": state,
        }

    def _volume(self, volume: FakeVolume) -> dict[str, Any]:
        state = self.state(volume)
        return {
            "VolumeId": volume.volume_id,
            "VolumeType": volume.request.get("VolumeType", "gp2"),
            "State": state,
            "AvailabilityZone": volume.request["AvailabilityZone"],
            "CreateTime": datetime.fromtimestamp(volume.created_at, timezone.utc),
            "Tags": volume.request["TagSpecifications"][0]["Tags"],
            "Attachments": [self._attachment(volume)] if volume.instance_id else [],
        }

    def _matches(self, volume: FakeVolume, filters: list[dict[str, Any]]) -> bool:
        def value(name: str) -> str | None:
            return volume.volume_id if name == "volume-id" else volume.tags.get(name.removeprefix("tag:"))

        visible = self.now >= volume.visible_at
        return visible and all(value(wanted["Name"]) in wanted["Values"] for wanted in filters)

    def _values(self, request: dict[str, Any], name: str) -> list[str]:
        values: list[str] = next(wanted["Values"] for wanted in request["Filters"] if wanted["Name"] == name)
        assert len(values) <= 200
        return values

    def _count(self, operation: str, request: dict[str, Any]) -> None:
        assert request["MaxResults"] <= 1000
        self.calls.append((operation, request))

    def _mutating(self, operation: str, request: dict[str, Any], instance_id: str) -> _Mutation:
        return _Mutation(self, operation, request, instance_id)

    def names(self, *, mutating: bool) -> list[str]:
        return [name for name, _ in self.calls if name.startswith("describe") != mutating]


class _Mutation:
    """One call that changes something: counted, made to fail or to be the last one, as the test wants."""

    def __init__(self, ec2: FakeEc2, operation: str, request: dict[str, Any], instance_id: str) -> None:
        self.ec2, self.operation, self.request, self.instance_id = ec2, operation, request, instance_id

    def __enter__(self) -> None:
        self.ec2.lock.acquire()
        number = len(self.ec2.names(mutating=True))
        self.dead = 0 <= self.ec2.kill_at <= number
        if self.dead and not (self.ec2.kill_after_effect and number == self.ec2.kill_at):
            self.ec2.lock.release()
            raise Killed
        self.ec2.calls.append((self.operation, self.request))
        errors = self.ec2.errors.get((self.operation, self.instance_id))
        if errors:
            self.ec2.lock.release()
            raise errors.pop(0)

    def __exit__(self, *_: object) -> None:
        self.ec2.lock.release()
        if self.dead:
            raise Killed
