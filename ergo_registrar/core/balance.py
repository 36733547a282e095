"""Which instance of an application is next: smooth weighted round robin, as nginx does it.

Source: nginx, src/http/ngx_http_upstream_round_robin.c, since "Upstream: smooth weighted round-robin balancing" (2012).
At each pick every instance's current weight grows by its weight; the highest is picked and pays the sum of all weights.
From rest, that many picks give each instance exactly its weight, evenly spread.
"""

from collections.abc import Callable, Mapping

from ergo_registrar.core.filter import EVERY, Filter
from ergo_registrar.routes import ApplicationRoute, ApplicationState

_MOST_FILTERED = 1000  # rotations under filters: some 100 kB with ten instances each


class WeightedRoundRobin:
    """Picks among the instances of one application, given afresh at each pick as their weights by node.

    A weight of 0 counts as 1, as Go nodes count it; one with a negative weight is never returned. An instance that is
    not given is forgotten, and starts from rest when it comes back. So keep one of these for each way to select.
    """

    def __init__(self) -> None:
        self._current: dict[str, int] = {}

    def pick(self, weights: Mapping[str, int]) -> str:
        """Return the node that is next. `ValueError` where there is none to pick."""
        current: dict[str, int] = {}
        total = 0
        for node, weight in weights.items():
            if weight >= 0:
                current[node] = self._current.get(node, 0) + (weight or 1)
                total += weight or 1
        if not current:
            raise ValueError("there is nothing to pick from: give at least one weight that is not negative")
        picked = min(current, key=lambda node: (-current[node], node))
        current[picked] -= total
        self._current = current
        return picked

    def order(self, weights: Mapping[str, int]) -> list[str]:
        """Pick, and return the picked node and then the others: who is nearest to be next first, then by name."""
        if all(weight < 0 for weight in weights.values()):
            return []
        picked = self.pick(weights)
        return [picked, *(node for node in _heaviest_first(self._current) if node != picked)]


class Rotations:
    """A round robin for each way to choose: by application, by filter, and with or without the own instance.

    Each goes on where it was, whatever is asked for in between: so callers with different filters get fair shares each.
    Without a filter there are as many as applications. With one there may be any number, for tags may be made up for
    each call: the one that rested longest is forgotten, and would start from rest.
    """

    def __init__(self, most_filtered: int = _MOST_FILTERED) -> None:
        self._of_all: dict[tuple[str, bool], WeightedRoundRobin] = {}
        self._filtered: dict[tuple[str, bool, Filter], WeightedRoundRobin] = {}  # the most recently used last
        self._most_filtered = most_filtered

    def of(self, name: str, include_self: bool, wanted: Filter) -> WeightedRoundRobin:
        """Return the round robin to choose with."""
        if wanted is EVERY:
            rotation = self._of_all.get((name, include_self))
            if rotation is None:
                rotation = self._of_all[name, include_self] = WeightedRoundRobin()
            return rotation
        key = (name, include_self, wanted)
        rotation = self._filtered.pop(key) if key in self._filtered else WeightedRoundRobin()
        self._filtered[key] = rotation
        if len(self._filtered) > self._most_filtered:
            del self._filtered[next(iter(self._filtered))]
        return rotation

    def forget(self, name: str, include_self: bool, wanted: Filter) -> None:
        """Let one start from rest: there is nothing to choose from."""
        if wanted is EVERY:
            self._of_all.pop((name, include_self), None)
        else:
            self._filtered.pop((name, include_self, wanted), None)


def tiers(routes: Mapping[str, ApplicationRoute], suspected: Callable[[str], bool]) -> list[dict[str, int]]:
    """Sort the instances of an application, given by node, into tiers of weights by node; empty ones are left out.

    Healthy and running ones come first, then healthy ones in another state, then suspects. Those with a negative weight
    are in none. `suspected` says of a node whether its instance is.
    """
    running: dict[str, int] = {}
    others: dict[str, int] = {}
    suspects: dict[str, int] = {}
    for node, route in routes.items():
        if route.weight < 0:
            continue
        if suspected(node):
            suspects[node] = route.weight
        elif route.state == ApplicationState.RUNNING:
            running[node] = route.weight
        else:
            others[node] = route.weight
    return [tier for tier in (running, others, suspects) if tier]


def resolve(
    balance: WeightedRoundRobin, routes: Mapping[str, ApplicationRoute], suspected: Callable[[str], bool]
) -> list[ApplicationRoute]:
    """Return the instances of an application, tier after tier; [0] is the weighted pick of the first tier.

    Only that tier takes part in the round robin. The others stand by, by descending weight, then name.
    """
    best, *others = tiers(routes, suspected) or [{}]
    nodes = balance.order(best)
    for tier in others:
        nodes += _heaviest_first(tier)
    return [routes[node] for node in nodes]


def _heaviest_first(weights: Mapping[str, int]) -> list[str]:
    return sorted(weights, key=lambda node: (-weights[node], node))
