from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping

import pytest

from tests.contract import architecture, tree
from tests.contract.architecture import NAME

# Every GPU host runs it. What it takes along is to stay what it needs: module, errors, files, hashing and the pool of
# threads, the manifest, every format, those that verify, and the processes that decode.
RECORDIO_VERIFY_FILES_MAX = 22


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return architecture.imports(architecture.files())


def test_every_file_is_in_a_package_that_has_its_floor(graph: Mapping[str, set[str]]) -> None:
    assert architecture.packages(graph).keys() == architecture.FLOOR_OF.keys()


def test_every_import_goes_to_a_lower_floor_or_stays_in_its_package(graph: Mapping[str, set[str]]) -> None:
    assert architecture.wrong_ways(graph) == []


def test_neither_files_nor_packages_import_in_a_circle(graph: Mapping[str, set[str]]) -> None:
    assert architecture.circle(graph) == []
    assert architecture.circle(architecture.packages(graph)) == []


def test_the_documented_packages_are_those_that_exist() -> None:
    text = tree.text("docs/architecture.md").partition("## Packages of module_utils/imagenet_ops")[2]
    picture, _, rest = text.partition("```text")[2].partition("```")
    table = rest.partition("| package |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == architecture.FLOOR_OF.keys()
    drawn = re.findall(r"^  floor (\d).*\n([^\n]*)", picture, re.MULTILINE)
    floors = {int(number): set(re.findall(r"│ +(\w+) +(?=│)", line)) for number, line in drawn}
    assert floors == {number: set(packages) for number, packages in enumerate(architecture.FLOORS, 1)}


@pytest.mark.parametrize("package", sorted(architecture.FLOOR_OF))
def test_a_package_is_its_docstring_and_its_files(package: str) -> None:
    # Ansible sends an __init__.py with all that it imports, whichever file of the package a module wants.
    source = (architecture.OURS / package / "__init__.py").read_text(encoding="utf-8")
    assert architecture.is_docstring_alone(source)


def test_the_package_of_all_imports_none_of_them() -> None:
    source = (architecture.OURS / "__init__.py").read_text(encoding="utf-8")
    assert "import os" in source
    assert "imagenet_ops" not in source.replace("modules of imagenet-ops", "")


def test_what_ansible_sends_with_each_module_is_what_it_imports(graph: Mapping[str, set[str]]) -> None:
    command = [sys.executable, "-m", "tests.contract.payload", *tree.MODULES]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(tree.ROOT / "ansible.cfg")}
    done = subprocess.run(command, cwd=tree.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    bundled = json.loads(done.stdout)
    assert bundled == {name: sorted(needed_by(name, graph)) for name in tree.MODULES}
    assert len(bundled["recordio_verify"]) <= RECORDIO_VERIFY_FILES_MAX


def needed_by(module: str, graph: Mapping[str, set[str]]) -> set[str]:
    """All that the module imports, and all that this does."""
    needed: set[str] = set()
    sources = {**dict.fromkeys(graph, ""), "module": tree.text(f"library/{module}.py")}
    found = architecture.imports(sources)["module"]
    while found:
        needed |= found
        found = {other for name in found for other in graph[name]} - needed
    return needed


# --- the checks themselves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (f"from {NAME}.core.errors import OpsError", {"core/errors"}),
        (f"from {NAME}.core import errors, files", {"core/errors", "core/files"}),
        (f"import {NAME}.core.errors as e", {"core/errors"}),
        (f"from {NAME} import core", set()),
        ("from .engine import transfer", {"download/engine"}),
        ("from . import engine", {"download/engine"}),
        ("from ..core import files", {"core/files"}),
        (f"def f():\n    from {NAME}.core.errors import OpsError", {"core/errors"}),
        (f"if TYPE_CHECKING:\n    from {NAME}.core.errors import OpsError", {"core/errors"}),
        ("import os\nfrom core.errors import x", set()),
    ],
)
def test_imports_are_found(source: str, found: set[str]) -> None:
    others = dict.fromkeys(("core/errors", "core/files", "download/engine"), "")
    assert architecture.imports({**others, "download/fetch": source})["download/fetch"] == found


def test_arrows_between_packages() -> None:
    graph = {"core/errors": set(), "aws/s3": {"core/errors", "aws/errors"}, "aws/errors": {"core/errors"}}
    assert architecture.packages(graph) == {"core": set(), "aws": {"core"}}


@pytest.mark.parametrize(
    ("name", "other", "faults"),
    [
        ("pack/pack", "dataset/manifest", 0),
        ("pack/pack", "pack/split", 0),
        ("dataset/verify", "pack/writer", 1),
        ("layout/checkpoint", "download/verified", 1),
        ("core/files", "aws/errors", 1),
    ],
)
def test_imports_that_go_the_wrong_way(name: str, other: str, faults: int) -> None:
    found = architecture.wrong_ways({name: {other}})
    assert len(found) == faults
    assert all(name in line and other in line for line in found)


def test_circles() -> None:
    assert architecture.circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    found = architecture.circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert found[0] == found[-1]
    assert [*found, *found[1:]][:4] in (["a", "b", "c", "a"], ["b", "c", "a", "b"], ["c", "a", "b", "c"])


@pytest.mark.parametrize(
    ("source", "is_alone"),
    [
        ('"""Says what it is."""\n', True),
        ("", False),
        ('"""Says what it is."""\nimport os\n', False),
        ('"""Says what\nit is.\n"""\n', False),
        ("X = 1\n", False),
    ],
)
def test_an_init_that_is_a_line_of_docstring(source: str, is_alone: bool) -> None:
    assert architecture.is_docstring_alone(source) == is_alone


def test_the_picture_has_each_package_with_what_it_imports() -> None:
    lines = architecture.picture({"core/errors": set(), "aws/s3": {"core/errors"}}).splitlines()
    assert [line.split()[2] for line in lines][-1] == "core"
    assert "floor 2  aws         1 files  -> core" in lines
    assert "floor 1  core        1 files  -> nothing" in lines
    assert len(lines) == 11
