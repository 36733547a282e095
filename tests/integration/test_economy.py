"""What a registrar asks of etcd, and what it does not: counted by etcd itself, or at the door to aetcd."""

import asyncio
import contextlib
import dataclasses
import itertools
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.request import urlopen

import anyio
import pytest

from ergo_registrar import ConnectionFailedError, Options, Registrar, State, Subscription
from ergo_registrar.clock import now
from ergo_registrar.etcd import stream, watch
from ergo_registrar.etcd.client import Client
from ergo_registrar.etcd.connection import CompactedError, Connection
from ergo_registrar.etcd.server import LocalEtcd
from ergo_registrar.stats import Stats
from ergo_registrar.testing.proxy import FaultProxy
from tests.integration.support import NO_ROUTES, Raw, eventually, settled, short_options


async def counter(endpoint: str, metric: str, method: str) -> int:
    """Return what etcd's own metrics count for a method."""

    def read() -> str:
        with urlopen(f"http://{endpoint}/metrics", timeout=5) as page:
            text: str = page.read().decode()
            return text

    labels = rf'[^}}]*grpc_method="{method}"[^}}]*'
    found = re.search(rf"^{metric}{{{labels}}} (\d+)", await asyncio.to_thread(read), re.MULTILINE)
    return int(found[1]) if found else 0


async def received(endpoint: str, method: str) -> int:
    """Return how many messages etcd received for a method."""
    return await counter(endpoint, "grpc_server_msg_received_total", method)


async def streams_started(endpoint: str, method: str) -> int:
    """Return how many streams of a method etcd has seen begin."""
    return await counter(endpoint, "grpc_server_started_total", method)


@contextlib.asynccontextmanager
async def calling(options: Options) -> AsyncIterator[Connection]:
    """A connection, and nobody who follows a watch on it."""
    connection = Connection(options, Stats())
    try:
        yield connection
    finally:
        await connection.close()


async def lose_lease(raw: Raw, key: str) -> None:
    """End the lease of a key."""
    found = await raw.get(key)
    assert found is not None
    await raw.revoke(found.lease)


class TestAMemberAtRest:
    """Nothing changes in etcd: then the lease's renewal proves the view, too."""

    async def renewed(self, registrar: Registrar, times: int) -> None:
        before = registrar.stats.lease_renewals
        await eventually(lambda: registrar.stats.lease_renewals >= before + times, within=10)

    async def test_asks_nothing_but_for_its_lease(self) -> None:
        """It stays connected, and its view stays proven, over more than a lease period of renewals alone."""
        async with LocalEtcd() as etcd:
            options = short_options(etcd.endpoint)
            async with Registrar(options, node="a@h") as registrar:
                await self.renewed(registrar, 2)
                before = await received(etcd.endpoint, "Watch")
                for _ in range(5):
                    await self.renewed(registrar, 1)
                    assert registrar.state is State.CONNECTED
                    assert registrar.staleness < options.lease_ttl
                assert await received(etcd.endpoint, "Watch") == before

    async def test_is_told_all_the_same_of_what_happens_then_and_asks_again(self) -> None:
        """What changes elsewhere in etcd is a reason to ask: something of ours may have been missed."""
        async with (
            LocalEtcd() as etcd,
            Raw(etcd.endpoint) as raw,
            Registrar(short_options(etcd.endpoint), node="a@h") as registrar,
        ):
            await self.renewed(registrar, 2)
            before = await received(etcd.endpoint, "Watch")
            await raw.put("of/somebody/else", "x")

            async def asked() -> bool:
                return await received(etcd.endpoint, "Watch") > before

            await eventually(asked)

    async def test_renews_on_one_stream(self) -> None:
        """Five renewals, and etcd has seen one stream for them."""
        async with LocalEtcd() as etcd, Registrar(short_options(etcd.endpoint), node="a@h") as registrar:
            await self.renewed(registrar, 5)
            assert await streams_started(etcd.endpoint, "LeaseKeepAlive") == 1

    async def test_renews_though_that_stream_has_ended(self) -> None:
        """While nobody renews, and no watch tells of it: a new one is opened, on the same connection."""
        async with LocalEtcd() as etcd, calling(short_options(etcd.endpoint)) as connection:
            await connection.call("grant", lambda client: client.grant(77, 60))
            assert (await connection.call("keep alive", lambda client: client.keep_alive(77)))[0] == 60
            (await connection._connected(5))._renewals.cancel()
            assert (await connection.call("keep alive", lambda client: client.keep_alive(77)))[0] == 60
            assert connection._stats.connections_replaced == 0

    async def test_that_is_told_the_stream_is_over_while_it_writes_fails_as_any_call(
        self, etcd: str, registrar_options: Options
    ) -> None:
        """Between the look at it and the write: grpc.aio has an error of its own for that, which ends no registrar."""

        async def write(_: Client) -> None:
            raise asyncio.InvalidStateError("RPC already finished.")  # as grpc.aio says it

        async with calling(registrar_options) as connection:
            with pytest.raises(ConnectionFailedError, match="the channel was closed"):
                await connection.call("keep alive", write, timeout=0.5)


