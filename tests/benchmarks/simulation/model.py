"""A cluster on etcd as queues: what its size costs, from a few costs that were measured. No clock, no socket.

etcd's members, and the processes between, are stations: each works off what is asked of it in the order in which it
came, on so many cores. A change is asked of every member at once, and sent to all who watch, one after the other. Every
client then takes its time for it, one change after the other. So a delay is what was waited for at either, and what it
took there. Between them etcd renews leases and answers how far it is.

A simulation follows every batch of sends, and of the clients a few of each station, evenly spread over the batch: they
all get the same changes in the same order, and differ in when.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

TICK = 0.1  # seconds: what happens at rest comes to a station in lumps of so long
SAMPLES = 24  # clients that are followed, and no less than one of each station
STEPS = 1500  # at most, of a loss: with more nodes, several come in one step
REVOKES = 1000.0  # leases a second that etcd lets expire at most (leaseRevokeRate in its server/lease/lessor.go)
RELAY_CORES = 2.0
EVENT_BYTES = 330  # a change on the wire: 266 of protobuf, measured for an application, 12 of HTTP/2, 52 of TCP and IP
BEAT_BYTES = 360  # a renewal, a question on the watch, and both answers, each in a packet of its own


@dataclass(frozen=True)
class Parameters:
    """What one thing costs, in seconds of a core and in bytes."""

    etcd_send: float
    """etcd: a change sent to one watcher."""
    client_event: float
    """A client: a change taken, with all its events."""
    etcd_alone: float
    """etcd: being there, in each second."""
    etcd_node: float
    """etcd: a node at rest, in each second."""
    client_node: float
    """A client: being at rest, in each second."""
    etcd_read: float
    """etcd: a key read by who starts."""
    client_read: float
    """A client: a key read."""
    client_join: float
    """A client: all else of a start."""
    floor: float
    """Seconds from a put to its event at the only watcher there is."""
    etcd_memory: float
    etcd_memory_node: float
    client_memory_key: float


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    `nodes` are members, each with a lease and a watch stream; `observers` watch only. `rate`: changes a second, of all
    clusters. `cores`: of each of etcd's members. `clusters`: parts that do not watch each other, on one etcd. `relays`:
    processes that watch etcd once each, and send on to their share of the clients, on two cores. `together`: etcd and
    all clients share the cores of one machine, as in the benchmark. What a node publishes is told in one change.
    """

    nodes: int
    observers: int = 0
    rate: float = 1.0
    members: int = 3
    cores: float = 4.0
    clusters: int = 1
    relays: int = 0
    together: bool = False
    ttl: float = 10.0
    applications: int = 1

    @property
    def watchers(self) -> int:
        """How many are told of one change."""
        return max(1, round((self.nodes + self.observers) / self.clusters))

    @property
    def keys(self) -> int:
        """How many keys one of them knows."""
        return round(self.nodes * (1 + self.applications) / self.clusters)


@dataclass(frozen=True)
class Outcome:
    """What came of it. Shares are of the cores of the busiest member, and of one core of a client."""

    changes: int
    delivered: int
    etcd: float
    client: float
    p50: float
    p99: float
    longest_renewal: float
    wire: float
    etcd_memory: float
    client_memory: float


class Station:
    """Work in the order in which it comes, on some cores. A batch can be divided among them."""

    def __init__(self, cores: float) -> None:
        self.cores = cores
        self.free = 0.0
        self.busy = 0.0

    def take(self, at: float, work: float) -> tuple[float, float]:
        """Return when so many seconds of work, asked for at a time, begin and end."""
        start = max(at, self.free)
        self.free = start + work / self.cores
        self.busy += work
        return start, self.free


class _Sender:
    """A station that sends each change to so many clients, and some of these. `costs` is the work for one."""

    def __init__(self, station: Station, clients: int, samples: int, costs: float, takes: float) -> None:
        self._station = station
        self.clients = clients
        self._costs = costs
        self._takes = takes
        self._free = [0.0] * max(1, min(samples, clients))

    def send(self, at: float) -> Iterator[tuple[float, float]]:
        """Send one change; yield when clients have taken it, and for how many each of them stands."""
        start, end = self._station.take(at, self.clients * self._costs)
        count = len(self._free)
        for index, free in enumerate(self._free):
            arrived = start + (end - start) * (index + 0.5) / count
            self._free[index] = max(arrived, free) + self._takes
            yield self._free[index], self.clients / count


def simulate(parameters: Parameters, cluster: Cluster, rng: random.Random, seconds: float = 60.0) -> Outcome:
    """Let changes happen at random for so long, as often as `rate` says, and tell what they cost."""
    members = _members(cluster)
    relays, senders = _senders(parameters, cluster, members)
    at_rest = list(_at_rest(parameters, cluster))
    moments: list[tuple[float, int]] = [(tick * TICK, 0) for tick in range(int(seconds / TICK))]
    at = rng.expovariate(cluster.rate) if cluster.rate > 0 else seconds
    while at < seconds:
        moments.append((at, 1))
        at += rng.expovariate(cluster.rate)
    delays: list[tuple[float, float]] = []
    changes, delivered, longest = 0, 0, 0.0
    for at, is_change in sorted(moments):
        if not is_change:
            for station, work in zip(members, at_rest, strict=True):
                longest = max(longest, station.take(at, work * TICK)[1] - at)
            continue
        changes += 1
        heard = [station.take(at, count * parameters.etcd_send)[1] for station, count in relays]
        for index, sender in enumerate(senders):
            delivered += sender.clients
            begins = heard[index % len(heard)] if heard else at
            delays += [(taken - at + parameters.floor, count) for taken, count in sender.send(begins)]
    each = changes / seconds / cluster.clusters
    return Outcome(
        changes=changes,
        delivered=delivered,
        etcd=max(station.busy / station.cores for station in members) / seconds,
        client=each * parameters.client_event + parameters.client_node,
        p50=_percentile(delays, 0.5),
        p99=_percentile(delays, 0.99),
        longest_renewal=longest,
        wire=delivered / seconds * EVENT_BYTES + (cluster.nodes + cluster.observers) * BEAT_BYTES / (cluster.ttl / 3),
        etcd_memory=parameters.etcd_memory
        + parameters.etcd_memory_node * (cluster.nodes + cluster.observers) / len(members),
        client_memory=parameters.client_memory_key * cluster.keys,
    )


