from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import python_environment_make
from ansible.module_utils.testing import patch_module_args


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        python_environment_make.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_an_environment_that_has_the_pins_is_left_alone_and_another_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "requirements.txt").write_text("pip==25.3")
    same = {"path": str(tmp_path), "archive": str(tmp_path / "wheels.tar"), "_ansible_check_mode": True}
    assert run_module(capsys, requirements="pip==25.3", **same)["changed"] is False
    assert run_module(capsys, requirements="pip==26.0", **same)["changed"] is True


def test_what_is_missing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, path=str(tmp_path / "env"), archive="/none.tar", requirements="numpy==2.0.2")
    assert answer["msg"] == "The list of pins: pip is not among them. Add pip, which installs the others"
