"""The figures: targets, measurements, and the table of both."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from ansible.module_utils.imagenet_ops.core.files import write_json


@dataclass(frozen=True)
class Target:
    """What a figure must be: at most (``<=``) or at least (``>=``) ``value`` in ``unit``, beside ``peer``."""

    name: str
    bound: str
    value: float
    unit: str
    peer: str

    def is_met(self, figure: float | None) -> bool:
        """Return whether ``figure`` was measured and is good enough."""
        if figure is None:
            return False
        return figure <= self.value if self.bound == "<=" else figure >= self.value


@dataclass
class Bench:
    """A run: ``directory`` is for scratch files, ``scale`` shrinks the work for a trial (1 is what targets are for)."""

    directory: Path
    scale: float = 1.0
    figures: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def record(self, name: str, value: float, peer_text: str = "") -> None:
        """Record a figure, with a text about its peer."""
        self.figures[name] = round(value, 4)
        self.notes[name] = peer_text
        print(f"  {name} = {value:.4g}  {peer_text}", flush=True)


def keep(path: Path, figures: dict[str, float]) -> None:
    """Write ``figures`` to the flat JSON file at ``path``; figures of other areas are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(str(path), {**before, **figures})


def table(targets: list[Target], bench: Bench) -> str:
    """Return the table: figure, value, target, whether it is met, and the peer beside it."""
    rows = [("figure", "value", "target", "", "compared with")]
    for target in targets:
        value = bench.figures.get(target.name)
        shown = "not measured" if value is None else f"{value:g} {target.unit}".strip()
        verdict = "met" if target.is_met(value) else "MISSED"
        peer = bench.notes.get(target.name) or target.peer
        rows.append((target.name, shown, f"{target.bound} {target.value:g}", verdict, peer))
    named = {target.name for target in targets}
    more = {name: value for name, value in bench.figures.items() if name not in named}
    rows += [(name, f"{value:g}", "", "", bench.notes[name]) for name, value in more.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]] for row in rows)
    return "\n".join("  ".join(line) for line in lines)
