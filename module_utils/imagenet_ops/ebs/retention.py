"""Which versions of a data set are kept, what the others still cost, and what of them can go.

A version is as old as its newest complete snapshot, which is the one that deploy takes. What is in use is never
removed: a volume that is attached; a snapshot that a volume was made of, that an AMI or any version of a launch
template names, or that other accounts may use; a backup whose version still has a snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from ansible.module_utils.imagenet_ops.aws.calls import call, call_list, call_pages, chunks, tag_filters, tags_of
from ansible.module_utils.imagenet_ops.aws.clients import Ec2Client
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.results import Difference, difference
from ansible.module_utils.imagenet_ops.dataset.manifest import MANIFEST_NAME

GIB = 1 << 30
PROJECT_TAGS = ("Project", "Dataset")
VERSION_TAG = "DatasetVersion"
# The volumes that deploy.yml gives to hosts; the work volume of prepare.yml holds the archives and stays.
FLEET_ROLE = "fleet"
# Keys that one DeleteObjects takes (S3 API reference).
DELETED_AT_ONCE = 1000
REMOVED = "removed"
_VERSION = re.compile(r"[0-9a-f]{12}")


class Row(TypedDict):
    """An item as the module's result has it."""

    kind: str
    name: str
    version: str
    size_gib: float
    created: str
    usd_month: float
    verdict: str


class RetentionResult(TypedDict):
    """The result of the module version_retire."""

    changed: bool
    kept_versions: list[str]
    items: list[Row]
    removed: int
    usd_month_removed: float
    usd_month_left: float
    diff: Difference


@dataclass(frozen=True)
class Item:
    """One thing of the data set that costs money.

    ``kind`` is snapshot, volume or backup, ``size_gib`` what is paid for (of a snapshot at most that), ``created`` an
    ISO date. ``verdict`` is `REMOVED`, or why it is kept.
    """

    kind: str
    name: str
    version: str
    size_gib: float
    created: str
    usd_month: float
    verdict: str = ""

    def row(self) -> Row:
        """Return the item as the module's result has it."""
        return {
            "kind": self.kind,
            "name": self.name,
            "version": self.version,
            "size_gib": round(self.size_gib, 1),
            "created": self.created,
            "usd_month": round(self.usd_month, 2),
            "verdict": self.verdict,
        }


