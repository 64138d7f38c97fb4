from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.ebs.retention import RetentionResult, Retirement, newest_versions

from tests.fakes.clients import StubEc2, paginator

TAGS = {"Project": "imagenet-ops", "Dataset": "imagenet"}
PRICES = {"snapshot": 0.05, "backup": 0.02, "gp3": 0.08, "sc1": 0.015}
OLD, MIDDLE, NEW = "aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"
GIB = 1 << 30


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": name, "Value": value} for name, value in tags.items()]


class FakeAws(StubEc2):
    """EC2 and a versioned bucket of S3, with what a data set leaves in them."""

    def __init__(self) -> None:
        self.snapshots: dict[str, dict[str, Any]] = {}
        self.volumes: dict[str, dict[str, Any]] = {}
        self.images: list[dict[str, Any]] = []
        self.templates: dict[str, list[dict[str, Any]]] = {}
        self.permissions: dict[str, list[dict[str, str]]] = {}
        self.objects: dict[str, int] = {}
        self.deleted: list[str] = []
        self.undeletable = ""

    def get_paginator(self, operation: str, /) -> Any:
        return paginator(self, "s3" if operation.startswith("list_") else "ec2", operation)

    def add_snapshot(self, name: str, version: str, date: str, state: str = "completed", **values: Any) -> None:
        tags = {**TAGS, "Role": "snapshot", **({"DatasetVersion": version} if version else {})}
        fixed = {"SnapshotId": name, "StartTime": date, "State": state, "VolumeSize": 100, "Tags": tag_list(tags)}
        self.snapshots[name] = {**fixed, **values}

    def add_volume(self, name: str, version: str, snapshot: str = "", role: str = "fleet", **values: Any) -> None:
        tags = {**TAGS, "Role": role, "DatasetVersion": version}
        fixed = {"Size": 100, "VolumeType": "gp3", "State": "available", "CreateTime": "2026-01-01 00:00:00"}
        self.volumes[name] = {"VolumeId": name, "SnapshotId": snapshot, "Tags": tag_list(tags), **fixed, **values}

    def describe_snapshots(self, **request: Any) -> dict[str, Any]:
        assert request["OwnerIds"] == ["self"]
        assert {"Name": "tag:Dataset", "Values": ["imagenet"]} in request["Filters"]
        # A page for each, as for somebody with very many.
        found = list(self.snapshots.values())
        place = int(request.get("NextToken", 0))
        more = {"NextToken": str(place + 1)} if place + 1 < len(found) else {}
        return {"Snapshots": found[place : place + 1], **more}

    def describe_volumes(self, **request: Any) -> dict[str, Any]:
        wanted = {entry["Name"]: entry["Values"] for entry in request["Filters"]}
        if "snapshot-id" in wanted:
            return {"Volumes": [one for one in self.volumes.values() if one["SnapshotId"] in wanted["snapshot-id"]]}
        return {"Volumes": [one for one in self.volumes.values() if one["Tags"]]}

    def describe_images(self, **request: Any) -> dict[str, Any]:
        assert request == {"Owners": ["self"]}
        return {"Images": self.images}

    def describe_launch_templates(self, **_: Any) -> dict[str, Any]:
        names = [{"LaunchTemplateId": name, "LaunchTemplateName": name} for name in self.templates]
        return {"LaunchTemplates": names}

    def describe_launch_template_versions(self, **request: Any) -> dict[str, Any]:
        versions = enumerate(self.templates[request["LaunchTemplateId"]], 1)
        found = [{"VersionNumber": number, "LaunchTemplateData": data} for number, data in versions]
        return {"LaunchTemplateVersions": found}

    def describe_snapshot_attribute(self, **request: Any) -> dict[str, Any]:
        return {"CreateVolumePermissions": self.permissions.get(request["SnapshotId"], [])}

    def delete_volume(self, **request: Any) -> dict[str, Any]:
        self.deleted.append(request["VolumeId"])
        del self.volumes[request["VolumeId"]]
        return {}

    def delete_snapshot(self, **request: Any) -> dict[str, Any]:
        self.deleted.append(request["SnapshotId"])
        del self.snapshots[request["SnapshotId"]]
        return {}

    def list_objects_v2(self, **request: Any) -> dict[str, Any]:
        names = sorted(name for name in self.objects if name.startswith(request["Prefix"]))
        place = int(request.get("ContinuationToken", 0))
        dates = {OLD: "2026-01-01 00:00:00", MIDDLE: "2026-02-01 00:00:00", NEW: "2026-03-01 00:00:00"}
        entries = [
            {"Key": name, "Size": self.objects[name], "LastModified": dates.get(name.split("/")[1], "")}
            for name in names[place : place + 1]
        ]
        is_last = place + 1 >= len(names)
        return {"Contents": entries, "IsTruncated": not is_last, "NextContinuationToken": str(place + 1)}

    def list_object_versions(self, **request: Any) -> dict[str, Any]:
        names = sorted(name for name in self.objects if name.startswith(request["Prefix"]))
        versions = [{"Key": name, "VersionId": number} for name in names for number in ("1", "2")]
        if "KeyMarker" not in request:
            marks = {"NextKeyMarker": "x", "NextVersionIdMarker": "1"}
            return {"Versions": versions[:1], "IsTruncated": True, **marks}
        assert request["VersionIdMarker"] == "1"
        markers = [{"Key": name, "VersionId": "3"} for name in names[:1]]
        return {"Versions": versions[1:], "DeleteMarkers": markers, "IsTruncated": False}

    def delete_objects(self, **request: Any) -> dict[str, Any]:
        if self.undeletable:
            return {"Errors": [{"Key": self.undeletable, "Code": "AccessDenied"}]}
        for entry in request["Delete"]["Objects"]:
            self.deleted.append(f"{entry['Key']}@{entry['VersionId']}")
            self.objects.pop(entry["Key"], None)
        return {}


