#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: snapshot_share
short_description: Let other AWS accounts make volumes of an EBS snapshot
description:
  - Gives the permission to the accounts that are named and lack it. One that has it and is not named is reported in
    C(unlisted), and loses it only with I(revoke_unlisted).
  - Nothing is ever made public. A snapshot that is public, is not encrypted, or is under the account's default key,
    which AWS shares with nobody, is refused with what to do.
  - What the policy of the KMS key has to allow is in C(key_policy_statements); the key itself is left alone.
  - C(amazon.aws.ec2_snapshot) takes a permission away only by taking all of them, and says changed for a subset.
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
    description: Take the permission from accounts that are not in I(accounts).
    type: bool
    default: false
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
attributes:
  check_mode:
    description: Says which accounts would be let in and which not any more.
    support: full
  diff_mode:
    description: Shows the accounts, before and after.
    support: full
"""

EXAMPLES = r"""
- name: Let another account make volumes of the snapshot
  snapshot_share:
    snapshot_id: snap-0123456789abcdef0
    accounts: ["222222222222"]
    region: us-east-1
"""

RETURN = r"""
shared_with:
  description: The accounts that may make volumes of the snapshot, besides its owner.
  returned: success
  type: list
  elements: str
added:
  description: Those of them that are new.
  returned: success
  type: list
  elements: str
revoked:
  description: The accounts that lost the permission.
  returned: success
  type: list
  elements: str
unlisted:
  description: The accounts that have the permission and are not in I(accounts).
  returned: success
  type: list
  elements: str
kms_key_id:
  description: ARN of the key that the snapshot is under.
  returned: success
  type: str
key_policy_statements:
  description: What the policy of that key has to hold for these accounts. Empty where it is shared with nobody.
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
