"""Every rule is shown to fail: a small bad example for each, beside a good one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract import checks

# --- interfaces -----------------------------------------------------------------------------------------------------

README = """
| variable | default | what it is |
|---|---|---|
| `mount_path` | `/data` | Where. |
| `mount_owner` | required | Who. |
| `mount_from` | `{{ a \\| default('') }}` | What. |
"""
DEFAULTS: dict[str, Any] = {"mount_path": "/data", "mount_from": "{{ a | default('') }}"}
OPTIONS: dict[str, Any] = {
    "mount_path": {"description": "Where.", "type": "str", "default": "/data"},
    "mount_owner": {"description": "Who.", "type": "str", "required": True},
    "mount_from": {"description": "What.", "type": "str", "default": "{{ a | default('') }}"},
}


def test_a_role_that_says_the_same_three_times() -> None:
    assert checks.role_interface("mount", DEFAULTS, OPTIONS, README) == []


@pytest.mark.parametrize(
    ("defaults", "options", "readme", "fault"),
    [
        ({**DEFAULTS, "mount_x": 1}, OPTIONS, README, "mount_x is in defaults/main.yml and not in argument_specs.yml"),
        ({"mount_path": "/data"}, OPTIONS, README, "mount_from is in argument_specs.yml and not in defaults/main.yml"),
        (
            {**DEFAULTS, "mount_path": "/mnt"},
            OPTIONS,
            README,
            "mount_path is '/mnt' in defaults/main.yml and '/data' in argument_specs.yml",
        ),
        (DEFAULTS, OPTIONS, README.replace("mount_owner", "mount_user"), "mount_user is in README.md and not in"),
        (
            DEFAULTS,
            OPTIONS,
            README.replace("`/data`", "`/mnt`"),
            "mount_path is '`/mnt`' in README.md and '`/data`' in",
        ),
        (DEFAULTS, OPTIONS, README.replace("required", "`root`"), "mount_owner is '`root`' in README.md"),
        (
            DEFAULTS,
            {**OPTIONS, "mount_owner": {"description": "Who.", "type": "str"}},
            README,
            "mount_owner has neither default nor required: true",
        ),
        (
            {**DEFAULTS, "mount_owner": "root"},
            {**OPTIONS, "mount_owner": {**OPTIONS["mount_owner"], "default": "root"}},
            README,
            "mount_owner is required and has a default",
        ),
        (DEFAULTS, {**OPTIONS, "mount_owner": {"type": "str", "required": True}}, README, "mount_owner has no descri"),
        (DEFAULTS, {**OPTIONS, "owner": OPTIONS["mount_owner"]}, README, "owner lacks the prefix mount_"),
    ],
)
def test_a_role_that_contradicts_itself(
    defaults: dict[str, Any], options: dict[str, Any], readme: str, fault: str
) -> None:
    assert any(found.startswith(fault) for found in checks.role_interface("mount", defaults, options, readme))


def test_one_and_true_are_not_the_same_default() -> None:
    assert (
        checks.role_interface("a", {"a_b": 1}, {"a_b": {"description": "", "type": "bool", "default": True}}, "") != []
    )


DOCUMENTED: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "mode": {"type": "str", "choices": ["a", "b"], "default": "a"},
    "splits": {"type": "list", "elements": "dict", "suboptions": {"name": {"type": "str"}}},
}
SPEC: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "mode": {"choices": ("a", "b"), "default": "a"},
    "splits": {"type": "list", "elements": "dict", "options": {"name": {}}},
}


def test_a_module_whose_documentation_is_true() -> None:
    assert checks.module_interface(DOCUMENTED, SPEC) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"new": {}}, "new is in argument_spec and not documented"),
        (
            {"path": {"type": "str", "required": True}},
            "path: type is 'path' in DOCUMENTATION and 'str' in argument_spec",
        ),
        ({"path": {"type": "path"}}, "path: required is True in DOCUMENTATION and False in argument_spec"),
        (
            {"mode": {"choices": ["a"], "default": "a"}},
            "mode: choices is ['a', 'b'] in DOCUMENTATION and ['a'] in argum",
        ),
        ({"mode": {"choices": ["a", "b"]}}, "mode: default is 'a' in DOCUMENTATION and None in argument_spec"),
        ({"path": {"type": "path", "required": True, "aliases": ["p"]}}, "path: the aliases differ"),
        (
            {"splits": {"type": "list", "elements": "dict", "options": {"name": {"type": "int"}}}},
            "splits.name: type is 'str' in DOCUMENTATION and 'int' in argument_spec",
        ),
        ({"secret_key": {}}, "secret_key is in argument_spec and not documented"),
    ],
)
def test_a_module_whose_documentation_is_not(change: dict[str, Any], fault: str) -> None:
    assert any(found.startswith(fault) for found in checks.module_interface(DOCUMENTED, {**SPEC, **change}))


def test_a_documented_option_that_does_not_exist() -> None:
    assert checks.module_interface({"gone": {}}, {}) == ["gone is documented and not in argument_spec"]


def test_a_password_that_would_be_logged() -> None:
    assert checks.module_interface({"password": {}}, {"password": {}}) == [
        "password sounds secret and argument_spec has no no_log"
    ]
    assert checks.module_interface({"password": {}}, {"password": {"no_log": True}}) == []


# --- tasks ----------------------------------------------------------------------------------------------------------


def test_tasks_inside_blocks_and_plays_are_found() -> None:
    play = [{"hosts": "all", "tasks": [{"block": [{"name": "b"}], "rescue": [{"name": "r"}]}]}]
    assert [task.get("name") for task in checks.tasks_of(play)] == [None, "b", "r"]


@pytest.mark.parametrize(
    ("arguments", "faults"),
    [
        ({"path": "/data", "mode": "b"}, []),
        ({"path": "/data", "mode": "{{ mode }}"}, []),
        ({"path": "/data", "pathh": 1}, ["x has no option pathh"]),
        ({"mode": "a"}, ["x requires path"]),
        ({"path": "/data", "mode": "c"}, ["x: mode cannot be 'c'"]),
        ("path=/data", ["x: its options are not a mapping"]),
    ],
)
def test_options_of_a_task(arguments: Any, faults: list[str]) -> None:
    assert checks.task_options("x", arguments, DOCUMENTED) == faults


def test_what_module_defaults_give_need_not_be_given_again() -> None:
    assert checks.task_options("x", {}, DOCUMENTED, defaults=["path"]) == []


@pytest.mark.parametrize(
    ("task", "count"),
    [
        ({"ansible.builtin.file": {}}, 0),
        ({"ansible.builtin.file": {}, "ignore_errors": True}, 1),
        ({"ansible.builtin.file": {}, "changed_when": False}, 1),
        ({"ansible.builtin.file": {}, "failed_when": False}, 1),
        ({"ansible.builtin.command": {"argv": ["/sbin/blkid", "/dev/x"]}, "changed_when": False}, 0),
        ({"ansible.builtin.command": "findmnt /data", "changed_when": False}, 0),
        ({"ansible.builtin.command": {"argv": ["mkfs", "/dev/x"]}, "changed_when": False}, 1),
        ({"ansible.builtin.command": {"argv": "{{ argv }}"}, "changed_when": False}, 1),
        ({"ansible.builtin.shell": "true"}, 1),
    ],
)
def test_habits_of_a_task(task: dict[str, Any], count: int) -> None:
    assert len(checks.task_habits(task)) == count


@pytest.mark.parametrize(
    ("task", "count"),
    [
        ({"register": "__mount_found"}, 0),
        ({"register": "found"}, 1),
        ({"register": "mount_found"}, 1),
        ({"ansible.builtin.set_fact": {"mount_result": 1, "cacheable": True}}, 0),
        ({"ansible.builtin.set_fact": {"result": 1}}, 1),
    ],
)
def test_names_of_what_a_role_keeps(task: dict[str, Any], count: int) -> None:
    assert len(checks.role_variables("mount", task)) == count


# --- playbooks ------------------------------------------------------------------------------------------------------

PLAYBOOK = """---
# Does a thing.
#
#   ansible-playbook playbooks/a.yml -i inventories/aws -e data_version=1
- name: Do it
  hosts: gpu
  roles: [mount]
