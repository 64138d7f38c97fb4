from __future__ import annotations

from plugins.filter.costs import FilterModule, snapshot_costs, volume_costs

PRICES = {"gp3": 0.08, "sc1": 0.015, "snapshot": 0.05}


def test_volumes_are_named_with_what_they_cost() -> None:
    volumes = [{"id": "vol-1", "size": 1000, "type": "gp3"}, {"id": "vol-2", "size": 125, "type": "sc1"}]
    assert volume_costs(volumes, PRICES) == [
        "vol-1 (1000 GiB gp3, 80.00 USD a month)",
        "vol-2 (125 GiB sc1, 1.88 USD a month)",
    ]


def test_snapshots_cost_at_most_what_their_size_does() -> None:
    assert snapshot_costs([{"snapshot_id": "snap-1", "volume_size": 100}], PRICES) == [
        "snap-1 (100 GiB, at most 5.00 USD a month)"
    ]


def test_a_type_without_a_price_is_named_without() -> None:
    assert volume_costs([{"id": "vol-1", "size": 1, "type": "io2"}], PRICES) == [
        "vol-1 (1 GiB io2, a price that data_prices_usd_gib_month does not have)"
    ]
    assert snapshot_costs([{"snapshot_id": "snap-1", "volume_size": 1}], {}) == [
        "snap-1 (1 GiB, at most a price that data_prices_usd_gib_month does not have)"
    ]


def test_the_filters_are_found_by_name() -> None:
    assert FilterModule().filters() == {"snapshot_costs": snapshot_costs, "volume_costs": volume_costs}
