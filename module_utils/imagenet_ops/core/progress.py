"""How far a long job is, for people: the file that the action plugin prints from."""

from __future__ import annotations

import os
import time

from ansible.module_utils.imagenet_ops.core.files import write_json


class Progress:
    """Writes how far a long job is to ``<state_dir>/<name>.progress.json``, at most once in ``interval_seconds``.

    The file holds ``stage`` (text), ``done`` and ``total`` (in ``unit``), ``unit``, ``rate_per_second`` (of this run,
    so what an earlier run did does not count), ``eta_seconds`` (null while unknown) and ``finished``. The action plugin
    reads it and prints a line of it.
    """

    def __init__(self, state_dir: str, name: str, interval_seconds: float = 1.0) -> None:
        self.path = os.path.join(state_dir, f"{name}.progress.json")
        self.interval_seconds = interval_seconds
        self._stage = ""
        self._unit = ""
        self._total = 0
        self._first_done = 0
        self._started = 0.0
        self._written = 0.0

    def start(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        """Begin ``stage``, of ``total`` ``unit``s, ``done`` of which an earlier run did."""
        self._stage, self._unit, self._total, self._first_done = stage, unit, total, done
        self._started = time.monotonic()
        self._write(done, finished=False)

    def update(self, done: int) -> None:
        """Say that ``done`` units are done by now; cheap to call often."""
        if time.monotonic() - self._written >= self.interval_seconds:
            self._write(done, finished=False)

    def finish(self) -> None:
        """Say that the whole job is done."""
        self._write(self._total, finished=True)

    def _write(self, done: int, finished: bool) -> None:
        self._written = time.monotonic()
        elapsed_seconds = self._written - self._started
        rate = (done - self._first_done) / elapsed_seconds if elapsed_seconds > 0 else 0.0
        eta = (self._total - done) / rate if rate > 0 else None
        write_json(
            self.path,
            {
                "stage": self._stage,
                "done": done,
                "total": self._total,
                "unit": self._unit,
                "rate_per_second": round(rate, 1),
                "eta_seconds": None if eta is None else round(eta),
                "finished": finished,
            },
            durable=False,
        )