@pytest.fixture
def aws() -> FakeAws:
    """Three versions, each with its snapshot."""
    fake = FakeAws()
    for number, version in enumerate((OLD, MIDDLE, NEW), 1):
        fake.add_snapshot(f"snap-{number}", version, f"2026-0{number}-01 00:00:00")
    return fake


def run(aws: FakeAws, keep: int = 1, *, check_mode: bool = False, bucket: str = "") -> RetentionResult:
    return Retirement(aws, aws, TAGS, keep, PRICES, bucket).run(check_mode=check_mode)


def verdicts(result: RetentionResult) -> dict[str, str]:
    return {item["name"]: item["verdict"] for item in result["items"]}


def test_check_retire_and_again(aws: FakeAws) -> None:
    predicted = run(aws, check_mode=True)
    assert (predicted["changed"], predicted["removed"], aws.deleted) == (True, 2, [])
    done = run(aws)
    assert done == predicted
    assert done["kept_versions"] == [NEW]
    assert verdicts(done) == {"snap-1": "removed", "snap-2": "removed", "snap-3": "version 1 of the 1 newest"}
    assert (done["usd_month_removed"], done["usd_month_left"]) == (10.0, 5.0)
    assert done["diff"]["after"] == f"snapshot snap-3 {NEW}\n"
    assert aws.deleted == ["snap-1", "snap-2"]
    again = run(aws)
    assert (again["changed"], again["removed"]) == (False, 0)


def test_the_version_that_deploy_takes_is_the_newest_whenever_it_was_first_made(aws: FakeAws) -> None:
    aws.add_snapshot("snap-4", OLD, "2026-04-01 00:00:00")
    assert run(aws, check_mode=True)["kept_versions"] == [OLD]
    assert verdicts(run(aws)) == {
        "snap-1": "version 1 of the 1 newest",
        "snap-2": "removed",
        "snap-3": "removed",
        "snap-4": "version 1 of the 1 newest",
    }


