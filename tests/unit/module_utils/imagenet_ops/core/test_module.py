from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.testing import patch_module_args


def answer_of(work: Callable[[], dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> tuple[Any, dict[str, Any]]:
    """The exit code and the JSON that a module with this work leaves behind."""
    with patch_module_args({}), pytest.raises(SystemExit) as leaving:
        run(AnsibleModule(argument_spec={}), work)
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return leaving.value.code, answer


def test_work_becomes_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = answer_of(lambda: {"changed": True, "images": 3}, capsys)
    assert code == 0
    assert (answer["changed"], answer["images"]) == (True, 3)


def test_an_error_becomes_its_text_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> dict[str, Any]:
        raise OpsError("Split train", "999 of 1000 classes", "Fetch the archive again")

    code, answer = answer_of(work, capsys)
    assert code == 1
    assert answer["failed"] is True
    assert answer["msg"] == "Split train: 999 of 1000 classes. Fetch the archive again"
    assert "exception" not in answer


def test_a_fault_of_ours_says_so_and_what_was_in_hand(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> dict[str, Any]:
        raise KeyError("wnid")

    spec: dict[str, dict[str, Any]] = {
        "archive": {"type": "path"},
        "dest": {"type": "path"},
        "password": {"type": "str", "no_log": True},
    }
    with patch_module_args({"archive": "/data/a.tar", "password": "secret99"}), pytest.raises(SystemExit) as leaving:
        run(AnsibleModule(argument_spec=spec), work)
    answer = json.loads(capsys.readouterr().out)
    assert (leaving.value.code, answer["failed"]) == (1, True)
    assert re.fullmatch(
        r"Fault in imagenet-ops: KeyError: 'wnid' \(test_module\.py, line \d+\), with archive /data/a\.tar\."
        r" Completed work is kept\. Report it with this message, and what a run with"
        r" ANSIBLE_DISPLAY_TRACEBACK=error adds",
        answer["msg"],
    )
