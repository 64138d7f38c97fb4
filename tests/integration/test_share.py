"""Copies in another Region, other accounts, and what must not happen: twice, in public, by accident."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import boto3
import pytest

from lab.config import API_PORT, CONTROLLER_ACCESS_KEY, CONTROLLER_SECRET_KEY, LOOPBACK, OTHER_ACCOUNT_ID
from tests.integration import pocket
from tests.integration.harness import Lab

NAME = "shared"
PLAYBOOK = "playbooks/share.yml"
THERE = "us-west-2"
THIRD_ACCOUNT_ID = "333333333333"


def client(service: str, region: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=f"http://{LOOPBACK}:{API_PORT}",
        region_name=region,
        aws_access_key_id=CONTROLLER_ACCESS_KEY,
        aws_secret_access_key=CONTROLLER_SECRET_KEY,
    )


class Shared(NamedTuple):
    lab: Lab
    snapshot: str
    version: str
    keys: dict[str, str]


@pytest.fixture(scope="module")
def shared(lab: Lab) -> Iterator[Shared]:
    """The lab with a snapshot under the default key, and a key of one's own in each of two Regions."""
    keys = {region: client("kms", region).create_key()["KeyMetadata"]["Arn"] for region in ("us-east-1", THERE)}
    for region, key in keys.items():
        client("kms", region).create_alias(AliasName="alias/imagenet", TargetKeyId=key)
    yield Shared(lab, *pocket.make_snapshot(lab, NAME, 1), keys)
    for region in keys:
        for snapshot in snapshots(region):
            client("ec2", region).delete_snapshot(SnapshotId=snapshot["SnapshotId"])


def snapshots(region: str) -> list[dict[str, Any]]:
    filters = [{"Name": "tag:Dataset", "Values": [NAME]}]
    found: list[dict[str, Any]] = client("ec2", region).describe_snapshots(Filters=filters)["Snapshots"]
    return found


def permitted(region: str, snapshot: str) -> set[str]:
    request = {"SnapshotId": snapshot, "Attribute": "createVolumePermission"}
    answer = client("ec2", region).describe_snapshot_attribute(**request)
    return {entry["UserId"] for entry in answer["CreateVolumePermissions"]}


def wanted(regions: list[dict[str, Any]], *accounts: str) -> tuple[str, ...]:
    settings = {"snapshot_sharing_regions": regions, "snapshot_sharing_accounts": list(accounts)}
    return (*pocket.arguments(NAME), "-e", json.dumps(settings))


COPY = {"region": THERE, "kms_key_id": "alias/imagenet", "completion_minutes": 15}
HOME = {"region": "us-east-1", "kms_key_id": "alias/imagenet"}


def test_check_mode_begins_no_copy(shared: Shared) -> None:
    run = shared.lab.playbook(PLAYBOOK, *wanted([COPY]), "--check", "--diff")
    assert run.task_changed("snapshot_sharing : Start the copies")
    assert f"{THERE}: a copy under {shared.keys[THERE]}" in run.text
    assert snapshots(THERE) == []


def test_a_copy_is_made_once_with_its_tags_and_its_key(shared: Shared) -> None:
    run = shared.lab.playbook(PLAYBOOK, *wanted([COPY]))
    assert run.task_changed("snapshot_sharing : Start the copies")
    (copied,) = snapshots(THERE)
    assert copied["KmsKeyId"] == shared.keys[THERE]
    tags = {tag["Key"]: tag["Value"] for tag in copied["Tags"]}
    assert tags == {
        "Project": "imagenet-ops",
        "Dataset": NAME,
        "Role": "deploy_snapshot",
        "DatasetVersion": shared.version,
        "CopiedFrom": f"us-east-1/{shared.snapshot}",
    }
    for arguments in (wanted([COPY]), (*wanted([COPY]), "--check")):
        assert shared.lab.playbook(PLAYBOOK, *arguments).all_unchanged()
    assert [found["SnapshotId"] for found in snapshots(THERE)] == [copied["SnapshotId"]]


