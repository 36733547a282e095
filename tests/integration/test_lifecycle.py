"""The ways in and out: cancelled, failed, repeated, concurrent, after the end, and when the registrar dies of a bug."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from ergo_registrar import (
    ConnectionFailedError,
    NodeJoined,
    Options,
    Registrar,
    RegistrarConnected,
    RegistrarError,
    Route,
    State,
    TerminatedError,
)
from tests.integration.support import Raw, eventually, next_event, running, until_end, waiting

Make = Callable[..., Awaitable[Registrar]]
CALLS: dict[str, Callable[[Registrar], Any]] = {
    "nodes": lambda r: r.nodes(),
    "resolve": lambda r: r.resolve("a@h"),
    "resolve_application": lambda r: r.resolve_application("web"),
    "pick": lambda r: r.pick("web"),
    "wait_for": lambda r: r.wait_for("web"),
    "config_item": lambda r: r.config_item("item"),
    "config": lambda r: r.config(),
    "explain": lambda r: r.explain("item"),
}
WRITES: dict[str, Callable[[Registrar], Any]] = {
    "register": lambda r: r.register("b@h"),
    "register_application_route": lambda r: r.register_application_route(running("web", "a@h")),
    "unregister_application_route": lambda r: r.unregister_application_route("web"),
    "drain": lambda r: r.drain("web"),
    "undrain": lambda r: r.undrain("web"),
    "enter": lambda r: r.__aenter__(),
}
ALL = CALLS | WRITES | {"subscribe": lambda r: r.subscribe()}


async def result(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer


async def steps(count: int) -> None:
    """Let the event loop go round so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def after(moment: int, task: asyncio.Task[Any]) -> None:
    """Wait for a moment in the life of a task: 0 to 29 are steps of the loop, then milliseconds."""
    if moment < 30:
        await steps(moment)
    else:
        await asyncio.wait({task}, timeout=(moment - 29) / 1000)


MOMENTS = [*range(30), *range(30, 60)]


class TestBeforeTheStart:
    @pytest.mark.parametrize("call", CALLS)
    async def test_reading_says_what_to_do_first(self, registrar_options: Options, call: str) -> None:
        registrar = Registrar(registrar_options, node="a@h")
        with pytest.raises(RegistrarError, match=r"enter|register"):
            await result(CALLS[call](registrar))
        await registrar.close()

    async def test_writing_says_what_to_do_first(self, registrar_options: Options) -> None:
        registrar = Registrar(registrar_options)
        with pytest.raises(RegistrarError, match="register"):
            await registrar.register_application_route(running("web", "a@h"))
        await registrar.close()

    async def test_nothing_is_sent_and_everything_about_itself_answers(self) -> None:
        registrar = Registrar(Options(endpoints=("127.0.0.1:1",)), node="a@h", routes=[Route("h", 1)])
        assert registrar.revision == 0
        assert "new" in repr(registrar)
        assert registrar.info().server == ""
        assert registrar.version().release
        assert registrar.stats.listings == 0
        assert registrar.subscribe().qsize() == 0
        await registrar.close()
        assert registrar.state is State.CLOSED

    async def test_a_subscription_made_before_sees_the_whole_cluster(
        self, make_registrar: Make, registrar_options: Options
    ) -> None:
        await make_registrar("b@h")
        registrar = Registrar(registrar_options, node="a@h")
        events = registrar.subscribe()
        async with registrar:
            assert [type(event) for event in waiting(events)] == [NodeJoined, RegistrarConnected]

    async def test_a_registrar_nobody_uses_costs_nothing(self) -> None:
        Registrar(Options())


