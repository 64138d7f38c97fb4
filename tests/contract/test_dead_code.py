"""The check for code that nothing uses finds it, and leaves alone what is used in ways that it cannot see."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from tests.contract import dead_code

SOURCE = '''
from typing import TypedDict


class Result(TypedDict):
    changed: bool


def _called() -> Result:
    return {"changed": True}


def _forgotten() -> None:
    """Nothing calls this."""


RETURN = _called()
'''


def test_what_nothing_uses_is_found(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(SOURCE)
    found = [
        ("_forgotten", f"{file}:13: unused function '_forgotten'"),
        ("RETURN", f"{file}:17: unused variable 'RETURN'"),
    ]
    assert dead_code.unused_code([file]) == found
    assert dead_code.unused_code([tmp_path]) == found
    assert [name for name, _ in found if dead_code.is_used_elsewhere(name)] == ["RETURN"]


def test_every_exception_is_needed() -> None:
    unused = [name for name, _ in dead_code.unused_code(dead_code.folders())]
    patterns = [pattern for patterns in dead_code.USED_ELSEWHERE.values() for pattern in patterns]
    assert [pattern for pattern in patterns if not fnmatch.filter(unused, pattern)] == []
