"""The rules of the tree as pure functions: each takes texts and values and returns what is wrong, one line a fault.

test_checks.py shows each of them failing on a small bad example; the other files here run them on the real tree.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
import jinja2.meta

# --- one interface, stated several times --------------------------------------------------------------------------


def table_rows(markdown: str) -> dict[str, str]:
    """The first two columns of every table whose first column is a name in backticks: name to text of the second."""
    rows = {}
    for line in markdown.splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)]
        match = re.fullmatch(r"`(\w+)`", cells[1]) if len(cells) > 3 else None
        if match:
            rows[match[1]] = cells[2]
    return rows


def shown_default(value: Any) -> str:
    """How a README shows a default."""
    return f"`{value}`" if isinstance(value, str) and value else f"`{json.dumps(value, ensure_ascii=False)}`"


def role_interface(role: str, defaults: Mapping[str, Any], options: Mapping[str, Any], readme: str) -> list[str]:
    """A role's defaults, the options of its argument_specs and its README's table say the same."""
    faults = [f"{name} lacks the prefix {role}_" for name in options if not name.startswith(f"{role}_")]
    with_default = {name: option["default"] for name, option in options.items() if "default" in option}
    faults += _differences("defaults/main.yml", defaults, "argument_specs.yml", with_default)
    faults += [f"{name} is required and has a default" for name in with_default if options[name].get("required")]
    faults += [
        f"{name} has neither default nor required: true"
        for name in options.keys() - with_default.keys()
        if not options[name].get("required")
    ]
    stated = [(name, key) for name in options for key in ("description", "type")]
    faults += [f"{name} has no {key}" for name, key in stated if key not in options[name]]
    shown = {name: shown_default(with_default[name]) if name in with_default else "required" for name in options}
    return faults + _differences("README.md", table_rows(readme), "argument_specs.yml", shown)


def _differences(left_name: str, left: Mapping[str, Any], right_name: str, right: Mapping[str, Any]) -> list[str]:
    faults = [f"{name} is in {left_name} and not in {right_name}" for name in left.keys() - right.keys()]
    faults += [f"{name} is in {right_name} and not in {left_name}" for name in right.keys() - left.keys()]
    return faults + [
        f"{name} is {left[name]!r} in {left_name} and {right[name]!r} in {right_name}"
        for name in left.keys() & right.keys()
        if left[name] != right[name] or type(left[name]) is not type(right[name])
    ]


# What DOCUMENTATION and argument_spec both say of an option, and what leaving it out means.
_OPTION_FIELDS = {"type": "str", "elements": None, "required": False, "default": None, "choices": None}
_SECRET = re.compile(r"password|secret|token|passphrase", re.IGNORECASE)


def module_interface(documented: Mapping[str, Any], spec: Mapping[str, Any], within: str = "") -> list[str]:
    """The documented options of a module are those of its argument_spec, suboptions included."""
    faults = [f"{within}{name} is documented and not in argument_spec" for name in documented.keys() - spec.keys()]
    faults += [f"{within}{name} is in argument_spec and not documented" for name in spec.keys() - documented.keys()]
    for name in sorted(documented.keys() & spec.keys()):
        option, argument = documented[name], spec[name]
        for field, absent in _OPTION_FIELDS.items():
            said, done = _comparable(option.get(field, absent)), _comparable(argument.get(field, absent))
            if said != done:
                faults.append(f"{within}{name}: {field} is {said!r} in DOCUMENTATION and {done!r} in argument_spec")
        if sorted(option.get("aliases") or []) != sorted(argument.get("aliases") or []):
            faults.append(f"{within}{name}: the aliases differ")
        if _SECRET.search(name) and argument.get("type", "str") in ("str", "dict") and "no_log" not in argument:
            faults.append(f"{within}{name} sounds secret and argument_spec has no no_log")
        faults += module_interface(option.get("suboptions") or {}, argument.get("options") or {}, f"{within}{name}.")
    return faults


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


# --- tasks ----------------------------------------------------------------------------------------------------------

_BLOCKS = ("block", "rescue", "always")


def tasks_of(content: Any) -> Iterator[dict[str, Any]]:
    """Every task in a parsed tasks file or playbook, those inside blocks included, blocks themselves too."""
    for entry in content or []:
        if any(key in entry for key in ("hosts", "import_playbook", "ansible.builtin.import_playbook")):
            for section in ("pre_tasks", "tasks", "post_tasks", "handlers"):
                yield from tasks_of(entry.get(section))
            continue
        yield entry
        for key in _BLOCKS:
            yield from tasks_of(entry.get(key))


def is_expression(value: Any) -> bool:
    """Whether a value of a YAML file is only known when a playbook runs."""
    return isinstance(value, str) and "{{" in value


def task_options(module: str, arguments: Any, options: Mapping[str, Any], defaults: Iterable[str] = ()) -> list[str]:
    """A task gives a module of library/ options that it has, those it requires, and literal values it can take.

    ``defaults`` are the options that module_defaults gives it already.
    """
    if not isinstance(arguments, dict):
        return [f"{module}: its options are not a mapping"]
    known = set(options) | {alias for option in options.values() for alias in option.get("aliases") or []}
    faults = [f"{module} has no option {name}" for name in arguments if name not in known]
    faults += [
        f"{module} requires {name}"
        for name, option in options.items()
        if option.get("required") and name not in arguments and name not in defaults
    ]
    for name, value in arguments.items():
        choices = options.get(name, {}).get("choices")
        given = value if isinstance(value, list) else [value]
        if choices and not is_expression(value) and not set(given) <= set(choices):
            faults.append(f"{module}: {name} cannot be {value!r}")
    return faults


# Programs that only read; a task that runs one of them, and no other, may say changed_when: false.
READING_PROGRAMS = {"blkid", "df", "findmnt", "lsblk"}
_FREE_FORM = {"ansible.builtin.shell", "shell", "ansible.builtin.raw", "raw", "ansible.builtin.script", "script"}


def task_habits(task: Mapping[str, Any]) -> list[str]:
    """A task hides no error and no change, and leaves the shell alone."""
    faults = []
    if "ignore_errors" in task:
        faults.append("ignore_errors: handle the failure by failed_when or rescue")
    if task.get("changed_when") is False and not _runs_reading_program(task):
        faults.append("changed_when: false on something else than a program that only reads")
    if task.get("failed_when") is False:
        faults.append("failed_when: false hides every failure")
    return faults + [f"{name}: use a module" for name in task if name in _FREE_FORM]


def _runs_reading_program(task: Mapping[str, Any]) -> bool:
    command = task.get("ansible.builtin.command") or {}
    words = command.get("argv") if isinstance(command, dict) else str(command).split()
    return isinstance(words, list) and bool(words) and str(words[0]).rsplit("/", 1)[-1] in READING_PROGRAMS


def role_variables(role: str, task: Mapping[str, Any]) -> list[str]:
    """What a role keeps is named after the role: registered values ``__<role>_``, facts ``<role>_``."""
    faults = []
    registered = task.get("register")
    if registered is not None and not str(registered).startswith(f"__{role}_"):
        faults.append(f"register: {registered} does not begin with __{role}_")
    facts = task.get("ansible.builtin.set_fact") or {}
    return faults + [
        f"set_fact: {name} does not begin with {role}_"
        for name in facts
        if name != "cacheable" and not name.startswith((f"{role}_", f"__{role}_"))
    ]


# --- playbooks ------------------------------------------------------------------------------------------------------

PLAYBOOK_LINES_MAX = 59


def playbook_header(path: str, text: str) -> list[str]:
    """A playbook opens with what it does and a command line of its own."""
    lines = text.splitlines()
    if not lines or lines[0] != "---":
        return ["does not begin with ---"]
    header = []
    for line in lines[1:]:
        if not line.startswith("#"):
            break
        header.append(line.lstrip("# "))
    if not header or not header[0].endswith("."):
        return ["does not begin with a comment whose first line is a sentence"]
    if not any(line.startswith(f"ansible-playbook {path} -i ") for line in header):
        return [f"its header shows no command `ansible-playbook {path} -i ...`"]
    return []


def playbook_shape(text: str, content: Any) -> list[str]:
    """A playbook is a table of contents: short, and its plays hold roles."""
    faults = []
    count = len(text.splitlines())
    if count > PLAYBOOK_LINES_MAX:
        faults.append(f"has {count} lines, and {PLAYBOOK_LINES_MAX} is the most")
    for play in content:
        for section in ("pre_tasks", "tasks", "post_tasks", "handlers"):
            tasks = play.get(section) or []
            if len(tasks) > 1 or any(_is_more_than_a_role(task) for task in tasks):
                faults.append(f"{section} of play '{play.get('name')}' do more than one role or reading the inventory")
    return faults


def _is_more_than_a_role(task: Mapping[str, Any]) -> bool:
    if task.get("ansible.builtin.meta") == "refresh_inventory":
        return False  # only a play can: the task knows no condition, and a role may have one
    return not {"ansible.builtin.include_role", "ansible.builtin.import_role"} & task.keys()


def extra_variables(text: str) -> set[str]:
    """The variables that command lines in a text give with -e."""
    return set(re.findall(r"(?<!\S)-e (\w+)=", text))


# --- variables ------------------------------------------------------------------------------------------------------

# Keys whose value is an expression without braces.
_CONDITIONS = {"when", "until", "failed_when", "changed_when", "that"}


def referenced_variables(content: Any, key: str = "") -> set[str]:
    """The variables that a parsed YAML file reads, in templates and in conditions."""
    if isinstance(content, dict):
        found: set[str] = set()
        for name, value in content.items():
            found |= referenced_variables(value, str(name))
        return found
    if isinstance(content, list):
        return set().union(*(referenced_variables(entry, key) for entry in content)) if content else set()
    if not isinstance(content, str):
        return set()
    return template_variables(f"{{{{ ({content}) }}}}" if key in _CONDITIONS else content)


class _AnyName(dict[str, Any]):
    """Filters and tests of whatever name: Ansible's own are not at hand here, and only variables are looked for."""

    def get(self, name: str, _default: Any = None) -> Any:
        return super().get(name, str)