"""


def test_a_playbook_with_its_usage() -> None:
    assert checks.playbook_header("playbooks/a.yml", PLAYBOOK) == []
    assert checks.extra_variables(PLAYBOOK) == {"data_version"}


@pytest.mark.parametrize(
    "text",
    [
        PLAYBOOK.replace("---\n", ""),
        PLAYBOOK.replace("# Does a thing.\n#\n", ""),
        PLAYBOOK.replace("playbooks/a.yml", "playbooks/b.yml"),
        "---\n- name: Do it\n  hosts: gpu\n",
    ],
)
def test_a_playbook_without(text: str) -> None:
    assert len(checks.playbook_header("playbooks/a.yml", text)) == 1


@pytest.mark.parametrize(
    ("text", "play", "count"),
    [
        ("---\n", {"roles": ["mount"]}, 0),
        ("---\n", {"tasks": [{"ansible.builtin.include_role": {"name": "mount"}}]}, 0),
        ("---\n", {"tasks": [{"ansible.builtin.file": {}}]}, 1),
        ("---\n", {"tasks": [{"ansible.builtin.meta": "refresh_inventory"}]}, 0),
        ("---\n", {"tasks": [{"ansible.builtin.meta": "end_play"}]}, 1),
        ("---\n", {"pre_tasks": [{"ansible.builtin.include_role": {}}, {"ansible.builtin.include_role": {}}]}, 1),
        ("---\n" * 60, {"roles": ["mount"]}, 1),
    ],
)
def test_shape_of_a_playbook(text: str, play: dict[str, Any], count: int) -> None:
    assert len(checks.playbook_shape(text, [play])) == count


# --- variables ------------------------------------------------------------------------------------------------------


def test_variables_that_a_task_reads() -> None:
    task = {
        "when": "a is defined and not b.c",
        "loop": "{{ d | dict2items }}",
        "vars": {"e": "{{ {'x': f}[g] }} when"},
        "ansible.builtin.assert": {"that": ["h | length > 0"], "fail_msg": "that {{ i }}"},
        "register": "j",
    }
    assert checks.referenced_variables([task]) == {"a", "b", "d", "f", "g", "h", "i"}


def test_variables_that_a_template_reads_and_does_not_set() -> None:
    assert checks.template_variables(
        "{% set row = 1 %}{% for x in hosts %}{{ row }}{{ x | anything(y) }}{% endfor %}"
    ) == {
        "hosts",
        "y",
    }


def test_variables_that_a_play_defines() -> None:
    play = {
        "hosts": "all",
        "vars": {"a": 1},
        "roles": [{"role": "r", "vars": {"b": 1}}],
        "tasks": [
            {"block": [{"register": "c", "vars": {"d": 1}, "loop_control": {"loop_var": "e"}}]},
            {"ansible.builtin.set_fact": {"f": 1}},
        ],
    }
    assert checks.defined_variables([play]) == {"a", "b", "c", "d", "e", "f"}


# --- sources --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import os\nfrom ansible.module_utils.imagenet_ops.core.files import exclusive\n", 0),
        ("from ansible.module_utils.basic import AnsibleModule\n", 1),
        ("import ansible.constants\n", 1),
        ("def f():\n    from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule\n", 1),
        ("from ansible.module_utils.imagenet_ops_other import x\n", 1),
    ],
)
def test_python_that_knows_ansible(source: str, count: int) -> None:
    assert len(checks.ansible_imports(source)) == count


def test_files_with_something_to_test() -> None:
    assert checks.defines_something("def f() -> None: ...")
    assert checks.defines_something("class C: ...")
    assert not checks.defines_something('"""Says what it is."""\nActionModule = load("long_task")\n')


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("x = 1  # noqa: S603  the program is named by us", 0),
        ("x = 1  # noqa: S603, S607 (both are named by us)", 0),
        ("x = 1  # type: ignore[arg-type]  # moto's own types are wrong", 0),
        ("# A reason.\nx = 1  # noqa: S603", 0),
        ("x = 1  # noqa: S603  the program is named by us\ny = 1  # noqa: S603", 0),
        ("x = 1  # noqa: S603  the program is named by us\n\ny = 1  # noqa: S603", 1),
        ("x = 1  # noqa: S603", 1),
        ("x = 1  # noqa", 1),
        ("x = 1  # type: ignore[arg-type]", 1),
        ("x = 1  # type: ignore", 1),
        ("    key: {{ x }}  # noqa: jinja[spacing]", 1),
    ],
)
def test_findings_that_are_suppressed(line: str, count: int) -> None:
    assert len(checks.suppressions_without_reason(line)) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("pytest.skip('needs root')", 0),
        ("pytest.skip(reason='needs root')", 0),
        ("pytest.skip()", 1),
        ("@pytest.mark.skipif(True, reason='needs root')\ndef f(): ...", 0),
        ("@pytest.mark.skipif(True)\ndef f(): ...", 1),
        ("@pytest.mark.xfail(strict=True)\ndef f(): ...", 1),
    ],
)
def test_tests_that_are_skipped(source: str, count: int) -> None:
    assert len(checks.skips_without_reason(source)) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f():\n    raise OpsError('a', 'b', 'c')", 1),
        ("def f():\n    'Do it; raises OpsError.'\n    raise OpsError('a', 'b', 'c')", 0),
        ("def f():\n    'Do it; raises OpsError.'\n    if x:\n        raise errors.TransientError('a')", 1),
        ("class A:\n    def f(self):\n        raise StopIteration", 1),
        ("class _A:\n    def f(self):\n        raise StopIteration", 0),
        ("def _f():\n    raise ValueError", 0),
        ("def f():\n    def g():\n        raise ValueError\n    g()", 0),
        ("def f():\n    try:\n        g()\n    except OSError as error:\n        raise\n    raise error", 0),
    ],
)
def test_errors_that_a_docstring_does_not_name(source: str, count: int) -> None:
    assert len(checks.errors_not_named(source)) == count


@pytest.mark.parametrize(
    ("pattern", "line", "found"),
    [
        (checks.FOREIGN_PATHS, "see /wor" + "k/main/x", True),
        (checks.FOREIGN_PATHS, "HOME=/roo" + "t/.ssh", True),
        (checks.FOREIGN_PATHS, "docs/network/x and ~/work", False),
        (checks.UNFINISHED, "# TO" + "DO later", True),
        (checks.UNFINISHED, "todo: str", False),
        (checks.UNSTABLE_DEVICES, "/dev/nvme" + "1n1", True),
        (checks.UNSTABLE_DEVICES, "/dev/sd" + "f", True),
        (checks.UNSTABLE_DEVICES, "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol1", False),
    ],
)
def test_patterns_that_no_file_holds(pattern: str, line: str, found: bool) -> None:
    assert bool(checks.matches(pattern, line)) is found


# --- Makefile and documents -----------------------------------------------------------------------------------------

MAKEFILE = "X := 1\n.PHONY: demo\ndemo: setup ## shows it\n\tdo\nbare:\n\tdo\n"


def test_targets_and_their_help() -> None:
    assert checks.make_targets(MAKEFILE) == {"demo": "shows it", "bare": ""}


def test_commands_that_a_document_names() -> None:
    document = "Text: make sure.\n\n    make demo      # all\n    make lab-up HOSTS=4\n\nand `A=1 make test X=2`\n"
    code = checks.code_of(document)
    assert checks.commands_without_target(code, {"demo"}) == ["make lab-up", "make test"]
    assert checks.commands_without_target(code, {"demo", "lab-up", "test"}) == []


def test_anchors_of_headings() -> None:
    document = "# Back up, restore\n\n```sh\n# no heading\n```\n\n## `playbooks/a_b.yml`: what it needs\n"
    assert checks.anchors(document) == {"back-up-restore", "playbooksa_byml-what-it-needs"}


TABLE = "| a | b |\n|---|---|\n| 1 | 2 |\n"


@pytest.mark.parametrize(
    ("table", "faults"),
    [
        (TABLE, []),
        (TABLE.replace("| 2 |", "| `x \\| y` |"), []),
        (f"```text\n{TABLE}| 1 |\n```\n", []),
        (TABLE.replace("| 2 |", "|"), ["1: 1 cells, the head has 2"]),
        (TABLE.replace("| 2 |", "| 2 | 3 |"), ["1: 3 cells, the head has 2"]),
        (TABLE.replace("|---|---|\n", ""), ["[' a ', ' b '] has no line below its head"]),
        (TABLE.replace("2", "2" * 50), ["1: a cell of 52 characters"]),
    ],
)
def test_tables_of_a_document(table: str, faults: list[str]) -> None:
    assert checks.table_faults(f"Text.\n\n{table}", 40) == faults


def test_files_that_a_document_names() -> None:
    code = checks.code_of(
        "`playbooks/steps/gone.yml`\n\n```\nansible-playbook playbooks/a.yml -i inventories/mine\n```\n"
    )
    assert checks.missing_files(code, lambda path: path == "playbooks/a.yml") == ["playbooks/steps/gone.yml"]


# --- IAM ------------------------------------------------------------------------------------------------------------

STATEMENT = {
    "Sid": "S",
    "Effect": "Allow",
    "Action": ["ec2:DeleteVolume"],
    "Resource": "*",
    "Condition": {"StringEquals": {"aws:ResourceTag/Project": "imagenet-ops"}},
}


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({}, 0),
        ({"Condition": {}}, 1),
        ({"Action": "ec2:*"}, 1),
        ({"Effect": "Deny"}, 1),
        ({"Action": ["s3:DeleteObject"], "Resource": "arn:aws:s3:::BUCKET/*", "Condition": {}}, 0),
        ({"Action": ["s3:DeleteObject"], "Condition": {}}, 1),
        ({"Action": ["ec2:DescribeVolumes"], "Condition": {}}, 0),
    ],
)
def test_policies(change: dict[str, Any], count: int) -> None:
    policy = {"Version": "2012-10-17", "Statement": [{**STATEMENT, **change}]}
    assert len(checks.policy_faults(policy)) == count


def test_something_that_is_no_policy() -> None:
    assert checks.policy_faults({"Statement": []}) == ["is not a policy of version 2012-10-17"]
