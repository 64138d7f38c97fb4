#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: manifest_info
short_description: Read the manifest of a packed data set
description:
  - Says which version of the data set lies in a directory, how much it holds, and how large a volume must be that holds
    nothing else.
  - Reads the manifest alone; M(recordio_verify) compares the files with it.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  root:
    description: The directory that holds C(manifest.json).
    type: path
    required: true
  formats:
    description: Of which formats the records count, such as V(recordio) and V(webdataset); all that the data set has if
      it is empty.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Only reads, so check mode does the same.
    support: full
seealso:
  - module: recordio_verify
  - module: dataset_copy
"""

EXAMPLES = r"""
- name: Read the manifest
  manifest_info:
    root: /data/imagenet
  register: manifest
"""

RETURN = r"""
dataset_version:
  description: The first 12 hex digits of the manifest's SHA-256.
  returned: success
  type: str
  sample: 3fb2a90c41d7
records:
  description: How many records each split has.
  returned: success
  type: dict
  sample: {train: 1281167, validation: 50000}
classes:
  description: How many classes there are.
  returned: success
  type: int
  sample: 1000
bytes:
  description: How many bytes records, indexes, lists, labels and manifest have, taken together.
  returned: success
  type: int
deploy_volume_gib:
  description: Size in GiB of the smallest volume that holds those files, made with C(mkfs.ext4 -m 0 -T largefile4).
  returned: success
  type: int
  sample: 62
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.dataset.copy import manifest_info


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "formats": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )

    def work() -> dict[str, Any]:
        return manifest_info(module.params["root"], module.params["formats"])

    run(module, work)


if __name__ == "__main__":
    main()
