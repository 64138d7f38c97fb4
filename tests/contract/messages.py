"""The texts that users see, taken out of the sources: errors of Python and of tasks, names, descriptions, documents."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from tests.contract.checks import tasks_of

# Stands for what is only known when the code runs.
ANY = "..."
# A reason can be put together of others, each with several texts.
_TEXTS_MAX = 64


class Message(NamedTuple):
    """What failed and why, and what to do; ``line`` is where the source raises the error."""

    line: int
    what: str
    why: str
    todo: str

    @property
    def text(self) -> str:
        """What failed and why, as a user sees it."""
        return f"{self.what}: {self.why}"

    @property
    def is_passed_on(self) -> bool:
        """Whether the error has no reason of its own, and gives that of another error or program."""
        return re.search("[A-Za-z]", self.why) is None


class ErrorTexts:
    """Every text of the errors in one Python file.

    A reason in a variable is followed to the assignments in the same function, and one that a function is given to the
    calls of that function in the same file.
    """

    def __init__(self, source: str, error_names: set[str]) -> None:
        """``error_names`` are the classes whose first arguments are what failed, why, and what to do."""
        self._names = error_names
        self._tree = ast.parse(source)
        self._calls = [node for node in ast.walk(self._tree) if isinstance(node, ast.Call)]
        # The walk finds outer functions first, so what stays is the innermost one around each call.
        self._around = {
            node: function
            for function in ast.walk(self._tree)
            if isinstance(function, ast.FunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Call)
        }

    def messages(self) -> list[Message]:
        """Return each text of each error once, in the order of the lines."""
        found: dict[Message, None] = {}
        for call in self._calls:
            if _name_of(call) in self._names and len(call.args) >= 3:
                what, why, todo = call.args[:3]
                for reason in self._texts(why, self._around.get(call), ()):
                    subject, advice = (self._texts(part, None, ())[0] for part in (what, todo))
                    found[Message(call.lineno, *map(one_line, (subject, reason, advice)))] = None
        return sorted(found, key=lambda message: message.line)

    def all_texts(self) -> set[str]:
        """Return every text that the file holds, but for its docstrings; variables are not followed."""
        nodes = list(ast.walk(self._tree))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        literals = (node for node in nodes if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)))
        return {one_line(text) for node in literals if node not in docstrings for text in self._texts(node, None, ())}

    def _texts(self, node: ast.expr, function: ast.FunctionDef | None, seen: tuple[tuple[str, str], ...]) -> list[str]:
        """Return the texts that an expression within ``function`` can have; without, variables are not followed."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return [node.value]
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.FormattedValue) else part for part in node.values]
            return self._joined(parts, function, seen)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._joined([node.left, node.right], function, seen)
        if isinstance(node, (ast.IfExp, ast.BoolOp)):
            values = [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values
            return [text for value in values for text in self._texts(value, function, seen)]
        if isinstance(node, ast.Name) and function is not None:
            return self._texts_of_name(node.id, function, seen)
        return [ANY]

    def _joined(
        self, parts: list[ast.expr], function: ast.FunctionDef | None, seen: tuple[tuple[str, str], ...]
    ) -> list[str]:
        texts = [self._texts(part, function, seen) for part in parts]
        return ["".join(chosen) for chosen in itertools.islice(itertools.product(*texts), _TEXTS_MAX)]

    def _texts_of_name(self, name: str, function: ast.FunctionDef, seen: tuple[tuple[str, str], ...]) -> list[str]:
        """Return the texts of a variable, by what sets it; one that is set from itself began as a parameter."""
        key = (function.name, name)
        if seen.count(key) > 1:
            return [ANY]
        values: list[tuple[ast.expr, ast.FunctionDef | None]] = [
            (node.value, function)
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
        ]
        if key in seen:
            values = list(self._given(name, function))
        elif not any(isinstance(node, ast.Name) and node.id == name for value, _ in values for node in ast.walk(value)):
            values += self._given(name, function)
        return [text for value, place in values for text in self._texts(value, place, (*seen, key))] or [ANY]

    def _given(self, name: str, function: ast.FunctionDef) -> Iterator[tuple[ast.expr, ast.FunctionDef | None]]:
        """Yield what calls in this file give a parameter of ``function``."""
        parameters = [argument.arg for argument in function.args.args if argument.arg not in ("self", "cls")]
        if name not in parameters:
            return
        place = parameters.index(name)
        for call in self._calls:
            if _name_of(call) == function.name:
                named = [keyword.value for keyword in call.keywords if keyword.arg == name]
                for value in [*named, *call.args[place : place + 1]]:
                    yield value, self._around.get(call)


def _name_of(call: ast.Call) -> str:
    """Return the last part of the name of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def one_line(text: str) -> str:
    """Return a text in one line, with one ``...`` where several follow each other."""
    return re.sub(r"\.\.\.(?:[\s,]*\.\.\.)+", ANY, " ".join(text.split()))


def subclasses(source: str, name: str) -> set[str]:
    """Return the classes of a Python file that derive from ``name`` at once."""
    classes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
    return {found.name for found in classes if any(ast.unparse(base).split(".")[-1] == name for base in found.bases)}


def table_keys(source: str, names: set[str]) -> set[str]:
    """Return the keys of the dictionaries that a Python file assigns to one of ``names``."""
    found = [
        key.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in names
        for key in node.value.keys
        if isinstance(key, ast.Constant)
    ]
    return {str(key) for key in found}


def task_failures(tasks: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what tasks say when they fail, as it is written: with the expressions in it."""
    found = []
    for task in tasks:
        for module, key in (("ansible.builtin.assert", "fail_msg"), ("ansible.builtin.fail", "msg")):
            if module in task:
                found.append(one_line(str(task[module].get(key, ""))))
    return found


# --- what a page says of them -----------------------------------------------------------------------------------------

_QUOTE_LETTERS_MIN = 10


class Entry(NamedTuple):
    """Messages that a page quotes, and what it says of them."""

    quotes: list[str]
    explanation: str


def entries(markdown: str) -> list[Entry]:
    """Return the entries of a page: list items that begin with messages as code, one a line."""
    found = []
    for item in re.findall(r"^- `.*\n(?:(?:  .*)?\n)*", markdown, re.MULTILINE):
        lines = [line.strip().rstrip("\\").strip() for line in item[2:].splitlines()]
        count = next((number for number, line in enumerate(lines) if not re.fullmatch("`[^`]+`", line)), len(lines))
        found.append(Entry([line.strip("`") for line in lines[:count]], " ".join(lines[count:]).strip()))
    return found


def fits(quote: str, text: str) -> bool:
    """Say whether ``quote`` is a part of a line of ``text``; ``...`` in it stands for anything."""
    parts = [re.escape(part.strip()) for part in quote.split(ANY)]
    return re.search(".*".join(parts), text) is not None


def unfit_quotes(quotes: Iterable[str]) -> list[str]:
    """Return the quotes that are so short that they would fit texts that they do not mean, and those given twice."""
    given = list(quotes)
    return [
        quote
        for number, quote in enumerate(given)
        if len(quote.replace(ANY, "").strip()) < _QUOTE_LETTERS_MIN or quote in given[:number]
    ]


# --- words ------------------------------------------------------------------------------------------------------------


def prose(markdown: str) -> str:
    """Return a document without its code: names and commands are not its words."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`", "", text)


def header(source: str) -> str:
    """Return the comment that a YAML file opens with."""
    lines = itertools.takewhile(lambda line: line.startswith(("#", "---")), source.splitlines())
    return "\n".join(line.lstrip("# ") for line in lines)


def task_texts(content: Any) -> str:
    """Return what a parsed file of plays or tasks shows: the names, and what tasks say, one a line."""
    shown = [str(entry["name"]) for entry in content or [] if "hosts" in entry and "name" in entry]
    for task in tasks_of(content):
        shown += [str(task["name"])] if "name" in task else []
        for module in ("ansible.builtin.assert", "ansible.builtin.fail", "ansible.builtin.debug"):
            arguments = task.get(module) or {}
            shown += [one_line(str(arguments[key])) for key in ("fail_msg", "success_msg", "msg") if key in arguments]
    return "\n".join(shown)


def descriptions(documented: Any) -> str:
    """Return the descriptions in a documentation of options, those of options within options too, one a line."""
    if isinstance(documented, list):
        return "\n".join(filter(None, map(descriptions, documented)))
    if not isinstance(documented, dict):
        return ""
    found = [documented.get(key) for key in ("short_description", "description") if key in documented]
    texts = [one_line(str(text)) for value in found for text in (value if isinstance(value, list) else [value])]
    return "\n".join(filter(None, [*texts, *map(descriptions, documented.values())]))


def found_words(patterns: Mapping[str, str], text: str) -> list[str]:
    """Return the lines of ``text`` in which a pattern is found, with what to write instead."""
    return [
        f"{match[0]!r} in {line.strip()!r}: {instead}"
        for line in text.splitlines()
        for pattern, instead in patterns.items()
        for match in re.finditer(pattern, line, re.IGNORECASE)
    ]
