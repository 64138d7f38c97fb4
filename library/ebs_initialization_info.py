#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: ebs_initialization_info
short_description: Report the initialization progress of EBS volumes, and wait for it
description:
  - Calls DescribeVolumeStatus, once for 200 volumes.
  - With I(wait), waits until every volume with a provisioned initialization rate has all of its blocks, and shows live
    progress. Other volumes load their blocks when they are read, so they are not waited for.
  - What AWS reports may be five minutes old.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  volume_ids:
    description: The volumes.
    type: list
    elements: str
    required: true
  wait:
    description: Whether to wait.
    type: bool
    default: false
  data_bytes:
    description: Size of the data that each volume has to load, for the progress.
    type: int
    default: 0
  timeout_seconds:
    description: The longest to wait. The initialization continues in the background afterwards.
    type: int
    default: 7200
  state_dir:
    description: Folder for the progress, which must exist. Required with I(wait).
    type: path
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
attributes:
  check_mode:
    description: Only looks. It does not wait in check mode.
    support: full
"""

EXAMPLES = r"""
- name: Wait until the volumes are initialized
  ebs_initialization_info:
    volume_ids: [vol-0123456789abcdef0]
    wait: true
    state_dir: /tmp
    region: us-east-1
"""

RETURN = r"""
volumes:
  description: >-
    By volume, C(percent) of the snapshot's data that is loaded, C(known) if AWS reports it (otherwise it is 100), as it
    does not for a blank volume, C(provisioned) if at a provisioned rate, and C(eta_seconds) as AWS estimates it, 0 if
    it does not.
  returned: success
  type: dict
  sample: {vol-0123456789abcdef0: {percent: 100, known: true, provisioned: true, eta_seconds: 0}}
initialized:
  description: Number of volumes that are fully loaded.
  returned: success
  type: int
"""

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.ebs.volume_initialization import wait_for_initialization
from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule

# As in ebs_fleet: a fleet's calls have to live with EC2's throttling.
CLIENT_CONFIG = {"retries": {"mode": "adaptive", "total_max_attempts": 30}}


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "volume_ids": {"type": "list", "elements": "str", "required": True},
            "wait": {"type": "bool", "default": False},
            "data_bytes": {"type": "int", "default": 0},
            "timeout_seconds": {"type": "int", "default": 7200},
            "state_dir": {"type": "path"},
        },
        required_if=[("wait", True, ["state_dir"])],
        supports_check_mode=True,
    )
    given = module.params

    def work() -> Mapping[str, Any]:
        waits = given["wait"] and not module.check_mode
        progress = Progress(given["state_dir"], "ebs_initialization_info") if waits else None
        client = module.client("ec2", config=CLIENT_CONFIG)
        return wait_for_initialization(
            client, given["volume_ids"], given["data_bytes"], given["timeout_seconds"], progress
        )

    run(module, work)


if __name__ == "__main__":
    main()