def test_a_snapshot_under_the_default_key_is_refused_with_what_to_do(shared: Shared) -> None:
    run = shared.lab.playbook(PLAYBOOK, *wanted([], OTHER_ACCOUNT_ID), expect_success=False)
    text = " ".join(run.text.split())
    assert "it is encrypted with the account's default key, which AWS shares with nobody" in text
    assert "Make a copy under a KMS key of your own by naming this Region with that key" in text
    assert permitted("us-east-1", shared.snapshot) == set()


def test_accounts_get_the_copies_under_keys_of_one_s_own(shared: Shared) -> None:
    arguments = wanted([HOME, COPY], OTHER_ACCOUNT_ID, THIRD_ACCOUNT_ID)
    predicted = shared.lab.playbook(PLAYBOOK, *wanted([COPY, HOME], OTHER_ACCOUNT_ID), "--check", "--diff")
    assert f"+{OTHER_ACCOUNT_ID}" in predicted.text
    run = shared.lab.playbook(PLAYBOOK, *arguments)
    (home,) = [found for found in snapshots("us-east-1") if found["SnapshotId"] != shared.snapshot]
    (there,) = snapshots(THERE)
    assert home["KmsKeyId"] == shared.keys["us-east-1"]
    assert permitted("us-east-1", home["SnapshotId"]) == {OTHER_ACCOUNT_ID, THIRD_ACCOUNT_ID}
    assert permitted(THERE, there["SnapshotId"]) == {OTHER_ACCOUNT_ID, THIRD_ACCOUNT_ID}
    assert permitted("us-east-1", shared.snapshot) == set()
    assert f"The policy of {shared.keys[THERE]} must have these statements" in run.text
    assert f"arn:aws:iam::{OTHER_ACCOUNT_ID}:root" in run.text
    assert shared.lab.playbook(PLAYBOOK, *arguments).all_unchanged()
    assert len(snapshots("us-east-1")) == 2


def test_an_account_that_is_taken_from_the_list_loses_it_only_when_asked(shared: Shared) -> None:
    fewer = wanted([HOME, COPY], OTHER_ACCOUNT_ID)
    run = shared.lab.playbook(PLAYBOOK, *fewer)
    assert run.all_unchanged()
    rows = run.table("region", "snapshot_sharing_accounts")
    assert [(row[0], row[2], row[3]) for row in rows] == [
        ("us-east-1", OTHER_ACCOUNT_ID, THIRD_ACCOUNT_ID),
        (THERE, OTHER_ACCOUNT_ID, THIRD_ACCOUNT_ID),
    ]
    (there,) = snapshots(THERE)
    revoke = (*fewer, "-e", "snapshot_sharing_revoke_unlisted=true")
    predicted = shared.lab.playbook(PLAYBOOK, *revoke, "--check", "--diff")
    assert f"-{THIRD_ACCOUNT_ID}" in predicted.text
    assert permitted(THERE, there["SnapshotId"]) == {OTHER_ACCOUNT_ID, THIRD_ACCOUNT_ID}
    assert not shared.lab.playbook(PLAYBOOK, *revoke).all_unchanged()
    assert permitted(THERE, there["SnapshotId"]) == {OTHER_ACCOUNT_ID}
    assert shared.lab.playbook(PLAYBOOK, *revoke).all_unchanged()


@pytest.mark.parametrize(
    ("account", "text"),
    [
        ("all", "it would be public, and the terms of the data set allow it to nobody who has not agreed to them"),
        ("22222", "22222 is not an AWS account id. Write each as a string of 12 digits"),
    ],
)
def test_nobody_and_everybody_are_refused(shared: Shared, account: str, text: str) -> None:
    run = shared.lab.playbook(PLAYBOOK, *wanted([HOME], account), expect_success=False)
    assert text in " ".join(run.text.split())


def test_a_copy_that_cannot_be_timed_so_is_refused(shared: Shared) -> None:
    run = shared.lab.playbook(PLAYBOOK, *wanted([{**COPY, "completion_minutes": 20}]), expect_success=False)
    assert "it cannot be completed in 20 minutes. Use a multiple of 15 from 15 to 2880" in " ".join(run.text.split())
