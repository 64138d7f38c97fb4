"""Packs in a child of this process, so that a crash in a thread of the decoder does not end the run.

The child names the images that it has in hand (`in_hand`). If a fault of a decoder ends it, or one of them stays in
hand for too long, packing is started once more: it resumes from its checkpoint, and decodes those images in a process
of their own (`decoder`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Callable

from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.state_file import Warn
from ansible.module_utils.imagenet_ops.pack.in_hand import names_in_hand

_FAULTS = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGPROF})
_MOST_STARTS = 100  # a machine that is broken crashes on any image
_LOOK_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_TODO = "Look at memory and dmesg of the host, then rerun: packing resumes"

Work = Callable[[Warn], Mapping[str, Any]]


def supervised(work: Work, state_dir: str, seconds: float, warn: Warn) -> dict[str, Any]:
    """Return what ``work`` returns; it is called in a child, with what passes its warnings on to ``warn``.

    An image may be in hand for ``seconds`` of the clock; ``state_dir`` is where `InHand` keeps their names. Raises
    OpsError if ``work`` does, or if the child was ended by something else than its decoder, and RuntimeError with the
    traceback of any other exception.
    """
    tried: set[str] = set()
    said: set[str] = set()

    def warn_once(text: str) -> None:  # packing that is started again finds again what it warned of
        if text not in said:
            said.add(text)
            warn(text)

    for _ in range(_MOST_STARTS):
        answer, death = _run(work, state_dir, seconds, warn_once)
        if "result" in answer:
            return dict(answer["result"])
        if "error" in answer:
            raise OpsError(*answer["error"])
        if "traceback" in answer:
            raise RuntimeError(answer["traceback"])
        names = {name for _, name in names_in_hand(state_dir)}
        if death not in _FAULTS or names <= tried:
            raise OpsError("Packing", f"its process was ended by {_name(death)}", _TODO)
        tried |= names
        warn_once(
            f"The decoder was ended by {_name(death)}; the images that it had in hand are decoded apart from now on"
        )
    raise OpsError("Packing", f"the decoder crashed {_MOST_STARTS} times", _TODO)


def _name(death: int) -> str:
    return signal.Signals(death).name if death > 0 else f"exit status {-death}"


def _run(work: Work, state_dir: str, seconds: float, warn: Warn) -> tuple[dict[str, Any], int]:
    """Return the answer of a child that does ``work``, {} if it gave none, and its signal or negative exit status."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python warns of a fork beside threads. There are none in a module before it packs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(work, writer)
    os.close(writer)
    answer: dict[str, Any] = {}
    try:
        for message in _messages(reader, child, state_dir, seconds):
            if "warning" in message:
                warn(message["warning"])
            else:
                answer = message
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(reader)
        status = os.waitpid(child, 0)[1]
    return answer, status & 0x7F or -(status >> 8)


def _messages(reader: int, child: int, state_dir: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield what the child writes; end it if an image is in hand for too long."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    received = b""
    since: dict[tuple[int, str], float] = {}
    while True:
        if not poll.poll(_LOOK_SECONDS * 1000):
            now = time.monotonic()
            since = {held: since.get(held, now) for held in names_in_hand(state_dir)}
            if since and now - min(since.values()) > seconds:
                os.kill(child, signal.SIGPROF)
            continue
        block = os.read(reader, 65536)
        if not block:
            return
        *lines, received = (received + block).split(b"\n")
        yield from map(json.loads, lines)


def _answer(work: Work, writer: int) -> None:
    """Do ``work`` in the child, write what came of it, and end."""
    with contextlib.suppress(OSError), os.fdopen(writer, "w", encoding="utf-8") as messages:

        def write(**message: Any) -> None:
            messages.write(json.dumps(message) + "\n")
            messages.flush()

        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            write(result=dict(work(lambda text: write(warning=text))))
        except OpsError as error:
            write(error=[error.what, error.why, error.todo])
        except BaseException:  # noqa: BLE001  the parent raises it, with this text
            write(traceback=traceback.format_exc())
    sys.stderr.flush()
    os._exit(0)