def template_variables(text: str) -> set[str]:
    """The variables that a Jinja template reads and does not set itself."""
    environment = jinja2.Environment(autoescape=True)
    environment.filters, environment.tests = _AnyName(environment.filters), _AnyName(environment.tests)
    return jinja2.meta.find_undeclared_variables(environment.parse(text))


def defined_variables(content: Any) -> set[str]:
    """The variables that a tasks file or playbook makes: registered, set, given to a task or a play."""
    found: set[str] = set()
    for entry in content or []:
        found |= set(entry.get("vars") or {})
        for role in entry.get("roles") or []:
            found |= set(role.get("vars") or {}) if isinstance(role, dict) else set()
    for task in tasks_of(content):
        found |= set(task.get("vars") or {}) | set(task.get("ansible.builtin.set_fact") or {})
        found |= {task["register"]} if "register" in task else set()
        control = task.get("loop_control") or {}
        found |= {control[name] for name in ("loop_var", "index_var") if name in control}
    return found


# --- sources --------------------------------------------------------------------------------------------------------


def defines_something(source: str) -> bool:
    """Whether a Python file has a function or a class of its own, so that there is something to test."""
    return any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in ast.walk(ast.parse(source)))


_IS_ANSIBLE = re.compile(r"(ansible|ansible_collections)(?!\.module_utils\.imagenet_ops\b)(\.|$)")