class TestAfterTheEnd:
    @pytest.mark.parametrize("call", ALL)
    async def test_every_call_is_refused(self, registrar_options: Options, call: str) -> None:
        async with Registrar(registrar_options, node="a@h") as registrar:
            pass
        with pytest.raises(TerminatedError, match="closed"):
            await result(ALL[call](registrar))

    async def test_what_was_known_can_be_told(self, registrar_options: Options) -> None:
        async with Registrar(registrar_options, node="a@h") as registrar:
            revision = registrar.revision
        assert registrar.state is State.CLOSED
        assert registrar.revision == revision
        assert registrar.info().server == ""
        assert registrar.stats.claims == 1
        assert "closed" in repr(registrar)

    async def test_a_subscription_gives_what_it_has_and_ends(
        self, make_registrar: Make, registrar_options: Options
    ) -> None:
        observer = await make_registrar()
        events = observer.subscribe(NodeJoined)
        await make_registrar("a@h")
        await eventually(events.qsize)
        await observer.close()
        assert [event.name for event in await until_end(events)] == ["a@h"]
        with pytest.raises(TerminatedError):
            await events.get()
        assert events.qsize() == 0

    async def test_a_waiting_reader_is_let_go(self, make_registrar: Make) -> None:
        observer = await make_registrar()
        events = observer.subscribe(NodeJoined)
        readers = [asyncio.create_task(anext(events, None)) for _ in range(3)]
        await steps(3)
        await observer.close()
        async with asyncio.timeout(1):
            assert await asyncio.gather(*readers) == [None, None, None]


class TestClosing:
    async def test_is_idempotent_and_may_happen_at_once_from_many_tasks(
        self, registrar_options: Options, raw: Raw, routes: str
    ) -> None:
        registrar = Registrar(registrar_options, node="a@h")
        await registrar.__aenter__()
        await asyncio.gather(*(registrar.close() for _ in range(5)))
        assert registrar.state is State.CLOSED
        assert not await raw.under(f"{routes}nodes/")
        await registrar.close()

    async def test_from_another_task_than_registered(self, registrar_options: Options, raw: Raw, routes: str) -> None:
        registrar = Registrar(registrar_options)
        await asyncio.create_task(registrar.register("a@h"))
        await asyncio.create_task(registrar.close())
        assert not await raw.under(f"{routes}nodes/")

    @pytest.mark.parametrize("moment", range(0, 24, 2))
    async def test_cancelled_goes_on_to_its_end(
        self, registrar_options: Options, raw: Raw, routes: str, moment: int
    ) -> None:
        registrar = Registrar(registrar_options, node="a@h", applications=[running("web", "a@h")])
        await registrar.__aenter__()
        closing = asyncio.create_task(registrar.close())
        await steps(moment)
        closing.cancel()
        outcome = (await asyncio.gather(closing, return_exceptions=True))[0]
        assert outcome is None or isinstance(outcome, asyncio.CancelledError)
        if moment == 0:  # it had not begun
            await registrar.close()
        assert registrar.state is State.CLOSED
        assert set(await raw.under(routes)) == {f"{routes}leaving/a@h"}

    async def test_happens_when_the_block_is_cancelled(self, registrar_options: Options, raw: Raw, routes: str) -> None:
        inside = asyncio.Event()

        async def service() -> None:
            async with Registrar(registrar_options, node="a@h"):
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(service())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert set(await raw.under(routes)) == {f"{routes}leaving/a@h"}

    async def test_happens_within_anyio_cancel_scopes(self, registrar_options: Options, raw: Raw, routes: str) -> None:
        with anyio.move_on_after(0.3):
            async with Registrar(registrar_options, node="a@h"):
                await anyio.sleep_forever()
        assert set(await raw.under(routes)) == {f"{routes}leaving/a@h"}

    @pytest.mark.parametrize("moment", MOMENTS)
    async def test_while_registering_ends_both(
        self, registrar_options: Options, raw: Raw, routes: str, moment: int
    ) -> None:
        leases = await raw.leases()
        registrar = Registrar(registrar_options)
        registering = asyncio.create_task(registrar.register("a@h", applications=[running("web", "a@h")]))
        await after(moment, registering)
        async with asyncio.timeout(3):
            await registrar.close()
            (outcome,) = await asyncio.gather(registering, return_exceptions=True)
        assert outcome is None or isinstance(outcome, TerminatedError), repr(outcome)
        assert registrar.state is State.CLOSED
        assert set(await raw.under(routes)) <= {f"{routes}leaving/a@h"}
        markers = {kv.lease for kv in (await raw.under(routes)).values()}
        assert await raw.leases() - leases <= markers