class Retirement:
    """Keeps the newest versions of one data set, with boto3 clients of EC2 and, where backups take part, S3.

    ``tags`` hold Project and Dataset. ``prices`` are USD per GiB and month: ``snapshot``, ``backup``, and one for each
    volume type. ``bucket`` "" leaves backups alone.
    """

    def __init__(
        self, ec2: Ec2Client, s3: Any, tags: dict[str, str], keep: int, prices: Mapping[str, float], bucket: str = ""
    ) -> None:
        """Keep what every step needs. Raises OpsError where nothing would be kept, or the tags do not say of what."""
        self.ec2 = ec2
        self.s3 = s3
        self.tags = tags
        self.keep = keep
        self.prices = prices
        self.bucket = bucket
        self.what = f"Versions of {tags.get('Dataset', 'no data set')}"
        if keep < 1:
            raise OpsError(self.what, f"{keep} were to be kept", "Keep at least 1; playbooks/teardown.yml removes all")
        missing = [name for name in PROJECT_TAGS if not tags.get(name)]
        if missing:
            raise OpsError(self.what, f"the tags do not hold {', '.join(missing)}", "Give Project and Dataset")

    def run(self, *, check_mode: bool) -> RetentionResult:
        """Return the module's result, after what can go is gone, or would be in check mode."""
        request = {"Filters": tag_filters(self.tags)}
        own = {**request, "OwnerIds": ["self"]}
        snapshots = list(call_list(self.ec2, "describe_snapshots", "Snapshots", self.what, **own))
        volumes = list(call_list(self.ec2, "describe_volumes", "Volumes", self.what, **request))
        backups = self._backups() if self.bucket else {}
        kept = newest_versions(snapshots, {name: backup.created for name, backup in backups.items()}, self.keep)
        items = [self._judge_volume(volume, kept) for volume in volumes]
        items += self._judge_snapshots(snapshots, kept, {item.name for item in items if item.verdict == REMOVED})
        items += _judge_backups(backups.values(), kept, items)
        doomed = [item for item in items if item.verdict == REMOVED]
        if not check_mode:
            for item in doomed:  # volumes first, then the snapshots that they were made of, then the backups
                self._remove(item)
        left = [item for item in items if item.verdict != REMOVED]
        return {
            "changed": bool(doomed),
            "kept_versions": kept,
            "items": [item.row() for item in items],
            "removed": len(doomed),
            "usd_month_removed": round(sum(item.usd_month for item in doomed), 2),
            "usd_month_left": round(sum(item.usd_month for item in left), 2),
            "diff": difference(_lines(items), _lines(left)),
        }

    def _judge_volume(self, volume: dict[str, Any], kept: list[str]) -> Item:
        tags = tags_of(volume)
        item = self._item(
            "volume", volume["VolumeId"], tags, volume["Size"], volume["CreateTime"], volume["VolumeType"]
        )
        holders = [attachment["InstanceId"] for attachment in volume.get("Attachments", [])]
        if holders:
            return replace(item, verdict=f"attached to {' '.join(holders)}")
        if tags.get("Role") != FLEET_ROLE:
            return replace(item, verdict=f"a volume of role {tags.get('Role') or 'none'}; teardown.yml removes it")
        if volume["State"] != "available":
            return replace(item, verdict=f"it is {volume['State']}")
        return replace(item, verdict=_of_version(item, kept))

    def _judge_snapshots(self, snapshots: list[dict[str, Any]], kept: list[str], going: set[str]) -> list[Item]:
        """Judge the snapshots, when the volumes ``going`` are no more."""
        items = []
        for snapshot in snapshots:
            size_bytes = snapshot.get("FullSnapshotSizeInBytes") or snapshot["VolumeSize"] * GIB
            tags, began = tags_of(snapshot), snapshot["StartTime"]
            item = self._item("snapshot", snapshot["SnapshotId"], tags, size_bytes / GIB, began, "snapshot")
            is_complete = snapshot["State"] in ("completed", "error")
            verdict = _of_version(item, kept) if is_complete else f"it is {snapshot['State']}"
            items.append(replace(item, verdict=verdict))
        candidates = [item.name for item in items if item.verdict == REMOVED]
        uses = self._uses(candidates, going) if candidates else {}
        return [replace(item, verdict=uses.get(item.name, item.verdict)) for item in items]

    def _uses(self, snapshot_ids: list[str], going: set[str]) -> dict[str, str]:
        """Return by what each of the snapshots is used; those that nothing uses are not in it."""
        uses: dict[str, list[str]] = {}
        for ids in chunks(snapshot_ids):
            filters = [{"Name": "snapshot-id", "Values": ids}]
            for volume in call_list(self.ec2, "describe_volumes", "Volumes", self.what, Filters=filters):
                if volume["VolumeId"] not in going:
                    uses.setdefault(volume["SnapshotId"], []).append(f"volume {volume['VolumeId']}")
        for image in call_list(self.ec2, "describe_images", "Images", self.what, Owners=["self"]):
            for snapshot_id in _named(image):
                uses.setdefault(snapshot_id, []).append(f"AMI {image['ImageId']}")
        for template in call_list(self.ec2, "describe_launch_templates", "LaunchTemplates", self.what):
            for snapshot_id, version in self._named_by(template):
                name = f"launch template {template['LaunchTemplateName']} version {version}"
                uses.setdefault(snapshot_id, []).append(name)
        for snapshot_id in snapshot_ids:
            if snapshot_id not in uses:
                request = {"SnapshotId": snapshot_id, "Attribute": "createVolumePermission"}
                permissions = call(self.ec2.describe_snapshot_attribute, self.what, **request)
                sharers = [entry.get("UserId", "everybody") for entry in permissions["CreateVolumePermissions"]]
                uses.update({snapshot_id: [f"account {sharer}" for sharer in sharers]} if sharers else {})
        return {snapshot_id: _shortened(uses[snapshot_id]) for snapshot_id in snapshot_ids if snapshot_id in uses}

    def _named_by(self, template: dict[str, Any]) -> Iterator[tuple[str, int]]:
        """Yield the snapshots that the versions of a launch template name, each with the version's number."""
        request = {"LaunchTemplateId": template["LaunchTemplateId"]}
        key = "LaunchTemplateVersions"
        for version in call_list(self.ec2, "describe_launch_template_versions", key, self.what, **request):
            for snapshot_id in _named(version["LaunchTemplateData"]):
                yield snapshot_id, version["VersionNumber"]

    def _item(self, kind: str, name: str, tags: dict[str, str], size_gib: float, created: Any, price: str) -> Item:
        return Item(
            kind=kind,
            name=name,
            version=tags.get(VERSION_TAG, ""),
            size_gib=size_gib,
            created=str(created)[:19],
            usd_month=size_gib * self._price(price),
        )

    def _price(self, name: str) -> float:
        if name not in self.prices:
            why = f"there is no price for {name}"
            raise OpsError(self.what, why, "Add it to data_prices_usd_gib_month")
        return float(self.prices[name])

    def _backups(self) -> dict[str, Item]:
        """Return the backups in the bucket by version: complete ones are as old as their manifest."""
        prefix = f"{self.tags['Dataset']}/"
        sizes: dict[str, int] = {}
        manifests: dict[str, str] = {}
        for entry in self._listed("list_objects_v2", "Contents", prefix):
            version, _, name = entry["Key"][len(prefix) :].partition("/")
            if _VERSION.fullmatch(version):
                sizes[version] = sizes.get(version, 0) + entry["Size"]
                if name == MANIFEST_NAME:
                    manifests[version] = str(entry["LastModified"])[:19]
        return {
            version: Item(
                kind="backup",
                name=f"s3://{self.bucket}/{prefix}{version}/",
                version=version,
                size_gib=size_bytes / GIB,
                created=manifests.get(version, ""),
                usd_month=size_bytes / GIB * self._price("backup"),
            )
            for version, size_bytes in sizes.items()
        }

    def _listed(self, operation: str, *arguments: str) -> Iterator[dict[str, Any]]:
        """Yield the entries of all pages of a listing of the bucket: the keys of the entries, then the prefix."""
        *keys, prefix = arguments
        for page in call_pages(self.s3, operation, f"Bucket {self.bucket}", Bucket=self.bucket, Prefix=prefix):
            for key in keys:
                yield from page.get(key, [])

    def _remove(self, item: Item) -> None:
        what = f"{item.kind.capitalize()} {item.name}"
        if item.kind == "volume":
            call(self.ec2.delete_volume, what, VolumeId=item.name)
        elif item.kind == "snapshot":
            call(self.ec2.delete_snapshot, what, SnapshotId=item.name)
        else:
            self._remove_backup(what, f"{self.tags['Dataset']}/{item.version}/")

    def _remove_backup(self, what: str, prefix: str) -> None:
        """Remove every object of a backup, all versions, the manifest last: by it the next run finds what is left."""
        found = list(self._listed("list_object_versions", "Versions", "DeleteMarkers", prefix))
        found.sort(key=lambda entry: bool(entry["Key"] == f"{prefix}{MANIFEST_NAME}"))
        for start in range(0, len(found), DELETED_AT_ONCE):
            batch = found[start : start + DELETED_AT_ONCE]
            objects = [{"Key": entry["Key"], "VersionId": entry["VersionId"]} for entry in batch]
            request = {"Bucket": self.bucket, "Delete": {"Objects": objects, "Quiet": True}}
            errors = call(self.s3.delete_objects, what, **request).get("Errors", [])
            if errors:
                why = f"{len(errors)} objects were not deleted, {errors[0]['Key']}: {errors[0].get('Code')}"
                raise OpsError(what, why, "Check the policy and the object lock of the bucket, then rerun")


