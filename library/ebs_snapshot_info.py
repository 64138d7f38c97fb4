#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: ebs_snapshot_info
short_description: Find EBS snapshots by their tags in one call, and wait until they are complete
description:
  - Lists the snapshots that fit I(filters), the newest last.
  - One call to EC2, whatever the number of snapshots; M(amazon.aws.ec2_snapshot_info) makes another for each, to read
    who may use it.
  - With I(wait), waits until all of them are complete and shows live progress. The first snapshot of a large volume
    takes hours; M(amazon.aws.ec2_snapshot) gives up after ten minutes, and shows nothing meanwhile. A lost network is
    tolerated for 15 minutes.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  filters:
    description: Filters of DescribeSnapshots by name; a value, or a list of values of which one has to fit.
    type: dict
    required: true
  wait:
    description: Whether to wait. A snapshot that failed ends the waiting with its reason.
    type: bool
    default: false
  expected_roles:
    description:
      - With I(wait), values of the tag C(Role) that must be among the snapshots. One that was just started may be
        missing from the answers of EC2, so it is looked for again for a minute.
    type: list
    elements: str
    default: []
  state_dir:
    description: Folder for the progress; it is created. Required with I(wait).
    type: path
  poll_seconds:
    description: Seconds between two looks.
    type: int
    default: 15
  timeout_seconds:
    description: The longest to wait. The snapshots continue in the background afterwards.
    type: int
    default: 86400
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
attributes:
  check_mode:
    description: Only reads. It does not wait in check mode.
    support: full
"""

EXAMPLES = r"""
- name: Look up the snapshots of the data set
  ebs_snapshot_info:
    filters:
      "tag:Project": imagenet-ops
      "tag:Role": [deploy_snapshot, snapshot]
      status: completed
    region: us-east-1
  delegate_to: localhost
  register: found

- name: Wait until a snapshot is complete
  ebs_snapshot_info:
    filters: {snapshot-id: snap-0123456789abcdef0}
    wait: true
    state_dir: .cache/snapshots
    region: us-east-1
  delegate_to: localhost
"""

RETURN = r"""
snapshots:
  description: What was found, the newest last.
  returned: success
  type: list
  elements: dict
  sample:
    - snapshot_id: snap-0123456789abcdef0
      state: completed
      progress: 100%
      volume_size: 62
      full_snapshot_size_in_bytes: 64424509440
      start_time: "2026-01-31T12:00:00+00:00"
      tags: {Project: imagenet-ops, Role: deploy_snapshot}
waited:
  description: Whether there was anything to wait for.
  returned: success
  type: bool
"""

import os
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.ebs.snapshots import SnapshotWait, find_started, is_complete, result
from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "filters": {"type": "dict", "required": True},
            "wait": {"type": "bool", "default": False},
            "expected_roles": {"type": "list", "elements": "str", "default": []},
            "state_dir": {"type": "path"},
            "poll_seconds": {"type": "int", "default": 15},
            "timeout_seconds": {"type": "int", "default": 86400},
        },
        required_if=[("wait", True, ["state_dir"])],
        supports_check_mode=True,
    )
    given = module.params

    def work() -> Mapping[str, Any]:
        client = module.client("ec2")
        is_waiting = given["wait"] and not module.check_mode
        found = find_started(client, given["filters"], given["expected_roles"] if is_waiting else [])
        if not is_waiting or all(map(is_complete, found)):
            return result(found)
        os.makedirs(given["state_dir"], exist_ok=True)
        wait = SnapshotWait(client, given["poll_seconds"], given["timeout_seconds"])
        return result(wait.wait(found, Progress(given["state_dir"], "ebs_snapshot_info")), waited=True)

    run(module, work)


if __name__ == "__main__":
    main()
