"""How to warm up the volumes of a fleet: duration and price of each strategy, which one is selected, and in what waves.

The strategies, and where their numbers come from (EBS User Guide, "Initialize Amazon EBS volumes" and "Amazon EBS fast
snapshot restore"):

* ``none``: blocks are loaded when they are first read, so the first epoch is slow.
* ``read``: every host reads the records once, in parallel.
* ``rate``: EBS loads a volume at 100 to 300 MiB/s. All volumes of the account together may have 5,000 MiB/s in a
  Region, so a large fleet is served in waves.
* ``fsr``: fast snapshot restore makes volumes that are warm at once. A snapshot is optimized in an hour a TiB, and then
  earns at most 10 credits an hour in each zone, one for a volume.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

from ansible.module_utils.imagenet_ops.core.errors import OpsError

MIB = 1024 * 1024
GIB = 1024**3
AUTO = "auto"
CREDITS_MAXIMUM = 10
GIB_PER_TIB = 1024
RATES_MIB_S = range(100, 301)
PRICES_URL = "https://aws.amazon.com/ebs/pricing/"


@dataclass(frozen=True)
class Costs:
    """What speed and prices depend on.

    ``rate_usd_per_gib_mib_s`` is the fee for a GiB of snapshot data and a MiB/s of rate, None where it is not known.
    ``reader_mib_s`` is what one reader gets from a cold volume, ``throughput_mib_s`` the most that a volume gives.
    ``hour_seconds`` is an hour of fast snapshot restore. ``quota_tib`` is what all volumes of the type may hold.
    """

    rate_mib_s: int = 300
    quota_mib_s: int = 5000
    rate_usd_per_gib_mib_s: float | None = None
    fsr_usd_per_hour: float = 0.75
    readers: int = 16
    reader_mib_s: float = 5.0
    throughput_mib_s: float = 125.0
    hour_seconds: float = 3600.0
    quota_tib: float = 50.0


@dataclass(frozen=True)
class Fleet:
    """Whom it is for: ``missing`` has the instances without a volume by zone, ``served`` those that have one."""

    missing: Mapping[str, list[str]]
    served: list[str]
    volume_size_gib: int
    data_bytes: int

    @property
    def missing_count(self) -> int:
        """How many volumes are to be created."""
        return sum(map(len, self.missing.values()))


@dataclass(frozen=True)
class Strategy:
    """One strategy: ``seconds`` until every volume is warm, its price in USD (None: unknown), and what else to know."""

    mode: str
    seconds: float
    usd: float | None
    note: str

    def row(self) -> StrategyRow:
        """Return the strategy as the module's result has it."""
        return {"mode": self.mode, "seconds": self.seconds, "usd": self.usd, "note": self.note}


class StrategyRow(TypedDict):
    """A strategy as the module's result has it."""

    mode: str
    seconds: float
    usd: float | None
    note: str


class Wave(TypedDict):
    """Instances that get their volumes together, with the credits needed by zone."""

    instance_ids: list[str]
    credits: dict[str, int]


class Plan(TypedDict):
    """The decision, the table for people as lines, and the waves of instances to be served one by one."""

    mode: str
    reason: str
    strategies: list[StrategyRow]
    lines: list[str]
    waves: list[Wave]
    zones: dict[str, int]


def fleet_of(volumes: Mapping[str, Mapping[str, str]], volume_size_gib: int, data_bytes: int) -> Fleet:
    """Return the fleet that ``volumes`` of module ebs_fleet's check mode describes; without a size, data fill it."""
    missing: dict[str, list[str]] = {}
    served = []
    for instance_id, volume in volumes.items():
        if volume["volume_id"]:
            served.append(instance_id)
        else:
            missing.setdefault(volume["zone"], []).append(instance_id)
    return Fleet(missing, served, volume_size_gib, data_bytes or volume_size_gib * GIB)


