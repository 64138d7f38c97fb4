"""The volumes of a fleet as EC2 describes them: whose they are, where they are attached, and what they are called."""

from __future__ import annotations

import hashlib
import json
import string
from typing import Any

from ansible.module_utils.imagenet_ops.aws.calls import tags_of
from ansible.module_utils.imagenet_ops.ebs.jobs import Ec2Jobs, Job, Volume, fail

INSTANCE_TAG = "InstanceId"
# Which Auto Scaling sets on the instances of its groups.
AUTO_SCALING_TAG = "aws:autoscaling:groupName"
TERMINATED_STATES = ("shutting-down", "terminated")
# EC2 shows a terminated instance for an hour. One that it does not show may also be one that an answer left out.
FORGOTTEN_SECONDS = 3600.0
# Ends of device names: f to p are recommended for EBS volumes, the others are allowed (EC2 User Guide, "Device names
# for volumes"). sdf and xvdf are one slot. The name plays no part in finding the device (see host/devices.py).
DEVICE_SUFFIXES = [*"fghijklmnop", *(first + second for first in "bc" for second in string.ascii_lowercase)]


def read_instance(job: Job, instance: dict[str, Any] | None) -> None:
    """Keep in ``job`` what is known of its instance; one that cannot be served fails it."""
    if instance is None:
        fail(job, f"instance {job.instance_id} does not exist in this Region. Correct the inventory")
        return
    job.zone = instance["Placement"]["AvailabilityZone"]
    mappings = instance.get("BlockDeviceMappings", [])
    job.used_devices = {device_suffix(mapping["DeviceName"]) for mapping in mappings}
    volumes = [mapping["Ebs"] for mapping in mappings if "Ebs" in mapping]
    job.is_ephemeral = is_ephemeral(instance)
    job.deleted_with_instance = {ebs["VolumeId"] for ebs in volumes if ebs["DeleteOnTermination"]}
    state = instance["State"]["Name"]
    if state != "running":
        fail(job, f"instance {job.instance_id} is {state}. Start it, or exclude it with --limit")


def is_ephemeral(instance: dict[str, Any]) -> bool:
    """Say whether AWS ends an instance by itself: a Spot instance, or one of an Auto Scaling group."""
    return instance.get("InstanceLifecycle") == "spot" or AUTO_SCALING_TAG in tags_of(instance)


def is_terminated(instance: dict[str, Any] | None) -> bool:
    """Say whether EC2 shows that an instance has ended for good."""
    return instance is not None and instance["State"]["Name"] in TERMINATED_STATES


def is_orphan(volume: Volume, instance: dict[str, Any] | None, now: float) -> bool:
    """Say whether the instance of ``volume`` has ended: it shows so, or EC2 has had the time to forget it."""
    if instance is None:
        return bool(now - volume["CreateTime"].timestamp() >= FORGOTTEN_SECONDS)
    return is_terminated(instance)


def attachments(instance: dict[str, Any], instance_type: dict[str, Any]) -> tuple[int, float]:
    """Return how many attachments an instance has, and the most that its type takes (infinite where EC2 does not say).

    ``MaximumEbsAttachments`` of a type whose limit is ``shared`` has the first network interface, the NVMe disks and
    the accelerators taken off already; every further network interface takes a volume's place (EC2 User Guide, "Amazon
    EBS volume limits for Amazon EC2 instances").
    """
    limits = instance_type.get("EbsInfo", {})
    is_shared = limits.get("AttachmentLimitType") == "shared"
    used = possible_attachments(instance) if is_shared else len(instance.get("BlockDeviceMappings", []))
    return used, limits.get("MaximumEbsAttachments") or float("inf")


def possible_attachments(instance: dict[str, Any]) -> int:
    """Return how many attachments an instance has if its type's limit is ``shared``, the most that it can have."""
    return len(instance.get("BlockDeviceMappings", [])) + max(0, len(instance.get("NetworkInterfaces", [])) - 1)


def tagged_volumes(ec2: Ec2Jobs, tags: dict[str, str]) -> list[Volume]:
    """Return all volumes that carry ``tags``."""
    filters = {f"tag:{name}": [value] for name, value in tags.items()}
    return list(ec2.describe("describe_volumes", "Volumes", filters))


def owner_of(volume: Volume) -> str:
    """Return the instance that ``volume`` is attached to, else the one that it was made for, else ""."""
    for attachment in volume.get("Attachments", []):
        return str(attachment["InstanceId"])
    return tags_of(volume).get(INSTANCE_TAG, "")


def attachment_to(volume: Volume | None, instance_id: str) -> dict[str, Any] | None:
    """Return the attachment of ``volume`` to the instance, or None."""
    attachments: list[dict[str, Any]] = [] if volume is None else volume.get("Attachments", [])
    return next((attachment for attachment in attachments if attachment["InstanceId"] == instance_id), None)


def is_attached(volume: Volume | None, instance_id: str) -> bool:
    """Say whether ``volume`` is attached to the instance, and not only on its way there."""
    attachment = attachment_to(volume, instance_id)
    return attachment is not None and attachment["State"] == "attached"


def device_suffix(name: str) -> str:
    """Return what tells one slot from another: ``f`` for /dev/sdf and for xvdf, ``a`` for /dev/sda1."""
    end = name.rsplit("/", 1)[-1]
    for prefix in ("xvd", "sd"):
        if end.startswith(prefix):
            return end[len(prefix) :].rstrip(string.digits)
    return end


def device_name(suffix: str) -> str:
    """Return the name to attach by: one letter goes with sd, two with xvd (EC2 User Guide, as above)."""
    return f"/dev/sd{suffix}" if len(suffix) == 1 else f"/dev/xvd{suffix}"


def client_token(snapshot_id: str, instance_id: str, tags: dict[str, str], number: int) -> str:
    """Return the ClientToken (64 characters, as many as EC2 takes) of the ``number``-th volume for that instance."""
    identity = json.dumps([snapshot_id, instance_id, sorted(tags.items()), number])
    return hashlib.sha256(identity.encode()).hexdigest()
