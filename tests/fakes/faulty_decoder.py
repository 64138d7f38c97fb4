"""A decoder with faults: what it does to an image stands in the image, as ``fault:<name>;``.

``SIGSEGV`` and the other signals end the process, ``loop`` never returns, ``sleep`` neither, and without using the
processor, ``memory`` takes what there is, ``exit`` leaves, and ``once:<path>;`` kills the process if there is no file
at the path, which it makes.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import cv2

ROOT = Path(__file__).resolve().parent.parent.parent
# What a decoder process runs first, to have these faults.
PRELUDE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import tests.fakes.faulty_decoder
tests.fakes.faulty_decoder.install()
sys.path.pop(0)
"""


def install() -> None:
    """Give this process the faults."""
    faulthandler.disable()  # what pytest would print of each crash
    sound = cv2.imdecode

    def imdecode(data: Any, mode: int) -> Any:
        for name in re.findall(rb"fault:([^;]+);", data.tobytes()):
            _fail(name.decode())
        return sound(data, mode)

    cv2.imdecode = imdecode  # type: ignore[assignment]


def _fail(name: str) -> None:
    if name == "loop":
        while True:
            pass
    if name == "sleep":
        time.sleep(1000)
    if name == "memory":
        taken = []
        while True:
            taken.append(bytearray(64 << 20))
    if name == "exit":
        os._exit(3)
    if name.startswith("once:"):
        marker = Path(name.removeprefix("once:"))
        if not marker.exists():
            marker.touch()
            _end(signal.SIGKILL)
        return
    _end(signal.Signals[name])


def _end(number: signal.Signals) -> None:
    """Let a signal end the process, and this thread do nothing more until it has."""
    signal.pthread_kill(threading.get_ident(), number)
    time.sleep(1000)
