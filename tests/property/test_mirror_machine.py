"""The mirror against a slow model that is told the whole of etcd's keys each time and remembers all it was told."""

import dataclasses
import random
from collections.abc import Mapping

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ergo_registrar.core.edf import (
    decode_application_route,
    decode_routes,
    encode_application_route,
    encode_routes,
)
from ergo_registrar.core.keys import (
    ApplicationKey,
    LeavingKey,
    NodeKey,
    application_key,
    leaving_key,
    node_key,
    parse_route_key,
    routes_prefix,
)
from ergo_registrar.core.mirror import Mirror
from ergo_registrar.core.records import Record, Step
from ergo_registrar.errors import DecodeError
from ergo_registrar.routes import ApplicationRoute, Route
from tests.property.folding import State, fold_all
from tests.property.keyspace import Keyspace

CLUSTER = "c"
PREFIX = routes_prefix(CLUSTER)
NODES = ("n1@h", "n2@h")
NAMES = ("app", "web")
Instance = tuple[str, str]  # application, node


@dataclasses.dataclass
class Seen:
    """All keys at one moment, decoded. `listed`: by a listing, so that what happened since the last one is unknown."""

    listed: bool
    now: int
    nodes: dict[str, tuple[tuple[Route, ...], int]]  # routes, create_revision
    applications: dict[Instance, ApplicationRoute]
    markers: dict[str, int]
    fresh_markers: set[str]


@dataclasses.dataclass
class Tick:
    now: int


@dataclasses.dataclass
class Belief:
    """What the history amounts to. The suspicions are told by when they began."""

    nodes: dict[str, tuple[tuple[Route, ...], int]] = dataclasses.field(default_factory=dict)
    applications: dict[Instance, ApplicationRoute] = dataclasses.field(default_factory=dict)
    suspected_nodes: dict[str, int] = dataclasses.field(default_factory=dict)
    suspected_applications: dict[Instance, int] = dataclasses.field(default_factory=dict)
    goodbyes: set[tuple[str, int]] = dataclasses.field(default_factory=set)  # node, create_revision of the life

    def leave(self, node: str) -> None:
        self.nodes.pop(node)
        self.suspected_nodes.pop(node, None)
        self.goodbyes = {goodbye for goodbye in self.goodbyes if goodbye[0] != node}
        self.stop({instance for instance in self.suspected_applications if instance[1] == node})

    def stop(self, instances: set[Instance]) -> None:
        for instance in instances:
            del self.applications[instance]
            self.suspected_applications.pop(instance, None)


def decoded(record: Record) -> tuple[NodeKey | ApplicationKey | LeavingKey, object] | None:
    assert record.value is not None
    try:
        key = parse_route_key(PREFIX, record.key)
        if isinstance(key, NodeKey):
            return key, (tuple(decode_routes(record.value) or ()), record.create_revision)
        if isinstance(key, LeavingKey):
            return key, record.mod_revision
        route = decode_application_route(record.value)
        return (key, route) if (route.name, route.node) == (key.name, key.node) else None
    except DecodeError:
        return None


