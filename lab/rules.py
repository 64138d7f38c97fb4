"""The rules of EC2's API that moto does not keep, with AWS's own error codes and much of its wording. No moto here.

Limits of volume types: the CreateVolume page of the EC2 API reference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape


class ApiError(Exception):
    """An answer that is an error: AWS's ``code``, a message, and the HTTP status that goes with it."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        self.code = code
        self.message = message
        self.status = status
        super().__init__(f"{code}: {message}")


def error_xml(service: str, error: ApiError) -> str:
    """Return the body in which ``service`` (ec2, s3, or another of the query protocol) reports ``error``."""
    fields = f"<Code>{escape(error.code)}</Code><Message>{escape(error.message)}</Message>"
    if service == "ec2":
        body = f"<Response><Errors><Error>{fields}</Error></Errors><RequestID>lab</RequestID></Response>"
    elif service == "s3":
        body = f"<Error>{fields}<RequestId>lab</RequestId></Error>"
    else:
        body = f"<ErrorResponse><Error><Type>Sender</Type>{fields}</Error><RequestId>lab</RequestId></ErrorResponse>"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'


@dataclass(frozen=True)
class VolumeType:
    """Limits of one EBS volume type; throughput in MiB/s; a maximum of 0 means that the value cannot be chosen."""

    minimum_gib: int
    maximum_gib: int
    minimum_iops: int = 0
    maximum_iops: int = 0
    iops_per_gib: int = 0
    maximum_throughput: int = 0


MINIMUM_THROUGHPUT = 125
THROUGHPUT_PER_IOPS = 0.25
VOLUME_TYPES = {
    "standard": VolumeType(1, 1024),
    "gp2": VolumeType(1, 16384),
    "gp3": VolumeType(1, 65536, 3000, 80000, 500, 2000),
    "io1": VolumeType(4, 16384, 100, 64000, 50),
    "io2": VolumeType(4, 65536, 100, 256000, 1000),
    "sc1": VolumeType(125, 16384),
    "st1": VolumeType(125, 16384),
}
INITIALIZATION_RATES = range(100, 301)
# Of one volume, at one time; the others may have five.
ONE_PENDING_SNAPSHOT = ("sc1", "st1")
OTHER_PENDING_SNAPSHOTS = 5
_DEVICE_NAME = re.compile(r"^(/dev/)?(sd[a-z]\d{0,2}|xvd[a-z]{1,2}\d{0,2})$")


@dataclass(frozen=True)
class NewVolume:
    """The parameters of CreateVolume, sizes in GiB, throughput and initialization rate in MiB/s."""

    volume_type: str
    size_gib: int | None
    snapshot_id: str | None = None
    snapshot_gib: int | None = None
    iops: int | None = None
    throughput: int | None = None
    initialization_rate: int | None = None


def check_new_volume(volume: NewVolume) -> int:
    """Return the size in GiB that the volume gets; raise ApiError where EC2 would refuse it."""
    limits = VOLUME_TYPES.get(volume.volume_type)
    if limits is None:
        raise ApiError("UnknownVolumeType", f"Unsupported volume type '{volume.volume_type}' for volume creation.")
    size_gib = volume.size_gib if volume.size_gib is not None else volume.snapshot_gib
    if size_gib is None:
        raise ApiError("MissingParameter", "The request must contain the parameter size or snapshotId")
    if volume.snapshot_gib is not None and size_gib < volume.snapshot_gib:
        raise ApiError(
            "InvalidParameterValue",
            f"Volume of {size_gib}GiB is smaller than snapshot '{volume.snapshot_id}', "
            f"expect size >= {volume.snapshot_gib}GiB",
        )
    _check_size(size_gib, volume.volume_type, limits)
    _check_performance(volume, size_gib, limits)
    return size_gib


def _check_size(size_gib: int, volume_type: str, limits: VolumeType) -> None:
    if size_gib < limits.minimum_gib:
        raise ApiError(
            "InvalidParameterValue",
            f"Volume of {size_gib}GiB is too small for volume type {volume_type}; minimum is {limits.minimum_gib}GiB.",
        )
    if size_gib > limits.maximum_gib:
        raise ApiError(
            "InvalidParameterValue",
            f"Volume of {size_gib}GiB is too large for volume type {volume_type}; maximum is {limits.maximum_gib}GiB.",
        )


def _check_performance(volume: NewVolume, size_gib: int, limits: VolumeType) -> None:
    iops = volume.iops
    if iops is not None and limits.maximum_iops and not limits.minimum_iops <= iops <= limits.maximum_iops:
        raise ApiError(
            "InvalidParameterValue",
            f"Volume iops of {iops} is out of range for volume type {volume.volume_type}; "
            f"minimum is {limits.minimum_iops}, maximum is {limits.maximum_iops}.",
        )
    # The baseline that comes with a gp3 needs no size.
    if iops is not None and iops > max(limits.minimum_iops, limits.iops_per_gib * size_gib) and limits.iops_per_gib:
        raise ApiError(
            "InvalidParameterValue",
            f"Iops to volume size ratio is too high; maximum is {limits.iops_per_gib} IOPS per GiB.",
        )
    throughput = volume.throughput
    if throughput is not None and limits.maximum_throughput:
        if not MINIMUM_THROUGHPUT <= throughput <= limits.maximum_throughput:
            raise ApiError(
                "InvalidParameterValue",
                f"Throughput of {throughput} is out of range; "
                f"minimum is {MINIMUM_THROUGHPUT}, maximum is {limits.maximum_throughput}.",
            )
        if throughput > THROUGHPUT_PER_IOPS * (iops or limits.minimum_iops):
            raise ApiError(
                "InvalidParameterValue",
                f"Throughput (MiBps) to iops ratio is too high; maximum is {THROUGHPUT_PER_IOPS} MiBps per iops.",
            )
    rate = volume.initialization_rate
    if rate is not None:
        if volume.snapshot_id is None:
            raise ApiError(
                "InvalidParameterCombination",
                "The parameter VolumeInitializationRate can only be used when creating a volume from a snapshot.",
            )
        if rate not in INITIALIZATION_RATES:
            raise ApiError(
                "InvalidParameterValue", f"Volume initialization rate of {rate} is out of range; use 100 to 300 MiB/s."
            )


