"""The weighted round robin, whatever the weights."""

import collections
import random

from hypothesis import given
from hypothesis import strategies as st

from ergo_registrar.core.backoff import delays
from ergo_registrar.core.balance import Choice, Choices, WeightedRoundRobin, tiers
from ergo_registrar.core.filter import EVERY, Filter
from ergo_registrar.core.instances import Instances
from ergo_registrar.routes import ApplicationRoute

weights = st.dictionaries(st.text(max_size=3), st.integers(-3, 20), max_size=6)
usable = weights.filter(lambda of: any(weight >= 0 for weight in of.values()))
routes = st.dictionaries(
    st.sampled_from([f"n{number}@h" for number in range(8)]),
    st.tuples(st.integers(-2, 5), st.integers(0, 5)),
).map(lambda of: {node: ApplicationRoute(node, "app", weight, 1, state) for node, (weight, state) in of.items()})


def counted(weights: dict[str, int]) -> dict[str, int]:
    return {node: weight or 1 for node, weight in weights.items() if weight >= 0}


class Plainly:
    """The round robin as it is described, touching every instance at each pick: what the quick one must agree with."""

    def __init__(self) -> None:
        self.current: dict[str, int] = {}

    def pick(self, weights: dict[str, int]) -> str:
        expected = counted(weights)
        self.current = {node: self.current.get(node, 0) + weight for node, weight in expected.items()}
        picked = min(self.current, key=lambda node: (-self.current[node], node))
        self.current[picked] -= sum(expected.values())
        return picked

    def order(self, weights: dict[str, int]) -> list[str]:
        picked = self.pick(weights)
        nearest = sorted(self.current, key=lambda node: (-self.current[node], node))
        return [picked, *(node for node in nearest if node != picked)]


@given(st.lists(st.tuples(usable, st.integers(1, 40), st.booleans()), max_size=6))
def test_it_picks_and_orders_as_the_plain_one_whatever_changes(changes: list[tuple[dict[str, int], int, bool]]) -> None:
    quick, plain = WeightedRoundRobin(), Plainly()
    for weights, picks, ordered in changes:
        for _ in range(picks):
            if ordered:
                assert quick.order(weights) == plain.order(weights)
            else:
                assert quick.pick(weights) == plain.pick(weights)


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
    of: dict[str, tuple[int, set[str]]], asked: list[Filter]
) -> None:
    """After any number of picks no instance is further from its share than one pick for each that takes part."""
    instances = Instances(
        {node: ApplicationRoute(node, "api", weight, 1, 2, tuple(tags)) for node, (weight, tags) in of.items()}
    )
    choices = Choices()
    picks = {wanted: collections.Counter[str]() for wanted in asked}
    for wanted in asked:
        choice = choices.of("api", False, wanted)
        if choice.instances is not instances:
            choice.renew(instances, wanted, None)
        if picked := choice.pick():
            picks[wanted][picked.node] += 1
    for wanted, counts in picks.items():
        weights = {node: route.weight for node, route in instances.routes.items() if wanted.passes(route)}
        share = counts.total() / sum(counted(weights).values()) if weights else 0
        assert all(abs(counts[node] - share * weight) <= len(weights) for node, weight in counted(weights).items())
        assert counts.total() == (asked.count(wanted) if weights else 0)


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

    instances, choice = Instances(routes, frozenset(suspects)), Choice()
    choice.renew(instances, EVERY, None)
    resolved = choice.order()
    assert [tier(route) for route in resolved] == sorted(tier(route) for route in resolved)
    assert sorted(route.node for route in resolved) == sorted(n for n, route in routes.items() if route.weight >= 0)
    assert sum(map(len, tiers(instances))) == len(resolved)


@given(st.integers(), st.floats(0.001, 10), st.floats(1, 5), st.floats(0.001, 100))
def test_no_delay_is_longer_than_its_bound(seed: int, first: float, factor: float, most: float) -> None:
    waits = delays(random.Random(seed), first, factor, most)
    for attempt in range(20):
        assert 0 <= next(waits) <= min(first * factor**attempt * 1.000001, most)
