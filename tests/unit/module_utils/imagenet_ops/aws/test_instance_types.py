from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.aws.instance_types import zones_with
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from botocore.exceptions import ClientError

from tests.fakes.clients import StubEc2


class Offerings(StubEc2):
    """Two pages of offerings, or a refusal."""

    def __init__(self, denied: bool = False) -> None:
        self.denied = denied
        self.requests: list[dict[str, Any]] = []

    def describe_instance_type_offerings(self, **request: Any) -> dict[str, Any]:
        self.requests.append(request)
        if self.denied:
            raise ClientError(
                {"Error": {"Code": "UnauthorizedOperation", "Message": "You are not authorized"}},
                "DescribeInstanceTypeOfferings",
            )
        if "NextToken" in request:
            return {"InstanceTypeOfferings": [{"Location": "us-east-1a"}]}
        return {"InstanceTypeOfferings": [{"Location": "us-east-1c"}], "NextToken": "2"}


def test_zones_of_all_pages_sorted() -> None:
    ec2 = Offerings()
    assert zones_with(ec2, "c6i.xlarge") == ["us-east-1a", "us-east-1c"]
    assert ec2.requests[0]["LocationType"] == "availability-zone"
    assert ec2.requests[0]["Filters"] == [{"Name": "instance-type", "Values": ["c6i.xlarge"]}]


def test_a_refusal_names_what_was_looked_for() -> None:
    with pytest.raises(OpsError, match=r"^The zones with c6i.xlarge: UnauthorizedOperation: You are not authorized"):
        zones_with(Offerings(denied=True), "c6i.xlarge")
