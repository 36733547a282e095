"""Any messages on a watch: what they say is applied in order, once, and no error but a documented one comes of them."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import grpc
import pytest
from aetcd import rpc
from hypothesis import example, given
from hypothesis import strategies as st

from ergo_registrar.core.keys import ApplicationKey, NodeKey, config_prefixes, parse_config_key, prefix_end
from ergo_registrar.core.records import Record
from ergo_registrar.core.values import parse_value
from ergo_registrar.errors import DecodeError
from ergo_registrar.routes import ApplicationRoute
from tests.fuzz.mutation import mutated
from tests.fuzz.playback import Changed, Journal, Listed, Message, Reading, Script, Shown, play
from tests.property import test_config_machine as config
from tests.property import test_mirror_machine as routes
from tests.property.folding import State, fold_all


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """Every broken key is logged once, and there are many."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


CLUSTER, NODE = routes.CLUSTER, routes.NODES[0]


class Replay:
    """What a journal amounts to, told by the messages alone.

    Under each prefix that is the last listing, and then every change that came on a stream whose watches were all
    created, joined from fragments, in order, once. What is no newer than what came before it is not owed: it may be
    told as long as nothing newer was.
    """

    def __init__(self, node: str | None) -> None:
        self.node = node
        self.prefixes = (routes.PREFIX, *config_prefixes(CLUSTER, node).values())
        self.records: dict[bytes, dict[bytes, Record]] = {prefix: {} for prefix in self.prefixes}
        self.told: dict[bytes, int] = {}  # prefix -> the revision of the last change
        self.come: dict[bytes, int] = {}  # prefix -> the last revision that came; empty: etcd must be listed
        self.owed: dict[bytes, deque[Changed]] = {prefix: deque() for prefix in self.prefixes}
        self.stray: list[Changed] = []
        self.proven = 0  # the most that etcd said
        self.begin()

    def begin(self) -> None:
        """Begin a stream."""
        self.asked, self.created = 0, 0  # watches
        self.refused = False
        self.fragments: dict[int, list[Any]] = {}
        self.early: list[Changed] = []  # came while not all watches were created
        self.stray.clear()

    def follow(self, journal: Journal) -> None:
        for entry in journal:
            match entry:
                case Listed():
                    self.told = dict.fromkeys(self.prefixes, entry.revision)
                    self.come = dict(self.told)
                    self.records = {prefix: {r.key: r for r in records} for prefix, records in entry.found.items()}
                case rpc.RangeResponse():
                    self.proven = max(self.proven, entry.header.revision)
                case rpc.WatchRequest() if entry.HasField("create_request"):
                    self.ask(entry.create_request)
                case rpc.WatchResponse():
                    self.proven = max(self.proven, entry.header.revision)
                    self.answer(entry)
                case Changed():
                    self.tell(entry)
                case Shown():
                    assert entry.revision <= self.proven
                    self.owe_nothing()
                case Reading():
                    assert not self.refused
                    self.take_early()
        self.owe_nothing()

    def owe_nothing(self) -> None:
        assert not any(self.owed.values())

    def ask(self, request: Any) -> None:
        if request.watch_id == 1:
            self.owe_nothing()
            self.begin()
        prefix = self.prefixes[self.asked]
        self.asked += 1
        assert (request.watch_id, request.key, request.range_end) == (self.asked, prefix, prefix_end(prefix))
        assert self.come[prefix] <= request.start_revision <= self.come[prefix] + 1

    def answer(self, answer: Any) -> None:
        if answer.canceled:
            self.refused = True
            if answer.compact_revision:
                self.come.clear()
            return
        if answer.created and self.created < self.asked:
            self.created += 1
            return
        events = self.fragments.pop(answer.watch_id, []) + list(answer.events)
        if answer.fragment:
            self.fragments[answer.watch_id] = events
        elif 1 <= answer.watch_id <= len(self.prefixes):
            prefix = self.prefixes[answer.watch_id - 1]
            for revision, group in groupby(events, lambda event: event.kv.mod_revision):
                self.early.append(Changed(prefix, revision, [record_of(event) for event in group]))
            if not events:
                self.early.append(Changed(prefix, answer.header.revision, []))
        if self.created == len(self.prefixes):
            self.take_early()

    def take_early(self) -> None:
        if self.created < len(self.prefixes):
            return
        for change in self.early:
            if change.revision <= self.come[change.prefix]:
                self.stray.append(change)
            else:
                self.come[change.prefix] = change.revision
                if change.records:
                    self.owed[change.prefix].append(change)
        self.early.clear()

    def tell(self, change: Changed) -> None:
        assert change.revision > self.told[change.prefix]
        self.told[change.prefix] = change.revision
        self.records[change.prefix] |= {record.key: record for record in change.records}
        owed = self.owed[change.prefix]
        if owed and owed[0] == change:
            owed.popleft()
        else:
            self.stray.remove(change)

    def state(self) -> State:
        """Return what can be read of the records, but for the own node."""
        state = State()
        for record in self.records[routes.PREFIX].values():
            match record.value is not None and routes.decoded(record):
                case (NodeKey(node), (tuple() as ways, _)) if node != self.node:
                    state.nodes[node] = ways
                case (ApplicationKey(name, node), ApplicationRoute() as route) if node != self.node:
                    state.applications[name, node] = route
        for prefix in reversed(self.prefixes[1:]):
            for record in self.records[prefix].values():
                if record.value is not None:
                    with contextlib.suppress(DecodeError, UnicodeDecodeError):
                        state.config[parse_config_key(prefix, record.key)] = parse_value(record.value.decode())
        return state


