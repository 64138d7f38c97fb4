"""Reads the tree that the contract tests look at."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils import basic

ROOT = Path(__file__).resolve().parent.parent.parent
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
MODULES = sorted(path.stem for path in (ROOT / "library").glob("*.py"))
# Pages for people; the READMEs of the roles have rules of their own.
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "lab/*.md", "contrib/*.md", "inventories/*/*.md", "typings/*.md")
    for path in ROOT.glob(pattern)
)
PLAYBOOKS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "playbooks").rglob("*.yml"))


def text(path: str | Path, errors: str = "strict") -> str:
    """The text of a file, named from the root of the checkout."""
    return (ROOT / path).read_text(encoding="utf-8", errors=errors)


def yaml_of(path: str | Path) -> Any:
    """The parsed content of a YAML file, named from the root of the checkout."""
    return yaml.safe_load(text(path))


def tracked_files() -> list[str]:
    """The files that git tracks, with those that are new and not ignored: what a clone will hold."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("needs git and a checkout of its own, to tell the project's files from what it made")
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]


def task_files() -> list[str]:
    """Every YAML file that holds tasks or plays."""
    patterns = ("roles/*/tasks/*.yml", "roles/*/handlers/*.yml", "playbooks/**/*.yml")
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def role_options(role: str) -> dict[str, Any]:
    """The options of a role's argument_specs, all entry points together."""
    specs = yaml_of(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]
    return {name: option for entry in specs.values() for name, option in (entry.get("options") or {}).items()}


def policies() -> dict[str, Any]:
    """The JSON blocks of docs/permissions.md by the heading above them."""
    parts = re.split(r"^## (.+)$", text("docs/permissions.md"), flags=re.MULTILINE)
    return {
        heading: json.loads(block)
        for heading, section in zip(parts[1::2], parts[2::2], strict=True)
        for block in re.findall(r"^```json\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    }


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of Ansible's programs with this checkout's settings and nobody else's."""
    return subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "LC_ALL": "C.UTF-8", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@functools.cache
def documentation() -> dict[str, Any]:
    """What ansible-doc knows of each module of library/: keys doc, examples, return; fragments are merged in."""
    done = run("ansible-doc", "-t", "module", "-M", "library", "--json", *MODULES)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class _CapturedError(Exception):
    """Carries what a module gave AnsibleModule out of its main()."""


def module_call(name: str) -> dict[str, Any]:
    """What the main() of a module gives AnsibleModule: argument_spec, supports_check_mode and the rest."""

    def capture(_: object, **arguments: Any) -> None:
        raise _CapturedError(arguments)

    specification = importlib.util.spec_from_file_location(f"contract_{name}", ROOT / "library" / f"{name}.py")
    if specification is None or specification.loader is None:
        raise AssertionError(f"library/{name}.py cannot be loaded")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(basic.AnsibleModule, "__init__", capture)
        with pytest.raises(_CapturedError) as captured:
            module.main()
    arguments: dict[str, Any] = captured.value.args[0]
    return arguments
