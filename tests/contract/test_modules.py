from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.contract import checks, tree


def module_defaults() -> dict[str, set[str]]:
    """For each module of library/, the options that any play's module_defaults gives it."""
    shared: dict[str, Any] = {}
    for role in tree.ROLES:
        path = f"roles/{role}/vars/main.yml"
        shared |= (tree.yaml_of(path) or {}) if (tree.ROOT / path).is_file() else {}
    found: dict[str, set[str]] = {}
    for playbook in tree.PLAYBOOKS:
        for play in tree.yaml_of(playbook):
            for module, given in (play.get("module_defaults") or {}).items():
                if module in tree.MODULES:
                    # "{{ data_aws_connection }}" stands for the mapping of that name in a role's vars.
                    options = shared[given.strip("{} ")] if isinstance(given, str) else given
                    found.setdefault(module, set()).update(options)
    return found


@pytest.mark.parametrize("name", tree.MODULES)
def test_documentation_states_the_argument_spec(name: str) -> None:
    call = tree.module_call(name)
    assert checks.module_interface(tree.documentation()[name]["doc"]["options"], call["argument_spec"]) == []
    assert call["supports_check_mode"] is True


@pytest.mark.parametrize("name", tree.MODULES)
def test_documentation_is_whole(name: str) -> None:
    documented = tree.documentation()[name]
    assert documented["doc"]["short_description"]
    assert documented["doc"]["description"]
    assert documented["return"], "RETURN is empty"
    for key, value in documented["return"].items():
        assert {"description", "returned", "type"} <= value.keys(), f"RETURN of {key}"
    attributes = documented["doc"].get("attributes") or {}
    # What only reads has nothing to show a difference of.
    wanted = {"check_mode"} if name.endswith("_info") else {"check_mode", "diff_mode"}
    assert attributes.keys() >= wanted, "attributes say nothing of check and diff mode"


@pytest.mark.parametrize("name", tree.MODULES)
def test_examples_would_run(name: str) -> None:
    documented = tree.documentation()[name]
    tasks = list(checks.tasks_of(yaml.safe_load(documented["examples"])))
    calls = [task[name] for task in tasks if name in task]
    assert calls, "EXAMPLES do not use the module"
    options = documented["doc"]["options"]
    assert [fault for call in calls for fault in checks.task_options(name, call, options)] == []


@pytest.mark.parametrize("path", tree.task_files())
def test_tasks_use_only_options_that_exist(path: str) -> None:
    given = module_defaults()
    faults = []
    for task in checks.tasks_of(tree.yaml_of(path)):
        for name in task.keys() & set(tree.MODULES):
            options = tree.documentation()[name]["doc"]["options"]
            found = checks.task_options(name, task[name], options, given.get(name, ()))
            faults += [f"{task['name']}: {fault}" for fault in found]
    assert faults == []


def test_module_defaults_use_only_options_that_exist() -> None:
    for name, given in module_defaults().items():
        assert given - tree.documentation()[name]["doc"]["options"].keys() == set(), name


# A person looks with it at a host (docs/troubleshooting.md), as EC2 shows nothing of what is on a device.
FOR_PEOPLE = {"ebs_device_info"}


@pytest.mark.parametrize("name", sorted(set(tree.MODULES) - FOR_PEOPLE))
def test_every_module_is_used_by_a_role(name: str) -> None:
    used = {key for path in tree.task_files() for task in checks.tasks_of(tree.yaml_of(path)) for key in task}
    assert name in used
