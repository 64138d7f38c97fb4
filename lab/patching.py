"""How the lab changes moto: by replacing methods, for moto's models cannot be subclassed from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lab.rules import ApiError, error_xml


def wrap(owner: type, name: str) -> Callable[[Callable[..., Any]], None]:
    """Decorate a function ``f(original, self, ...)`` that takes the place of method ``name`` of ``owner``."""
    original = getattr(owner, name)

    def decorate(function: Callable[..., Any]) -> None:
        def replacement(self: Any, *arguments: Any, **keywords: Any) -> Any:
            return function(original, self, *arguments, **keywords)

        setattr(owner, name, replacement)

    return decorate


def replace_property(owner: type, name: str, read: Callable[[Any], Any]) -> None:
    """Make attribute ``name`` of ``owner`` what ``read(self)`` says; what moto assigns goes to ``lab_<name>``."""

    def write(self: Any, value: Any) -> None:
        self.__dict__[f"lab_{name}"] = value

    setattr(owner, name, property(read, write))


def error_answer(response: Any, error: ApiError) -> tuple[int, dict[str, str], str]:
    """Return what moto's ``response`` object is to return to say ``error`` as its service says it."""
    return error.status, {"Content-Type": "text/xml"}, error_xml(response.service_name, error)
