"""A Python environment with the packages of a list of pins, made from wheels that came in one file, or from an index.

The system's own Python is not touched, and needs no pip: that of the wheels installs the others. Nothing is run or
installed whose hash is not in the list of pins. The list is written last, so an environment that has it is whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tarfile
from dataclasses import dataclass
from typing import Callable, NamedTuple, TypedDict

from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import exclusive, write_atomic
from ansible.module_utils.imagenet_ops.core.hashing import hash_file

REQUIREMENTS_NAME = "requirements.txt"
LOCK_NAME = ".lock"
HASH = "--hash=sha256:"

RunCommand = Callable[[list[str]], tuple[int, str, str]]


@dataclass(frozen=True)
class Environment:
    """What is wanted: ``requirements`` (pins with hashes, as pip reads them, pip's among them) installed in ``path``.

    ``archive`` is a tar of the wheels, or of pip's alone where the others come from the index that pip is set to.
    """

    path: str
    requirements: str
    archive: str
    from_index: bool = False


class _Pin(NamedTuple):
    version: str
    hashes: set[str]
    line: str


class EnvironmentResult(TypedDict):
    """The result of the module python_environment_make."""

    changed: bool
    interpreter: str


def make_environment(wanted: Environment, run_command: RunCommand, *, check_mode: bool) -> EnvironmentResult:
    """Make or renew the environment and return the result of the module python_environment_make.

    ``run_command`` returns exit status, output and errors. Raises OpsError where a command fails, where pip is not
    among the pins or its wheel not in the archive, and where a wheel is not the one that was pinned.
    """
    python = os.path.join(wanted.path, "bin", "python")
    changed = _installed(wanted.path) != wanted.requirements
    if not check_mode:
        os.makedirs(wanted.path, mode=0o755, exist_ok=True)
        # A run whose controller was lost may still be at it: wait, and find it done.
        with exclusive(os.path.join(wanted.path, LOCK_NAME)):
            changed = _installed(wanted.path) != wanted.requirements
            if changed:
                _make(wanted, python, run_command)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(wanted.archive)
    return {"changed": changed, "interpreter": python}


def _make(wanted: Environment, python: str, run_command: RunCommand) -> None:
    wheels = os.path.join(wanted.path, "wheels")
    pins = _pins(wanted.requirements)
    if "pip" not in pins:
        raise OpsError("The list of pins", "pip is not among them", "Add pip, which installs the others")
    pip = os.path.join(wheels, f"pip-{pins['pip'].version}-py3-none-any.whl", "pip")
    _unpack(wanted.archive, wheels)
    if not os.path.exists(os.path.dirname(pip)):
        raise OpsError(
            f"Archive {wanted.archive}",
            f"there is no {os.path.basename(os.path.dirname(pip))} in it",
            "Remove the controller's cache of wheels and rerun",
        )
    _verify(wanted.archive, wheels, pins)
    if not os.path.exists(python):
        _run(run_command, [sys.executable, "-m", "venv", "--without-pip", wanted.path], f"Environment {wanted.path}")
    others = os.path.join(wheels, REQUIREMENTS_NAME)
    with open(others, "w", encoding="utf-8") as file:
        file.writelines(f"{pin.line}\n" for name, pin in pins.items() if name != "pip")
    # The modules import a tenth of it: bytecode of all would take a third of the time.
    install = [python, pip, "install", "--quiet", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    install += ["--root-user-action=ignore", "--require-hashes", "--only-binary=:all:", "--requirement", others]
    install += [] if wanted.from_index else ["--no-index", "--find-links", wheels]
    _run(run_command, install, f"Packages of {wanted.path}")
    shutil.rmtree(wheels)
    write_atomic(os.path.join(wanted.path, REQUIREMENTS_NAME), wanted.requirements.encode())


def _installed(path: str) -> str | None:
    name = os.path.join(path, REQUIREMENTS_NAME)
    # What is damaged is no list of pins that anyone wants, and the environment is made again.
    with contextlib.suppress(FileNotFoundError), open(name, encoding="utf-8", errors="replace") as file:
        return file.read()
    return None


def _pins(requirements: str) -> dict[str, _Pin]:
    """Return the pins by package; the hashes of one may stand on lines of their own, each after a backslash."""
    pins = {}
    for line in requirements.replace("\\\n", " ").splitlines():
        words = line.split()
        name, _, version = words[0].partition("==")
        hashes = {word[len(HASH) :] for word in words[1:] if word.startswith(HASH)}
        pins[_normalized(name)] = _Pin(version, hashes, " ".join(words))
    return pins


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _verify(archive: str, wheels: str, pins: dict[str, _Pin]) -> None:
    """Compare every wheel with the hashes of its package before one is run; pip checks again what it installs."""
    for wheel in sorted(os.listdir(wheels)):
        pin = pins.get(_normalized(wheel.partition("-")[0]))
        if pin is None or hash_file(os.path.join(wheels, wheel)) not in pin.hashes:
            raise OpsError(
                f"Archive {archive}",
                f"{wheel} is none of the files that the list of pins has the SHA-256 of, so nothing was installed",
                "Remove the controller's cache of wheels and rerun. If it happens again, find out who changes the file",
            )


def _unpack(archive: str, folder: str) -> None:
    """Put the files of ``archive``, whatever their folders in it, into ``folder``, which is created from scratch."""
    if os.path.exists(folder):
        shutil.rmtree(folder)
    os.mkdir(folder)
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is not None:
                with content, open(os.path.join(folder, os.path.basename(member.name)), "wb") as file:
                    shutil.copyfileobj(content, file)


def _run(run_command: RunCommand, command: list[str], what: str) -> None:
    status, output, error = run_command(command)
    if status != 0:
        why = " ".join((error or output).split()).rstrip(".")
        program = os.path.basename(command[0])
        raise OpsError(what, f"{program} ended with {status}: {why}", "Fix the cause above and rerun")
