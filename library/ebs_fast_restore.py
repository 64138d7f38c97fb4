#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: ebs_fast_restore
short_description: Enable fast snapshot restore of a snapshot, with credits for a number of volumes, and disable it
description:
  - With I(state=enabled) it is enabled in the zones of I(credits), and waited for until every zone has its credits. A
    volume that is created without a credit is an ordinary, cold one, and AWS does not report that.
  - It is billed by the hour in each zone. The zones in which this module enabled it are recorded in the snapshot's tag
    C(FastRestoreZones); I(state=disabled) disables it in these, whichever run it was, and in no others.
  - Shows live progress while it waits.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  state:
    description: Whether it is enabled.
    type: str
    choices: [enabled, disabled]
    default: enabled
  snapshot_id:
    description: The snapshot.
    type: str
    required: true
  credits:
    description: Number of volumes to be created, by zone. Required with I(state=enabled).
    type: dict
  timeout_seconds:
    description: The longest to wait; optimizing takes an hour per TiB, and a zone earns at most 10 credits an hour.
    type: int
    default: 14400
  hour_seconds:
    description: The hour in which credits are earned. Only the lab has another than AWS.
    type: float
    default: 3600
  state_dir:
    description: Folder for the progress, which must exist. Required with I(state=enabled).
    type: path
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
attributes:
  check_mode:
    description: Reports whether it would be enabled or disabled, and does not wait.
    support: full
  diff_mode:
    description: Shows the zones in which it is enabled, before and after.
    support: full
"""

EXAMPLES = r"""
- name: Create the next volumes of the snapshot warm
  ebs_fast_restore:
    snapshot_id: snap-0123456789abcdef0
    credits: {us-east-1a: 8, us-east-1b: 8}
    state_dir: /tmp
    region: us-east-1

- name: Disable it
  ebs_fast_restore:
    state: disabled
    snapshot_id: snap-0123456789abcdef0
    region: us-east-1
"""

RETURN = r"""
zones:
  description: Zones in which it is enabled now, by anybody. With I(state=disabled), empty if none was ours.
  returned: success
  type: list
  elements: str
  sample: [us-east-1a, us-east-1b]
"""

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.ebs.fast_snapshot_restore import FastSnapshotRestore
from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule

CLIENT_CONFIG = {"retries": {"mode": "adaptive", "total_max_attempts": 30}}


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "state": {"type": "str", "choices": ["enabled", "disabled"], "default": "enabled"},
            "snapshot_id": {"type": "str", "required": True},
            "credits": {"type": "dict"},
            "timeout_seconds": {"type": "int", "default": 14400},
            "hour_seconds": {"type": "float", "default": 3600},
            "state_dir": {"type": "path"},
        },
        required_if=[("state", "enabled", ["credits", "state_dir"])],
        supports_check_mode=True,
    )
    given = module.params

    def work() -> Mapping[str, Any]:
        restore = FastSnapshotRestore(
            module.client("ec2", config=CLIENT_CONFIG), given["snapshot_id"], given["hour_seconds"]
        )
        if given["state"] == "disabled":
            return restore.disabled(check_mode=module.check_mode)
        needed = {str(zone): int(count) for zone, count in given["credits"].items()}
        progress = Progress(given["state_dir"], "ebs_fast_restore")
        return restore.enabled(needed, given["timeout_seconds"], progress, check_mode=module.check_mode)

    run(module, work)


if __name__ == "__main__":
    main()
