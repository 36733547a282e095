"""The cluster's routes as this process knows them: what etcd says goes in, what changed comes out.

Observation and belief are kept apart. etcd says which keys exist; without `suspect_grace` that is the whole truth. With
it, a key that vanished is proof of nothing when its owner may just have lost its lease: the node is suspected, and it
and its applications are believed in until the grace ends. Two things are believed at once: a departure marker (the node
said good-bye), and an application's key gone while its node lives (nobody but the owner deletes it).

The events are the differences between one state and the next. Over the state

    nodes: dict[name, routes]    suspected: set[name]    applications: dict[(application, node), route]

they fold like this, and folding them always gives the mirror's state:

    NodeJoined           nodes[name] = routes
    NodeLeft             del nodes[name]; suspected.discard(name)
    NodeSuspected        suspected.add(name)
    NodeRecovered        suspected.remove(name)
    ApplicationStopped   del applications[name, node]
    Application*         applications[name, node] = route    (Loaded, Started, Stopping, Updated)

An application may be there without its node: its key is. That of a node which left goes when its own key does.
"""

import functools
from collections.abc import Iterable, Sequence

import msgspec

from ergo_registrar.core.edf import decode_application_route_of, decode_routes
from ergo_registrar.core.instances import NOWHERE, Instances
from ergo_registrar.core.keys import ApplicationKey, NodeKey, parse_route_key, routes_prefix
from ergo_registrar.core.records import Record, Skipped, Step
from ergo_registrar.errors import DecodeError
from ergo_registrar.events import (
    ApplicationLoaded,
    ApplicationStarted,
    ApplicationStopped,
    ApplicationStopping,
    ApplicationUpdated,
    Event,
    NodeJoined,
    NodeLeft,
    NodeRecovered,
    NodeSuspected,
)
from ergo_registrar.routes import ApplicationRoute, ApplicationState, Route

_SHARED_MOST = 1024  # bytes of what is kept though no node may have it any more

_STATE_EVENTS: dict[int, type[ApplicationLoaded | ApplicationStarted | ApplicationStopping]] = {
    ApplicationState.LOADED: ApplicationLoaded,
    ApplicationState.RUNNING: ApplicationStarted,
    ApplicationState.STOPPING: ApplicationStopping,
}


class _Node(msgspec.Struct, gc=False):
    """One life of a node's key, which begins at `create_revision`. `departing`: it said good-bye in this life."""

    routes: tuple[Route, ...]
    create_revision: int
    departing: bool = False


class _Changes(msgspec.Struct):
    """What one revision, or one listing, says. None: the key is gone, or what stands there cannot be decoded."""

    markers: dict[str, int] = {}  # node -> the revision of its departure marker
    nodes: dict[str, _Node | None] = {}
    applications: dict[tuple[str, str], ApplicationRoute | None] = {}  # by application, node
    reborn: set[str] = set()  # nodes that died and came back between two listings, without good-bye
    skipped: list[Skipped] = []