def restart(parameters: Parameters, cluster: Cluster) -> float:
    """Let all nodes join at once; return when the last of them, and the observers, know all.

    Each grants a lease and claims its name, which takes less long than to read who is there. So each reads all, and is
    told of few; the observers are told of each. Leases are renewed all the while.
    """
    reads = cluster.nodes * cluster.keys
    observers = cluster.observers / cluster.clusters
    sends = cluster.nodes * (cluster.relays or observers) * parameters.etcd_send
    joins = parameters.client_join + cluster.keys * parameters.client_read
    tells = cluster.nodes / cluster.clusters * parameters.client_event
    members = _members(cluster)
    left = min(station.cores - work for station, work in zip(members, _at_rest(parameters, cluster), strict=True))
    if left <= 0:
        return math.inf
    work = (reads * parameters.etcd_read + sends) / len(members)
    if cluster.together:
        work += cluster.nodes * joins + cluster.observers * tells
        return work / left + parameters.floor
    relayed = cluster.nodes * observers / cluster.relays * parameters.etcd_send / RELAY_CORES if cluster.relays else 0.0
    return work / left + max(joins, relayed + (tells if observers else 0.0)) + parameters.floor


def loss(parameters: Parameters, cluster: Cluster, rng: random.Random) -> float:
    """Let half of the nodes die at once; return when all others know that.

    Their leases were renewed at any time in the last third of the TTL. etcd ends no more than `REVOKES` a second.
    """
    members, dead = _members(cluster), cluster.nodes // 2
    left = cluster.nodes - dead + cluster.observers
    step = max(1, dead // STEPS)
    ends = sorted(rng.uniform(cluster.ttl * 2 / 3, cluster.ttl) for _ in range(0, dead, step))
    watching = left / cluster.clusters
    relay = Station(RELAY_CORES)
    client = known = revoked = 0.0
    for at in ends:
        revoked = max(at, revoked) + step / REVOKES
        each = parameters.etcd_send + (parameters.client_event if cluster.together else 0.0)
        work = step * (cluster.relays or watching) / len(members) * each
        end = max(station.take(revoked, work)[1] for station in members)
        if cluster.relays:
            end = relay.take(end, step * watching / cluster.relays * each)[1]
        client = max(client, end)
        if not cluster.together:
            client += step / cluster.clusters * parameters.client_event
        known = max(known, client)
    return known + parameters.floor


def _members(cluster: Cluster) -> list[Station]:
    return [Station(cluster.cores) for _ in range(1 if cluster.together else cluster.members)]


def _senders(
    parameters: Parameters, cluster: Cluster, members: list[Station]
) -> tuple[list[tuple[Station, int]], list[_Sender]]:
    """Return the members with the relays that each of them tells, if there are any; and who tells the clients."""
    if cluster.relays:
        relays = [
            (station, count) for station, count in zip(members, _shares(cluster.relays, len(members)), strict=True)
        ]
        stations = [Station(RELAY_CORES) for _ in range(cluster.relays)]
    else:
        relays, stations = [], members
    takes = parameters.client_event
    costs, takes = (parameters.etcd_send + takes, 0.0) if cluster.together else (parameters.etcd_send, takes)
    return relays, [
        _Sender(station, clients, SAMPLES // len(stations), costs, takes)
        for station, clients in zip(stations, _shares(cluster.watchers, len(stations)), strict=True)
        if clients
    ]


def _at_rest(parameters: Parameters, cluster: Cluster) -> Iterator[float]:
    """Yield for each member the work of a second at rest.

    Half of what a node costs is its renewal, which the leader does for all, and the others pass on; the other half is
    the question how far the watch is. An observer only asks.
    """
    count = 1 if cluster.together else cluster.members
    half = parameters.etcd_node / 2
    for index in range(count):
        renewals = cluster.nodes if index == 0 else cluster.nodes / count
        work = parameters.etcd_alone + half * (renewals + (cluster.nodes + cluster.observers) / count)
        if cluster.together:
            work += parameters.client_node * (cluster.nodes + cluster.observers)
        yield work


def _shares(whole: int, parts: int) -> list[int]:
    return [whole // parts + (index < whole % parts) for index in range(parts)]


def _percentile(weighted: list[tuple[float, float]], share: float) -> float:
    """Return the value that so large a share of the weight is at most."""
    ordered = sorted(weighted)
    ends = share * sum(weight for _, weight in ordered)
    for value, weight in ordered:
        ends -= weight
        if ends <= 0:
            return value
    return ordered[-1][0] if ordered else 0.0
