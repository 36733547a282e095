"""List, then watch, with no gap: a few prefixes of etcd followed from one fixed revision on.

`start` reads every prefix at one revision, in pages, and opens one watch for each on a common stream, from the next
revision on. `run` follows the stream. After a break it resumes at the revision behind the last one applied; where etcd
no longer keeps that, or has fewer revisions than were seen (a restored backup), it reads everything anew, and the sink
makes events of the differences.

Sources: etcd's api/etcdserverpb/rpc.proto, and what was measured (docs/explanation/etcd.md). Watch ids are chosen here,
from 1 up, and created one at a time, because a refusal carries the id -1 or 0; after one the stream is built anew.
"""

import asyncio
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol

import grpc
from aetcd import rpc

from ergo_registrar.core.backoff import delays
from ergo_registrar.core.keys import prefix_end
from ergo_registrar.core.records import Record
from ergo_registrar.errors import ConnectionFailedError, RegistrarError
from ergo_registrar.etcd.client import Client
from ergo_registrar.etcd.connection import BrokenError, CompactedError, Connection, TooLargeError
from ergo_registrar.etcd.shield import was_cancelled
from ergo_registrar.stats import Stats

_log = logging.getLogger(__name__)

_PAGE = 1000  # keys asked for at once; halved where an answer is too large for a message
_PATIENCE = 2.0  # seconds for etcd's word on a new watch, doubled after each failure: a hung one is left soon
_RETRY_FIRST, _RETRY_MOST = 0.1, 1.0  # seconds between two tries for a broken stream


class Sink(Protocol):
    """Who decides what becomes of what was read. Both run without delay, and are never called at the same time."""

    def listed(self, revision: int, found: dict[bytes, list[Record]]) -> None:
        """Take the whole of every prefix, as of one revision."""

    def changed(self, prefix: bytes, revision: int, records: Sequence[Record]) -> None:
        """Take all changes that one revision made under one prefix, in order."""

    def current(self, proven: bool, reason: Exception | None) -> None:
        """Take note that etcd shows us every change again, or does not any more."""


class WatchRefusedError(ConnectionFailedError):
    """etcd denied or cancelled a watch."""


