#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: ebs_mount
short_description: Mount an EBS volume of a fleet read-only, and prove that it is what is mounted
description:
  - Waits for the volume's device, finds it by its id and compares its serial number, mounts it read-only with
    C(nofail), keeps its line in fstab, and looks whether that very device is what is mounted then. All in one task, for
    a task costs a fleet of 64 hosts ten seconds.
  - Never formats. A filesystem of another type than expected, or anything else at the path, is left alone.
  - Copies of one filesystem, which all have the same UUID, may be on one host, for the device names the volume.
  - A volume in I(replaces) that is mounted at the path is unmounted first, unless programs have files of it open.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  volume_id:
    description: Id of the volume, which must be attached to this host.
    type: str
    required: true
  path:
    description: Where to mount it.
    type: path
    required: true
  fstype:
    description: The filesystem that the volume holds.
    type: str
    choices: [ext4, xfs]
    default: ext4
  replaces:
    description: Volumes that may be unmounted from I(path), as a rule C(superseded) of M(ebs_fleet).
    type: list
    elements: str
    default: []
  disturb:
    description:
      - Unmount a volume in I(replaces) even if programs have files of it open. They keep these until they close them;
        what they open from then on is of the new volume.
    type: bool
    default: false
  timeout_seconds:
    description: How long to wait for the device. Attaching takes EC2 some seconds, and udev another moment.
    type: int
    default: 120
attributes:
  check_mode:
    description: Says what would be mounted; needs the device, as it looks at what is on it.
    support: full
  diff_mode:
    description: Shows fstab and what is mounted at the path, before and after.
    support: full
requirements:
  - util-linux (lsblk, blkid, wipefs, mount)
seealso:
  - module: ebs_fleet
  - module: ebs_device_info
"""

EXAMPLES = r"""
- name: Mount the data set
  ebs_mount:
    volume_id: "{{ fleet.volumes[instance_id].volume_id }}"
    path: /data
    replaces: "{{ fleet.superseded[instance_id] | default([]) }}"
  become: true
"""

RETURN = r"""
device:
  description: The stable path of the device.
  returned: success
  type: str
  sample: /dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0
released:
  description:
    - Whether nothing on this host uses any volume of I(replaces) any more, so that they can be detached. False where
      there is none.
  returned: success
  type: bool
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.host.devices import Host
from ansible.module_utils.imagenet_ops.host.mount import MountRequest, mount_volume


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "volume_id": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "fstype": {"type": "str", "choices": ["ext4", "xfs"], "default": "ext4"},
            "replaces": {"type": "list", "elements": "str", "default": []},
            "disturb": {"type": "bool", "default": False},
            "timeout_seconds": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    given = module.params
    request = MountRequest(**{**given, "replaces": tuple(given["replaces"])})

    def work() -> dict[str, Any]:
        return mount_volume(Host(run_command=module.run_command), request, check_mode=module.check_mode)

    run(module, work)


if __name__ == "__main__":
    main()
