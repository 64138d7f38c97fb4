from __future__ import annotations

import functools
from typing import Any

import pytest

from tests.contract import architecture, checks, tree

# Roles that look at other hosts than their own, and why they may.
HOSTVARS_ALLOWED = {
    "roles/download_host/tasks/listed.yml": "the inventory must list the host that was launched",
    "roles/fleet_host/vars/main.yml": "one call serves the whole play, so it names every host's instance",
    "roles/fleet_report/templates/report.txt.j2": "the table at the end is of every host",
}


def tasks_of_role(role: str) -> list[tuple[str, dict[str, Any]]]:
    files = sorted((tree.ROOT / "roles" / role).glob("tasks/*.yml"))
    return [(path.name, task) for path in files for task in checks.tasks_of(tree.yaml_of(path))]


@pytest.mark.parametrize("role", tree.ROLES)
def test_role_is_whole(role: str) -> None:
    wanted = ["README.md", "defaults/main.yml", "meta/argument_specs.yml", "tasks/main.yml"]
    assert [name for name in wanted if not (tree.ROOT / "roles" / role / name).is_file()] == []


@pytest.mark.parametrize("role", tree.ROLES)
def test_defaults_argument_specs_and_readme_say_the_same(role: str) -> None:
    defaults = tree.yaml_of(f"roles/{role}/defaults/main.yml") or {}
    assert checks.role_interface(role, defaults, tree.role_options(role), tree.text(f"roles/{role}/README.md")) == []


@pytest.mark.parametrize("role", tree.ROLES)
def test_variables_of_a_role_carry_its_name(role: str) -> None:
    faults = [f"{name}: {fault}" for name, task in tasks_of_role(role) for fault in checks.role_variables(role, task)]
    for path in (tree.ROOT / "roles" / role).glob("vars/*.yml"):
        faults += [
            f"vars: {name}" for name in tree.yaml_of(path) or {} if not name.startswith((f"{role}_", f"__{role}_"))
        ]
    assert faults == []


@pytest.mark.parametrize("role", tree.ROLES)
def test_roles_name_no_device_that_is_another_one_on_the_next_instance(role: str) -> None:
    files = [path for path in (tree.ROOT / "roles" / role).rglob("*") if path.is_file()]
    named = {path: checks.matches(checks.UNSTABLE_DEVICES, tree.text(path)) for path in files}
    assert {path: lines for path, lines in named.items() if lines} == {}


def test_roles_look_at_their_own_host_only() -> None:
    files = [path for path in (tree.ROOT / "roles").rglob("*") if path.is_file()]
    looking = {str(path.relative_to(tree.ROOT)) for path in files if "hostvars" in tree.text(path)}
    assert looking == set(HOSTVARS_ALLOWED)


@functools.cache
def owners() -> dict[str, str]:
    """The role of each variable: its options, what its vars hold, and what its tasks register or set."""
    found: dict[str, str] = {}
    for role in tree.ROLES:
        found |= dict.fromkeys(tree.role_options(role), role)
        for path in (tree.ROOT / "roles" / role).glob("vars/*.yml"):
            found |= dict.fromkeys(tree.yaml_of(path) or {}, role)
        for _, task in tasks_of_role(role):
            found |= dict.fromkeys(task.get("ansible.builtin.set_fact") or {}, role)
            found |= {task["register"]: role} if "register" in task else {}
    return found


@functools.cache
def variables_read_by(role: str) -> set[str]:
    folder = tree.ROOT / "roles" / role
    files = [path for name in ("tasks", "vars", "defaults") for path in folder.glob(f"{name}/*.yml")]
    read = set().union(*(checks.referenced_variables(tree.yaml_of(path)) for path in files))
    return read.union(*(checks.template_variables(tree.text(path)) for path in folder.glob("templates/*")))


def roles_used_by(role: str) -> set[str]:
    """The roles that one includes or depends on, and those whose variables it reads."""
    meta = tree.ROOT / "roles" / role / "meta" / "main.yml"
    used = {entry["role"] for entry in (tree.yaml_of(meta).get("dependencies") or [])} if meta.exists() else set()
    calls = ("ansible.builtin.include_role", "ansible.builtin.import_role")
    used |= {task[name]["name"] for _, task in tasks_of_role(role) for name in calls if name in task}
    used |= {owners()[name] for name in variables_read_by(role) if name in owners()}
    return used - {role}


def test_no_roles_use_each_other() -> None:
    graph = {role: roles_used_by(role) for role in tree.ROLES}
    assert {"fleet_volumes", "fleet_warmup", "snapshot_info"} <= graph["fleet_host"]
    assert architecture.circle(graph) == []


@pytest.mark.parametrize("role", tree.ROLES)
def test_what_a_role_keeps_for_itself_is_read_by_no_other(role: str) -> None:
    private = {name: owner for name, owner in owners().items() if name.startswith("__")}
    assert {name for name in variables_read_by(role) if private.get(name, role) != role} == set()


@pytest.mark.parametrize("path", tree.task_files())
def test_tasks_hide_no_error_and_no_change(path: str) -> None:
    tasks = checks.tasks_of(tree.yaml_of(path))
    assert [f"{task.get('name')}: {fault}" for task in tasks for fault in checks.task_habits(task)] == []