class Watcher:
    """Follows some prefixes for as long as `run` runs."""

    def __init__(
        self,
        connection: Connection,
        prefixes: Sequence[bytes],
        sink: Sink,
        stats: Stats,
        *,
        timeout: float,
        rng: random.Random | None = None,
    ) -> None:
        self._connection = connection
        self._prefixes = tuple(prefixes)
        self._sink = sink
        self._timeout = timeout  # seconds for `start`, and the most that etcd's word on a new watch may take
        self._patience = _PATIENCE
        self._random = rng or random.Random()  # jitter is no secret
        self._applied: dict[bytes, int] = {}  # prefix -> the last revision that was applied; empty: list first
        self._history = (0, 0)  # the id of the etcd cluster that was read, and its raft term then
        self._stream: _Stream | None = None
        self._stats = stats

    async def start(self) -> None:
        """Read everything and open the watches. Raise `ConnectionFailedError` where that cannot be done in time."""
        pauses = self._pauses()
        ends = asyncio.get_running_loop().time() + self._timeout
        while self._stream is None:
            try:
                await self._open()
            except (CompactedError, BrokenError) as error:
                if isinstance(error, CompactedError):  # while it was read, or before the watch
                    self._applied.clear()
                if asyncio.get_running_loop().time() >= ends:
                    raise
                await asyncio.sleep(next(pauses))

    async def run(self) -> None:
        """Follow the watches, and get them back whenever they break. Ends by cancellation only, leaving no stream."""
        pauses = self._pauses()
        try:
            while True:
                try:
                    if self._stream is None:
                        await self._open()
                    pauses = self._pauses()
                    await self._follow()
                except RegistrarError as error:
                    self._sink.current(False, error)
                    self.close()
                    if isinstance(error, CompactedError):
                        self._applied.clear()
                    _log.debug("the watch broke: %s", error)
                    await asyncio.sleep(next(pauses))
        finally:
            self.close()

    def close(self) -> None:
        """End the stream, if there is one."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    async def _open(self) -> None:
        """List unless it was done, and open a stream that goes on from there."""
        if not self._applied:
            await self._list()
        client, call = await self._connection.call("open a watch stream", _watch_stream)
        stream = _Stream(self._connection, client, call)
        try:
            for number, prefix in enumerate(self._prefixes, start=1):
                header = await stream.create(number, prefix, self._applied[prefix] + 1, self._patience)
                await self._refuse_other_history(header)
        except BaseException:  # also cancelled: the stream would be left behind
            stream.cancel()
            self._patience = min(2 * self._patience, self._timeout)
            raise
        self._stream, self._patience = stream, _PATIENCE
        self._stats.watch_streams += 1
        self._sink.current(True, None)

    async def _refuse_other_history(self, header: Any) -> None:
        """Raise `CompactedError` if this is not the etcd that was read: a backup was restored, or another is there now.

        Then the cluster's id is another one, or raft's term or the revision went back. A member that lags behind the
        others shows an older revision too, so that is asked for with a read that goes through the leader.
        """
        cluster, term = self._history
        if header.cluster_id != cluster or header.raft_term < term:
            raise CompactedError("this is another etcd, or one restored from a backup")
        self._history = (cluster, header.raft_term)
        seen = max(self._applied.values())
        if header.revision >= seen:
            return
        start = self._prefixes[0]
        answer = await self._connection.call("look", lambda c: c.page(start, prefix_end(start), limit=1, revision=0))
        if answer.header.revision < seen:
            raise CompactedError(f"etcd is at revision {answer.header.revision} and was at {seen}: it was restored")

    async def _list(self) -> None:
        """Read every prefix at one revision. Raise `CompactedError` if that is compacted meanwhile."""
        revision, history, found = await read_prefixes(self._connection, self._prefixes)
        self._stats.listings += 1
        self._history = history
        self._sink.listed(revision, found)
        self._applied = dict.fromkeys(self._prefixes, revision)

    async def _follow(self) -> None:
        """Apply what comes until the stream breaks."""
        stream = self._stream
        assert stream is not None  # run opens it
        while True:
            number, revision, events = await stream.read()
            prefix = self._prefixes[number - 1]
            for changed, group in groupby(events, key=attrgetter("kv.mod_revision")):
                if changed > self._applied[prefix]:  # else applied before the break
                    self._sink.changed(prefix, changed, [_changed(event) for event in group])
                    self._applied[prefix] = changed
            if not events:
                self._applied[prefix] = max(self._applied[prefix], revision)
            self._sink.current(True, None)

    def _pauses(self) -> Iterator[float]:
        return delays(self._random, first=_RETRY_FIRST, most=_RETRY_MOST)


class _Stream:
    """A watch stream of one client: watches are created on it, and their events read from it."""

    def __init__(self, connection: Connection, client: Client, call: Any) -> None:
        self._connection = connection
        self._client = client
        self._call = call
        self._waiting: list[tuple[int, int, list[Any]]] = []  # events that came while a watch was being created
        self._fragments: dict[int, list[Any]] = {}

    async def create(self, number: int, prefix: bytes, revision: int, timeout: float) -> Any:
        """Create one watch and wait for etcd's word on it, at most `timeout` seconds; return the header of that."""
        try:
            async with asyncio.timeout(timeout):
                return await self._create(number, prefix, revision)
        except TimeoutError as error:
            raise await self._connection.failed(self._client, f"watch of {prefix.decode()!r}", error) from None

    async def _create(self, number: int, prefix: bytes, revision: int) -> Any:
        request = rpc.WatchCreateRequest(
            key=prefix,
            range_end=prefix_end(prefix),
            start_revision=revision,
            watch_id=number,
            progress_notify=True,
            fragment=True,
        )
        await self._exchange(self._call.write(rpc.WatchRequest(create_request=request)))
        while True:
            answer = await self._answer(prefix)
            if answer.created:
                return answer.header
            self._take(answer)

    async def read(self) -> tuple[int, int, list[Any]]:
        """Return the number of a watch, the revision of the answer, and its events, fragments put together."""
        while not self._waiting:
            self._take(await self._answer(None))
        return self._waiting.pop(0)

    def cancel(self) -> None:
        """End the stream."""
        self._call.cancel()

    async def _answer(self, prefix: bytes | None) -> Any:
        answer = await self._exchange(self._call.read())
        if answer is grpc.aio.EOF:
            raise await self._connection.failed(self._client, "watch", ConnectionError("etcd ended the stream"))
        if answer.canceled:  # before `created`: a refusal is both
            where = f"watch of {prefix.decode()!r}" if prefix else "watch"
            if answer.compact_revision:
                raise CompactedError(f"{where}: etcd keeps revisions from {answer.compact_revision} on")
            if self._client.logs_in:  # a token that etcd forgot looks like a missing permission: log in anew
                await self._connection.give_up(self._client, self._client.endpoint)
            raise WatchRefusedError(f"{where}: etcd refused it: {answer.cancel_reason or 'no reason given'}")
        return answer

    async def _exchange(self, work: Any) -> Any:
        try:
            return await work
        except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise await self._connection.failed(self._client, "watch", error) from error
        except asyncio.CancelledError as error:
            if await was_cancelled():
                raise
            raise await self._connection.failed(self._client, "watch", error) from error

    def _take(self, answer: Any) -> None:
        events = self._fragments.pop(answer.watch_id, [])
        events.extend(answer.events)
        if answer.fragment:
            self._fragments[answer.watch_id] = events
        elif answer.watch_id > 0:
            self._waiting.append((answer.watch_id, answer.header.revision, events))


async def _watch_stream(client: Client) -> tuple[Client, Any]:
    return client, client.watch_stream()


async def read_prefixes(
    connection: Connection, prefixes: Iterable[bytes]
) -> tuple[int, tuple[int, int], dict[bytes, list[Record]]]:
    """Return a revision, whose it is (cluster id and raft term), and what stood under each prefix at it.

    It is read in pages.

    Raises `CompactedError` if the revision was compacted while reading, and `ConnectionFailedError`.
    """
    revision, limit, history = 0, _PAGE, (0, 0)
    found: dict[bytes, list[Record]] = {}
    for prefix in prefixes:
        records = found[prefix] = []
        start, end, more = prefix, prefix_end(prefix), True
        while more:
            try:
                page = await _page(connection, prefix, start, end, limit, revision)
            except TooLargeError:
                if limit == 1:
                    raise
                limit = max(1, limit // 4)
                continue
            if revision == 0:
                revision, history = page.header.revision, (page.header.cluster_id, page.header.raft_term)
            records.extend(Record(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease) for kv in page.kvs)
            more = page.more
            if more:
                start = page.kvs[-1].key + b"\0"
    return revision, history, found


async def _page(connection: Connection, prefix: bytes, start: bytes, end: bytes, limit: int, revision: int) -> Any:
    return await connection.call(
        f"read {prefix.decode()!r}", lambda client: client.page(start, end, limit=limit, revision=revision)
    )


def _changed(event: Any) -> Record:
    kv = event.kv
    value = kv.value if event.type == rpc.Event.PUT else None
    return Record(kv.key, value, kv.create_revision, kv.mod_revision, kv.lease)
