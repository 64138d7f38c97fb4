"""What a user sees is written in the words of the trade; each word here has a better one beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contract import messages, tree

WORDS = {
    r"\btold\b": "queried, reported, distinguished",
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"\breckon\w*": "estimate, calculate",
    r"\banew\b": "again, from scratch; start over",
    r"\b(goes|go|gone|went) on\b(?! the\b)": "continues, resumes",
    r"\bcarries on\b": "builds on, continues",
    r"\b(has|have) gone\b": "was deleted, was terminated, no longer exists",
    r"\b(let|lets|letting) go\b": "release, drop",
    r"\bheld against\b": "compared with",
    r"\bthrown away\b": "discarded",
    r"\bthaw\w*": "restore (from an archive class)",
    r"\bbuys?\b": "launches, creates",
    r"\basks? (AWS|EC2|S3|STS|whose|after)\b": "queries, gets",
    r"\basked (AWS|EC2|S3|STS|for|after|anew|again)\b": "queried, requested",
    r"\bless than nothing\b": "negative",
    r"\bas ever\b": "as before",
    r"\b(left|leave|leaves) as it is\b": "not changed",
    r"\b(has|have) not the\b": "does not have the",
    r"\bwhat came of\b": "the result, what was extracted",
    r"\bput things right\b": "repair",
    r"\bit has become\b": "it is now",
}


def documents() -> dict[str, str]:
    names = [name for name in tree.tracked_files() if name.endswith(".md") and not name.startswith("roles/")]
    return {name: messages.prose(tree.text(name)) for name in names if name != "docs/permissions.md"}


def permissions() -> dict[str, str]:
    return {"docs/permissions.md": messages.prose(tree.text("docs/permissions.md"))}


def readmes_of_roles() -> dict[str, str]:
    return {role: messages.prose(tree.text(f"roles/{role}/README.md")) for role in tree.ROLES}


def tasks() -> dict[str, str]:
    shown = {path: messages.task_texts(tree.yaml_of(path)) for path in tree.task_files()}
    usages = {path: messages.header(tree.text(path)) for path in tree.PLAYBOOKS}
    return {path: f"{usages.get(path, '')}\n{text}" for path, text in shown.items()}


def options_of_roles() -> dict[str, str]:
    specs = {role: tree.yaml_of(f"roles/{role}/meta/argument_specs.yml") for role in tree.ROLES}
    return {role: messages.descriptions(spec) for role, spec in specs.items()}


def options_of_modules() -> dict[str, str]:
    return {name: messages.descriptions(documented) for name, documented in tree.documentation().items()}


def messages_of_python() -> dict[str, str]:
    files = [path for folder in ("module_utils", "plugins") for path in (tree.ROOT / folder).rglob("*.py")]
    texts = {path: messages.ErrorTexts(tree.text(path), set()).all_texts() for path in files}
    return {str(path.relative_to(tree.ROOT)): "\n".join(sorted(texts[path])) for path in sorted(files)}


# Everything that a user sees. What stands in a document as code is judged where it is defined.
SCOPES: dict[str, Callable[[], dict[str, str]]] = {
    "documents": documents,
    "permissions": permissions,
    "readmes of roles": readmes_of_roles,
    "tasks": tasks,
    "options of roles": options_of_roles,
    "options of modules": options_of_modules,
    "messages of Python": messages_of_python,
}
# Scopes join as soon as they hold none of the words.
CLEAN = [
    "documents",
    "permissions",
    "readmes of roles",
    "tasks",
    "options of roles",
    "options of modules",
    "messages of Python",
]


@pytest.mark.parametrize("scope", CLEAN)
def test_no_word_of_the_list_is_shown(scope: str) -> None:
    texts = SCOPES[scope]()
    found = [f"{name}: {fault}" for name, text in texts.items() for fault in messages.found_words(WORDS, text)]
    assert "\n".join(found) == ""


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_finds_what_it_reads(scope: str) -> None:
    texts = SCOPES[scope]()
    assert sum(bool(text.strip()) for text in texts.values()) > len(texts) / 2
