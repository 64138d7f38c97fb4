"""Volumes of a fleet detached and deleted: those that carry its tags, and no others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypedDict

from ansible.module_utils.imagenet_ops.aws.calls import tags_of
from ansible.module_utils.imagenet_ops.aws.errors import error_code, sdk_errors
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.results import Difference, difference
from ansible.module_utils.imagenet_ops.ebs.jobs import Answer, Ec2Jobs, Job, Volume, describe_error, fail
from ansible.module_utils.imagenet_ops.ebs.volumes import owner_of, tagged_volumes

DELETING_STATES = ("deleting", "deleted")
# It is being detached already, or just was: by another run, or since its instance was terminated.
DETACHED_CODES = ("IncorrectState", "InvalidAttachment.NotFound")


class FleetVolume(TypedDict):
    """The volume of an instance."""

    volume_id: str
    volume_type: str
    zone: str
    device_name: str


class FleetResult(TypedDict):
    """The result of the module ebs_fleet: volumes, older versions and failures by instance, and counts."""

    changed: bool
    volumes: dict[str, FleetVolume]
    superseded: dict[str, list[str]]
    failed_instances: dict[str, str]
    created: int
    attached: int
    detached: int
    deleted: int
    api_calls: dict[str, int]
    diff: Difference


class Removal:
    """Detaches and deletes volumes that carry the tags, and no others."""

    def __init__(self, ec2: Ec2Jobs, tags: dict[str, str], kept_tags: Mapping[str, str] | None = None) -> None:
        """Keep what every step needs; only volumes with all of ``tags`` are touched, none with all of ``kept_tags``."""
        check_tags(tags)
        self.ec2 = ec2
        self.tags = tags
        self.kept_tags = kept_tags or {}

    def absent(self, instance_ids: Iterable[str], *, check_mode: bool) -> FleetResult:
        """Return the module's result, after the volumes of these instances (none named: all) are gone."""
        wanted = set(instance_ids)
        volumes = [
            volume
            for volume in tagged_volumes(self.ec2, self.tags)
            if volume["State"] not in DELETING_STATES
            and (not wanted or owner_of(volume) in wanted)
            and not (self.kept_tags and self.kept_tags.items() <= tags_of(volume).items())
        ]
        jobs = [Job(owner_of(volume), volume_id=volume["VolumeId"], leaving=True) for volume in volumes]
        for job, volume in zip(jobs, volumes):
            if check_mode:
                job.changed = True
                job.detached = volume["State"] == "in-use"
            else:
                self.advance(job, volume)
        self.ec2.work(jobs, self.advance)
        deleted = sum(not job.reason for job in jobs)
        return {
            "changed": any(job.changed for job in jobs),
            "volumes": {},
            "superseded": {},
            "failed_instances": _reasons(jobs),
            "created": 0,
            "attached": 0,
            "detached": sum(job.detached for job in jobs),
            "deleted": deleted,
            "api_calls": self.ec2.api_calls,
            "diff": difference([f"{len(jobs)} volumes"], [f"{len(jobs) - deleted} volumes"]),
        }

    def advance(self, job: Job, volume: Volume | None) -> None:
        """Take the next step to get rid of the volume of ``job``, just seen as ``volume`` (None: not seen)."""
        if volume is None or volume["State"] in DELETING_STATES:
            job.waiting_since = None
        elif volume["State"] in ("available", "error"):
            self.ec2.submit(job, self._deleted, self.ec2.client.delete_volume, VolumeId=job.volume_id)
        elif volume["State"] == "in-use" and not job.detached:
            request = {"VolumeId": job.volume_id, "InstanceId": owner_of(volume)}
            self.ec2.submit(job, self._detached, self.ec2.client.detach_volume, **request)
        else:
            self.ec2.wait_for(job)

    def _detached(self, job: Job, answer: Answer) -> None:
        try:
            answer.result()
        except sdk_errors() as error:
            if error_code(error) not in DETACHED_CODES:
                fail(job, f"volume {job.volume_id} was not detached: {describe_error(error)}")
                return
        job.detached = job.changed = True
        self.ec2.wait_for(job)

    def _deleted(self, job: Job, answer: Answer) -> None:
        try:
            answer.result()
        except sdk_errors() as error:
            if error_code(error) != "InvalidVolume.NotFound":
                fail(job, f"volume {job.volume_id} was not deleted: {describe_error(error)}")
                return
        job.changed = True


def _reasons(jobs: Iterable[Job]) -> dict[str, str]:
    """Return why volumes are left, by instance (or volume, of one that has none): an instance may have several."""
    reasons: dict[str, list[str]] = {}
    for job in jobs:
        if job.reason:
            reasons.setdefault(job.instance_id or job.volume_id, []).append(job.reason)
    return {name: ". ".join(texts) for name, texts in reasons.items()}


def check_tags(tags: dict[str, str]) -> None:
    """Raise OpsError unless ``tags`` can tell the project's volumes from all others."""
    if not tags.get("Project"):
        raise OpsError(
            "Tags of the fleet's volumes",
            "Project is missing, and volumes are found, reused and deleted by their tags",
            "Set at least Project, Dataset, DatasetVersion and Role",
        )