def ansible_imports(source: str) -> list[str]:
    """Imports by which Python of module_utils would know Ansible; our own package is none."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        faults += [f"line {node.lineno} imports {name}" for name in names if _IS_ANSIBLE.match(name)]
    return faults


def errors_not_named(source: str) -> list[str]:
    """Public functions and methods whose docstring does not name an error that they raise themselves."""
    return [
        f"line {function.lineno}: the docstring of {function.name} does not name {name}"
        for function in _public_functions(ast.parse(source).body)
        for name in sorted({name for node in _own_nodes(function) for name in _raised(node)})
        if name not in (ast.get_docstring(function) or "")
    ]


def _public_functions(body: Iterable[ast.stmt]) -> Iterator[ast.FunctionDef]:
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _public_functions(node.body)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """All that a function holds, without the functions within it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            yield node
            yield from _own_nodes(node)


def _raised(node: ast.AST) -> list[str]:
    """The class of an error that a ``raise`` makes; none where it raises what it caught."""
    if not isinstance(node, ast.Raise) or node.exc is None:
        return []
    error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    name = ast.unparse(error).rpartition(".")[2]
    return [name] if name[:1].isupper() else []


_SUPPRESSION = re.compile(r"#\s*(?:noqa|type:\s*ignore)\b(.*)")
_RULE_AND_REASON = re.compile(r"(?::\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*|:\s*[\w-]+\[[\w-]+\]|\[[\w, -]+\])\W+\w.*\s.*")


def suppressions_without_reason(text: str) -> list[str]:
    """``noqa`` and ``type: ignore`` with no reason beside them, in a comment above, or on a suppression just above."""
    faults, explained = [], False
    for number, line in enumerate(text.splitlines(), 1):
        match = _SUPPRESSION.search(line)
        if match and not explained:
            explained = bool(_RULE_AND_REASON.fullmatch(match[1]))
            faults += [] if explained else [f"line {number}: {match[0].strip()}"]
        elif not match:
            explained = line.lstrip().startswith("#")
    return faults


def skips_without_reason(source: str) -> list[str]:
    """Calls of pytest.skip and marks skip, skipif, xfail that do not say why."""
    return [
        f"line {node.lineno}: {ast.unparse(node.func)} gives no reason"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and _skips_silently(node)
    ]


