"""Evaluates IAM policies: whether they allow a request on a resource, as AWS does. No moto here.

Rules: IAM User Guide, "Policy evaluation logic", "IAM JSON policy elements" (Action, Resource, Condition operators) and
"Set operators for multivalued context keys". A policy that uses anything that is not evaluated here is refused, so that
nothing is allowed by mistake.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

VERSION = "2012-10-17"
Document = Mapping[str, Any]


class PolicyError(ValueError):
    """A policy has a part that the lab does not evaluate."""


class Decision(Enum):
    """What policies say to a request. Only ALLOWED lets it pass; a Deny wins over every Allow."""

    ALLOWED = "allowed"
    NOT_ALLOWED = "no policy allows it"
    DENIED = "a policy denies it"


@dataclass(frozen=True)
class Request:
    """An action such as ``ec2:CreateTags`` on one resource, an ARN or ``*``, with the condition keys of the request.

    A key is absent, has one value (a string), or several (a list, also of none).
    """

    action: str
    resource: str = "*"
    context: Mapping[str, str | Sequence[str]] = field(default_factory=dict)


def decide(policies: Iterable[str | Document], request: Request) -> Decision:
    """Return what these identity-based policies say to the request; raises PolicyError for what is not evaluated."""
    effects = {
        statement["Effect"] for policy in policies for statement in statements_of(policy) if applies(statement, request)
    }
    if "Deny" in effects:
        return Decision.DENIED
    return Decision.ALLOWED if "Allow" in effects else Decision.NOT_ALLOWED


def statements_of(policy: str | Document) -> list[dict[str, Any]]:
    """Return the statements of a policy, a document or its JSON; raises PolicyError where one cannot be evaluated."""
    return _parsed(policy) if isinstance(policy, str) else _checked(policy)


def applies(statement: Document, request: Request) -> bool:
    """Whether actions, resources and conditions of a statement are the request's; a principal is not compared."""
    if "Action" in statement:
        is_action = _matches_any(statement["Action"], request.action, ignore_case=True)
    else:
        is_action = not _matches_any(statement["NotAction"], request.action, ignore_case=True)
    if "Resource" in statement:
        is_resource = _matches_any(statement["Resource"], request.resource)
    else:
        is_resource = not _matches_any(statement["NotResource"], request.resource)
    return is_action and is_resource and _conditions_hold(statement.get("Condition", {}), request.context)


@functools.lru_cache(maxsize=256)
def _parsed(policy: str) -> list[dict[str, Any]]:
    return _checked(json.loads(policy))


_ELEMENTS = {"Sid", "Effect", "Principal", "Action", "NotAction", "Resource", "NotResource", "Condition"}


def _checked(policy: Document) -> list[dict[str, Any]]:
    if policy.get("Version") != VERSION:
        raise PolicyError(f"Version {policy.get('Version')} is not evaluated, only {VERSION}")
    found: list[dict[str, Any]] = _listed(policy["Statement"])
    for statement in found:
        unknown = statement.keys() - _ELEMENTS
        if unknown:
            raise PolicyError(f"{min(unknown)} is not evaluated")
        if statement["Effect"] not in ("Allow", "Deny"):
            raise PolicyError(f"Effect is {statement['Effect']}")
        for pair in (("Action", "NotAction"), ("Resource", "NotResource")):
            if len(statement.keys() & set(pair)) != 1:
                raise PolicyError(f"there must be one of {' and '.join(pair)}")
        for operator, keys in statement.get("Condition", {}).items():
            _operator(operator)
            if any("${" in str(value) for values in keys.values() for value in _listed(values)):
                raise PolicyError("policy variables are not evaluated")
        if any("${" in pattern for pattern in _listed(statement.get("Resource", statement.get("NotResource")))):
            raise PolicyError("policy variables are not evaluated")
    return found


# --- conditions -----------------------------------------------------------------------------------------------------

Test = Callable[[str, str], bool]


