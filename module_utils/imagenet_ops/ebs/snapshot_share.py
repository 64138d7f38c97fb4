"""Who may make volumes of a snapshot: accounts that are named, never everybody.

A snapshot under the account's default key cannot be shared (EBS User Guide, "Share an Amazon EBS snapshot"), and with
one under a key of one's own the other account needs that key too: `key_statements` says what its policy has to allow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

from ansible.module_utils.imagenet_ops.aws.calls import RESTORABLE, call, call_list
from ansible.module_utils.imagenet_ops.aws.clients import Ec2Client, KmsClient
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.results import Difference, difference

ATTRIBUTE = "createVolumePermission"
EVERYBODY = "all"
AWS_MANAGED = "AWS"
# Accounts that one ModifySnapshotAttribute may change (EBS User Guide, as above).
CHANGES_AT_ONCE = 500
_ACCOUNT = re.compile(r"\d{12}")


def key_statements(accounts: Iterable[str], partition: str) -> list[dict[str, Any]]:
    """Return the statements that the policy of the key needs, so that ``accounts`` can use what it encrypts.

    From the KMS Developer Guide, "Allowing users in other accounts to use a KMS key", with the actions that EBS needs.
    In the other account an IAM policy has to allow the same to whoever makes the volumes.
    """
    principals = {"AWS": [f"arn:{partition}:iam::{account}:root" for account in sorted(accounts)]}
    use = ["kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKey*", "kms:ReEncrypt*"]
    return [
        {
            "Sid": "UseOfTheDataSetByOthers",
            "Effect": "Allow",
            "Principal": principals,
            "Action": use,
            "Resource": "*",
        },
        {
            "Sid": "GrantsForTheirVolumes",
            "Effect": "Allow",
            "Principal": principals,
            "Action": ["kms:CreateGrant"],
            "Resource": "*",
            "Condition": {"Bool": {"kms:GrantIsForAWSResource": "true"}},
        },
    ]


class ShareResult(TypedDict):
    """The result of the module snapshot_share: accounts, the key ("" for none), and what its policy has to allow."""

    changed: bool
    shared_with: list[str]
    added: list[str]
    revoked: list[str]
    unlisted: list[str]
    kms_key_id: str
    key_policy_statements: list[dict[str, Any]]
    diff: Difference


class SnapshotShare:
    """Brings the list of accounts of one snapshot to what is wanted, with boto3 clients of EC2 and KMS."""

    def __init__(
        self, ec2: Ec2Client, kms: KmsClient, snapshot_id: str, accounts: Sequence[str], *, revoke_unlisted: bool
    ) -> None:
        """Keep what every step needs; ``revoke_unlisted`` takes it from accounts that are not among ``accounts``.

        Raises OpsError for what is no number of an account, such as ``all``.
        """
        self.ec2 = ec2
        self.kms = kms
        self.snapshot_id = snapshot_id
        self.accounts = set(accounts)
        self.revoke_unlisted = revoke_unlisted
        self.what = f"Snapshot {snapshot_id}"
        wrong = sorted(account for account in self.accounts if not _ACCOUNT.fullmatch(account))
        if EVERYBODY in wrong:
            why = "it would be public, and the terms of the data set allow it to nobody who has not agreed to them"
            raise OpsError(self.what, why, "Name the accounts, each by its 12 digits")
        if wrong:
            why = f"{', '.join(wrong)} is not an AWS account id"
            raise OpsError(
                self.what, why, "Write each as a string of 12 digits, in quotes, or YAML drops a leading zero"
            )

    def present(self, *, check_mode: bool) -> ShareResult:
        """Return the module's result, after those accounts may make volumes of the snapshot, or would in check mode.

        Raises OpsError where the snapshot is public, is under a key that cannot be shared, or EC2 refuses.
        """
        snapshot = self._snapshot()
        before = self._permitted()
        missing = self.accounts - before - {snapshot.get("OwnerId", "")}
        unlisted = before - self.accounts
        revoked = unlisted if self.revoke_unlisted else set()
        key_arn = snapshot.get("KmsKeyId", "")
        if missing:
            self._check_key(snapshot, key_arn)
        if not check_mode:
            self._modify("add", missing)
            self._modify("remove", revoked)
        after = (before | missing) - revoked
        partition = key_arn.split(":")[1] if key_arn.startswith("arn:") else "aws"
        return {
            "changed": bool(missing or revoked),
            "shared_with": sorted(after),
            "added": sorted(missing),
            "revoked": sorted(revoked),
            "unlisted": sorted(unlisted - revoked),
            "kms_key_id": key_arn,
            "key_policy_statements": key_statements(after, partition) if key_arn and after else [],
            "diff": difference(sorted(before), sorted(after)),
        }

    def _snapshot(self) -> dict[str, Any]:
        filters = [{"Name": "snapshot-id", "Values": [self.snapshot_id]}]
        request: dict[str, Any] = {"Filters": filters, **RESTORABLE}
        found = list(call_list(self.ec2, "describe_snapshots", "Snapshots", self.what, **request))
        if not found:
            raise OpsError(self.what, "it does not exist in this Region", "Correct the id or the Region")
        snapshot: dict[str, Any] = found[0]
        return snapshot

    def _permitted(self) -> set[str]:
        request = {"SnapshotId": self.snapshot_id, "Attribute": ATTRIBUTE}
        answer = call(self.ec2.describe_snapshot_attribute, self.what, **request)
        permissions = answer["CreateVolumePermissions"]
        if any(permission.get("Group") == EVERYBODY for permission in permissions):
            todo = (
                f"Make it private at once: aws ec2 reset-snapshot-attribute --snapshot-id {self.snapshot_id} "
                f"--attribute {ATTRIBUTE}; and find out who made it public"
            )
            raise OpsError(self.what, "it is public", todo)
        return {permission["UserId"] for permission in permissions if permission.get("UserId")}

    def _check_key(self, snapshot: dict[str, Any], key_arn: str) -> None:
        if not snapshot.get("Encrypted"):
            todo = "Copy it under a KMS key of your own (snapshot_sharing_regions with a kms_key_id) and share the copy"
            raise OpsError(self.what, "it is not encrypted", todo)
        if not key_arn:
            todo = "Rerun in a few minutes; if it persists, copy it under a KMS key of your own and share the copy"
            raise OpsError(self.what, "it is encrypted, and EC2 does not report its KMS key", todo)
        key = call(self.kms.describe_key, f"KMS key {key_arn}", KeyId=key_arn)["KeyMetadata"]
        if key["KeyManager"] == AWS_MANAGED:
            todo = (
                "Make a copy under a KMS key of your own by naming this Region with that key, for example "
                '-e \'{"snapshot_sharing_regions": [{"region": "us-east-1", "kms_key_id": "alias/imagenet"}]}\', '
                "and rerun: the copy is shared then"
            )
            raise OpsError(
                self.what, "it is encrypted with the account's default key, which AWS shares with nobody", todo
            )

    def _modify(self, operation: str, accounts: set[str]) -> None:
        ordered = sorted(accounts)
        for start in range(0, len(ordered), CHANGES_AT_ONCE):
            call(
                self.ec2.modify_snapshot_attribute,
                self.what,
                SnapshotId=self.snapshot_id,
                Attribute=ATTRIBUTE,
                OperationType=operation,
                UserIds=ordered[start : start + CHANGES_AT_ONCE],
            )
