#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: ebs_snapshot_info
short_description: Find EBS snapshots by their tags, in one call
description:
  - Lists the snapshots that fit I(filters), the newest last.
  - One call to EC2, whatever the number of snapshots; M(amazon.aws.ec2_snapshot_info) makes another for each, to read
    who may use it.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  filters:
    description: Filters of DescribeSnapshots by name; a value, or a list of values of which one has to fit.
    type: dict
    required: true
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
attributes:
  check_mode:
    description: Only reads, so check mode does the same.
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
"""

from typing import Any

from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.ebs.snapshots import find_snapshots
from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule


def main() -> None:
    module = AnsibleAWSModule(argument_spec={"filters": {"type": "dict", "required": True}}, supports_check_mode=True)

    def work() -> dict[str, Any]:
        return {"changed": False, "snapshots": find_snapshots(module.client("ec2"), module.params["filters"])}

    run(module, work)


if __name__ == "__main__":
    main()
