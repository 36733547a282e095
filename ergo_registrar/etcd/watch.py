"""List, then watch, with no gap: a few prefixes of etcd followed from one fixed revision on.

`start` reads every prefix at one revision, in pages, and opens one watch for each on a common stream, to follow from
there. `run` follows the stream. After a break it resumes at the last revision applied; where etcd no longer keeps that,
or has fewer revisions than were seen (a restored backup), it reads everything anew, and the sink makes events of the
differences. So it does, too, where many registrars share an event loop that is late, and their leases have ended.

An idle stream says nothing for minutes, a broken one too. So etcd is asked on the stream itself, every so often, how
far it is, and its answer proves that nothing is missing. A stream on which nothing comes any more is given up. Where
etcd is too old for its answers to prove that, a new stream is compared with what stands in etcd. While nothing changes
in etcd, the answers for the lease prove it, too, for they carry etcd's revision: then nothing is asked here.

Sources: etcd's api/etcdserverpb/rpc.proto, and what was measured (docs/explanation/etcd.md). Watch ids are chosen here,
from 1 up, and created one at a time, because a refusal carries the id -1 or 0; after one the stream is built anew.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, Never, Protocol

import anyio
from aetcd import rpc

from ergo_registrar.clock import now
from ergo_registrar.core.backoff import delays
from ergo_registrar.core.keys import prefix_end
from ergo_registrar.core.records import Record
from ergo_registrar.errors import ConnectionFailedError, RegistrarError
from ergo_registrar.etcd.client import Client
from ergo_registrar.etcd.connection import BrokenError, CompactedError, Connection, TooLargeError
from ergo_registrar.etcd.stream import PROGRESS, Stream, WatchRefusedError
from ergo_registrar.stats import Stats

_PAGE, _PAGE_MOST = 1000, 16_000  # keys asked for first, and at most, at once: etcd counts all that are left each time
_PAGE_SOON = 0.25  # seconds; after a page that took no longer, four times as many are asked for
_PATIENCE = 2.0  # seconds for etcd's word on a new watch, doubled after each failure: a hung one is left soon
_RETRY_FIRST, _RETRY_MOST = 0.1, 1.0  # seconds between two tries for a broken stream
_READERS = 4  # of one event loop at the same time; only one of them came while it was late
_SKIPPED = "the lease was lost, so everything is read anew"
_MOST = 2**63 - 1  # the largest revision there can be
_CATCH_UP = 0.12  # seconds; every 0.1 s older etcds bring up to date what began in the past (syncWatchersLoop)
_HOLD = 1.0  # seconds for which changes wait for a new stream's first proof; some may then be told out of order
_PATIENT_BEATS = 1.25  # from a proof that came with the lease until etcd is asked: the next such one comes before
# Seconds, doubled each time: etcd since 3.4.25 and 3.5.8 answers only once it has sent everything (its issue 15220). In
# a storm, a thousand clients that ask and ask would be a good part of it.
_ASK_AGAIN, _ASK_AGAIN_MOST = 0.25, 1.0


Change = tuple[int, Sequence[Record]]
"""A revision, and all that it changed under a prefix, in order."""


class _Others:
    """What the watchers of one event loop know of each other, for one process may have many registrars."""

    def __init__(self) -> None:
        self.turns = asyncio.Semaphore(_READERS)
        self.late_turns = asyncio.Semaphore(1)
        self.following = 0
        self.known = 0  # to how many; forgotten with the last one, for a semaphore that was waited for holds its loop


_others: dict[asyncio.AbstractEventLoop, _Others] = {}


class Sink(Protocol):
    """Who decides what becomes of what was read. All run without delay, and are never called at the same time."""

    def listed(self, revision: int, found: dict[bytes, list[Record]], asked: float) -> None:
        """Take the whole of every prefix, as of one revision, as asked for at a time of the clock."""

    def changed(self, prefix: bytes, changes: Sequence[Change]) -> None:
        """Take changes under one prefix, of one revision after the other."""

    def shown(self, revision: int, asked: float) -> None:
        """Take note that every change up to `revision` was told, and all that there were when etcd was asked for it."""

    def broken(self, reason: Exception) -> None:
        """Take note that etcd does not show us every change any more, until the next `shown`."""


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
        beat: float,
        clock: Callable[[], float] = now,
        rng: random.Random | None = None,
    ) -> None:
        self._connection = connection
        self._prefixes = tuple(prefixes)
        self._sink = sink
        self._timeout = timeout  # seconds for `start`, and the most that etcd's word on a new watch may take
        self._beat = beat  # seconds between two proofs, and the most that a stream may be silent when asked for one
        self._asking = asyncio.Event()  # one is wanted now
        self._due = 0.0  # when the next one is, unless one is wanted before
        self._complete: int | None = None  # the revision up to which etcd proved that the stream showed everything
        self._clock = clock
        self._patience = _PATIENCE
        self._random = rng or random.Random()  # jitter is no secret
        self._applied: dict[bytes, int] = {}  # prefix -> the last revision that was applied; empty: list first
        self._counts: dict[bytes, int] = {}  # prefix -> how many keys it then had
        self._youngest = Record(b"", None)  # the record that changed last of all that was applied
        self._raft_index = 0  # how far raft's log was then, or later
        self._others: _Others | None = None  # who follows beside us, while `run` runs
        self._skips = False  # the changes since what was applied, and reads everything anew
        self._denied = False  # a stream was refused, and none was opened since
        # What came on a stream that is not proven yet. Its watches catch up one by one, so that what came first may be
        # the younger; told like that, a value that moved from one level to another would be gone for a moment.
        self._held: list[tuple[bytes, Change]] | None = None
        self._history = (0, 0)  # the id of the etcd cluster that was read, and its raft term then
        self._stream: Stream | None = None
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
        with _others_here() as others:
            others.following += 1
            self._others = others
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._prove)
                    await self._keep_following(others)
            finally:
                others.following -= 1
                self._others = None
                self.close()

    def ask(self) -> None:
        """Let etcd prove now that the view is whole, rather than when it is time."""
        self._asking.set()

    def confirmed(self, revision: int, asked: float) -> None:
        """Take note of etcd's revision in an answer to something else, which was asked for at a time of the clock.

        If that is how far the stream has shown everything, nothing is missing, and etcd need not be asked for it.
        """
        if self._stream is not None and self._held is None and revision == self._complete:
            self._due = max(self._due, asked + _PATIENT_BEATS * self._beat)
            self._sink.shown(revision, asked)

    def skip(self) -> None:
        """Where many follow on a late event loop, read everything anew rather than follow change by change.

        When all of them have lost their leases, what each would be told of the others' keys, which go and come back,
        takes so long that they lose them again. What came and went meanwhile is then not told of. Nothing while `start`
        runs, which reads everything anyway.
        """
        if self._others is not None and self._others.following > _READERS and self._connection.is_late:
            self._skips = True
            if self._stream is not None:
                self._stream.leave(_SKIPPED)

    async def _keep_following(self, others: _Others) -> Never:
        pauses = self._pauses()
        while True:
            try:
                stream = self._stream or await self._open()
                pauses = self._pauses()
                await self._follow(stream, others)
            except RegistrarError as error:
                self._denied |= isinstance(error, WatchRefusedError)
                self._release()  # a stream that breaks early must get us on, too
                self._sink.broken(error)
                self.close()
                if isinstance(error, CompactedError):
                    self._applied.clear()
                await asyncio.sleep(next(pauses))

    async def _prove(self) -> Never:
        """Have etcd prove, every so often and when asked to, that the stream shows everything."""
        while True:
            at_once = self._asking.is_set()
            self._asking.clear()
            stream = self._stream
            if stream is not None:
                try:
                    if stream.answers_last or (stream.whole and not at_once):
                        await self._question(stream)
                    else:
                        await self._compare(stream)
                except ConnectionFailedError as error:
                    if stream is self._stream:  # else its reader saw it break, and told
                        self._sink.broken(error)
            self._due = self._clock() + self._beat
            while not self._asking.is_set() and (left := self._due - self._clock()) > 0:
                with anyio.move_on_after(left):
                    await self._asking.wait()

    async def _question(self, stream: Stream) -> None:
        """Ask until there is an answer. Give the endpoint up if nothing at all comes on the stream for too long."""
        asked = self._clock()
        stream.forget(before=asked - self._beat)
        stream.answered.clear()
        pause = min(_ASK_AGAIN, self._beat)
        while stream is self._stream and not stream.answered.is_set():
            patience = self._patient_beat
            if self._clock() - max(asked, stream.heard) >= patience:
                await stream.give_up(f"etcd was silent on the watch for {patience:.1f} s")
                return
            held_for = stream.opened + _HOLD - self._clock()
            if held_for <= 0:
                self._release()
            with anyio.move_on_after(self._beat):
                await stream.ask()
            with anyio.move_on_after(pause if self._held is None else min(pause, held_for)):
                await stream.answered.wait()
            pause = min(2 * pause, _ASK_AGAIN_MOST, self._beat)

    @property
    def _patient_beat(self) -> float:
        """The seconds after which etcd is to blame; while it may be us who are slow, twice as many."""
        return 2 * self._beat if self._connection.is_late else self._beat

    async def _compare(self, stream: Stream) -> None:
        """Hold back what comes until it, and what is known, agree with what stands in etcd."""
        if stream.is_behind and not stream.whole:  # until etcd has had a round for each watch
            await anyio.sleep(max(0.0, stream.opened + _CATCH_UP - self._clock()))
        asked = self._clock()
        if self._held is None:
            self._held = []
        try:
            try:
                revision, stands = await self._stands()
            except CompactedError:  # meanwhile
                self._asking.set()
                return
            ends = self._clock() + self._patient_beat
            while stream is self._stream:
                if all(self._agrees(prefix, revision, *stands[prefix]) for prefix in self._prefixes):
                    stream.whole = True
                    stream.asked_before = asked
                    self._release()
                    self._complete = revision
                    self._sink.shown(revision, asked)
                    return
                if self._clock() >= ends:
                    await stream.give_up("it does not show what stands in etcd", read_anew=True)
                    return
                stream.moved.clear()
                with anyio.move_on_after(_ASK_AGAIN):
                    await stream.moved.wait()
        finally:
            if stream is self._stream:
                self._release()

    async def _stands(self) -> tuple[int, dict[bytes, tuple[int, int]]]:
        """Return etcd's revision, and for each prefix the youngest revision of its keys then, and how many they are."""

        async def youngest(prefix: bytes, revision: int) -> Any:
            def ask(client: Client) -> Awaitable[Any]:
                return client.youngest(prefix, prefix_end(prefix), revision=revision)

            return await self._connection.call("compare", ask, timeout=self._beat)

        first, *others = self._prefixes
        answers = [await youngest(first, 0)]
        revision: int = answers[0].header.revision
        answers += await asyncio.gather(*(youngest(prefix, revision) for prefix in others))
        stands = ((max((kv.mod_revision for kv in answer.kvs), default=0), answer.count) for answer in answers)
        return revision, dict(zip(self._prefixes, stands, strict=True))

    def _agrees(self, prefix: bytes, revision: int, youngest: int, count: int) -> bool:
        """Say whether we know, or hold back, all that made a prefix what it was at a revision.

        A put that is missing would be younger than all we know, and a deletion that is missing shows in the count.
        """
        applied, known = self._applied[prefix], self._counts[prefix]
        for where, (changed, records) in self._held or ():
            if where == prefix and applied < changed <= revision:
                applied, known = changed, known + _growth(records)
        return youngest <= applied and known == count

    def close(self) -> None:
        """End the stream, if there is one."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    async def _open(self) -> Stream:
        """List unless it was done, and open a stream that goes on from there."""
        if not self._applied:
            await self._list()
        else:
            await self._refuse_other_past()
            self._refuse_to_follow()
        stream = await self._connection.call("watch", self._new_stream)
        try:
            for number, prefix in enumerate(self._prefixes, start=1):
                header = await stream.create(number, prefix, self._next(prefix, stream), self._patience)
                stream.is_behind |= header.revision > self._applied[prefix]
                await self._refuse_other_history(header)
            self._refuse_to_follow()
        except BaseException:  # also cancelled: the stream would be left behind
            stream.cancel()
            self._patience = min(2 * self._patience, self._timeout)
            raise
        self._stream, self._patience = stream, _PATIENCE
        self._held, self._denied, self._complete = [], False, None
        self._stats.watch_streams += 1
        self.ask()
        return stream

    def _next(self, prefix: bytes, stream: Stream) -> int:
        """Return the revision to watch from.

        Where answers come last, it is one that is known: etcd may not answer before that revision is there
        (progressIfSync in its watchable_store.go), and nothing new may come for long. Older etcds do not mind, and
        bring a watch up to date only every 0.1 s if it does not begin behind everything.
        """
        return min(self._applied[prefix] + (not stream.answers_last), _MOST)

    async def _new_stream(self, client: Client) -> Stream:
        answers_last = await client.answers_progress_last()
        # A forgotten token looks like a missing permission, once: a login at each try would cost etcd a bcrypt.
        call = client.watch_stream()
        return Stream(self._connection, client, call, answers_last, self._clock, log_in_anew=not self._denied)

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

    async def _refuse_other_past(self) -> None:
        """Raise `CompactedError` if what was read last is not what it was: a backup was restored, and went on since.

        Then raft's log began anew, or the youngest key that was read did not come to be at that revision.
        """
        youngest, seen = self._youngest, max(self._applied.values())

        async def look(client: Client) -> tuple[list[int], int]:
            stands = await client.page(youngest.key, youngest.key + b"\0", limit=1, revision=seen)
            return [kv.mod_revision for kv in stands.kvs], (await client.member_status()).raftIndex

        found, index = await self._connection.call("look", look)
        as_it_was = [] if youngest.value is None else [youngest.mod_revision]
        if index < self._raft_index or found != as_it_was:
            raise CompactedError(f"revision {seen} is not what it was: etcd was restored from a backup")
        self._raft_index = index

    def _refuse_to_follow(self) -> None:
        """Raise `CompactedError` if the changes since what was applied are to be skipped."""
        if self._skips:
            raise CompactedError(f"watch: {_SKIPPED}")

    async def _list(self) -> None:
        """Read every prefix at one revision. Raise `CompactedError` if that is compacted meanwhile."""
        async with _turn(self._timeout, is_late=self._connection.is_late):
            asked, self._skips = self._clock(), False
            revision, history, found = await read_prefixes(self._connection, self._prefixes, clock=self._clock)
            self._stats.listings += 1
            self._history = history
            self._sink.listed(revision, found, asked)
        self._applied = dict.fromkeys(self._prefixes, revision)
        self._counts = {prefix: len(records) for prefix, records in found.items()}
        none = Record(self._prefixes[0], None)
        self._youngest = max(chain.from_iterable(found.values()), key=attrgetter("mod_revision"), default=none)
        self._raft_index = (await self._connection.call("look", lambda c: c.member_status())).raftIndex

    async def _follow(self, stream: Stream, others: _Others) -> Never:
        """Apply what comes until the stream breaks."""
        while True:
            number, revision, events = await stream.read()
            if number == PROGRESS:
                asked = stream.credit()
                if asked is not None and not stream.answered.is_set():  # else a question that was asked twice
                    self._answered(stream, revision, asked)
                continue
            if number > len(self._prefixes):
                raise WatchRefusedError(f"etcd told of watch {number}, and there are {len(self._prefixes)}")
            prefix, changes = self._prefixes[number - 1], _changes(revision, events)
            if self._held is None:
                self._apply(prefix, changes)
                if others.following == 1:  # else they all apply first anyway, and a turn more costs as much as that
                    await asyncio.sleep(0)  # who waits for it is first, and then the next one is asked for
            else:
                self._held.extend((prefix, change) for change in changes)
                stream.moved.set()

    def _answered(self, stream: Stream, revision: int, asked: float) -> None:
        stream.answered.set()
        if stream.answers_last:
            self._release()
            self._complete = revision
            self._sink.shown(revision, asked)
        else:  # what this answer overtook was there when the one before came
            if stream.answers[0] == stream.answers[1]:  # so nothing happened around that question
                self._complete = stream.answers[1]
            self._sink.shown(0, stream.asked_before)
        stream.answers = stream.answers[1], revision
        stream.asked_before = asked

    def _release(self) -> None:
        """Apply what was held back since the stream began, by revision, and from now on at once what comes."""
        held, self._held = self._held, None
        for prefix, change in sorted(held or (), key=lambda each: each[1][0]):
            self._apply(prefix, [change])

    def _apply(self, prefix: bytes, changes: Sequence[Change]) -> None:
        applied, growth = self._applied[prefix], 0
        told = []
        for change in changes:
            revision, records = change
            if revision > applied:  # else applied before the break
                applied = revision
                if records:
                    told.append(change)
                    growth += _growth(records)
        if told:
            self._sink.changed(prefix, told)
            self._youngest = told[-1][1][-1]
            self._counts[prefix] += growth
        self._applied[prefix] = applied

    def _pauses(self) -> Iterator[float]:
        return delays(self._random, first=_RETRY_FIRST, most=_RETRY_MOST)


@contextlib.contextmanager
def _others_here() -> Iterator[_Others]:
    loop = asyncio.get_running_loop()
    others = _others.setdefault(loop, _Others())
    others.known += 1
    try:
        yield others
    finally:
        others.known -= 1
        if not others.known:
            del _others[loop]


@contextlib.asynccontextmanager
async def _turn(patience: float, *, is_late: bool) -> AsyncIterator[None]:
    """Read only when few others of this event loop do, or after so many seconds.

    Where one process has many registrars, and all begin to read in one moment, what each makes of it would keep the
    loop from renewing their leases.
    """
    with _others_here() as others:
        ours: list[asyncio.Semaphore] = []
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    for turns in (others.late_turns, others.turns) if is_late else (others.turns,):
                        await turns.acquire()
                        ours.append(turns)
            yield
        finally:
            for turns in ours:
                turns.release()


async def read_prefixes(
    connection: Connection, prefixes: Iterable[bytes], *, clock: Callable[[], float] = now
) -> tuple[int, tuple[int, int], dict[bytes, list[Record]]]:
    """Return a revision, whose it is (cluster id and raft term), and what stood under each prefix at it.

    It is read in pages, which grow while they come soon, and shrink where one is too large for a message.

    Raises `CompactedError` if the revision was compacted while reading, and `ConnectionFailedError`.
    """
    revision, most, history = 0, _PAGE_MOST, (0, 0)
    found: dict[bytes, list[Record]] = {}
    for prefix in prefixes:
        records = found[prefix] = []
        start, end, more = prefix, prefix_end(prefix), True
        limit = min(_PAGE, most)  # how large what stands there is, is not known yet
        while more:
            asked = clock()
            try:
                page = await _page(connection, prefix, start, end, limit, revision)
            except TooLargeError:
                if limit == 1:
                    raise
                limit = most = max(1, limit // 4)
                continue
            if clock() - asked <= _PAGE_SOON:
                limit = min(4 * limit, most)
            if revision == 0:
                revision, history = page.header.revision, (page.header.cluster_id, page.header.raft_term)
            records.extend(Record(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease) for kv in page.kvs)
            more = page.more and len(page.kvs) > 0
            if more:
                start = page.kvs[-1].key + b"\0"
    return revision, history, found


async def _page(connection: Connection, prefix: bytes, start: bytes, end: bytes, limit: int, revision: int) -> Any:
    return await connection.call(
        "read", lambda client: client.page(start, end, limit=limit, revision=revision), key=prefix
    )


def _growth(records: Iterable[Record]) -> int:
    """Return how many more keys there are behind these changes of one revision."""
    growth = 0
    for record in records:
        if record.value is None:
            growth -= 1
        elif record.create_revision == record.mod_revision:
            growth += 1
    return growth


def _changes(revision: int, events: Iterable[Any]) -> list[Change]:
    """Return the changes that an answer tells of, one for each revision; that of the answer alone if it tells none."""
    changes: list[Change] = []
    records: list[Record] = []
    at: int | None = None
    for event in events:
        record = _changed(event)
        if record.mod_revision != at:
            at, records = record.mod_revision, []
            changes.append((at, records))
        records.append(record)
    return changes or [(revision, records)]


def _changed(event: Any) -> Record:
    kv = event.kv
    value = kv.value if event.type == rpc.Event.PUT else None
    return Record(kv.key, value, kv.create_revision, kv.mod_revision, kv.lease)
