"""An AWS in the test's own process, for modules whose boto3 clients are their own; what Python 3.9 leaves out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from tests.conftest import ROOT

# What builds on amazon.aws runs on the controller, which has Python 3.11 or newer; the environment of 3.9 lacks it.
if sys.version_info < (3, 11):
    collect_ignore = [
        f"test_{module.stem}.py"
        for module in (ROOT / "library").glob("*.py")
        if "from ansible_collections.amazon.aws" in module.read_text(encoding="utf-8")
    ]


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of EC2 in us-east-1; other clients that the test makes see the same account."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    with mock_aws():
        yield boto3.client("ec2", region_name="us-east-1")
