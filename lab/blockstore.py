"""EBS: gives moto's volumes, attachments and snapshots a body, AWS's rules, and states that take their time.

Of each action the answer (moto's response class) checks what the caller may ask, and the deed (its backend) changes the
world; what moto does by itself, as a root volume at a launch, passes the second alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.models import EC2Backend
from moto.ec2.models.elastic_block_store import Snapshot, Volume, VolumeAttachment
from moto.ec2.models.instances import Instance
from moto.ec2.responses.elastic_block_store import ElasticBlockStore

from lab.config import Settings
from lab.dataplane import DataPlane
from lab.fast_restore import FastRestores
from lab.patching import replace_property, wrap
from lab.rules import (
    ApiError,
    Attachment,
    ClientTokens,
    NewVolume,
    check_attachment,
    check_initialization_quota,
    check_new_snapshot,
    check_new_volume,
)
from lab.warmth import BLOCK_BYTES, Warmth

MOUNT_POLL_SECONDS = 0.1
# The tag of an instance with the device names, parted by blanks, on which an attachment never ends.
HANGING_DEVICES_TAG = "LabHangingDevices"


class BlockStore:
    """The patches of EBS. ``lock`` makes the changes of the whole API one at a time."""

    def __init__(self, plane: DataPlane, settings: Settings, lock: threading.RLock, restores: FastRestores) -> None:
        self._plane = plane
        self._delay_seconds = settings.delay_seconds
        self._lazy_mib_s = settings.lazy_mib_s
        self._quota_mib_s = settings.initialization_quota_mib_s
        self._lock = lock
        self._restores = restores
        self._warmths: dict[str, Warmth] = {}
        self._tokens = ClientTokens()

    def install(self) -> None:
        """Change moto."""
        wrap(ElasticBlockStore, "create_volume")(self._answer_create_volume)
        wrap(ElasticBlockStore, "delete_volume")(self._answer_delete_volume)
        wrap(ElasticBlockStore, "attach_volume")(self._answer_attach)
        wrap(ElasticBlockStore, "detach_volume")(self._answer_detach)
        wrap(ElasticBlockStore, "describe_snapshots")(self._answer_describe_snapshots)
        wrap(ElasticBlockStore, "describe_volume_status")(self._answer_describe_volume_status)
        for name, answer in (
            ("enable_fast_snapshot_restores", self._answer_enable_fast_restores),
            ("disable_fast_snapshot_restores", self._answer_disable_fast_restores),
            ("describe_fast_snapshot_restores", self._answer_describe_fast_restores),
        ):
            setattr(ElasticBlockStore, name, _method(answer))  # moto has none of them
        wrap(EC2Backend, "create_volume")(self._create_volume)
        wrap(EC2Backend, "delete_volume")(self._delete_volume)
        wrap(EC2Backend, "modify_volume")(self._modify_volume)
        wrap(EC2Backend, "attach_volume")(self._attach)
        wrap(EC2Backend, "detach_volume")(self._detach)
        wrap(EC2Backend, "create_snapshot")(self._create_snapshot)
        wrap(EC2Backend, "copy_snapshot")(self._copy_snapshot)
        wrap(EC2Backend, "delete_snapshot")(self._delete_snapshot)
        replace_property(Volume, "status", self._volume_status)
        replace_property(VolumeAttachment, "status", self._attachment_status)
        replace_property(Snapshot, "status", self._snapshot_status)
        replace_property(Snapshot, "progress", self._snapshot_progress)
        # moto reads the size of the volume as it is now, or was when it was deleted.
        replace_property(Snapshot, "volume_size", lambda snapshot: snapshot.lab_size_gib)
        # What every attachment is at first; each becomes True on the object.
        VolumeAttachment.lab_visible = False  # type: ignore[attr-defined]
        VolumeAttachment.lab_detaching = False  # type: ignore[attr-defined]
        VolumeAttachment.lab_forced = False  # type: ignore[attr-defined]
        VolumeAttachment.lab_hangs = False  # type: ignore[attr-defined]
        moto_mappings = Instance.block_device_mappings.fget  # type: ignore[attr-defined]
        replace_property(Instance, "block_device_mappings", lambda instance: _mappings(moto_mappings, instance))

    def first_reads(self) -> dict[str, int]:
        """Return how many blocks of each lazy volume a reader had to wait for."""
        return {volume_id: warmth.first_reads for volume_id, warmth in self._warmths.items()}

    def _is_over(self, since: float) -> bool:
        """Return whether a transition that began at monotonic time ``since`` has ended."""
        return time.monotonic() - since >= self._delay_seconds

    def _volume_status(self, volume: Any) -> str:
        if volume.attachment:
            return "in-use"
        return "available" if self._is_over(volume.lab_since) else "creating"

    def _attachment_status(self, attachment: Any) -> str:
        if attachment.lab_detaching:
            return "busy" if self._plane.is_mounted(attachment.volume.id) else "detaching"
        return "attached" if attachment.lab_visible else "attaching"

    def _snapshot_status(self, snapshot: Any) -> str:
        return "completed" if self._is_over(snapshot.lab_since) else "pending"

    def _snapshot_progress(self, snapshot: Any) -> str:
        if self._is_over(snapshot.lab_since):
            return "100%"
        return f"{int(100 * (time.monotonic() - snapshot.lab_since) / self._delay_seconds)}%"

    def _answer_create_volume(self, original: Any, response: Any) -> ActionResult:
        with self._lock:
            request = {name: value for name, value in response.params.items() if name != "ClientToken"}
            token = response.params.get("ClientToken")
            volume = self._tokens.find("CreateVolume", token, request)
            if volume is None:
                # Said to moto, which would take the size that the snapshot's volume has now.
                response.params["Size"] = check_create_volume(response.ec2_backend, response.params)
                rate_mib_s = response.params.get("VolumeInitializationRate")
                check_initialization_quota(rate_mib_s, self._rates_in_use(response.ec2_backend), self._quota_mib_s)
                volume = original(response).result
                volume.volume_initialization_rate = rate_mib_s
                # A rate wins over fast snapshot restore (CreateVolume page of the EC2 API reference).
                if rate_mib_s is None and self._restores.take_credit(volume.snapshot_id, volume.zone.name):
                    volume.fast_restored = True
                    self._warmths.pop(volume.id, None)
                self._tokens.remember("CreateVolume", token, request, volume)
            return ActionResult(volume)

    def _create_volume(self, original: Any, backend: Any, *arguments: Any, **keywords: Any) -> Any:
        with self._lock:
            volume = original(backend, *arguments, **keywords)
            # amazon.aws reads both keys, which moto leaves out when they are None.
            volume.snapshot_id = volume.snapshot_id or ""
            volume.multi_attach_enabled = bool(volume.multi_attach_enabled)
            volume.lab_since = time.monotonic()
            self._plane.create_volume(volume.id, volume.size, volume.snapshot_id or None)
            volume.fast_restored = False
            volume.volume_initialization_rate = None
            if volume.snapshot_id and self._lazy_mib_s:
                blocks = self._plane.snapshot_blocks(
                    volume.snapshot_id, backend.snapshots[volume.snapshot_id].volume_size
                )
                rate = _rate_of(volume)
                self._warmths[volume.id] = Warmth(blocks, self._lazy_mib_s, rate)
            return volume

    def _rates_in_use(self, backend: Any) -> int:
        """Return the sum of the rates of all volumes that are being initialized now."""
        volumes = [backend.volumes[volume_id] for volume_id in self._warmths if volume_id in backend.volumes]
        return sum(volume.volume_initialization_rate or 0 for volume in volumes if self._percent(volume) < 100)

    def _percent(self, volume: Any) -> int:
        warmth = self._warmths.get(volume.id)
        return 100 if warmth is None else warmth.progress_percent()

    def _answer_delete_volume(self, original: Any, response: Any) -> Any:
        with self._lock:
            volume_id = response.params["VolumeId"]
            if response.ec2_backend.get_volume(volume_id).status == "creating":
                raise ApiError("IncorrectState", f"The volume '{volume_id}' is in the 'creating' state.")
            return original(response)

    def _delete_volume(self, original: Any, backend: Any, volume_id: str) -> Any:
        with self._lock:
            volume = original(backend, volume_id)
            self._plane.delete_volume(volume_id)
            self._warmths.pop(volume_id, None)
            return volume

    def _modify_volume(self, original: Any, backend: Any, volume_id: str, *arguments: Any, **keywords: Any) -> Any:
        with self._lock:
            size_gib = backend.get_volume(volume_id).size
            volume = original(backend, volume_id, *arguments, **keywords)
            if volume.size < size_gib:
                volume.size = size_gib
                raise ApiError("InvalidParameterValue", "New size cannot be smaller than existing size")
            if volume.size > size_gib:
                self._plane.resize_volume(volume_id, volume.size)
            return volume

    def _answer_attach(self, original: Any, response: Any) -> Any:
        with self._lock:
            volume = response.ec2_backend.get_volume(response.params["VolumeId"])
            instance = response.ec2_backend.get_instance(response.params["InstanceId"])
            check_attachment(
                Attachment(
                    volume_id=volume.id,
                    volume_state=volume.status,
                    volume_zone=volume.availability_zone,
                    instance_id=instance.id,
                    instance_state=instance.state,
                    instance_zone=instance.availability_zone,
                    device=response.params["Device"],
                    devices_in_use=frozenset(instance.block_device_mapping),
                )
            )
            return original(response)

    def _attach(self, original: Any, backend: Any, volume_id: str, instance_id: str, device: str, *rest: Any) -> Any:
        with self._lock:
            attachment = original(backend, volume_id, instance_id, device, *rest)
            if device == attachment.instance.root_device_name:
                attachment.lab_visible = True  # a host's root is its overlay, no device
            elif self._delay_seconds:
                threading.Timer(self._delay_seconds, self._finish_attach, [attachment]).start()
            else:
                self._finish_attach(attachment)
            return attachment

    def _finish_attach(self, attachment: Any) -> None:
        with self._lock:
            if attachment.volume.attachment is not attachment:
                return  # the instance was terminated meanwhile
            tags = {tag["key"]: str(tag["value"]) for tag in attachment.instance.get_tags()}
            attachment.lab_hangs = attachment.device in tags.get(HANGING_DEVICES_TAG, "").split()
            if not attachment.lab_hangs:
                volume_id = attachment.volume.id
                self._plane.attach(volume_id, attachment.instance.id, self._warmths.get(volume_id))
                attachment.lab_visible = True

    def _answer_detach(self, original: Any, response: Any) -> Any:
        with self._lock:
            volume = response.ec2_backend.get_volume(response.params["VolumeId"])
            if volume.attachment:
                volume.attachment.lab_forced = bool(response.params.get("Force"))
            return original(response)

    def _detach(self, _: Any, backend: Any, volume_id: str, instance_id: str | None, *__: Any) -> Any:
        with self._lock:
            attachment = backend.get_volume(volume_id).attachment
            if attachment is not None and attachment.instance.lab_ending:
                self._finish_detach(attachment)
                return attachment
            _check_detach(volume_id, instance_id, attachment)
            attachment.lab_detaching = True
            if self._delay_seconds or self._is_busy(attachment):
                threading.Thread(target=self._detach_later, args=[attachment], daemon=True).start()
            else:
                self._finish_detach(attachment)
            return attachment

    def _detach_later(self, attachment: Any) -> None:
        time.sleep(self._delay_seconds)
        # EC2 too waits, without end, until the instance has unmounted the volume.
        while self._is_busy(attachment):
            time.sleep(MOUNT_POLL_SECONDS)
        with self._lock:
            self._finish_detach(attachment)

    def _is_busy(self, attachment: Any) -> bool:
        return not attachment.lab_forced and self._plane.is_mounted(attachment.volume.id)

    def _finish_detach(self, attachment: Any) -> None:
        if attachment.volume.attachment is attachment:
            self._plane.detach(attachment.volume.id)
            del attachment.instance.block_device_mapping[attachment.device]
            attachment.volume.attachment = None

    def _create_snapshot(self, original: Any, backend: Any, volume_id: str, *arguments: Any, **keywords: Any) -> Any:
        with self._lock:
            volume = backend.get_volume(volume_id)
            pending = sum(
                snapshot.volume.id == volume_id and snapshot.status == "pending"
                for snapshot in backend.snapshots.values()
            )
            check_new_snapshot(volume.volume_type, pending)
            snapshot = original(backend, volume_id, *arguments, **keywords)
            snapshot.lab_since = time.monotonic()
            snapshot.lab_size_gib = volume.size
            self._plane.create_snapshot(snapshot.id, volume_id)
            self._measure(snapshot)
            return snapshot

    def _measure(self, snapshot: Any) -> None:
        blocks = self._plane.snapshot_blocks(snapshot.id, snapshot.lab_size_gib)
        snapshot.full_snapshot_size_in_bytes = len(blocks) * BLOCK_BYTES

    def _copy_snapshot(self, original: Any, backend: Any, source_snapshot_id: str, **keywords: Any) -> Any:
        with self._lock:
            snapshot = original(backend, source_snapshot_id, **keywords)
            snapshot.lab_since = time.monotonic()
            snapshot.lab_size_gib = snapshot.volume.size
            self._plane.copy_snapshot(snapshot.id, source_snapshot_id)
            self._measure(snapshot)
            return snapshot

    def _delete_snapshot(self, original: Any, backend: Any, snapshot_id: str) -> Any:
        with self._lock:
            snapshot = original(backend, snapshot_id)
            self._plane.delete_snapshot(snapshot_id)
            self._restores.forget(snapshot_id)
            return snapshot

    def _answer_describe_volume_status(self, _: Any, response: Any) -> ActionResult:
        _refuse(response, "Filters", "MaxResults", "NextToken")
        backend = response.ec2_backend
        ids = response.params.get("VolumeIds") or list(backend.volumes)
        with self._lock:
            return ActionResult({"VolumeStatuses": [self._status(backend.get_volume(volume_id)) for volume_id in ids]})

    def _status(self, volume: Any) -> dict[str, Any]:
        """Return what DescribeVolumeStatus shows of a volume; of its initialization where it is from a snapshot."""
        status: dict[str, Any] = {
            "VolumeId": volume.id,
            "AvailabilityZone": volume.zone.name,
            "VolumeStatus": {"Status": "ok", "Details": [{"Name": "io-enabled", "Status": "passed"}]},
        }
        if volume.snapshot_id:
            percent = self._percent(volume)
            done = "completed" if percent == 100 else "initializing"
            status["VolumeStatus"]["Details"].append({"Name": "initialization-state", "Status": done})
            status["InitializationStatusDetails"] = {"InitializationType": "default", "Progress": percent}
            if volume.volume_initialization_rate:
                warmth = self._warmths.get(volume.id)
                status["InitializationStatusDetails"] |= {
                    "InitializationType": "provisioned-rate",
                    "EstimatedTimeToCompleteInSeconds": 0 if warmth is None else warmth.remaining_seconds(),
                }
        return status

    def _answer_enable_fast_restores(self, response: Any) -> ActionResult:
        sizes = {}
        for snapshot_id in response.params["SourceSnapshotIds"]:
            sizes[snapshot_id] = _find_snapshot(response.ec2_backend, snapshot_id).volume_size
        return self._change_fast_restores(
            response, lambda snapshot_id, zone: self._restores.enable(snapshot_id, zone, sizes[snapshot_id])
        )

    def _answer_disable_fast_restores(self, response: Any) -> ActionResult:
        return self._change_fast_restores(response, self._restores.disable)

    def _change_fast_restores(self, response: Any, change: Callable[[str, str], dict[str, Any]]) -> ActionResult:
        """Change every snapshot in every zone of the request; what was refused is told beside what was done."""
        done: list[dict[str, Any]] = []
        refused: dict[str, list[dict[str, Any]]] = {}
        with self._lock:
            for snapshot_id in response.params["SourceSnapshotIds"]:
                for zone in response.params["AvailabilityZones"]:
                    try:
                        done.append(change(snapshot_id, zone))
                    except ApiError as error:
                        why = {"AvailabilityZone": zone, "Error": {"Code": error.code, "Message": error.message}}
                        refused.setdefault(snapshot_id, []).append(why)
        unsuccessful = [
            {"SnapshotId": snapshot_id, "FastSnapshotRestoreStateErrors": errors}
            for snapshot_id, errors in refused.items()
        ]
        return ActionResult({"Successful": done, "Unsuccessful": unsuccessful})

    def _answer_describe_fast_restores(self, response: Any) -> ActionResult:
        _refuse(response, "NextToken")
        names = {"snapshot-id": "SnapshotId", "availability-zone": "AvailabilityZone", "state": "State"}
        with self._lock:
            items = self._restores.items()
        for wanted in response.params.get("Filters", []):
            if wanted["Name"] not in names:
                raise ApiError("InvalidParameterValue", f"The filter '{wanted['Name']}' is invalid")
            items = [item for item in items if item[names[wanted["Name"]]] in wanted["Values"]]
        return ActionResult({"FastSnapshotRestores": items})

    def _answer_describe_snapshots(self, original: Any, response: Any) -> ActionResult:
        """Keep to the owners that were asked for, which moto ignores."""
        result = original(response).result
        owners = {
            response.current_account if owner == "self" else owner for owner in response.params.get("OwnerIds", [])
        }
        if owners:
            result["Snapshots"] = [snapshot for snapshot in result["Snapshots"] if snapshot.owner_id in owners]
        return ActionResult(result)


def check_create_volume(backend: Any, request: Any) -> int:
    """Return the size in GiB that the volume gets; raise ApiError where EC2 would refuse it."""
    zone = request.get("AvailabilityZone")
    if backend.get_zone_by_name(zone) is None:
        raise ApiError("InvalidZone.NotFound", f"The zone '{zone}' does not exist.")
    snapshot_id = request.get("SnapshotId") or None
    return check_new_volume(
        NewVolume(
            volume_type=request.get("VolumeType") or "gp2",
            size_gib=request.get("Size"),
            snapshot_id=snapshot_id,
            snapshot_gib=_find_snapshot(backend, snapshot_id).volume_size if snapshot_id else None,
            iops=request.get("Iops"),
            throughput=request.get("Throughput"),
            initialization_rate=request.get("VolumeInitializationRate"),
        )
    )


def _rate_of(volume: Any) -> Callable[[], float]:
    return lambda: float(volume.volume_initialization_rate or 0)


def _method(answer: Callable[[Any], ActionResult]) -> Callable[[Any], ActionResult]:
    # A bound method would not be given the response object that it is called on.
    def method(response: Any) -> ActionResult:
        return answer(response)

    return method


def _refuse(response: Any, *parameters: str) -> None:
    """Say of what the lab does not know that it does not, instead of ignoring it."""
    for name in parameters:
        if name in response.params:
            raise NotImplementedError(f"{name} of this action")


def _find_snapshot(backend: Any, snapshot_id: str) -> Any:
    """Return the snapshot of that id if a volume can be made from it, else raise ApiError."""
    snapshot = backend.snapshots.get(snapshot_id)
    if snapshot is None:
        raise ApiError("InvalidSnapshot.NotFound", f"The snapshot '{snapshot_id}' does not exist.")
    if snapshot.status != "completed":
        raise ApiError("IncorrectState", f"Snapshot is in invalid state - {snapshot.status}")
    return snapshot


def _check_detach(volume_id: str, instance_id: str | None, attachment: Any) -> None:
    if attachment is None:
        raise ApiError("IncorrectState", f"Volume '{volume_id}' is in the 'available' state.")
    instance = attachment.instance
    if instance_id and instance_id != instance.id:
        raise ApiError(
            "InvalidAttachment.NotFound", f"The volume '{volume_id}' is not attached to instance '{instance_id}'."
        )
    if attachment.device == instance.root_device_name and instance.state != "stopped":
        raise ApiError(
            "OperationNotPermitted", f"Unable to detach root volume '{volume_id}' from instance '{instance.id}'"
        )
    if attachment.status != "attached" and not attachment.lab_hangs:
        raise ApiError("IncorrectState", f"Volume '{volume_id}' is in the '{attachment.status}' state.")


def _mappings(moto_mappings: Any, instance: Any) -> Any:
    """Return moto's device mappings of an instance with the attachments' states of now."""
    mappings = moto_mappings(instance)
    for mapping in mappings:
        volume = instance.ec2_backend.volumes[mapping["Ebs"].volume_id]
        if volume.attachment:
            mapping["Ebs"].status = volume.attachment.status
    return mappings
