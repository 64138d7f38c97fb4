#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: recordio_verify
short_description: Verify a packed data set against its manifest
description:
  - Compares the files that M(recordio_pack) made with C(<root>/manifest.json) and with each other - sizes, index, list,
    number of records and of each class, range of labels - and decodes some of the images or all.
  - Fails at the first difference and names the file and, where it can, the byte. A record that is cut short is an
    error, never the end.
  - Writes nothing, so the data set may be mounted read-only.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  root:
    description: Folder of the data set.
    type: path
    required: true
  dataset_version:
    description: The version that it must be, that is the first 12 hex digits of the manifest's SHA-256.
    type: str
  verify:
    description:
      - V(sizes) compares the size of each file, reads indexes, lists and labels whole, and looks at O(decode_samples)
        records of each split. It takes seconds and finds what copying and mounting do wrong.
      - V(full) reads every byte, compares every SHA-256 and looks at each record. Where there are several formats, it
        also computes the hash over the content of each split again from each of them.
      - Of the formats besides RecordIO, V(sizes) reads the first records of some shards.
    type: str
    choices: [sizes, full]
    default: sizes
  reader:
    description:
      - V(imagenet_ops) reads as O(verify) and O(decode_samples) say.
      - V(mxnet) reads and decodes every record with MXNet's own ImageRecordIter instead, the reader that training uses,
        and compares their number and labels with manifest and lists. The module must run with the Python of an
        environment that has MXNet 1.9.1.
    type: str
    choices: [imagenet_ops, mxnet]
    default: imagenet_ops
  decode_samples:
    description: How many images of each split to decode, spread evenly, always the same ones; V(-1) means all. They
      are decoded in processes with limits of 15 seconds and 4 GiB, so that one that crashes its decoder is named.
    type: int
    default: 32
  formats:
    description: Of which formats the records must be there and are verified, such as V(recordio) and V(webdataset); all
      that the data set has if it is empty.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Only looks, so check mode does the same.
    support: full
  diff_mode:
    description: Nothing changes, so there is no difference to show.
    support: none
requirements:
  - numpy
  - opencv-python-headless
  - google-crc32c (for the format V(tfrecord))
  - pyarrow (for the format V(parquet); without it, the frame and the footer of each shard are verified)
  - mxnet 1.9.1 (for O(reader=mxnet))
"""

EXAMPLES = r"""
- name: See that the mounted data set is the one that was asked for
  recordio_verify:
    root: /data/imagenet
    dataset_version: 3fb2a90c41d7

- name: Read every byte and decode every image
  recordio_verify:
    root: /data/imagenet
    verify: full
    decode_samples: -1

- name: Read all of it with the reader that training uses
  recordio_verify:
    root: /data/imagenet
    reader: mxnet
  vars:
    ansible_python_interpreter: /opt/imagenet-ops-mxnet/bin/python
"""

RETURN = r"""
dataset_version:
  description: The first 12 hex digits of the manifest's SHA-256.
  returned: success
  type: str
  sample: 3fb2a90c41d7
manifest_sha256:
  description: SHA-256 of C(manifest.json).
  returned: success
  type: str
records:
  description: Number of records of each split.
  returned: success
  type: dict
  sample: {"train": 1281167, "validation": 50000}
classes:
  description: Number of classes.
  returned: success
  type: int
  sample: 1000
bytes:
  description: Size of the records' files together, in bytes, in all O(formats).
  returned: success
  type: int
formats:
  description: The formats that were verified.
  returned: success
  type: list
  elements: str
  sample: [recordio]
content_sha256:
  description:
    - SHA-256 over name, label and image of all records of each split, equal for all formats; empty for a data set
      that has RecordIO alone.
  returned: success
  type: dict
mib_s:
  description: How fast O(verify=full) read and verified them, in MiB/s; 0 where not every byte was read.
  returned: success
  type: float
decoded:
  description: How many images were decoded.
  returned: success
  type: int
  sample: 64
"""

import traceback
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.imagenet_ops.core.module import run

try:
    from ansible.module_utils.imagenet_ops.dataset.verify import verify_dataset
    from ansible.module_utils.imagenet_ops.dataset.verify_mxnet import read_with_mxnet
    from ansible.module_utils.imagenet_ops.pack.decoder import DecodeCheck
except ImportError:
    IMPORT_ERROR = traceback.format_exc()
else:
    IMPORT_ERROR = ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "dataset_version": {"type": "str"},
            "verify": {"type": "str", "choices": ["sizes", "full"], "default": "sizes"},
            "reader": {"type": "str", "choices": ["imagenet_ops", "mxnet"], "default": "imagenet_ops"},
            "decode_samples": {"type": "int", "default": 32},
            "formats": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    if IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("numpy and opencv-python-headless"), exception=IMPORT_ERROR)

    def work() -> dict[str, Any]:
        options = module.params
        if options["reader"] == "mxnet":
            return read_with_mxnet(options["root"], options["dataset_version"])
        full = options["verify"] == "full"
        root, version, samples = (options[name] for name in ("root", "dataset_version", "decode_samples"))
        with DecodeCheck() as decode:
            return verify_dataset(root, version, full, samples, decode, options["formats"])

    run(module, work)


if __name__ == "__main__":
    main()
