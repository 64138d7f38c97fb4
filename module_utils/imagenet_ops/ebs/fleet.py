"""One volume for each instance of a fleet, however large: from a snapshot, or blank.

How it stays right when anything is killed at any moment:

* A volume is born with its tags (TagSpecifications), among them ``InstanceId``, so whatever a killed run left is found.
* CreateVolume carries a ClientToken made of the snapshot, the instance and the tags: the same request sent again, by
  this run or by another beside it, yields the same volume. A deleted volume keeps its token for a while, so a token
  whose volume is gone is followed by the next of a fixed series.
* Every step looks at what is there and does what is missing; a run with nothing to do changes nothing.
* A volume whose instance has been terminated is of no use to anybody: the run that finds it deletes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.imagenet_ops.aws.calls import RESTORABLE, tags_of
from ansible.module_utils.imagenet_ops.aws.errors import error_code, error_message, sdk_errors
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.results import difference
from ansible.module_utils.imagenet_ops.ebs.jobs import Answer, Ec2Jobs, Job, Volume, describe_error, fail
from ansible.module_utils.imagenet_ops.ebs.removal import FleetResult, Removal, check_tags
from ansible.module_utils.imagenet_ops.ebs.volumes import (
    DEVICE_SUFFIXES,
    INSTANCE_TAG,
    attachment_to,
    attachments,
    client_token,
    device_name,
    device_suffix,
    is_attached,
    is_orphan,
    is_terminated,
    owner_of,
    possible_attachments,
    read_instance,
    tagged_volumes,
)

USABLE_STATES = ("creating", "available", "in-use")
# EC2 is eventually consistent: what was just changed may be missing from its answers for so long.
APPEAR_SECONDS = 15.0
# Often enough for a device name or a Nitro slot that hangs; one that hangs every time is for a person to look at.
ATTACH_ATTEMPTS = 3
# How many new volumes may vanish, and how many tokens of deleted ones are skipped, before an instance is given up.
VANISHED_VOLUMES = 3
TOKEN_SERIES = 100
# A root volume and one more: every type takes further ones, so nothing needs to be queried.
FEW_ATTACHMENTS = 2
# The volume that a token stands for no longer exists, or was made with other settings.
TOKEN_SPENT_CODES = ("IdempotentParameterMismatch", "InvalidVolume.NotFound")
# A device name that is taken, by EC2's list of error codes; EC2 is also known to send InvalidParameterValue.
DEVICE_IN_USE_CODE = "InvalidDevice.InUse"


@dataclass(frozen=True)
class VolumeSettings:
    """What each volume is to be; 0 and "" leave the choice to AWS (for the size: that of the snapshot).

    Without ``snapshot_id`` the volumes are blank and need a size. ``delete_on_termination`` None leaves that as it is,
    but with ``delete_with_ephemeral`` the volume of an instance that ends without us, Spot or Auto Scaling, ends too.
    ``attach_timeout_seconds`` is how long a volume may be attaching before it is detached and attached again.
    """

    snapshot_id: str = ""
    volume_type: str = "gp3"
    iops: int = 0
    throughput_mib_s: int = 0
    initialization_rate_mib_s: int = 0
    size_gib: int = 0
    kms_key_id: str = ""
    encrypted: bool = True
    delete_on_termination: bool | None = None
    delete_with_ephemeral: bool = False
    name_prefix: str = ""
    attach_timeout_seconds: float = 90.0


class DeploymentResult(FleetResult):
    """The result of the module ebs_fleet with state=present; ``ready`` instances had their volume before."""

    ready: int


class Deployment:
    """Gives every instance its volume: created where missing, attached, deleted with the instance where wanted.

    Volumes of instances that have gone are deleted; those of other versions are only named, for they may be mounted.
    """

    def __init__(
        self, ec2: Ec2Jobs, tags: dict[str, str], settings: VolumeSettings, version_tag: str = "DatasetVersion"
    ) -> None:
        """Keep what every step needs; ``tags`` identify the volumes, ``version_tag`` tells versions of them apart."""
        check_tags(tags)
        self.ec2 = ec2
        self.tags = tags
        self.settings = settings
        self.version_tag = version_tag
        self.removal = Removal(ec2, tags)
        self.started_at = ec2.time()

    def present(self, instance_ids: Iterable[str], *, check_mode: bool) -> DeploymentResult:
        """Return the module's result, after every instance has its volume or, in check mode, saying what that takes.

        Raises OpsError where nothing can be done for any instance: no credentials, no such snapshot.
        """
        jobs = [Job(instance_id) for instance_id in dict.fromkeys(instance_ids)]
        instances = self.ec2.instances(job.instance_id for job in jobs)
        self.started_at = self.ec2.time()
        for job in jobs:
            read_instance(job, instances.get(job.instance_id))
        open_jobs = [job for job in jobs if not job.reason]
        relatives = tagged_volumes(self.ec2, {k: v for k, v in self.tags.items() if k != self.version_tag})
        volumes = self._volumes_by_instance(open_jobs, relatives)
        missing = [job for job in open_jobs if job.instance_id not in volumes]
        if check_mode and missing:
            self._check_snapshot()
        self._check_attachment_limits(open_jobs, volumes, instances)
        ready = sum(is_attached(volumes.get(job.instance_id), job.instance_id) for job in open_jobs)
        orphans = self._orphans(relatives, instances)
        for job in (job for job in open_jobs if not job.reason):
            (self._predict if check_mode else self._begin)(job, volumes.get(job.instance_id))
        for orphan in orphans:
            self._begin_removal(orphan, check_mode=check_mode)
        self.ec2.work([*jobs, *orphans], self._advance_any)
        # A real run asks AWS for volumes and not whether the snapshot is fit for them; where none came, it may be why.
        if missing and all(job.reason and not job.volume_id for job in missing):
            self._check_snapshot()
        self._remove_new_orphans([job for job in jobs if job.reason and job.created])
        return self._result(jobs, orphans, relatives, ready)

    def _volumes_by_instance(self, jobs: list[Job], relatives: list[Volume]) -> dict[str, Volume]:
        """Return for each instance the volume that it already has, or that an earlier run made for it."""
        zones = {job.instance_id: job.zone for job in jobs}
        usable = [volume for volume in relatives if volume["State"] in USABLE_STATES and self._is_current(volume)]
        found: dict[str, Volume] = {}
        for volume in sorted(usable, key=lambda volume: (volume["State"] != "in-use", volume["VolumeId"])):
            owner = owner_of(volume)
            if zones.get(owner) == volume["AvailabilityZone"]:
                found.setdefault(owner, volume)
        return found

    def _check_attachment_limits(
        self, jobs: list[Job], volumes: Mapping[str, Volume], instances: Mapping[str, dict[str, Any]]
    ) -> None:
        """Fail the jobs whose instance takes no more volumes, before a volume is made for it."""
        missing = [job for job in jobs if attachment_to(volumes.get(job.instance_id), job.instance_id) is None]
        names = {
            instances[job.instance_id]["InstanceType"]
            for job in missing
            if possible_attachments(instances[job.instance_id]) > FEW_ATTACHMENTS
        }
        limits = self.ec2.instance_types(sorted(names))
        for job in missing:
            instance = instances[job.instance_id]
            used, most = attachments(instance, limits.get(instance["InstanceType"], {}))
            if used >= most:
                fail(
                    job,
                    f"instance {job.instance_id} has {used} attachments, and {instance['InstanceType']} takes no more. "
                    "Detach a volume from it, or use an instance type with more attachments",
                )

    def _orphans(self, relatives: list[Volume], instances: Mapping[str, dict[str, Any]]) -> list[Job]:
        """Return jobs for the volumes, of whatever version, whose instances were terminated since."""
        free = [volume for volume in relatives if volume["State"] == "available" and owner_of(volume)]
        others = sorted({owner_of(volume) for volume in free} - set(instances))
        known = {**instances, **self.ec2.instances(others)}
        return [
            Job(owner_of(volume), volume_id=volume["VolumeId"], leaving=True)
            for volume in free
            if is_orphan(volume, known.get(owner_of(volume)), self.ec2.time())
        ]

    def _begin_removal(self, orphan: Job, *, check_mode: bool) -> None:
        if check_mode:
            orphan.changed = True
        else:
            self.removal.advance(orphan, {"State": "available"})

    def _advance_any(self, job: Job, volume: Volume | None) -> None:
        (self.removal.advance if job.leaving else self._advance)(job, volume)

    def _check_snapshot(self) -> None:
        """Raise OpsError where no volume can be made of the snapshot, if they are to be made of one."""
        snapshot_id = self.settings.snapshot_id
        if not snapshot_id:
            return
        filters = {"snapshot-id": [snapshot_id]}
        found = list(self.ec2.describe("describe_snapshots", "Snapshots", filters, **RESTORABLE))
        if not found:
            raise OpsError(
                f"Snapshot {snapshot_id}",
                "it does not exist in this Region, or is not shared with this account",
                "Correct the id or the Region; playbooks/prepare.yml creates the snapshot",
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
                f"snapshot {snapshot_id} is of a volume of {snapshot['VolumeSize']} GiB, the minimum for its copies",
                "Set that size or more, or leave the size out",
            )

    def _begin(self, job: Job, volume: Volume | None) -> None:
        if volume is None:
            self._create(job)
        else:
            job.created_at = self.ec2.time()
            self._advance(job, volume)

    def _predict(self, job: Job, volume: Volume | None) -> None:
        """Set in ``job`` what a real run would do; a volume yet to be created has no id and no device name."""
        attachment = attachment_to(volume, job.instance_id)
        job.volume_id = "" if volume is None else volume["VolumeId"]
        job.volume_type = self.settings.volume_type if volume is None else volume["VolumeType"]
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
        job.volume_type = volume["VolumeType"]
        if volume["State"] == "in-use":
            self._advance_attached(job, volume)
        elif volume["State"] == "available" and not job.attached:
            self._attach(job)
        elif volume["State"] == "available" and self.ec2.waited_seconds(job) >= APPEAR_SECONDS:
            fail(
                job,
                f"volume {job.volume_id} was detached from {job.instance_id} while it was being attached. Check "
                "what happened to the instance, then rerun",
            )
        elif volume["State"] in USABLE_STATES:
            self.ec2.wait_for(job)
        else:
            self._replace(job, volume["State"])

    def _advance_attached(self, job: Job, volume: Volume) -> None:
        attachment = attachment_to(volume, job.instance_id)
        if attachment is None:
            fail(job, f"its volume {job.volume_id} is attached to {owner_of(volume)}. Detach it there, then rerun")
            return
        job.device_name = attachment["Device"]
        if attachment["State"] == "attaching" and self._is_stuck(job):
            request = {"VolumeId": job.volume_id, "InstanceId": job.instance_id}
            self.ec2.submit(job, self._detached_to_retry, self.ec2.client.detach_volume, **request)
        elif attachment["State"] != "attached":
            self.ec2.wait_for(job)
        elif not self._ends_as_wanted(job):
            self._set_delete_on_termination(job)
        else:
            job.waiting_since = None

    def _is_stuck(self, job: Job) -> bool:
        """Say whether attaching takes so long that another try, on another device name, is the better way."""
        waited_seconds = self.ec2.waited_seconds(job)
        return waited_seconds >= self.settings.attach_timeout_seconds and job.attach_retries < ATTACH_ATTEMPTS - 1

    def _detached_to_retry(self, job: Job, answer: Answer) -> None:
        """Go on after a stuck attachment was given up: as soon as the volume is available, it is attached again."""
        try:
            answer.result()
        except sdk_errors() as error:
            # IncorrectState: it was attached in this very moment, or is being detached already.
            if error_code(error) != "IncorrectState":
                fail(
                    job,
                    f"volume {job.volume_id} is stuck in attaching, not detached: {describe_error(error)}",
                )
                return
        else:
            job.attached = False
            job.attach_retries += 1
        self.ec2.wait_for(job)

    def _ends_as_wanted(self, job: Job) -> bool:
        wanted = self._end_wanted(job)
        return wanted is None or (job.volume_id in job.deleted_with_instance) == wanted

    def _end_wanted(self, job: Job) -> bool | None:
        """Return whether the volume is to be deleted with its instance; None leaves it as it is."""
        wanted = self.settings.delete_on_termination
        return True if wanted is None and self.settings.delete_with_ephemeral and job.is_ephemeral else wanted

    def _is_young(self, job: Job) -> bool:
        """Say whether the volume is so new that EC2 may not show it yet; if not, the token stood for one of the past.

        Both times are EC2's own, so it does not matter how wrong the clock of this machine is.
        """
        return job.created_at >= self.started_at - APPEAR_SECONDS

    def _replace(self, job: Job, state: str) -> None:
        """Make another volume instead of one that will never be of use, unless new ones keep vanishing."""
        job.vanished += self._is_young(job)
        if job.vanished < VANISHED_VOLUMES:
            self._next_token(job)
        else:
            fail(
                job,
                f"volume {job.volume_id} is {state} right after it was created {self._origin()}. The usual "
                "cause is a KMS key that EC2 may not use for this user or role: allow kms:CreateGrant, "
                "kms:GenerateDataKeyWithoutPlaintext, kms:ReEncrypt* and kms:Decrypt on it",
            )

    def _origin(self) -> str:
        return f"of {self.settings.snapshot_id}" if self.settings.snapshot_id else "blank"

    def _create(self, job: Job) -> None:
        settings = self.settings
        tags = {**self.tags, INSTANCE_TAG: job.instance_id}
        if settings.name_prefix:
            tags["Name"] = f"{settings.name_prefix}-{job.instance_id}"
        optional = {
            "SnapshotId": settings.snapshot_id,
            "Iops": settings.iops,
            "Throughput": settings.throughput_mib_s,
            "VolumeInitializationRate": settings.initialization_rate_mib_s,
            "Size": settings.size_gib,
            "KmsKeyId": settings.kms_key_id,
        }
        self.ec2.submit(
            job,
            self._created,
            self.ec2.client.create_volume,
            AvailabilityZone=job.zone,
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
                fail(job, f"no volume {self._origin()} in {job.zone}: {describe_error(error)}")
            return
        job.created_at = volume["CreateTime"].timestamp()
        if not self._is_young(job):  # a deleted one: had it still been there, it would have been found by its tags
            self._next_token(job)
            return
        job.created = job.changed = True
        self._advance(job, volume)

    def _next_token(self, job: Job) -> None:
        job.created = False
        job.token_number += 1
        if job.token_number < TOKEN_SERIES:
            self._create(job)
        else:
            fail(job, f"{TOKEN_SERIES} volumes created for it were deleted. Wait a day, until EC2 forgets their tokens")

    def _attach(self, job: Job) -> None:
        suffix = next((suffix for suffix in DEVICE_SUFFIXES if suffix not in job.used_devices), None)
        if suffix is None:
            fail(job, "all device names for volumes are in use. Detach a volume from that instance")
            return
        job.used_devices.add(suffix)
        job.device_name = device_name(suffix)
        request = {"VolumeId": job.volume_id, "InstanceId": job.instance_id, "Device": job.device_name}
        self.ec2.submit(job, self._attached, self.ec2.client.attach_volume, **request)

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
        elif code == DEVICE_IN_USE_CODE or (code == "InvalidParameterValue" and "in use" in error_message(error)):
            self._attach(job)
        elif code == "InvalidVolume.NotFound":
            job.used_devices.discard(device_suffix(job.device_name))
            self._replace(job, "gone")
        else:
            fail(job, f"volume {job.volume_id} was not attached as {job.device_name}: {describe_error(error)}")

    def _set_delete_on_termination(self, job: Job) -> None:
        ebs = {"VolumeId": job.volume_id, "DeleteOnTermination": self._end_wanted(job)}
        mappings = [{"DeviceName": job.device_name, "Ebs": ebs}]
        request = {"InstanceId": job.instance_id, "BlockDeviceMappings": mappings}
        self.ec2.submit(job, self._delete_on_termination_set, self.ec2.client.modify_instance_attribute, **request)

    def _delete_on_termination_set(self, job: Job, answer: Answer) -> None:
        try:
            answer.result()
        except sdk_errors() as error:
            why = describe_error(error)
            fail(job, f"volume {job.volume_id} is attached, but its DeleteOnTermination was not set: {why}")
            return
        job.changed = True

    def _remove_new_orphans(self, failed: list[Job]) -> None:
        """Delete volumes that this run made for instances that have gone meanwhile."""
        instances = self.ec2.instances(job.instance_id for job in failed)
        for job in failed:
            if not is_terminated(instances.get(job.instance_id)):
                continue
            try:
                self.ec2.mutate(self.ec2.client.delete_volume, VolumeId=job.volume_id)
                job.reason += f". The instance was terminated, so its new volume {job.volume_id} was deleted"
            except sdk_errors() as error:
                job.reason += (
                    f". The instance was terminated, but its new volume {job.volume_id} was not deleted: "
                    f"{describe_error(error)}. The next run deletes it"
                )

    def _result(self, jobs: list[Job], orphans: list[Job], relatives: list[Volume], ready: int) -> DeploymentResult:
        served = {job.instance_id: job for job in jobs if not job.reason}
        superseded: dict[str, list[str]] = {}
        for volume in relatives:
            owner = owner_of(volume)
            if owner in served and volume["State"] in USABLE_STATES and not self._is_current(volume):
                superseded.setdefault(owner, []).append(volume["VolumeId"])
        return {
            "changed": any(job.changed for job in [*jobs, *orphans]),
            "volumes": {
                job.instance_id: {
                    "volume_id": job.volume_id,
                    "volume_type": job.volume_type,
                    "zone": job.zone,
                    "device_name": job.device_name,
                }
                for job in served.values()
            },
            "superseded": superseded,
            "failed_instances": {job.instance_id: job.reason for job in jobs if job.reason},
            "ready": ready,
            "created": sum(job.created for job in jobs),
            "attached": sum(job.attached for job in jobs),
            "detached": 0,
            "deleted": sum(not job.reason for job in orphans),
            "api_calls": self.ec2.api_calls,
            "diff": difference(
                [f"{ready} of {len(jobs)} instances have the volume attached"],
                [f"{len(served)} of {len(jobs)} instances have the volume attached"],
            ),
        }

    def _is_current(self, volume: Volume) -> bool:
        """Say whether ``volume`` is of the requested version."""
        return self.tags.items() <= tags_of(volume).items()
