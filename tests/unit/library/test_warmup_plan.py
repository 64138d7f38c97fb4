from __future__ import annotations

import json
from typing import Any

import pytest
import warmup_plan
from ansible.module_utils.testing import patch_module_args

VOLUMES = {"i-1": {"volume_id": "", "zone": "us-east-1a"}, "i-2": {"volume_id": "vol-2", "zone": "us-east-1b"}}


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args({"volumes": VOLUMES, "volume_size_gib": 64, **arguments}), pytest.raises(SystemExit):
        warmup_plan.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_it_decides_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, budget_usd=1)
    assert (answer["changed"], answer["mode"], answer["zones"]) == (False, "fsr", {"us-east-1a": 1})
    assert answer["waves"] == [{"instance_ids": ["i-1"], "credits": {"us-east-1a": 1}}]
    assert answer["lines"][-1] == "selected: fsr (fastest within the 1 USD budget)"


def test_a_rate_that_ebs_does_not_take_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, rate_mib_s=400)
    assert answer["msg"] == "An initialization rate of 400 MiB/s: EBS accepts 100 to 300. Choose one in that range"
