"""What the default VPC of an account has and moto's lacks: the way to the internet."""

from __future__ import annotations

from typing import Any

from moto.ec2.models import ec2_backends

from lab.config import ACCOUNT_ID, REGION


def complete_default_vpc() -> None:
    """Give the default VPC its internet gateway, and its main route table the route there."""
    backend: Any = ec2_backends[ACCOUNT_ID][REGION]
    vpc = backend.get_default_vpc()
    gateway = backend.create_internet_gateway()
    backend.attach_internet_gateway(gateway.id, vpc.id)
    main = backend.describe_route_tables(filters={"vpc-id": [vpc.id], "association.main": ["true"]})[0]
    backend.create_route(main.id, "0.0.0.0/0", gateway_id=gateway.id)
