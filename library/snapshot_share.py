#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: snapshot_share
short_description: Share an EBS snapshot with other AWS accounts
description:
  - Shares the snapshot with I(accounts). An account that has access and is not listed is reported in C(unlisted), and
    loses it only with I(revoke_unlisted).
  - Nothing is ever made public. A snapshot that is public, is not encrypted, or is under the account's default key,
    which cannot be shared, is refused with what to do.
  - The statements that the policy of the KMS key needs are in C(key_policy_statements); the key itself is not changed.
  - C(amazon.aws.ec2_snapshot) revokes one account only by revoking all, and reports changed for a subset.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  snapshot_id:
    description: The snapshot.
    type: str
    required: true
  accounts:
    description: The accounts, each by its 12 digits as a string.
    type: list
    elements: str
    required: true
  revoke_unlisted:
    description: Revoke the access of accounts that are not in I(accounts).
    type: bool
    default: false
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
attributes:
  check_mode:
    description: Reports which accounts would gain and lose access.
    support: full
  diff_mode:
    description: Shows the accounts, before and after.
    support: full
"""

EXAMPLES = r"""
- name: Share the snapshot with another account
  snapshot_share:
    snapshot_id: snap-0123456789abcdef0
    accounts: ["222222222222"]
    region: us-east-1
"""

RETURN = r"""
shared_with:
  description: Accounts that have access, besides the owner.
  returned: success
  type: list
  elements: str
added:
  description: Accounts that gained access.
  returned: success
  type: list
  elements: str
revoked:
  description: Accounts that lost access.
  returned: success
  type: list
  elements: str
unlisted:
  description: Accounts that have access and are not in I(accounts).
  returned: success
  type: list
  elements: str
kms_key_id:
  description: ARN of the key that encrypts the snapshot.
  returned: success
  type: str
key_policy_statements:
  description: Statements that the policy of that key needs for these accounts. Empty if it is not shared.
  returned: success
  type: list
  elements: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.ebs.snapshot_share import SnapshotShare
from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "snapshot_id": {"type": "str", "required": True},
            "accounts": {"type": "list", "elements": "str", "required": True},
            "revoke_unlisted": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    given = module.params

    def work() -> Mapping[str, Any]:
        share = SnapshotShare(
            module.client("ec2"),
            module.client("kms"),
            given["snapshot_id"],
            given["accounts"],
            revoke_unlisted=given["revoke_unlisted"],
        )
        return share.present(check_mode=module.check_mode)

    run(module, work)


if __name__ == "__main__":
    main()
