from __future__ import annotations

import boto3
import pytest
from ansible.module_utils.imagenet_ops.aws.clients import Ec2Client, KmsClient

from tests.fakes.clients import StubEc2


@pytest.mark.parametrize(("service", "interface"), [("ec2", Ec2Client), ("kms", KmsClient)])
def test_boto3_has_every_operation_of_the_interface(service: str, interface: type) -> None:
    client = boto3.client(service, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    operations = [name for name in vars(interface) if not name.startswith("_")]
    assert operations
    assert [name for name in operations if not callable(getattr(client, name, None))] == []


def test_the_stub_of_the_tests_expects_no_operation_of_the_interface() -> None:
    for name in vars(Ec2Client):
        if not name.startswith("_") and name != "get_paginator":
            with pytest.raises(AssertionError, match="nobody expects this call"):
                getattr(StubEc2(), name)()
