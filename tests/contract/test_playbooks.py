from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract import checks, tree


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
    imported = [entry["ansible.builtin.import_playbook"] for entry in tree.yaml_of("playbooks/prepare.yml")]
    steps = [path for path in tree.PLAYBOOKS if path.startswith("playbooks/steps/")]
    assert sorted(f"playbooks/{path}" for path in imported) == steps