def test_what_is_in_use_stays_and_says_by_what(aws: FakeAws) -> None:
    for number in range(5, 9):
        aws.add_snapshot(f"snap-{number}", OLD, "2026-01-01 00:00:00")
    aws.add_volume("vol-1", MIDDLE, "snap-1", Attachments=[{"InstanceId": "i-1"}], State="in-use")
    aws.add_volume("vol-of-another", "", "snap-2", Tags=[])
    mapping = {"BlockDeviceMappings": [{"DeviceName": "/dev/xvda"}, {"Ebs": {"SnapshotId": "snap-5"}}]}
    aws.images = [{"ImageId": "ami-1", **mapping}]
    aws.templates = {"gpu": [{"BlockDeviceMappings": [{"Ebs": {"SnapshotId": "snap-6"}}]}] * 3 + [{}]}
    aws.permissions = {"snap-7": [{"UserId": "222222222222"}]}
    result = run(aws)
    assert verdicts(result) == {
        "vol-1": "attached to i-1",
        "snap-1": "in use by volume vol-1",
        "snap-2": "in use by volume vol-of-another",
        "snap-3": "version 1 of the 1 newest",
        "snap-5": "in use by AMI ami-1",
        "snap-6": "in use by launch template gpu version 1, launch template gpu version 2 and 1 more",
        "snap-7": "in use by account 222222222222",
        "snap-8": "removed",
    }
    assert aws.deleted == ["snap-8"]


def test_volumes_that_no_host_has_go_first_and_free_their_snapshots(aws: FakeAws) -> None:
    aws.add_volume("vol-1", OLD, "snap-1")
    aws.add_volume("vol-2", MIDDLE, "snap-2", State="creating")
    aws.add_volume("vol-3", NEW, "snap-3")
    aws.add_volume("vol-4", "", "", role="data", VolumeType="sc1", Size=1000)
    result = run(aws)
    assert verdicts(result) == {
        "vol-1": "removed",
        "vol-2": "it is creating",
        "vol-3": "version 1 of the 1 newest",
        "vol-4": "a volume of role data; teardown.yml removes it",
        "snap-1": "removed",
        "snap-2": "in use by volume vol-2",
        "snap-3": "version 1 of the 1 newest",
    }
    assert aws.deleted == ["vol-1", "snap-1"]
    prices = {item["name"]: item["usd_month"] for item in result["items"]}
    assert (prices["vol-3"], prices["vol-4"]) == (8.0, 15.0)


def test_what_is_in_progress_or_of_no_version_stays(aws: FakeAws) -> None:
    aws.add_snapshot("snap-4", "dddddddddddd", "2026-04-01 00:00:00", state="pending")
    aws.add_snapshot("snap-5", "", "2026-01-01 00:00:00")
    result = run(aws)
    assert result["kept_versions"] == [NEW]
    assert (verdicts(result)["snap-4"], verdicts(result)["snap-5"]) == ("it is pending", "it has no DatasetVersion")


def test_where_no_version_is_complete_nothing_goes() -> None:
    aws = FakeAws()
    aws.add_snapshot("snap-1", OLD, "2026-01-01 00:00:00", state="error")
    aws.add_volume("vol-1", OLD)
    assert run(aws)["changed"] is False
    assert set(verdicts(run(aws)).values()) == {"no version is complete"}


def test_a_snapshot_costs_what_it_holds_where_ec2_says_so(aws: FakeAws) -> None:
    aws.add_snapshot("snap-1", OLD, "2026-01-01 00:00:00", FullSnapshotSizeInBytes=10 * GIB)
    prices = {item["name"]: (item["size_gib"], item["usd_month"]) for item in run(aws)["items"]}
    assert (prices["snap-1"], prices["snap-2"]) == ((10.0, 0.5), (100.0, 5.0))


