"""Which instances a filter lets through, and what it says when it leaves too few."""

from typing import Any

import pytest

from ergo_registrar.core.filter import EVERY, Filter, described, shortfall
from ergo_registrar.errors import ValidationError
from ergo_registrar.routes import ApplicationRoute, ApplicationState

LOADED, RUNNING, STOPPING = ApplicationState


def route(node: str, *tags: str, state: int = RUNNING, weight: int = 1) -> ApplicationRoute:
    return ApplicationRoute(node, "web", weight, 1, state, tags or None)


ROUTES = [
    route("a", "gpu", "eu"),
    route("b", "gpu", state=LOADED),
    route("c", "eu", state=7),
    route("d"),
]


@pytest.mark.parametrize(
    ("state", "tags", "without_tags", "nodes"),
    [
        (None, (), (), "abcd"),
        (RUNNING, (), (), "ad"),
        ((RUNNING, LOADED), (), (), "abd"),
        (7, (), (), "c"),  # a number that only newer nodes know
        (STOPPING, (), (), ""),
        (None, ["gpu"], (), "ab"),
        (None, {"gpu", "eu"}, (), "a"),
        (None, (), ["gpu", "eu"], "d"),
        (None, ["gpu"], ["eu"], "b"),
        (RUNNING, ["eu"], ["canary"], "a"),
        (None, ["gpu"], ["gpu"], ""),
    ],
)
def test_state_all_tags_and_none_of_the_others(state: Any, tags: Any, without_tags: Any, nodes: str) -> None:
    wanted = described(state, tags, without_tags)
    assert "".join(route.node for route in ROUTES if wanted.passes(route)) == nodes


def test_what_asks_for_nothing_is_every() -> None:
    assert described(None, (), ()) is EVERY
    assert described(None, iter(()), []) is EVERY


def test_the_order_and_kind_of_what_is_given_makes_no_difference() -> None:
    one = described([LOADED, RUNNING], ["a", "b"], iter("cd"))
    other = described({2, 1}, ("b", "a", "a"), {"d", "c"})
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize(
    ("state", "tags", "without_tags", "field"),
    [
        ("running", (), (), "state"),
        ([], (), (), "state"),  # of which nothing could be; not the same as any
        (True, (), (), "state"),
        ([RUNNING, None], (), (), "state"),
        ([[1]], (), (), "state"),
        (None, "gpu", (), "tags"),
        (None, [1], (), "tags"),
        (None, 3, (), "tags"),
        (None, (), "gpu", "without_tags"),
    ],
)
def test_what_cannot_be_a_filter_is_refused(state: Any, tags: Any, without_tags: Any, field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        described(state, tags, without_tags)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Filter(tags=frozenset(["x"])), "it is on 4 nodes, none of them with tag 'x'"),
        (Filter(tags=frozenset(["x", "gpu"])), "it is on 4 nodes, none of them with tags 'gpu' and 'x'"),
        (Filter(states=frozenset([STOPPING])), "it is on 4 nodes, none of them in state STOPPING"),
        (Filter(states=frozenset([9, 3])), "it is on 4 nodes, none of them in state 9 or STOPPING"),
        (
            Filter(frozenset([RUNNING]), frozenset(["eu"]), frozenset(["gpu", "x"])),
            (
                "it is on 4 nodes, 2 of them in state RUNNING, 1 of them with tag 'eu', "
                "none of them without tags 'gpu' or 'x'"
            ),
        ),
    ],
)
def test_it_says_which_filter_left_nothing_over(wanted: Filter, said: str) -> None:
    assert shortfall(wanted, ROUTES) == said


def test_it_says_how_many_there_were_when_more_were_wanted() -> None:
    assert shortfall(EVERY, [route("a")], 2) == "it is on 1 node"
    wanted = described(None, ["gpu"], ())
    assert shortfall(wanted, ROUTES, 3) == "it is on 4 nodes, 2 of them with tag 'gpu'"


def test_it_says_when_a_negative_weight_is_what_is_in_the_way() -> None:
    drained = [route("a", weight=-1), route("b", weight=-1)]
    reason = "with a weight of 0 or more: a negative weight takes it out of the choice"
    assert shortfall(EVERY, drained) == f"it is on 2 nodes, none of them {reason}"
    assert shortfall(EVERY, [*drained, route("c")], 2) == f"it is on 3 nodes, 1 of them {reason}"


def test_it_says_when_there_is_none_at_all() -> None:
    assert shortfall(EVERY, []) == shortfall(described(RUNNING, (), ()), [], 3) == "no node has published it"
