"""A snapshot in another Region, or under another key: copied once, found again by its tags.

CopySnapshot takes no client token, so what a killed run began is found by the tags that a copy is born with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from ansible.module_utils.imagenet_ops.aws.calls import RESTORABLE, call, call_list, tag_filters, tag_list, tags_of
from ansible.module_utils.imagenet_ops.aws.clients import Ec2Client, KmsClient
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.results import Difference, difference
from ansible.module_utils.imagenet_ops.ebs.fast_snapshot_restore import ZONES_TAG

SOURCE_TAG = "CopiedFrom"
# What identifies a copy, of the tags that it takes over from its source.
IDENTITY_TAGS = ("Project", "Dataset", "DatasetVersion", "Role")
# Tags of AWS itself, which nobody else may give.
RESERVED_TAG_PREFIX = "aws:"
# Minutes of a time-based copy, in steps (EC2 API reference, CopySnapshot, CompletionDurationMinutes).
COMPLETION_MINUTES = range(15, 2881, 15)


@dataclass(frozen=True)
class CopySettings:
    """``snapshot_id`` of ``source_region`` is copied to ``region`` under ``kms_key_id`` ("": the Region's default key).

    ``completion_minutes`` is in how many minutes EBS has to be done, for a fee; 0 leaves it to EBS.
    """

    snapshot_id: str
    source_region: str
    region: str
    kms_key_id: str = ""
    completion_minutes: int = 0


class CopyResult(TypedDict):
    """The result of the module snapshot_copy; the id is "" in check mode if there is no copy yet."""

    changed: bool
    snapshot_id: str
    state: str
    progress: str
    diff: Difference


class SnapshotCopy:
    """Makes one copy, with boto3 clients: EC2 of the two Regions and KMS of the Region of the copy."""

    def __init__(self, source_ec2: Ec2Client, ec2: Ec2Client, kms: KmsClient, settings: CopySettings) -> None:
        """Keep what every step needs. Raises OpsError where the settings make no copy."""
        self.source_ec2 = source_ec2
        self.ec2 = ec2
        self.kms = kms
        self.settings = settings
        self.what = f"Copy of {settings.snapshot_id} to {settings.region}"
        minutes = settings.completion_minutes
        if minutes and minutes not in COMPLETION_MINUTES:
            why = f"it cannot be completed in {minutes} minutes"
            raise OpsError(self.what, why, "Use a multiple of 15 from 15 to 2880, or 0 for a copy without a time")
        if settings.region == settings.source_region and not settings.kms_key_id:
            why = "it would be in the same Region under the same key"
            raise OpsError(self.what, why, "Leave the Region out, or give it a kms_key_id to encrypt the copy with")

    def present(self, *, check_mode: bool) -> CopyResult:
        """Return the module's result, after the copy was begun where there was none; it may still be pending.

        In check mode nothing is begun, and a copy that would be has the id "". Raises OpsError where there is no such
        snapshot or key, or EC2 refuses.
        """
        source = self._source()
        key_arn = self._key_arn()
        found = self._find(tags_of(source), key_arn)
        is_new = not found
        if is_new and not check_mode:
            found = self._begin(source, key_arn)
        after = [f"{self.settings.region}: a copy under {key_arn or 'the default key'}"]
        return {
            "changed": is_new,
            "snapshot_id": found.get("SnapshotId", ""),
            "state": found.get("State", ""),
            "progress": found.get("Progress", ""),
            "diff": difference([] if is_new else after, after),
        }

    def _source(self) -> dict[str, Any]:
        filters = [{"Name": "snapshot-id", "Values": [self.settings.snapshot_id]}]
        request: dict[str, Any] = {"Filters": filters, **RESTORABLE}
        found = list(call_list(self.source_ec2, "describe_snapshots", "Snapshots", self.what, **request))
        if not found:
            why = f"there is no such snapshot in {self.settings.source_region}"
            raise OpsError(self.what, why, "Correct the id or the Region")
        source: dict[str, Any] = found[0]
        missing = [name for name in IDENTITY_TAGS if name not in tags_of(source)]
        if missing:
            why = f"the snapshot lacks the tags {', '.join(missing)}, by which its copy is found again"
            raise OpsError(self.what, why, "Copy a snapshot that playbooks/prepare.yml made")
        return source

    def _key_arn(self) -> str:
        """Return the ARN of the requested key, which may be given by any name, "" for none."""
        key = self.settings.kms_key_id
        if not key:
            return ""
        arn: str = call(self.kms.describe_key, f"KMS key {key}", KeyId=key)["KeyMetadata"]["Arn"]
        return arn

    def _find(self, tags: dict[str, str], key_arn: str) -> dict[str, Any]:
        """Return the newest one that has not failed and has the requested key, if any; else {}.

        In the Region of the source that may be the source itself, where it is under that key already.
        """
        filters = [
            *tag_filters({name: tags[name] for name in IDENTITY_TAGS}),
            {"Name": "status", "Values": ["pending", "completed"]},
        ]
        request = {"Filters": filters, "OwnerIds": ["self"]}
        fitting = [
            snapshot
            for snapshot in call_list(self.ec2, "describe_snapshots", "Snapshots", self.what, **request)
            if key_arn in ("", snapshot.get("KmsKeyId"))
        ]
        return max(fitting, key=lambda snapshot: str(snapshot["StartTime"]), default={})

    def _begin(self, source: dict[str, Any], key_arn: str) -> dict[str, Any]:
        settings = self.settings
        tags = {
            name: value
            for name, value in tags_of(source).items()
            if name != ZONES_TAG and not name.startswith(RESERVED_TAG_PREFIX)
        }
        tags[SOURCE_TAG] = f"{settings.source_region}/{settings.snapshot_id}"
        request: dict[str, Any] = {
            "SourceRegion": settings.source_region,
            "SourceSnapshotId": settings.snapshot_id,
            "Description": source.get("Description", ""),
            "Encrypted": True,
            "TagSpecifications": [{"ResourceType": "snapshot", "Tags": tag_list(tags)}],
        }
        if key_arn:
            request["KmsKeyId"] = key_arn
        if settings.completion_minutes:
            request["CompletionDurationMinutes"] = settings.completion_minutes
        made = call(self.ec2.copy_snapshot, self.what, **request)
        return {"SnapshotId": made["SnapshotId"], "State": "pending", "Progress": "0%"}
