#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: instance_type_info
short_description: Find the Availability Zones that offer an EC2 instance type
description:
  - Lists the zones of the Region in which instances of a type can be launched. A launch elsewhere ends with
    C(Unsupported).
  - That a zone offers the type does not mean that it has capacity for another instance now.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  instance_type:
    description: The instance type.
    type: str
    required: true
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
attributes:
  check_mode:
    description: Only looks, so check mode does the same.
    support: full
"""

EXAMPLES = r"""
- name: Look up the zones with c6i.xlarge
  instance_type_info:
    instance_type: c6i.xlarge
    region: us-east-1
  register: offering
"""

RETURN = r"""
zones:
  description: The zones, by name. Empty if the Region does not have the type, or nobody does.
  returned: success
  type: list
  elements: str
  sample: [us-east-1a, us-east-1b]
"""

from ansible.module_utils.imagenet_ops.aws.instance_types import zones_with
from ansible.module_utils.imagenet_ops.core.module import run
from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={"instance_type": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    wanted = module.params["instance_type"]
    run(module, lambda: {"changed": False, "zones": zones_with(module.client("ec2"), wanted)})


if __name__ == "__main__":
    main()
