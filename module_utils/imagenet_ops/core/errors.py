"""The error that people see (what failed, why, and what to do about it), and those that the code passes on."""

from __future__ import annotations

SAMPLES = 5  # how many names an error or a warning shows


class OpsError(Exception):
    """An error that a person can act on.

    ``what`` names the thing that failed, ``why`` the reason, ``todo`` the next step. ``str()`` of the error is one
    line, ``<what>: <why>. <todo>``, and that is what a user reads; it must never hold a credential.
    """

    def __init__(self, what: str, why: str, todo: str) -> None:
        self.what = what
        self.why = why
        self.todo = todo
        super().__init__(f"{what}: {why}. {todo}")


class TransientError(Exception):
    """The bytes stopped coming for a reason that may pass: ``str()`` says which.

    ``wait_seconds`` is how long the server asked to be left alone; 0 where it did not say.
    """

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        self.wait_seconds = wait_seconds
        super().__init__(reason)


class SourceChangedError(OpsError):
    """The file at the source is not the one that the download began with."""


class CancelledError(Exception):
    """Something else failed, so this was given up."""
