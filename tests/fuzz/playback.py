"""Given messages on the way that etcd's take: through the real connection, watcher and view, to a subscriber.

Nothing here plays etcd. A `Script` says what is read, whatever was asked, and the `Journal` keeps what came of it; only
who asks for a key that the script told of is told the same again. This is the one place that knows how all is wired.
"""

import asyncio
import contextlib
import dataclasses
import random
import selectors
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import grpc
from aetcd import rpc

from ergo_registrar.core.records import Record
from ergo_registrar.errors import RegistrarError
from ergo_registrar.etcd.client import Client
from ergo_registrar.etcd.connection import Connection
from ergo_registrar.etcd.watch import Change, Watcher
from ergo_registrar.events import Event
from ergo_registrar.options import Options
from ergo_registrar.stats import Stats
from ergo_registrar.subscription import Hub
from ergo_registrar.view import View

Message = Any  # of `aetcd.rpc`, which has no types; None, as grpc.aio has it, is one that could not be decoded


@dataclasses.dataclass(frozen=True)
class Script:
    """What a node, or an observer, reads of an etcd of some version.

    The pages of listings, what is answered to the first other reads, and what comes on one watch stream after the
    other: there an error is raised, and a number is seconds of silence.
    """

    node: str | None
    version: str
    pages: Sequence[Message]
    looks: Sequence[Message]
    streams: Sequence[Sequence[Message | BaseException | float]]
    logs_in: bool = False


@dataclasses.dataclass(frozen=True)
class Listed:
    """The view was given a listing."""

    revision: int
    found: dict[bytes, list[Record]]


@dataclasses.dataclass(frozen=True)
class Changed:
    """The view was given the changes of one revision."""

    prefix: bytes
    revision: int
    records: list[Record]


@dataclasses.dataclass(frozen=True)
class Shown:
    """The view was told that nothing is missing up to a revision."""

    revision: int


@dataclasses.dataclass(frozen=True)
class Reading:
    """More was wanted from the watch stream."""


Journal = list[Listed | Changed | Shown | Reading | Message]
MOST_ENTRIES = 10_000  # of a journal; what a script says makes some hundred at most


class Over(Exception):
    """The script has nothing more to read."""


class _Stream:
    """What `Client.watch_stream` returns."""

    def __init__(self, script: Sequence[Message | BaseException | float], journal: Journal) -> None:
        self._script = iter(script)
        self._journal = journal
        self._ended = asyncio.Event()

    async def write(self, request: Message) -> None:
        if self._ended.is_set():
            raise asyncio.InvalidStateError("RPC already finished.")  # as grpc.aio says it
        self._journal.append(request)

    async def read(self) -> Any:
        self._journal.append(Reading())
        answer: Any = 0.0  # whoever wants to ask etcd for a proof has a turn
        while isinstance(answer, float):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), answer)
            if self._ended.is_set():
                raise asyncio.CancelledError  # as grpc.aio does when the channel is closed
            answer = next(self._script, grpc.aio.EOF)
        if answer is grpc.aio.EOF or isinstance(answer, BaseException):
            self._ended.set()
        if isinstance(answer, BaseException):
            raise answer
        if answer is not grpc.aio.EOF:
            self._journal.append(answer)
        return answer

    def cancel(self) -> None:
        self._ended.set()


class _Reader:
    """What stands behind the stubs of every client: the script, as far as it was not read."""

    def __init__(self, script: Script, journal: Journal) -> None:
        self._pages = iter(script.pages)
        self._looks = iter(script.looks)
        self._streams = iter(script.streams)
        self._version = script.version
        self._journal = journal

    async def range(self, request: Message, **_: object) -> Message:
        if request.keys_only or request.range_end == request.key + b"\0":
            answer = next(self._looks, self._told(request.key))
        else:
            answer = _next(self._pages)
        self._journal.append(answer)
        assert len(self._journal) < MOST_ENTRIES, "goes round and round"
        return answer

    def _told(self, key: bytes) -> Message:
        """Return what the script told last of a key: then it is still the same etcd."""
        for entry in reversed(self._journal):
            records = entry.records if isinstance(entry, Changed) else []
            if isinstance(entry, Listed):
                records = [record for found in entry.found.values() for record in found]
            for record in reversed(records):
                if record.key == key:
                    kv = rpc.KeyValue(key=key, mod_revision=record.mod_revision)
                    return rpc.RangeResponse(kvs=[] if record.value is None else [kv])
        return rpc.RangeResponse()

    async def status(self, request: Message, **_: object) -> Message:
        return rpc.StatusResponse(version=self._version)

    def watch(self) -> _Stream:
        return _Stream(_next(self._streams), self._journal)