def _skips_silently(node: ast.Call) -> bool:
    name = ast.unparse(node.func)
    has_reason = any(keyword.arg == "reason" for keyword in node.keywords)
    if name == "pytest.skip":
        return not node.args and not has_reason
    return name in ("pytest.mark.skip", "pytest.mark.skipif", "pytest.mark.xfail") and not has_reason


def matches(pattern: str, text: str) -> list[str]:
    """The lines of a text in which the pattern is found."""
    return [f"line {n}: {line.strip()}" for n, line in enumerate(text.splitlines(), 1) if re.search(pattern, line)]


# Paths of the machine on which someone happened to write a file, and notes of unfinished work.
FOREIGN_PATHS = r"/wor" + r"k/(main|shared)\b|/roo" + r"t/\."
UNFINISHED = r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b"
# Names that mean a device on one instance and another one on the next.
UNSTABLE_DEVICES = r"/dev/(sd|xvd|nvme)\w*"


# --- Makefile, documents --------------------------------------------------------------------------------------------


def make_targets(makefile: str) -> dict[str, str]:
    """The targets of a Makefile and the line of help of each, empty where there is none."""
    return {
        match[1]: (match[2] or "").strip()
        for match in re.finditer(r"^([a-z][\w-]*):(?!=)[^#\n]*(?:##(.*))?$", makefile, re.MULTILINE)
    }


def code_of(markdown: str) -> str:
    """What a document shows as code: indented or fenced blocks, and spans in backticks, one a line."""
    blocks = re.findall(r"^(?: {4}|\t)(.*)$", markdown, re.MULTILINE)
    fences = re.findall(r"^```\w*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", outside)]
    return "\n".join(blocks + fences + spans)


def anchors(markdown: str) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table_faults(markdown: str, cell_characters_max: int) -> list[str]:
    """Tables of a document whose rows differ in their cells, and cells that are no cells any more but pages."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    faults = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in table.splitlines()]
        if len(rows) < 2 or not all(re.fullmatch(r" *:?-+:? *", cell) for cell in rows[1]):
            faults.append(f"{rows[0]} has no line below its head")
        faults += [
            f"{row[0].strip()}: {len(row)} cells, the head has {len(rows[0])}"
            for row in rows
            if len(row) != len(rows[0])
        ]
        faults += [
            f"{row[0].strip()}: a cell of {len(cell)} characters"
            for row in rows
            for cell in row
            if len(cell) > cell_characters_max
        ]
    return faults


def commands_without_target(code: str, targets: Iterable[str]) -> list[str]:
    """``make`` commands in a document's code whose target the Makefile does not have."""
    used = re.findall(r"(?:^|[\s`])make +((?:[a-z][\w-]*)|(?:[A-Z]+=\S+ +)+[a-z][\w-]*)", code, re.MULTILINE)
    return [f"make {target}" for target in used if target.split()[-1] not in targets]


def missing_files(code: str, exists: Callable[[str], bool]) -> list[str]:
    """Playbooks and inventories that a document's code names and that are not there."""
    named = set(re.findall(r"(?<![\w/])(playbooks/[\w/]+\.yml|inventories/(?!mine\b)\w+)", code))
    return sorted(path for path in named if not exists(path))


# --- IAM ------------------------------------------------------------------------------------------------------------

_ACTION = re.compile(r"\w+:[A-Za-z]+")
_TAKES_AWAY = re.compile(r":(Delete|Terminate|Detach|Release|Revoke|Remove)")
# Actions that AWS cannot tie to a tag of what they act on; each statement is bound to a name instead.
_BOUND_BY_NAME = re.compile(r"^(s3|iam):")


def policy_faults(policy: Any) -> list[str]:
    """An IAM policy grants named actions only, and takes away only what a tag or a name marks."""
    faults = []
    if not isinstance(policy, dict) or policy.get("Version") != "2012-10-17":
        return ["is not a policy of version 2012-10-17"]
    for statement in policy["Statement"]:
        sid = statement.get("Sid", "(no Sid)")
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        faults += [f"{sid}: {action} is no single action" for action in actions if not _ACTION.fullmatch(action)]
        if statement.get("Effect") != "Allow":
            faults.append(f"{sid}: Effect is not Allow")
        condition = json.dumps(statement.get("Condition", {}))
        for action in filter(_TAKES_AWAY.search, actions):
            if _BOUND_BY_NAME.match(action):
                if statement["Resource"] == "*":
                    faults.append(f"{sid}: {action} on every resource")
            elif "aws:ResourceTag/" not in condition:
                faults.append(f"{sid}: {action} without a condition on a tag")
    return faults
