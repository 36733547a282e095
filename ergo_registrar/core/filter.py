"""Which instances of an application a caller wants: a filter over their states and tags, and what it left over."""

from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from ergo_registrar.errors import ValidationError
from ergo_registrar.routes import ApplicationRoute, ApplicationState


class Filter(msgspec.Struct, frozen=True):
    """What an instance must be to be chosen: in one of these states (none: any), with all `tags`, without the others.

    It can be hashed, and two that ask for the same are equal: there is one rotation for each.
    """

    states: frozenset[int] = frozenset()
    tags: frozenset[str] = frozenset()
    without_tags: frozenset[str] = frozenset()

    def passes(self, route: ApplicationRoute) -> bool:
        """Say whether an instance is one that is wanted."""
        tags = route.tags or ()
        in_state = not self.states or route.state in self.states
        return in_state and self.tags.issubset(tags) and self.without_tags.isdisjoint(tags)


EVERY = Filter()
"""The filter that everything passes: always this one, so that it can be told by what it is."""


def described(state: int | Iterable[int] | None, tags: Iterable[str], without_tags: Iterable[str]) -> Filter:
    """Return the filter that a caller describes. Raise `ValidationError`."""
    if state is None and not tags and not without_tags:
        return EVERY
    states = frozenset[int]() if state is None else _states(state)
    wanted = Filter(states, _tags("tags", tags), _tags("without_tags", without_tags))
    return EVERY if wanted == EVERY else wanted


def shortfall(wanted: Filter, routes: Collection[ApplicationRoute], instances: int = 1) -> str:
    """Say what left fewer than so many of an application's `routes` to choose from."""
    if not routes:
        return "no node has published it"
    left = list(routes)
    said = f"it is on {len(left)} node{'s' if len(left) > 1 else ''}"
    for part, says in (
        (Filter(states=wanted.states), f"in state {_listed(map(_state_name, wanted.states), 'or')}"),
        (Filter(tags=wanted.tags), f"with {_named_tags(wanted.tags, 'and')}"),
        (Filter(without_tags=wanted.without_tags), f"without {_named_tags(wanted.without_tags, 'or')}"),
    ):
        if part == EVERY or len(left) < instances:
            continue
        left = [route for route in left if part.passes(route)]
        said += f", {len(left) or 'none'} of them {says}"
    usable = sum(route.weight >= 0 for route in left)
    if len(left) >= instances and usable < instances:
        said += f", {usable or 'none'} of them with a weight of 0 or more: a negative weight takes it out of the choice"
    return said


def _states(given: Any) -> frozenset[int]:
    states = list(given) if isinstance(given, Iterable) else [given]
    if not states or not all(isinstance(state, int) and not isinstance(state, bool) for state in states):
        raise ValidationError("state", given, "must be an ApplicationState, one or more of them, or None for any")
    return frozenset(states)


def _tags(field: str, given: Any) -> frozenset[str]:
    tags: list[Any] = [None] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if not all(isinstance(tag, str) for tag in tags):
        raise ValidationError(field, given, "must be several strings, such as ('gpu',)")
    return frozenset(tags)


def _state_name(state: int) -> str:
    return ApplicationState(state).name if state in list(ApplicationState) else str(state)


def _named_tags(tags: Collection[str], last: str) -> str:
    return f"tag{'s' if len(tags) > 1 else ''} {_listed(map(repr, tags), last)}"


def _listed(names: Iterable[str], last: str) -> str:
    *first, end = sorted(names) or [""]
    return f"{', '.join(first)} {last} {end}" if first else end
