from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.ebs.snapshot_share import ShareResult, SnapshotShare, key_statements

from tests.fakes.clients import StubEc2

OWNER, ONE, TWO, THREE = "111111111111", "222222222222", "333333333333", "044444444444"
KEY = "arn:aws-cn:kms:cn-north-1:1:key/k"


class FakeAws(StubEc2):
    """EC2 and KMS for one snapshot."""

    def __init__(self, *accounts: str, encrypted: bool = True, manager: str = "CUSTOMER") -> None:
        self.permissions: list[dict[str, str]] = [{"UserId": account} for account in accounts]
        self.snapshot: dict[str, Any] = {"SnapshotId": "snap-1", "OwnerId": OWNER, "Encrypted": encrypted}
        if encrypted:
            self.snapshot["KmsKeyId"] = KEY
        self.manager = manager
        self.changes: list[tuple[str, list[str]]] = []

    def describe_snapshots(self, **request: Any) -> dict[str, Any]:
        assert request["RestorableByUserIds"] == ["self"]
        return {"Snapshots": [self.snapshot] if request["Filters"][0]["Values"] == ["snap-1"] else []}

    def describe_snapshot_attribute(self, **_: Any) -> dict[str, Any]:
        return {"CreateVolumePermissions": self.permissions}

    def describe_key(self, **request: Any) -> dict[str, Any]:
        assert request["KeyId"] == KEY
        return {"KeyMetadata": {"KeyManager": self.manager}}

    def modify_snapshot_attribute(self, **request: Any) -> dict[str, Any]:
        operation, accounts = request["OperationType"], request["UserIds"]
        assert 0 < len(accounts) <= 500
        assert "GroupNames" not in request
        self.changes.append((operation, accounts))
        left = [entry for entry in self.permissions if entry["UserId"] not in accounts]
        self.permissions = left + ([{"UserId": account} for account in accounts] if operation == "add" else [])
        return {}


def run(aws: FakeAws, *accounts: str, check_mode: bool = False, revoke_unlisted: bool = False) -> ShareResult:
    share = SnapshotShare(aws, aws, "snap-1", accounts, revoke_unlisted=revoke_unlisted)
    return share.present(check_mode=check_mode)


def refusal(aws: FakeAws, *accounts: str) -> str:
    with pytest.raises(OpsError) as error:
        run(aws, *accounts)
    assert aws.changes == []
    return str(error.value)


def test_check_share_again_and_revoke() -> None:
    aws = FakeAws()
    predicted = run(aws, ONE, TWO, check_mode=True)
    assert (predicted["changed"], predicted["added"], aws.changes) == (True, [ONE, TWO], [])
    assert run(aws, ONE, TWO) == predicted
    assert run(aws, TWO, ONE)["changed"] is False

    fewer = run(aws, ONE)
    assert (fewer["changed"], fewer["unlisted"], fewer["shared_with"]) == (False, [TWO], [ONE, TWO])
    asked = run(aws, ONE, check_mode=True, revoke_unlisted=True)
    assert (asked["changed"], asked["revoked"], asked["unlisted"]) == (True, [TWO], [])
    assert asked["diff"] == {"before": f"{ONE}\n{TWO}\n", "after": f"{ONE}\n"}
    assert run(aws, ONE, revoke_unlisted=True) == asked
    assert run(aws, ONE, revoke_unlisted=True)["changed"] is False
    assert aws.changes == [("add", [ONE, TWO]), ("remove", [TWO])]


def test_only_what_is_missing_is_added_and_the_owner_needs_nothing() -> None:
    aws = FakeAws(ONE)
    assert run(aws, ONE, THREE, OWNER)["added"] == [THREE]
    assert aws.changes == [("add", [THREE])]


def test_many_accounts_take_several_calls() -> None:
    aws = FakeAws()
    accounts = [f"{number:012d}" for number in range(1001)]
    run(aws, *accounts)
    assert [len(changed) for _, changed in aws.changes] == [500, 500, 1]


def test_what_the_key_has_to_allow_is_said_in_the_words_of_its_partition() -> None:
    statements = run(FakeAws(ONE), ONE)["key_policy_statements"]
    assert statements == key_statements([ONE], "aws-cn")
    use, grants = statements
    assert use["Principal"] == {"AWS": [f"arn:aws-cn:iam::{ONE}:root"]}
    assert use["Action"] == ["kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKey*", "kms:ReEncrypt*"]
    assert (grants["Action"], grants["Condition"]) == (
        ["kms:CreateGrant"],
        {"Bool": {"kms:GrantIsForAWSResource": "true"}},
    )
    assert run(FakeAws())["key_policy_statements"] == []


def test_a_public_snapshot_is_an_alarm() -> None:
    aws = FakeAws(encrypted=False)
    aws.permissions.append({"Group": "all"})
    assert refusal(aws) == (
        "Snapshot snap-1: it is public. Make it private at once: aws ec2 reset-snapshot-attribute --snapshot-id snap-1 "
        "--attribute createVolumePermission; and find out who made it public"
    )


def test_a_snapshot_that_cannot_be_shared() -> None:
    default = refusal(FakeAws(manager="AWS"), ONE)
    assert default.startswith(
        "Snapshot snap-1: it is encrypted with the account's default key, which AWS shares with nobody. Make a copy "
        "under a KMS key of your own by naming this Region with that key"
    )
    unknown = FakeAws()
    del unknown.snapshot["KmsKeyId"]
    assert refusal(unknown, ONE) == (
        "Snapshot snap-1: it is encrypted, and EC2 does not report its KMS key. Rerun in a few minutes; if it "
        "persists, copy it under a KMS key of your own and share the copy"
    )
    plain = refusal(FakeAws(encrypted=False), ONE)
    assert plain.startswith("Snapshot snap-1: it is not encrypted. Copy it under a KMS key of your own")


def test_accounts_that_are_none() -> None:
    assert refusal(FakeAws(), "all") == (
        "Snapshot snap-1: it would be public, and the terms of the data set allow it to nobody who has not agreed to "
        "them. Name the accounts, each by its 12 digits"
    )
    assert refusal(FakeAws(), "44444444444", ONE) == (
        "Snapshot snap-1: 44444444444 is not an AWS account id. Write each as a string of 12 digits, in quotes, "
        "or YAML drops a leading zero"
    )


def test_a_snapshot_that_is_not_there() -> None:
    aws = FakeAws()
    aws.snapshot["SnapshotId"] = "snap-2"
    with pytest.raises(OpsError, match="Snapshot snap-9: it does not exist in this Region"):
        SnapshotShare(aws, aws, "snap-9", [ONE], revoke_unlisted=False).present(check_mode=False)
