#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: warmup_plan
short_description: Estimate duration and cost of each warm-up strategy for a fleet, and select one
description:
  - A volume from a snapshot is cold, for it loads its blocks on first read. For a fleet this estimates how long each
    strategy to warm up its volumes takes and what it costs, selects one, and divides the fleet into the waves that
    quotas and credits require.
  - It only calculates; it calls no API and changes nothing.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  volumes:
    description: What M(ebs_fleet) returns in check mode; a volume without an id is to be created.
    type: dict
    required: true
  volume_size_gib:
    description: Size of the snapshot's volume.
    type: int
    required: true
  data_bytes:
    description: How much data the snapshot holds (C(FullSnapshotSizeInBytes)); 0 if unknown.
    type: int
    default: 0
  mode:
    description:
      - V(none) leaves the volumes cold, V(read) lets every host read the records once, V(rate) provisions an
        initialization rate, V(fsr) uses fast snapshot restore.
      - V(auto) selects the fastest that is known to cost no more than O(budget_usd).
    type: str
    choices: [auto, none, read, rate, fsr]
    default: auto
  budget_usd:
    description: The most that V(auto) may spend.
    type: float
    default: 0
  rate_mib_s:
    description: Initialization rate of a volume, 100 to 300 MiB/s.
    type: int
    default: 300
  quota_mib_s:
    description: Quota of the Region for all rates together.
    type: int
    default: 5000
  quota_tib:
    description:
      - Quota of the Region for the storage of all volumes of the type. The plan warns if those of the fleet exceed it.
    type: float
    default: 50
  rate_usd_per_gib_mib_s:
    description: Fee of the rate for a GiB of data and a MiB/s. Without it the price is unknown.
    type: float
  fsr_usd_per_hour:
    description: Fee of fast snapshot restore for an hour and a zone.
    type: float
    default: 0.75
  readers:
    description: Number of readers on each host with V(read).
    type: int
    default: 16
  reader_mib_s:
    description: Throughput of one reader on a cold volume.
    type: float
    default: 5
  throughput_mib_s:
    description: Throughput of the volumes.
    type: float
    default: 125
  hour_seconds:
    description: An hour of fast snapshot restore. Only the lab has another than AWS.
    type: float
    default: 3600
attributes:
  check_mode:
    description: Only calculates, so check mode does the same.
    support: full
  diff_mode:
    description: Changes nothing, so there is no difference to show.
    support: none
"""

EXAMPLES = r"""
- name: Plan the warm-up
  warmup_plan:
    volumes:
      i-0123456789abcdef0: {volume_id: "", zone: us-east-1a}
    volume_size_gib: 110
    data_bytes: 107374182400
    mode: rate
"""

RETURN = r"""
mode:
  description: The selected strategy.
  returned: success
  type: str
  sample: read
reason:
  description: Why it was selected.
  returned: success
  type: str
strategies:
  description: Each strategy with C(mode), C(seconds), C(usd) (null if the price is unknown) and C(note).
  returned: success
  type: list
  elements: dict
lines:
  description: The plan for people, line by line.
  returned: success
  type: list
  elements: str
waves:
  description: What is to be created one after the other, C(instance_ids) with the C(credits) needed by zone.
  returned: success
  type: list
  elements: dict
zones:
  description: How many volumes are to be created in each zone.
  returned: success
  type: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.ebs.warmup_plan import Costs, fleet_of, plan


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "volumes": {"type": "dict", "required": True},
            "volume_size_gib": {"type": "int", "required": True},
            "data_bytes": {"type": "int", "default": 0},
            "mode": {"type": "str", "choices": ["auto", "none", "read", "rate", "fsr"], "default": "auto"},
            "budget_usd": {"type": "float", "default": 0},
            "rate_mib_s": {"type": "int", "default": 300},
            "quota_mib_s": {"type": "int", "default": 5000},
            "quota_tib": {"type": "float", "default": 50},
            "rate_usd_per_gib_mib_s": {"type": "float"},
            "fsr_usd_per_hour": {"type": "float", "default": 0.75},
            "readers": {"type": "int", "default": 16},
            "reader_mib_s": {"type": "float", "default": 5},
            "throughput_mib_s": {"type": "float", "default": 125},
            "hour_seconds": {"type": "float", "default": 3600},
        },
        supports_check_mode=True,
    )
    given = module.params
    of_costs = (
        "rate_mib_s",
        "quota_mib_s",
        "quota_tib",
        "rate_usd_per_gib_mib_s",
        "fsr_usd_per_hour",
        "readers",
        "reader_mib_s",
        "throughput_mib_s",
        "hour_seconds",
    )

    def work() -> Mapping[str, Any]:
        fleet = fleet_of(given["volumes"], given["volume_size_gib"], given["data_bytes"])
        costs = Costs(**{name: given[name] for name in of_costs})
        return {"changed": False, **plan(fleet, costs, given["mode"], given["budget_usd"])}

    run(module, work)


if __name__ == "__main__":
    main()
