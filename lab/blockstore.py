"""EBS: gives moto's volumes, attachments and snapshots a body, AWS's rules, and states that take their time."""

from __future__ import annotations

import logging
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

log = logging.getLogger("lab")
MOUNT_POLL_SECONDS = 0.1


class BlockStore:
    """The patches of EBS. ``lock`` makes the changes of the whole API one at a time."""

    def __init__(self, plane: DataPlane, delay_seconds: float, lock: threading.RLock) -> None:
        self._plane = plane
        self._delay_seconds = delay_seconds
        self._lock = lock
        self._tokens = ClientTokens()

    def install(self) -> None:
        self._install_states()
        self._install_volumes()
        self._install_attachments()
        self._install_snapshots()

    def _is_over(self, since: float) -> bool:
        """Whether a transition that began at monotonic time ``since`` has ended."""
        return time.monotonic() - since >= self._delay_seconds

    def _install_states(self) -> None:
        def volume_status(volume: Any) -> str:
            if volume.attachment:
                return "in-use"
            return "available" if self._is_over(volume.lab_since) else "creating"

        def attachment_status(attachment: Any) -> str:
            if attachment.lab_detaching:
                return "busy" if self._plane.is_mounted(attachment.volume.id) else "detaching"
            return str(attachment.__dict__["lab_status"]) if attachment.lab_visible else "attaching"

        def snapshot_status(snapshot: Any) -> str:
            return "completed" if self._is_over(snapshot.lab_since) else "pending"

        def snapshot_progress(snapshot: Any) -> str:
            if self._is_over(snapshot.lab_since):
                return "100%"
            return f"{int(100 * (time.monotonic() - snapshot.lab_since) / self._delay_seconds)}%"

        def mappings(instance: Any) -> list[dict[str, Any]]:
            result = instance.lab_block_device_mappings()
            for mapping in result:
                volume = instance.ec2_backend.volumes[mapping["Ebs"].volume_id]
                mapping["Ebs"].status = volume.attachment.status
            return result

        replace_property(Volume, "status", volume_status)
        # What every attachment is at first; each becomes True on the object.
        VolumeAttachment.lab_detaching = False  # type: ignore[attr-defined]
        VolumeAttachment.lab_visible = False  # type: ignore[attr-defined]
        VolumeAttachment.lab_forced = False  # type: ignore[attr-defined]
        replace_property(VolumeAttachment, "status", attachment_status)
        replace_property(Snapshot, "status", snapshot_status)
        replace_property(Snapshot, "progress", snapshot_progress)
        # moto reads the size of the volume as it is now, or was when it was deleted.
        replace_property(Snapshot, "volume_size", lambda snapshot: snapshot.lab_size_gib)
        Instance.lab_block_device_mappings = Instance.block_device_mappings.fget  # type: ignore[attr-defined]
        replace_property(Instance, "block_device_mappings", mappings)

    def _install_volumes(self) -> None:
        @wrap(ElasticBlockStore, "create_volume")
        def answer_create(original: Any, response: Any) -> ActionResult:
            with self._lock:
                request = {name: value for name, value in response.params.items() if name != "ClientToken"}
                token = response.params.get("ClientToken")
                volume = self._tokens.find("CreateVolume", token, request)
                if volume is None:
                    self._check_create(response.ec2_backend, response.params)
                    volume = original(response).result
                    volume.volume_initialization_rate = response.params.get("VolumeInitializationRate")
                    self._tokens.remember("CreateVolume", token, request, volume)
                return ActionResult(volume)

        @wrap(EC2Backend, "create_volume")
        def create(original: Any, backend: Any, *arguments: Any, **keywords: Any) -> Any:
            with self._lock:
                volume = original(backend, *arguments, **keywords)
                # amazon.aws reads both keys, which moto leaves out when they are None.
                volume.snapshot_id = volume.snapshot_id or ""
                volume.multi_attach_enabled = bool(volume.multi_attach_enabled)
                volume.lab_since = time.monotonic()
                self._plane.create_volume(volume.id, volume.size, volume.snapshot_id or None)
                return volume

        @wrap(EC2Backend, "delete_volume")
        def delete(original: Any, backend: Any, volume_id: str) -> Any:
            with self._lock:
                if backend.get_volume(volume_id).status == "creating":
                    raise ApiError("IncorrectState", f"The volume '{volume_id}' is in the 'creating' state.")
                volume = original(backend, volume_id)
                self._plane.delete_volume(volume_id)
                return volume

        @wrap(EC2Backend, "modify_volume")
        def modify(original: Any, backend: Any, volume_id: str, *arguments: Any, **keywords: Any) -> Any:
            with self._lock:
                size_gib = backend.get_volume(volume_id).size
                volume = original(backend, volume_id, *arguments, **keywords)
                if volume.size < size_gib:
                    volume.size = size_gib
                    raise ApiError("InvalidParameterValue", "New size cannot be smaller than existing size")
                if volume.size > size_gib:
                    self._plane.resize_volume(volume_id, volume.size)
                return volume

    def _check_create(self, backend: Any, request: Any) -> None:
        zone = request.get("AvailabilityZone")
        if backend.get_zone_by_name(zone) is None:
            raise ApiError("InvalidZone.NotFound", f"The zone '{zone}' does not exist.")
        snapshot_id = request.get("SnapshotId") or None
        check_new_volume(
            NewVolume(
                volume_type=request.get("VolumeType") or "gp2",
                size_gib=request.get("Size"),
                snapshot_id=snapshot_id,
                snapshot_gib=find_snapshot(backend, snapshot_id).volume_size if snapshot_id else None,
                iops=request.get("Iops"),
                throughput=request.get("Throughput"),
                initialization_rate=request.get("VolumeInitializationRate"),
            )
        )

    def _install_attachments(self) -> None:
        @wrap(ElasticBlockStore, "attach_volume")
        def answer_attach(original: Any, response: Any) -> ActionResult:
            with self._lock:
                backend = response.ec2_backend
                volume = backend.get_volume(response.params["VolumeId"])
                instance = backend.get_instance(response.params["InstanceId"])
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
                result: ActionResult = original(response)
                return result

        @wrap(EC2Backend, "attach_volume")
        def attach(original: Any, backend: Any, volume_id: str, instance_id: str, device: str, *rest: Any) -> Any:
            with self._lock:
                attachment = original(backend, volume_id, instance_id, device, *rest)
                if device == attachment.instance.root_device_name:
                    attachment.lab_visible = True  # a host's root is its overlay, no device
                elif self._delay_seconds:
                    threading.Timer(self._delay_seconds, self._finish_attach, [attachment]).start()
                else:
                    self._finish_attach(attachment)
                return attachment

        @wrap(ElasticBlockStore, "detach_volume")
        def answer_detach(original: Any, response: Any) -> ActionResult:
            with self._lock:
                volume = response.ec2_backend.get_volume(response.params["VolumeId"])
                if volume.attachment:
                    volume.attachment.lab_forced = bool(response.params.get("Force"))
                result: ActionResult = original(response)
                return result

        @wrap(EC2Backend, "detach_volume")
        def detach(_: Any, backend: Any, volume_id: str, instance_id: str | None, device: str | None) -> Any:
            with self._lock:
                attachment = backend.get_volume(volume_id).attachment
                if attachment is None:
                    raise ApiError("IncorrectState", f"Volume '{volume_id}' is in the 'available' state.")
                if instance_id and instance_id != attachment.instance.id:
                    raise ApiError(
                        "InvalidAttachment.NotFound",
                        f"The volume '{volume_id}' is not attached to instance '{instance_id}'.",
                    )
                if attachment.instance.lab_ending:
                    finish(attachment)
                    return attachment
                self._check_detach(attachment)
                attachment.lab_detaching = True
                if self._delay_seconds or self._is_busy(attachment):
                    threading.Thread(target=finish_later, args=[attachment], daemon=True).start()
                else:
                    finish(attachment)
                return attachment

        def finish_later(attachment: Any) -> None:
            time.sleep(self._delay_seconds)
            # EC2 waits, without end, until the instance has unmounted the volume.
            while self._is_busy(attachment):
                time.sleep(MOUNT_POLL_SECONDS)
            with self._lock:
                finish(attachment)

        def finish(attachment: Any) -> None:
            if attachment.volume.attachment is attachment:
                self._plane.detach(attachment.volume.id)
                del attachment.instance.block_device_mapping[attachment.device]
                attachment.volume.attachment = None

    def _is_busy(self, attachment: Any) -> bool:
        return not attachment.lab_forced and self._plane.is_mounted(attachment.volume.id)

    def _check_detach(self, attachment: Any) -> None:
        volume_id, instance = attachment.volume.id, attachment.instance
        if attachment.device == instance.root_device_name and instance.state != "stopped":
            raise ApiError(
                "OperationNotPermitted", f"Unable to detach root volume '{volume_id}' from instance '{instance.id}'"
            )
        if attachment.status != "attached":
            raise ApiError("IncorrectState", f"Volume '{volume_id}' is in the '{attachment.status}' state.")

    def _finish_attach(self, attachment: Any) -> None:
        with self._lock:
            if attachment.volume.attachment is attachment:  # the instance was not terminated meanwhile
                self._plane.attach(attachment.volume.id, attachment.instance.id)
                attachment.lab_visible = True

    def _install_snapshots(self) -> None:
        @wrap(EC2Backend, "create_snapshot")
        def create(original: Any, backend: Any, volume_id: str, *arguments: Any, **keywords: Any) -> Any:
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

        @wrap(EC2Backend, "copy_snapshot")
        def copy(original: Any, backend: Any, source_snapshot_id: str, *arguments: Any, **keywords: Any) -> Any:
            with self._lock:
                snapshot = original(backend, source_snapshot_id, *arguments, **keywords)
                snapshot.lab_since = time.monotonic()
                snapshot.lab_size_gib = snapshot.volume.size
                self._plane.copy_snapshot(snapshot.id, source_snapshot_id)
                return snapshot

        @wrap(EC2Backend, "delete_snapshot")
        def delete(original: Any, backend: Any, snapshot_id: str) -> Any:
            with self._lock:
                snapshot = original(backend, snapshot_id)
                self._plane.delete_snapshot(snapshot_id)
                return snapshot

        @wrap(ElasticBlockStore, "describe_snapshots")
        def describe(original: Any, response: Any) -> ActionResult:
            result: Any = original(response).result
            owners = set(response.params.get("OwnerIds", []))
            if owners:
                own = {response.current_account} if "self" in owners else set()
                result["Snapshots"] = [
                    snapshot for snapshot in result["Snapshots"] if snapshot.owner_id in owners | own
                ]
            return ActionResult(result)


def find_snapshot(backend: Any, snapshot_id: str) -> Any:
    """The snapshot of that id if a volume can be made from it, else ApiError."""
    snapshot = backend.snapshots.get(snapshot_id)
    if snapshot is None:
        raise ApiError("InvalidSnapshot.NotFound", f"The snapshot '{snapshot_id}' does not exist.")
    if snapshot.status != "completed":
        raise ApiError("IncorrectState", f"Snapshot is in invalid state - {snapshot.status}")
    return snapshot
