#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: s3_restore
short_description: Restore a data set from S3, checked end to end, the manifest last
description:
  - Downloads what the manifest in the bucket names, over several connections and several files at a time, and then
    writes the manifest itself. So a manifest in I(root) means that everything that was requested is there.
  - Each file is hashed while it arrives and gets its name only when its SHA-256 is the manifest's. Until then it is
    C(<file>.part), with what of it is safe in C(<file>.part.json). A run that was killed is taken up where it stopped.
  - An object that the manifest names and the bucket does not have, or has in another size, is an error before the first
    byte is taken. So is a lack of space. An object that is changed during the restore is noticed by its ETag.
  - A file that is there already is hashed once and kept where it is right. A wrong one is left alone, and an error,
    unless I(replace) is set. A second run hashes nothing and asks the bucket three times, and once more for each tree.
  - Archives that were restored count as verified for M(archive_fetch).
  - Shows live progress, and waits for another run on the same host to end. Needs less than 300 MiB of memory.
  - Credentials come from boto3's default chain, so on an instance of EC2 from its instance profile.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  root:
    description: Folder for the data set. Made where it is missing.
    type: path
    required: true
  bucket:
    description: Name of the bucket.
    type: str
    required: true
  dataset:
    description: Name of the data set, under which its versions lie in the bucket. Needed unless I(prefix) is given.
    type: str
    default: ""
  dataset_version:
    description: The first 12 hex digits of the manifest's SHA-256. The newest backup where left out.
    type: str
    default: ""
  prefix:
    description: What the keys begin with, where that is not C(<dataset>/<dataset version>).
    type: str
    default: ""
  content:
    description:
      - V(all) restores archives, records, labels and manifest; V(records) all but the archives.
      - V(archives) restores the archives alone and no manifest, to pack them again.
    type: str
    choices: [all, records, archives]
    default: all
  trees:
    description:
      - Splits whose trees C(<root>/<split>) come back too, from the tars that I(trees) of M(s3_backup) made. The tars
        are unpacked while they come, each proved by its SHA-256, and none is ever on the disk.
      - The tree grows in C(<root>/<split>.restoring) and gets its name when it is complete. A run that was killed is
        taken up at the tars that were not proved. What is not a file below the tree is refused.
      - A tree that is there already is read once and kept where it is right; later runs look at names, sizes and
        times. One of class directories then counts as laid out for M(imagenet_layout).
    type: list
    elements: str
    default: []
  replace:
    description: Replace files, trees, and a manifest of another version, that are there and are not what they must be.
    type: bool
    default: false
  state_dir:
    description: Folder for the lock, the progress, and which files were verified.
    type: path
    required: true
  connections:
    description: How many connections to use at a time.
    type: int
    default: 8
attributes:
  check_mode:
    description:
      - Says how many files and bytes would be restored; only asks the bucket. A file that is there and was never
        hashed is judged by its size alone, and a tree by names and sizes.
    support: full
  diff_mode:
    description: Shows how many of the files are there, before and after.
    support: full
extends_documentation_fragment:
  - s3_connection
seealso:
  - module: s3_backup
  - module: recordio_verify
"""

EXAMPLES = r"""
- name: Restore the newest backup
  s3_restore:
    root: /data/imagenet
    state_dir: /data/imagenet/.state
    bucket: example-imagenet-backup
    dataset: imagenet
    region: us-east-1

- name: Restore the newest backup, with the trees
  s3_restore:
    root: /data/imagenet
    state_dir: /data/imagenet/.state
    bucket: example-imagenet-backup
    dataset: imagenet
    trees: [train, validation]
    region: us-east-1

- name: Restore the records of one version from a server of our own
  s3_restore:
    root: /data/imagenet
    state_dir: /data/imagenet/.state
    bucket: imagenet-backup
    dataset: imagenet
    dataset_version: 1f2e3d4c5b6a
    content: records
    endpoint_url: https://s3.example.com
    addressing_style: path
    ca_bundle: /etc/ssl/certs/example.pem
    region: us-east-1
"""

RETURN = r"""
restored_files:
  description: How many files were restored, those of trees and the manifest among them.
  returned: success
  type: int
restored_bytes:
  description: How many bytes this run downloaded, without the manifest; of trees, the bytes of their tars.
  returned: success
  type: int
resumed_bytes:
  description: How many bytes earlier runs had left of files and trees that were not complete.
  returned: success
  type: int
needed_bytes:
  description:
    - How much disk the run needed at most when it began, or in check mode would need. A run that finds less free
      ends before the first byte is taken.
  returned: success
  type: int
present_files:
  description: How many files were there already, the manifest aside.
  returned: success
  type: int
dataset_version:
  description: The first 12 hex digits of the manifest's SHA-256.
  returned: success
  type: str
  sample: 1f2e3d4c5b6a
manifest_uri:
  description: Where the manifest is in the bucket.
  returned: success
  type: str
  sample: s3://example-imagenet-backup/imagenet/1f2e3d4c5b6a/manifest.json
"""

import contextlib
import os
from dataclasses import fields
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, s3_client
from ansible.module_utils.imagenet_ops.backup.request import RestoreRequest
from ansible.module_utils.imagenet_ops.backup.restore import Restore
from ansible.module_utils.imagenet_ops.core.files import exclusive
from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.dataset.manifest import CONTENTS


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "bucket": {"type": "str", "required": True},
            "dataset": {"type": "str", "default": ""},
            "dataset_version": {"type": "str", "default": ""},
            "prefix": {"type": "str", "default": ""},
            "content": {"type": "str", "choices": list(CONTENTS), "default": "all"},
            "trees": {"type": "list", "elements": "str", "default": []},
            "replace": {"type": "bool", "default": False},
            "bucket_owner": {"type": "str", "default": ""},
            "region": {"type": "str", "default": ""},
            "endpoint_url": {"type": "str", "default": ""},
            "access_key": {"type": "str", "default": ""},
            "secret_key": {"type": "str", "default": "", "no_log": True},
            "session_token": {"type": "str", "default": "", "no_log": True},
            "addressing_style": {"type": "str", "choices": ["auto", "path", "virtual"], "default": "auto"},
            "ca_bundle": {"type": "path", "default": ""},
            "state_dir": {"type": "path", "required": True},
            "connections": {"type": "int", "default": 8},
        },
        supports_check_mode=True,
    )
    given = module.params
    if not given["dataset"] and not given["prefix"]:
        module.fail_json(msg="Option dataset: neither it nor prefix says what to restore. Name the data set")
    for split in given["trees"]:
        if split in ("", ".", "..") or "/" in split:
            module.fail_json(msg=f"Option trees: {split!r} is not the name of a split. Name splits of the data set")

    def work() -> dict[str, Any]:
        request = RestoreRequest(**{field.name: given[field.name] for field in fields(RestoreRequest)})
        client = s3_client(
            given["region"],
            given["endpoint_url"],
            given["connections"],
            given["addressing_style"],
            given["ca_bundle"],
            (given["access_key"], given["secret_key"], given["session_token"]),
        )
        with contextlib.ExitStack() as held:
            if not module.check_mode:
                os.makedirs(request.state_dir, exist_ok=True)
                held.enter_context(exclusive(os.path.join(request.state_dir, "s3_restore.lock")))
            restore = Restore(Bucket(client, given["bucket"], given["bucket_owner"]), request, module.warn)
            return restore.run(check_mode=module.check_mode)

    run(module, work)


if __name__ == "__main__":
    main()