@dataclass(frozen=True)
class Attachment:
    """The parameters of AttachVolume, and what is known of the volume and the instance."""

    volume_id: str
    volume_state: str
    volume_zone: str
    instance_id: str
    instance_state: str
    instance_zone: str
    device: str
    devices_in_use: frozenset[str]


def check_attachment(wanted: Attachment) -> None:
    """Raise ApiError where EC2 would refuse the attachment."""
    if wanted.volume_state == "in-use":
        raise ApiError("VolumeInUse", f"{wanted.volume_id} is already attached to an instance")
    if wanted.volume_state != "available":
        raise ApiError("IncorrectState", f"{wanted.volume_id} is not 'available'.")
    if wanted.instance_state not in ("running", "stopped"):
        raise ApiError("IncorrectState", f"Instance '{wanted.instance_id}' is not 'running'.")
    if wanted.volume_zone != wanted.instance_zone:
        raise ApiError(
            "InvalidVolume.ZoneMismatch",
            f"The volume '{wanted.volume_id}' is not in the same availability zone as instance '{wanted.instance_id}'",
        )
    if not _DEVICE_NAME.match(wanted.device):
        raise ApiError(
            "InvalidParameterValue",
            f"Value ({wanted.device}) for parameter device is invalid. {wanted.device} is not a valid EBS device name.",
        )
    if wanted.device in wanted.devices_in_use:
        raise ApiError(
            "InvalidParameterValue",
            f"Invalid value '{wanted.device}' for unixDevice. Attachment point {wanted.device} is already in use",
        )


def check_new_snapshot(volume_type: str, pending: int) -> None:
    """Raise ApiError where a volume of this type has as many ``pending`` snapshots as it may have."""
    allowed = 1 if volume_type in ONE_PENDING_SNAPSHOT else OTHER_PENDING_SNAPSHOTS
    if pending >= allowed:
        raise ApiError(
            "ConcurrentSnapshotLimitExceeded", "Maximum allowed in-progress snapshots for a single volume exceeded."
        )


def check_initialization_quota(rate_mib_s: int | None, in_use_mib_s: int, quota_mib_s: int) -> None:
    """Raise ApiError where a volume of this rate would exceed the Region's quota, beside those in the making.

    The request fails, says the EBS User Guide ("Use an Amazon EBS Provisioned Rate for Volume Initialization"); AWS
    documents no code for it.
    """
    if rate_mib_s is not None and in_use_mib_s + rate_mib_s > quota_mib_s:
        raise ApiError(
            "VolumeInitializationRateLimitExceeded",
            f"The volume initialization rate of {rate_mib_s} MiB/s exceeds, with {in_use_mib_s} MiB/s in use, "
            f"the quota of {quota_mib_s} MiB/s.",
        )


# Minutes that a time-based copy may take, in steps (CopySnapshot page of the EC2 API reference).
COPY_MINUTES = range(15, 2881, 15)


def check_copy(completion_minutes: int | None) -> None:
    """Raise ApiError where EC2 would refuse a copy that is to be complete in so many minutes."""
    if completion_minutes is not None and completion_minutes not in COPY_MINUTES:
        raise ApiError(
            "InvalidParameterValue",
            f"Invalid value '{completion_minutes}' for CompletionDurationMinutes. Use 15 to 2880 in steps of 15.",
        )


def check_sharing(encrypted: bool, has_default_key: bool, groups: list[str]) -> None:
    """Raise ApiError where EC2 would not let others, or not everybody (``groups``), make a volume of a snapshot."""
    if encrypted and groups:
        raise ApiError("OperationNotPermitted", "Encrypted snapshots cannot be made public.")
    if has_default_key:
        raise ApiError(
            "InvalidParameter", "Snapshots encrypted with the AWS managed key for EBS cannot be shared with others."
        )


class ClientTokens:
    """What was made for which ClientToken, so that a repeated request makes nothing new."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], tuple[Any, Any]] = {}

    def find(self, action: str, token: str | None, request: Any) -> Any | None:
        """Return what ``action`` made for ``token``, or None; ApiError where the token came with another request."""
        if not token or (action, token) not in self._made:
            return None
        earlier, made = self._made[action, token]
        if earlier != request:
            raise ApiError(
                "IdempotentParameterMismatch",
                "The client token you have provided is associated with a resource that was made with other parameters.",
            )
        return made

    def remember(self, action: str, token: str | None, request: Any, made: Any) -> None:
        """Note what ``action`` made for ``token`` and ``request``."""
        if token:
            self._made[action, token] = (request, made)
