#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: launch_template_update
short_description: Create or update an EC2 launch template whose instances get a volume from a snapshot
description:
  - Creates the launch template, or a new version of it, whose block device mapping has the snapshot and whose user data
    is the given script, and makes that version the default.
  - All other settings of the latest version are kept, such as an image or a subnet that somebody else set. The same
    options again create no new version.
  - Instances require a token for their metadata (IMDSv2).
  - C(amazon.aws.ec2_launch_template) has no initialization rate, and creates a new version on each run once an option
    is no longer given, for a version inherits from the one before.
  - A template of that name without the tag C(Project) of I(tags) is refused.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  name:
    description: Name of the launch template.
    type: str
    required: true
  snapshot_id:
    description: Snapshot to create the volume of each instance from.
    type: str
    required: true
  user_data:
    description: The script that an instance runs at its first boot, at most 16 KiB. Not a place for secrets.
    type: str
    required: true
  tags:
    description: Tags of the template itself. Must contain C(Project). Its other tags are kept.
    type: dict
    required: true
  volume_tags:
    description: Tags that the volumes get at each launch.
    type: dict
    default: {}
  instance_tags:
    description: Tags that the instances get at each launch.
    type: dict
    default: {}
  device_name:
    description: Device name of the volume in the mapping. The instance itself uses another name.
    type: str
    default: /dev/sdf
  volume_type:
    description: Type of the volume.
    type: str
    choices: [gp3, gp2, io2, io1, st1, sc1]
    default: gp3
  iops:
    description: IOPS to provision (gp3, io1, io2). 0 leaves it to AWS.
    type: int
    default: 0
  throughput_mib_s:
    description: Throughput in MiB/s to provision (gp3). 0 leaves it to AWS (125).
    type: int
    default: 0
  size_gib:
    description: Size of the volume in GiB. 0 uses that of the snapshot.
    type: int
    default: 0
  initialization_rate_mib_s:
    description:
      - Rate in MiB/s, 100 to 300, at which EBS loads the snapshot into the volume; for a fee by the GiB of its data.
      - 0 loads blocks on first read.
    type: int
    default: 0
  kms_key_id:
    description: KMS key to encrypt the volume with. By default, that of the snapshot.
    type: str
    default: ""
  delete_on_termination:
    description: Whether the volume is deleted with its instance.
    type: bool
    default: true
  image_id:
    description: AMI. By default, that of the template is kept, or chosen at the launch.
    type: str
    default: ""
  instance_type:
    description: Instance type. By default, that of the template is kept.
    type: str
    default: ""
  key_name:
    description: Key pair. By default, that of the template is kept.
    type: str
    default: ""
  metadata_hops:
    description:
      - How many network hops the metadata service of the instances answers over (C(HttpPutResponseHopLimit)). A
        container on a bridge needs 2 to get the instance's role. 0 keeps that of the template, or leaves it to the AMI.
    type: int
    default: 0
  instance_profile:
    description: Name of the instance profile. By default, that of the template is kept.
    type: str
    default: ""
  security_group_ids:
    description: Security groups. By default, those of the template are kept.
    type: list
    elements: str
    default: []
  versions_kept:
    description: Number of versions to keep, the newest first. 0 keeps all.
    type: int
    default: 0
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
attributes:
  check_mode:
    description: Reports which version would be created. A template to be created has an empty id.
    support: full
  diff_mode:
    description: Shows the settings of the template before and after, the script as lines.
    support: full
"""

EXAMPLES = r"""
- name: Let autoscaled hosts come up with the data set
  launch_template_update:
    name: imagenet
    snapshot_id: snap-0123456789abcdef0
    user_data: "{{ lookup('ansible.builtin.template', 'mount_data.sh.j2') }}"
    throughput_mib_s: 500
    initialization_rate_mib_s: 300
    tags: {Project: imagenet-ops}
    region: us-east-1
"""

RETURN = r"""
template_id:
  description: Id of the launch template.
  returned: success
  type: str
  sample: lt-0123456789abcdef0
version:
  description: Number of the version that is the latest and the default now.
  returned: success
  type: int
deleted_versions:
  description: How many old versions were deleted.
  returned: success
  type: int
"""

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.ebs.launch_template import LaunchTemplateUpdate, TemplateSettings, VolumeMapping
from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "snapshot_id": {"type": "str", "required": True},
            "user_data": {"type": "str", "required": True},
            "tags": {"type": "dict", "required": True},
            "volume_tags": {"type": "dict", "default": {}},
            "instance_tags": {"type": "dict", "default": {}},
            "device_name": {"type": "str", "default": "/dev/sdf"},
            "volume_type": {
                "type": "str",
                "choices": ["gp3", "gp2", "io2", "io1", "st1", "sc1"],
                "default": "gp3",
            },
            "iops": {"type": "int", "default": 0},
            "throughput_mib_s": {"type": "int", "default": 0},
            "size_gib": {"type": "int", "default": 0},
            "initialization_rate_mib_s": {"type": "int", "default": 0},
            "kms_key_id": {"type": "str", "default": ""},
            "delete_on_termination": {"type": "bool", "default": True},
            "image_id": {"type": "str", "default": ""},
            "instance_type": {"type": "str", "default": ""},
            "key_name": {"type": "str", "default": ""},
            "metadata_hops": {"type": "int", "default": 0},
            "instance_profile": {"type": "str", "default": ""},
            "security_group_ids": {"type": "list", "elements": "str", "default": []},
            "versions_kept": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    given = module.params

    def tags(option: str) -> dict[str, str]:
        return {str(name): str(value) for name, value in given[option].items()}

    def work() -> Mapping[str, Any]:
        volume = VolumeMapping(
            device_name=given["device_name"],
            snapshot_id=given["snapshot_id"],
            volume_type=given["volume_type"],
            iops=given["iops"],
            throughput_mib_s=given["throughput_mib_s"],
            size_gib=given["size_gib"],
            initialization_rate_mib_s=given["initialization_rate_mib_s"],
            kms_key_id=given["kms_key_id"],
            delete_on_termination=given["delete_on_termination"],
        )
        settings = TemplateSettings(
            name=given["name"],
            volume=volume,
            user_data=given["user_data"],
            tags=tags("tags"),
            volume_tags=tags("volume_tags"),
            instance_tags=tags("instance_tags"),
            image_id=given["image_id"],
            instance_type=given["instance_type"],
            key_name=given["key_name"],
            metadata_hops=given["metadata_hops"],
            instance_profile=given["instance_profile"],
            security_group_ids=tuple(given["security_group_ids"]),
            versions_kept=given["versions_kept"],
        )
        return LaunchTemplateUpdate(module.client("ec2"), settings).present(check_mode=module.check_mode)

    run(module, work)


if __name__ == "__main__":
    main()
