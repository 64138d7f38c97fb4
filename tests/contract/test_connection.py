"""How the controller reaches AWS and the hosts."""

from __future__ import annotations

import re
from typing import Any

import jinja2
import pytest

from tests.contract import checks, tree

OMIT = object()


def connection(name: str, **variables: Any) -> dict[str, Any]:
    """What a connection of role data gives to modules, of what is set."""
    defaults = tree.yaml_of("roles/data/defaults/main.yml")
    known = {
        **defaults,
        "data_s3_access_key": "",
        "data_s3_secret_key": "",
        "data_s3_session_token": "",
        "omit": OMIT,
        **variables,
    }
    environment = jinja2.Environment(autoescape=True)

    def value(template: str) -> Any:
        return environment.compile_expression(template.strip().removeprefix("{{").removesuffix("}}"))(**known)

    options = {key: value(template) for key, template in tree.yaml_of("roles/data/vars/main.yml")[name].items()}
    return {key: option for key, option in options.items() if option is not OMIT}


KEYS = {"aws_access_key": "ASIA", "aws_secret_key": "secret", "aws_session_token": "token"}


@pytest.mark.parametrize("name", ["data_aws_connection", "data_s3_connection"])
def test_temporary_keys_come_with_their_token(name: str) -> None:
    made = connection(name, aws_region="us-east-1", **KEYS)
    assert made == {
        "region": "us-east-1", "access_key": "ASIA", "secret_key": "secret", "session_token": "token"
    }  # fmt: skip


def test_keys_of_another_s3_server_come_without_the_token_of_aws() -> None:
    own = {"data_s3_access_key": "own", "data_s3_secret_key": "own secret"}
    made = connection("data_s3_connection", aws_region="us-east-1", **KEYS, **own)
    assert made == {"region": "us-east-1", "access_key": "own", "secret_key": "own secret"}
    made = connection("data_s3_connection", aws_region="us-east-1", **KEYS, **own, data_s3_session_token="own token")
    assert made["session_token"] == "own token"


def test_host_keys_are_filed_by_instance_and_not_by_address() -> None:
    """An address of a VPC soon belongs to another instance, whose key would be refused as a changed one."""
    arguments = tree.yaml_of("inventories/aws/group_vars/all/main.yml")["ansible_ssh_common_args"]
    template = jinja2.Environment(autoescape=True).from_string(arguments)
    listed = template.render(instance_id="i-0123456789abcdef0", inventory_hostname="gpu_i-0123456789abcdef0")
    assert "-o HostKeyAlias=i-0123456789abcdef0" in listed
    assert "-o HostKeyAlias=trainer-7" in template.render(inventory_hostname="trainer-7")


def test_every_group_of_hosts_has_a_user_of_its_own() -> None:
    """The AMI of GPU hosts and that of the download host may have different ones."""
    groups = tree.yaml_of("inventories/aws/hosts.yml")["all"]["children"]
    users = {name: tree.yaml_of(f"inventories/aws/group_vars/{name}.yml") for name in groups}
    assert all(set(settings) == {"ansible_user"} for settings in users.values())
    assert set(users) == {"download_host", "drill_host", "gpu"}


@pytest.mark.parametrize(
    ("result", "is_final"),
    [
        ({"failed": False}, True),
        ({"failed": True, "msg": "Value (x) for parameter iamInstanceProfile.name is invalid."}, False),
        ({"failed": True, "msg": "Invalid IAM Instance Profile ARN"}, False),
        ({"failed": True, "msg": "VcpuLimitExceeded"}, True),
    ],
)
def test_a_launch_is_retried_only_for_a_new_instance_profile(result: dict[str, Any], *, is_final: bool) -> None:
    """Also in a run that did not create the profile: one that was killed may have, seconds ago."""
    tasks = checks.tasks_of(tree.yaml_of("roles/download_host/tasks/present.yml"))
    launch = next(task for task in tasks if "amazon.aws.ec2_instance" in task)
    environment = jinja2.Environment(autoescape=True)
    environment.tests["succeeded"] = lambda answer: not answer["failed"]
    environment.tests["search"] = lambda text, pattern: bool(re.search(pattern, text))
    assert environment.compile_expression(launch["until"])(__download_host_launched=result) is is_final
    assert launch["retries"] == 6