class TestAQuestionWithoutAnAnswer:
    async def test_is_asked_again_ever_more_seldom(
        self, relay: FaultProxy, registrar_options: Options, raw: Raw, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """etcd answers when it has sent everything: to ask all the time while it is behind makes it no quicker."""
        asked, ask = list[float](), stream.Stream.ask

        async def noted(self: stream.Stream) -> None:
            asked.append(asyncio.get_running_loop().time())
            await ask(self)

        options = dataclasses.replace(registrar_options, endpoints=(relay.endpoint,), lease_ttl=9)
        async with Registrar(options) as observer:
            await settled(raw, observer)
            await eventually(lambda: observer.staleness > 1)  # nothing is being asked
            monkeypatch.setattr(stream.Stream, "ask", noted)
            relay.black_hole()
            await eventually(lambda: observer.stats.connections_replaced > 0, within=20)
            await relay.heal()
        pauses = [after - before for before, after in itertools.pairwise(asked)]
        assert len(pauses) >= 2
        assert len(pauses) <= 5  # of the three seconds until it is given up; four times as many every quarter second

    async def test_holds_up_what_came_no_longer_than_promised(
        self, relay: FaultProxy, registrar_options: Options, raw: Raw, routes: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What comes on a new stream waits for its first proof, and that for `_HOLD` at most, however seldom asked."""
        monkeypatch.setattr(watch, "_ASK_AGAIN", 60.0)
        options = dataclasses.replace(registrar_options, endpoints=(relay.endpoint,), lease_ttl=60)
        async with Registrar(options) as observer:
            await settled(raw, observer)

            async def unheard(_: stream.Stream) -> None:
                """Ask nothing, so that no answer comes."""

            async def last(_: Client) -> bool:
                """Be as the newer etcds, which are asked on the stream."""
                return True

            monkeypatch.setattr(Client, "answers_progress_last", last)
            monkeypatch.setattr(stream.Stream, "ask", unheard)
            streams = observer.stats.watch_streams
            await relay.cut()
            await eventually(lambda: observer.stats.watch_streams > streams)
            await raw.put(f"{routes}nodes/n@h", NO_ROUTES)

            async def known() -> bool:
                return await observer.nodes() == ["n@h"]

            await eventually(known, within=5)


class TestReadingALargeCluster:
    @pytest.fixture
    def pages(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Note how many keys each page of routes asked for, and let the first one be small."""
        page, asked = Client.page, list[int]()

        async def noted(client: Client, start: bytes, end: bytes, *, limit: int, revision: int) -> Any:
            if b"/routes/" in start and limit > 1:
                asked.append(limit)
            return await page(client, start, end, limit=limit, revision=revision)

        monkeypatch.setattr(Client, "page", noted)
        monkeypatch.setattr(watch, "_PAGE", 5)
        return asked

    async def test_pages_grow_while_they_come_soon(
        self, registrar_options: Options, raw: Raw, routes: str, pages: list[int]
    ) -> None:
        await raw.put_many((f"{routes}nodes/n{n:03}@h", NO_ROUTES) for n in range(100))
        async with Registrar(registrar_options) as observer:
            assert len(await observer.nodes()) == 100
        assert pages[:2] == [5, 20]
        assert len(pages) < 6

    async def test_pages_that_take_long_stay_as_small_as_they_are(
        self, registrar_options: Options, raw: Raw, routes: str, pages: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A slow line must not be asked for more than it brings in time."""
        monkeypatch.setattr(watch, "_PAGE_SOON", -1.0)
        await raw.put_many((f"{routes}nodes/n{n:03}@h", NO_ROUTES) for n in range(20))
        async with Registrar(registrar_options) as observer:
            assert len(await observer.nodes()) == 20
        assert set(pages) == {5}

    async def test_pages_begin_small_again_for_the_next_prefix(
        self, registrar_options: Options, raw: Raw, routes: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thousand short routes say nothing of how long the items of the configuration are."""
        page, first = Client.page, dict[bytes, int]()

        async def noted(client: Client, start: bytes, end: bytes, *, limit: int, revision: int) -> Any:
            if limit > 1:
                first.setdefault(end, limit)
            return await page(client, start, end, limit=limit, revision=revision)

        await raw.put_many((f"{routes}nodes/n{n:03}@h", NO_ROUTES) for n in range(100))
        monkeypatch.setattr(Client, "page", noted)
        monkeypatch.setattr(watch, "_PAGE", 5)
        async with Registrar(registrar_options, node="a@h"):
            assert len(first) == 5
        assert set(first.values()) == {5}


class TestManyRegistrarsInOneProcess:
    @pytest.mark.parametrize("late", [False, True], ids=["", "and one at a time where the loop is late"])
    async def test_that_start_at_once_read_a_few_at_a_time(
        self, registrar_options: Options, raw: Raw, routes: str, monkeypatch: pytest.MonkeyPatch, late: bool
    ) -> None:
        """What each makes of what it read would else come in one moment, and hold up the leases of all."""
        monkeypatch.setattr(Connection, "is_late", late)
        reading, most = 0, 0
        read = watch.read_prefixes

        async def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal reading, most
            reading += 1
            most = max(most, reading)
            try:
                return await read(*arguments, **named)
            finally:
                reading -= 1

        monkeypatch.setattr(watch, "read_prefixes", counted)
        await raw.put_many((f"{routes}nodes/n{n:02}@h", NO_ROUTES) for n in range(20))
        registrars = [Registrar(registrar_options) for _ in range(20)]
        await asyncio.gather(*(registrar.__aenter__() for registrar in registrars))
        assert {len(await registrar.nodes()) for registrar in registrars} == {20}
        assert most == 1 if late else 1 < most <= watch._READERS
        await asyncio.gather(*(registrar.close() for registrar in registrars))

    async def test_know_how_many_follow_etcd_beside_them(self, registrar_options: Options) -> None:
        """One that is alone lets its subscribers go first after every event; many would pay for that many times."""
        loop = asyncio.get_running_loop()
        async with Registrar(registrar_options):
            assert watch._others[loop].following == 1
            async with Registrar(registrar_options):
                assert watch._others[loop].following == 2
            assert watch._others[loop].following == 1
        assert loop not in watch._others  # nor does anything else keep a loop that has ended

    @pytest.mark.parametrize(("others", "first"), [(0, "told"), (1, "read on")])
    async def test_let_their_subscribers_go_first_only_where_one_is_alone(
        self,
        registrar_options: Options,
        raw: Raw,
        routes: str,
        monkeypatch: pytest.MonkeyPatch,
        others: int,
        first: str,
    ) -> None:
        """After an event, which comes first: its subscriber is told, or the stream is read on."""
        happened, read = list[str](), stream.Stream.read

        async def noted(self: stream.Stream) -> Any:
            happened.append("read on")
            return await read(self)

        async def hear(events: Subscription) -> None:
            await events.get()
            happened.append("told")

        async with contextlib.AsyncExitStack() as stack:
            for _ in range(others):
                await stack.enter_async_context(Registrar(dataclasses.replace(registrar_options, cluster="elsewhere")))
            observer = await stack.enter_async_context(Registrar(registrar_options))
            await settled(raw, observer)
            events = observer.subscribe()
            monkeypatch.setattr(stream.Stream, "read", noted)
            for number in range(3):  # the first one still waits in the read that is not noted
                told = asyncio.create_task(hear(events))
                await asyncio.sleep(0)
                happened.clear()
                await raw.put(f"{routes}nodes/n{number}@h", NO_ROUTES)
                await asyncio.wait_for(told, 10)
        assert happened[0] == first

    @pytest.mark.parametrize(
        ("late", "readers", "anew"),
        [(True, 1, True), (False, 1, False), (True, 2, False)],
        ids=["", "but not where the loop is in time", "nor where they are few"],
    )
    async def test_that_lost_their_leases_read_everything_anew(
        self,
        registrar_options: Options,
        raw: Raw,
        routes: str,
        monkeypatch: pytest.MonkeyPatch,
        late: bool,
        readers: int,
        anew: bool,
    ) -> None:
        """Each would be told of all the others' keys, which go and come back, and meanwhile lose its lease again."""
        monkeypatch.setattr(Connection, "is_late", late)
        monkeypatch.setattr(watch, "_READERS", readers)
        options = dataclasses.replace(registrar_options, lease_ttl=10)
        async with Registrar(registrar_options) as observer, Registrar(options, node="a@h") as member:
            await settled(raw, member)
            listings = member.stats.listings
            await lose_lease(raw, f"{routes}nodes/a@h")
            await eventually(lambda: member.stats.re_registrations == 1)
            await settled(raw, member)
            await settled(raw, observer)
            await eventually(lambda: member.state is State.CONNECTED)
            assert member.stats.listings - listings == anew
            assert member.stats.connections_replaced == 0
            assert await observer.nodes() == ["a@h"]

    async def test_that_lost_their_leases_while_a_watch_is_opened_read_everything_anew(
        self,
        registrar_options: Options,
        relay: FaultProxy,
        raw: Raw,
        routes: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Lines break in such a moment, too, and what is opened goes on where the old stream ended."""
        options = dataclasses.replace(registrar_options, endpoints=(relay.endpoint,), lease_ttl=5)
        create, opening, go_on = stream.Stream.create, asyncio.Event(), asyncio.Event()

        async def held(self: stream.Stream, *arguments: Any) -> Any:
            opening.set()
            await go_on.wait()
            return await create(self, *arguments)

        async with Registrar(registrar_options), Registrar(options, node="a@h") as member:
            await settled(raw, member)
            listings = member.stats.listings
            monkeypatch.setattr(Connection, "is_late", True)
            monkeypatch.setattr(watch, "_READERS", 1)
            monkeypatch.setattr(stream.Stream, "create", held)
            await relay.cut()
            await opening.wait()
            await lose_lease(raw, f"{routes}nodes/a@h")
            await eventually(lambda: member.stats.re_registrations == 1)
            go_on.set()
            await eventually(lambda: member.state is State.CONNECTED)
            assert member.stats.listings - listings == 1

    async def test_that_lost_their_leases_while_etcd_was_away_open_no_watch_of_before(
        self, registrar_options: Options, relay: FaultProxy, raw: Raw, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What it has to tell would begin to come, and be thrown away."""
        options = dataclasses.replace(registrar_options, endpoints=(relay.endpoint,))
        create, revisions = stream.Stream.create, list[int]()

        async def noted(self: stream.Stream, number: int, prefix: bytes, revision: int, timeout: float) -> Any:
            if self._client.endpoint == relay.endpoint:
                revisions.append(revision)
            return await create(self, number, prefix, revision, timeout)

        async with Registrar(registrar_options), Registrar(options, node="a@h") as member:
            await settled(raw, member)
            monkeypatch.setattr(Connection, "is_late", True)
            monkeypatch.setattr(watch, "_READERS", 1)
            await relay.refuse()
            await eventually(lambda: member.state is State.LOST, within=10)
            monkeypatch.setattr(stream.Stream, "create", noted)
            next_one = await raw.put("of/somebody/else", "x")
            await raw.put("of/somebody/else", "y")
            await relay.heal()
            await eventually(lambda: member.state is State.CONNECTED, within=10)
            assert min(revisions) > next_one

    async def test_that_lose_their_leases_again_before_it_is_their_turn_read_once(
        self, registrar_options: Options, raw: Raw, routes: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is read after that is new enough."""
        monkeypatch.setattr(Connection, "is_late", True)
        monkeypatch.setattr(watch, "_READERS", 1)
        options = dataclasses.replace(registrar_options, lease_ttl=5, request_timeout=60)
        async with Registrar(registrar_options), Registrar(options, node="a@h") as member:
            await settled(raw, member)
            listings = member.stats.listings
            async with watch._turn(60, is_late=True):
                await lose_lease(raw, f"{routes}nodes/a@h")
                await eventually(lambda: member.stats.re_registrations == 1)
                await lose_lease(raw, f"{routes}nodes/a@h")
                await eventually(lambda: member.stats.re_registrations == 2, within=10)
            await eventually(lambda: member.state is State.CONNECTED)
            assert member.stats.listings - listings == 1

    async def test_that_lose_their_leases_while_they_enter_are_in_once_they_are_back(
        self, registrar_options: Options, raw: Raw, routes: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What they read meanwhile is new enough, and the time for it may be over."""
        create, opening, go_on = stream.Stream.create, asyncio.Event(), asyncio.Event()

        async def held(self: stream.Stream, *arguments: Any) -> Any:
            opening.set()
            await go_on.wait()
            return await create(self, *arguments)

        async with Registrar(registrar_options), Registrar(registrar_options):
            monkeypatch.setattr(Connection, "is_late", True)
            monkeypatch.setattr(watch, "_READERS", 1)
            monkeypatch.setattr(stream.Stream, "create", held)
            member = Registrar(dataclasses.replace(registrar_options, lease_ttl=5))
            entering = asyncio.create_task(member.register("a@h"))
            await opening.wait()
            await lose_lease(raw, f"{routes}nodes/a@h")
            await eventually(lambda: member.stats.re_registrations == 1, within=10)
            go_on.set()
            await entering
            assert member.stats.listings == 1
            await member.close()

    async def test_whose_stream_is_left_are_told_so_though_they_read_something_else_just_then(
        self, registrar_options: Options
    ) -> None:
        async with calling(registrar_options) as connection:
            client = await connection._connected(5)
            left = stream.Stream(connection, client, client.watch_stream(), True, now, log_in_anew=False)
            left.leave("it has much to tell")
            with pytest.raises(CompactedError, match="it has much to tell"):
                await left.read()
            assert connection._stats.connections_replaced == 0

    async def test_that_are_asked_for_a_proof_while_they_leave_a_stream_hold_nobody_up(
        self, registrar_options: Options, raw: Raw, routes: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who asks on a stream that was left, before its reader has seen that, does not ask again at once for ever."""
        monkeypatch.setattr(Connection, "is_late", True)
        monkeypatch.setattr(watch, "_READERS", 1)
        async with Registrar(registrar_options), Registrar(registrar_options, node="a@h") as member:
            await settled(raw, member)
            assert member._runner._session is not None
            watcher: Any = member._runner._session.watcher
            left, listings = watcher._stream, member.stats.listings
            left.answers_last = True  # as of the newer etcds
            read, busy, go_on = left.read, asyncio.Event(), asyncio.Event()
            ask, asked = left.ask, asyncio.Event()

            async def held() -> Any:
                answer = await read()
                busy.set()
                await go_on.wait()
                return answer

            async def noted() -> None:
                asked.set()
                await ask()

            left.read = held
            while not busy.is_set():
                await raw.put(f"{routes}nodes/b@h", NO_ROUTES)
            watcher.skip()
            left.ask = noted
            watcher.ask()
            await eventually(asked.is_set)
            go_on.set()
            await eventually(lambda: member.stats.listings > listings)
            await eventually(lambda: member.state is State.CONNECTED)

    async def test_do_not_wait_for_their_turn_for_ever(
        self, registrar_options: Options, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those before may hang: then one reads beside them, in time."""
        for _ in range(watch._READERS):
            turn = watch._turn(60, is_late=False)
            await turn.__aenter__()
        options = dataclasses.replace(registrar_options, request_timeout=0.5)
        async with asyncio.timeout(5), Registrar(options) as observer:
            assert await observer.nodes() == []


class TestACallThatIsNotAnsweredInTime:
    """By one endpoint, which says nothing at all, or something else; the event loop is said to be late, or not."""

    @pytest.fixture
    async def connection(self, relay: FaultProxy, registrar_options: Options) -> AsyncIterator[Connection]:
        """A connection in a process whose event loop is late."""
        options = dataclasses.replace(registrar_options, endpoints=(relay.endpoint,))
        connection = Connection(options, Stats(), lag=lambda: 0.2)
        await connection.look(timeout=5)
        yield connection
        await connection.close()

    @pytest.mark.parametrize("late", [False, True], ids=["", "also where this side is slow"])
    async def test_costs_a_silent_one_its_connection(
        self, relay: FaultProxy, connection: Connection, monkeypatch: pytest.MonkeyPatch, late: bool
    ) -> None:
        """A line that hangs, while others pass, would cost the lease."""
        monkeypatch.setattr(Connection, "is_late", late)
        relay.black_hole()
        with pytest.raises(ConnectionFailedError, match="no answer within"):
            await connection.call("look", lambda client: client.member_status(), timeout=4)
        assert connection._stats.connections_replaced >= 1

    async def test_costs_a_silent_one_nothing_while_the_answer_may_not_have_been_come_to(
        self, relay: FaultProxy, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An event loop that is late by a second takes several of them for an answer."""
        monkeypatch.setattr(connection, "_lag", lambda: 1.0)
        relay.black_hole()
        with pytest.raises(ConnectionFailedError, match="the event loop being slow"):
            await connection.call("look", lambda client: client.member_status(), timeout=4)
        assert connection._stats.connections_replaced == 0

    async def test_costs_one_that_says_something_else_nothing_where_this_side_is_slow(
        self, connection: Connection
    ) -> None:
        """To make a new connection would make the loop slower still. The call ends in time all the same."""

        async def hear() -> None:
            while True:
                await connection.call("look", lambda client: client.member_status())
                await asyncio.sleep(0.1)

        async def unanswered(_: Client) -> None:
            await asyncio.Event().wait()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hear)
            with pytest.raises(ConnectionFailedError, match="the event loop being slow"):
                await connection.call("look", unanswered, timeout=7)
            tasks.cancel_scope.cancel()
        assert connection._stats.connections_replaced == 0
