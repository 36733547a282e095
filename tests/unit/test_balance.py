"""Who is next, and who stands by."""

import pytest

from ergo_registrar.core.balance import WeightedRoundRobin, resolve, tiers
from ergo_registrar.routes import ApplicationRoute


def healthy(node: str) -> bool:
    return False


def route(node: str, weight: int = 1, state: int = 2) -> ApplicationRoute:
    return ApplicationRoute(node, "api", weight, 1, state)


def test_picks_are_spread_as_in_the_example_of_nginx() -> None:
    balance = WeightedRoundRobin()
    assert "".join(balance.pick({"a": 5, "b": 1, "c": 1}) for _ in range(14)) == "aabacaa" * 2


def test_a_weight_of_zero_counts_as_one_and_a_negative_one_is_out() -> None:
    balance = WeightedRoundRobin()
    weights = {"zero": 0, "one": 1, "never": -1}
    assert [balance.pick(weights) for _ in range(4)] == ["one", "zero", "one", "zero"]
    assert sorted(balance.order(weights)) == ["one", "zero"]


def test_where_there_is_nothing_to_pick() -> None:
    balance = WeightedRoundRobin()
    for nothing in ({}, {"a": -1}):
        assert balance.order(nothing) == []
        with pytest.raises(ValueError, match="nothing to pick"):
            balance.pick(nothing)
    assert resolve(balance, {"a": route("a", weight=-1)}, healthy) == []


def test_order_goes_on_with_who_is_nearest_to_be_next() -> None:
    balance = WeightedRoundRobin()
    assert balance.order({"a": 1, "b": 3, "c": 2}) == ["b", "c", "a"]
    assert balance.order({"a": 1, "b": 3, "c": 2}) == ["c", "a", "b"]


def test_one_that_goes_is_forgotten() -> None:
    balance = WeightedRoundRobin()
    balance.pick({"a": 1, "b": 9})
    balance.pick({"a": 1})
    assert balance.pick({"a": 1, "b": 1}) == "a"  # b is no longer in debt, nor ahead


def test_tiers_running_first_then_other_states_then_suspects() -> None:
    routes = {
        "loaded": route("loaded", state=1),
        "running": route("running", weight=7),
        "suspect": route("suspect"),
        "never": route("never", weight=-1),
    }
    assert tiers(routes, "suspect".__eq__) == [{"running": 7}, {"loaded": 1}, {"suspect": 1}]
    assert tiers({}, healthy) == []


def test_only_the_first_tier_takes_turns() -> None:
    routes = {"a": route("a"), "b": route("b"), "x": route("x", 1, state=1), "y": route("y", 5, state=1)}
    balance = WeightedRoundRobin()
    order = ["".join(route.node for route in resolve(balance, routes, healthy)) for _ in range(3)]
    assert order == ["abyx", "bayx", "abyx"]
