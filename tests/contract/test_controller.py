"""What runs the playbooks of the lab's tests (controller.py and site in tests/integration) runs them as ever."""

from __future__ import annotations

import json
import os
import select
import signal
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
# As of the localhost that Ansible adds itself.
LOCAL = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars: {{ansible_python_interpreter: "{{{{ ansible_playbook_python }}}}"}}
  tasks: [{{{0}}}]
"""
LOOK = """
import json, os, sys
boto3_before = "boto3" in sys.modules
foreign = [name for name, one in sys.modules.items() if "/ansible/" in (getattr(one, "__file__", None) or "")]
foreign = [name for name in foreign if "_payload_" not in sys.modules[name].__file__]
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule({})
found = {"said": os.environ["SAID"], "folder": os.getcwd(), "process": os.getpid(), "temporary": module.tmpdir}
found.update(boto3_before=boto3_before, foreign=foreign)
with open("found.json", "w") as file:
    json.dump(found, file)
module.exit_json()
"""
STAY = """
import os, time
from ansible.module_utils import basic
pipe = open("pipe", "w")
pipe.write(f"{os.getpid()}\\n")
pipe.flush()
time.sleep(60)
"""


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


def test_a_module_of_localhost_runs_as_a_program_of_its_own(folder: Path, controller: Controller) -> None:
    """It is forked off a process that has boto3, and is like any other in what it finds, prints and leaves."""
    (folder / "library").mkdir()
    (folder / "library" / "look.py").write_text(LOOK)
    (folder / "look.yml").write_text(LOCAL.format("look: {}"))
    found = []
    for said in ("one", "two"):
        status, text = controller.run(["-i", "localhost,", "look.yml"], {"SAID": said}, 60)
        assert status == 0, text
        found.append(json.loads((folder / "found.json").read_text()))
    assert [one["said"] for one in found] == ["one", "two"]
    assert [(one["folder"], one["foreign"]) for one in found] == [(str(folder), [])] * 2
    assert all(one["boto3_before"] for one in found), "else each module imports it"
    assert found[0]["process"] != found[1]["process"]
    assert not any(Path(one["temporary"]).exists() for one in found), "what is done at the end of a program is done"


def test_a_module_that_ends_otherwise_is_told_as_ever(folder: Path, controller: Controller) -> None:
    (folder / "library").mkdir(exist_ok=True)
    for name, statement in {
        "raises": "raise RuntimeError('no luck')",
        "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "loud": "import os; print('partial'); os.write(2, b'to the error output'); raise SystemExit(3)",
    }.items():
        (folder / "library" / f"{name}.py").write_text(f"from ansible.module_utils import basic\n{statement}\n")
    expected = {"raises": "no luck", "killed": "rc: -9", "loud": "to the error output"}
    for name, text in expected.items():
        (folder / f"{name}.yml").write_text(LOCAL.format(f"{name}: {{}}"))
        status, output = controller.run(["-i", "localhost,", f"{name}.yml"], {}, 60)
        assert (status, text in output) == (2, True), output
    assert "rc: 3" in output


def test_a_killed_run_is_told_with_its_modules_and_the_next_one_runs(folder: Path, controller: Controller) -> None:
    (folder / "library").mkdir(exist_ok=True)
    (folder / "library" / "stay.py").write_text(STAY)
    (folder / "stay.yml").write_text(LOCAL.format("stay: {}"))
    (folder / "pipe").unlink(missing_ok=True)
    os.mkfifo(folder / "pipe")
    with open(os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)) as pipe:
        controller.begin(["-i", "localhost,", "stay.yml"], {}, str(folder / "output"))
        assert select.select([pipe], [], [], 60)[0], (folder / "output").read_text()
        os.set_blocking(pipe.fileno(), True)
        module = int(pipe.readline())
        with controller.halted() as processes:
            assert module in processes
            for process in processes:
                os.kill(process, signal.SIGKILL)
        assert pipe.read() == "", "it has ended"
    assert controller.end() == -signal.SIGKILL
    status, text = controller.run(["-i", "localhost,", "good.yml", "-e", "said=again"], {}, 60)
    assert (status, "msg: again" in text) == (0, True)
