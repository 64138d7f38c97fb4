#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: dataset_warm
short_description: Read a packed data set once, so that its lazily loaded volume is warm
description:
  - A volume made from a snapshot loads each block when it is first read, at a few MiB/s for one reader. This reads all
    that the manifest of a data set names, by many readers at once and past the page cache, and says how fast.
  - A run that was killed is taken up where it stopped, and a second run reads nothing. What was read is noted on the
    host, by the volume, for the volume may be mounted read-only.
  - Shows live progress, and waits for another run on the same host to end.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  root:
    description: Folder of the data set, with C(manifest.json).
    type: path
    required: true
  volume_id:
    description: The volume that it lies on. Another volume is read again.
    type: str
    required: true
  state_dir:
    description: Folder on the host for the lock, the progress and what was read; made where it is missing.
    type: path
    required: true
  readers:
    description: How many read at once.
    type: int
    default: 16
  formats:
    description: Of which formats the records are read, such as V(recordio) and V(webdataset); all that the data set has
      if it is empty.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Says how many bytes would be read.
    support: full
  diff_mode:
    description: Shows how many bytes were read, before and after.
    support: full
"""

EXAMPLES = r"""
- name: Warm the data set
  dataset_warm:
    root: /data/imagenet
    volume_id: vol-0123456789abcdef0
    state_dir: /var/lib/imagenet-ops
"""

RETURN = r"""
bytes:
  description: Size of the data set in bytes.
  returned: success
  type: int
read_bytes:
  description: How many bytes this run read.
  returned: success
  type: int
seconds:
  description: How long that took.
  returned: success
  type: float
mib_s:
  description: How fast that was, in MiB/s; 0 where nothing was to be read.
  returned: success
  type: float
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.dataset.warm import warm_dataset


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "volume_id": {"type": "str", "required": True},
            "state_dir": {"type": "path", "required": True},
            "readers": {"type": "int", "default": 16},
            "formats": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    run(
        module,
        lambda: warm_dataset(
            given["root"],
            given["volume_id"],
            given["state_dir"],
            given["readers"],
            given["formats"],
            check_mode=module.check_mode,
            warn=module.warn,
        ),
    )


if __name__ == "__main__":
    main()
