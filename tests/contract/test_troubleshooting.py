"""docs/troubleshooting.md explains the errors as they are: what the code says is on the page, and no more than that.

CONTRIBUTING.md says how to write an entry.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from tests.contract import checks, messages, tree

PAGE = "docs/troubleshooting.md"

# Errors that the page leaves out, by the reason.
NEEDS_NONE = {
    "the message names the option, and what it takes": [
        "Option ...: ... is not ... hexadecimal digits",
        "Option ...: it is too small",
        "the header ... is not one line",
        "is not a time of day like 08:00-18:30",
        "exactly one of archive and directory is required",
        "labelled_files requires labels",
        "... were to be kept",
        "it cannot be completed in ... minutes",
        "readers: that reads nothing",
        "EBS accepts 100 to 300",
        "it is negative",
        "it is not one of EBS (vol- and hexadecimal digits)",
        "format_allowed, owner and group write to the volume, and it is to be mounted read-only",
    ],
    "the message shows the URL or the line that is wrong": [
        "is no http, https, s3 or file URL",
        "is no s3://bucket/key",
        "its port is no number",
        "Proxy for ...: it names no host",
        "Credentials file ...: line ... is not understood",
    ],
    "no playbook leaves the tag out": [
        "Project is missing",
        "its tags do not hold",
        "the tags do not hold",
    ],
    "it hands on the failure of another task": ["fleet_host_failure"],
}


@functools.cache
def page() -> list[messages.Entry]:
    return messages.entries(tree.text(PAGE))


@functools.cache
def python_files() -> dict[str, messages.ErrorTexts]:
    files = [path for folder in ("module_utils", "plugins") for path in (tree.ROOT / folder).rglob("*.py")]
    sources = {str(path.relative_to(tree.ROOT)): tree.text(path) for path in sorted(files)}
    errors = {"OpsError"}.union(*(messages.subclasses(source, "OpsError") for source in sources.values()))
    return {path: messages.ErrorTexts(source, errors) for path, source in sources.items()}


@functools.cache
def failures() -> list[tuple[str, str]]:
    """What tasks say when they fail, each with its file."""
    return [
        (path, text)
        for path in tree.task_files()
        for text in messages.task_failures(checks.tasks_of(tree.yaml_of(path)))
    ]


def known() -> list[str]:
    left_out = [quote for quotes in NEEDS_NONE.values() for quote in quotes]
    return [quote for entry in page() for quote in entry.quotes] + left_out


def unexplained(texts: Iterable[tuple[str, str]]) -> str:
    """The places and texts of the errors that nothing quotes, one a line."""
    quotes = known()
    found = [f"{place}: {text}" for place, text in texts if not any(messages.fits(quote, text) for quote in quotes)]
    return "\n".join(found)


def test_every_error_of_python_is_explained() -> None:
    errors = [
        (f"{path}:{error.line}", error.text)
        for path, texts in python_files().items()
        for error in texts.messages()
        if not error.is_passed_on
    ]
    assert len(errors) > len(python_files())
    assert unexplained(errors) == ""


def test_every_failure_of_a_task_is_explained() -> None:
    assert failures()
    assert unexplained(failures()) == ""


def test_every_code_of_aws_that_has_an_advice_is_explained() -> None:
    tables = {"TODO_BY_CODE", "TODO_BY_CLASS"}
    codes = {key for path in python_files() for key in messages.table_keys(tree.text(path), tables)}
    assert len(codes) > len(tables)
    assert [code for code in sorted(codes) if f"`{code}`" not in tree.text(PAGE)] == []


def test_the_page_quotes_only_messages_that_exist() -> None:
    texts = {text for source in python_files().values() for text in source.all_texts()}
    texts |= {error.text for source in python_files().values() for error in source.messages()}
    texts |= {text for _, text in failures()}
    lines = "\n".join(texts)
    assert [quote for quote in known() if not messages.fits(quote, lines)] == []


def test_no_quote_is_ambiguous() -> None:
    assert messages.unfit_quotes(known()) == []


def test_every_entry_says_something() -> None:
    assert [entry.quotes for entry in page() if not entry.explanation] == []