class Model:
    """Replays all of history to tell what is believed now."""

    def __init__(self, grace: int) -> None:
        self.grace = grace
        self.history: list[Seen | Tick] = []
        self.pauses: list[tuple[int, int | None]] = []

    def see(self, keys: Mapping[bytes, Record], now: int, *, listed: bool) -> None:
        seen = Seen(listed, now, {}, {}, {}, set())
        for key, thing in filter(None, map(decoded, keys.values())):
            match key:
                case NodeKey(node=node):
                    seen.nodes[node] = thing  # type: ignore[assignment]  # its key says what it is
                case ApplicationKey(name=name, node=node):
                    seen.applications[name, node] = thing  # type: ignore[assignment]  # its key says what it is
                case LeavingKey(node=node):
                    seen.markers[node] = thing  # type: ignore[assignment]  # its key says what it is
        before = next((past for past in reversed(self.history) if isinstance(past, Seen)), None)
        heard_before = {} if listed or before is None else before.markers
        seen.fresh_markers = {node for node, marked in seen.markers.items() if heard_before.get(node) != marked}
        self.history.append(seen)

    def waited(self, since: int, now: int) -> int:
        """Return for how many seconds of those from `since` to `now` there was no pause."""
        return sum(not self._paused(at) for at in range(since, now))

    def _paused(self, at: int) -> bool:
        return any(start <= at and (end is None or at < end) for start, end in self.pauses)

    def over(self, since: int, now: int) -> bool:
        return self.waited(since, now) >= self.grace

    def belief(self) -> Belief:
        belief = Belief()
        for moment in self.history:
            if isinstance(moment, Tick):
                for node in {node for node, since in belief.suspected_nodes.items() if self.over(since, moment.now)}:
                    belief.leave(node)
                belief.stop({i for i, since in belief.suspected_applications.items() if self.over(since, moment.now)})
            else:
                self._see(belief, moment)
        return belief

    def _see(self, belief: Belief, seen: Seen) -> None:
        for node in seen.fresh_markers & belief.nodes.keys():
            if seen.markers[node] >= belief.nodes[node][1]:
                belief.goodbyes.add((node, belief.nodes[node][1]))
                if node in belief.suspected_nodes:
                    belief.leave(node)
        unseen_deaths = self._see_nodes(belief, seen)
        for instance, route in seen.applications.items():
            belief.applications[instance] = route
            belief.suspected_applications.pop(instance, None)
        for instance in belief.applications.keys() - seen.applications.keys() - belief.suspected_applications.keys():
            node = instance[1]
            if node in belief.suspected_nodes:
                belief.suspected_applications[instance] = belief.suspected_nodes[node]
            elif node in unseen_deaths:
                belief.suspected_applications[instance] = seen.now
            else:
                belief.stop({instance})

    def _see_nodes(self, belief: Belief, seen: Seen) -> set[str]:
        """Return the nodes that died and came back unseen, and may have lost their applications by that."""
        unseen_deaths = set()
        for node in belief.nodes.keys() - seen.nodes.keys() - belief.suspected_nodes.keys():
            if self.grace and (node, belief.nodes[node][1]) not in belief.goodbyes:
                belief.suspected_nodes[node] = seen.now
            else:
                belief.leave(node)
        for node, (routes, created) in seen.nodes.items():
            lived = belief.nodes.get(node)
            if lived is not None and lived[1] != created and node not in belief.suspected_nodes:
                if (node, lived[1]) in belief.goodbyes:
                    belief.stop({instance for instance in belief.suspected_applications if instance[1] == node})
                elif self.grace:
                    unseen_deaths.add(node)
            belief.suspected_nodes.pop(node, None)
            belief.nodes[node] = routes, created
            if node in seen.fresh_markers and seen.markers[node] >= created:
                belief.goodbyes.add((node, created))
        return unseen_deaths


nodes = st.sampled_from(NODES)
names = st.sampled_from(NAMES)
node_keys = st.builds(node_key, st.just(CLUSTER), nodes)
application_keys = st.builds(application_key, st.just(CLUSTER), names, nodes)
leaving_keys = st.builds(leaving_key, st.just(CLUSTER), nodes)
node_values = st.one_of(
    st.lists(st.builds(Route, st.just("h"), st.integers(1, 2)), max_size=2).map(encode_routes),
    st.just(encode_routes(None)),
    st.sampled_from([b"", b"junk", encode_routes([])[:-4]]),
)
foreign_keys = st.sampled_from([b"", b"nodes/", b"nodes/a/b", b"nodes/\xff", b"x/y", b"applications/a"]).map(
    PREFIX.__add__
)

Transaction = dict[bytes, bytes | None]


