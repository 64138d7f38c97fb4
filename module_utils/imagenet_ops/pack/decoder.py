"""Transforms images so that whatever a decoder does to one of them costs that image and nothing else.

Decoders crash, loop and fill the memory where a file brings them to it. Images of the usual kind are decoded here, in
threads. Every other image (`Plan.is_usual`), those that were in hand when an earlier run ended (`in_hand`), and those
during which libjpeg warned of damage (`jpeg_warnings`), go to a process of their own with limits for its time and its
memory. One that dies is replaced. The image is bad if it ends a process that has decoded nothing else, so that no image
is blamed for what another did.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, BinaryIO, Callable, NamedTuple

import cv2
from ansible.module_utils.imagenet_ops.core.concurrency import reuse_memory
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.pack.image import (
    BadImageError,
    Outcome,
    OutOfMemoryError,
    Plan,
    Recipe,
    apply,
    decode_only,
    plan_all,
    transform_all,
)
from ansible.module_utils.imagenet_ops.pack.in_hand import InHand, printable
from ansible.module_utils.imagenet_ops.pack.jpeg_warnings import CaughtStandardError, damage

_MIB = 1024 * 1024
_READY = b"ready\n"
_START_SECONDS = 300.0
# How many seconds of the clock a process may take for each second of the processor: the machine may be busy.
CLOCK_SECONDS = 10
_QUESTION = struct.Struct("<Q")  # length of the image
_ANSWER = struct.Struct("<?BQ")  # whether it is bad; lengths of `Header.converted` and of the record or the reason
# Where the modules of this process are found; Ansible's are in a zip archive.
_PROGRAM = """
import importlib, json, sys
path, utils, arguments = json.loads(sys.argv[1])
sys.path[:] = path
importlib.import_module("ansible.module_utils").__path__ = utils
importlib.import_module("ansible.module_utils.imagenet_ops.pack.decoder").serve(*arguments)
"""


class Limits(NamedTuple):
    """What decoding one image may take in a process of its own: seconds of the processor, and memory."""

    seconds: int = 15
    memory_mib: int = 4096


DEFAULT_LIMITS = Limits()


class Transformer:
    """Transforms images by ``recipe``, within ``limits``. A context manager, which catches standard error.

    ``in_hand`` keeps the names of the images that are decoded in this process; None where a run leaves no trace.
    """

    def __init__(self, recipe: Recipe, limits: Limits = DEFAULT_LIMITS, in_hand: InHand | None = None) -> None:
        self.recipe = recipe
        self._limits = limits
        self._in_hand = in_hand
        self._suspects = frozenset() if in_hand is None else in_hand.suspects
        self._standard_error = CaughtStandardError()

    def __enter__(self) -> Transformer:  # noqa: PYI034 (Self is newer than Python 3.9)
        """Begin to catch standard error."""
        self._standard_error.__enter__()
        self._processes = _Processes(self.recipe, self._limits, self._standard_error.passed_on)
        return self

    def __exit__(self, *exception: object) -> None:
        """End the processes."""
        self._processes.end()
        self._standard_error.__exit__()

    def transform_all(self, names: Sequence[str], images: Sequence[bytes]) -> list[Outcome]:
        """Return the result of `transform` for each of ``images``, or why it is bad; threads may call it concurrently.

        ``names`` tell the images of a run apart. Raises OpsError where no process can be started.
        """
        plans = plan_all(images, self.recipe)
        with contextlib.nullcontext(_forget) if self._in_hand is None else self._in_hand.slot() as write_name:
            return [self._transform(*image, write_name) for image in zip(names, images, plans)]

    def _transform(
        self, name: str, data: bytes, plan: Plan | BadImageError, write_name: Callable[[str], Any]
    ) -> Outcome:
        if isinstance(plan, BadImageError):
            return plan
        if not self._is_contained(name, plan):
            write_name(name)
            before = self._standard_error.length()
            result = apply(data, plan, self.recipe)
            if self._standard_error.length() == before or isinstance(result, BadImageError):
                return result
            # Of this image or of another thread's: alone it tells.
        write_name("")
        return self._processes.outcome(data)

    def _is_contained(self, name: str, plan: Plan) -> bool:
        if self.recipe.pass_through:
            return False
        is_suspect = bool(self._suspects) and printable(name) in self._suspects
        return is_suspect or not plan.is_usual


def _forget(_name: str) -> None:
    """Write no name."""


class DecodeCheck:
    """Tells of images whether they decode, each in a process of its own within ``limits``. A context manager."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._processes = _Processes(None, limits, standard_error=2)

    def __enter__(self) -> DecodeCheck:  # noqa: PYI034 (Self is newer than Python 3.9)
        """Start nothing yet."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the processes."""
        self._processes.end()

    def __call__(self, data: bytes) -> str:
        """Return why the image in ``data`` does not decode, or ""; threads may call it concurrently.

        Raises OpsError where no process can be started.
        """
        outcome = self._processes.outcome(data)
        return str(outcome) if isinstance(outcome, BadImageError) else ""


