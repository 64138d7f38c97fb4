#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: s3_backup
short_description: Upload a packed data set to S3, checked end to end, the manifest last
description:
  - Uploads what the manifest of a data set names, that is archives, records and labels, and then the manifest itself.
    So a manifest in the bucket means that everything it names is there.
  - Each file is hashed while it is uploaded, and is not completed in the bucket unless its SHA-256 is the manifest's.
    S3 compares checksums too, and the stored object is queried after the upload.
  - An object is skipped only when its size and the SHA-256 in its metadata prove it equal, never by date. Its ETag is
    kept, by which a listing tells that it is still the same, so that a second run takes two requests for up to 1000
    objects. An object that was overwritten since has another ETag and is checked again.
  - A run that was killed is taken up where it stopped. Parts that S3 has already are not sent again, and other
    unfinished uploads under the prefix are aborted.
  - Shows live progress, and waits for another run on the same host to end.
  - Credentials come from boto3's default chain, so on an instance of EC2 from its instance profile.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  root:
    description: Folder of the data set, with C(manifest.json), C(archives), C(recordio) and C(labels.tsv).
    type: path
    required: true
  bucket:
    description: Name of the bucket. It must exist.
    type: str
    required: true
  prefix:
    description:
      - What the keys begin with. C(<dataset>/<dataset version>) where left out, so that each version has its own.
    type: str
    default: ""
  storage_class:
    description: Storage class of new objects. The server's default, V(STANDARD), where left out.
    type: str
    choices: ["", STANDARD, STANDARD_IA, ONEZONE_IA, INTELLIGENT_TIERING, GLACIER_IR]
    default: ""
  verify:
    description:
      - V(stored) gets size and checksums from S3 of every object that is uploaded.
      - V(full) also reads every object back, those that were there already too, and hashes it before the manifest goes
        up. An object that was there and is not right is uploaded again. Costs a download of everything.
    type: str
    choices: [stored, full]
    default: stored
  state_dir:
    description: Folder for the lock, the progress, and which uploads are unfinished.
    type: path
    required: true
  workers:
    description:
      - Parts in flight at a time. S3 takes 85 to 90 MB/s over one connection (its User Guide, "Performance design
        patterns"), so three send as fast as any sc1 volume can be read; further ones only take the processors from
        one another. More for faster disks and for servers far away.
      - Memory is that of these and four more parts, and about 70 MiB.
    type: int
    default: 3
  part_size_mib:
    description:
      - Size of the parts in MiB, at least 5. Larger for an object that would have more than 10,000 parts, which is all
        that S3 takes.
    type: int
    default: 16
  trees:
    description:
      - Splits whose trees C(<root>/<split>) go up too, as tars C(trees/<split>-00000-of-00147.tar) that are made while
        the files are read, and C(trees/<split>.json) with name, size, SHA-256 and number of files of each. The index
        goes up after its tars and before the manifest.
      - The bytes of a tar depend on names, sizes and contents alone. A second run looks at names, sizes and times, and
        reads no file of a tar that was proved. A tree that is not the one in the bucket is an error.
    type: list
    elements: str
    default: []
  shard_size_mib:
    description:
      - Size in MiB that a tar of a tree has at most, unless a single file is larger. It does not apply to a tree whose
        index is in the bucket, which stays as it was cut.
    type: int
    default: 1024
attributes:
  check_mode:
    description:
      - Says how many objects and bytes would be uploaded. Only asks the bucket.
      - A tar of a tree that is there and that this host never proved is judged by its size alone.
    support: full
  diff_mode:
    description: Shows how many of the objects are in the bucket, before and after.
    support: full
extends_documentation_fragment:
  - s3_connection
"""

EXAMPLES = r"""
- name: Back up the data set
  s3_backup:
    root: /data/imagenet
    state_dir: /data/imagenet/.state
    bucket: example-imagenet-backup
    bucket_owner: "123456789012"
    region: us-east-1
"""

RETURN = r"""
uploaded_objects:
  description: How many objects were uploaded, the manifest among them.
  returned: success
  type: int
uploaded_bytes:
  description: How many bytes were sent. Less than the size of the objects where an upload was taken up again.
  returned: success
  type: int
present_objects:
  description: How many objects were there already.
  returned: success
  type: int
size_bytes:
  description: Size of all objects of the backup, those that were there already too. S3 bills it each month.
  returned: success
  type: int
manifest_uri:
  description: Where the manifest is.
  returned: success
  type: str
  sample: s3://example-imagenet-backup/imagenet/1f2e3d4c5b6a/manifest.json
"""

import contextlib
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, s3_client
from ansible.module_utils.imagenet_ops.backup.backup import Backup, make_plan
from ansible.module_utils.imagenet_ops.backup.upload import MIB, READERS
from ansible.module_utils.imagenet_ops.core.files import exclusive
from ansible.module_utils.imagenet_ops.core.module import run

STORAGE_CLASSES = ["", "STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "bucket": {"type": "str", "required": True},
            "prefix": {"type": "str", "default": ""},
            "bucket_owner": {"type": "str", "default": ""},
            "region": {"type": "str", "default": ""},
            "endpoint_url": {"type": "str", "default": ""},
            "access_key": {"type": "str", "default": ""},
            "secret_key": {"type": "str", "default": "", "no_log": True},
            "session_token": {"type": "str", "default": "", "no_log": True},
            "addressing_style": {"type": "str", "choices": ["auto", "path", "virtual"], "default": "auto"},
            "ca_bundle": {"type": "path", "default": ""},
            "storage_class": {"type": "str", "choices": STORAGE_CLASSES, "default": ""},
            "verify": {"type": "str", "choices": ["stored", "full"], "default": "stored"},
            "state_dir": {"type": "path", "required": True},
            "workers": {"type": "int", "default": 3},
            "part_size_mib": {"type": "int", "default": 16},
            "trees": {"type": "list", "elements": "str", "default": []},
            "shard_size_mib": {"type": "int", "default": 1024},
        },
        supports_check_mode=True,
    )
    given = module.params
    for split in given["trees"]:
        if split in ("", ".", "..") or "/" in split:
            module.fail_json(msg=f"Option trees: {split!r} is not the name of a split. Name folders of the data set")

    def work() -> dict[str, Any]:
        plan = make_plan(given["root"])
        connections = given["workers"] + READERS
        endpoint = (given["endpoint_url"], connections, given["addressing_style"], given["ca_bundle"])
        keys = (given["access_key"], given["secret_key"], given["session_token"])
        client = s3_client(given["region"], *endpoint, keys)
        bucket = Bucket(client, given["bucket"], given["bucket_owner"], given["storage_class"])
        state_dir = given["state_dir"]
        backup = Backup(
            bucket,
            plan,
            state_dir,
            prefix=given["prefix"],
            workers=given["workers"],
            part_size_bytes=given["part_size_mib"] * MIB,
            read_back=given["verify"] == "full",
            trees=given["trees"],
            shard_bytes=given["shard_size_mib"] * MIB,
            warn=module.warn,
        )
        with contextlib.ExitStack() as held:
            if not module.check_mode:
                os.makedirs(state_dir, exist_ok=True)
                held.enter_context(exclusive(os.path.join(state_dir, "s3_backup.lock")))
            return backup.run(check_mode=module.check_mode)

    run(module, work)


if __name__ == "__main__":
    main()
