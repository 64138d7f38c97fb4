from __future__ import annotations

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.ebs.warmup_plan import (
    GIB,
    Costs,
    Fleet,
    Plan,
    StrategyRow,
    duration,
    fleet_of,
    plan,
)

COSTS = Costs()


def fleet(per_zone: dict[str, int], served: int = 0, size_gib: int = 110, data_gib: int = 100) -> Fleet:
    missing = {zone: [f"i-{zone}{number}" for number in range(count)] for zone, count in per_zone.items()}
    return Fleet(missing, [f"i-served{number}" for number in range(served)], size_gib, data_gib * GIB)


def strategy(decision: Plan, mode: str) -> StrategyRow:
    return next(one for one in decision["strategies"] if one["mode"] == mode)


def test_time_and_price_of_each_strategy_for_64_hosts() -> None:
    decision = plan(fleet({"a": 32, "b": 32}), Costs(rate_usd_per_gib_mib_s=0.00001), "auto", 0)
    assert strategy(decision, "none")["seconds"] == 0
    assert strategy(decision, "read")["seconds"] == pytest.approx(100 * 1024 / 80)
    # 16 volumes at a time, so four waves of 100 GiB at 300 MiB/s.
    assert strategy(decision, "rate")["seconds"] == pytest.approx(4 * 100 * 1024 / 300)
    assert strategy(decision, "rate")["usd"] == pytest.approx(0.00001 * 100 * 300 * 64)
    hours = 110 / 1024 + 32 / (1024 / 110)
    assert strategy(decision, "fsr")["seconds"] == pytest.approx(hours * 3600)
    assert strategy(decision, "fsr")["usd"] == pytest.approx(2 * hours * 0.75)
    assert decision["mode"] == "read"


def test_the_plan_reads_like_this() -> None:
    zones = {"us-east-1a": 32, "us-east-1b": 32}
    lines = plan(fleet(zones), COSTS, "auto", 0)["lines"]
    assert lines == [
        "volumes to create: 32 in us-east-1a, 32 in us-east-1b; existing: 0",
        "data on each: 100.0 GiB",
        "warm      time        price",
        "none       0 s     0.00 USD  first epoch at about 5 MiB/s a reader",
        "read    22 min     0.00 USD  16 readers, about 80 MiB/s a host",
        "rate    23 min      unknown  300 MiB/s a volume, 16 at a time",
        "      no price is set: see https://aws.amazon.com/ebs/pricing/",
        "fsr      3.5 h     5.32 USD  9.31 volumes/h in each zone, after 6 min",
        "selected: read (fastest within the 0 USD budget)",
    ]
    assert all(len(line) <= 72 for line in lines), "Ansible indents them by 8, and a terminal has 80"


def test_a_fleet_beyond_the_quota_for_storage_is_warned_before_it_is_half_made() -> None:
    """Of 110 GiB each, 50 TiB hold 465 volumes; those that are there count too, and nothing new is no cause."""
    fits, exceeds = fleet({"a": 400}, served=65), fleet({"a": 400}, served=66)
    assert not any("WARNING" in line for line in plan(fits, COSTS, "auto", 0)["lines"])
    lines = plan(exceeds, COSTS, "auto", 0)["lines"]
    assert lines[-3:] == [
        "WARNING: the volumes hold 50.1 TiB, the quota is 50 TiB.",
        "Hosts beyond it fail with VolumeLimitExceeded. Raise the storage quota",
        "of the volume type (Service Quotas, EBS) and fleet_warmup_quota_tib.",
    ]
    assert all(len(line) <= 72 for line in lines)
    assert len(plan(exceeds, Costs(quota_tib=51), "auto", 0)["lines"]) == len(lines) - 3
    assert not any("WARNING" in line for line in plan(fleet({}, served=500), COSTS, "auto", 0)["lines"])


def test_auto_selects_the_fastest_within_the_budget_and_no_unknown_price() -> None:
    few = fleet({"a": 1})
    assert plan(few, COSTS, "auto", 1000)["mode"] == "fsr"
    assert plan(few, COSTS, "auto", 0.74)["mode"] == "read"
    assert plan(few, Costs(rate_usd_per_gib_mib_s=0.00001), "auto", 1000)["mode"] == "rate"


def test_what_was_requested_is_selected_whatever_it_costs() -> None:
    decision = plan(fleet({"a": 1}), COSTS, "rate", 0)
    assert (decision["mode"], decision["reason"]) == ("rate", "as requested")


def test_where_every_host_is_served_nothing_costs() -> None:
    for mode, taken in (("auto", "read"), ("rate", "rate"), ("fsr", "fsr"), ("none", "none")):
        decision = plan(fleet({}, served=4), COSTS, mode, 1000)
        assert (decision["mode"], decision["waves"], decision["zones"]) == (taken, [], {})
        assert all(one["usd"] == 0 for one in decision["strategies"])


def test_rates_are_spread_in_waves_under_the_quota_and_the_last_is_made_with_the_rest() -> None:
    found = plan(fleet({"a": 20, "b": 20}), COSTS, "rate", 0)["waves"]
    assert [len(wave["instance_ids"]) for wave in found] == [16, 16]
    assert plan(fleet({"a": 16}), COSTS, "rate", 0)["waves"] == []


def test_volumes_of_an_earlier_run_come_first_for_they_may_still_count() -> None:
    found = plan(fleet({"a": 17}, served=3), COSTS, "rate", 0)["waves"]
    assert found[0]["instance_ids"] == ["i-served0", "i-served1", "i-served2"]
    assert [len(wave["instance_ids"]) for wave in found] == [3, 16]


def test_fast_snapshot_restore_comes_in_waves_of_a_full_bucket_a_zone() -> None:
    found = plan(fleet({"a": 12, "b": 3}, size_gib=128), COSTS, "fsr", 0)["waves"]
    assert [wave["credits"] for wave in found] == [{"a": 8, "b": 3}, {"a": 4}]
    ids = [instance_id for wave in found for instance_id in wave["instance_ids"]]
    assert len(ids) == len(set(ids)) == 15


def test_the_fleet_is_read_from_what_ebs_fleet_predicts() -> None:
    volumes = {"i-1": {"volume_id": "", "zone": "a"}, "i-2": {"volume_id": "vol-2", "zone": "b"}}
    found = fleet_of(volumes, 8, 0)
    assert (found.missing, found.served, found.data_bytes) == ({"a": ["i-1"]}, ["i-2"], 8 * GIB)


@pytest.mark.parametrize(
    ("costs", "budget", "text"),
    [
        (
            Costs(rate_mib_s=99),
            0,
            "An initialization rate of 99 MiB/s: EBS accepts 100 to 300. Choose one in that range",
        ),
        (
            Costs(quota_mib_s=200),
            0,
            (
                "An initialization rate of 300 MiB/s: it exceeds the quota of the Region, 200 MiB/s for all volumes "
                "together. Lower the rate, or correct the quota"
            ),
        ),
        (COSTS, -1, "A budget of -1 USD: it is negative. Set budget_usd to 0 or more"),
    ],
)
def test_numbers_that_make_no_sense_are_named(costs: Costs, budget: float, text: str) -> None:
    with pytest.raises(OpsError) as error:
        plan(fleet({"a": 1}), costs, "auto", budget)
    assert str(error.value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (41.2, "42 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations_are_in_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