class _Processes:
    """As many processes as there are threads that ask. ``recipe`` None is for images that are only decoded."""

    def __init__(self, recipe: Recipe | None, limits: Limits, standard_error: int) -> None:
        self._recipe = recipe
        self._limits = limits
        self._standard_error = standard_error
        self._idle: deque[_DecoderProcess] = deque()

    def end(self) -> None:
        """End the processes."""
        while self._idle:
            self._idle.pop().end()

    def outcome(self, data: bytes) -> Outcome:
        """Return what became of the image in ``data``. Raises OpsError where no process can be started."""
        outcome, death = None, 0
        if self._idle:
            with contextlib.suppress(IndexError):  # another thread may have taken the last one
                outcome, death = self._ask(self._idle.pop(), data)
        if outcome is None and death != signal.SIGPROF:
            outcome, death = self._ask(self._start(), data)
            if death == signal.SIGKILL:  # the kernel's choice where memory ran out, which may be another's fault
                outcome, death = self._ask(self._start(), data)
        return outcome or BadImageError(self._reason(death))

    def _start(self) -> _DecoderProcess:
        return _DecoderProcess(self._recipe, self._limits, self._standard_error)

    def _ask(self, process: _DecoderProcess, data: bytes) -> tuple[Outcome | None, int]:
        """Return the outcome of ``process``; None, and the signal or the negative exit status, where it died."""
        outcome = process.transform(data)
        if outcome is None:
            return None, process.end()
        self._idle.append(process)
        return outcome, 0

    def _reason(self, death: int) -> str:
        if death == signal.SIGPROF:
            return f"too slow: decoding it takes more than {self._limits.seconds} seconds"
        if death > 0:
            return f"damaged: the decoder crashed ({signal.Signals(death).name})"
        return f"damaged: the decoder exited with status {-death}"


class _DecoderProcess:
    """A process that transforms one image after another; it ends with this one, when its standard input is closed."""

    def __init__(self, recipe: Recipe | None, limits: Limits, standard_error: int) -> None:
        """Start it; ``standard_error`` is a descriptor. Raises OpsError."""
        self._clock_seconds = limits.seconds * CLOCK_SECONDS
        utils = list(sys.modules["ansible.module_utils"].__path__)
        arguments = json.dumps([sys.path, utils, [recipe and recipe._asdict(), *limits]])
        todo = "Check free memory, the limit of processes (ulimit -u) and dmesg, then rerun: packing resumes"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=standard_error,
                bufsize=0,
            )
        except OSError as error:
            raise OpsError("Decoder process", f"it cannot be started ({error.strerror})", todo) from error
        if self._read(len(_READY), _START_SECONDS) != _READY:
            status = self.end()
            raise OpsError("Decoder process", f"it ended before the first image (status {-status})", todo)

    def transform(self, data: bytes) -> Outcome | None:
        """Return what became of the image in ``data``; None if the process died of it, or was killed as too slow."""
        stdin = self._process.stdin
        if stdin is None:
            return None
        try:
            for part in (_QUESTION.pack(len(data)), data):
                view = memoryview(part)
                while view:
                    view = view[stdin.write(view) :]
        except OSError:
            return None
        answer = self._read(_ANSWER.size, self._clock_seconds)
        if answer is None:
            return None
        is_bad, converted_bytes, result_bytes = _ANSWER.unpack(answer)
        rest = self._read(converted_bytes + result_bytes, self._clock_seconds)
        if rest is None:
            return None
        converted, result = rest[:converted_bytes].decode(), rest[converted_bytes:]
        return BadImageError(result.decode()) if is_bad else (result, converted)

    def end(self) -> int:
        """End the process; return the signal that ended it, or its negative exit status."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        return -self._process.wait()

    def _read(self, count: int, seconds: float) -> bytes | None:
        """Return ``count`` bytes; None where the process ends before, or takes longer and is killed as too slow."""
        stdout = self._process.stdout
        if stdout is None:
            return None
        until = time.monotonic() + seconds
        received = bytearray()
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        while len(received) < count:
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                self._process.send_signal(signal.SIGPROF)
                return None
            block = os.read(stdout.fileno(), count - len(received))
            if not block:
                return None
            received += block
        return bytes(received)


# The other process


def serve(recipe: dict[str, Any] | None, seconds: int, memory_mib: int) -> None:
    """Transform images from standard input until it ends; what a decoder prints goes to standard error.

    Without ``recipe`` they are only decoded, and nothing that is decoded is bad.
    """
    wanted = None if recipe is None else Recipe(**recipe)
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    reuse_memory()
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle: it closes standard input
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_DATA, memory_mib * _MIB)
    sink.write(_READY)
    sink.flush()
    source = sys.stdin.buffer
    with CaughtStandardError() as caught:
        while (data := _question(source)) is not None:
            signal.setitimer(signal.ITIMER_PROF, seconds)
            try:
                outcome = decode_only(data) if wanted is None else transform_all([data], wanted)[0]
            except MemoryError:
                outcome = OutOfMemoryError()
            signal.setitimer(signal.ITIMER_PROF, 0)
            if isinstance(outcome, OutOfMemoryError):
                outcome = BadImageError(f"too large: decoding it takes more than {memory_mib} MiB of memory")
            printed = caught.take()
            warning = "" if wanted is None else damage(printed, wanted.jpeg_check)
            if warning and not isinstance(outcome, BadImageError):
                outcome = BadImageError(f"damaged: the decoder says {warning}")
            _answer(sink, outcome)


def _limit(kind: int, value: int) -> None:
    """Set the soft limit, as far as the hard one lets us."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _question(source: BinaryIO) -> bytes | None:
    """Return the next image; None where there is none."""
    header = source.read(_QUESTION.size)
    if len(header) < _QUESTION.size:
        return None
    (size,) = _QUESTION.unpack(header)
    data = source.read(size)
    return data if len(data) == size else None


def _answer(sink: BinaryIO, outcome: Outcome) -> None:
    if isinstance(outcome, BadImageError):
        result: bytes | memoryview = str(outcome).encode("utf-8", "backslashreplace")
        converted = b""
    else:
        result, converted = outcome[0], outcome[1].encode()
    sink.write(_ANSWER.pack(isinstance(outcome, BadImageError), len(converted), len(result)))
    sink.write(converted)
    sink.write(result)
    sink.flush()