@st.composite
def application_puts(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Mostly a good route, of all states and more; sometimes one of another node, or of no one."""
    name, node = draw(names), draw(nodes)
    told = draw(st.sampled_from([node, node, node, NODES[0]]))
    route = ApplicationRoute(told, name, draw(st.integers(0, 1)), draw(st.integers(1, 2)), draw(st.integers(1, 4)))
    good = encode_application_route(route)
    return application_key(CLUSTER, name, node), draw(st.sampled_from([good, good, good, b"junk"]))


def registration(node: str, ports: list[int], names: set[str]) -> Transaction:
    """Put a node and its applications at once, as Python nodes do; without names, a Go node's beginning."""
    transaction: Transaction = {node_key(CLUSTER, node): encode_routes([Route("h", port) for port in ports])}
    for name in names:
        route = ApplicationRoute(node, name, 1, 1, 2)
        transaction[application_key(CLUSTER, name, node)] = encode_application_route(route)
    return transaction


def expiry(node: str, goodbye: bool, shuffle: random.Random) -> Transaction:
    """Delete all of a node, in no order."""
    gone = [node_key(CLUSTER, node), *(application_key(CLUSTER, name, node) for name in NAMES)]
    shuffle.shuffle(gone)
    marker: Transaction = {leaving_key(CLUSTER, node): b""} if goodbye else {}
    return dict.fromkeys(gone) | marker


changes = st.one_of(
    st.tuples(node_keys, node_values),
    application_puts(),
    st.tuples(node_keys | application_keys, st.none()),
    st.tuples(leaving_keys | foreign_keys, st.sampled_from([b"", None])),
)
registrations = st.builds(registration, nodes, st.lists(st.integers(1, 2), max_size=1), st.sets(names))
expiries = st.builds(expiry, nodes, st.just(False), st.randoms(use_true_random=False))
departures = st.builds(expiry, nodes, st.just(True), st.randoms(use_true_random=False))
goodbyes = leaving_keys.map(lambda key: {key: b""})
anything = st.lists(changes, min_size=1, max_size=4).map(dict)
transactions = st.one_of(registrations, expiries, anything, registrations, departures, goodbyes)


class MirrorMachine(RuleBasedStateMachine):
    """Nodes come, go, die and say good-bye; this process loses its watch and its session; time goes by."""

    @initialize(grace=st.sampled_from([4, 4, 0]), own=st.sampled_from([None, None, NODES[0]]))
    def begin(self, grace: int, own: str | None) -> None:
        self.etcd = Keyspace()
        self.mirror = Mirror(CLUSTER, suspect_grace=grace)
        self.mirror.own = own
        self.model = Model(grace)
        self.now = 100
        self.told = State()
        self.paused = False

    def take(self, step: Step) -> None:
        assert not any(getattr(event, "node", getattr(event, "name", None)) == self.mirror.own for event in step.events)
        self.told = fold_all(self.told, step.events)

    @rule(transaction=transactions)
    def commit(self, transaction: Transaction) -> None:
        records = self.etcd.commit(transaction)
        if records:
            self.model.see(self.etcd.records, self.now, listed=False)
            self.take(self.mirror.batch(records, self.etcd.revision, self.now))

    @rule(missed=st.lists(transactions, max_size=4))
    def resync(self, missed: list[Transaction]) -> None:
        for transaction in missed:
            self.etcd.commit(transaction)
        self.model.see(self.etcd.records, self.now, listed=True)
        self.take(self.mirror.snapshot(self.etcd.listing(PREFIX), self.etcd.revision, self.now))

    @rule(seconds=st.integers(0, 4), tick=st.booleans())
    def time_passes(self, seconds: int, tick: bool) -> None:
        self.now += seconds
        if tick:
            if not self.paused:
                self.model.history.append(Tick(self.now))
            self.take(self.mirror.tick(self.now))

    @rule(has_session=st.sampled_from([True, True, False]))
    def session(self, has_session: bool) -> None:
        if has_session:
            if self.paused:
                self.model.pauses[-1] = self.model.pauses[-1][0], self.now
            self.mirror.resume(self.now)
        else:
            if not self.paused:
                self.model.pauses.append((self.now, None))
            self.mirror.pause(self.now)
        self.paused = not has_session

    @invariant()
    def all_agree(self) -> None:
        belief = self.model.belief()
        self.mirror_is_what_the_model_believes(belief)
        self.events_fold_to_the_state(belief)
        self.the_next_deadline_is_when_a_grace_is_over(belief)

    def mirror_is_what_the_model_believes(self, belief: Belief) -> None:
        assert self.mirror.nodes() == sorted(belief.nodes.keys() - {self.mirror.own})
        for node in NODES:
            routes, _ = belief.nodes.get(node, (None, 0))
            assert self.mirror.routes(node) == routes
            assert self.mirror.suspected(node) == (node in belief.suspected_nodes)
        for name in NAMES:
            instances = self.mirror.instances(name)
            assert instances.routes == {
                node: route for (other, node), route in belief.applications.items() if other == name
            }
            assert instances.suspects == {
                node
                for node in instances.routes
                if node in belief.suspected_nodes or (name, node) in belief.suspected_applications
            }
            assert self.mirror.instances(name) is instances
        if not self.model.grace:
            keys = [key for key, _ in filter(None, map(decoded, self.etcd.records.values()))]
            assert set(belief.nodes) == {key.node for key in keys if isinstance(key, NodeKey)}
            assert set(belief.applications) == {(k.name, k.node) for k in keys if isinstance(k, ApplicationKey)}

    def events_fold_to_the_state(self, belief: Belief) -> None:
        own = self.mirror.own
        state = State(
            {node: routes for node, (routes, _) in belief.nodes.items() if node != own},
            frozenset(belief.suspected_nodes.keys() - {own}),
            {instance: route for instance, route in belief.applications.items() if instance[1] != own},
        )
        assert self.told == state
        assert fold_all(State(), self.mirror.state_events()) == state

    def the_next_deadline_is_when_a_grace_is_over(self, belief: Belief) -> None:
        left = [
            self.model.grace - self.model.waited(since, self.now)
            for since in (*belief.suspected_nodes.values(), *belief.suspected_applications.values())
        ]
        expected = None if self.paused or not left else self.now + max(0, min(left))
        assert self.mirror.next_deadline(self.now) == expected


TestMirror = MirrorMachine.TestCase
