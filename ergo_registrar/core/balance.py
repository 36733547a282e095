"""Which instance of an application is next: smooth weighted round robin, as nginx does it.

Source: nginx, src/http/ngx_http_upstream_round_robin.c, since "Upstream: smooth weighted round-robin balancing" (2012).
At each pick every instance's current weight grows by its weight; the highest is picked and pays the sum of all weights.
From rest, that many picks give each instance exactly its weight, evenly spread.

Done like that, a pick touches every instance. Here it picks the same ones and touches one of each weight: the current
weight is `rounds * weight - paid`, so of those with the same weight the one that paid least is ahead, whatever the
round, and a heap knows it. `tests/property/test_balance_properties.py` compares it with the plain way.
"""

from collections.abc import Mapping
from heapq import heapify, heapreplace

from ergo_registrar.core.filter import EVERY, Filter
from ergo_registrar.core.instances import NOWHERE, Instances
from ergo_registrar.routes import ApplicationRoute, ApplicationState

_LEAST = -(1 << 200)  # less than any current weight: weights have 64 bits
_MOST_FILTERED = 1000  # choices under filters: some 100 kB with ten instances each


class WeightedRoundRobin:
    """Picks among the instances of one application, given at each pick as their weights by node.

    A weight of 0 counts as 1, as Go nodes count it; one with a negative weight is never returned. An instance that is
    not given is forgotten, and starts from rest when it comes back. So keep one of these for each way to select. Where
    anything changed, give another mapping: the same one is not looked at again.
    """

    def __init__(self) -> None:
        self._weights: Mapping[str, int] = {}
        self._rounds = 0
        self._total = 0
        self._paid: list[tuple[int, list[tuple[int, str]]]] = []  # by weight: what each paid, and who, as a heap

    def pick(self, weights: Mapping[str, int]) -> str:
        """Return the node that is next. `ValueError` where there is none to pick."""
        if weights is not self._weights:
            self._weigh(weights)
        self._rounds = rounds = self._rounds + 1
        most, ahead = _LEAST, None
        for weight, heap in self._paid:
            current = rounds * weight - heap[0][0]
            if current >= most and (ahead is None or current > most or heap[0][1] < ahead[0][1]):
                most, ahead = current, heap
        if ahead is None:
            raise ValueError("there is nothing to pick from: give at least one weight that is not negative")
        paid, picked = ahead[0]
        heapreplace(ahead, (paid + self._total, picked))
        return picked

    def order(self, weights: Mapping[str, int]) -> list[str]:
        """Pick, and return the picked node and then the others: who is nearest to be next first, then by name."""
        try:
            picked = self.pick(weights)
        except ValueError:
            return []
        rounds = self._rounds
        ranks = [(paid - rounds * weight, node) for weight, heap in self._paid for paid, node in heap]
        ranks.sort()
        return [picked, *[node for _, node in ranks if node != picked]]

    def _weigh(self, weights: Mapping[str, int]) -> None:
        """Take these weights from now on. Who was there before goes on with the current weight it had."""
        rounds = self._rounds
        before = {node: paid - rounds * weight for weight, heap in self._paid for paid, node in heap}
        heaps: dict[int, list[tuple[int, str]]] = {}
        for node, weight in weights.items():
            if weight >= 0:
                heaps.setdefault(weight or 1, []).append((before.get(node, 0), node))
        for heap in heaps.values():
            heapify(heap)
        self._weights, self._paid, self._rounds = weights, list(heaps.items()), 0
        self._total = sum(weight * len(heap) for weight, heap in self._paid)


class Choice:
    """One way to choose among the instances of an application, by a filter, and with or without the own one.

    `instances` is what it was last given. Only the first tier takes part in the round robin; see `tiers`.
    """

    def __init__(self) -> None:
        self.instances: Instances = NOWHERE
        self.tiers: list[dict[str, int]] = []
        self._balance = WeightedRoundRobin()

    def renew(self, instances: Instances, wanted: Filter, without: str | None) -> None:
        """Choose among these from now on: those that pass the filter, and not from the node `without`."""
        self.instances = instances
        self.tiers = tiers(instances, wanted, without)

    def pick(self) -> ApplicationRoute | None:
        """Return the weighted pick, None where there is none."""
        if not self.tiers:
            return None
        return self.instances.routes[self._balance.pick(self.tiers[0])]

    def order(self) -> list[ApplicationRoute]:
        """Return the instances tier after tier; [0] is the weighted pick.

        The others of the first tier come by who is nearest to be next; later tiers stand by, by descending weight, then
        name.
        """
        if not self.tiers:
            return []
        best, *others = self.tiers
        nodes = self._balance.order(best)
        for tier in others:
            nodes += sorted(tier, key=lambda node: (-tier[node], node))
        routes = self.instances.routes
        return [routes[node] for node in nodes]


class Choices:
    """Every way to choose that was asked for: by application, by filter, and with or without the own instance.

    Each goes on where it was, whatever is asked for in between: so callers with different filters get fair shares each.
    Without a filter there are as many as applications. With one there may be any number, for tags may be made up for
    each call: the one that rested longest is forgotten, and would start from rest.
    """

    def __init__(self, most_filtered: int = _MOST_FILTERED) -> None:
        self._of_others: dict[str, Choice] = {}  # of all but the own instance
        self._of_all: dict[str, Choice] = {}
        self._filtered: dict[tuple[str, bool, Filter], Choice] = {}  # the most recently used last
        self._most_filtered = most_filtered

    def of(self, name: str, include_self: bool, wanted: Filter) -> Choice:
        """Return the one to choose with."""
        if wanted is EVERY:
            choices = self._of_all if include_self else self._of_others
            return choices.get(name) or choices.setdefault(name, Choice())
        key = (name, include_self, wanted)
        choice = self._filtered.pop(key) if key in self._filtered else Choice()
        self._filtered[key] = choice
        if len(self._filtered) > self._most_filtered:
            del self._filtered[next(iter(self._filtered))]
        return choice

    def forget(self, name: str, include_self: bool, wanted: Filter) -> None:
        """Let one start from rest: there is nothing to choose from."""
        if wanted is EVERY:
            (self._of_all if include_self else self._of_others).pop(name, None)
        else:
            self._filtered.pop((name, include_self, wanted), None)


def tiers(instances: Instances, wanted: Filter = EVERY, without: str | None = None) -> list[dict[str, int]]:
    """Sort the instances that are wanted, and not on the node `without`, into tiers of weights by node.

    Healthy and running ones come first, then healthy ones in another state, then suspects; empty tiers are left out.
    Those with a negative weight are in none.
    """
    running: dict[str, int] = {}
    others: dict[str, int] = {}
    suspects: dict[str, int] = {}
    for node, route in instances.routes.items():
        if route.weight < 0 or node == without or not (wanted is EVERY or wanted.passes(route)):
            continue
        if node in instances.suspects:
            suspects[node] = route.weight
        elif route.state == ApplicationState.RUNNING:
            running[node] = route.weight
        else:
            others[node] = route.weight
    return [tier for tier in (running, others, suspects) if tier]
