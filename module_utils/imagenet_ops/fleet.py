"""One volume from a snapshot for each instance of a fleet, however large.

How it stays right when anything is killed at any moment:

* A volume is born with its tags (TagSpecifications), among them ``InstanceId``, so whatever a killed run left is found.
* CreateVolume carries a ClientToken made of the snapshot, the instance and the tags: the same request sent again, by
  this run or by another beside it, yields the same volume. A deleted volume keeps its token for a while, so a token
  whose volume is gone is followed by the next of a fixed series.
* Every step looks at what is there and does what is missing; a run with nothing to do changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.imagenet_ops.aws import error_code, error_message, sdk_errors
from ansible.module_utils.imagenet_ops.ec2_jobs import Answer, Ec2Jobs, Job, Volume, fail, told
from ansible.module_utils.imagenet_ops.errors import OpsError

INSTANCE_TAG = "InstanceId"
USABLE_STATES = ("creating", "available", "in-use")
GOING_STATES = ("deleting", "deleted")
# EC2 is eventually consistent: a new volume may be missing from its answers for so long.
APPEAR_SECONDS = 15.0
# The most that this machine's clock may differ from that of EC2, which refuses requests beyond it.
CLOCK_SKEW_SECONDS = 300.0
# How many new volumes may vanish, and how many tokens of deleted ones are skipped, before an instance is given up.
VANISHED_VOLUMES = 3
TOKEN_SERIES = 100
# The volume that a token stands for no longer exists, or was made with other settings.
TOKEN_SPENT_CODES = ("IdempotentParameterMismatch", "InvalidVolume.NotFound")
# Ends of device names: f to p are recommended for EBS volumes, the others are allowed (EC2 User Guide, "Device names
# for volumes"). sdf and xvdf are one slot. The name plays no part in finding the device (see devices.py).
DEVICE_SUFFIXES = [*"fghijklmnop", *(first + second for first in "bc" for second in string.ascii_lowercase)]


@dataclass(frozen=True)
class VolumeSettings:
    """What each volume is to be; 0 and "" leave the choice to AWS (for the size: that of the snapshot)."""

    snapshot_id: str
    volume_type: str = "gp3"
    iops: int = 0
    throughput_mib_s: int = 0
    size_gib: int = 0
    kms_key_id: str = ""
    encrypted: bool = True
    delete_on_termination: bool = True
    name_prefix: str = ""


class Deployment:
    """Gives every instance its volume: created where missing, attached, deleted with the instance where wanted."""

    def __init__(self, ec2: Ec2Jobs, tags: dict[str, str], settings: VolumeSettings) -> None:
        """Keep what every step needs; ``tags`` identify the volumes."""
        check_tags(tags)
        self.ec2 = ec2
        self.tags = tags
        self.settings = settings
        self.started_at = ec2.clock()

    def present(self, instance_ids: Iterable[str], *, check_mode: bool) -> dict[str, Any]:
        """Return the module's result, after every instance has its volume or, in check mode, saying what that takes.

        Raises OpsError where nothing can be done for any instance: no credentials, no such snapshot.
        """
        jobs = [Job(instance_id) for instance_id in dict.fromkeys(instance_ids)]
        self._read_instances(jobs)
        open_jobs = [job for job in jobs if not job.reason]
        volumes = self._volumes_by_instance(open_jobs)
        if any(job.instance_id not in volumes for job in open_jobs):
            self._check_snapshot()
        ready = sum(attachment_to(volumes.get(job.instance_id), job.instance_id) is not None for job in open_jobs)
        for job in open_jobs:
            (self._predict if check_mode else self._begin)(job, volumes.get(job.instance_id))
        self.ec2.work(jobs, self._advance)
        self._remove_orphans([job for job in jobs if job.reason and job.created])
        return self._result(jobs, ready)

    def _read_instances(self, jobs: list[Job]) -> None:
        found = self.ec2.instances(job.instance_id for job in jobs)
        for job in jobs:
            instance = found.get(job.instance_id)
            if instance is None:
                fail(job, f"instance {job.instance_id} does not exist in this Region. Correct the inventory")
                continue
            job.zone = instance["Placement"]["AvailabilityZone"]
            mappings = instance.get("BlockDeviceMappings", [])
            job.used_devices = {device_suffix(mapping["DeviceName"]) for mapping in mappings}
            volumes = [mapping["Ebs"] for mapping in mappings if "Ebs" in mapping]
            job.deleted_with_instance = {ebs["VolumeId"] for ebs in volumes if ebs["DeleteOnTermination"]}
            state = instance["State"]["Name"]
            if state != "running":
                fail(job, f"instance {job.instance_id} is {state}. Start it, or leave it out with --limit")

    def _volumes_by_instance(self, jobs: list[Job]) -> dict[str, Volume]:
        """Return for each instance the volume that it already has, or that an earlier run made for it."""
        zones = {job.instance_id: job.zone for job in jobs}
        usable = [volume for volume in tagged_volumes(self.ec2, self.tags) if volume["State"] in USABLE_STATES]
        found: dict[str, Volume] = {}
        for volume in sorted(usable, key=lambda volume: (volume["State"] != "in-use", volume["VolumeId"])):
            owner = owner_of(volume)
            if zones.get(owner) == volume["AvailabilityZone"]:
                found.setdefault(owner, volume)
        return found

    def _check_snapshot(self) -> None:
        snapshot_id = self.settings.snapshot_id
        found = list(self.ec2.describe("describe_snapshots", "Snapshots", {"snapshot-id": [snapshot_id]}))
        if not found:
            raise OpsError(
                f"Snapshot {snapshot_id}",
                "it does not exist in this Region, or is not shared with this account",
                "Correct the id or the Region; playbooks/prepare.yml makes the snapshot",
            )
        snapshot = found[0]
        if snapshot["State"] != "completed":
            raise OpsError(
                f"Snapshot {snapshot_id}",
                f"it is {snapshot['State']} ({snapshot.get('Progress') or 'no progress known'}), and volumes are made "
                "of completed snapshots only",
                "Wait until it is completed; the first snapshot of a large volume takes hours",
            )
        if 0 < self.settings.size_gib < snapshot["VolumeSize"]:
            raise OpsError(
                f"Volumes of {self.settings.size_gib} GiB",
                f"snapshot {snapshot_id} is of a volume of {snapshot['VolumeSize']} GiB, and no copy can be smaller",
                "Ask for that size or more, or leave the size out",
            )

    def _begin(self, job: Job, volume: Volume | None) -> None:
        if volume is None:
            self._create(job)
        else:
            job.created_at = self.ec2.clock()
            self._advance(job, volume)

    def _predict(self, job: Job, volume: Volume | None) -> None:
        """Set in ``job`` what a real run would do; a volume yet to be created has no id and no device name."""
        attachment = attachment_to(volume, job.instance_id)
        job.volume_id = "" if volume is None else volume["VolumeId"]
        job.device_name = "" if attachment is None else attachment["Device"]
        job.created = volume is None
        job.attached = attachment is None
        job.changed = attachment is None or not self._ends_as_wanted(job)

    def _advance(self, job: Job, volume: Volume | None) -> None:
        """Take the next step for ``job``, whose volume was just seen as ``volume`` (None: not seen)."""
        if volume is None:
            if self._is_young(job) and self.ec2.waited_seconds(job) < APPEAR_SECONDS:
                self.ec2.wait_for(job)
            else:
                self._replace(job, "gone")
            return
        job.volume_id = volume["VolumeId"]
        if volume["State"] == "in-use":
            self._advance_attached(job, volume)
        elif volume["State"] == "available" and not job.attached:
            self._attach(job)
        elif volume["State"] in USABLE_STATES:
            self.ec2.wait_for(job)
        else:
            self._replace(job, volume["State"])

    def _advance_attached(self, job: Job, volume: Volume) -> None:
        attachment = attachment_to(volume, job.instance_id)
        if attachment is None:
            fail(job, f"its volume {job.volume_id} is attached to {owner_of(volume)}. Detach it there, then run again")
            return
        job.device_name = attachment["Device"]
        if attachment["State"] != "attached":
            self.ec2.wait_for(job)
        elif not self._ends_as_wanted(job):
            self._set_delete_on_termination(job)
        else:
            job.waiting_since = None

    def _ends_as_wanted(self, job: Job) -> bool:
        return (job.volume_id in job.deleted_with_instance) == self.settings.delete_on_termination

    def _is_young(self, job: Job) -> bool:
        """Say whether the volume may be of this run; if not, it is an older one that the token stood for."""
        return job.created_at >= self.started_at - CLOCK_SKEW_SECONDS

    def _replace(self, job: Job, state: str) -> None:
        """Make another volume instead of one that will never be of use, unless new ones keep vanishing."""
        job.vanished += self._is_young(job)
        if job.vanished < VANISHED_VOLUMES:
            self._next_token(job)
        else:
            fail(
                job,
                f"volume {job.volume_id} is {state} right after it was made of {self.settings.snapshot_id}. The usual "
                "cause is a KMS key that EC2 may not use for this user or role: allow kms:CreateGrant, "
                "kms:GenerateDataKeyWithoutPlaintext, kms:ReEncrypt* and kms:Decrypt on it",
            )

    def _create(self, job: Job) -> None:
        settings = self.settings
        tags = {**self.tags, INSTANCE_TAG: job.instance_id}
        if settings.name_prefix:
            tags["Name"] = f"{settings.name_prefix}-{job.instance_id}"
        optional = {
            "Iops": settings.iops,
            "Throughput": settings.throughput_mib_s,
            "Size": settings.size_gib,
            "KmsKeyId": settings.kms_key_id,
        }
        self.ec2.submit(
            job,
            self._created,
            "create_volume",
            AvailabilityZone=job.zone,
            SnapshotId=settings.snapshot_id,
            VolumeType=settings.volume_type,
            Encrypted=settings.encrypted,
            TagSpecifications=[
                {"ResourceType": "volume", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
            ],
            ClientToken=client_token(settings.snapshot_id, job.instance_id, self.tags, job.token_number),
            **{name: value for name, value in optional.items() if value},
        )

    def _created(self, job: Job, answer: Answer) -> None:
        try:
            volume = answer.result()
        except sdk_errors() as error:
            if error_code(error) in TOKEN_SPENT_CODES:
                self._next_token(job)
            else:
                fail(job, f"no volume of {self.settings.snapshot_id} in {job.zone}: {told(error)}")
            return
        job.created_at = volume["CreateTime"].timestamp()
        job.created = job.changed = True
        self._advance(job, volume)

    def _next_token(self, job: Job) -> None:
        job.created = False
        job.token_number += 1
        if job.token_number < TOKEN_SERIES:
            self._create(job)
        else:
            fail(job, f"{TOKEN_SERIES} volumes made for it are gone. Wait a day, until EC2 forgets their tokens")

    def _attach(self, job: Job) -> None:
        suffix = next((suffix for suffix in DEVICE_SUFFIXES if suffix not in job.used_devices), None)
        if suffix is None:
            fail(job, "every device name for volumes is taken. Detach a volume from that instance")
            return
        job.used_devices.add(suffix)
        job.device_name = device_name(suffix)
        request = {"VolumeId": job.volume_id, "InstanceId": job.instance_id, "Device": job.device_name}
        self.ec2.submit(job, self._attached, "attach_volume", **request)

    def _attached(self, job: Job, answer: Answer) -> None:
        try:
            attachment = answer.result()
        except sdk_errors() as error:
            self._not_attached(job, error)
            return
        job.attached = job.changed = True
        self._advance_attached(job, {"Attachments": [attachment]})

    def _not_attached(self, job: Job, error: Exception) -> None:
        code = error_code(error)
        if code == "VolumeInUse":
            # An earlier call did it and its answer was lost, or another run beside this one: the next look tells.
            job.attached = job.changed = True
            self.ec2.wait_for(job)
        elif code == "InvalidParameterValue" and "in use" in error_message(error):
            self._attach(job)
        elif code == "InvalidVolume.NotFound":
            job.used_devices.discard(device_suffix(job.device_name))
            self._replace(job, "gone")
        else:
            fail(job, f"volume {job.volume_id} was not attached as {job.device_name}: {told(error)}")

    def _set_delete_on_termination(self, job: Job) -> None:
        ebs = {"VolumeId": job.volume_id, "DeleteOnTermination": self.settings.delete_on_termination}
        mappings = [{"DeviceName": job.device_name, "Ebs": ebs}]
        request = {"InstanceId": job.instance_id, "BlockDeviceMappings": mappings}
        self.ec2.submit(job, self._delete_on_termination_set, "modify_instance_attribute", **request)

    def _delete_on_termination_set(self, job: Job, answer: Answer) -> None:
        try:
            answer.result()
        except sdk_errors() as error:
            fail(job, f"volume {job.volume_id} is attached, but its DeleteOnTermination was not set: {told(error)}")
            return
        job.changed = True

    def _remove_orphans(self, failed: list[Job]) -> None:
        """Delete volumes that this run made for instances that have gone: no later run would ask for them."""
        instances = self.ec2.instances(job.instance_id for job in failed)
        for job in failed:
            instance = instances.get(job.instance_id)
            if instance is not None and instance["State"]["Name"] not in ("shutting-down", "terminated"):
                continue
            try:
                self.ec2.mutate("delete_volume", VolumeId=job.volume_id)
                job.reason += f". The instance has gone, so volume {job.volume_id} was deleted again"
            except sdk_errors() as error:
                job.reason += f". The instance has gone, but volume {job.volume_id} is left: {told(error)}"

    def _result(self, jobs: list[Job], ready: int) -> dict[str, Any]:
        served = [job for job in jobs if not job.reason]
        return {
            "changed": any(job.changed for job in jobs),
            "volumes": {
                job.instance_id: {"volume_id": job.volume_id, "zone": job.zone, "device_name": job.device_name}
                for job in served
            },
            "failed_instances": {job.instance_id: job.reason for job in jobs if job.reason},
            "created": sum(job.created for job in jobs),
            "attached": sum(job.attached for job in jobs),
            "detached": 0,
            "deleted": 0,
            "api_calls": self.ec2.api_calls,
            "diff": {
                "before": f"{ready} of {len(jobs)} instances have the volume attached\n",
                "after": f"{len(served)} of {len(jobs)} instances have the volume attached\n",
            },
        }


class Removal:
    """Detaches and deletes volumes that carry the tags, and no others."""

    def __init__(self, ec2: Ec2Jobs, tags: dict[str, str]) -> None:
        """Keep what every step needs; only volumes with all of ``tags`` are touched."""
        check_tags(tags)
        self.ec2 = ec2
        self.tags = tags

    def absent(self, instance_ids: Iterable[str], *, check_mode: bool) -> dict[str, Any]:
        """Return the module's result, after the volumes of these instances (none named: all) are gone."""
        wanted = set(instance_ids)
        volumes = [
            volume
            for volume in tagged_volumes(self.ec2, self.tags)
            if volume["State"] not in GOING_STATES and (not wanted or owner_of(volume) in wanted)
        ]
        jobs = [Job(owner_of(volume), volume_id=volume["VolumeId"]) for volume in volumes]
        for job, volume in zip(jobs, volumes):
            if check_mode:
                job.changed = True
                job.detached = volume["State"] == "in-use"
            else:
                self._advance(job, volume)
        self.ec2.work(jobs, self._advance)
        deleted = sum(not job.reason for job in jobs)
        return {
            "changed": any(job.changed for job in jobs),
            "volumes": {},
            "failed_instances": {job.instance_id or job.volume_id: job.reason for job in jobs if job.reason},
            "created": 0,
            "attached": 0,
            "detached": sum(job.detached for job in jobs),
            "deleted": deleted,
            "api_calls": self.ec2.api_calls,
            "diff": {"before": f"{len(jobs)} volumes\n", "after": f"{len(jobs) - deleted} volumes\n"},
        }

    def _advance(self, job: Job, volume: Volume | None) -> None:
        if volume is None or volume["State"] in GOING_STATES:
            job.waiting_since = None
        elif volume["State"] in ("available", "error"):
            self.ec2.submit(job, self._deleted, "delete_volume", VolumeId=job.volume_id)
        elif volume["State"] == "in-use" and not job.detached:
            request = {"VolumeId": job.volume_id, "InstanceId": owner_of(volume)}
            self.ec2.submit(job, self._detached, "detach_volume", **request)
        else:
            self.ec2.wait_for(job)

    def _detached(self, job: Job, answer: Answer) -> None:
        try:
            answer.result()
        except sdk_errors() as error:
            # IncorrectState: it is being detached already, or just was.
            if error_code(error) != "IncorrectState":
                fail(job, f"volume {job.volume_id} was not detached: {told(error)}")
                return
        job.detached = job.changed = True
        self.ec2.wait_for(job)

    def _deleted(self, job: Job, answer: Answer) -> None:
        try:
            answer.result()
        except sdk_errors() as error:
            if error_code(error) != "InvalidVolume.NotFound":
                fail(job, f"volume {job.volume_id} was not deleted: {told(error)}")
                return
        job.changed = True


