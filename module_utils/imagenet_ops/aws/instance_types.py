"""Where instance types are offered."""

from __future__ import annotations

from ansible.module_utils.imagenet_ops.aws.calls import call_list
from ansible.module_utils.imagenet_ops.aws.clients import PagingClient


def zones_with(ec2: PagingClient, instance_type: str) -> list[str]:
    """Return the names of the Region's zones that offer ``instance_type``, sorted; none where nobody knows it."""
    offerings = call_list(
        ec2,
        "describe_instance_type_offerings",
        "InstanceTypeOfferings",
        f"The zones with {instance_type}",
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": [instance_type]}],
    )
    return sorted(offering["Location"] for offering in offerings)
