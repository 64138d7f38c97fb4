"""What an administrator sets up once, and what nobody else may do then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab.config import ACCOUNT_ID
from tests.contract import permissions
from tests.integration.harness import Lab
from tests.integration.neighbours import STRANGER, by_name, tags
from tests.integration.runners import values_of

STEP = "playbooks/steps/iam.yml"
SET = ("-e", json.dumps({"dataset_overrides": {"name": "iam-set"}, "backup_bucket_name": "imagenet-ops-iam"}))
GONE = (*SET, "-e", "iam_setup_state=absent")
PREFIX = "imagenet-ops-iam-set"
BOUNDARY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


def policies(lab: Lab) -> dict[str, Any]:
    """The documents in force of the policies of the data set, by name."""
    iam = lab.iam()
    found = [one for one in iam.list_policies(Scope="Local")["Policies"] if one["PolicyName"].startswith(PREFIX)]
    return {
        one["PolicyName"].removeprefix(f"{PREFIX}-"): iam.get_policy_version(
            PolicyArn=one["Arn"], VersionId=one["DefaultVersionId"]
        )["PolicyVersion"]["Document"]
        for one in found
    }


@pytest.fixture(scope="module")
def removed(lab: Lab) -> Iterator[None]:
    yield
    lab.playbook(STEP, *GONE)
    lab.s3().delete_bucket(Bucket="imagenet-ops-iam")
    assert policies(lab) == {}


@pytest.mark.usefixtures("removed")
def test_the_policies_are_those_that_the_tests_run_the_playbooks_with(lab: Lab) -> None:
    assert lab.playbook(STEP, *SET, "--check").recap["localhost"]["failed"] == 0
    assert policies(lab) == {}
    lab.playbook(STEP, *SET)
    values = values_of(["playbooks/prepare.yml", *SET])
    names = set(permissions.names()) - {"iam"}
    assert policies(lab) == {name: permissions.policy_of(name, values) for name in names}
    role = lab.iam().get_role_policy(RoleName="iam-set-download", PolicyName="backup")["PolicyDocument"]
    assert role == permissions.policy_of(permissions.HOST, values)
    assert lab.playbook(STEP, *SET).all_unchanged()


@pytest.mark.usefixtures("removed")
def test_a_policy_that_changed_is_written_again_and_one_version_stays(lab: Lab) -> None:
    tagged = (*SET, "-e", "iam_setup_gpu_tag=Team", "-e", "iam_setup_gpu_tag_value=vision")
    assert lab.playbook(STEP, *tagged).task_changed("iam_setup : Set up the policies")
    arn = f"arn:aws:iam::{ACCOUNT_ID}:policy/{PREFIX}-deploy"
    assert len(lab.iam().list_policy_versions(PolicyArn=arn)["Versions"]) == 1
    (hosts,) = [one for one in policies(lab)["deploy"]["Statement"] if one["Sid"] == "ToGpuHosts"]
    assert hosts["Condition"] == {"StringEquals": {"aws:ResourceTag/Team": "vision"}}


@pytest.mark.usefixtures("removed")
def test_a_role_that_others_could_assume_is_repaired(lab: Lab) -> None:
    iam = lab.iam()
    before = iam.get_role(RoleName="iam-set-download")["Role"]["AssumeRolePolicyDocument"]
    anybody = {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::222222222222:root"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [anybody]})
    iam.update_assume_role_policy(RoleName="iam-set-download", PolicyDocument=document)
    lab.playbook(STEP, *SET)
    assert iam.get_role(RoleName="iam-set-download")["Role"]["AssumeRolePolicyDocument"] == before


@pytest.mark.usefixtures("removed")
def test_a_role_with_a_boundary(lab: Lab) -> None:
    iam = lab.iam()
    made = iam.create_policy(PolicyName="boundary", PolicyDocument=json.dumps(BOUNDARY))["Policy"]["Arn"]
    bound = (*SET, "-e", f"download_host_role_permissions_boundary={made}")
    lab.playbook(STEP, *bound)
    assert iam.get_role(RoleName="iam-set-download")["Role"]["PermissionsBoundary"]["PermissionsBoundaryArn"] == made
    assert lab.playbook(STEP, *bound).all_unchanged()
    lab.playbook(STEP, *GONE)
    iam.delete_policy(PolicyArn=made)


@pytest.mark.usefixtures("removed")
def test_somebody_elses_policy_is_refused(lab: Lab) -> None:
    iam, name = lab.iam(), f"{PREFIX}-share"
    lab.playbook(STEP, *GONE)
    made = iam.create_policy(PolicyName=name, PolicyDocument=json.dumps(BOUNDARY), Tags=tags(**STRANGER))["Policy"][
        "Arn"
    ]
    text = " ".join(lab.playbook(STEP, *SET, expect_success=False).text.split())
    assert (
        f"IAM policy {name} lacks the tags Project=imagenet-ops, Dataset=iam-set: it was not created for iam-set and "
        "is left unchanged. Set iam_setup_policy_prefix to one that is free." in text
    )
    assert set(policies(lab)) == {"share"}
    assert by_name(iam.get_policy(PolicyArn=made)["Policy"]) == STRANGER
    iam.delete_policy(PolicyArn=made)


def test_who_may_not_create_the_role_is_told_who_may(lab: Lab) -> None:
    """The first run of a data set under the policy of prepare.yml, before an administrator did his part."""
    denied = ("-e", json.dumps({"dataset_overrides": {"name": "denied"}}))
    with lab.without_administrator():
        run = lab.playbook("playbooks/steps/provision.yml", *denied, expect_success=False, expect_denied=True)
    text = " ".join(run.text.split())
    assert "Role denied-download of the download host is missing or outdated, and could not be changed" in text
    assert "an administrator runs playbooks/steps/iam.yml once with the same variables" in text
    assert lab.changes() == 0


def test_a_profile_of_ones_own_needs_no_look_at_iam(lab: Lab) -> None:
    iam, name = lab.iam(), "data-hosts"
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)
    iam.create_instance_profile(InstanceProfileName=name)
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    own = (
        "-e",
        json.dumps(
            {
                "dataset_overrides": {"name": "own"},
                "download_host_instance_profile": name,
                "download_host_role_name": name,
                "download_host_keep": True,
            }
        ),
    )
    with lab.without_administrator():
        lab.playbook("playbooks/steps/provision.yml", *own)
    profile = lab.instance("own-download")["IamInstanceProfile"]["Arn"]
    assert profile.endswith(f":instance-profile/{name}")
    lab.playbook("playbooks/teardown.yml", *own, "-e", "project_removal_confirm=own")
    assert iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"][0]["RoleName"] == name
    iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=name)
    iam.delete_instance_profile(InstanceProfileName=name)
    iam.delete_role(RoleName=name)
