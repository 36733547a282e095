"""What a member survives: meddling with its keys, a lease that ends, an etcd that is silent, away, or compacted."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from ergo_registrar import (
    ApplicationStarted,
    ApplicationStopped,
    ConnectionFailedError,
    NodeJoined,
    NodeLeft,
    NodeRecovered,
    NodeSuspected,
    NoRouteError,
    Options,
    Registrar,
    RegistrarConnected,
    RegistrarDisconnected,
    Route,
    State,
    TakenError,
    TerminatedError,
)
from ergo_registrar.core.edf import encode_application_route, encode_routes
from ergo_registrar.etcd.server import LocalEtcd
from ergo_registrar.testing.proxy import FaultProxy
from tests.integration.support import (
    NO_ROUTES,
    ONE_ROUTE,
    TTL,
    Raw,
    eventually,
    kept_alive,
    next_event,
    running,
    settled,
    short_options,
    waiting,
)

Make = Callable[..., Awaitable[Registrar]]


@pytest.fixture
def registrar_options(etcd: str, relay: FaultProxy) -> Options:  # the relay first, so that it ends after the registrars
    return short_options(etcd)


@contextlib.contextmanager
def stopped(etcd: LocalEtcd) -> Iterator[None]:
    """etcd does not run, and its connections stay, as long as the block lasts."""
    pids = [member.pid for member in etcd.members]
    try:
        for pid in pids:
            assert pid
            os.kill(pid, signal.SIGSTOP)
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)  # a thread of it may run on for a moment
        yield
    finally:
        for pid in pids:
            assert pid
            os.kill(pid, signal.SIGCONT)


class TestMeddling:
    async def test_with_the_nodes_key_is_put_right(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        registrar = await make_registrar("a@h", applications=[running("web", "a@h")])
        before = await raw.under(routes)
        key = f"{routes}nodes/a@h"
        async with registrar.subscribe() as events:
            await raw.delete(key)

            async def back() -> bool:
                found = await raw.under(routes)
                return {k: (kv.value, kv.lease) for k, kv in found.items()} == {
                    k: (kv.value, kv.lease) for k, kv in before.items()
                }

            await eventually(back, within=3)
            await eventually(lambda: registrar.stats.repairs)
            assert waiting(events) == []
        assert registrar.state is State.CONNECTED

    async def test_with_an_application_s_key_is_put_right(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        await make_registrar("a@h", applications=[running("web", "a@h")])
        key = f"{routes}applications/web/a@h"
        right = await raw.get(key)
        assert right

        async def is_right() -> bool:
            now = await raw.get(key)
            return now is not None and (now.value, now.lease) == (right.value, right.lease)

        async with kept_alive(raw) as lease:
            await raw.delete(key)
            await eventually(is_right, within=3)
            await raw.put(key, b"garbage")
            await eventually(is_right, within=3)
            await raw.put(key, right.value)  # the right value, but it would outlive us
            await eventually(is_right, within=3)
            await raw.put(key, right.value, lease)
            await eventually(is_right, within=3)

    async def test_while_not_yet_entered_is_put_right(
        self, registrar_options: Options, raw: Raw, routes: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A key that goes between the claim and the first reading is missed by no watch."""
        registrar = Registrar(registrar_options)
        open_connection = registrar._runner._watch

        async def late(*arguments: object) -> None:
            await raw.delete(f"{routes}applications/web/a@h")
            await open_connection(*arguments)  # type: ignore[arg-type]  # wrong on purpose

        monkeypatch.setattr(registrar._runner, "_watch", late)
        await registrar.register("a@h", applications=[running("web", "a@h")])
        try:

            async def back() -> bool:
                return bool(await raw.under(f"{routes}applications/"))

            await eventually(back, within=3)
        finally:
            await registrar.close()

    async def test_that_takes_the_name_is_told_and_outlasted(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        registrar = await make_registrar("a@h", applications=[running("db", "a@h")])
        async with registrar.subscribe(RegistrarConnected, RegistrarDisconnected) as events:
            async with kept_alive(raw) as lease:
                await raw.put(f"{routes}nodes/a@h", ONE_ROUTE, lease)
                lost = await next_event(events, within=3)
                assert isinstance(lost, RegistrarDisconnected)
                assert isinstance(lost.reason, TakenError)
                await eventually(lambda: registrar.state is State.LOST)
                with pytest.raises(ConnectionFailedError):
                    await asyncio.wait_for(registrar.register_application_route(running("web", "a@h")), 7)
                thief = await raw.get(f"{routes}nodes/a@h")
                assert thief
                assert (thief.value, thief.lease) == (ONE_ROUTE, lease)
                assert not await raw.under(f"{routes}applications/")  # ours do not stand under another's name
            assert isinstance(await next_event(events, within=3), RegistrarConnected)
            assert registrar.state is State.CONNECTED
            assert waiting(events) == []
        assert set(await raw.under(f"{routes}applications/")) == {f"{routes}applications/db/a@h"}
        again = await raw.get(f"{routes}nodes/a@h")
        assert again
        assert again.value == NO_ROUTES


class TestALeaseThatEnds:
    async def test_is_replaced_within_3_s(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        registrar = await make_registrar(
            "a@h", routes=[Route("h", 1)], applications=[running("web", "a@h")], lease_ttl=30
        )
        other = await make_registrar("b@h")
        before = await raw.under(routes)
        lease = before[f"{routes}nodes/a@h"].lease
        await settled(raw, registrar)
        async with registrar.subscribe() as own, other.subscribe() as seen:
            began = time.monotonic()
            await raw.revoke(lease)
            assert isinstance(await next_event(own, within=3), RegistrarDisconnected)
            connected = await next_event(own, within=3)
            assert time.monotonic() - began < 3
            assert isinstance(connected, RegistrarConnected)
            assert connected.info == registrar.info()
            for kind in (NodeLeft, NodeJoined):
                assert (await next_event(seen, kind)).name == "a@h"
            assert (await next_event(seen, ApplicationStarted)).name == "web"
        after = await raw.under(routes)
        assert {key: kv.value for key, kv in after.items()} == {key: kv.value for key, kv in before.items()}
        assert after[f"{routes}nodes/a@h"].lease == after[f"{routes}applications/web/a@h"].lease != lease
        assert registrar.stats.claims == 2

    async def test_takes_along_what_was_published_meanwhile(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        registrar = await make_registrar("a@h", applications=[running("old", "a@h")])
        await registrar.register_application_route(running("new", "a@h"))
        await registrar.unregister_application_route("old")
        await raw.revoke((await raw.under(f"{routes}nodes/"))[f"{routes}nodes/a@h"].lease)

        async def back() -> bool:
            return set(await raw.under(routes)) == {f"{routes}nodes/a@h", f"{routes}applications/new/a@h"}

        await eventually(back, within=3)

    @pytest.mark.parametrize("attempt", range(5))
    async def test_while_a_route_is_published(self, make_registrar: Make, raw: Raw, routes: str, attempt: int) -> None:
        """A call that met the end of the lease either was done and stays, or says that it was not."""
        registrar = await make_registrar("a@h")
        lease = (await raw.under(f"{routes}nodes/"))[f"{routes}nodes/a@h"].lease
        calls = [
            asyncio.create_task(registrar.register_application_route(running(f"app{n}", "a@h"))) for n in range(20)
        ]
        for _ in range(attempt * 3):
            await asyncio.sleep(0)
        await raw.revoke(lease)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        done = {f"{routes}applications/app{n}/a@h" for n, outcome in enumerate(outcomes) if outcome is None}
        assert all(outcome is None or isinstance(outcome, ConnectionFailedError) for outcome in outcomes)

        async def as_told() -> bool:
            return set(await raw.under(f"{routes}applications/")) == done and bool(await raw.under(f"{routes}nodes/"))

        await eventually(as_told, within=4)


class TestASilentEtcd:
    async def test_does_not_hold_up_close(self) -> None:
        async with LocalEtcd() as etcd:
            registrar = Registrar(short_options(etcd.endpoint, close_timeout=1.0), node="a@h")
            await registrar.__aenter__()
            with stopped(etcd):
                began = time.monotonic()
                await registrar.close()
                assert time.monotonic() - began < 1.5
            assert registrar.state is State.CLOSED

    async def test_does_not_hold_up_close_while_entering(self) -> None:
        async with LocalEtcd() as etcd:
            registrar = Registrar(short_options(etcd.endpoint, close_timeout=1.0))
            with stopped(etcd):
                entering = asyncio.create_task(registrar.register("a@h"))
                await eventually(lambda: registrar.state is State.CONNECTING)
                began = time.monotonic()
                await registrar.close()
                assert time.monotonic() - began < 1.5
                with pytest.raises(TerminatedError):
                    await entering

    async def test_in_the_middle_of_a_claim_does_not_hold_up_close(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with LocalEtcd() as etcd:
            registrar = Registrar(short_options(etcd.endpoint, close_timeout=1.0))
            with contextlib.ExitStack() as stack:

                def listed(*_: object) -> None:
                    stack.enter_context(stopped(etcd))  # the name is claimed, and the cluster was just read

                monkeypatch.setattr(registrar._view, "listed", listed)
                entering = asyncio.create_task(registrar.register("a@h"))
                await eventually(lambda: registrar.stats.listings)
                began = time.monotonic()
                await registrar.close()
                assert time.monotonic() - began < 1.5
                with pytest.raises(TerminatedError):
                    await entering

    @pytest.mark.parametrize("node", ["a@h", None])
    async def test_while_the_watch_is_opened_ends_entering_in_time(
        self, monkeypatch: pytest.MonkeyPatch, node: str | None
    ) -> None:
        async with LocalEtcd() as etcd:
            options = short_options(etcd.endpoint, dial_timeout=1, request_timeout=1, close_timeout=1, keep_alive=60)
            registrar = Registrar(options, node=node)
            listed = registrar._view.listed
            with contextlib.ExitStack() as stack:

                def stop_then_listed(*arguments: object) -> None:
                    stack.enter_context(stopped(etcd))
                    listed(*arguments)  # type: ignore[arg-type]  # wrong on purpose

                monkeypatch.setattr(registrar._view, "listed", stop_then_listed)
                try:
                    with pytest.raises(ConnectionFailedError):
                        await asyncio.wait_for(registrar.__aenter__(), 8)
                finally:
                    await registrar.close()

    async def test_is_told_to_who_publishes_within_request_timeout(self) -> None:
        async with LocalEtcd() as etcd:
            options = short_options(etcd.endpoint, request_timeout=1, close_timeout=0.5, lease_ttl=10)
            async with Registrar(options, node="a@h") as registrar:
                with stopped(etcd):
                    began = time.monotonic()
                    with pytest.raises(ConnectionFailedError, match=etcd.endpoint):
                        await registrar.register_application_route(running("web", "a@h"))
                    assert 0.9 < time.monotonic() - began < 1.5

                async def taken_back() -> bool:
                    async with Raw(etcd.endpoint) as raw:
                        return not await raw.under(f"services/ergo/cluster/{options.cluster}/routes/applications/")

                await eventually(taken_back)
                await registrar.register_application_route(running("web", "a@h", 3))

                async def known() -> bool:  # a publisher does not wait for a watch that is not back yet
                    with contextlib.suppress(NoRouteError):
                        return (await registrar.pick("web", include_self=True)).weight == 3
                    return False

                await eventually(known)

    async def test_shorter_than_the_lease_is_no_loss(self) -> None:
        async with LocalEtcd() as etcd, Registrar(short_options(etcd.endpoint, lease_ttl=6), node="a@h") as registrar:
            events = registrar.subscribe(RegistrarConnected, RegistrarDisconnected)
            with stopped(etcd):
                await eventually(lambda: registrar.state is State.SUSPENDED, within=6)
                assert await registrar.nodes() == []  # what is known can still be asked
            await eventually(lambda: registrar.state is State.CONNECTED, within=3)
            assert waiting(events) == []
            assert registrar.stats.claims == 1

    async def test_longer_than_the_lease_is_a_loss_told_once_and_made_good(self) -> None:
        async with LocalEtcd() as etcd:
            options = short_options(etcd.endpoint)
            async with Registrar(options, node="a@h", applications=[running("web", "a@h")]) as registrar:
                events = registrar.subscribe(RegistrarConnected, RegistrarDisconnected)
                with stopped(etcd):
                    lost = await next_event(events, within=TTL + 2)
                    assert isinstance(lost, RegistrarDisconnected)
                    assert registrar.state is State.LOST
                    assert await registrar.nodes() == []
                    await asyncio.sleep(0.5)
                    assert waiting(events) == []
                assert isinstance(await next_event(events, within=3), RegistrarConnected)
                async with Raw(etcd.endpoint) as raw:
                    prefix = f"services/ergo/cluster/{options.cluster}/routes/"
                    keys = await raw.under(prefix)
                    assert set(keys) == {f"{prefix}nodes/a@h", f"{prefix}applications/web/a@h"}
                    (lease,) = {kv.lease for kv in keys.values()}
                    assert await raw.leases() == {lease}


class TestTwoWithdrawalsAtOnce:
    async def test_while_etcd_is_silent_agree(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, routes: str
    ) -> None:
        """The second is not told that there is nothing to withdraw while the first may yet be taken back."""
        a = await make_registrar(
            "a@h", applications=[running("web", "a@h")], endpoints=(relay.endpoint,), lease_ttl=30, request_timeout=1
        )
        relay.black_hole()
        first = asyncio.create_task(a.unregister_application_route("web"))
        await eventually(a._runner.registration._claim.writing.locked)
        outcomes = await asyncio.gather(first, a.unregister_application_route("web"), return_exceptions=True)
        await relay.heal()
        assert all(isinstance(outcome, ConnectionFailedError) for outcome in outcomes), outcomes
        await eventually(lambda: a.state is State.CONNECTED)
        assert await raw.get(f"{routes}applications/web/a@h")


class TestAnEtcdThatRestarts:
    async def test_finds_everyone_as_before(self, tmp_path: Path) -> None:
        async with contextlib.AsyncExitStack() as stack:
            async with LocalEtcd(directory=tmp_path) as etcd:
                port = int(etcd.endpoint.rpartition(":")[2])
                options = short_options(etcd.endpoint, lease_ttl=10)
                a = await stack.enter_async_context(
                    Registrar(options, node="a@h", applications=[running("web", "a@h")])
                )
                observer = await stack.enter_async_context(Registrar(options))
                seen = observer.subscribe(NodeJoined, NodeLeft, ApplicationStopped)
            async with LocalEtcd(directory=tmp_path, port=port), Raw(options.endpoints[0]) as raw:
                await settled(raw, observer)
                await settled(raw, a)
                await eventually(lambda: a.state is State.CONNECTED, within=3)
                await eventually(lambda: observer.state is State.CONNECTED, within=3)
                assert waiting(seen) == []
                await a.register_application_route(running("db", "a@h"))
                await settled(raw, observer)
                assert (await observer.pick("db")).node == "a@h"
                await a.close()
                assert (await next_event(seen, NodeLeft)).name == "a@h"
                await observer.close()

    async def test_empty_is_filled_again(self, tmp_path: Path) -> None:
        """All of etcd's data is lost: the revisions begin anew, and what lives registers again."""
        async with contextlib.AsyncExitStack() as stack:
            async with LocalEtcd() as etcd, Raw(etcd.endpoint) as raw:
                port = int(etcd.endpoint.rpartition(":")[2])
                options = short_options(etcd.endpoint)
                prefix = f"services/ergo/cluster/{options.cluster}/routes/"
                for n in range(30):
                    await raw.put(f"services/ergo/config/global/n{n}", "x")
                await raw.put(f"{prefix}nodes/gone@h", NO_ROUTES)
                a = await stack.enter_async_context(Registrar(options, node="a@h"))
                observer = await stack.enter_async_context(Registrar(options))
                assert await observer.nodes() == ["a@h", "gone@h"]
                seen = observer.subscribe(NodeLeft)
            async with LocalEtcd(port=port), Raw(options.endpoints[0]) as raw:

                async def back() -> bool:
                    return set(await raw.under(f"{prefix}nodes/")) == {f"{prefix}nodes/a@h"}

                await eventually(back, within=4)
                await eventually(lambda: observer.stats.listings == 2)
                await settled(raw, observer)
                assert await observer.nodes() == ["a@h"]
                assert await observer.config() == {}
                assert "gone@h" in {event.name for event in waiting(seen)}
                await eventually(lambda: a.state is State.CONNECTED)
                await a.close()
                await observer.close()


class TestABrokenWatch:
    async def test_goes_on_where_it_was(self, make_registrar: Make, relay: FaultProxy, raw: Raw, routes: str) -> None:
        observer = await make_registrar(endpoints=(relay.endpoint,))
        async with observer.subscribe(NodeJoined, NodeLeft) as events:
            for n in range(5):
                await relay.refuse()
                await raw.put(f"{routes}nodes/n{n}@h", NO_ROUTES)
                await raw.delete(f"{routes}nodes/n{n}@h")
                await relay.heal()
                assert (await next_event(events, NodeJoined)).name == f"n{n}@h"
                assert (await next_event(events, NodeLeft)).name == f"n{n}@h"
        assert observer.stats.listings == 1
        await eventually(lambda: observer.state is State.CONNECTED)

    async def test_catches_up_with_revisions_too_large_for_one_message(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, routes: str
    ) -> None:
        """etcd sends what is more than some 1.5 MiB in fragments, which may end in the middle of a revision."""
        observer = await make_registrar(endpoints=(relay.endpoint,))
        async with observer.subscribe(NodeJoined) as events:
            await relay.refuse()
            value = encode_routes([Route("h" * 9000, 1)])
            await raw.put_many((f"{routes}nodes/n{n:04}@h", value) for n in range(800))
            await relay.heal()
            await settled(raw, observer)
            assert len(await observer.nodes()) == 800
            assert len(waiting(events)) == 800
        assert observer.stats.listings == 1

    async def test_behind_a_compaction_reads_anew_and_tells_the_difference(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, routes: str
    ) -> None:
        await raw.put(f"{routes}nodes/stays@h", NO_ROUTES)
        await raw.put(f"{routes}nodes/goes@h", NO_ROUTES)
        await raw.put(f"{routes}nodes/moves@h", NO_ROUTES)
        observer = await make_registrar(endpoints=(relay.endpoint,))
        async with observer.subscribe() as events:
            await relay.refuse()
            await raw.put(f"{routes}nodes/flash@h", NO_ROUTES)
            await raw.delete(f"{routes}nodes/flash@h")
            await raw.delete(f"{routes}nodes/goes@h")
            await raw.put(f"{routes}nodes/moves@h", encode_routes([Route("h", 2)]))
            await raw.put(f"{routes}nodes/comes@h", NO_ROUTES)
            await raw.put(f"{routes}nodes/stays@h", NO_ROUTES)
            await raw.put(f"{routes}nodes/stays@h", NO_ROUTES)
            await raw.compact(await raw.revision())
            await relay.heal()
            await eventually(lambda: observer.stats.listings == 2)
            await settled(raw, observer)
            told = [e for e in waiting(events) if isinstance(e, NodeJoined | NodeLeft)]
        assert {(type(e), e.name) for e in told} == {
            (NodeLeft, "goes@h"),
            (NodeJoined, "moves@h"),
            (NodeJoined, "comes@h"),
        }
        assert len(told) == 3
        assert await observer.nodes() == ["comes@h", "moves@h", "stays@h"]

    async def test_of_an_idle_observer_that_is_mended_at_once_is_not_news(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Silence is not loss: that nothing happened for a while before the break does not make it one."""
        observer = await make_registrar(endpoints=(relay.endpoint,))
        then = observer._runner._clock
        monkeypatch.setattr(observer._runner, "_clock", lambda: then() + 3600)  # an idle hour goes by
        async with observer.subscribe(RegistrarConnected, RegistrarDisconnected) as events:
            await relay.refuse()
            await eventually(lambda: observer.state is not State.CONNECTED)
            await relay.heal()
            await eventually(lambda: observer.state is State.CONNECTED)
            assert waiting(events) == []

    async def test_of_an_observer_for_longer_than_a_lease_is_told_once(
        self, make_registrar: Make, relay: FaultProxy
    ) -> None:
        observer = await make_registrar(endpoints=(relay.endpoint,))
        async with observer.subscribe(RegistrarConnected, RegistrarDisconnected) as events:
            await relay.refuse()
            lost = await next_event(events, within=TTL + 8)
            assert isinstance(lost, RegistrarDisconnected)
            assert observer.state is State.LOST
            await relay.heal()
            assert isinstance(await next_event(events), RegistrarConnected)
            assert waiting(events) == []

    async def test_of_a_member_leaves_its_registration(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, routes: str
    ) -> None:
        member = await make_registrar("a@h", endpoints=(relay.endpoint,), lease_ttl=10)
        before = await raw.get(f"{routes}nodes/a@h")
        async with member.subscribe(RegistrarConnected, RegistrarDisconnected, NodeJoined) as events:
            for n in range(3):
                await relay.refuse()
                await raw.put(f"{routes}nodes/n{n}@h", NO_ROUTES)
                await relay.heal()
                assert (await next_event(events)).name == f"n{n}@h"
        after = await raw.get(f"{routes}nodes/a@h")
        assert before
        assert after
        assert after.lease == before.lease
        assert member.stats.claims == 1


class TestSuspicion:
    GRACE = 1.0

    async def appear(self, raw: Raw, routes: str, node: str) -> int:
        lease = await raw.grant(30)
        await raw.put(f"{routes}nodes/{node}", ONE_ROUTE, lease)
        await raw.put(f"{routes}applications/web/{node}", encode_application_route(running("web", node, 50)), lease)
        return lease

    async def test_of_a_node_that_vanished_keeps_it_behind_the_healthy(
        self, make_registrar: Make, raw: Raw, routes: str
    ) -> None:
        lease = await self.appear(raw, routes, "s@h")
        await make_registrar("b@h", applications=[running("web", "b@h")])
        observer = await make_registrar(suspect_grace=self.GRACE)
        async with observer.subscribe() as events:
            await raw.revoke(lease)
            suspected = await next_event(events)
            began = time.monotonic()
            assert isinstance(suspected, NodeSuspected)
            assert suspected.name == "s@h"
            assert await observer.nodes() == ["b@h", "s@h"]
            assert await observer.resolve("s@h")
            assert [r.node for r in await observer.resolve_application("web")] == ["b@h", "s@h"]
            left = [await next_event(events), await next_event(events)]
            assert self.GRACE - 0.1 < time.monotonic() - began < self.GRACE + 1
        assert [(type(e), e.revision) for e in left] == [(NodeLeft, 0), (ApplicationStopped, 0)]
        assert await observer.nodes() == ["b@h"]
        assert [r.node for r in await observer.resolve_application("web")] == ["b@h"]

    async def test_ends_when_the_node_is_back(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        lease = await self.appear(raw, routes, "s@h")
        observer = await make_registrar(suspect_grace=30)
        async with observer.subscribe() as events:
            await raw.revoke(lease)
            assert isinstance(await next_event(events), NodeSuspected)
            lease = await self.appear(raw, routes, "s@h")
            assert isinstance(await next_event(events), NodeRecovered)
            await settled(raw, observer)
            assert {type(e).__name__ for e in waiting(events)} <= {"ConfigUpdate"}
        await raw.revoke(lease)

    async def test_is_not_of_a_node_that_said_good_bye(self, make_registrar: Make) -> None:
        a = await make_registrar("a@h", applications=[running("web", "a@h")])
        observer = await make_registrar(suspect_grace=30)
        async with observer.subscribe() as events:
            await a.close()
            kinds = {type(await next_event(events)), type(await next_event(events))}
        assert kinds == {NodeLeft, ApplicationStopped}
        assert await observer.nodes() == []

    async def test_is_not_of_an_application_that_its_owner_withdrew(self, make_registrar: Make) -> None:
        a = await make_registrar("a@h", applications=[running("web", "a@h")])
        observer = await make_registrar(suspect_grace=30)
        async with observer.subscribe() as events:
            await a.unregister_application_route("web")
            assert isinstance(await next_event(events), ApplicationStopped)

    async def test_stands_still_while_there_is_no_session(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, routes: str
    ) -> None:
        lease = await self.appear(raw, routes, "s@h")
        grace = 2.5  # longer than it takes to notice the silence
        member = await make_registrar("a@h", endpoints=(relay.endpoint,), suspect_grace=grace)
        async with member.subscribe() as events:
            await raw.revoke(lease)
            await next_event(events, NodeSuspected)
            await relay.refuse()
            await next_event(events, RegistrarDisconnected, within=TTL + 4)
            await asyncio.sleep(grace)
            assert await member.nodes() == ["s@h"]
            assert not [e for e in waiting(events) if isinstance(e, NodeLeft)]
            await relay.heal()
            await next_event(events, NodeLeft, within=15)
        assert await member.nodes() == []
