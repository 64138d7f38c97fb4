#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: ebs_device_info
short_description: Find the device of an EBS volume on this host, and its filesystem
description:
  - Waits until the volume appears as a device on an instance of the Nitro system and returns its stable path in
    C(/dev/disk/by-id). Names such as C(/dev/sdf) and C(/dev/nvme1n1) are never used, as they change with each boot.
  - Reads the serial number back from the device, so that a stale link is noticed.
  - Reports which filesystem it holds, read from the device itself, and whether the device is blank.
  - Never writes. Needs root, for it reads the device.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  volume_id:
    description: Id of the volume.
    type: str
    required: true
  timeout_seconds:
    description: How long to wait for the device. Attaching takes EC2 some seconds, and udev another moment.
    type: int
    default: 60
  mount_path:
    description: A directory to look at; C(mounted_source) says what is mounted there, whichever device that is.
    type: path
attributes:
  check_mode:
    description: Only looks, so check mode does the same.
    support: full
requirements:
  - util-linux (lsblk, blkid, wipefs)
"""

EXAMPLES = r"""
- name: Find the data volume
  ebs_device_info:
    volume_id: vol-0123456789abcdef0
  become: true
  register: data_device

- name: Mount it by its stable name
  ansible.posix.mount:
    path: /data
    src: "{{ data_device.device }}"
    fstype: "{{ data_device.fstype }}"
    opts: ro,nofail
    state: mounted
  become: true
"""

RETURN = r"""
device:
  description: The stable path of the device.
  returned: success
  type: str
  sample: /dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0
real_device:
  description: Where it leads at this moment. For logs, not for configuration.
  returned: success
  type: str
  sample: /dev/nvme1n1
serial:
  description: The serial number of the device, which was compared with the volume's id.
  returned: success
  type: str
  sample: vol0123456789abcdef0
fstype:
  description: The type of the filesystem (or of a RAID or LVM member), empty if there is none or it is unknown.
  returned: success
  type: str
  sample: ext4
uuid:
  description: The UUID of the filesystem, empty where there is none.
  returned: success
  type: str
label:
  description: The label of the filesystem, empty where there is none.
  returned: success
  type: str
blank:
  description:
    - Whether there is nothing at all on the device, neither a filesystem nor a partition table nor a RAID, LVM or LUKS
      signature. False also where signatures contradict one another.
  returned: success
  type: bool
size_bytes:
  description: The size of the device in bytes.
  returned: success
  type: int
mount_points:
  description: Where the device is mounted now.
  returned: success
  type: list
  elements: str
mounted_source:
  description: What is mounted at I(mount_path) now. Empty where nothing is, or where no I(mount_path) was given.
  returned: success
  type: str
  sample: /dev/nvme1n1
"""

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.host.devices import Host, device_info


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "volume_id": {"type": "str", "required": True},
            "timeout_seconds": {"type": "int", "default": 60},
            "mount_path": {"type": "path"},
        },
        supports_check_mode=True,
    )

    def work() -> Mapping[str, Any]:
        host = Host(run_command=module.run_command)
        options = module.params
        found = device_info(host, options["volume_id"], options["timeout_seconds"], options["mount_path"])
        return {"changed": False, **found}

    run(module, work)


if __name__ == "__main__":
    main()
