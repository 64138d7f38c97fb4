"""The files that `make locks` writes agree with the groups of pyproject.toml, which are written by hand."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.contract import tree

GROUPS: dict[str, Any] = tomllib.loads(tree.text("pyproject.toml"))["dependency-groups"]
HOST_FILES = Path("roles/python_environment/files")
ACCEPTED = "locks/accepted-vulnerabilities.txt"
# The groups whose pins a file holds, and the Pythons that it is for.
LOCKS: dict[str, tuple[list[str], list[str]]] = {
    "locks/pip.txt": (["pip"], ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14"]),
    "locks/development.txt": (["development"], ["3.11", "3.12", "3.13", "3.14"]),
    "locks/test.txt": (["test"], ["3.12", "3.13", "3.14"]),
    "locks/python39.txt": (["python39"], ["3.9"]),
    "locks/strict-s3.txt": (["strict-s3"], ["3.11", "3.12", "3.13", "3.14"]),
    "locks/ministack.txt": (["ministack"], ["3.11", "3.12", "3.13", "3.14"]),
    "locks/judges.txt": (["judges"], ["3.11"]),
    "locks/judges-source.txt": (["judges-source"], ["3.11"]),
    "locks/s3-peers.txt": (["s3-peers"], ["3.11", "3.12", "3.13", "3.14"]),
    "locks/supply-chain.txt": (["supply-chain"], ["3.11", "3.12", "3.13", "3.14"]),
    f"{HOST_FILES}/requirements-3.9.txt": (["host", "host-pip"], ["3.9"]),
    f"{HOST_FILES}/requirements-3.10.txt": (["host", "host-pip"], ["3.10", "3.11", "3.12"]),
    f"{HOST_FILES}/requirements-3.13.txt": (["host", "host-pip"], ["3.13", "3.14"]),
    f"{HOST_FILES}/requirements-parquet-3.9.txt": (["host", "host-parquet", "host-pip"], ["3.9"]),
    f"{HOST_FILES}/requirements-parquet-3.10.txt": (["host", "host-parquet", "host-pip"], ["3.10", "3.11", "3.12"]),
    f"{HOST_FILES}/requirements-parquet-3.13.txt": (["host", "host-parquet", "host-pip"], ["3.13", "3.14"]),
    f"{HOST_FILES}/requirements-mxnet-3.9.txt": (["conformance", "host-pip"], ["3.9"]),
    f"{HOST_FILES}/requirements-mxnet-3.10.txt": (["conformance", "host-pip"], ["3.10", "3.11"]),
}


def pins(lines: list[str], python: str) -> dict[str, str]:
    """Package to version, of those requirements that hold for a Python version."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    wanted = [Requirement(line) for line in lines]
    valid = [entry for entry in wanted if entry.marker is None or entry.marker.evaluate(environment)]
    return {entry.name: str(entry.specifier) for entry in valid}


def lines_of(group: str) -> list[str]:
    """The requirements of a group, with those of the groups that it includes."""
    lines: list[str] = []
    for line in GROUPS[group]:
        lines += [line] if isinstance(line, str) else lines_of(line["include-group"])
    return lines


def entries(path: str) -> list[tuple[str, list[str]]]:
    """The requirements of a lock, each with its hashes."""
    text = re.sub(r"^#.*\n", "", tree.text(path), flags=re.MULTILINE).replace("\\\n", "")
    words = [line.split(" --hash=") for line in re.sub(r" +", " ", text).splitlines()]
    return [(requirement.strip(), hashes) for requirement, *hashes in words]


def test_every_file_of_pins_is_known() -> None:
    files = {str(path.relative_to(tree.ROOT)) for path in (tree.ROOT / "locks").iterdir()}
    files |= {str(path.relative_to(tree.ROOT)) for path in (tree.ROOT / HOST_FILES).iterdir()}
    assert files == {*LOCKS, ACCEPTED}


def test_every_group_is_in_a_lock() -> None:
    def included(group: str) -> set[str]:
        names = [line["include-group"] for line in GROUPS[group] if isinstance(line, dict)]
        return {group}.union(*map(included, names))

    assert set().union(*(included(group) for groups, _ in LOCKS.values() for group in groups)) == GROUPS.keys()


@pytest.mark.parametrize(
    ("path", "python"), [(path, python) for path, (_, pythons) in LOCKS.items() for python in pythons]
)
def test_a_lock_has_the_pins_of_its_groups(path: str, python: str) -> None:
    installed = pins([requirement for requirement, _ in entries(path)], python)
    wanted = pins([line for group in LOCKS[path][0] for line in lines_of(group)], python)
    assert wanted
    assert {name: installed.get(name) for name in wanted} == wanted, "run `make locks`"


@pytest.mark.parametrize("path", LOCKS)
def test_everything_in_a_lock_is_pinned_and_has_hashes(path: str) -> None:
    found = entries(path)
    assert found
    assert [entry for entry, _ in found if not re.fullmatch(r"==[\w.]+", str(Requirement(entry).specifier))] == []
    assert [entry for entry, hashes in found if not hashes] == []
    assert [hash_ for _, hashes in found for hash_ in hashes if not re.fullmatch(r"sha256:[0-9a-f]{64}", hash_)] == []


def releases(path: str) -> set[tuple[str, ...]]:
    return {(requirement.partition(" ;")[0], *hashes) for requirement, hashes in entries(path)}


@pytest.mark.parametrize("python", ["3.9", "3.10", "3.13"])
def test_a_host_that_packs_parquet_has_the_packages_of_the_others_and_pyarrow(python: str) -> None:
    others = releases(f"{HOST_FILES}/requirements-{python}.txt")
    both = releases(f"{HOST_FILES}/requirements-parquet-{python}.txt")
    assert others < both
    assert {requirement.partition("==")[0] for requirement, *_ in both - others} == {"pyarrow"}


def test_the_tests_under_other_pythons_have_the_packages_of_development() -> None:
    assert releases("locks/test.txt") <= releases("locks/development.txt")


def test_every_accepted_vulnerability_has_its_reason() -> None:
    lines = [line for line in tree.text(ACCEPTED).splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Z]+-[\w-]+ +\w.*\s.*", line)] == []
