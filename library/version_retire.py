#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: version_retire
short_description: Keep the newest versions of a data set, delete the others, and report the costs
description:
  - Of the snapshots and volumes with I(tags), and of the backups in I(bucket), keeps those of the newest versions and
    removes the others, unless they are in use. A version is as old as its newest complete snapshot.
  - In use is a volume that is attached; a snapshot that a volume was created from, that an AMI or any version of a
    launch template refers to, or that is shared with another account; a backup whose version still has a snapshot.
  - Lists everything with its price, and why it is kept.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  tags:
    description: Tags of the data set's snapshots and volumes. Must contain C(Project) and C(Dataset).
    type: dict
    required: true
  keep:
    description: Number of versions to keep, at least 1.
    type: int
    required: true
  prices_usd_gib_month:
    description: Prices per GiB and month, by C(snapshot), C(backup) and type of volume.
    type: dict
    required: true
  bucket:
    description: Bucket of the backups; all versions of their objects are removed. By default, backups are not touched.
    type: str
    default: ""
  s3_endpoint_url:
    description: S3 endpoint of the bucket, if it is not AWS. It does not apply to EC2.
    type: str
    default: ""
  s3_addressing_style:
    description:
      - How requests address the bucket; V(path) for most servers other than AWS. V(auto) leaves it to boto3.
    type: str
    choices: [auto, path, virtual]
    default: auto
  s3_ca_bundle:
    description: File with the CA certificates to trust, if those of the system are not enough.
    type: path
    default: ""
  s3_access_key:
    description: Access key for S3, if it is not that for EC2.
    type: str
    default: ""
  s3_secret_key:
    description: Secret key of I(s3_access_key).
    type: str
    default: ""
  s3_session_token:
    description: Session token, if I(s3_access_key) is temporary.
    type: str
    default: ""
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
attributes:
  check_mode:
    description: Reports what would be removed.
    support: full
  diff_mode:
    description: Lists the items before and after.
    support: full
"""

EXAMPLES = r"""
- name: Keep two versions
  version_retire:
    tags: {Project: imagenet-ops, Dataset: imagenet}
    keep: 2
    prices_usd_gib_month: {snapshot: 0.05, gp3: 0.08, sc1: 0.015}
    region: us-east-1

- name: Keep one version, with the backups on a server of our own
  version_retire:
    tags: {Project: imagenet-ops, Dataset: imagenet}
    keep: 1
    prices_usd_gib_month: {snapshot: 0.05, gp3: 0.08, sc1: 0.015, backup: 0.01}
    bucket: imagenet-backup
    s3_endpoint_url: https://s3.example.com
    s3_addressing_style: path
    region: us-east-1
"""

RETURN = r"""
kept_versions:
  description: The versions that are kept, the newest first.
  returned: success
  type: list
  elements: str
items:
  description: Everything that costs money. C(verdict) is C(removed), or why it is kept.
  returned: success
  type: list
  elements: dict
  sample:
    - kind: snapshot
      name: snap-0123456789abcdef0
      version: 0a1b2c3d4e5f
      size_gib: 150.0
      created: "2026-01-31 12:00:00"
      usd_month: 7.5
      verdict: removed
removed:
  description: How many of them were removed.
  returned: success
  type: int
usd_month_removed:
  description: What those cost in a month, at most; a snapshot shares blocks with others.
  returned: success
  type: float
usd_month_left:
  description: What the others cost in a month.
  returned: success
  type: float
"""

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.imagenet_ops.aws.s3 import s3_client
from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.ebs.retention import Retirement
from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "tags": {"type": "dict", "required": True},
            "keep": {"type": "int", "required": True},
            "prices_usd_gib_month": {"type": "dict", "required": True},
            "bucket": {"type": "str", "default": ""},
            "s3_endpoint_url": {"type": "str", "default": ""},
            "s3_addressing_style": {"type": "str", "choices": ["auto", "path", "virtual"], "default": "auto"},
            "s3_ca_bundle": {"type": "path", "default": ""},
            "s3_access_key": {"type": "str", "default": ""},
            "s3_secret_key": {"type": "str", "default": "", "no_log": True},
            "s3_session_token": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    given = module.params

    def work() -> Mapping[str, Any]:
        tags = {str(name): str(value) for name, value in given["tags"].items()}
        prices = {str(name): float(price) for name, price in given["prices_usd_gib_month"].items()}
        s3 = connect_to_s3() if given["bucket"] else None
        retirement = Retirement(module.client("ec2"), s3, tags, given["keep"], prices, given["bucket"])
        return retirement.run(check_mode=module.check_mode)

    def connect_to_s3() -> Any:
        """Return a client with the connection of EC2, or with one of its own where S3 is elsewhere."""
        keys = (given["s3_access_key"], given["s3_secret_key"], given["s3_session_token"])
        if not given["s3_endpoint_url"] and not any(keys):
            return module.client("s3")
        style, ca_bundle = given["s3_addressing_style"], given["s3_ca_bundle"]
        return s3_client(module.region or "", given["s3_endpoint_url"], 1, style, ca_bundle, keys)

    run(module, work)


if __name__ == "__main__":
    main()