def test_backups_go_with_every_version_of_their_objects_and_only_where_asked(aws: FakeAws) -> None:
    for version in (OLD, MIDDLE, NEW):
        aws.objects[f"imagenet/{version}/manifest.json"] = GIB
        aws.objects[f"imagenet/{version}/recordio/train.rec"] = 99 * GIB
    aws.objects["imagenet/notes/of/somebody"] = 1
    aws.permissions = {"snap-2": [{"UserId": "222222222222"}]}
    assert not any("s3:" in name for name in verdicts(run(aws, check_mode=True)))
    result = run(aws, bucket="b")
    backups = {name: verdict for name, verdict in verdicts(result).items() if name.startswith("s3:")}
    assert backups == {
        f"s3://b/imagenet/{OLD}/": "removed",
        f"s3://b/imagenet/{MIDDLE}/": "snapshot snap-2 stays",
        f"s3://b/imagenet/{NEW}/": "version 1 of the 1 newest",
    }
    assert next(item["usd_month"] for item in result["items"] if item["name"].endswith(f"{OLD}/")) == 2.0
    gone = [name.replace(f"imagenet/{OLD}/", "") for name in aws.deleted if "@" in name]
    wanted = ["manifest.json@1", "manifest.json@2", "manifest.json@3", "recordio/train.rec@1", "recordio/train.rec@2"]
    assert sorted(gone) == wanted
    assert gone[-1].startswith("manifest.json")
    assert "imagenet/notes/of/somebody" in aws.objects
    assert run(aws, bucket="b")["changed"] is False


def test_a_backup_counts_as_a_version_and_one_without_a_manifest_is_left_alone() -> None:
    aws = FakeAws()
    aws.add_snapshot("snap-1", OLD, "2026-01-01 00:00:00")
    aws.objects = {f"imagenet/{NEW}/manifest.json": 1, f"imagenet/{MIDDLE}/recordio/train.rec": 1}
    result = run(aws, bucket="b")
    assert result["kept_versions"] == [NEW]
    assert verdicts(result) == {
        "snap-1": "removed",
        f"s3://b/imagenet/{NEW}/": "version 1 of the 1 newest",
        f"s3://b/imagenet/{MIDDLE}/": "it has no manifest: an upload may be in progress",
    }


def test_objects_that_cannot_be_deleted_are_an_error(aws: FakeAws) -> None:
    aws.objects[f"imagenet/{OLD}/manifest.json"] = 1
    aws.undeletable = f"imagenet/{OLD}/manifest.json"
    with pytest.raises(OpsError) as error:
        run(aws, bucket="b")
    assert str(error.value) == (
        f"Backup s3://b/imagenet/{OLD}/: 1 objects were not deleted, imagenet/{OLD}/manifest.json: AccessDenied. Check "
        "the policy and the object lock of the bucket, then rerun"
    )


def test_a_backup_counts_only_where_there_is_no_complete_snapshot() -> None:
    snapshots = [{"StartTime": "2026-05-01", "State": "completed", "Tags": tag_list({"DatasetVersion": OLD})}]
    assert newest_versions(snapshots, {OLD: "2026-01-01", NEW: "2026-03-01", MIDDLE: ""}, 3) == [OLD, NEW]


@pytest.mark.parametrize(
    ("tags", "keep", "prices", "text"),
    [
        (
            TAGS,
            0,
            PRICES,
            "Versions of imagenet: 0 were to be kept. Keep at least 1; playbooks/teardown.yml removes all",
        ),
        (
            {"Project": "p"},
            1,
            PRICES,
            "Versions of no data set: the tags do not hold Dataset. Give Project and Dataset",
        ),
        (
            TAGS,
            1,
            {},
            "Versions of imagenet: there is no price for snapshot. Add it to data_prices_usd_gib_month",
        ),
    ],
)
def test_what_is_refused(aws: FakeAws, tags: dict[str, str], keep: int, prices: dict[str, float], text: str) -> None:
    with pytest.raises(OpsError) as error:
        Retirement(aws, aws, tags, keep, prices).run(check_mode=False)
    assert (str(error.value), aws.deleted) == (text, [])