class TestCancellingRegister:
    @pytest.mark.parametrize("moment", MOMENTS)
    async def test_leaves_nothing_and_may_be_tried_again(
        self, registrar_options: Options, raw: Raw, routes: str, moment: int
    ) -> None:
        leases = await raw.leases()
        registrar = Registrar(registrar_options)
        registering = asyncio.create_task(registrar.register("a@h", applications=[running("web", "a@h")]))
        await after(moment, registering)
        registering.cancel()
        (outcome,) = await asyncio.gather(registering, return_exceptions=True)
        if outcome is not None:
            assert isinstance(outcome, asyncio.CancelledError), repr(outcome)
            assert registrar.state is State.NEW
            assert not await raw.under(f"{routes}nodes/")
            assert not await raw.under(f"{routes}applications/")
            markers = {kv.lease for kv in (await raw.under(routes)).values()}
            assert await raw.leases() - leases <= markers
            await registrar.register("a@h")
        assert registrar.state is State.CONNECTED
        assert await raw.under(f"{routes}nodes/")
        await registrar.close()

    @pytest.mark.parametrize("moment", MOMENTS)
    async def test_of_an_observer_leaves_the_observer(
        self, make_registrar: Make, raw: Raw, routes: str, moment: int
    ) -> None:
        registrar = await make_registrar()
        leases = await raw.leases()
        registering = asyncio.create_task(registrar.register("a@h", applications=[running("web", "a@h")]))
        await after(moment, registering)
        registering.cancel()
        (outcome,) = await asyncio.gather(registering, return_exceptions=True)
        assert registrar.state is State.CONNECTED
        if outcome is not None:
            assert isinstance(outcome, asyncio.CancelledError), repr(outcome)
            assert not await raw.under(f"{routes}nodes/")
            assert not await raw.under(f"{routes}applications/")
            markers = {kv.lease for kv in (await raw.under(routes)).values()}
            assert await raw.leases() - leases <= markers
        async with registrar.subscribe(NodeJoined) as events:
            await make_registrar("b@h")
            assert (await next_event(events)).name == "b@h"

    @pytest.mark.parametrize("steps_later", [0, 1])
    async def test_at_the_very_end_is_a_cancellation_too(
        self, registrar_options: Options, raw: Raw, routes: str, monkeypatch: pytest.MonkeyPatch, steps_later: int
    ) -> None:
        """The name is held and the cluster read, and the caller is cancelled before it could be told so."""
        registrar = Registrar(registrar_options)
        join = registrar._runner._join

        async def join_and_cancel(*arguments: Any) -> None:
            await join(*arguments)
            monkeypatch.undo()
            if steps_later:
                asyncio.get_running_loop().call_soon(registering.cancel)
            else:
                registering.cancel()

        monkeypatch.setattr(registrar._runner, "_join", join_and_cancel)
        registering = asyncio.create_task(registrar.register("a@h"))
        with pytest.raises(asyncio.CancelledError):
            await registering
        assert not await raw.under(f"{routes}nodes/")
        assert registrar.state is State.NEW
        with pytest.raises(RegistrarError, match="not known yet"):
            await registrar.nodes()
        await registrar.register("b@h")
        assert await raw.under(f"{routes}nodes/b@h")
        await registrar.close()
        assert repr(registrar).endswith("closed>")

    @pytest.mark.parametrize("milliseconds", range(0, 20, 2))
    async def test_by_an_anyio_scope(
        self, registrar_options: Options, raw: Raw, routes: str, milliseconds: int
    ) -> None:
        leases = await raw.leases()
        registrar = Registrar(registrar_options)
        with anyio.move_on_after(milliseconds / 1000) as scope:
            await registrar.register("a@h")
        if scope.cancelled_caught:
            assert registrar.state is State.NEW
            markers = {kv.lease for kv in (await raw.under(routes)).values()}
            assert await raw.leases() - leases <= markers
            await registrar.register("a@h")
        assert set(await raw.under(f"{routes}nodes/")) == {f"{routes}nodes/a@h"}
        await registrar.close()

    @pytest.mark.parametrize("moment", range(0, 40, 2))
    async def test_of_an_application_takes_it_back(
        self, make_registrar: Make, raw: Raw, routes: str, moment: int
    ) -> None:
        registrar = await make_registrar("a@h")
        publishing = asyncio.create_task(registrar.register_application_route(running("web", "a@h")))
        await after(moment, publishing)
        publishing.cancel()
        (outcome,) = await asyncio.gather(publishing, return_exceptions=True)
        if outcome is None:
            assert await raw.under(f"{routes}applications/")
            return
        assert isinstance(outcome, asyncio.CancelledError)

        async def gone() -> bool:
            return not await raw.under(f"{routes}applications/")

        await eventually(gone)
        await registrar.register_application_route(running("web", "a@h", 7))
        assert (await registrar.pick("web", include_self=True)).weight == 7


