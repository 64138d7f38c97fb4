#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: dataset_convert
short_description: Add formats to a packed data set without decoding
description:
  - Writes the records of the data set in C(<root>) in further formats, from one that is there. No image is decoded, and
    neither the archives nor a tree are needed.
  - The result is the data set that M(recordio_pack) would have made with all formats at once, to the last byte of
    C(manifest.json). It is another version, for its manifest names more files.
  - The files that are there are not touched. A run that was killed is resumed; the manifest is replaced last.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  root:
    description: Folder of the data set, with C(manifest.json).
    type: path
    required: true
  state_dir:
    description: Folder for checkpoints, the one of M(recordio_pack).
    type: path
    required: true
  formats:
    description: The formats to have afterwards, besides those that are there; see M(recordio_pack).
    type: list
    elements: str
    choices: [recordio, webdataset, mds, tfrecord, parquet]
    required: true
  shard_mib:
    description: Size of the shards in MiB, as in M(recordio_pack). It must be that of the formats that are there.
    type: int
    default: 256
  source:
    description:
      - The format to read; the first one that is there if empty, of V(recordio), V(mds), V(webdataset), V(tfrecord),
        V(parquet).
      - V(tfrecord) and V(parquet) hold no ids. They are read twice, for the ids come from all names.
    type: str
    default: ""
  workers:
    description: Number of threads; V(0) for all processors that affinity and cgroup quota allow.
    type: int
    default: 0
attributes:
  check_mode:
    description: Says which formats the data set would have.
    support: full
  diff_mode:
    description: Shows version and formats before and after.
    support: full
requirements:
  - numpy
  - google-crc32c (for V(tfrecord))
  - pyarrow (for V(parquet))
seealso:
  - module: recordio_pack
  - module: recordio_verify
"""

EXAMPLES = r"""
- name: Add WebDataset shards to records that were packed last year
  dataset_convert:
    root: /data/imagenet
    state_dir: /data/imagenet/.state
    formats: [webdataset]
"""

RETURN = r"""
dataset_version:
  description: The first 12 hex digits of the SHA-256 of the manifest; empty in check mode if a format would be added.
  returned: success
  type: str
  sample: 3fb2a90c41d7
formats:
  description: The formats that the data set has.
  returned: success
  type: list
  elements: str
  sample: [recordio, webdataset]
records:
  description: Number of records of each split.
  returned: success
  type: dict
  sample: {"train": 1281167, "validation": 50000}
"""

import traceback
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.imagenet_ops.core.module import run

try:
    from ansible.module_utils.imagenet_ops.pack.convert import ConvertRequest, convert_dataset
except ImportError:
    IMPORT_ERROR = traceback.format_exc()
else:
    IMPORT_ERROR = ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
            "formats": {
                "type": "list",
                "elements": "str",
                "choices": ["recordio", "webdataset", "mds", "tfrecord", "parquet"],
                "required": True,
            },
            "shard_mib": {"type": "int", "default": 256},
            "source": {"type": "str", "default": ""},
            "workers": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    if IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("numpy"), exception=IMPORT_ERROR)

    def work() -> dict[str, Any]:
        options = module.params
        request = ConvertRequest(
            root=options["root"],
            state_dir=options["state_dir"],
            formats=options["formats"],
            shard_bytes=options["shard_mib"] * 1024 * 1024,
            source=options["source"],
            workers=options["workers"],
        )
        return convert_dataset(request, module.check_mode, module.warn)

    run(module, work)


if __name__ == "__main__":
    main()
