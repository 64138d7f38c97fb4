"""Where bin/find-python looks, with a Python 3.99 that each place has or lacks."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROGRAMS = "/usr/bin:/bin"
BROKEN = "#!/bin/sh\nexit 127\n"
WORKING = '#!/bin/sh\necho "$0"\n'

Find = Callable[..., str]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def find(home: Path) -> Find:
    def found(*candidates: str, path: Path | None = None, test: str = "True", **environment: str) -> str:
        folders = PROGRAMS if path is None else f"{path}:{PROGRAMS}"
        command = [str(ROOT / "bin" / "find-python"), test, *candidates]
        variables = {"PATH": folders, "HOME": str(home), **environment}
        run = subprocess.run(command, check=False, capture_output=True, text=True, env=variables)
        assert (run.returncode, run.stderr) == (0 if run.stdout else 1, "")
        return run.stdout.strip()

    return found


def program(path: Path, content: str = WORKING) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)
    return str(path)


def of_pyenv(root: Path, version: str, content: str = WORKING) -> str:
    return program(root / "versions" / version / "bin" / "python3.99", content)


def test_nowhere(find: Find) -> None:
    assert find("3.99") == ""


def test_on_path(find: Find, tmp_path: Path) -> None:
    python = program(tmp_path / "programs" / "python3.99")
    of_pyenv(tmp_path / ".pyenv", "3.99.1")
    assert find("3.99", path=tmp_path / "programs") == python


def test_the_first_that_works(find: Find, tmp_path: Path) -> None:
    program(tmp_path / "broken" / "python3.99", BROKEN)
    python = program(tmp_path / "programs" / "python3.99")
    assert find("3.98", "3.99", path=Path(f"{tmp_path}/broken:{tmp_path}/programs")) == python


def test_a_shim_whose_version_is_not_selected(find: Find, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    program(root / "shims" / "python3.99", BROKEN)
    python = of_pyenv(root, "3.99.1")
    assert find("3.99", path=root / "shims") == python


def test_a_pyenv_that_the_shell_was_not_set_up_for(find: Find, home: Path) -> None:
    python = of_pyenv(home / ".pyenv", "3.99.1")
    assert find("3.99") == python


def test_a_pyenv_in_another_place(find: Find, tmp_path: Path) -> None:
    python = of_pyenv(tmp_path / "elsewhere", "3.99.1")
    assert find("3.99", PYENV_ROOT=str(tmp_path / "elsewhere")) == python
    program(tmp_path / "programs" / "pyenv", f'#!/bin/sh\n[ "$*" = root ] && echo "{tmp_path}/elsewhere"\n')
    assert find("3.99", path=tmp_path / "programs") == python


def test_the_newest_version_of_pyenv_that_works(find: Find, home: Path) -> None:
    root = home / ".pyenv"
    of_pyenv(root, "3.99.12", BROKEN)
    for version in ("3.99.2", "3.99.9", "3.99-dev", "3.99.13t", "3.999.1"):
        of_pyenv(root, version)
    python = of_pyenv(root, "3.99.10")
    assert find("3.99") == python


def test_of_uv_which_is_kept_from_downloading_one(find: Find, tmp_path: Path) -> None:
    python = program(tmp_path / "uv" / "python3.99")
    program(
        tmp_path / "programs" / "uv",
        f"""#!/bin/sh
[ "$UV_PYTHON_DOWNLOADS" = never ] || exit 1
[ "$*" = "python find --no-project --system 3.99" ] || exit 2
echo {python}
""",
    )
    assert find("3.99", path=tmp_path / "programs") == python


def test_programs_and_a_test_of_their_versions(find: Find, tmp_path: Path) -> None:
    program(tmp_path / "broken", BROKEN)
    real = "/usr/bin/python3"
    assert find(str(tmp_path / "broken"), "no-such-program", real) == real
    assert find("python3", test="v >= (3, 9)") == real
    assert find(real, test="v < (3, 9)") == ""
