"""Choosing among the instances of an application: by filters, without the drained ones, and once there are enough."""

import asyncio
import collections
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ergo_registrar import (
    ApplicationRoute,
    ApplicationStarted,
    ApplicationState,
    ApplicationUpdated,
    ConnectionFailedError,
    NoRouteError,
    Options,
    Registrar,
    RegistrarConnected,
    RegistrarError,
    Resolver,
    State,
    TerminatedError,
    ValidationError,
    WaitTimeoutError,
)
from ergo_registrar.core.edf import decode_application_route
from ergo_registrar.testing.proxy import FaultProxy
from tests.integration.support import Raw, eventually, next_event, running, settled

Make = Callable[..., Awaitable[Registrar]]


def web(node: str, *tags: str, weight: int = 1, state: int = ApplicationState.RUNNING) -> ApplicationRoute:
    return ApplicationRoute(node, "web", weight, 3, state, tags)


async def weight_of(observer: Registrar) -> int | None:
    """Return the weight of the one instance, None while it is out of the choice."""
    try:
        return (await observer.pick("web")).weight
    except NoRouteError:
        return None


@pytest.fixture
async def observer(make_registrar: Make) -> Registrar:
    return await make_registrar()


class TestFilters:
    @pytest.fixture
    async def picker(self, make_registrar: Make, raw: Raw) -> Resolver:
        for route in (
            web("a@h", "gpu", "eu", weight=3),
            web("b@h", "gpu", weight=1),
            web("c@h", "eu", weight=2, state=ApplicationState.LOADED),
            web("d@h", weight=4),
        ):
            await make_registrar(route.node, applications=[route], application_route_layout="tags")
        picker = await make_registrar(
            "self@h", applications=[web("self@h", "gpu", weight=4)], application_route_layout="tags"
        )
        await settled(raw, picker)
        return picker.resolver

    @pytest.mark.parametrize(
        ("filters", "nodes"),
        [
            ({}, "abcd"),
            ({"tags": ["gpu"]}, "ab"),
            ({"tags": ["gpu", "eu"]}, "a"),
            ({"without_tags": ["gpu"]}, "cd"),
            ({"state": ApplicationState.RUNNING}, "abd"),
            ({"state": [ApplicationState.LOADED, ApplicationState.STOPPING]}, "c"),
            ({"state": ApplicationState.RUNNING, "tags": ["eu"]}, "a"),
        ],
    )
    async def test_leave_what_passes_all_of_them(self, picker: Resolver, filters: Any, nodes: str) -> None:
        found = await picker.resolve_application("web", **filters)
        assert sorted(route.node[0] for route in found) == list(nodes)

    async def test_count_the_own_one_in_when_asked(self, picker: Registrar) -> None:
        nodes = collections.Counter(
            [(await picker.pick("web", tags=["gpu"], include_self=True)).node for _ in range(16)]
        )
        assert nodes == {"a@h": 6, "b@h": 2, "self@h": 8}

    async def test_have_a_fair_rotation_each(self, picker: Registrar) -> None:
        """Three callers take turns, each with a filter of its own. None disturbs another's shares."""
        picked: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for _ in range(16):
            picked["gpu"][(await picker.pick("web", tags=["gpu"])).node] += 1
            picked["not eu"][(await picker.resolve_application("web", without_tags=["eu"]))[0].node] += 1
            picked["any"][(await picker.pick("web")).node] += 1
        assert picked == {
            "gpu": {"a@h": 12, "b@h": 4},
            "not eu": {"b@h": 3, "d@h": 13},
            "any": {"a@h": 6, "b@h": 2, "d@h": 8},
        }

    @pytest.mark.parametrize(
        ("filters", "said"),
        [
            ({"tags": ["tpu"]}, "it is on 4 nodes, none of them with tag 'tpu'"),
            (
                {"state": ApplicationState.LOADED, "tags": ["gpu"]},
                "it is on 4 nodes, 1 of them in state LOADED, none of them with tag 'gpu'",
            ),
        ],
    )
    async def test_that_leave_nothing_say_so(self, picker: Registrar, filters: Any, said: str) -> None:
        for call in (picker.pick, picker.resolve_application):
            with pytest.raises(NoRouteError, match=f"{re.escape(said)}$"):
                await call("web", **filters)

    async def test_that_are_none_are_refused(self, picker: Registrar) -> None:
        for call in (picker.pick, picker.resolve_application, picker.wait_for):
            with pytest.raises(ValidationError, match="tags: must be several strings"):
                await call("web", tags="gpu")


