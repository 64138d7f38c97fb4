from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[4]
OPTIONS = {"greeting_to": {"type": "int"}, "greeting_style": {}}
SPECS = {"argument_specs": {"main": {"short_description": "Greets.", "options": OPTIONS}}}
TASKS: list[dict[str, Any]] = [
    {"name": "Greet", "ansible.builtin.debug": {"msg": "hello"}},
    {"name": "Never", "ansible.builtin.debug": {"msg": "never"}, "when": False},
    {"name": "None of them", "ansible.builtin.debug": {"msg": "never"}, "loop": []},
    {"name": "Not in check mode", "ansible.builtin.command": "true", "changed_when": True},
    {"name": "One host", "ansible.builtin.debug": {"msg": "one"}, "when": "inventory_hostname == 'a'"},
    {"name": "Leave", "ansible.builtin.meta": "end_host", "when": False},
]


class Playbook:
    """A project whose only role does ``TASKS``, run by ansible-playbook for two hosts on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        role = folder / "roles" / "greeting"
        for name, content in (("tasks", TASKS), ("meta", None)):
            (role / name).mkdir(parents=True)
            (role / name / "main.yml").write_text(json.dumps(content or {}))
        (role / "meta" / "argument_specs.yml").write_text(json.dumps(SPECS))
        (folder / "library").mkdir()
        (folder / "library" / "recordio_pack.py").write_text(
            "from ansible.module_utils.basic import AnsibleModule\nAnsibleModule({}).exit_json()\n"
        )
        (folder / "ansible.cfg").write_text(
            f"[defaults]\nroles_path={folder}/roles\ncallback_plugins={ROOT}/plugins/callback\nstdout_callback=short\n"
            f"library={folder}/library\nlocal_tmp={folder}/tmp\nremote_tmp={folder}/remote\n"
        )

    def run(self, *options: str, tasks: Any = (), **environment: str) -> dict[str, list[str]]:
        """The lines that each task printed, by its name."""
        play = [{"hosts": "all", "gather_facts": False, "roles": ["greeting"], "post_tasks": list(tasks)}]
        (self.folder / "play.yml").write_text(json.dumps(play))
        variables = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        ran = subprocess.run(
            ["ansible-playbook", "-i", "a,b,", "play.yml", "-e", json.dumps(variables), *options],
            cwd=self.folder,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
                "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg"),
                "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
                **environment,
            },
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in ran.stderr
        assert "Callback dispatch" not in ran.stdout + ran.stderr
        shown, _, _ = ran.stdout.partition("PLAY RECAP")
        parts = re.split(r"^TASK \[(.*)\] \**\n", shown, flags=re.MULTILINE)
        return {name: text.split("\n\n")[0].splitlines() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.fixture
def playbook(tmp_path: Path) -> Playbook:
    return Playbook(tmp_path)


def test_skipped_tasks_and_passing_validations_are_not_shown(playbook: Playbook) -> None:
    shown = playbook.run()
    assert list(shown) == ["greeting : Greet", "greeting : Not in check mode", "greeting : One host"]
    assert sorted(line for line in shown["greeting : Greet"] if "ok" in line) == ["ok: [a] => {", "ok: [b] => {"]
    assert [line for line in shown["greeting : One host"] if "ok" in line] == ["ok: [a] => {"]


def test_a_task_that_is_named_already_says_that_it_is_skipped(playbook: Playbook) -> None:
    shown = playbook.run("--check")
    assert sorted(shown["greeting : Not in check mode"]) == ["skipping: [a]", "skipping: [b]"]


def test_a_validation_that_fails_is_shown(playbook: Playbook) -> None:
    shown = playbook.run("-e", "greeting_to=nobody")
    (name,) = shown
    assert name == "greeting : Validating arguments against arg spec 'main' - Greets."
    text = " ".join(shown[name])
    assert "cannot be converted to" in text
    assert "greeting_style" not in text


def test_a_task_of_hours_is_named_when_it_starts(playbook: Playbook) -> None:
    """Its progress would stand below the name of another task."""
    task = {"name": "Pack", "recordio_pack": {}, "when": False}
    waiting = {"name": "Wait", "ansible.builtin.debug": {"msg": "x"}, "until": True, "when": False}
    shown = playbook.run(tasks=[task, waiting])
    assert sorted(shown["Pack"]) == sorted(shown["Wait"]) == ["skipping: [a]", "skipping: [b]"]


def test_all_is_shown_on_request(playbook: Playbook) -> None:
    shown = playbook.run(ANSIBLE_DISPLAY_SKIPPED_HOSTS="true")
    assert [name.removeprefix("greeting : ") for name in shown] == [
        "Validating arguments against arg spec 'main' - Greets.",
        *(task["name"] for task in TASKS),
    ]
    assert sorted(shown["greeting : Never"]) == ["skipping: [a]", "skipping: [b]"]