def _conditions_hold(conditions: Document, context: Mapping[str, str | Sequence[str]]) -> bool:
    """All operators and all their keys must hold; of the values of a key one is enough."""
    by_key = {key.lower(): value for key, value in context.items()}
    return all(
        _holds(name, by_key.get(key.lower()), [str(value) for value in _listed(values)])
        for name, keys in conditions.items()
        for key, values in keys.items()
    )


def _holds(name: str, found: str | Sequence[str] | None, wanted: Sequence[str]) -> bool:
    quantifier, test, is_negative, if_exists = _operator(name)
    if test is None:  # Null
        return str(found is None).lower() in [value.lower() for value in wanted]
    if found is None or (not isinstance(found, str) and not found):
        # Without a value nothing can match and everything differs; and there is none that could be any.
        return quantifier != "ForAnyValue" and (if_exists or is_negative or quantifier == "ForAllValues")

    def passes(value: str) -> bool:
        # Of a negated operator no value may match.
        return any(test(value, pattern) for pattern in wanted) != is_negative

    values = [found] if isinstance(found, str) else list(found)
    if quantifier == "ForAllValues":
        return all(passes(value) for value in values)
    if quantifier == "ForAnyValue":
        return any(passes(value) for value in values)
    if len(values) > 1:
        raise PolicyError(f"{name} needs ForAllValues or ForAnyValue: the key has several values")
    return passes(values[0])


def _operator(name: str) -> tuple[str, Test | None, bool, bool]:
    """Return quantifier, test (None for Null), whether it is negated, and whether a missing key is enough."""
    quantifier, _, rest = name.rpartition(":")
    if quantifier not in ("", "ForAllValues", "ForAnyValue"):
        raise PolicyError(f"{name} is no condition operator")
    base = rest.removesuffix("IfExists")
    if base == "Null":
        return quantifier, None, False, False
    positive = base.replace("Not", "", 1) if "Not" in base else base
    if positive not in _TESTS:
        raise PolicyError(f"condition operator {name} is not evaluated")
    return quantifier, _TESTS[positive], positive != base, base != rest


def _equal(value: str, wanted: str) -> bool:
    return value == wanted


def _equal_ignoring_case(value: str, wanted: str) -> bool:
    return value.lower() == wanted.lower()


def _like(value: str, pattern: str) -> bool:
    return _pattern(pattern).fullmatch(value) is not None


def _arn_like(value: str, pattern: str) -> bool:
    """Compare each of the six parts of an ARN by itself, so that no wildcard reaches over a colon between them."""
    values, patterns = value.split(":", 5), pattern.split(":", 5)
    return len(values) == len(patterns) == 6 and all(map(_like, values, patterns))


def _number(compare: Callable[[float, float], bool]) -> Test:
    return lambda value, wanted: compare(float(value), float(wanted))


_TESTS: dict[str, Test] = {
    "StringEquals": _equal,
    "StringEqualsIgnoreCase": _equal_ignoring_case,
    "StringLike": _like,
    "ArnEquals": _arn_like,
    "ArnLike": _arn_like,
    "Bool": _equal_ignoring_case,
    "NumericEquals": _number(lambda value, wanted: value == wanted),
    "NumericLessThan": _number(lambda value, wanted: value < wanted),
    "NumericLessThanEquals": _number(lambda value, wanted: value <= wanted),
    "NumericGreaterThan": _number(lambda value, wanted: value > wanted),
    "NumericGreaterThanEquals": _number(lambda value, wanted: value >= wanted),
}


# --- wildcards ------------------------------------------------------------------------------------------------------


def _matches_any(patterns: str | Sequence[str], text: str, ignore_case: bool = False) -> bool:
    return any(_pattern(pattern, ignore_case).fullmatch(text) for pattern in _listed(patterns))


@functools.lru_cache(maxsize=1024)
def _pattern(pattern: str, ignore_case: bool = False) -> re.Pattern[str]:
    """``*`` stands for any characters, ``?`` for one."""
    text = "".join({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in pattern)
    return re.compile(text, re.DOTALL | (re.IGNORECASE if ignore_case else 0))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
