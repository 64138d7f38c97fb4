#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: ebs_snapshot_wait
short_description: Wait until EBS snapshots are complete, and show how far they are
description:
  - The first snapshot of a large volume takes hours. M(amazon.aws.ec2_snapshot) gives up after ten minutes, and shows
    nothing meanwhile.
  - Its progress is written to C(<state_dir>/ebs_snapshot_wait.progress.json) and printed by the action plugin of the
    same name. Waiting through a lost network is part of it.
  - Changes nothing, also in AWS.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  snapshot_ids:
    description: The snapshots, which must be of this account or shared with it.
    type: list
    elements: str
    required: true
  state_dir:
    description: Where the progress is kept.
    type: path
    required: true
  poll_seconds:
    description: Seconds between two looks.
    type: int
    default: 15
  timeout_seconds:
    description: The longest that this waits. The snapshots go on by themselves.
    type: int
    default: 86400
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
attributes:
  check_mode:
    description: Only waits, so check mode does the same.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: Wait until the snapshot is complete
  ebs_snapshot_wait:
    snapshot_ids: [snap-0123456789abcdef0]
    state_dir: .cache/snapshots
    region: us-east-1
  delegate_to: localhost
"""

RETURN = r"""
waited:
  description: Whether there was anything to wait for.
  returned: success
  type: bool
size_gib:
  description: Size of their volumes, taken together.
  returned: success
  type: int
  sample: 62
"""

import os
from typing import Any

from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.ebs.snapshots import SnapshotWait
from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "snapshot_ids": {"type": "list", "elements": "str", "required": True},
            "state_dir": {"type": "path", "required": True},
            "poll_seconds": {"type": "int", "default": 15},
            "timeout_seconds": {"type": "int", "default": 86400},
        },
        supports_check_mode=True,
    )
    given = module.params

    def work() -> dict[str, Any]:
        os.makedirs(given["state_dir"], exist_ok=True)
        wait = SnapshotWait(module.client("ec2"), given["poll_seconds"], given["timeout_seconds"])
        return wait.wait(given["snapshot_ids"], Progress(given["state_dir"], "ebs_snapshot_wait"))

    run(module, work)


if __name__ == "__main__":
    main()
