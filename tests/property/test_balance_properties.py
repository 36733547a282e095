"""The weighted round robin, whatever the weights."""

import collections
import random

from hypothesis import given
from hypothesis import strategies as st

from ergo_registrar.core.backoff import delays
from ergo_registrar.core.balance import Rotations, WeightedRoundRobin, resolve, tiers
from ergo_registrar.core.filter import EVERY, Filter
from ergo_registrar.routes import ApplicationRoute

weights = st.dictionaries(st.text(max_size=3), st.integers(-3, 20), max_size=6)
usable = weights.filter(lambda of: any(weight >= 0 for weight in of.values()))
routes = st.dictionaries(
    st.sampled_from([f"n{number}@h" for number in range(8)]),
    st.tuples(st.integers(-2, 5), st.integers(0, 5)),
).map(lambda of: {node: ApplicationRoute(node, "app", weight, 1, state) for node, (weight, state) in of.items()})


def counted(weights: dict[str, int]) -> dict[str, int]:
    return {node: weight or 1 for node, weight in weights.items() if weight >= 0}


@given(usable)
def test_from_rest_each_instance_gets_exactly_its_weight(weights: dict[str, int]) -> None:
    balance = WeightedRoundRobin()
    for _cycle in range(2):
        picks = collections.Counter(balance.pick(weights) for _ in range(sum(counted(weights).values())))
        assert picks == counted(weights)


@given(st.lists(weights, max_size=3), usable)
def test_after_any_history_the_shares_are_right(history: list[dict[str, int]], weights: dict[str, int]) -> None:
    """What is left over from other weights is paid back once, and no more."""
    balance = WeightedRoundRobin()
    for before in history:
        balance.order(before)
    expected = counted(weights)
    cycle = sum(expected.values())
    left_over = sum(sum(counted(before).values()) for before in history)
    picks = collections.Counter(balance.pick(weights) for _ in range(20 * cycle))
    for node, weight in expected.items():
        assert abs(picks[node] - 20 * weight) <= 2 * (left_over + cycle) / cycle


@given(
    st.dictionaries(
        st.sampled_from([f"n{number}@h" for number in range(6)]),
        st.tuples(st.integers(0, 5), st.sets(st.sampled_from("ab"))),
        min_size=1,
    ),
    st.lists(st.sampled_from([EVERY, *(Filter(tags=frozenset(tag)) for tag in "ab")]), max_size=200),
)
def test_callers_with_filters_get_fair_shares_whatever_others_ask_in_between(
    instances: dict[str, tuple[int, set[str]]], asked: list[Filter]
) -> None:
    """After any number of picks no instance is further from its share than one pick for each that takes part."""
    rotations = Rotations()
    for wanted in set(asked):
        weights = {node: weight for node, (weight, tags) in instances.items() if wanted.tags <= tags}
        picks: collections.Counter[str] = collections.Counter()
        for each in asked if weights else ():
            others = {node: weight for node, (weight, tags) in instances.items() if each.tags <= tags}
            if each == wanted:
                picks[rotations.of("api", False, wanted).pick(weights)] += 1
            elif others:
                rotations.of("api", False, each).pick(others)
        share = picks.total() / sum(counted(weights).values()) if weights else 0
        assert all(abs(picks[node] - share * weight) <= len(weights) for node, weight in counted(weights).items())


@given(usable)
def test_order_begins_with_what_pick_would_return_and_has_all_others(weights: dict[str, int]) -> None:
    by_order, by_pick = WeightedRoundRobin(), WeightedRoundRobin()
    for _ in range(5):
        order = by_order.order(weights)
        assert order[0] == by_pick.pick(weights)
        assert sorted(order) == sorted(counted(weights))


@given(routes, st.sets(st.sampled_from([f"n{number}@h" for number in range(8)])))
def test_resolve_returns_tier_after_tier_and_nothing_negative(
    routes: dict[str, ApplicationRoute], suspects: set[str]
) -> None:
    def tier(route: ApplicationRoute) -> int:
        return 2 if route.node in suspects else int(route.state != 2)

    resolved = resolve(WeightedRoundRobin(), routes, suspects.__contains__)
    assert [tier(route) for route in resolved] == sorted(tier(route) for route in resolved)
    assert sorted(route.node for route in resolved) == sorted(n for n, route in routes.items() if route.weight >= 0)
    assert sum(map(len, tiers(routes, suspects.__contains__))) == len(resolved)


@given(st.integers(), st.floats(0.001, 10), st.floats(1, 5), st.floats(0.001, 100))
def test_no_delay_is_longer_than_its_bound(seed: int, first: float, factor: float, most: float) -> None:
    waits = delays(random.Random(seed), first, factor, most)
    for attempt in range(20):
        assert 0 <= next(waits) <= min(first * factor**attempt * 1.000001, most)