def plan(fleet: Fleet, costs: Costs, mode: str, budget_usd: float) -> Plan:
    """Return the decision.

    ``mode`` is what the user wants: ``none``, ``read``, ``rate``, ``fsr``, or ``auto`` for the fastest strategy that is
    known to cost no more than ``budget_usd``. Raises OpsError if a number makes no sense.
    """
    if costs.rate_mib_s not in RATES_MIB_S:
        raise OpsError(
            f"An initialization rate of {costs.rate_mib_s} MiB/s", "EBS accepts 100 to 300", "Choose one in that range"
        )
    if costs.quota_mib_s < costs.rate_mib_s:
        raise OpsError(
            f"An initialization rate of {costs.rate_mib_s} MiB/s",
            f"it exceeds the quota of the Region, {costs.quota_mib_s} MiB/s for all volumes together",
            "Lower the rate, or correct the quota",
        )
    if budget_usd < 0:
        raise OpsError(f"A budget of {budget_usd:g} USD", "it is negative", "Set budget_usd to 0 or more")
    strategies = {strategy.mode: strategy for strategy in strategies_of(fleet, costs)}
    selected, reason = choose(strategies, fleet, mode, budget_usd)
    return {
        "mode": selected,
        "reason": reason,
        "strategies": [strategy.row() for strategy in strategies.values()],
        "lines": [*table(strategies.values(), fleet, selected, reason), *storage_warning(fleet, costs.quota_tib)],
        "waves": waves(fleet, costs, selected),
        "zones": {zone: len(ids) for zone, ids in sorted(fleet.missing.items())},
    }


def strategies_of(fleet: Fleet, costs: Costs) -> list[Strategy]:
    """Return every strategy with its duration and price for the volumes that are to be created."""
    data_mib, data_gib = fleet.data_bytes / MIB, fleet.data_bytes / GIB
    count = fleet.missing_count
    reading = min(costs.readers * costs.reader_mib_s, costs.throughput_mib_s)
    per_wave = costs.quota_mib_s // costs.rate_mib_s
    wave_count = math.ceil(count / per_wave)
    fee = costs.rate_usd_per_gib_mib_s
    most = max(map(len, fleet.missing.values()), default=0)
    hourly = credits_per_hour(fleet.volume_size_gib)
    fsr_seconds = (fleet.volume_size_gib / GIB_PER_TIB + most / hourly) * costs.hour_seconds if count else 0.0
    fsr_hours = max(1.0, fsr_seconds / costs.hour_seconds) if count else 0.0
    return [
        Strategy("none", 0.0, 0.0, f"first epoch at about {costs.reader_mib_s:g} MiB/s a reader"),
        Strategy(
            "read",
            data_mib / reading if count else 0.0,
            0.0,
            f"{costs.readers} readers, about {reading:g} MiB/s a host",
        ),
        Strategy(
            "rate",
            wave_count * data_mib / costs.rate_mib_s,
            None if fee is None and count else (fee or 0.0) * data_gib * costs.rate_mib_s * count,
            f"{costs.rate_mib_s} MiB/s a volume, {per_wave} at a time",
        ),
        Strategy(
            "fsr",
            fsr_seconds,
            len(fleet.missing) * fsr_hours * costs.fsr_usd_per_hour,
            f"{hourly:.3g} volumes/h in each zone, after {fleet.volume_size_gib / GIB_PER_TIB * 60:.0f} min",
        ),
    ]


def choose(strategies: Mapping[str, Strategy], fleet: Fleet, mode: str, budget_usd: float) -> tuple[str, str]:
    """Return which strategy is selected, and why."""
    if not fleet.missing_count and mode in ("rate", "fsr", AUTO):
        return ("read" if mode == AUTO else mode), "all volumes exist; their cold blocks are read"
    if mode != AUTO:
        return mode, "as requested"
    affordable = [
        strategy
        for strategy in strategies.values()
        if strategy.mode != "none" and strategy.usd is not None and strategy.usd <= budget_usd
    ]
    fastest = min(affordable, key=lambda strategy: strategy.seconds)
    return fastest.mode, f"fastest within the {budget_usd:g} USD budget"


