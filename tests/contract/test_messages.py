"""Each function of messages.py on a small example."""

from __future__ import annotations

import pytest

from tests.contract import messages

SOURCE = '''
"""A docstring."""
TODO_BY_CODE = {"Throttling": LATER, "403": ALLOW}

def copy(path, error):
    raise OpsError(f"File {path}", f"it cannot be read ({error.strerror})", "Check " f"{path}")

def check(name, count, twice):
    why = f"it holds {count} files"
    if twice:
        why = "it is there twice" if count else "it is empty"
    raise OpsError("Tree " + name, why, ADVICE)

class Reader:
    def fail(self, entry, why):
        why = f"the entry {entry} {why}"
        return OpsError(self.what, why, ADVICE)

    def read(self, entry):
        raise self.fail(entry, "has no name")

    def end(self, entry):
        raise self.fail(entry, why="is too long") if entry else ValueError("no error of ours")

def run(error):
    raise OpsError("Running it", str(error), ADVICE)
'''


def texts(source: str) -> list[str]:
    return [message.text for message in messages.ErrorTexts(source, {"OpsError"}).messages()]


def test_texts_of_errors_with_reasons_that_are_followed() -> None:
    assert texts(SOURCE) == [
        "File ...: it cannot be read (...)",
        "Tree ...: it holds ... files",
        "Tree ...: it is there twice",
        "Tree ...: it is empty",
        "...: the entry ... has no name",
        "...: the entry ... is too long",
        "Running it: ...",
    ]


def test_an_error_knows_its_advice_its_line_and_whether_the_reason_is_its_own() -> None:
    found = list(messages.ErrorTexts(SOURCE, {"OpsError"}).messages())
    assert (found[0].line, found[0].todo, found[0].is_passed_on) == (6, "Check ...", False)
    assert [message.is_passed_on for message in found] == [False] * 6 + [True]


def test_a_reason_that_is_set_from_itself_without_end() -> None:
    source = 'def f(why):\n    why = f"{why}, again"\n    f(why)\n    raise OpsError("It", why, "Stop")\n'
    assert texts(source) == ["It: ..., again"]


def test_all_texts_of_a_file_but_its_docstrings() -> None:
    found = messages.ErrorTexts(SOURCE, set()).all_texts()
    assert {"no error of ours", "Throttling", "it is empty", "Check ..."} <= found
    assert "A docstring." not in found


def test_subclasses_of_an_error() -> None:
    source = "class A(OpsError): ...\nclass B(errors.OpsError): ...\nclass C(ValueError): ...\nclass D: ...\n"
    assert messages.subclasses(source, "OpsError") == {"A", "B"}


def test_keys_of_a_table() -> None:
    assert messages.table_keys(SOURCE, {"TODO_BY_CODE"}) == {"Throttling", "403"}
    assert messages.table_keys(SOURCE, {"TODO_BY_CLASS"}) == set()


def test_what_tasks_say_when_they_fail() -> None:
    tasks = [
        {"ansible.builtin.assert": {"that": "a", "fail_msg": "There is no\n  {{ a }}."}},
        {"ansible.builtin.fail": {"msg": "{{ why }}"}},
        {"ansible.builtin.debug": {"msg": "fine"}},
    ]
    assert messages.task_failures(tasks) == ["There is no {{ a }}.", "{{ why }}"]


PAGE = """# Page

- a list item without a message

- `it is there, but ...` \\
  `it is empty`

  Because. Do `this`.

- `it ended`

"""


def test_entries_of_a_page() -> None:
    assert messages.entries(PAGE) == [
        messages.Entry(["it is there, but ...", "it is empty"], "Because. Do `this`."),
        messages.Entry(["it ended"], ""),
    ]


@pytest.mark.parametrize(
    ("quote", "fitting"),
    [
        ("it holds ... files", True),
        ("Tree ...: it holds", True),
        ("holds ... files and", False),
        ("it.holds", False),
        ("files ... Tree", False),
    ],
)
def test_quotes_and_the_texts_that_they_fit(quote: str, fitting: bool) -> None:
    assert messages.fits(quote, "Another line\nTree ...: it holds ... files") is fitting


def test_quotes_that_are_too_short_or_given_twice() -> None:
    quotes = ["it is ... it", "it is there, but", "it is empty now", "it is there, but"]
    assert messages.unfit_quotes(quotes) == ["it is ... it", "it is there, but"]


def test_prose_of_a_document() -> None:
    text = messages.prose("# Title\n\n    code\n\n```sh\nmore code\n```\n\nWords and `code`.\n")
    assert text.split() == ["#", "Title", "Words", "and", "."]


def test_header_of_a_playbook() -> None:
    assert messages.header("---\n# Does it.\n#\n- hosts: all\n# not this\n").split("\n") == ["---", "Does it.", ""]


def test_texts_of_plays_and_tasks() -> None:
    play = {
        "name": "Play",
        "hosts": "all",
        "tasks": [{"name": "Block", "block": [{"name": "Task", "ansible.builtin.assert": {"success_msg": "fine"}}]}],
    }
    assert messages.task_texts([play]).split("\n") == ["Play", "Block", "Task", "fine"]


def test_descriptions_of_options_within_options() -> None:
    documented = {
        "description": ["First.", "Second."],
        "options": {"a": {"description": "Of a.", "type": "str", "options": {"b": {"description": "Of b."}}}},
    }
    assert messages.descriptions(documented).split("\n") == ["First.", "Second.", "Of a.", "Of b."]


def test_words_that_are_found() -> None:
    assert messages.found_words({r"\btold\b": "queried"}, "Nothing.\nIt is Told so.\nretold") == [
        "'Told' in 'It is Told so.': queried"
    ]
