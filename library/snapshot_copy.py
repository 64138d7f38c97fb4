#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: snapshot_copy
short_description: Copy an EBS snapshot to another Region, or under another key, once
description:
  - Starts a copy of the snapshot in I(region), created with the tags of its source, and does not wait for it. C(state)
    and C(progress) report how far it is.
  - A copy is identified by its tags C(Project), C(Dataset), C(DatasetVersion) and C(Role), and by I(kms_key_id) if it
    is given, so it is never made twice, not even after a run that was killed.
  - C(community.aws.ec2_snapshot_copy) makes a new copy on each run and has neither check mode nor time-based copies.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  snapshot_id:
    description: The snapshot to copy.
    type: str
    required: true
  source_region:
    description: Region of that snapshot. The copy is created in I(region).
    type: str
    required: true
  kms_key_id:
    description:
      - KMS key of I(region) to encrypt the copy with, by id, ARN or alias. By default, the Region's default key.
      - Required in the Region of the source, where nothing else tells the copy apart, and for a copy to be shared.
    type: str
    default: ""
  completion_minutes:
    description: Minutes in which EBS has to complete the copy, a multiple of 15 up to 2880, for a fee. 0 sets none.
    type: int
    default: 0
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
attributes:
  check_mode:
    description: Reports whether a copy would be started. A copy to be created has an empty id.
    support: full
  diff_mode:
    description: Shows the copy, before and after.
    support: full
"""

EXAMPLES = r"""
- name: Start a copy in Ireland that completes in an hour
  snapshot_copy:
    snapshot_id: snap-0123456789abcdef0
    source_region: us-east-1
    region: eu-west-1
    kms_key_id: alias/imagenet
    completion_minutes: 60
  register: copy
"""

RETURN = r"""
snapshot_id:
  description: Id of the copy.
  returned: success
  type: str
  sample: snap-0fedcba9876543210
state:
  description: State of the copy, C(pending) or C(completed).
  returned: success
  type: str
progress:
  description: Progress of the copy.
  returned: success
  type: str
  sample: 42%
"""

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.ebs.snapshot_copy import CopySettings, SnapshotCopy
from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "snapshot_id": {"type": "str", "required": True},
            "source_region": {"type": "str", "required": True},
            "kms_key_id": {"type": "str", "default": ""},
            "completion_minutes": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    given = module.params

    def work() -> Mapping[str, Any]:
        settings = CopySettings(
            snapshot_id=given["snapshot_id"],
            source_region=given["source_region"],
            region=module.region,
            kms_key_id=given["kms_key_id"],
            completion_minutes=given["completion_minutes"],
        )
        source_ec2 = module.client("ec2", region=given["source_region"])
        copy = SnapshotCopy(source_ec2, module.client("ec2"), module.client("kms"), settings)
        return copy.present(check_mode=module.check_mode)

    run(module, work)


if __name__ == "__main__":
    main()
