"""The evaluation of IAM policies: AWS's documented examples, and the verdicts of a simulator that is not ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.policies import Decision, PolicyError, Request, decide

# What iam-simulate 0.1.173 of cloud-copilot says of random policies and requests (tests/fixtures/README.md).
VERDICTS = json.loads((Path(__file__).parents[2] / "fixtures" / "policies" / "verdicts.json").read_text())
VOLUME = "arn:aws:ec2:us-east-1:123456789012:volume/vol-1"


def policy(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Resource": "*", **one} for one in statements]}


def allows(statement: dict[str, Any], action: str, resource: str = VOLUME, **context: Any) -> bool:
    keys = {name.replace("__", "/").replace("_", ":", 1): value for name, value in context.items()}
    return decide([policy(statement)], Request(action, resource, keys)) is Decision.ALLOWED


def test_another_simulator_comes_to_the_same_decisions() -> None:
    found = [
        decide([case["policy"]], Request(case["action"], case["resource"], case["context"])).name for case in VERDICTS
    ]
    assert [(case, name) for case, name in zip(VERDICTS, found, strict=True) if case["verdict"] != name] == []
    assert set(found) == {"ALLOWED", "DENIED", "NOT_ALLOWED"}


@pytest.mark.parametrize(
    ("requested", "decision"),
    [
        # IAM User Guide, "Creating a condition that tests multiple key values": GetItem of a table's attributes.
        (["PostDateTime", "Message"], Decision.ALLOWED),
        (["PostDateTime", "UserName"], Decision.NOT_ALLOWED),
        (["ID"], Decision.NOT_ALLOWED),
        ([], Decision.ALLOWED),
        (None, Decision.ALLOWED),
    ],
)
def test_for_all_values_as_aws_documents_it(requested: list[str] | None, decision: Decision) -> None:
    condition = {"ForAllValues:StringLike": {"dynamodb:requestedAttributes": ["PostDateTime", "Message", "Tags"]}}
    context = {} if requested is None else {"dynamodb:requestedAttributes": requested}
    document = policy({"Action": "dynamodb:GetItem", "Condition": condition})
    assert decide([document], Request("dynamodb:GetItem", "*", context)) is decision


@pytest.mark.parametrize(
    ("requested", "decision"),
    [
        # The same page: PutItem with the attributes ID and PostDateTime is denied, whatever else it has.
        (["UserName", "Message", "PostDateTime"], Decision.DENIED),
        (["UserName"], Decision.ALLOWED),
        ([], Decision.ALLOWED),
        (None, Decision.ALLOWED),
    ],
)
def test_for_any_value_as_aws_documents_it(requested: list[str] | None, decision: Decision) -> None:
    condition = {"ForAnyValue:StringLike": {"dynamodb:requestedAttributes": ["ID", "PostDateTime"]}}
    context = {} if requested is None else {"dynamodb:requestedAttributes": requested}
    document = policy({"Action": "*"}, {"Effect": "Deny", "Action": "dynamodb:PutItem", "Condition": condition})
    assert decide([document], Request("dynamodb:PutItem", "*", context)) is decision


def test_nothing_is_allowed_by_default_and_a_deny_wins() -> None:
    request = Request("ec2:DeleteVolume", VOLUME)
    assert decide([], request) is Decision.NOT_ALLOWED
    assert decide([policy({"Action": "ec2:*"})], request) is Decision.ALLOWED
    denying = policy({"Effect": "Deny", "Action": "ec2:Delete*"})
    assert decide([policy({"Action": "ec2:*"}), denying], request) is Decision.DENIED


@pytest.mark.parametrize(
    ("pattern", "resource", "is_allowed"),
    [
        ("arn:aws:ec2:*:*:volume/*", VOLUME, True),
        ("arn:aws:ec2:*::snapshot/*", "arn:aws:ec2:us-east-1::snapshot/snap-1", True),
        ("arn:aws:ec2:*:*:volume/*", "*", False),
        ("arn:aws:s3:::bucket/imagenet/*", "arn:aws:s3:::bucket/imagenet/a/b", True),
        ("arn:aws:s3:::bucket/imagenet/*", "arn:aws:s3:::bucket/imagenette/a", False),
        ("arn:aws:s3:::bucket", "arn:aws:s3:::bucket/key", False),
    ],
)
def test_resources(pattern: str, resource: str, is_allowed: bool) -> None:
    assert allows({"Action": "a:b", "Resource": pattern}, "a:b", resource) is is_allowed


def test_a_tag_of_the_resource_and_one_of_the_request_are_two_keys() -> None:
    statement = {"Action": "ec2:*", "Condition": {"StringEquals": {"aws:ResourceTag/Project": "ours"}}}
    assert allows(statement, "ec2:DeleteVolume", aws_ResourceTag__Project="ours")
    assert not allows(statement, "ec2:DeleteVolume", aws_RequestTag__Project="ours")
    assert not allows(statement, "ec2:DeleteVolume", aws_ResourceTag__Project="Ours")


@pytest.mark.parametrize(
    ("operator", "value", "found", "holds"),
    [
        ("Bool", "false", "false", True),
        ("Bool", "false", "true", False),
        ("ArnLike", "arn:aws:iam::*:role/imagenet-*", "arn:aws:iam::1:role/imagenet-download", True),
        ("ArnLike", "arn:aws:iam:*:role/imagenet-download", "arn:aws:iam::1:role/imagenet-download", False),
        ("NumericLessThanEquals", "16", "16", True),
        ("NumericGreaterThan", "16", "16", False),
        ("NumericNotEquals", "16", "17", True),
    ],
)
def test_other_operators(operator: str, value: str, found: str, holds: bool) -> None:
    assert allows({"Action": "a:b", "Condition": {operator: {"a:key": value}}}, "a:b", a_key=found) is holds


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"Condition": {"IpAddress": {"aws:SourceIp": "203.0.113.0/24"}}}, "condition operator IpAddress"),
        ({"Condition": {"ForSome:StringLike": {"a:b": "c"}}}, "ForSome:StringLike is no condition operator"),
        ({"Resource": "arn:aws:s3:::${aws:username}"}, "policy variables are not evaluated"),
        ({"Condition": {"StringEquals": {"a:b": "${aws:username}"}}}, "policy variables are not evaluated"),
        ({"NotResource": "*"}, "one of Resource and NotResource"),
        ({"Actions": "a:b"}, "Actions is not evaluated"),
        ({"Effect": "allow"}, "Effect is allow"),
    ],
)
def test_what_is_not_evaluated_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(PolicyError, match=text):
        decide([policy({"Action": "a:b", **change})], Request("a:b"))


def test_a_policy_of_the_old_version_is_refused() -> None:
    with pytest.raises(PolicyError, match="Version None is not evaluated"):
        decide([{"Statement": []}], Request("a:b"))


def test_several_values_need_a_quantifier() -> None:
    document = policy({"Action": "a:b", "Condition": {"StringEquals": {"aws:TagKeys": "Project"}}})
    with pytest.raises(PolicyError, match="StringEquals needs ForAllValues or ForAnyValue"):
        decide([document], Request("a:b", "*", {"aws:TagKeys": ["Project", "Dataset"]}))
