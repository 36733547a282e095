"""Who is next, and who stands by."""

import pytest

from ergo_registrar.core.balance import Choice, Choices, WeightedRoundRobin, tiers
from ergo_registrar.core.filter import EVERY, Filter
from ergo_registrar.core.instances import NOWHERE, Instances
from ergo_registrar.routes import ApplicationRoute

BUSY = Filter(states=frozenset({2}))


def route(node: str, weight: int = 1, state: int = 2) -> ApplicationRoute:
    return ApplicationRoute(node, "api", weight, 1, state)


def with_tag(tag: str) -> Filter:
    return Filter(tags=frozenset([tag]))


def choice(routes: dict[str, ApplicationRoute]) -> Choice:
    choice = Choice()
    choice.renew(Instances(routes), EVERY, None)
    return choice


def test_picks_are_spread_as_in_the_example_of_nginx() -> None:
    balance, weights = WeightedRoundRobin(), {"a": 5, "b": 1, "c": 1}
    assert "".join(balance.pick(weights) for _ in range(14)) == "aabacaa" * 2


def test_weights_given_again_as_another_mapping_go_on_where_they_were() -> None:
    balance = WeightedRoundRobin()
    assert "".join(balance.pick({"a": 5, "b": 1, "c": 1}) for _ in range(14)) == "aabacaa" * 2


def test_of_those_that_are_equally_near_the_first_by_name_is_next() -> None:
    balance, weights = WeightedRoundRobin(), {"z": 1, "a": 3}
    assert "".join(balance.pick(weights) for _ in range(8)) == "aaza" * 2


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
    for nobody in (Choice(), choice({"a": route("a", weight=-1)})):
        assert nobody.pick() is None
        assert nobody.order() == []


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
    assert tiers(Instances(routes, frozenset({"suspect"}))) == [{"running": 7}, {"loaded": 1}, {"suspect": 1}]
    assert tiers(NOWHERE) == []


def test_tiers_of_those_that_are_wanted_without_the_own_one() -> None:
    instances = Instances({"me": route("me"), "other": route("other"), "loaded": route("loaded", state=1)})
    assert tiers(instances, Filter(states=frozenset({2})), "me") == [{"other": 1}]


def test_only_the_first_tier_takes_turns() -> None:
    routes = {"a": route("a"), "b": route("b"), "x": route("x", 1, state=1), "y": route("y", 5, state=1)}
    chosen = choice(routes)
    order = ["".join(route.node for route in chosen.order()) for _ in range(3)]
    assert order == ["abyx", "bayx", "abyx"]


def test_each_way_to_choose_has_its_own_rotation_and_goes_on_with_it() -> None:
    choices, instances = Choices(), Instances({"x": route("x", 2), "y": route("y", 1)})
    ways = [("api", False, EVERY), ("api", True, EVERY), ("api", False, BUSY), ("web", False, BUSY)]
    order = []
    for _ in range(3):
        for way in ways:
            if choices.of(*way).instances is not instances:
                choices.of(*way).renew(instances, EVERY, None)
        order.append("".join(picked.node for way in ways if (picked := choices.of(*way).pick())))
    assert order == ["xxxx", "yyyy", "xxxx"]


@pytest.mark.parametrize("left", [("api", False, EVERY), ("api", True, EVERY), ("api", False, BUSY)])
def test_a_way_with_nothing_left_to_choose_is_forgotten_and_no_other(left: tuple[str, bool, Filter]) -> None:
    choices = Choices()
    ways = [("api", False, EVERY), ("api", True, EVERY), ("api", False, BUSY)]
    before = {way: choices.of(*way) for way in ways}
    choices.forget(*left)
    assert [way for way in ways if choices.of(*way) is not before[way]] == [left]


def test_of_filters_made_up_for_each_call_those_in_use_are_kept() -> None:
    choices = Choices(most_filtered=3)
    used = choices.of("api", False, with_tag("used"))
    of_all = choices.of("api", False, EVERY)
    rested = choices.of("api", False, with_tag("rested"))
    for call in range(100):
        choices.of("api", False, with_tag(f"made up {call}"))
        assert choices.of("api", False, with_tag("used")) is used
    assert choices.of("api", False, EVERY) is of_all
    assert choices.of("api", False, with_tag("rested")) is not rested


def test_what_is_forgotten_starts_from_rest() -> None:
    choices = Choices()
    for wanted in (EVERY, with_tag("a")):
        before = choices.of("api", False, wanted)
        choices.forget("api", False, wanted)
        choices.forget("api", False, wanted)  # nothing to forget is no error
        assert choices.of("api", False, wanted) is not before