def check_tags(tags: dict[str, str]) -> None:
    """Raise OpsError unless ``tags`` can tell the project's volumes from all others."""
    if not tags.get("Project"):
        raise OpsError(
            "Tags of the fleet's volumes",
            "there is no Project among them, and volumes are found, reused and deleted by their tags",
            "Give at least Project, Dataset, DatasetVersion and Role",
        )


def tagged_volumes(ec2: Ec2Jobs, tags: dict[str, str]) -> list[Volume]:
    """Return all volumes that carry ``tags``."""
    filters = {f"tag:{name}": [value] for name, value in tags.items()}
    return list(ec2.describe("describe_volumes", "Volumes", filters))


def owner_of(volume: Volume) -> str:
    """Return the instance that ``volume`` is attached to, else the one that it was made for, else ""."""
    for attachment in volume.get("Attachments", []):
        return str(attachment["InstanceId"])
    return next((str(tag["Value"]) for tag in volume.get("Tags", []) if tag["Key"] == INSTANCE_TAG), "")


def attachment_to(volume: Volume | None, instance_id: str) -> dict[str, Any] | None:
    """Return the attachment of ``volume`` to the instance, or None."""
    attachments: list[dict[str, Any]] = [] if volume is None else volume.get("Attachments", [])
    return next((attachment for attachment in attachments if attachment["InstanceId"] == instance_id), None)


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
