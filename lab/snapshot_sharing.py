"""Snapshots beyond their Region and account: the keys they are encrypted with, and who may be let in.

moto forgets the key of a snapshot, copies one without a new key, and checks nothing before it shares one.
"""

from __future__ import annotations

import threading
from typing import Any

from moto.ec2.models import EC2Backend
from moto.ec2.responses.elastic_block_store import ElasticBlockStore
from moto.kms.models import kms_backends

from lab.patching import wrap
from lab.rules import ApiError, check_copy, check_sharing


class SnapshotSharing:
    """The patches of copying and sharing. ``lock`` makes the changes of the whole API one at a time."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock

    def install(self) -> None:
        """Change moto."""
        wrap(ElasticBlockStore, "copy_snapshot")(self._answer_copy)
        wrap(ElasticBlockStore, "modify_snapshot_attribute")(self._answer_modify)
        wrap(EC2Backend, "create_snapshot")(_create_snapshot)
        wrap(EC2Backend, "copy_snapshot")(_copy_snapshot)
        wrap(EC2Backend, "_create_default_encryption_key")(_create_default_key)

    def _answer_copy(self, original: Any, response: Any) -> Any:
        with self._lock:
            check_copy(response.params.get("CompletionDurationMinutes"))
            return original(response)

    def _answer_modify(self, original: Any, response: Any) -> Any:
        with self._lock:
            request = response.params
            snapshot = response.ec2_backend.get_snapshot(request["SnapshotId"])
            if request.get("OperationType") == "add":
                has_default_key = snapshot.encrypted and snapshot.kms_key_id == _default_key(response.ec2_backend)
                check_sharing(snapshot.encrypted, has_default_key, request.get("GroupNames", []))
            return original(response)


def _create_snapshot(original: Any, backend: Any, volume_id: str, *arguments: Any, **keywords: Any) -> Any:
    snapshot = original(backend, volume_id, *arguments, **keywords)
    snapshot.kms_key_id = backend.get_volume(volume_id).kms_key_id
    return snapshot


def _copy_snapshot(original: Any, backend: Any, source_snapshot_id: str, **keywords: Any) -> Any:
    key = keywords.get("kms_key_id")
    if key:
        keywords["kms_key_id"] = _key(backend, key).arn
    snapshot = original(backend, source_snapshot_id, **keywords)
    if snapshot.encrypted and not snapshot.kms_key_id:
        snapshot.kms_key_id = _default_key(backend)
    return snapshot


def _key(backend: Any, name: str) -> Any:
    """Return the key of the Region with that id, ARN or alias; raise ApiError where there is none."""
    try:
        return kms_backends[backend.account_id][backend.region_name].describe_key(name)
    except (AttributeError, KeyError) as error:  # moto asks None for its id where it knows no such alias
        raise ApiError("InvalidKMSKey.InvalidState", f"There is no KMS key {name} in {backend.region_name}") from error


def _default_key(backend: Any) -> str:
    """Return the ARN of the Region's default key for EBS, made where nobody has needed it yet."""
    return str(backend.default_kms_key_id or backend._create_default_encryption_key())  # noqa: SLF001 - moto's only way


def _create_default_key(original: Any, backend: Any) -> str:
    arn: str = original(backend)
    _key(backend, arn).key_manager = "AWS"
    return arn
