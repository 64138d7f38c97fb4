"""The packages of module_utils: their floors, which of them imports which, and what of it is against the rules.

`make architecture` prints it. An import goes to a lower floor or stays in its package, so each package can be read,
tested and sent to a host with nothing but what lies below it.
"""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

OURS = Path(__file__).resolve().parent.parent.parent / "module_utils" / "imagenet_ops"
NAME = "ansible.module_utils.imagenet_ops"
# The packages of each floor, from the ground up.
FLOORS = (
    ("core",),
    ("archive", "aws", "host"),
    ("download", "formats", "layout"),
    ("dataset",),
    ("backup", "ebs", "pack"),
)
FLOOR_OF = {package: floor for floor, packages in enumerate(FLOORS, 1) for package in packages}

Graph = Mapping[str, Collection[str]]


def files(top: Path = OURS) -> dict[str, str]:
    """The source of each file below ``top`` by its path without .py (``core/errors``); __init__.py is none of them."""
    paths = sorted(path for path in top.rglob("*.py") if path.name != "__init__.py")
    return {str(path.relative_to(top).with_suffix("")): path.read_text(encoding="utf-8") for path in paths}


def imports(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Which of the files ``sources`` each of them imports, in a function too."""
    return {name: {found for found in _imported(name, source) if found in sources} for name, source in sources.items()}


def _imported(name: str, source: str) -> Iterator[str]:
    """Yield whatever file ``name`` imports that may be a file of ours."""
    package = ".".join([NAME, *name.split("/")[:-1]])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            # What is imported from a package may be a file of it.
            modules = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (module[len(NAME) + 1 :].replace(".", "/") for module in modules if module.startswith(f"{NAME}."))


def packages(graph: Graph) -> dict[str, set[str]]:
    """Which packages each package imports, given which files each file does."""
    found: dict[str, set[str]] = {}
    for name, imported in graph.items():
        package = _package(name)
        found.setdefault(package, set()).update({_package(other) for other in imported} - {package})
    return found


def _package(name: str) -> str:
    return name.rpartition("/")[0]


def wrong_ways(graph: Graph) -> list[str]:
    """Say which imports of the files in ``graph`` leave their package and do not go to a lower floor."""
    return [
        f"{name} (floor {FLOOR_OF[_package(name)]}) imports {other} (floor {FLOOR_OF[_package(other)]})"
        for name, imported in sorted(graph.items())
        for other in sorted(imported)
        if _package(other) != _package(name) and FLOOR_OF[_package(other)] >= FLOOR_OF[_package(name)]
    ]


def circle(graph: Graph) -> list[str]:
    """Return a circle of imports, its first member again at its end; nothing where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        # It has them in the other direction: each is imported by the next.
        return list(reversed(error.args[1]))
    return []


def is_docstring_alone(source: str) -> bool:
    """Whether there is one line of docstring and nothing else."""
    body = ast.parse(source).body
    return len(body) == 1 and bool(ast.get_docstring(ast.parse(source))) and len(source.splitlines()) == 1


def picture(graph: Graph) -> str:
    """The packages, floor by floor from the top, with the number of their files and the packages that they import."""
    arrows = packages(graph)
    lines = []
    for floor, names in reversed(list(enumerate(FLOORS, 1))):
        for name in names:
            count = sum(_package(other) == name for other in graph)
            below = sorted(arrows.get(name, ()), key=lambda other: (-FLOOR_OF[other], other))
            lines.append(f"floor {floor}  {name:9} {count:3} files  -> {', '.join(below) or 'nothing'}")
    return "\n".join(lines)


def main() -> int:
    """Print the packages, and what is against the rules; return 1 where something is."""
    graph = imports(files())
    faults = wrong_ways(graph)
    for what, of in (("files", graph), ("packages", packages(graph))):
        if found := circle(of):
            faults.append(f"circle of {what}: {' -> '.join(found)}")
    sys.stdout.write("\n".join([picture(graph), "", *(faults or ["no import up, no circle"]), ""]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
