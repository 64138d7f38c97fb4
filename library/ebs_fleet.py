#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: ebs_fleet
short_description: Give every instance of a fleet its own EBS volume
description:
  - Creates a volume for each instance in the instance's own Availability Zone, from a snapshot or blank, attaches it to
    a free device name, and waits until it is attached, for all instances at once. Each takes two calls that change
    something (CreateVolume, AttachVolume); a few Describe calls serve all of them.
  - Volumes are identified by their tags, so a run resumes one that was killed, and a second run changes nothing. An
    instance whose volume is attached is not changed, whatever the volume's type and size.
  - An instance that does not exist, is not running, cannot attach another volume or whose volume is stuck is reported
    in C(failed_instances) with the reason; the others are served. The task itself fails only if nothing can be done for
    any instance.
  - Volumes with the same tags, of any version, whose instance was terminated are deleted.
  - With I(state=absent) it detaches and deletes volumes that carry all of I(tags), and no others. Unmount them first.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  state:
    description: Whether the instances are to have the volume or not.
    type: str
    choices: [present, absent]
    default: present
  instance_ids:
    description:
      - The instances.
      - With I(state=absent), an empty list means every volume that carries the tags.
    type: list
    elements: str
    required: true
  snapshot_id:
    description: Snapshot to create the volumes from. Without it they are blank, and I(size_gib) is required.
    type: str
  tags:
    description:
      - Tags that identify the volumes. They are set when a volume is created, along with C(InstanceId).
      - Must contain C(Project). Add the version of the data, so that a new version gets new volumes.
    type: dict
    required: true
  version_tag:
    description:
      - Which of I(tags) tells versions of the same data apart.
      - An instance's volumes of other versions are listed in C(superseded). They are kept, for they may be mounted;
        once they are unmounted, I(state=absent) with I(except_tags) removes them.
    type: str
    default: DatasetVersion
  except_tags:
    description: With I(state=absent), volumes that carry all of these are kept.
    type: dict
    default: {}
  name_prefix:
    description: Prefix of the C(Name) tag, followed by a dash and the instance's id. Without it there is no C(Name).
    type: str
    default: ""
  volume_type:
    description: Type of the volumes.
    type: str
    choices: [gp3, gp2, io2, io1, st1, sc1]
    default: gp3
  iops:
    description: IOPS to provision for each volume (gp3, io1, io2). By default, that of AWS.
    type: int
  throughput_mib_s:
    description: Throughput in MiB/s to provision for each volume (gp3). By default, that of AWS (125).
    type: int
  initialization_rate_mib_s:
    description:
      - Rate in MiB/s, 100 to 300, at which AWS loads each new volume from the snapshot, for a fee. By default, blocks
        are loaded on first read.
      - All volumes of a Region that are being initialized share a quota; M(warmup_plan) divides a fleet into waves.
    type: int
  size_gib:
    description: Size of each volume in GiB. By default, that of the snapshot.
    type: int
  encrypted:
    description: Whether the volumes are encrypted. A volume from an encrypted snapshot always is.
    type: bool
    default: true
  kms_key_id:
    description: KMS key to encrypt with. By default, the account's default key for EBS.
    type: str
  delete_on_termination:
    description:
      - Whether a volume is deleted when its instance is terminated. Without it, AWS keeps a volume that was attached to
        a running instance; the next run deletes it.
      - AttachVolume cannot set it, so it takes a third call for each new volume.
    type: bool
  delete_with_ephemeral:
    description:
      - Where I(delete_on_termination) is not given, delete a volume with its instance if that is a Spot instance or
        one of an Auto Scaling group. AWS ends these by itself, and nobody may run the next deployment for a long time.
    type: bool
    default: false
  attach_timeout_seconds:
    description:
      - How long a volume may be C(attaching) before it is detached and attached again on another device name, three
        times at most. An attachment that takes longer than a minute and a half rarely completes.
    type: int
    default: 90
  timeout_seconds:
    description: The longest that one volume may stay in one state, such as C(creating) or C(attaching).
    type: int
    default: 300
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
attributes:
  check_mode:
    description: Reports how many volumes would be created, attached or deleted. A volume to be created has an empty id.
    support: full
  diff_mode:
    description: Shows how many instances have the volume, before and after.
    support: full
"""

EXAMPLES = r"""
- name: Give every GPU host its volume
  ebs_fleet:
    instance_ids: "{{ groups['gpu'] | map('extract', hostvars, 'instance_id') | list }}"
    snapshot_id: snap-0123456789abcdef0
    volume_type: gp3
    throughput_mib_s: 500
    tags:
      Project: imagenet-ops
      Dataset: imagenet
      DatasetVersion: 1f2e3d4c5b6a
      Role: fleet
    region: us-east-1
  delegate_to: localhost
  run_once: true
  register: fleet

