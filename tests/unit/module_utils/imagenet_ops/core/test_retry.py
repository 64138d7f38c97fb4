from __future__ import annotations

import random

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError, TransientError
from ansible.module_utils.imagenet_ops.core.retry import Attempts


def test_pauses_grow_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, _high: low)
    attempts = Attempts(retries=9)
    pauses = [attempts.failed("host", TransientError("HTTP 503"), 0) for _ in range(9)]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    with pytest.raises(OpsError) as caught:
        attempts.failed("host", TransientError("HTTP 503"), 0)
    assert str(caught.value) == (
        "Download from host: no data received after 9 retries (last error: HTTP 503). Check the network and the"
        " server, then rerun: received data is kept"
    )


def test_a_server_that_asks_for_a_pause_gets_it() -> None:
    assert 30 <= Attempts(retries=1).failed("host", TransientError("HTTP 429", 30), 0) <= 45


def test_while_others_bring_bytes_nobody_gives_up() -> None:
    attempts = Attempts(retries=1)
    for done_bytes in range(20):
        attempts.failed("host", TransientError("HTTP 429"), done_bytes)
    with pytest.raises(OpsError):
        attempts.failed("host", TransientError("HTTP 429"), 19)
