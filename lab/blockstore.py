"""EBS: gives moto's volumes, attachments and snapshots a body, AWS's rules, and states that take their time.

Of each action the answer (moto's response class) checks what the caller may ask, and the deed (its backend) changes the
world; what moto does by itself, as a root volume at a launch, passes the second alone.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.models import EC2Backend
from moto.ec2.models.elastic_block_store import Snapshot, Volume, VolumeAttachment
from moto.ec2.models.instances import Instance
from moto.ec2.responses.elastic_block_store import ElasticBlockStore

from lab.dataplane import DataPlane
from lab.patching import replace_property, wrap
from lab.rules import (
    ApiError,
    Attachment,
    ClientTokens,
    NewVolume,
    check_attachment,
    check_new_snapshot,
    check_new_volume,
)

MOUNT_POLL_SECONDS = 0.1


class BlockStore:
    """The patches of EBS. ``lock`` makes the changes of the whole API one at a time."""

    def __init__(self, plane: DataPlane, delay_seconds: float, lock: threading.RLock) -> None:
        self._plane = plane
        self._delay_seconds = delay_seconds
        self._lock = lock
        self._tokens = ClientTokens()

    def install(self) -> None:
        """Change moto."""
        wrap(ElasticBlockStore, "create_volume")(self._answer_create_volume)
        wrap(ElasticBlockStore, "delete_volume")(self._answer_delete_volume)
        wrap(ElasticBlockStore, "attach_volume")(self._answer_attach)
        wrap(ElasticBlockStore, "detach_volume")(self._answer_detach)
        wrap(ElasticBlockStore, "describe_snapshots")(self._answer_describe_snapshots)
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
        moto_mappings = Instance.block_device_mappings.fget  # type: ignore[attr-defined]
        replace_property(Instance, "block_device_mappings", lambda instance: _mappings(moto_mappings, instance))

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
                response.params["Size"] = _check_create_volume(response.ec2_backend, response.params)
                volume = original(response).result
                volume.volume_initialization_rate = response.params.get("VolumeInitializationRate")
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
            return volume

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
            if attachment.volume.attachment is attachment:  # else the instance was terminated meanwhile
                self._plane.attach(attachment.volume.id, attachment.instance.id)
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
            return snapshot

    def _copy_snapshot(self, original: Any, backend: Any, source_snapshot_id: str, **keywords: Any) -> Any:
        with self._lock:
            snapshot = original(backend, source_snapshot_id, **keywords)
            snapshot.lab_since = time.monotonic()
            snapshot.lab_size_gib = snapshot.volume.size
            self._plane.copy_snapshot(snapshot.id, source_snapshot_id)
            return snapshot

    def _delete_snapshot(self, original: Any, backend: Any, snapshot_id: str) -> Any:
        with self._lock:
            snapshot = original(backend, snapshot_id)
            self._plane.delete_snapshot(snapshot_id)
            return snapshot

    def _answer_describe_snapshots(self, original: Any, response: Any) -> ActionResult:
        """Keep to the owners that were asked for, which moto ignores."""
        result = original(response).result
        owners = {
            response.current_account if owner == "self" else owner for owner in response.params.get("OwnerIds", [])
        }
        if owners:
            result["Snapshots"] = [snapshot for snapshot in result["Snapshots"] if snapshot.owner_id in owners]
        return ActionResult(result)


def _check_create_volume(backend: Any, request: Any) -> int:
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
    if attachment.status != "attached":
        raise ApiError("IncorrectState", f"Volume '{volume_id}' is in the '{attachment.status}' state.")


def _mappings(moto_mappings: Any, instance: Any) -> Any:
    """Return moto's device mappings of an instance with the attachments' states of now."""
    mappings = moto_mappings(instance)
    for mapping in mappings:
        volume = instance.ec2_backend.volumes[mapping["Ebs"].volume_id]
        if volume.attachment:
            mapping["Ebs"].status = volume.attachment.status
    return mappings
