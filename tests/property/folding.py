"""How a subscriber keeps the state of the cluster by the events alone: what the docstring of `core/mirror.py` says."""

import dataclasses
from collections.abc import Iterable

from ergo_registrar.events import (
    ApplicationLoaded,
    ApplicationStarted,
    ApplicationStopped,
    ApplicationStopping,
    ApplicationUpdated,
    ConfigUpdate,
    Event,
    NodeJoined,
    NodeLeft,
    NodeRecovered,
    NodeSuspected,
    Value,
)
from ergo_registrar.routes import ApplicationRoute, Route


@dataclasses.dataclass(frozen=True)
class State:
    """What others there are, and the effective configuration."""

    nodes: dict[str, tuple[Route, ...]] = dataclasses.field(default_factory=dict)
    suspected: frozenset[str] = frozenset()
    applications: dict[tuple[str, str], ApplicationRoute] = dataclasses.field(default_factory=dict)
    config: dict[str, Value] = dataclasses.field(default_factory=dict)


def fold(state: State, event: Event) -> State:
    """Return the state after an event. An event that does not fit the state is a KeyError."""
    nodes, applications, config = dict(state.nodes), dict(state.applications), dict(state.config)
    suspected = set(state.suspected)
    match event:
        case NodeJoined():
            nodes[event.name] = event.routes
        case NodeLeft():
            del nodes[event.name]
            suspected.discard(event.name)
        case NodeSuspected():
            suspected.add(event.name)
        case NodeRecovered():
            suspected.remove(event.name)
        case ApplicationStopped():
            assert applications.pop((event.name, event.node)) == event.route
        case ApplicationUpdated():
            assert applications.get((event.name, event.node)) == event.previous
            applications[event.name, event.node] = event.route
        case ApplicationLoaded() | ApplicationStarted() | ApplicationStopping():
            applications[event.name, event.node] = event.route
        case ConfigUpdate(value=None):
            del config[event.item]
        case ConfigUpdate(value=value) if value is not None:
            config[event.item] = value
        case _:
            raise AssertionError(f"not an event of the state: {event}")
    return State(nodes, frozenset(suspected), applications, config)


def fold_all(state: State, events: Iterable[Event]) -> State:
    """Fold events, each of which must say something new."""
    for event in events:
        before, state = state, fold(state, event)
        assert repr(before) != repr(state), f"says nothing: {event}"  # repr: 1, 1.0 and True differ, NaN does not
    return state
