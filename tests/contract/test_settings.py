from __future__ import annotations

import re
import tomllib
from typing import Any

from packaging.requirements import Requirement

from tests.contract import tree

PYPROJECT: dict[str, Any] = tomllib.loads(tree.text("pyproject.toml"))


def test_every_dependency_is_pinned() -> None:
    lines = [line for group in PYPROJECT["dependency-groups"].values() for line in group if isinstance(line, str)]
    assert [line for line in lines if not re.fullmatch(r"==[\w.]+", str(Requirement(line).specifier))] == []


def test_preflight_and_galaxy_ask_for_the_same_collection() -> None:
    bounds = {entry["name"]: entry["version"] for entry in tree.yaml_of("requirements.yml")["collections"]}
    wanted = tree.yaml_of("roles/preflight/defaults/main.yml")["preflight_amazon_aws_min"]
    assert bounds["amazon.aws"] == f">={wanted}"


def test_collections_that_are_used_are_required() -> None:
    collection = r"\b((?:amazon|community)\.[a-z]+|ansible\.(?!builtin)[a-z]+)\.[a-z]\w+"
    used = {match for path in tree.task_files() for match in re.findall(collection, tree.text(path))}
    assert used == {entry["name"] for entry in tree.yaml_of("requirements.yml")["collections"]}


def test_a_warning_fails_a_test() -> None:
    settings = PYPROJECT["tool"]["pytest"]["ini_options"]
    assert settings["filterwarnings"][0] == "error"
    assert {"--strict-markers", "--strict-config"} <= set(settings["addopts"])
    assert settings["xfail_strict"] is True


def test_ansible_lint_leaves_nothing_out() -> None:
    settings = tree.yaml_of(".ansible-lint")
    assert settings["profile"] == "production"
    assert settings["strict"] is True
    assert settings.keys() & {"skip_list", "warn_list"} == set()
    assert not (tree.ROOT / ".ansible-lint-ignore").exists()


def test_mypy_is_strict_and_looks_at_everything() -> None:
    settings = PYPROJECT["tool"]["mypy"]
    assert settings["strict"] is True
    assert set(settings["files"]) == {"bench", "contrib", "library", "module_utils", "lab", "plugins", "tests"}
    assert not any(name.startswith("ansible") for override in settings["overrides"] for name in override["module"])
