"""Ansible ignores a misspelt variable in an inventory, and finds one in a role when the task runs; these find both."""

from __future__ import annotations

import functools

import pytest

from tests.contract import checks, tree

# What Ansible itself sets, and what the aws_ec2 inventory says of a host.
BUILT_IN = {
    "ansible_check_mode", "ansible_config_file", "ansible_facts", "ansible_failed_result", "ansible_failed_task",
    "ansible_play_hosts", "ansible_play_hosts_all", "ansible_playbook_python", "ansible_version", "groups", "hostvars",
    "inventory_dir", "inventory_hostname", "item", "lookup", "now", "omit", "playbook_dir", "query", "role_path",
    "ec2_tags", "instance_id", "placement",
}  # fmt: skip
# How Ansible connects; the names are Ansible's.
CONNECTION = {"ansible_host", "ansible_user", "ansible_python_interpreter", "ansible_ssh_common_args"}
# What only a user sets: no role has a default for it.
SHARED = {
    "aws_region", "aws_profile", "aws_endpoint_url", "aws_access_key", "aws_secret_key", "aws_session_token",
    "dataset_name", "dataset_profile", "dataset_overrides", "imagenet_accept_terms", "restore_hosts",
}  # fmt: skip


@functools.cache
def options() -> set[str]:
    return {name for role in tree.ROLES for name in tree.role_options(role)}


@functools.cache
def known() -> set[str]:
    """Every variable that something defines."""
    found = BUILT_IN | CONNECTION | SHARED | options()
    for path in tree.ROOT.glob("roles/*/vars/*.yml"):
        found |= set(tree.yaml_of(path) or {})
    for task_file in tree.task_files():
        found |= checks.defined_variables(tree.yaml_of(task_file))
    return found


def templates() -> list[str]:
    return sorted(str(path.relative_to(tree.ROOT)) for path in tree.ROOT.glob("roles/*/templates/*"))


def variable_files() -> list[str]:
    patterns = ("roles/*/defaults/*.yml", "roles/*/vars/*.yml", "datasets/*.yml", "inventories/*/group_vars/**/*.yml")
    return sorted(str(path.relative_to(tree.ROOT)) for pattern in patterns for path in tree.ROOT.glob(pattern))


@pytest.mark.parametrize("path", [name for name in variable_files() if name.startswith("inventories/")])
def test_group_vars_set_only_variables_that_something_reads(path: str) -> None:
    assert set(tree.yaml_of(path) or {}) - options() - SHARED - CONNECTION == set()


@pytest.mark.parametrize("path", [*tree.task_files(), *variable_files()])
def test_variables_that_are_read_are_defined_somewhere(path: str) -> None:
    assert checks.referenced_variables(tree.yaml_of(path)) - known() == set()


@pytest.mark.parametrize("path", templates())
def test_variables_that_templates_read_are_defined_somewhere(path: str) -> None:
    assert checks.template_variables(tree.text(path)) - known() == set()


@pytest.mark.parametrize("path", [*tree.PLAYBOOKS, *tree.DOCUMENTS])
def test_command_lines_give_variables_that_exist(path: str) -> None:
    assert checks.extra_variables(tree.text(path)) - options() - SHARED == set()


def test_readme_table_of_main_variables() -> None:
    rows = checks.table_rows(tree.text("README.md"))
    assert rows.keys() - options() - SHARED == set()
    defaults = {name: option.get("default") for role in tree.ROLES for name, option in tree.role_options(role).items()}
    wrong = {
        name: (stated, checks.shown_default(defaults[name]))
        for name, stated in rows.items()
        if stated.startswith("`") and name in defaults and stated != checks.shown_default(defaults[name])
    }
    assert wrong == {}


def test_a_variable_belongs_to_one_role() -> None:
    owners: dict[str, list[str]] = {}
    for role in tree.ROLES:
        for name in tree.role_options(role):
            owners.setdefault(name, []).append(role)
    assert {name: roles for name, roles in owners.items() if len(roles) > 1} == {}
