from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import ebs_fast_restore
import pytest
from ansible.module_utils.imagenet_ops.ebs.fast_snapshot_restore import FastSnapshotRestore
from ansible.module_utils.testing import patch_module_args

from tests.unit.module_utils.imagenet_ops.ebs.test_fast_snapshot_restore import SNAPSHOT, Ec2


def run_module(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ec2: Ec2, **arguments: Any
) -> dict[str, Any]:
    monkeypatch.setattr("ebs_fast_restore.AnsibleAWSModule.client", lambda *_, **__: ec2)
    timed = functools.partial(FastSnapshotRestore, sleep=ec2.sleep, clock=lambda: ec2.now)
    monkeypatch.setattr(ebs_fast_restore, "FastSnapshotRestore", timed)
    given = {"region": "us-east-1", "snapshot_id": SNAPSHOT, **arguments}
    with patch_module_args(given), pytest.raises(SystemExit):
        ebs_fast_restore.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_check_on_again_and_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ec2 = Ec2()
    on = {"credits": {"a": 2}, "state_dir": str(tmp_path)}
    changed = [
        run_module(capsys, monkeypatch, ec2, **on, _ansible_check_mode=True)["changed"],
        run_module(capsys, monkeypatch, ec2, **on)["changed"],
        run_module(capsys, monkeypatch, ec2, **on)["changed"],
        run_module(capsys, monkeypatch, ec2, state="disabled", _ansible_check_mode=True)["changed"],
        run_module(capsys, monkeypatch, ec2, state="disabled")["changed"],
        run_module(capsys, monkeypatch, ec2, state="disabled")["changed"],
    ]
    assert changed == [True, True, False, True, True, False]


def test_credits_are_required(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "credits, state_dir" in run_module(capsys, monkeypatch, Ec2())["msg"]