class TestDraining:
    async def test_sends_nobody_there_until_it_is_over(
        self, make_registrar: Make, observer: Registrar, raw: Raw, routes: str
    ) -> None:
        node = await make_registrar("a@h", applications=[running("web", "a@h", 5)])
        await make_registrar("b@h", applications=[running("web", "b@h", 5)])
        async with observer.subscribe(ApplicationUpdated) as told:
            await node.drain("web")
            assert (await next_event(told)).weight == -1
            assert {(await observer.pick("web")).node for _ in range(4)} == {"b@h"}
            stored = await raw.get(f"{routes}applications/web/a@h")  # what Go nodes read
            assert stored
            assert decode_application_route(stored.value) == running("web", "a@h", -1)
            await node.undrain("web")
            updated = await next_event(told)
        assert updated.route == running("web", "a@h", 5)
        assert {(await observer.pick("web")).node for _ in range(4)} == {"a@h", "b@h"}

    async def test_is_known_here_too_when_the_call_returns(self, make_registrar: Make) -> None:
        node = await make_registrar("a@h", applications=[running("web", "a@h", 5)])
        for _ in range(10):
            await node.drain("web")
            with pytest.raises(NoRouteError, match="negative weight"):
                await node.pick("web", include_self=True)
            await node.undrain("web")
            assert (await node.pick("web", include_self=True)).weight == 5

    async def test_twice_remembers_the_weight_of_before(self, make_registrar: Make) -> None:
        node = await make_registrar("a@h", applications=[running("web", "a@h", 5)])
        await asyncio.gather(*(node.drain("web") for _ in range(5)))
        await asyncio.gather(*(node.undrain("web") for _ in range(5)))
        assert (await node.pick("web", include_self=True)).weight == 5

    async def test_ends_when_the_route_is_registered_again(self, make_registrar: Make) -> None:
        node = await make_registrar("a@h", applications=[running("web", "a@h", 5)])
        await node.drain("web")
        await node.register_application_route(running("web", "a@h", 7))
        assert (await node.pick("web", include_self=True)).weight == 7
        await node.undrain("web")
        assert (await node.pick("web", include_self=True)).weight == 7

    async def test_of_a_negative_weight_leaves_it(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        node = await make_registrar("a@h", applications=[running("web", "a@h", -7)])
        for call in (node.drain, node.undrain):
            await call("web")
            stored = await raw.get(f"{routes}applications/web/a@h")
            assert stored
            assert decode_application_route(stored.value).weight == -7

    async def test_of_what_is_not_published_is_an_error(self, make_registrar: Make) -> None:
        node = await make_registrar("a@h", applications=[running("web", "a@h")])
        for call in (node.drain, node.undrain):
            with pytest.raises(NoRouteError, match="'a@h' publishes no application 'db'"):
                await call("db")
            with pytest.raises(ValidationError, match="name: must be"):
                await call("d/b")
        await node.unregister_application_route("web")
        with pytest.raises(NoRouteError, match="no application 'web'"):
            await node.undrain("web")

    async def test_outlives_the_lease(self, make_registrar: Make, observer: Registrar, raw: Raw, routes: str) -> None:
        node = await make_registrar("a@h", applications=[running("web", "a@h", 5)])
        await node.drain("web")
        await settled(raw, observer)
        async with node.subscribe(RegistrarConnected) as back, observer.subscribe(ApplicationStarted) as told:
            key = await raw.get(f"{routes}nodes/a@h")
            assert key
            await raw.revoke(key.lease)
            await next_event(back)
            assert (await next_event(told)).weight == -1
        await node.undrain("web")
        assert (await node.pick("web", include_self=True)).weight == 5

    async def test_that_fails_leaves_the_weight(
        self, make_registrar: Make, relay: FaultProxy, observer: Registrar, raw: Raw
    ) -> None:
        node = await make_registrar(
            "a@h", applications=[running("web", "a@h", 5)], endpoints=(relay.endpoint,), request_timeout=0.5
        )
        for call in (node.drain, node.undrain):
            await settled(raw, observer)
            before = await weight_of(observer)
            relay.black_hole()
            with pytest.raises(ConnectionFailedError):
                await call("web")
            await relay.heal()
            await eventually(lambda: node.state is State.CONNECTED)
            await settled(raw, observer)

            async def as_before(weight: int | None = before) -> bool:
                return await weight_of(observer) == weight

            await eventually(as_before)  # at once, unless the lease was lost meanwhile
            await call("web")  # the weight of before is not forgotten
        await settled(raw, observer)
        assert await weight_of(observer) == 5

    async def test_is_for_members(self, observer: Registrar) -> None:
        for call in (observer.drain, observer.undrain):
            with pytest.raises(RegistrarError, match="not registered"):
                await call("web")


class TestWaiting:
    async def test_returns_what_is_there_at_once(self, make_registrar: Make, observer: Registrar, raw: Raw) -> None:
        await make_registrar("a@h", applications=[running("web", "a@h", 2)])
        await make_registrar("b@h", applications=[running("web", "b@h", 1)])
        await settled(raw, observer)
        found = [(await observer.wait_for("web", instances=2, timeout=0))[0].node for _ in range(3)]
        assert collections.Counter(found) == {"a@h": 2, "b@h": 1}  # the weighted pick first, as ever

    async def test_returns_as_soon_as_enough_are_there(self, make_registrar: Make, observer: Registrar) -> None:
        waits = asyncio.create_task(observer.wait_for("web", instances=3))
        for node in ("a@h", "b@h"):
            await make_registrar(node, applications=[running("web", node)])
        await observer.wait_for("web", instances=2)
        assert not waits.done()
        await make_registrar("c@h", applications=[running("web", "c@h")])
        assert sorted(route.node for route in await waits) == ["a@h", "b@h", "c@h"]

    async def test_wants_running_ones_unless_told_otherwise(self, make_registrar: Make, observer: Registrar) -> None:
        loaded = running("web", "a@h", state=ApplicationState.LOADED)
        node = await make_registrar("a@h", applications=[loaded])
        assert await observer.wait_for("web", state=None) == [loaded]
        waits = asyncio.create_task(observer.wait_for("web"))
        await node.register_application_route(running("web", "a@h"))
        assert await waits == [running("web", "a@h")]

    async def test_takes_the_filters_of_resolving(self, make_registrar: Make, observer: Registrar) -> None:
        node = await make_registrar("a@h", applications=[web("a@h", "new")], application_route_layout="tags")
        waits = asyncio.create_task(observer.wait_for("web", tags=["gpu"], without_tags=["new"]))
        await node.register_application_route(web("a@h", "gpu", "new"))
        await node.register_application_route(web("a@h", "gpu"))
        assert await waits == [web("a@h", "gpu")]
        assert await node.wait_for("web", include_self=True) == [web("a@h", "gpu")]

    async def test_waits_for_an_undrained_one(self, make_registrar: Make, observer: Registrar, raw: Raw) -> None:
        node = await make_registrar("a@h", applications=[running("web", "a@h", 5)])
        await node.drain("web")
        await settled(raw, observer)
        waits = asyncio.create_task(observer.wait_for("web"))
        await node.undrain("web")
        assert [route.weight for route in await waits] == [5]

    async def test_ends_in_time_and_says_how_many_there_were(
        self, make_registrar: Make, observer: Registrar, raw: Raw
    ) -> None:
        await make_registrar("a@h", applications=[running("web", "a@h")])
        await make_registrar("b@h", applications=[running("web", "b@h", state=ApplicationState.LOADED)])
        await settled(raw, observer)
        with pytest.raises(
            WaitTimeoutError, match=r"1 of 3 wanted after 0\.1 s: it is on 2 nodes$"
        ) as late:  # not even with all states
            await observer.wait_for("web", instances=3, timeout=0.1)
        assert isinstance(late.value, TimeoutError)
        with pytest.raises(TimeoutError, match=r"1 of 2 .*: it is on 2 nodes, 1 of them in state RUNNING$"):
            await observer.wait_for("web", instances=2, timeout=0)
        with pytest.raises(TimeoutError, match=r"0 of 1 wanted after 0 s: no node has published it$"):
            await observer.wait_for("db", timeout=0)

    async def test_leaves_nothing_behind_when_it_is_cancelled(self, observer: Registrar) -> None:
        """Names that nobody has may come from anywhere: what is kept for each would grow for ever."""
        choices = observer._view._choices

        def kept() -> int:
            return len(choices._of_others) + len(choices._of_all) + len(choices._filtered)

        for state in (ApplicationState.RUNNING, None):
            waits = asyncio.create_task(observer.wait_for("job", timeout=60, state=state))
            await eventually(lambda: len(observer._view._waiting) == 1)
            assert kept() == 1
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
            assert kept() == 0

    async def test_is_bounded_by_request_timeout_unless_told_otherwise(self, make_registrar: Make) -> None:
        observer = await make_registrar(request_timeout=0.2)
        with pytest.raises(WaitTimeoutError, match=r"after 0\.2 s"):
            await observer.wait_for("web")

    @pytest.mark.parametrize("wrong", [{"instances": 0}, {"instances": "2"}, {"timeout": -1}, {"timeout": "soon"}])
    async def test_refuses_what_cannot_be_waited_for(self, observer: Registrar, wrong: Any) -> None:
        with pytest.raises(ValidationError) as refused:
            await observer.wait_for("web", **wrong)
        assert refused.value.field in wrong

    async def test_ends_when_the_registrar_closes(self, registrar_options: Options) -> None:
        async with Registrar(registrar_options) as registrar:
            waits = [asyncio.create_task(registrar.wait_for(name, timeout=60)) for name in ("web", "db")]
            await asyncio.sleep(0)
        for each in waits:
            with pytest.raises(TerminatedError, match="closed"):
                await each

    async def test_that_is_cancelled_leaves_nothing_behind(self, make_registrar: Make, observer: Registrar) -> None:
        waits = [asyncio.create_task(observer.wait_for("web", timeout=60)) for _ in range(10)]
        await eventually(lambda: len(observer._view._waiting) == 10)
        for each in waits[:5]:
            each.cancel()
        await asyncio.wait(waits[:5])
        assert all(each.cancelled() for each in waits[:5])
        assert len(observer._view._waiting) == 5
        await make_registrar("a@h", applications=[running("web", "a@h")])
        assert await asyncio.gather(*waits[5:]) == [[running("web", "a@h")]] * 5
        assert not observer._view._waiting

    async def test_goes_on_while_etcd_is_away(
        self, make_registrar: Make, relay: FaultProxy, registrar_options: Options
    ) -> None:
        observer = await make_registrar(endpoints=(relay.endpoint,))
        await relay.refuse()
        waits = asyncio.create_task(observer.wait_for("web", timeout=20))
        await make_registrar("a@h", applications=[running("web", "a@h")])
        assert not waits.done()
        await relay.heal()
        assert await waits == [running("web", "a@h")]
