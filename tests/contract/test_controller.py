"""What runs the playbooks of the lab's tests (controller.py and site in tests/integration) runs them as ever."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.integration.controller import Controller

SITE = ROOT / "tests" / "integration" / "site"
PLAYBOOK = "- {{hosts: localhost, gather_facts: false, tasks: [{{{0}: {{{1}}}}}]}}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("playbooks")
    (path / "good.yml").write_text(PLAYBOOK.format("ansible.builtin.debug", 'msg: "{{ said }}"'))
    (path / "bad.yml").write_text(PLAYBOOK.format("ansible.builtin.fail", "msg: no luck"))
    return path


@pytest.fixture(scope="module")
def controller(folder: Path) -> Iterator[Controller]:
    with Controller(folder, {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "NO_COLOR": "1"}) as running:
        yield running


def test_each_run_has_its_own_arguments_output_and_end(controller: Controller) -> None:
    status, text = controller.run(["-i", "localhost,", "good.yml", "-e", "said=one"], {}, 60)
    assert (status, "msg: one" in text, "ok=1" in text) == (0, True, True)
    status, text = controller.run(["-i", "localhost,", "bad.yml"], {}, 60)
    assert (status, "msg: no luck" in text, "msg: one" in text) == (2, True, False)
    status, text = controller.run(["-i", "localhost,", "good.yml", "-e", "said=two"], {}, 60)
    assert (status, "msg: two" in text, "failed=0" in text) == (0, True, True)
    status, text = controller.run(["nowhere.yml"], {}, 60)
    assert (status, "nowhere.yml could not be found" in text) == (1, True)


def test_what_python_compiled_of_a_zip_is_used_for_the_same_source_alone(tmp_path: Path) -> None:
    compiled = tmp_path / "compiled"
    compiled.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(SITE), "IMAGENET_OPS_COMPILED": str(compiled)}

    def run(source: str, name: str) -> str:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("__main__.py", source)
        command = [sys.executable, str(tmp_path / name)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert run("print('one')", "first.zip") == "one\n"
    assert run("print('one')", "second.zip") == "one\n"
    assert len(list(compiled.iterdir())) == 1
    assert run("print('two')", "first.zip") == "two\n"
    assert len(list(compiled.iterdir())) == 2
