from __future__ import annotations

import contextlib
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.host.python_environment import Environment, make_environment

PINS = "numpy==2.0.2\npip==25.3"
PIP_WHEEL = "pip-25.3-py3-none-any.whl"
NUMPY_WHEEL = "numpy-2.0.2-cp311-cp311-manylinux_2_17_x86_64.whl"


class Host:
    """Runs nothing, and notes what was to be run and what lay there then."""

    def __init__(self, wanted: Environment, failing: str = "") -> None:
        self.wanted = wanted
        self.failing = failing
        self.commands: list[list[str]] = []
        self.wheels: list[str] = []
        self.pins = ""

    def __call__(self, command: list[str]) -> tuple[int, str, str]:
        self.commands.append(command)
        if "venv" in command:
            python = Path(self.wanted.path) / "bin" / "python"
            python.parent.mkdir()
            python.touch()
        else:
            folder = Path(self.wanted.path) / "wheels"
            self.wheels = sorted(entry.name for entry in folder.iterdir())
            self.pins = (folder / "requirements.txt").read_text()
        return (1, "", "error: No space left\non device.\n") if self.failing in command else (0, "", "")


@pytest.fixture
def wanted(tmp_path: Path) -> Environment:
    folder = tmp_path / "controller" / "wheels"
    folder.mkdir(parents=True)
    for name in (PIP_WHEEL, NUMPY_WHEEL):
        (folder / name).write_bytes(name.encode())
    archive = tmp_path / "wheels.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, "wheels")
    return Environment(str(tmp_path / "environments" / "ours"), PINS, str(archive))


def left(wanted: Environment) -> list[str]:
    return sorted(
        str(path.relative_to(wanted.path))
        for path in Path(wanted.path).rglob("*")
        if path.is_file() and path.name != ".lock"
    )


def test_it_is_made_of_the_wheels_in_the_archive_and_nothing_is_left_over(wanted: Environment) -> None:
    host = Host(wanted)
    python = f"{wanted.path}/bin/python"
    assert make_environment(wanted, host, check_mode=False) == {"changed": True, "interpreter": python}
    assert host.commands[0] == [sys.executable, "-m", "venv", "--without-pip", wanted.path]
    install = host.commands[1]
    assert install[:3] == [python, f"{wanted.path}/wheels/{PIP_WHEEL}/pip", "install"]
    assert install[-3:] == ["--no-index", "--find-links", f"{wanted.path}/wheels"]
    assert host.wheels == sorted([NUMPY_WHEEL, PIP_WHEEL, "requirements.txt"])
    assert host.pins == "numpy==2.0.2\n", "pip installs the others, and not itself"
    assert left(wanted) == ["bin/python", "requirements.txt"]
    assert (Path(wanted.path) / "requirements.txt").read_text() == PINS
    assert not Path(wanted.archive).exists()


def test_from_the_index_pip_alone_comes_from_the_archive(wanted: Environment) -> None:
    wanted = Environment(wanted.path, wanted.requirements, wanted.archive, from_index=True)
    host = Host(wanted)
    make_environment(wanted, host, check_mode=False)
    assert "--no-index" not in host.commands[1]


def test_again_nothing_is_run_and_other_pins_are_installed_into_it(wanted: Environment) -> None:
    archive = Path(wanted.archive).read_bytes()
    make_environment(wanted, Host(wanted), check_mode=False)
    again = Host(wanted)
    assert not make_environment(wanted, again, check_mode=False)["changed"]
    assert again.commands == []
    Path(wanted.archive).write_bytes(archive)
    newer = Environment(wanted.path, "scipy==1.13.1\npip==25.3", wanted.archive)
    host = Host(newer)
    assert make_environment(newer, host, check_mode=True)["changed"]
    assert host.commands == []
    assert make_environment(newer, host, check_mode=False)["changed"]
    assert [command[2] for command in host.commands] == ["install"]


def test_an_earlier_run_that_is_still_at_it_is_waited_for(wanted: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its controller was lost, and the next run copied the archive once more."""

    @contextlib.contextmanager
    def the_other_ends(lock_path: str) -> Iterator[None]:
        (Path(lock_path).parent / "requirements.txt").write_text(PINS)
        yield

    monkeypatch.setattr("ansible.module_utils.imagenet_ops.host.python_environment.exclusive", the_other_ends)
    host = Host(wanted)
    assert not make_environment(wanted, host, check_mode=False)["changed"]
    assert host.commands == []
    assert not Path(wanted.archive).exists()


def test_in_check_mode_nothing_is_made(wanted: Environment) -> None:
    assert make_environment(wanted, Host(wanted), check_mode=True)["changed"]
    assert not Path(wanted.path).exists()


def test_what_fails_is_told_and_done_in_the_next_run(wanted: Environment) -> None:
    with pytest.raises(OpsError) as failure:
        make_environment(wanted, Host(wanted, failing="install"), check_mode=False)
    assert str(failure.value) == (
        f"Packages of {wanted.path}: python ended with 1: error: No space left on device. Fix the cause above and rerun"
    )
    assert not (Path(wanted.path) / "requirements.txt").exists()
    host = Host(wanted)
    assert make_environment(wanted, host, check_mode=False)["changed"]
    assert [command[2] for command in host.commands] == ["install"]


def test_pip_has_to_be_there(wanted: Environment) -> None:
    with pytest.raises(OpsError, match="pip is not among them"):
        make_environment(Environment(wanted.path, "numpy==2.0.2", wanted.archive), Host(wanted), check_mode=False)
    other = Environment(wanted.path, "pip==1.0", wanted.archive)
    with pytest.raises(OpsError) as failure:
        make_environment(other, Host(other), check_mode=False)
    assert str(failure.value) == (
        f"Archive {wanted.archive}: there is no pip-1.0-py3-none-any.whl in it. "
        "Remove the controller's cache of wheels and rerun"
    )


def test_a_list_of_pins_that_is_damaged_is_made_again(wanted: Environment) -> None:
    make_environment(wanted, Host(wanted), check_mode=False)
    (Path(wanted.path) / "requirements.txt").write_bytes(b"\xff\xfe")
    (Path(wanted.archive)).touch()
    assert make_environment(wanted, Host(wanted), check_mode=True)["changed"] is True
