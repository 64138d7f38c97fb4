"""How often to try again, and how long to wait before."""

from __future__ import annotations

import random

from ansible.module_utils.imagenet_ops.core.errors import OpsError, TransientError

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0


class Attempts:
    """Counts failures in a row and says how long to pause; gives up after ``retries`` without a new byte."""

    def __init__(self, retries: int) -> None:
        self.failures = 0
        self._retries = retries
        self._fruitless = 0
        self._bytes_before = 0

    def succeeded(self) -> None:
        """Start counting again."""
        self.failures = self._fruitless = 0

    def failed(self, name: str, error: TransientError, done_bytes: int) -> float:
        """Return the seconds to pause after ``error`` of the source ``name``.

        ``done_bytes`` is how many bytes there are: where others still bring some, there is no reason to give up, yet
        every reason to pause. Raises OpsError when the last retry has failed.
        """
        self.failures += 1
        self._fruitless = 1 if done_bytes > self._bytes_before else self._fruitless + 1
        self._bytes_before = done_bytes
        if self._fruitless > self._retries:
            raise OpsError(
                f"Download from {name}",
                f"no data received after {self._retries} retries (last error: {error})",
                "Check the network and the server, then rerun: received data is kept",
            )
        pause_seconds = min(_FIRST_PAUSE_SECONDS * 2.0 ** (self.failures - 1), _LONGEST_PAUSE_SECONDS)
        # Many connections that failed together must not come back together.
        return max(pause_seconds, error.wait_seconds) * random.uniform(1.0, 1.5)  # noqa: S311 (no secret hangs on it)
