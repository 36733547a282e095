"""Bounded queues that block nobody and lose nothing unseen."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ergo_registrar.errors import TerminatedError, ValidationError
from ergo_registrar.events import ConfigUpdate, Event, EventsMissed, NodeJoined, NodeLeft
from ergo_registrar.stats import Stats
from ergo_registrar.subscription import Hub, Subscription


def joined(number: int) -> NodeJoined:
    return NodeJoined(name=str(number), revision=number)


@pytest.fixture
def stats() -> Stats:
    return Stats()


@pytest.fixture
def hub(stats: Stats) -> Hub:
    return Hub(stats)


def read(subscription: Subscription) -> list[Event]:
    events: list[Event] = []
    while True:
        try:
            events.append(subscription.get_nowait())
        except (asyncio.QueueEmpty, TerminatedError):
            return events


async def rounds(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class TestHearing:
    async def test_everything_in_order(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 10)
        hub.publish([joined(1), NodeLeft(name="1")])
        hub.publish([joined(2)])
        assert [await subscription.get() for _ in range(3)] == [joined(1), NodeLeft(name="1"), joined(2)]

    async def test_some_types_only(self, hub: Hub) -> None:
        subscription = hub.subscribe((NodeLeft, ConfigUpdate), 10)
        hub.publish([joined(1), NodeLeft(name="1"), ConfigUpdate(item="i", value=1)])
        assert read(subscription) == [NodeLeft(name="1"), ConfigUpdate(item="i", value=1)]

    async def test_each_subscription_on_its_own(self, hub: Hub, stats: Stats) -> None:
        one, other = hub.subscribe((), 1), hub.subscribe((), 5)
        hub.publish([joined(1), joined(2)])
        assert read(one) == [joined(1), EventsMissed(count=1)]
        assert read(other) == [joined(1), joined(2)]
        assert (stats.events_published, stats.events_missed) == (2, 1)

    async def test_a_waiting_reader_is_woken(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 10)
        reading = asyncio.create_task(subscription.get())
        await rounds()
        hub.publish([joined(1)])
        assert await reading == joined(1)

    async def test_each_event_goes_to_one_of_several_readers(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 2)
        reading = [asyncio.create_task(subscription.get()) for _ in range(4)]
        await rounds()
        for number in range(4):
            hub.publish([joined(number)])
            await rounds()
        assert {event.revision for event in await asyncio.gather(*reading)} == {0, 1, 2, 3}

    async def test_a_burst_reaches_all_readers_and_the_miss_too(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 1)
        reading = [asyncio.create_task(subscription.get()) for _ in range(2)]
        await rounds()
        hub.publish([joined(1), joined(2), joined(3)])
        async with asyncio.timeout(1):
            heard = await asyncio.gather(*reading)
        assert sorted(map(repr, heard)) == sorted(map(repr, [joined(1), EventsMissed(count=2)]))

    async def test_two_told_at_once_go_to_two_who_wait(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 10)
        readers = [asyncio.create_task(subscription.get()) for _ in range(2)]
        await rounds()
        hub.publish([joined(1), joined(2)])
        assert await asyncio.wait_for(asyncio.gather(*readers), 1) == [joined(1), joined(2)]

    async def test_what_a_cancelled_reader_did_not_take_stays_before_what_comes_then(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 10)
        reader = asyncio.create_task(subscription.get())
        await rounds()
        hub.publish([joined(1), joined(2)])
        reader.cancel()
        await asyncio.wait([reader])
        hub.publish([joined(3)])
        assert read(subscription) == [joined(1), joined(2), joined(3)]

    async def test_readers_who_come_and_go_take_all_in_order(self, hub: Hub) -> None:
        """Told in bursts while some wait, some look, and some are cancelled."""
        subscription, rng, heard = hub.subscribe((), 10_000), random.Random(7), list[Event]()

        async def take() -> None:
            heard.append(await subscription.get())

        readers: list[asyncio.Task[None]] = []
        told = 0
        for _ in range(500):
            match rng.randrange(4):
                case 0:
                    readers.append(asyncio.create_task(take()))
                case 1:
                    count = rng.randrange(1, 5)
                    hub.publish([joined(told + number) for number in range(count)])
                    told += count
                case 2 if readers:
                    readers.pop(rng.randrange(len(readers))).cancel()
                case _:
                    await rounds(rng.randrange(3))
        await rounds()
        for reader in readers:
            reader.cancel()
        await rounds()
        heard += read(subscription)
        assert heard == [joined(number) for number in range(told)]

    async def test_nothing_now_is_queue_empty(self, hub: Hub) -> None:
        with pytest.raises(asyncio.QueueEmpty):
            hub.subscribe((), 1).get_nowait()


class TestMissing:
    async def test_goes_on_until_all_was_read(self, hub: Hub) -> None:
        subscription = hub.subscribe((NodeJoined,), 2)
        hub.publish([joined(n) for n in range(5)])
        assert subscription.missed == 3
        assert subscription.get_nowait() == joined(0)
        hub.publish([joined(5)])  # there would be room, but what comes must not overtake the miss
        assert subscription.missed == 4
        assert read(subscription) == [joined(1), EventsMissed(count=4)]
        assert subscription.missed == 0
        hub.publish([joined(6)])
        assert read(subscription) == [joined(6)]

    async def test_counts_only_what_was_wanted(self, hub: Hub, stats: Stats) -> None:
        subscription = hub.subscribe((NodeJoined,), 1)
        hub.publish([joined(1), NodeLeft(name="1"), joined(2), NodeLeft(name="2")])
        assert read(subscription) == [joined(1), EventsMissed(count=1)]
        assert stats.events_missed == 1

    async def test_is_told_even_at_the_end(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 1)
        hub.publish([joined(1), joined(2)])
        hub.end()
        assert [event async for event in subscription] == [joined(1), EventsMissed(count=1)]

    @given(
        maxsize=st.integers(1, 5),
        steps=st.lists(st.one_of(st.integers(1, 6), st.just(0), st.integers(-4, -1)), max_size=40),
        replay=st.integers(0, 4),
    )
    def test_delivered_and_missed_are_exactly_what_happened(self, maxsize: int, steps: list[int], replay: int) -> None:
        """Positive steps publish so many events, negative ones read so many, 0 reads all."""

        async def story() -> None:
            stats = Stats()
            hub = Hub(stats)
            subscription = hub.subscribe((), maxsize, [joined(-n) for n in range(replay, 0, -1)])
            happened, heard, missed = [joined(-n) for n in range(replay, 0, -1)], [], 0
            number = 0

            def take() -> bool:
                nonlocal missed
                try:
                    event = subscription.get_nowait()
                except asyncio.QueueEmpty:
                    return False
                heard.append(event)
                if isinstance(event, EventsMissed):
                    missed += event.count
                return True

            for step in [*steps, 0]:
                for _ in range(step):
                    number += 1
                    hub.publish([joined(number)])
                    happened.append(joined(number))
                for _ in range(-step):
                    take()
                while step == 0 and take():
                    pass
                assert subscription.qsize() >= 0
            position = 0
            for event in heard:
                if isinstance(event, EventsMissed):
                    position += event.count
                else:
                    assert event == happened[position]
                    position += 1
            assert position == len(happened)
            assert missed == stats.events_missed
            assert subscription.qsize() == 0

        asyncio.run(story())


class TestReplay:
    async def test_comes_first_and_takes_no_room(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 1, [joined(1), joined(2), joined(3)])
        hub.publish([joined(4)])
        assert subscription.qsize() == 4
        assert read(subscription) == [joined(n) for n in (1, 2, 3, 4)]

    async def test_is_of_the_wanted_types(self, hub: Hub) -> None:
        assert read(hub.subscribe((NodeLeft,), 1, [joined(1), NodeLeft(name="1")])) == [NodeLeft(name="1")]


class TestEnding:
    async def test_gives_what_is_left_first(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 5)
        hub.publish([joined(1), joined(2)])
        hub.end()
        assert [event async for event in subscription] == [joined(1), joined(2)]
        assert [event async for event in subscription] == []

    async def test_frees_every_waiting_reader(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 1)
        reading = [asyncio.create_task(subscription.get()) for _ in range(3)]
        await rounds()
        hub.end()
        async with asyncio.timeout(1):
            outcomes = await asyncio.gather(*reading, return_exceptions=True)
        assert all(isinstance(outcome, TerminatedError) and outcome.__cause__ is None for outcome in outcomes)

    async def test_together_with_an_event_frees_every_waiting_reader(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 1)
        reading = [asyncio.create_task(subscription.get()) for _ in range(3)]
        await rounds()
        hub.publish([joined(1)])
        hub.end()
        async with asyncio.timeout(1):
            outcomes = await asyncio.gather(*reading, return_exceptions=True)
        assert outcomes.count(joined(1)) == 1
        assert sum(isinstance(outcome, TerminatedError) for outcome in outcomes) == 2

    async def test_is_an_end_for_each_way_to_read(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 1)
        hub.end()
        with pytest.raises(TerminatedError):
            await subscription.get()
        with pytest.raises(TerminatedError):
            subscription.get_nowait()
        with pytest.raises(StopAsyncIteration):
            await anext(subscription)

    async def test_by_a_bug_raises_its_cause_after_what_is_left(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 5)
        bug = ZeroDivisionError()
        hub.publish([joined(1)])
        hub.end(bug)
        assert await anext(subscription) == joined(1)
        for _ in range(2):
            with pytest.raises(TerminatedError, match="ZeroDivisionError") as ended:
                await anext(subscription)
            assert ended.value.__cause__ is bug
        with pytest.raises(TerminatedError) as ended:
            subscription.get_nowait()
        assert ended.value.__cause__ is bug

    async def test_closed_by_oneself_is_no_bug_later(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 5)
        subscription.close()
        subscription.close()
        hub.end(ZeroDivisionError())
        assert [event async for event in subscription] == []

    async def test_leaves_nothing_waiting(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 5)
        hub.end()
        assert subscription.qsize() == 0
        await asyncio.gather(subscription.get(), subscription.get(), return_exceptions=True)
        assert subscription.qsize() == 0
        assert "0 waiting" in repr(subscription)

    async def test_of_the_block_hears_no_more(self, hub: Hub, stats: Stats) -> None:
        async with hub.subscribe((), 1) as subscription:
            hub.publish([joined(1)])
        hub.publish([joined(2), joined(3)])
        assert [event async for event in subscription] == [joined(1)]
        assert stats.events_missed == 0


class TestReading:
    async def test_that_is_cancelled_loses_no_event(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 10)
        for moment in range(8):
            reading = asyncio.create_task(subscription.get())
            await rounds(2)
            hub.publish([joined(moment)])
            await rounds(moment % 4)
            reading.cancel()
            (outcome,) = await asyncio.gather(reading, return_exceptions=True)
            if isinstance(outcome, asyncio.CancelledError):
                outcome = subscription.get_nowait()
            assert outcome == joined(moment)

    async def test_that_is_cancelled_while_the_end_comes_frees_the_next(self, hub: Hub) -> None:
        subscription = hub.subscribe((), 10)
        first, second = (asyncio.create_task(subscription.get()) for _ in range(2))
        await rounds(2)
        hub.end()
        first.cancel()
        async with asyncio.timeout(1):
            outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(outcomes[1], TerminatedError)


class TestSubscribing:
    @pytest.mark.parametrize("kind", [str, "NodeJoined", NodeJoined(name="x"), Event, None, EventsMissed(count=1)])
    def test_to_what_is_no_event_is_refused(self, hub: Hub, kind: object) -> None:
        with pytest.raises(ValidationError, match=r"^event_types: "):
            hub.subscribe((kind,), 1)

    @pytest.mark.parametrize("maxsize", [0, -1, 1.5, True, None, "10"])
    def test_with_no_room_is_refused(self, hub: Hub, maxsize: object) -> None:
        with pytest.raises(ValidationError, match=r"^maxsize: "):
            hub.subscribe((), maxsize)

    async def test_shows_itself(self, hub: Hub) -> None:
        subscription = hub.subscribe((NodeJoined, NodeLeft), 1)
        hub.publish([joined(1), joined(2)])
        assert repr(subscription) == "<Subscription to NodeJoined, NodeLeft: 2 waiting, 1 missed>"
        assert "every event" in repr(hub.subscribe((), 1))
