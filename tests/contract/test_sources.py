from __future__ import annotations

from pathlib import PurePath

import pytest

from tests.contract import checks, tree

MIRRORED = {
    "library": "tests/unit/library",
    "module_utils/imagenet_ops": "tests/unit/module_utils/imagenet_ops",
    "plugins/action": "tests/unit/plugins/action",
    "plugins/callback": "tests/unit/plugins/callback",
    "plugins/filter": "tests/unit/plugins/filter",
}
TRACKED_BYTES_MAX = 100_000


@pytest.mark.parametrize("folder", MIRRORED)
def test_every_file_has_its_test_and_every_test_its_file(folder: str) -> None:
    top, tests_top = tree.ROOT / folder, tree.ROOT / MIRRORED[folder]
    paths = [path.relative_to(top) for path in top.rglob("*.py") if checks.defines_something(tree.text(path))]
    sources = {str(path.with_name(f"test_{path.name}")) for path in paths}
    tests = {str(path.relative_to(tests_top)) for path in tests_top.rglob("test_*.py")}
    assert sources == tests


def test_every_action_plugin_is_of_a_module() -> None:
    plugins = {path.stem for path in (tree.ROOT / "plugins" / "action").glob("*.py")}
    shared = {name for name in plugins if checks.defines_something(tree.text(f"plugins/action/{name}.py"))}
    assert plugins - shared <= set(tree.MODULES)
    assert shared == {"long_task"}


def test_only_module_py_knows_ansible() -> None:
    folder = tree.ROOT / "module_utils" / "imagenet_ops"
    paths = folder.rglob("*.py")
    knowing = {str(path.relative_to(folder)): checks.ansible_imports(tree.text(path)) for path in paths}
    assert {name for name, imports in knowing.items() if imports} == {"core/module.py"}


@pytest.mark.parametrize("name", [name for name in tree.tracked_files() if name.startswith("module_utils/")])
def test_public_functions_name_the_errors_they_raise(name: str) -> None:
    assert checks.errors_not_named(tree.text(name)) == []


def test_no_file_is_large() -> None:
    # A lock has a line for every file of a release.
    names = [name for name in tree.tracked_files() if not name.startswith("locks/")]
    sizes = {name: (tree.ROOT / name).stat().st_size for name in names}
    assert {name: size for name, size in sizes.items() if size > TRACKED_BYTES_MAX} == {}


@pytest.mark.parametrize(
    ("pattern", "what"),
    [(checks.FOREIGN_PATHS, "a path of somebody's machine"), (checks.UNFINISHED, "a note of unfinished work")],
)
def test_no_file_holds(pattern: str, what: str) -> None:
    names = [name for name in tree.tracked_files() if name != "LICENSE"]
    assert [
        f"{name}: {line}" for name in names for line in checks.matches(pattern, tree.text(name, errors="replace"))
    ] == [], what


def test_every_suppressed_finding_has_its_reason() -> None:
    # A test that replaces a method is its own reason.
    sources = [name for name in tree.tracked_files() if not name.startswith("tests/")]
    names = [name for name in sources if PurePath(name).suffix in (".py", ".yml")]
    assert [f"{name}: {line}" for name in names for line in checks.suppressions_without_reason(tree.text(name))] == []


def test_every_skipped_test_says_why() -> None:
    names = [name for name in tree.tracked_files() if name.startswith("tests/") and name.endswith(".py")]
    assert [f"{name}: {line}" for name in names for line in checks.skips_without_reason(tree.text(name))] == []
