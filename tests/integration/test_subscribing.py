"""Who listens hears everything, in order, or how much was missed: folding what was heard gives what is known."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ergo_registrar import (
    ApplicationRoute,
    ConfigUpdate,
    EventsMissed,
    NodeJoined,
    NodeLeft,
    Options,
    Registrar,
    RegistrarConnected,
    RegistrarDisconnected,
    Route,
    Subscription,
    ValidationError,
)
from ergo_registrar.core.edf import encode_application_route, encode_routes
from ergo_registrar.testing.proxy import FaultProxy
from tests.integration.support import (
    NO_ROUTES,
    Raw,
    eventually,
    next_event,
    running,
    settled,
    short_options,
    take,
    until_end,
    waiting,
)
from tests.property.folding import State, fold_all

Make = Callable[..., Awaitable[Registrar]]


@pytest.fixture
def registrar_options(etcd: str, relay: FaultProxy) -> Options:  # the relay first, so that it ends after the registrars
    return short_options(etcd)


class TestAFullQueue:
    async def test_counts_what_it_misses_to_the_event(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        observer = await make_registrar()
        async with observer.subscribe(NodeJoined, maxsize=3) as small, observer.subscribe(NodeJoined) as large:
            for n in range(10):
                await raw.put(f"{routes}nodes/n{n}@h", NO_ROUTES)
            everything = await take(large, 10)
            assert small.missed == 7
            heard = waiting(small)
            assert heard[:3] == everything[:3]
            assert heard[3:] == [EventsMissed(count=7)]
            assert observer.stats.events_missed == 7
            await raw.put(f"{routes}nodes/after@h", NO_ROUTES)
            assert (await next_event(small)).name == "after@h"
            assert small.missed == 0

    async def test_holds_up_nobody(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        observer = await make_registrar()
        async with observer.subscribe(maxsize=1):
            await raw.put_many((f"{routes}nodes/n{n}@h", NO_ROUTES) for n in range(500))
            await settled(raw, observer)
            assert len(await observer.nodes()) == 500

    async def test_delivered_and_missed_are_all_there_was(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        observer = await make_registrar()
        chance = random.Random(3)
        total, heard = 600, 0
        async with observer.subscribe(NodeJoined, maxsize=5) as events:

            async def write() -> None:
                for n in range(total):
                    await raw.put(f"{routes}nodes/n{n}@h", NO_ROUTES)

            writing = asyncio.create_task(write())
            last = None
            while heard < total:
                event = await next_event(events)
                if isinstance(event, EventsMissed):
                    heard += event.count
                else:
                    heard += 1
                    assert last is None or event.revision > last
                    last = event.revision
                if chance.random() < 0.05:
                    await asyncio.sleep(0.02)
            await writing
            assert heard == total


class TestReplay:
    async def test_begins_with_what_is_known(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        await raw.put(f"services/ergo/cluster/{routes.split('/')[3]}/config/*/item", "int:1")
        await make_registrar("a@h", routes=[Route("h", 1)], applications=[running("web", "a@h")])
        member = await make_registrar("b@h", applications=[running("web", "b@h")])
        async with member.subscribe(replay=True) as events:
            told = waiting(events)
        assert [type(event).__name__ for event in told] == ["NodeJoined", "ApplicationStarted", "ConfigUpdate"]
        assert told[0].routes == (Route("h", 1),)
        assert (told[1].node, told[2].value) == ("a@h", 1)
        await raw.delete_prefix(f"services/ergo/cluster/{routes.split('/')[3]}/config/")

    async def test_of_some_types_is_of_those_only(self, make_registrar: Make) -> None:
        await make_registrar("a@h", applications=[running("web", "a@h")])
        observer = await make_registrar()
        async with observer.subscribe(NodeJoined, ConfigUpdate, replay=True) as events:
            assert [type(event) for event in waiting(events)] == [NodeJoined]

    async def test_of_more_than_the_queue_holds_is_complete(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        await raw.put_many((f"{routes}nodes/n{n}@h", NO_ROUTES) for n in range(50))
        observer = await make_registrar()
        async with observer.subscribe(replay=True, maxsize=1) as events:
            assert events.qsize() == 50
            assert len(waiting(events)) == 50

    async def test_in_the_middle_of_changes_loses_and_doubles_nothing(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, routes: str
    ) -> None:
        """Subscriptions that begin at any moment, breaks and compactions included, all come to the same."""
        observer = await make_registrar(endpoints=(relay.endpoint,))
        chance = random.Random(11)
        followers: list[tuple[State, Subscription]] = []
        for step in range(400):
            node = f"n{chance.randrange(6)}@h"
            match chance.randrange(5):
                case 0:
                    await raw.put(f"{routes}nodes/{node}", encode_routes([Route("h", chance.randrange(3))]))
                case 1:
                    await raw.delete(f"{routes}nodes/{node}")
                case 2 | 3:
                    route = ApplicationRoute(node, "web", chance.randrange(3), 3, chance.randrange(1, 6))
                    await raw.put(f"{routes}applications/web/{node}", encode_application_route(route))
                case 4:
                    await raw.delete(f"{routes}applications/web/{node}")
            if step % 20 == 10:
                followers.append((State(), observer.subscribe(replay=True)))
            if step % 100 == 50:
                await relay.refuse()
            if step % 100 == 60:
                if step > 200:
                    await raw.compact(await raw.revision())
                await relay.heal()
        await settled(raw, observer)
        assert observer.stats.listings >= 2
        expected = fold_all(State(), waiting(observer.subscribe(replay=True)))
        assert expected.nodes or expected.applications
        for state, events in followers:
            told = [
                event for event in waiting(events) if not isinstance(event, RegistrarConnected | RegistrarDisconnected)
            ]
            state = fold_all(state, told)
            assert state.nodes == expected.nodes
            assert state.applications == expected.applications
            events.close()


class TestASubscription:
    @pytest.mark.parametrize(
        ("given", "field"),
        [
            (((str,), {}), "event_types"),
            ((("NodeJoined",), {}), "event_types"),
            (((NodeJoined, 7), {}), "event_types"),
            (((), {"maxsize": 0}), "maxsize"),
            (((), {"maxsize": True}), "maxsize"),
            (((), {"maxsize": None}), "maxsize"),
        ],
    )
    async def test_with_a_wrong_argument_is_refused(
        self, make_registrar: Make, given: tuple[tuple[type, ...], dict[str, Any]], field: str
    ) -> None:
        observer = await make_registrar()
        with pytest.raises(ValidationError) as refused:
            observer.subscribe(*given[0], **given[1])
        assert refused.value.field == field

    async def test_that_was_closed_hears_no_more(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        observer = await make_registrar()
        events = observer.subscribe(NodeJoined)
        await raw.put(f"{routes}nodes/a@h", NO_ROUTES)
        await eventually(events.qsize)
        events.close()
        await raw.put(f"{routes}nodes/b@h", NO_ROUTES)
        await settled(raw, observer)
        assert [event.name for event in await until_end(events)] == ["a@h"]

    async def test_s_reader_that_is_cancelled_loses_nothing(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        observer = await make_registrar()
        async with observer.subscribe(NodeJoined) as events:
            heard: list[str] = []

            async def write() -> None:
                for n in range(200):
                    await raw.put(f"{routes}nodes/n{n:03}@h", NO_ROUTES)

            writing = asyncio.create_task(write())
            while len(heard) < 200:
                reading = asyncio.create_task(events.get())
                await asyncio.wait({reading}, timeout=0.001)
                reading.cancel()
                (event,) = await asyncio.gather(reading, return_exceptions=True)
                if isinstance(event, NodeJoined):
                    heard.append(event.name)
            await writing
        assert heard == [f"n{n:03}@h" for n in range(200)]

    async def test_sees_what_it_is_told_already_true(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        """State is committed before any event about it: whoever acts on an event finds it so."""
        observer = await make_registrar()
        async with observer.subscribe(NodeJoined, NodeLeft) as events:
            for n in range(20):
                await raw.put(f"{routes}nodes/a@h", encode_routes([Route("h", n)]))
                joined = await next_event(events)
                assert await observer.resolve("a@h") == list(joined.routes)
                assert observer.revision >= joined.revision
            await raw.delete(f"{routes}nodes/a@h")
            await next_event(events)
            assert await observer.nodes() == []
