#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: dataset_copy
short_description: Copy what GPU hosts need of a packed data set
description:
  - Copies records, indexes, lists, labels and manifest to another directory, as a rule on a volume that is then
    snapshotted for a fleet, and nothing else of what lies beside them.
  - Every file is hashed on the way and compared with the manifest. It gets its name when it is whole and on disk, and
    the manifest goes last.
  - A run that was killed resumes where it stopped, also within a file; a second run changes nothing.
  - Its progress is written to C(<state_dir>/dataset_copy.progress.json).
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  root:
    description: The data set's directory, which holds C(manifest.json).
    type: path
    required: true
  dest:
    description: The directory to copy to; it is made where it is missing.
    type: path
    required: true
  state_dir:
    description: Where lock and progress are kept.
    type: path
    required: true
  formats:
    description: Of which formats the records are copied, such as V(recordio) and V(webdataset); all that the data set
      has if it is empty.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Says what would be copied.
    support: full
  diff_mode:
    description: There is no diff.
    support: none
seealso:
  - module: manifest_info
"""

EXAMPLES = r"""
- name: Copy the records to the volume for the fleet
  dataset_copy:
    root: /data/imagenet
    dest: /mnt/imagenet-deploy/imagenet
    state_dir: /data/imagenet/.state
  become: true
"""

RETURN = r"""
dataset_version:
  description: The first 12 hex digits of the manifest's SHA-256.
  returned: success
  type: str
  sample: 3fb2a90c41d7
files:
  description: How many files the copy has.
  returned: success
  type: int
copied:
  description: How many of them were missing and copied by this run.
  returned: success
  type: int
bytes:
  description: How many bytes records, indexes, lists and labels have, taken together.
  returned: success
  type: int
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.dataset.copy import copy_dataset


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "dest": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
            "formats": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )

    def work() -> dict[str, Any]:
        given = module.params
        paths = (given["root"], given["dest"], given["state_dir"])
        return copy_dataset(*paths, given["formats"], check_mode=module.check_mode)

    run(module, work)


if __name__ == "__main__":
    main()