def _next(script: Iterator[Any]) -> Any:
    for following in script:
        return following
    raise Over


class _Client(Client):
    """A client whose stubs read from the script."""

    def __init__(self, reader: _Reader, options: Options) -> None:
        super().__init__(options.endpoints[0], options)
        self._streams: list[_Stream] = []
        self._etcd = SimpleNamespace(
            metadata=(),
            close=self._close,
            kvstub=SimpleNamespace(Range=reader.range),
            maintenancestub=SimpleNamespace(Status=reader.status),
            watchstub=SimpleNamespace(Watch=self._watch),
        )
        self._reader = reader

    def _watch(self, **_: object) -> _Stream:
        self._streams.append(self._reader.watch())
        return self._streams[-1]

    async def _close(self) -> None:
        for stream in self._streams:
            stream.cancel()


class _Connection(Connection):
    """A connection to the script."""

    def __init__(self, reader: _Reader, options: Options, clock: Callable[[], float]) -> None:
        super().__init__(options, Stats(), clock=clock)
        self._reader = reader

    async def _connected(self, patience: float) -> Client:
        if self._client is None:
            self._client = _Client(self._reader, self._options)
        return self._client


class _Witness:
    """The watcher's sink: the view, and the journal of what it was given."""

    def __init__(self, view: View, journal: Journal) -> None:
        self._view = view
        self._journal = journal

    def listed(self, revision: int, found: dict[bytes, list[Record]], asked: float) -> None:
        self._journal.append(Listed(revision, {prefix: list(records) for prefix, records in found.items()}))
        self._view.listed(revision, found, asked)

    def changed(self, prefix: bytes, changes: Sequence[Change]) -> None:
        self._journal.extend(Changed(prefix, revision, list(records)) for revision, records in changes)
        self._view.changed(prefix, changes)

    def shown(self, revision: int, asked: float) -> None:
        self._journal.append(Shown(revision))
        self._view.shown(revision, asked)

    def broken(self, reason: Exception) -> None:
        assert isinstance(reason, RegistrarError)


class _Impatient(selectors.DefaultSelector):
    """Looks at its sockets, and takes the time to wait for them as gone by."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "waits for ever"
        self.now += timeout
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop in which nobody waits: time jumps to when something is due."""

    def __init__(self) -> None:
        self._impatient = _Impatient()
        super().__init__(self._impatient)

    def time(self) -> float:
        return self._impatient.now


def play(script: Script, cluster: str) -> tuple[Journal, View, list[Event]]:
    """Read the script to its end; return what happened, the view that came of it, and the events that were told.

    Whatever the watcher raises but `RegistrarError` comes out of here.
    """
    with asyncio.Runner(loop_factory=_Loop) as runner:
        try:
            return runner.run(_play(script, cluster))
        except asyncio.CancelledError as error:
            raise AssertionError("nobody cancelled the watcher") from error


async def _play(script: Script, cluster: str) -> tuple[Journal, View, list[Event]]:
    login = "name" if script.logs_in else None
    options = Options(cluster=cluster, username=login, password=login)
    stats, journal, clock = Stats(), Journal(), asyncio.get_running_loop().time
    hub = Hub(stats)
    view = View(options, hub, stats, clock=clock)
    connection = _Connection(_Reader(script, journal), options, clock)
    prefixes, sink = view.aim(script.node), _Witness(view, journal)
    watcher = Watcher(connection, prefixes, sink, stats, timeout=10.0, beat=3.0, clock=clock, rng=random.Random(0))
    subscription = hub.subscribe((), maxsize=1_000_000)
    try:
        with contextlib.suppress(RegistrarError):  # what `register` raises; `run` goes on as after any break
            await watcher.start()
        await watcher.run()
    except* Over:
        pass
    subscription.close()
    return journal, view, [event async for event in subscription]