def record_of(event: Any) -> Record:
    kv = event.kv
    return Record(kv.key, kv.value if event.type == 0 else None, kv.create_revision, kv.mod_revision, kv.lease)


def looks(state: State) -> tuple[object, ...]:
    """Return what tells two states apart."""
    return state.nodes, state.applications, {item: config.told_apart(value) for item, value in state.config.items()}


# What is read. Most of it is as etcd's is, so that what comes behind the rest still matters.

rarely = st.integers(1, 20).map(lambda choice: choice == 20)
few = st.integers(0, 3)
absurd = st.sampled_from([0, -1, 1, 2**31, 2**63 - 1, -(2**63)])
items = st.tuples(st.sampled_from(config.ITEMS), config.values)
any_change = st.tuples(mutated(routes.node_keys | config.item_keys) | st.binary(max_size=8), st.none() | st.binary())


def status(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


errors = st.one_of(
    *(st.builds(error) for error in (asyncio.CancelledError, asyncio.InvalidStateError, grpc.aio.UsageError)),
    st.builds(status, st.just(grpc.StatusCode.UNAVAILABLE), st.just("etcdserver: no leader")),
    st.builds(status, st.just(grpc.StatusCode.UNAUTHENTICATED), st.just("etcdserver: invalid auth token")),
    st.builds(status, st.just(grpc.StatusCode.PERMISSION_DENIED), st.just("etcdserver: permission denied")),
    st.builds(status, st.just(grpc.StatusCode.OUT_OF_RANGE), st.just("required revision has been compacted")),
)
versions = st.sampled_from(["3.4.23", "3.5.1", "3.5.21", "3.7.3", "", "x.5"])
silences = st.sampled_from([0.1, 3.0, 30.0])  # seconds


class Scribe:
    """Writes a script, in which etcd's revision grows."""

    def __init__(self, draw: st.DrawFn, node: str | None) -> None:
        self.draw = draw
        self.prefixes = (routes.PREFIX, *config_prefixes(CLUSTER, node).values())
        self.revision = draw(st.integers(1, 3))

    def header(self) -> Message:
        if self.draw(rarely):
            cluster, term = self.draw(st.integers(1, 2)), self.draw(few)
            return rpc.ResponseHeader(cluster_id=cluster, raft_term=term, revision=self.draw(absurd))
        return rpc.ResponseHeader(cluster_id=1, raft_term=1, revision=self.revision)

    def event(self, prefix: bytes) -> Message:
        if self.draw(rarely):
            key, value = self.draw(any_change)
        elif prefix == routes.PREFIX:
            key, value = self.draw(routes.changes)
        else:
            item, value = self.draw(items)
            key = prefix + item.encode()
        modified = self.draw(absurd) if self.draw(rarely) else self.revision
        created = self.draw(absurd) if self.draw(rarely) else self.draw(few)
        kv = rpc.KeyValue(key=key, value=value or b"", create_revision=created, mod_revision=modified)
        return rpc.Event(type=self.draw(few) if self.draw(rarely) else int(value is None), kv=kv)

    def page(self, prefix: bytes) -> Message:
        kvs = [self.event(prefix).kv for _ in range(self.draw(few))]
        return rpc.RangeResponse(header=self.header(), kvs=kvs, more=self.draw(rarely))

    def look(self) -> Message:
        kvs = [self.event(self.prefixes[0]).kv for _ in range(self.draw(st.integers(0, 1)))]
        return None if self.draw(rarely) else rpc.RangeResponse(header=self.header(), kvs=kvs, count=self.draw(few))

    def pages(self) -> list[Message]:
        return [None if self.draw(rarely) else self.page(prefix) for prefix in self.prefixes]

    def answer(self, *, opened: bool) -> Message | BaseException | float:
        """Return an answer of any kind, mostly about a watch that there is, or what comes in place of one."""
        number = self.draw(st.integers(1, len(self.prefixes)))
        about: dict[str, Any] = {"header": self.header(), "watch_id": number}
        match self.draw(st.integers(1, 20)):
            case 20:
                return self.draw(silences | errors | st.none())
            case 19:
                about |= {"canceled": True, "created": self.draw(st.booleans()), "cancel_reason": self.draw(st.text())}
                about |= {"compact_revision": self.draw(absurd)}
            case 18:
                about |= {"created": True}
            case 17 if opened:  # before, `Replay` could not tell what was dropped on account of it
                about |= {"watch_id": self.draw(absurd)}
            case 16 | 15 | 14:
                return rpc.WatchResponse(header=self.header(), watch_id=-1)  # how far etcd is
        events = [self.event(self.prefixes[number - 1]) for _ in range(self.draw(few))]
        return rpc.WatchResponse(**about, events=events, fragment=self.draw(rarely))

    def stream(self) -> list[Message | BaseException | float]:
        """Return a stream on which every watch is created, with anything in between and behind."""
        answers: list[Message | BaseException | float] = []
        for number in range(1, len(self.prefixes) + 1):
            if self.draw(rarely):
                answers.append(self.answer(opened=False))
            answers.append(rpc.WatchResponse(header=self.header(), watch_id=number, created=True))
        for _ in range(self.draw(st.integers(0, 8))):
            self.revision += not self.draw(rarely)
            answers.append(self.answer(opened=True))
        return answers


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    node = draw(st.sampled_from([None, NODE]))
    scribe = Scribe(draw, node)
    pages = [page for _ in range(draw(st.integers(1, 3))) for page in scribe.pages()]
    looks = [scribe.look() for _ in range(draw(few))]
    streams = [scribe.stream() for _ in range(draw(st.integers(1, 3)))]
    return Script(node, draw(versions), pages, looks, streams, logs_in=draw(st.booleans()))


# What was found, each once the end of the registrar.

HEADER = rpc.ResponseHeader(cluster_id=1, raft_term=1, revision=1)
LAST = rpc.ResponseHeader(cluster_id=1, raft_term=1, revision=2**63 - 1)
PAGES = [rpc.RangeResponse(header=HEADER)] * 3
CREATED = [rpc.WatchResponse(header=HEADER, watch_id=number, created=True) for number in (1, 2, 3)]
STRANGE = rpc.WatchResponse(header=HEADER, watch_id=4)
PROGRESS = rpc.WatchResponse(header=HEADER, watch_id=-1)
NEXT = rpc.ResponseHeader(cluster_id=1, raft_term=1, revision=2)
OF_NO_REVISION = rpc.WatchResponse(header=NEXT, watch_id=1, events=[rpc.Event(kv=rpc.KeyValue(key=routes.PREFIX))])


@given(scripts())
@example(Script(None, "3.5.1", [None, *PAGES], [], [CREATED]))  # not to be decoded, nor is the next
@example(Script(None, "3.5.1", PAGES, [], [[*CREATED, None], CREATED]))
@example(Script(None, "3.5.1", [rpc.RangeResponse(header=HEADER, more=True), *PAGES], [], [CREATED]))  # more of nothing
@example(Script(None, "3.5.1", PAGES, [], [[*CREATED, rpc.WatchResponse(header=LAST, watch_id=1)], CREATED]))
@example(Script(None, "3.5.1", PAGES, [], [[STRANGE, *CREATED], [*CREATED, STRANGE], CREATED]))
@example(Script(None, "3.5.1", PAGES, [], [[PROGRESS, *CREATED, PROGRESS], CREATED]))  # nobody asked for it
@example(Script(None, "3.7.3", PAGES, [], [[PROGRESS, *CREATED, PROGRESS], CREATED]))
@example(Script(None, "3.4.23", PAGES, [], [[*CREATED, OF_NO_REVISION], CREATED]))
def test_the_view_is_what_the_messages_say(script: Script) -> None:
    journal, view, told = play(script, CLUSTER)
    replay = Replay(script.node)
    replay.follow(journal)
    expected = looks(replay.state())
    assert looks(fold_all(State(), view.state_events())) == expected
    assert looks(fold_all(State(), told)) == expected
