#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: ebs_mount
short_description: Mount an EBS volume, and prove that it is what is mounted
description:
  - Waits for the volume's device, finds it by its id and compares its serial number, mounts it with C(nofail), keeps
    its line in fstab, and checks that this very device is what is mounted then. All in one task, for a task costs a
    fleet of 64 hosts ten seconds.
  - Formats only with I(format_allowed), and then only a device on which neither blkid nor wipefs finds anything. One
    with a filesystem of another type, a partition table, or a RAID, LVM or LUKS signature is refused.
  - Whatever else is mounted at the path is refused, except with I(replace_volume_ids) or I(replace_any); even then
    it is not unmounted while processes have files of it open, except with I(lazy_unmount).
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
    description: Type of the filesystem that the volume holds, or gets with I(format_allowed).
    type: str
    default: ext4
  read_only:
    description: Mount it read-only.
    type: bool
    default: true
  mount_by:
    description:
      - How fstab names the filesystem. C(device) suits copies of one filesystem, which all have the same UUID, on one
        host. C(uuid) is how other tools name it.
    type: str
    choices: [device, uuid]
    default: device
  format_allowed:
    description: Create the filesystem if the volume is blank. Requires I(read_only=false).
    type: bool
    default: false
  mkfs_options:
    description: Options of mkfs for I(format_allowed), separated by spaces.
    type: str
    default: ""
  owner:
    description:
      - Owner of the root of the mounted filesystem, by name or number; its mode becomes 0755. Requires
        I(read_only=false).
    type: str
    default: ""
  group:
    description: Group of the root of the mounted filesystem, as I(owner).
    type: str
    default: ""
  replace_volume_ids:
    description: Volumes that may be unmounted from I(path), as a rule C(superseded) of M(ebs_fleet).
    type: list
    elements: str
    default: []
    aliases: [replaces]
  replace_any:
    description: Unmount whatever is mounted at I(path).
    type: bool
    default: false
  lazy_unmount:
    description:
      - Unmount what is replaced even if processes have files of it open. They keep these until they close them; what
        they open from then on is of the new volume.
    type: bool
    default: false
    aliases: [disturb]
  timeout_seconds:
    description: How long to wait for the device. Attaching takes EC2 some seconds, and udev another moment.
    type: int
    default: 120
attributes:
  check_mode:
    description: Reports what would be formatted and mounted; needs the device, as it reads what is on it.
    support: full
  diff_mode:
    description: Shows fstab and what is mounted at the path, before and after.
    support: full
requirements:
  - util-linux (lsblk, blkid, wipefs, mount)
  - e2fsprogs or xfsprogs (mkfs), only with I(format_allowed)
seealso:
  - module: ebs_fleet
  - module: ebs_device_info
"""

EXAMPLES = r"""
- name: Mount the data set
  ebs_mount:
    volume_id: "{{ fleet.volumes[instance_id].volume_id }}"
    path: /data
    replace_volume_ids: "{{ fleet.superseded[instance_id] | default([]) }}"
  become: true

- name: Mount the data volume, and format it if it is blank
  ebs_mount:
    volume_id: vol-0123456789abcdef0
    path: /data
    read_only: false
    format_allowed: true
    mkfs_options: -m 0
    mount_by: uuid
    owner: ec2-user
  become: true
"""

RETURN = r"""
device:
  description: The stable path of the device.
  returned: success
  type: str
  sample: /dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0
formatted:
  description: Whether the filesystem was created.
  returned: success
  type: bool
released:
  description:
    - Whether nothing on this host uses any volume of I(replace_volume_ids) any more, so that they can be detached.
      False if there is none.
  returned: success
  type: bool
"""

import shlex
from collections.abc import Mapping
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
            "fstype": {"type": "str", "default": "ext4"},
            "read_only": {"type": "bool", "default": True},
            "mount_by": {"type": "str", "choices": ["device", "uuid"], "default": "device"},
            "format_allowed": {"type": "bool", "default": False},
            "mkfs_options": {"type": "str", "default": ""},
            "owner": {"type": "str", "default": ""},
            "group": {"type": "str", "default": ""},
            "replace_volume_ids": {"type": "list", "elements": "str", "default": [], "aliases": ["replaces"]},
            "replace_any": {"type": "bool", "default": False},
            "lazy_unmount": {"type": "bool", "default": False, "aliases": ["disturb"]},
            "timeout_seconds": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    given = {name: value for name, value in module.params.items() if name not in ("replaces", "disturb")}
    lists = {
        "mkfs_options": tuple(shlex.split(given["mkfs_options"])),
        "replace_volume_ids": tuple(given["replace_volume_ids"]),
    }
    request = MountRequest(**{**given, **lists})

    def work() -> Mapping[str, Any]:
        return mount_volume(Host(run_command=module.run_command), request, check_mode=module.check_mode)

    run(module, work)


if __name__ == "__main__":
    main()
