"""What bin/other-pythons says of a Python that is not there: 3.19 stands for it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

NOT_TESTED = (
    "==> Python 3.19: NOT TESTED, it is not on PATH, in pyenv or in uv. "
    "Install it: pyenv install 3.19, or uv python install 3.19"
)


@pytest.mark.parametrize(
    ("environment", "status", "more"),
    [
        ({}, 0, ""),
        ({"ALLOW_MISSING_PYTHONS": "3.9 3.19"}, 0, " (ALLOW_MISSING_PYTHONS names it)"),
        ({"CI": "true"}, 1, ". FAILED: a CI run needs it, unless ALLOW_MISSING_PYTHONS names it"),
        (
            {"CI": "true", "ALLOW_MISSING_PYTHONS": "3.9 3.1"},
            1,
            ". FAILED: a CI run needs it, unless ALLOW_MISSING_PYTHONS names it",
        ),
        ({"CI": "true", "ALLOW_MISSING_PYTHONS": "3.19"}, 0, " (ALLOW_MISSING_PYTHONS names it)"),
    ],
)
def test_a_python_that_is_missing(environment: dict[str, str], status: int, more: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [str(ROOT / "bin" / "other-pythons"), "--missing", "3.19"],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **environment},
    )
    assert (run.returncode, run.stdout, run.stderr) == (status, f"{NOT_TESTED}{more}\n", "")


def test_any_python_newer_than_3_12_stands_for_it(tmp_path: Path) -> None:
    for version in ("3.12", "3.13", "3.14"):
        program = tmp_path / "programs" / f"python{version}"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n[ {version} = 3.14 ] && echo $0\n")
        program.chmod(0o755)
    run = subprocess.run(
        [str(ROOT / "bin" / "other-pythons"), "--missing", "3.12"],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(tmp_path), "CI": "true"},
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