def newest_versions(snapshots: Iterable[dict[str, Any]], backups: Mapping[str, str], keep: int) -> list[str]:
    """Return the ``keep`` newest versions, newest first.

    ``backups`` are the dates of complete backups by version; they count for a version that has no complete snapshot.
    """
    dates: dict[str, str] = {}
    for snapshot in snapshots:
        version = tags_of(snapshot).get(VERSION_TAG, "")
        if version and snapshot["State"] == "completed":
            dates[version] = max(dates.get(version, ""), str(snapshot["StartTime"])[:19])
    for version, date in backups.items():
        if date:
            dates.setdefault(version, date)
    return sorted(dates, key=lambda version: (dates[version], version), reverse=True)[:keep]


def _of_version(item: Item, kept: list[str]) -> str:
    if not item.version:
        return f"it has no {VERSION_TAG}"
    if item.version in kept:
        return f"version {kept.index(item.version) + 1} of the {len(kept)} newest"
    # Where no version is complete, nothing is known to be newer than it.
    return REMOVED if kept else "no version is complete"


def _judge_backups(backups: Iterable[Item], kept: list[str], others: list[Item]) -> list[Item]:
    """Judge the backups, when of the ``others`` those that are to be removed are no more."""
    alive = {item.version: item.name for item in others if item.kind == "snapshot" and item.verdict != REMOVED}
    judged = []
    for item in backups:
        verdict = _of_version(item, kept)
        if verdict == REMOVED and item.version in alive:
            verdict = f"snapshot {alive[item.version]} stays"
        if verdict == REMOVED and not item.created:
            verdict = "it has no manifest: an upload may be in progress"
        judged.append(replace(item, verdict=verdict))
    return judged


def _named(holder: dict[str, Any]) -> Iterator[str]:
    """Yield the snapshots that the block device mappings of an AMI or of a launch template name."""
    for mapping in holder.get("BlockDeviceMappings", []):
        snapshot_id = mapping.get("Ebs", {}).get("SnapshotId")
        if snapshot_id:
            yield snapshot_id


def _shortened(uses: list[str]) -> str:
    more = f" and {len(uses) - 2} more" if len(uses) > 2 else ""
    return f"in use by {', '.join(uses[:2])}{more}"


def _lines(items: list[Item]) -> list[str]:
    return [f"{item.kind} {item.name} {item.version}" for item in items]
