"""Who runs the playbooks in the lab: for each playbook a user with its documented policy, and nothing more."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lab.config import ACCOUNT_ID
from tests.contract import permissions, tree

PREFIX = "runner-"
SETTINGS = yaml.safe_load(tree.text("inventories/lab/group_vars/all/settings.yml"))


class Runners:
    """The users of a lab, each made when its playbook first runs. ``record`` is the file of what they used."""

    def __init__(self, iam: Any, s3: Any, record: Path) -> None:
        self._iam = iam
        self._s3 = s3
        self._record = record
        self._keys: dict[str, dict[str, str]] = {}
        self.has_administrator = True

    def environment(self, arguments: Sequence[str]) -> dict[str, str]:
        """Return the credentials for a run with these arguments, whose policy names what they name."""
        name = policy_name(arguments)
        user = f"{PREFIX}{name}"
        if name not in self._keys:
            self._iam.create_user(UserName=user)
            key = self._iam.create_access_key(UserName=user)["AccessKey"]
            self._keys[name] = {"LAB_ACCESS_KEY": key["AccessKeyId"], "LAB_SECRET_KEY": key["SecretAccessKey"]}
        document = json.dumps(permissions.policy_of(name, values_of(arguments)))
        self._iam.put_user_policy(UserName=user, PolicyName="runner", PolicyDocument=document)
        return self._keys[name]

    @contextlib.contextmanager
    def denied(self, name: str, action: str) -> Iterator[None]:
        """Deny an action to whoever runs a playbook, by a policy of its own, as an organization does."""
        user = f"{PREFIX}{name}"
        statement = {"Effect": "Deny", "Action": action, "Resource": "*"}
        document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self._iam.put_user_policy(UserName=user, PolicyName="denied", PolicyDocument=document)
        try:
            yield
        finally:
            self._iam.delete_user_policy(UserName=user, PolicyName="denied")

    def needs_administrator(self, arguments: Sequence[str]) -> bool:
        """Whether steps/iam.yml has not set up the role of the download host, or the bucket, for these arguments."""
        if policy_name(arguments) not in ("drill", "prepare", "restore"):
            return False
        values = values_of(arguments)
        try:
            profile = self._iam.get_instance_profile(InstanceProfileName=values["host_role_name"])["InstanceProfile"]
            if not profile["Roles"]:
                return False  # a stranger's, which is refused
            name = profile["Roles"][0]["RoleName"]
            found = self._iam.get_role_policy(RoleName=name, PolicyName="backup")["PolicyDocument"]
        except self._iam.exceptions.NoSuchEntityException:
            return True
        buckets = {values["bucket_name"], values["restore_bucket_name"]} - {""}
        if not all(f":{bucket}/" in json.dumps(found) for bucket in buckets):
            return True
        return values["bucket_name"] not in [one["Name"] for one in self._s3.list_buckets()["Buckets"]]

    def remember(self, evaluated: dict[str, Any]) -> None:
        """Keep what each policy was used for, for the check for what none uses."""
        used = {
            name.removeprefix(PREFIX) if name.startswith(PREFIX) else permissions.HOST: actions
            for name, actions in evaluated["used"].items()
            if name.startswith(PREFIX) or name.endswith("-download")
        }
        with self._record.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"evaluated": evaluated["evaluated"], "used": used}) + "\n")


def policy_name(arguments: Sequence[str]) -> str:
    """Return the policy of the playbook among the arguments.

    The steps, but for iam.yml, and convert.yml have that of prepare.yml.
    """
    playbook = next(name for name in arguments if name.endswith(".yml"))
    is_step = playbook.startswith("playbooks/steps/") and not playbook.endswith("/iam.yml")
    return "prepare" if is_step or playbook == "playbooks/convert.yml" else Path(playbook).stem


def values_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the variables of the policies for a run with these arguments."""
    given: dict[str, Any] = {**SETTINGS}
    for option, value in itertools.pairwise(arguments):
        if option == "-e":
            text = Path(value[1:]).read_text(encoding="utf-8") if value.startswith("@") else value
            name, _, plain = text.partition("=")
            given.update(json.loads(text) if text.startswith("{") else {name: plain})
    profile = yaml.safe_load(tree.text(f"datasets/{given.get('dataset_name', 'imagenet')}.yml"))["dataset_profile"]
    dataset = given.get("dataset_overrides", {}).get("name", profile["name"])
    role = given.get("download_host_role_name", given.get("download_host_name", f"{dataset}-download"))
    project = given.get("data_project", permissions.SHOWN["data_project"])
    buckets = ("version_retirement_bucket_name", "project_removal_bucket_name", "backup_bucket_name")
    return {
        **permissions.SHOWN,
        "account_id": ACCOUNT_ID,
        "bucket_name": next(given[name] for name in buckets if given.get(name) is not None),
        "data_profile": {"name": dataset},
        "data_project": project,
        "gpu_tag": given.get("iam_setup_gpu_tag", "Role"),
        "gpu_tag_value": given.get("iam_setup_gpu_tag_value", "gpu"),
        "host_profile_name": given.get("download_host_instance_profile") or role,
        "host_role_name": role,
        "permissions_boundary": given.get("download_host_role_permissions_boundary", ""),
        "policy_prefix": f"{project}-{dataset}",
        "restore_bucket_name": given.get("dataset_restore_bucket_name", ""),
    }
