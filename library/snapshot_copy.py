#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: snapshot_copy
short_description: Copy an EBS snapshot to another Region, or under another key, once
description:
  - Begins a copy of the snapshot in I(region), with the tags of its source from the first moment, and does not wait for
    it. C(state) and C(progress) say how far it is.
  - A copy is found again by its tags C(Project), C(Dataset), C(DatasetVersion) and C(Role), and by its key where one is
    asked for, so it is never made twice, also where a run was killed.
  - C(community.aws.ec2_snapshot_copy) makes a new copy on each run and knows neither check mode nor time-based copies.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  snapshot_id:
    description: The snapshot to copy.
    type: str
    required: true
  source_region:
    description: The Region of that snapshot. The copy is made in I(region).
    type: str
    required: true
  kms_key_id:
    description:
      - The KMS key of I(region) to encrypt the copy with, by id, ARN or alias. The Region's default key where empty.
      - Needed in the Region of the source, where the copy differs by it alone, and for a copy that is to be shared.
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
    description: Says whether a copy would be begun. One that is not there yet has an empty id.
    support: full
  diff_mode:
    description: Shows the copy, before and after.
    support: full
"""

EXAMPLES = r"""
- name: Begin a copy in Ireland that is there in an hour
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
  description: How much of it is copied.
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
