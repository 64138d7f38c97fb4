from __future__ import annotations

import contextlib
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pip
import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.host.python_environment import Environment, make_environment

PIP_WHEEL = "pip-25.3-py3-none-any.whl"
NUMPY_WHEEL = "numpy-2.0.2-cp311-cp311-manylinux_2_17_x86_64.whl"


def hashed(pin: str, *contents: bytes) -> str:
    """A pin and the hashes of files of its release, as `make locks` writes them."""
    return " \\\n".join([pin, *(f"    --hash=sha256:{hashlib.sha256(content).hexdigest()}" for content in contents)])


PIP_PIN = hashed("pip==25.3", b"sdist", PIP_WHEEL.encode())
NUMPY_PIN = hashed("numpy==2.0.2", NUMPY_WHEEL.encode(), b"for another platform")
PINS = f"{NUMPY_PIN}\n{PIP_PIN}"


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


def pack(archive: Path, wheels: Mapping[str, bytes]) -> None:
    with tarfile.open(archive, "w") as tar:
        for name, content in wheels.items():
            member = tarfile.TarInfo(f"wheels/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def wanted(tmp_path: Path) -> Environment:
    archive = tmp_path / "wheels.tar"
    pack(archive, {name: name.encode() for name in (PIP_WHEEL, NUMPY_WHEEL)})
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
    assert {"--require-hashes", "--only-binary=:all:"} <= set(install)
    assert host.pins.split() == NUMPY_PIN.replace("\\", "").split(), "pip installs the others, and not itself"
    assert left(wanted) == ["bin/python", "requirements.txt"]
    assert (Path(wanted.path) / "requirements.txt").read_text() == PINS
    assert not Path(wanted.archive).exists()


def test_from_the_index_pip_alone_comes_from_the_archive(wanted: Environment) -> None:
    pack(Path(wanted.archive), {PIP_WHEEL: PIP_WHEEL.encode()})
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
    newer = Environment(wanted.path, hashed("numpy==2.0.3", NUMPY_WHEEL.encode()) + f"\n{PIP_PIN}", wanted.archive)
    host = Host(newer)
    assert make_environment(newer, host, check_mode=True)["changed"]
    assert host.commands == []
    assert make_environment(newer, host, check_mode=False)["changed"]
    assert [command[2] for command in host.commands] == ["install"]
    assert host.pins.startswith("numpy==2.0.3 ")


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
        make_environment(Environment(wanted.path, NUMPY_PIN, wanted.archive), Host(wanted), check_mode=False)
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (PIP_WHEEL, b"another pip"),
        (NUMPY_WHEEL, b"another numpy"),
        (NUMPY_WHEEL, PIP_WHEEL.encode()),
        ("urllib3-2.8.0-py3-none-any.whl", NUMPY_WHEEL.encode()),
    ],
)
def test_a_wheel_that_is_not_the_one_that_was_pinned_is_neither_run_nor_installed(
    name: str, content: bytes, wanted: Environment
) -> None:
    pack(Path(wanted.archive), {PIP_WHEEL: PIP_WHEEL.encode(), NUMPY_WHEEL: NUMPY_WHEEL.encode(), name: content})
    host = Host(wanted)
    with pytest.raises(OpsError) as failure:
        make_environment(wanted, host, check_mode=False)
    assert str(failure.value) == (
        f"Archive {wanted.archive}: {name} is none of the files that the list of pins has the SHA-256 of, so nothing "
        "was installed. Remove the controller's cache of wheels and rerun. If it happens again, find out who changes "
        "the file"
    )
    assert host.commands == []
    assert not (Path(wanted.path) / "requirements.txt").exists()


def wheel_of(folder: Path, name: str, version: str) -> bytes:
    """A wheel with the package in a folder, and no more than pip wants to see."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as wheel:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                wheel.write(path, path.relative_to(folder.parent))
        information = f"{name}-{version}.dist-info"
        wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
    return made.getvalue()


def test_pip_itself_refuses_from_an_index_what_was_not_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a real environment, and the pip of this one as that of the archive."""
    package = tmp_path / "package" / "pinned"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    ours = wheel_of(package, "pinned", "1.0")
    (package / "__init__.py").write_text("print('tampered')")
    index = tmp_path / "index" / "pinned-1.0-py3-none-any.whl"
    index.parent.mkdir()
    index.write_bytes(wheel_of(package, "pinned", "1.0"))
    installer = wheel_of(Path(pip.__file__).parent, "pip", pip.__version__)
    pins = hashed("pinned==1.0", ours) + "\n" + hashed(f"pip=={pip.__version__}", installer)
    archive = tmp_path / "wheels.tar"
    pack(archive, {f"pip-{pip.__version__}-py3-none-any.whl": installer})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.parent))
    wanted = Environment(str(tmp_path / "environment"), pins, str(archive), from_index=True)

    def run_command(command: list[str]) -> tuple[int, str, str]:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    with pytest.raises(OpsError, match="DO NOT MATCH THE HASHES"):
        make_environment(wanted, run_command, check_mode=False)
    index.write_bytes(ours)
    made = make_environment(wanted, run_command, check_mode=False)
    assert subprocess.run([made["interpreter"], "-c", "import pinned"], check=True, capture_output=True).stdout == b""