class TestABug:
    """Nothing dies silently: a bug ends every subscription and every call, with its cause."""

    async def test_in_the_watch_ends_everything(
        self,
        make_registrar: Make,
        raw: Raw,
        routes: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        registrar = await make_registrar("a@h")
        events = registrar.subscribe(NodeJoined)
        reader = asyncio.create_task(events.get())
        bug = ZeroDivisionError("a bug")

        def broken(*_: object) -> None:
            raise bug

        monkeypatch.setattr(registrar._view, "changed", broken)
        await raw.put(f"services/ergo/cluster/{registrar._options.cluster}/config/*/item", "x")
        with pytest.raises(TerminatedError, match="ZeroDivisionError") as ended:
            async with asyncio.timeout(5):
                await reader
        assert ended.value.__cause__ is bug
        await eventually(lambda: registrar.state is State.FAILED)
        for call in ALL.values():
            with pytest.raises(TerminatedError, match="a bug") as refused:
                await result(call(registrar))
            assert refused.value.__cause__ is bug
        with pytest.raises(TerminatedError):
            events.get_nowait()
        with pytest.raises(TerminatedError):
            await anext(events)
        assert [r.levelno for r in caplog.records if r.exc_info] == [logging.CRITICAL]
        await registrar.close()
        assert registrar.state is State.FAILED
        await raw.delete_prefix(f"services/ergo/cluster/{registrar._options.cluster}/config/")
        assert not await raw.under(f"{routes}nodes/")

    async def test_ends_a_call_under_way(self, make_registrar: Make, raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
        registrar = await make_registrar("a@h", request_timeout=20)

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(registrar._view, "changed", broken)
        async with asyncio.timeout(5):
            with pytest.raises(TerminatedError):
                await registrar.register_application_route(running("web", "a@h"))

    async def test_while_entering_is_told_to_the_caller(
        self, registrar_options: Options, raw: Raw, routes: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registrar = Registrar(registrar_options)

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(registrar._view, "listed", broken)
        with pytest.raises((RegistrarError, ZeroDivisionError)):
            async with asyncio.timeout(5):
                await registrar.register("a@h")
        await registrar.close()
        assert not await raw.under(f"{routes}nodes/")

    async def test_closing_ends_a_call_that_waits(self, make_registrar: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        registrar = await make_registrar("a@h", request_timeout=20)
        monkeypatch.setattr(registrar._view, "changed", lambda *_: None)  # as if the watch were slow
        publishing = asyncio.create_task(registrar.register_application_route(running("web", "a@h")))
        await eventually(lambda: registrar._view._waiting)
        await registrar.close()
        async with asyncio.timeout(2):
            await asyncio.gather(publishing, return_exceptions=True)


class TestALoopThatEnds:
    def test_around_an_open_registrar_still_leaves(self, registrar_options: Options) -> None:
        """`asyncio.run` cancels what is left: the keys go, and nothing is said about tasks destroyed."""

        async def careless() -> Registrar:
            registrar = Registrar(registrar_options, node="a@h")
            await registrar.__aenter__()
            return registrar

        registrar = asyncio.run(careless())
        assert registrar.state is State.CLOSED

        async def look() -> set[str]:
            async with Raw(registrar_options.endpoints[0]) as raw:
                return set(await raw.under(f"services/ergo/cluster/{registrar_options.cluster}/routes/nodes/"))

        assert asyncio.run(look()) == set()

    async def test_nobody_waits_for_ever_for_an_etcd_that_is_not_there(self) -> None:
        registrar = Registrar(Options(endpoints=("127.0.0.1:1",), dial_timeout=0.3, close_timeout=1))
        with pytest.raises(ConnectionFailedError):
            await registrar.register("a@h")
        assert registrar.state is State.NEW
        await registrar.close()
