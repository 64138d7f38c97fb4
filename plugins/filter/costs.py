"""Filters that name AWS resources with what they cost a month."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Resource = Mapping[str, Any]
Prices = Mapping[str, float]


def volume_costs(volumes: Iterable[Resource], prices_usd_gib_month: Prices) -> list[str]:
    """Return volumes (of ec2_vol_info) as lines such as ``vol-1 (1000 GiB gp3, 80.00 USD a month)``."""
    return [
        f"{volume['id']} ({volume['size']} GiB {volume['type']}, "
        f"{_cost(int(volume['size']), prices_usd_gib_month.get(volume['type']))})"
        for volume in volumes
    ]


def snapshot_costs(snapshots: Iterable[Resource], prices_usd_gib_month: Prices) -> list[str]:
    """Return snapshots (of ec2_snapshot_info) as lines. AWS bills their blocks, which are at most the volume's."""
    return [
        f"{snapshot['snapshot_id']} ({snapshot['volume_size']} GiB, at most "
        f"{_cost(int(snapshot['volume_size']), prices_usd_gib_month.get('snapshot'))})"
        for snapshot in snapshots
    ]


def _cost(size_gib: int, price_usd_gib_month: float | None) -> str:
    if price_usd_gib_month is None:
        return "a price that data_prices_usd_gib_month does not have"
    return f"{size_gib * float(price_usd_gib_month):.2f} USD a month"


class FilterModule:
    """The interface of a filter plugin file."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        """Return the filters by name."""
        return {"snapshot_costs": snapshot_costs, "volume_costs": volume_costs}
