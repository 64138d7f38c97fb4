from __future__ import annotations

import json
from typing import Any

import instance_type_info
import pytest
from ansible.module_utils.testing import patch_module_args


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args({"region": "us-east-1", **arguments}), pytest.raises(SystemExit):
        instance_type_info.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.usefixtures("ec2")
@pytest.mark.parametrize("check_mode", [False, True])
def test_zones_of_a_type_in_check_mode_too(capsys: pytest.CaptureFixture[str], *, check_mode: bool) -> None:
    answer = run_module(capsys, instance_type="p4de.24xlarge", _ansible_check_mode=check_mode)
    assert (answer["changed"], answer["zones"]) == (False, ["us-east-1b", "us-east-1c"])


@pytest.mark.usefixtures("ec2")
def test_a_type_that_nobody_has_is_in_no_zone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_module(capsys, instance_type="c99.giant")["zones"] == []
