from __future__ import annotations

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError, TransientError


def test_reads_as_one_line_of_what_why_and_todo() -> None:
    error = OpsError("Archive train.tar", "its MD5 is not the published one", "Remove it and run again")
    assert str(error) == "Archive train.tar: its MD5 is not the published one. Remove it and run again"


def test_parts_stay_apart_for_callers_that_report_them_apart() -> None:
    with pytest.raises(OpsError) as caught:
        raise OpsError("a", "b", "c")
    assert (caught.value.what, caught.value.why, caught.value.todo) == ("a", "b", "c")


def test_a_transient_error_carries_the_pause_that_was_asked_for() -> None:
    assert TransientError("busy").wait_seconds == 0
    assert TransientError("busy", 7).wait_seconds == 7
