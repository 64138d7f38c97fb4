"""The one error type of the project: what failed, why, and what to do about it."""

from __future__ import annotations


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
