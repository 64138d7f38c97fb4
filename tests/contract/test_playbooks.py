from __future__ import annotations

import functools
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from tests.contract import checks, tree

# Ansible has no group of modules for those of library/.
AWS_MODULES = {name for name in tree.MODULES if "amazon.aws.common.modules" in tree.text(f"library/{name}.py")}
INCLUDES = ("ansible.builtin.include_role", "ansible.builtin.import_role")


# These have one.
AWS_COLLECTIONS = "group/amazon.aws.aws"


@functools.cache
def tasks_of_role(role: str) -> list[dict[str, Any]]:
    paths = (tree.ROOT / "roles" / role).glob("tasks/*.yml")
    return [task for path in paths for task in checks.tasks_of(tree.yaml_of(path))]


@functools.cache
def roles_of_role(role: str) -> set[str]:
    """The role itself, and those that it includes or depends on, and so on."""
    meta = tree.ROOT / "roles" / role / "meta" / "main.yml"
    others = {entry["role"] for entry in (tree.yaml_of(meta).get("dependencies") or [])} if meta.exists() else set()
    others |= {task[name]["name"] for task in tasks_of_role(role) for name in INCLUDES if name in task}
    return {role}.union(*map(roles_of_role, others))


def roles_of_play(play: dict[str, Any]) -> set[str]:
    """Every role that a play runs."""
    roles = {entry["role"] if isinstance(entry, dict) else entry for entry in play.get("roles", [])}
    tasks = [task for section in ("pre_tasks", "tasks") for task in play.get(section, [])]
    roles |= {task[name]["name"] for task in tasks for name in INCLUDES if name in task}
    return set().union(*map(roles_of_role, roles))


def modules_of_play(play: dict[str, Any]) -> set[str]:
    """What a play calls: modules of library/, and the group of those of the AWS collections."""
    tasks = [task for role in roles_of_play(play) for task in tasks_of_role(role)]
    found = {name for task in tasks for name in tree.MODULES if name in task}
    if any(name.startswith(("amazon.aws.", "community.aws.")) for task in tasks for name in task):
        found.add(AWS_COLLECTIONS)
    return found


@pytest.mark.parametrize("path", tree.PLAYBOOKS)
def test_modules_that_speak_to_aws_are_told_how(path: str) -> None:
    """Without the play's module_defaults they would look for another Region or account than the rest of it."""
    plays = [play for play in tree.yaml_of(path) if "hosts" in play]
    lacking = {
        play["name"]: sorted(
            (modules_of_play(play) & {*AWS_MODULES, AWS_COLLECTIONS}) - set(play.get("module_defaults", {}))
        )
        for play in plays
    }
    assert {name: modules for name, modules in lacking.items() if modules} == {}


def test_a_run_ends_where_the_download_host_fails() -> None:
    """The group may have a host of another data set. Ansible would go on with it, and with the plays of localhost."""
    plays = [play for path in imported_by("playbooks/prepare.yml") for play in tree.yaml_of(path)]
    of_host = [play for play in plays if play.get("hosts") == "download_host"]
    assert len(of_host) == 6
    assert [play["name"] for play in of_host if play.get("any_errors_fatal") is not True] == []


@pytest.mark.parametrize("path", tree.PLAYBOOKS)
def test_playbook_opens_with_its_usage(path: str) -> None:
    assert checks.playbook_header(path, tree.text(path)) == []


@pytest.mark.parametrize("path", tree.PLAYBOOKS)
def test_playbook_is_a_table_of_contents(path: str) -> None:
    assert checks.playbook_shape(tree.text(path), tree.yaml_of(path)) == []


def test_playbooks_pass_the_syntax_check_without_a_warning(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("{download_host: {hosts: {a: }}, drill_host: {hosts: {b: }}, gpu: {hosts: {c: }}}")
    done = tree.run("ansible-playbook", "--syntax-check", "-i", str(inventory), *tree.PLAYBOOKS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("playbook: ") == len(tree.PLAYBOOKS)


def test_prepare_imports_every_step_once() -> None:
    steps = {path for path in tree.PLAYBOOKS if path.startswith("playbooks/steps/")}
    # What an administrator does is none of them.
    assert sorted(imported_by("playbooks/prepare.yml")) == sorted(steps - {"playbooks/steps/iam.yml"})


def test_preflight_validates_the_options_of_every_role_of_prepare() -> None:
    plays = [play for path in imported_by("playbooks/prepare.yml") for play in tree.yaml_of(path) if "hosts" in play]
    used = set().union(*map(roles_of_play, plays))
    # These are validated before: one by itself, and one at the head of the playbook.
    wanted = {role for role in used if tree.role_options(role)} - {"preflight", "data"}
    assert tree.yaml_of("roles/preflight/vars/main.yml")["__preflight_roles"] == sorted(wanted)


def imported_by(path: str) -> list[str]:
    """The playbooks that one imports, itself or by those that it imports."""
    named = [entry.get("ansible.builtin.import_playbook") for entry in tree.yaml_of(path)]
    direct = [str(PurePosixPath(path).parent / name) for name in named if name]
    return [*direct, *(further for name in direct for further in imported_by(name))]


CHECK = {"name": "data", "tasks_from": "check"}


def checks_of(play: dict[str, Any]) -> list[dict[str, Any]]:
    """The tasks of a play by which it checks the settings, itself or in the one role that it calls."""
    tasks = [task for section in ("pre_tasks", "tasks") for task in play.get(section, [])]
    calls = [task["ansible.builtin.import_role"] for task in tasks if "ansible.builtin.import_role" in task]
    files = [f"roles/{call['name']}/tasks/{call.get('tasks_from', 'main')}.yml" for call in calls]
    tasks += [task for path in files for task in checks.tasks_of(tree.yaml_of(path))]
    return [task for task in tasks if task.get("ansible.builtin.import_role") == CHECK]


@pytest.mark.parametrize("path", [path for path in tree.PLAYBOOKS if path != "playbooks/prepare.yml"])
def test_a_playbook_checks_the_settings_first(path: str) -> None:
    """Those that others import leave it to them; host_selection needs no settings."""
    first = next(play for play in tree.yaml_of(path) if "vars_files" in play)
    (check,) = checks_of(first)
    is_imported = path in {name for other in tree.PLAYBOOKS for name in imported_by(other)}
    only_alone = is_imported and path != "playbooks/steps/preflight.yml"
    assert check.get("when") == ("not data_checked | bool" if only_alone else None)


@pytest.mark.parametrize("path", tree.PLAYBOOKS)
def test_a_playbook_checks_the_settings_once(path: str) -> None:
    imports = [entry for entry in tree.yaml_of(path) if "ansible.builtin.import_playbook" in entry]
    checking = [entry for entry in imports if entry.get("vars") != {"data_checked": True}]
    plays = [play for play in tree.yaml_of(path) if "hosts" in play and checks_of(play)]
    first = ["steps/preflight.yml"] if path == "playbooks/prepare.yml" else []
    assert [entry["ansible.builtin.import_playbook"] for entry in checking] == first
    # Either play of this one may be without a host, and the other then checks.
    assert len(plays) == (0 if first else 2 if path == "playbooks/steps/snapshot.yml" else 1)