class Mirror:
    """The nodes and applications of one cluster, as of the last revision that went in.

    `own` is this process's node name: no events are told about it, and `nodes()` leaves it out. Set it before the first
    snapshot. `revision` is the last one applied. `suspect_grace` and every `now` are seconds on one monotonic clock.
    """

    def __init__(self, cluster: str, *, suspect_grace: float = 0.0) -> None:
        self.own: str | None = None
        self.revision: int = 0
        self._prefix = routes_prefix(cluster)
        self._grace = suspect_grace
        self._nodes: dict[str, _Node] = {}
        self._applications: dict[str, dict[str, ApplicationRoute]] = {}  # application -> node -> route
        # When each suspicion ends. The applications, by node, are those whose key is gone; one whose node comes back
        # keeps its deadline, so that a node which comes and goes cannot keep it for ever.
        self._suspected_nodes: dict[str, float] = {}
        self._suspected_applications: dict[str, dict[str, float]] = {}
        self._paused_at: float | None = None
        self._instances: dict[str, Instances] = {}  # of the applications that were asked for, until they change

    def become(self, node: str | None) -> Step:
        """Be the mirror of this node from now on, or of an observer.

        An earlier holder of the name is none of the others any more: the events say that it left. What was known of the
        own node before is forgotten, for it is told anew.
        """
        events: list[Event] = []
        for name in (self.own, node):
            if name is not None and self.own != node:
                self._forget(name, self._heard(name, events))
        self.own = node
        self._instances.clear()
        return Step(events, [])

    def snapshot(self, records: Iterable[Record], revision: int, now: float) -> Step:
        """Take everything under `routes/` as listed at `revision`, and return how it differs from what was known."""
        changes = self._read(records)
        for node in self._nodes:
            changes.nodes.setdefault(node, None)
        for name, routes in self._applications.items():
            for node in routes:
                changes.applications.setdefault((name, node), None)
        return self._apply(changes, revision, now)

    def batch(self, records: Sequence[Record], revision: int, now: float) -> Step:
        """Take all changes of one revision."""
        if len(records) == 1 and (step := self._publish(records[0], revision)):
            return step
        return self._apply(self._read(records), revision, now)

    def _publish(self, record: Record, revision: int) -> Step | None:
        """Take a revision that only published an application, as most do; None if it is not that.

        It does what `_apply` does, without sorting what is alone.
        """
        if record.value is None:
            return None
        try:
            key = parse_route_key(self._prefix, record.key)
            if not isinstance(key, ApplicationKey):
                return None
            route = decode_application_route_of(key.node, key.name, record.value)
        except DecodeError:
            return None
        self.revision = revision
        events: list[Event] = []
        self._application_seen(route, [] if key.node == self.own else events)
        return Step(events, [])

    def tick(self, now: float) -> Step:
        """End the suspicions whose grace is over. Nothing else ends one by time alone.

        What was suspected is gone: NodeLeft, and ApplicationStopped for each of its applications whose key is gone.
        """
        events: list[Event] = []
        if self._paused_at is None:
            for node in sorted(node for node, deadline in self._suspected_nodes.items() if deadline <= now):
                self._leave(node, 0, self._heard(node, events))
            over = [
                (name, node)
                for node, deadlines in self._suspected_applications.items()
                for name, deadline in deadlines.items()
                if deadline <= now
            ]
            for name, node in sorted(over):
                self._stop(name, node, 0, self._heard(node, events))
        return Step(events, [])

    def next_deadline(self, now: float) -> float | None:
        """Return when to `tick` next, never before `now`; None while nothing is suspected, or while paused."""
        if self._paused_at is not None:
            return None
        deadlines = list(self._suspected_nodes.values())
        for of_node in self._suspected_applications.values():
            deadlines.extend(of_node.values())
        return max(now, min(deadlines)) if deadlines else None

    def pause(self, now: float) -> None:
        """Stop the clock of every suspicion: this process has no session, so it may be the one that is cut off."""
        if self._paused_at is None:
            self._paused_at = now

    def resume(self, now: float) -> None:
        """Let the clock go on: each suspicion has left what it had at the pause, one begun meanwhile all of it."""
        if self._paused_at is None:
            return
        pause = now - self._paused_at
        self._paused_at = None
        for deadlines in (self._suspected_nodes, *self._suspected_applications.values()):
            for name in deadlines:
                deadlines[name] += pause

    def nodes(self) -> list[str]:
        """Return the names of the other nodes, sorted, suspects included."""
        return sorted(node for node in self._nodes if node != self.own)

    def routes(self, node: str) -> tuple[Route, ...] | None:
        """Return how to reach a node, also a suspect or the own one; None if it is unknown."""
        known = self._nodes.get(node)
        return None if known is None else known.routes

    def instances(self, name: str) -> Instances:
        """Return where an application is: the same object until something about it changed.

        It is only believed to be on a node where that node is a suspect, or its own key is gone.
        """
        return self._instances.get(name) or self._look(name)

    def _look(self, name: str) -> Instances:
        routes = self._applications.get(name)
        if routes is None:
            return NOWHERE
        suspects = frozenset(
            node
            for node in routes
            if node in self._suspected_nodes or name in self._suspected_applications.get(node, ())
        )
        known = self._instances[name] = Instances(dict(routes), suspects)
        return known

    def sizes(self) -> tuple[int, int, int]:
        """Return how many other nodes there are, how many applications, and on how many nodes these are, summed up."""
        routes = self._applications.values()
        return len(self._nodes) - (self.own in self._nodes), len(routes), sum(map(len, routes))

    def suspected(self, node: str) -> bool:
        """Say whether a node is only believed to be there."""
        return node in self._suspected_nodes

    def state_events(self) -> list[Event]:
        """Return the whole state about others as the events that would lead to it, in the order of one revision."""
        nodes = self.nodes()
        events: list[Event] = [
            NodeJoined(revision=self.revision, name=node, routes=self._nodes[node].routes) for node in nodes
        ]
        events += [NodeSuspected(revision=self.revision, name=node) for node in nodes if node in self._suspected_nodes]
        for _name, routes in sorted(self._applications.items()):
            events += [
                _application_event(route, None, self.revision)
                for node, route in sorted(routes.items())
                if node != self.own
            ]
        return events

    def _read(self, records: Iterable[Record]) -> _Changes:
        changes = _Changes()
        for record in records:
            try:
                self._read_record(record, changes)
            except DecodeError as error:
                if record.value is not None:  # a key that goes is not left out of anything
                    changes.skipped.append(Skipped(record.key, str(error)))
        return changes

    def _read_record(self, record: Record, changes: _Changes) -> None:
        """Add one record to the changes: what cannot be decoded as gone, when its DecodeError is raised."""
        key, value = parse_route_key(self._prefix, record.key), record.value
        if isinstance(key, ApplicationKey):
            at = key.name, key.node
            try:
                changes.applications[at] = (
                    None if value is None else decode_application_route_of(key.node, key.name, value)
                )
            except DecodeError:
                changes.applications[at] = None
                raise
        elif isinstance(key, NodeKey):
            changes.nodes[key.node] = None
            if value is not None:
                changes.nodes[key.node] = _Node(_routes(value), record.create_revision)
        elif value is not None:  # the end of a marker says nothing: its lease is short
            changes.markers[key.node] = record.mod_revision

    def _apply(self, changes: _Changes, revision: int, now: float) -> Step:
        """Make one step of the changes, in the order that every subscriber relies on.

        Nodes must come before applications for another reason, too: whether an application's end is believed depends
        on what becomes of its node in the same revision, and a lease expiry deletes both in no order.
        """
        self.revision = revision
        events: list[Event] = []
        for node, marked in sorted(changes.markers.items()):
            self._say_goodbye(node, marked, self._heard(node, events))
        for node, seen in sorted(changes.nodes.items()):
            if seen is None:
                self._node_gone(node, now, self._heard(node, events))
            else:
                self._node_seen(node, seen, changes, self._heard(node, events))
        for (name, node), route in sorted(changes.applications.items()):
            if route is None:
                self._application_gone(name, node, node in changes.reborn, now, self._heard(node, events))
            else:
                self._application_seen(route, self._heard(node, events))
        return Step(events, changes.skipped)

    def _heard(self, node: str, events: list[Event]) -> list[Event]:
        """Return the list that takes the events about a node: nobody hears those about the own one."""
        return [] if node == self.own else events

    def _say_goodbye(self, node: str, marked: int, events: list[Event]) -> None:
        known = self._nodes.get(node)
        if known is None or marked < known.create_revision:  # the marker of an earlier life, not yet expired
            return
        known.departing = True
        if node in self._suspected_nodes:
            self._leave(node, self.revision, events)

    def _node_seen(self, node: str, seen: _Node, changes: _Changes, events: list[Event]) -> None:
        seen.departing = changes.markers.get(node, -1) >= seen.create_revision
        known = self._nodes.get(node)
        self._nodes[node] = seen
        if known is not None:
            if self._suspected_nodes.pop(node, None) is not None:
                self._instances.clear()
                events.append(NodeRecovered(revision=self.revision, name=node))
            elif known.create_revision == seen.create_revision:
                seen.departing |= known.departing
            elif known.departing:  # the life before ended between two listings, with a good-bye
                self._stop_suspected(node, self.revision, events)
            elif self._grace > 0:
                changes.reborn.add(node)
        if known is None or known.routes != seen.routes:
            events.append(NodeJoined(revision=self.revision, name=node, routes=seen.routes))

    def _node_gone(self, node: str, now: float, events: list[Event]) -> None:
        known = self._nodes.get(node)
        if known is None or node in self._suspected_nodes:
            return
        if self._grace > 0 and not known.departing:
            self._suspected_nodes[node] = self._deadline(now)
            self._instances.clear()
            events.append(NodeSuspected(revision=self.revision, name=node))
        else:
            self._leave(node, self.revision, events)

    def _application_seen(self, route: ApplicationRoute, events: list[Event]) -> None:
        name, node = route.name, route.node
        routes = self._applications.get(name)
        if routes is None:
            routes = self._applications[name] = {}
        previous = routes.get(node)
        if self._suspected_applications:
            self._trust(name, node)
        if previous != route:
            routes[node] = route
            self._instances.pop(name, None)
            events.append(_application_event(route, previous, self.revision))

    def _application_gone(self, name: str, node: str, reborn: bool, now: float, events: list[Event]) -> None:
        if node not in self._applications.get(name, ()) or name in self._suspected_applications.get(node, ()):
            return
        deadline = self._suspected_nodes.get(node)
        if deadline is None and reborn:
            deadline = self._deadline(now)
        if deadline is None:
            self._stop(name, node, self.revision, events)
        else:
            self._suspected_applications.setdefault(node, {})[name] = deadline
            self._instances.pop(name, None)

    def _deadline(self, now: float) -> float:
        return (now if self._paused_at is None else self._paused_at) + self._grace

    def _leave(self, node: str, revision: int, events: list[Event]) -> None:
        del self._nodes[node]
        if self._suspected_nodes.pop(node, None) is not None:
            self._instances.clear()
        events.append(NodeLeft(revision=revision, name=node))
        self._stop_suspected(node, revision, events)

    def _forget(self, node: str, events: list[Event]) -> None:
        if node in self._nodes:
            self._leave(node, self.revision, events)
        for name in sorted(name for name, routes in self._applications.items() if node in routes):
            self._stop(name, node, self.revision, events)

    def _stop_suspected(self, node: str, revision: int, events: list[Event]) -> None:
        for name in sorted(self._suspected_applications.get(node, ())):
            self._stop(name, node, revision, events)

    def _stop(self, name: str, node: str, revision: int, events: list[Event]) -> None:
        self._trust(name, node)
        self._instances.pop(name, None)
        routes = self._applications[name]
        events.append(ApplicationStopped(revision=revision, route=routes.pop(node)))
        if not routes:
            del self._applications[name]

    def _trust(self, name: str, node: str) -> None:
        """End the suspicion of an application, if there is one."""
        deadlines = self._suspected_applications.get(node)
        if deadlines is not None and deadlines.pop(name, None) is not None:
            self._instances.pop(name, None)
            if not deadlines:
                del self._suspected_applications[node]


def _routes(value: bytes) -> tuple[Route, ...]:
    """Decode routes. Many nodes have the same: those in Go have no host in them, and the port that all have."""
    return _shared_routes(value) if len(value) <= _SHARED_MOST else tuple(decode_routes(value) or ())


@functools.lru_cache(maxsize=1024)
def _shared_routes(value: bytes) -> tuple[Route, ...]:
    return tuple(decode_routes(value) or ())


def _application_event(route: ApplicationRoute, previous: ApplicationRoute | None, revision: int) -> Event:
    """Return the event for a route that is new or differs from the `previous` one."""
    kind = _STATE_EVENTS.get(route.state)
    if kind is None or (previous is not None and previous.state == route.state):
        return ApplicationUpdated(revision=revision, route=route, previous=previous)
    return kind(revision=revision, route=route)
