"""Who is next, and who stands by."""

import pytest

from ergo_registrar.core.balance import Rotations, WeightedRoundRobin, resolve, tiers
from ergo_registrar.core.filter import EVERY, Filter
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


def with_tag(tag: str) -> Filter:
    return Filter(tags=frozenset([tag]))


def test_each_way_to_choose_has_its_own_rotation_and_goes_on_with_it() -> None:
    rotations = Rotations()
    ways = [("api", False, EVERY), ("api", True, EVERY), ("api", False, with_tag("a")), ("web", False, with_tag("a"))]
    order = ["".join(rotations.of(*way).pick({"x": 2, "y": 1}) for way in ways) for _ in range(3)]
    assert order == ["xxxx", "yyyy", "xxxx"]


def test_of_filters_made_up_for_each_call_those_in_use_are_kept() -> None:
    rotations = Rotations(most_filtered=3)
    used = rotations.of("api", False, with_tag("used"))
    of_all = rotations.of("api", False, EVERY)
    rested = rotations.of("api", False, with_tag("rested"))
    for call in range(100):
        rotations.of("api", False, with_tag(f"made up {call}"))
        assert rotations.of("api", False, with_tag("used")) is used
    assert rotations.of("api", False, EVERY) is of_all
    assert rotations.of("api", False, with_tag("rested")) is not rested


def test_what_is_forgotten_starts_from_rest() -> None:
    rotations = Rotations()
    for wanted in (EVERY, with_tag("a")):
        before = rotations.of("api", False, wanted)
        rotations.forget("api", False, wanted)
        rotations.forget("api", False, wanted)  # nothing to forget is no error
        assert rotations.of("api", False, wanted) is not before
