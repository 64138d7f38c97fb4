from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.ebs.snapshot_copy import CopyResult, CopySettings, SnapshotCopy
from botocore.exceptions import ClientError

from tests.fakes.clients import StubEc2

TAGS = {"Project": "imagenet-ops", "Dataset": "imagenet", "Role": "snapshot", "DatasetVersion": "0123456789ab"}
SETTINGS = CopySettings("snap-1", "us-east-1", "eu-west-1")
KEY = "arn:aws:kms:eu-west-1:1:key/k"


def snapshot(name: str, tags: dict[str, str], **values: Any) -> dict[str, Any]:
    tag_list = [{"Key": key, "Value": value} for key, value in tags.items()]
    return {"SnapshotId": name, "State": "completed", "Progress": "100%", "StartTime": "1", "Tags": tag_list, **values}


class FakeEc2(StubEc2):
    def __init__(self, *snapshots: dict[str, Any]) -> None:
        self.snapshots = list(snapshots)
        self.requests: list[dict[str, Any]] = []
        self.killed = False

    def describe_snapshots(self, **request: Any) -> dict[str, Any]:
        def value(one: dict[str, Any], name: str) -> str | None:
            known = {"snapshot-id": one["SnapshotId"], "status": one["State"]}
            tags = {f"tag:{tag['Key']}": str(tag["Value"]) for tag in one["Tags"]}
            return {**tags, **known}.get(name)

        assert ("RestorableByUserIds" in request) != ("OwnerIds" in request)
        filters = request["Filters"]
        fits = [one for one in self.snapshots if all(value(one, f["Name"]) in f["Values"] for f in filters)]
        return {"Snapshots": fits}

    def copy_snapshot(self, **request: Any) -> dict[str, Any]:
        self.requests.append(request)
        tags = {tag["Key"]: tag["Value"] for tag in request["TagSpecifications"][0]["Tags"]}
        name = f"snap-{len(self.requests)}-copy"
        key = request.get("KmsKeyId", "default")
        self.snapshots.append(snapshot(name, tags, State="pending", Progress="0%", KmsKeyId=key))
        if self.killed:
            raise KeyboardInterrupt
        return {"SnapshotId": name}


class FakeKms:
    def describe_key(self, **request: Any) -> dict[str, Any]:
        if request["KeyId"] not in ("alias/imagenet", KEY):
            error = {"Code": "NotFoundException", "Message": "Alias is not found."}
            raise ClientError({"Error": error}, "DescribeKey")
        return {"KeyMetadata": {"Arn": KEY, "KeyManager": "CUSTOMER"}}


def run(there: FakeEc2, settings: CopySettings = SETTINGS, *, check_mode: bool = False) -> CopyResult:
    own = {"aws:backup:source": "x", "FastRestoreZones": "us-east-1a", "Name": "imagenet-0123"}
    here = FakeEc2(snapshot("snap-1", {**TAGS, **own}, Description="ImageNet"))
    return SnapshotCopy(here, there, FakeKms(), settings).present(check_mode=check_mode)


def refusal(settings: CopySettings) -> str:
    with pytest.raises(OpsError) as error:
        run(FakeEc2(), settings)
    return str(error.value)


def test_check_copy_and_again() -> None:
    there = FakeEc2()
    predicted = run(there, check_mode=True)
    assert (predicted["changed"], predicted["snapshot_id"], there.requests) == (True, "", [])
    made = run(there)
    assert (made["changed"], made["snapshot_id"], made["state"]) == (True, "snap-1-copy", "pending")
    assert made["diff"] == predicted["diff"]
    for check_mode in (True, False):
        again = run(there, check_mode=check_mode)
        assert (again["changed"], again["snapshot_id"], again["progress"]) == (False, "snap-1-copy", "0%")
    assert len(there.requests) == 1


def test_a_copy_is_encrypted_and_carries_the_tags_of_its_source_but_those_of_aws() -> None:
    there = FakeEc2()
    run(there)
    (request,) = there.requests
    tags = {tag["Key"]: tag["Value"] for tag in request["TagSpecifications"][0]["Tags"]}
    assert tags == {**TAGS, "Name": "imagenet-0123", "CopiedFrom": "us-east-1/snap-1"}
    assert (request["Encrypted"], request["Description"]) == (True, "ImageNet")
    assert request.keys() & {"KmsKeyId", "CompletionDurationMinutes"} == set()


def test_a_key_and_a_time_are_passed_on() -> None:
    there = FakeEc2()
    run(there, replace(SETTINGS, kms_key_id="alias/imagenet", completion_minutes=45))
    assert (there.requests[0]["KmsKeyId"], there.requests[0]["CompletionDurationMinutes"]) == (KEY, 45)


def test_a_copy_whose_run_was_killed_is_found() -> None:
    there = FakeEc2()
    there.killed = True
    with pytest.raises(KeyboardInterrupt):
        run(there)
    assert run(there)["changed"] is False
    assert len(there.requests) == 1


def test_a_copy_under_another_key_or_of_another_version_or_failed_is_none() -> None:
    others = (
        snapshot("snap-a", TAGS, KmsKeyId="another"),
        snapshot("snap-b", {**TAGS, "DatasetVersion": "ba9876543210"}, KmsKeyId=KEY),
        snapshot("snap-c", TAGS, KmsKeyId=KEY, State="error"),
    )
    there = FakeEc2(*others)
    wanted = replace(SETTINGS, kms_key_id="alias/imagenet")
    assert run(there, wanted)["snapshot_id"] == "snap-1-copy"
    assert run(there, wanted)["changed"] is False


def test_in_its_own_region_a_source_under_the_key_needs_no_copy() -> None:
    here = FakeEc2(snapshot("snap-1", TAGS, KmsKeyId=KEY))
    settings = CopySettings("snap-1", "eu-west-1", "eu-west-1", kms_key_id="alias/imagenet")
    result = SnapshotCopy(here, here, FakeKms(), settings).present(check_mode=False)
    assert (result["changed"], result["snapshot_id"]) == (False, "snap-1")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            replace(SETTINGS, completion_minutes=20),
            (
                "Copy of snap-1 to eu-west-1: it cannot be completed in 20 minutes. Use a multiple of 15 from 15 to "
                "2880, or 0 for a copy without a time"
            ),
        ),
        (
            replace(SETTINGS, region="us-east-1"),
            (
                "Copy of snap-1 to us-east-1: it would be in the same Region under the same key. Leave the Region out, "
                "or give it a kms_key_id to encrypt the copy with"
            ),
        ),
        (
            replace(SETTINGS, snapshot_id="snap-9"),
            "Copy of snap-9 to eu-west-1: there is no such snapshot in us-east-1. Correct the id or the Region",
        ),
        (
            replace(SETTINGS, kms_key_id="alias/none"),
            (
                "KMS key alias/none: NotFoundException: Alias is not found. Fix the cause above and rerun; "
                "completed work is skipped"
            ),
        ),
    ],
)
def test_what_cannot_be_copied(settings: CopySettings, text: str) -> None:
    assert refusal(settings) == text


def test_a_snapshot_that_could_not_be_found_again() -> None:
    here = FakeEc2(snapshot("snap-1", {"Project": "imagenet-ops"}))
    with pytest.raises(OpsError) as error:
        SnapshotCopy(here, FakeEc2(), FakeKms(), SETTINGS).present(check_mode=False)
    assert str(error.value) == (
        "Copy of snap-1 to eu-west-1: the snapshot lacks the tags Dataset, DatasetVersion, Role, by which its copy is "
        "found again. Copy a snapshot that playbooks/prepare.yml made"
    )