def waves(fleet: Fleet, costs: Costs, mode: str) -> list[Wave]:
    """Return what is to be created one after the other; nothing if all can be created at once.

    A wave of ``rate`` is over when its volumes are initialized; volumes of an earlier run come first, for they may
    still count. A wave of ``fsr`` begins when its ``credits`` by zone are there.
    """
    if mode == "rate":
        per_wave = costs.quota_mib_s // costs.rate_mib_s
        ids = [instance_id for zone in sorted(fleet.missing) for instance_id in fleet.missing[zone]]
        found: list[Wave] = [{"instance_ids": some, "credits": {}} for some in chunks(ids, per_wave)]
        earlier: list[Wave] = [{"instance_ids": fleet.served, "credits": {}}] if fleet.served and ids else []
        # The last wave is created together with the existing volumes, and waited for when it is mounted.
        return [*earlier, *found[:-1]]
    if mode == "fsr":
        by_zone = {zone: list(chunks(ids, bucket_size(fleet.volume_size_gib))) for zone, ids in fleet.missing.items()}
        found = []
        for number in range(max(map(len, by_zone.values()), default=0)):
            parts = {zone: parts[number] for zone, parts in sorted(by_zone.items()) if number < len(parts)}
            ids = [instance_id for part in parts.values() for instance_id in part]
            found.append({"instance_ids": ids, "credits": {zone: len(part) for zone, part in parts.items()}})
        return found
    return []


def credits_per_hour(size_gib: int) -> float:
    """Return how many credits a snapshot of a volume of this size earns in an hour, in each zone."""
    return min(float(CREDITS_MAXIMUM), GIB_PER_TIB / size_gib)


def bucket_size(size_gib: int) -> int:
    """Return how many credits are kept at most; so many volumes can be made at once."""
    return max(1, int(credits_per_hour(size_gib)))


def storage_warning(fleet: Fleet, quota_tib: float) -> list[str]:
    """Return lines that warn where the volumes of the fleet alone exceed the Region's quota for storage; else none."""
    wanted_tib = (fleet.missing_count + len(fleet.served)) * fleet.volume_size_gib / GIB_PER_TIB
    if not fleet.missing_count or wanted_tib <= quota_tib:
        return []
    return [
        f"WARNING: the volumes hold {wanted_tib:.1f} TiB, the quota is {quota_tib:g} TiB.",
        "Hosts beyond it fail with VolumeLimitExceeded. Raise the storage quota",
        "of the volume type (Service Quotas, EBS) and fleet_warmup_quota_tib.",
    ]


def table(strategies: Iterable[Strategy], fleet: Fleet, selected: str, reason: str) -> list[str]:
    """Return the plan for people, a line a strategy, none longer than 72 characters in a fleet of a few zones."""
    zones = Counter({zone: len(ids) for zone, ids in fleet.missing.items()})
    where = ", ".join(f"{count} in {zone}" for zone, count in sorted(zones.items())) or "none"
    row = "{:<5} {:>8} {:>12}  {}"
    lines = [
        f"volumes to create: {where}; existing: {len(fleet.served)}",
        f"data on each: {fleet.data_bytes / GIB:.1f} GiB",
        row.format("warm", "time", "price", "").rstrip(),
    ]
    for strategy in strategies:
        price = "unknown" if strategy.usd is None else f"{strategy.usd:,.2f} USD"
        lines.append(row.format(strategy.mode, duration(strategy.seconds), price, strategy.note))
        if strategy.usd is None:
            lines.append(f"{'':6}no price is set: see {PRICES_URL}")
    return [*lines, f"selected: {selected} ({reason})"]


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: ``0 s``, ``42 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def chunks(ids: list[str], size: int) -> Iterable[list[str]]:
    """Yield ``ids`` in lists of at most ``size``."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