- name: Remove the hosts' volumes of other versions, once they are unmounted
  ebs_fleet:
    state: absent
    instance_ids: "{{ fleet.superseded | list }}"
    tags:
      Project: imagenet-ops
      Dataset: imagenet
      Role: fleet
    except_tags:
      DatasetVersion: 1f2e3d4c5b6a
    region: us-east-1
  delegate_to: localhost
  run_once: true
  when: fleet.superseded | length > 0
"""

RETURN = r"""
volumes:
  description: The volume of each instance that has it, by instance id. Empty with I(state=absent).
  returned: success
  type: dict
  sample:
    i-0123456789abcdef0:
      volume_id: vol-0123456789abcdef0
      volume_type: gp3
      zone: us-east-1a
      device_name: /dev/sdf
superseded:
  description: The volumes of other versions that instances in C(volumes) still have, by instance id.
  returned: success
  type: dict
  sample: {i-0123456789abcdef0: [vol-0fedcba9876543210]}
failed_instances:
  description: Why an instance could not be served and what to do, by instance id.
  returned: success
  type: dict
  sample: {i-0fedcba9876543210: "instance i-0fedcba9876543210 is stopped. Start it, or exclude it with --limit"}
ready:
  description: How many instances had their volume attached before.
  returned: with I(state=present)
  type: int
created:
  description: How many volumes were created.
  returned: success
  type: int
attached:
  description: How many volumes were attached.
  returned: success
  type: int
detached:
  description: How many volumes were detached.
  returned: success
  type: int
deleted:
  description: How many volumes were deleted; with I(state=present), those whose instance was terminated.
  returned: success
  type: int
api_calls:
  description: How many calls to EC2 changed something (mutating) and how many only read (describe), without retries.
  returned: success
  type: dict
  sample: {mutating: 12, describe: 6}
"""

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.ebs.fleet import Deployment, VolumeSettings
from ansible.module_utils.imagenet_ops.ebs.jobs import CLIENT_CONFIG, Ec2Jobs
from ansible.module_utils.imagenet_ops.ebs.removal import Removal
from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "instance_ids": {"type": "list", "elements": "str", "required": True},
            "snapshot_id": {"type": "str"},
            "tags": {"type": "dict", "required": True},
            "version_tag": {"type": "str", "default": "DatasetVersion"},
            "except_tags": {"type": "dict", "default": {}},
            "name_prefix": {"type": "str", "default": ""},
            "volume_type": {
                "type": "str",
                "choices": ["gp3", "gp2", "io2", "io1", "st1", "sc1"],
                "default": "gp3",
            },
            "iops": {"type": "int"},
            "throughput_mib_s": {"type": "int"},
            "initialization_rate_mib_s": {"type": "int"},
            "size_gib": {"type": "int"},
            "encrypted": {"type": "bool", "default": True},
            "kms_key_id": {"type": "str"},
            "delete_on_termination": {"type": "bool"},
            "delete_with_ephemeral": {"type": "bool", "default": False},
            "attach_timeout_seconds": {"type": "int", "default": 90},
            "timeout_seconds": {"type": "int", "default": 300},
        },
        required_if=[("state", "present", ["snapshot_id", "size_gib"], True)],
        supports_check_mode=True,
    )
    given = module.params
    tags, except_tags = (
        {str(name): str(value) for name, value in given[option].items()} for option in ("tags", "except_tags")
    )

    def work() -> Mapping[str, Any]:
        ec2 = Ec2Jobs(module.client("ec2", config=CLIENT_CONFIG), given["timeout_seconds"])
        if given["state"] == "absent":
            return Removal(ec2, tags, except_tags).absent(given["instance_ids"], check_mode=module.check_mode)
        settings = VolumeSettings(
            snapshot_id=given["snapshot_id"] or "",
            volume_type=given["volume_type"],
            iops=given["iops"] or 0,
            throughput_mib_s=given["throughput_mib_s"] or 0,
            initialization_rate_mib_s=given["initialization_rate_mib_s"] or 0,
            size_gib=given["size_gib"] or 0,
            kms_key_id=given["kms_key_id"] or "",
            encrypted=given["encrypted"],
            delete_on_termination=given["delete_on_termination"],
            delete_with_ephemeral=given["delete_with_ephemeral"],
            name_prefix=given["name_prefix"],
            attach_timeout_seconds=given["attach_timeout_seconds"],
        )
        fleet = Deployment(ec2, tags, settings, given["version_tag"])
        return fleet.present(given["instance_ids"], check_mode=module.check_mode)

    run(module, work)


if __name__ == "__main__":
    main()
