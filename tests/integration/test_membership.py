"""A process joins under a name, holds it, and leaves: as it looks in etcd, and to others."""

import asyncio
import os
import signal
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable

import pytest

from ergo_registrar import (
    ApplicationRoute,
    ApplicationStopped,
    NodeJoined,
    NodeLeft,
    NoRouteError,
    Options,
    Registrar,
    RegistrarConnected,
    RegistrarError,
    Route,
    State,
    TakenError,
    ValidationError,
    Version,
)
from tests.integration.support import (
    NO_ROUTES,
    ONE_ROUTE,
    TTL,
    WEB_ON_NODE1,
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

ROUTE = Route("localhost", 15000, False, Version("EHS", "R1", "", "MIT"), Version("ENP", "R1", "abc1234", "MIT"))


class TestJoining:
    async def test_puts_what_a_go_node_would_put_under_one_lease(
        self, make_registrar: Make, raw: Raw, routes: str
    ) -> None:
        web = ApplicationRoute("node1@host", "web-server", 100, 3, 2)
        await make_registrar("node1@host", routes=[ROUTE], applications=[web])
        keys = await raw.under(routes)
        assert {key: kv.value for key, kv in keys.items()} == {
            f"{routes}nodes/node1@host": ONE_ROUTE,
            f"{routes}applications/web-server/node1@host": WEB_ON_NODE1,
        }
        (lease,) = {kv.lease for kv in keys.values()}
        assert await raw.ttl(lease) == TTL

    async def test_without_routes_puts_an_empty_list(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        await make_registrar("a@h")
        assert {key: kv.value for key, kv in (await raw.under(routes)).items()} == {f"{routes}nodes/a@h": NO_ROUTES}

    async def test_all_keys_appear_in_one_step(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        await make_registrar("a@h", applications=[running(f"app{n}", "a@h") for n in range(50)])
        assert len({kv.created for kv in (await raw.under(routes)).values()}) == 1

    async def test_more_applications_than_one_transaction_takes(
        self, make_registrar: Make, raw: Raw, routes: str
    ) -> None:
        watching = await make_registrar()
        member = await make_registrar("a@h", applications=[running(f"app{n}", "a@h", n) for n in range(333)])
        keys = await raw.under(f"{routes}applications/")
        assert len(keys) == 333
        assert {kv.lease for kv in keys.values()} == {kv.lease for kv in (await raw.under(f"{routes}nodes/")).values()}
        await settled(raw, watching)
        for n in (0, 99, 100, 101, 332):
            assert (await watching.pick(f"app{n}")).weight == n
            assert (await member.pick(f"app{n}", include_self=True)).weight == n

    async def test_what_it_joined_is_known_when_it_returns(self, make_registrar: Make) -> None:
        await make_registrar("a@h", routes=[ROUTE], applications=[running("web", "a@h")])
        b = await make_registrar("b@h", routes=[Route("b", 2)], applications=[running("web", "b@h")])
        assert await b.nodes() == ["a@h"]
        assert await b.resolve("a@h") == [ROUTE]
        assert (await b.pick("web")).node == "a@h"
        assert await b.resolve("b@h") == [Route("b", 2)]  # its own is visible too
        assert {r.node for r in await b.resolve_application("web", include_self=True)} == {"a@h", "b@h"}
        assert b.state is State.CONNECTED

    async def test_others_are_told(self, make_registrar: Make) -> None:
        observer = await make_registrar()
        async with observer.subscribe(NodeJoined) as events:
            a = await make_registrar("a@h", routes=[ROUTE])
            joined = await next_event(events)
        assert (joined.name, joined.routes) == ("a@h", (ROUTE,))
        assert 0 < joined.revision <= a.revision

    async def test_it_is_not_told_of_itself(self, registrar_options: Options, raw: Raw) -> None:
        registrar = Registrar(registrar_options, node="a@h", applications=[running("web", "a@h")])
        events = registrar.subscribe()
        async with registrar:
            await registrar.register_application_route(running("db", "a@h"))
            await registrar.unregister_application_route("db")
            assert [type(event) for event in waiting(events)] == [RegistrarConnected]

    async def test_clusters_do_not_see_each_other(self, make_registrar: Make, raw: Raw) -> None:
        here = await make_registrar("a@h", applications=[running("web", "a@h")])
        there = await make_registrar("a@h", cluster=short_options("h:1").cluster)
        assert await there.nodes() == []
        with pytest.raises(NoRouteError, match=there._options.cluster):
            await there.pick("web", include_self=True)
        async with here.subscribe(NodeLeft) as events:
            await there.close()
            await settled(raw, here)
            assert waiting(events) == []

    async def test_a_cluster_whose_name_begins_like_ours_is_another(
        self, make_registrar: Make, registrar_options: Options, raw: Raw
    ) -> None:
        here = await make_registrar("a@h")
        await make_registrar("b@h", cluster=registrar_options.cluster + "2")
        await settled(raw, here)
        assert await here.nodes() == []


class TestATakenName:
    async def test_is_refused_at_once_with_the_holders_time_left(
        self, make_registrar: Make, registrar_options: Options
    ) -> None:
        await make_registrar("a@h", lease_ttl=30)
        began = time.monotonic()
        with pytest.raises(TakenError) as refused:
            await make_registrar("a@h")
        assert time.monotonic() - began < 1
        assert refused.value.remaining_ttl is not None
        assert 25 <= refused.value.remaining_ttl <= 30
        assert refused.value.node == "a@h"
        for word in ("'a@h'", repr(registrar_options.cluster), f"{refused.value.remaining_ttl:g} s", "claim_timeout"):
            assert word in str(refused.value)

    async def test_leaves_the_holder_alone(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        await make_registrar("a@h", routes=[ROUTE])
        before = await raw.get(f"{routes}nodes/a@h")
        leases = await raw.leases()
        with pytest.raises(TakenError):
            await make_registrar("a@h", applications=[running("web", "a@h")])
        after = await raw.get(f"{routes}nodes/a@h")
        assert before
        assert after
        assert (after.value, after.lease, after.modified) == (before.value, before.lease, before.modified)
        assert len(await raw.under(routes)) == 1
        assert await raw.leases() <= leases

    async def test_without_a_lease_says_that_it_will_not_go_away(
        self, make_registrar: Make, raw: Raw, routes: str
    ) -> None:
        await raw.put(f"{routes}nodes/a@h", NO_ROUTES)
        with pytest.raises(TakenError, match="no lease") as refused:
            await make_registrar("a@h")
        assert refused.value.remaining_ttl is None
        await raw.delete_prefix(routes)

    async def test_of_a_crashed_predecessor_is_taken_over(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        lease = await raw.grant(TTL)
        await raw.put(f"{routes}nodes/a@h", ONE_ROUTE, lease)
        await raw.put(f"{routes}applications/old/a@h", NO_ROUTES, lease)
        began = time.monotonic()
        await make_registrar("a@h", routes=[ROUTE], claim_timeout=10)
        assert time.monotonic() - began < TTL + 2
        keys = await raw.under(routes)
        assert set(keys) == {f"{routes}nodes/a@h"}
        assert keys[f"{routes}nodes/a@h"].lease not in (0, lease)

    async def test_of_a_live_holder_is_waited_for_no_longer_than_claim_timeout(
        self, make_registrar: Make, raw: Raw, routes: str
    ) -> None:
        async with kept_alive(raw) as lease:
            await raw.put(f"{routes}nodes/a@h", NO_ROUTES, lease)
            began = time.monotonic()
            with pytest.raises(TakenError):
                await make_registrar("a@h", claim_timeout=0.7)
            assert 0.6 < time.monotonic() - began < 2

    async def test_can_be_followed_by_another_name(self, make_registrar: Make, registrar_options: Options) -> None:
        a = await make_registrar("a@h")
        registrar = Registrar(registrar_options)
        with pytest.raises(TakenError):
            await registrar.register("a@h")
        assert registrar.state is State.NEW
        await registrar.register("b@h")
        try:
            assert await registrar.nodes() == ["a@h"]
            await eventually(a.nodes)
        finally:
            await registrar.close()

    async def test_goes_to_one_of_many_who_want_it(self, registrar_options: Options, raw: Raw, routes: str) -> None:
        candidates = [Registrar(registrar_options) for _ in range(8)]
        outcomes = await asyncio.gather(*(r.register("a@h") for r in candidates), return_exceptions=True)
        try:
            assert outcomes.count(None) == 1
            assert all(isinstance(outcome, TakenError) for outcome in outcomes if outcome is not None)
            assert len(await raw.under(f"{routes}nodes/")) == 1
        finally:
            for candidate in candidates:
                await candidate.close()


class TestLeaving:
    async def test_takes_the_keys_away_at_once_and_says_good_bye(
        self, make_registrar: Make, raw: Raw, routes: str
    ) -> None:
        a = await make_registrar("a@h", routes=[ROUTE], applications=[running("web", "a@h")], lease_ttl=30)
        observer = await make_registrar()
        lease = (await raw.under(f"{routes}nodes/"))[f"{routes}nodes/a@h"].lease
        async with observer.subscribe(NodeLeft, ApplicationStopped) as events:
            await a.close()
            keys = await raw.under(routes)
            assert set(keys) == {f"{routes}leaving/a@h"}
            marker = keys[f"{routes}leaving/a@h"]
            assert marker.value == b""
            assert marker.lease not in (0, lease)
            assert lease not in await raw.leases()
            left = [await next_event(events, within=1), await next_event(events, within=1)]
        assert {type(event) for event in left} == {NodeLeft, ApplicationStopped}
        assert await observer.nodes() == []
        with pytest.raises(NoRouteError, match="no node has published it"):
            await observer.pick("web")

    async def test_the_block_leaves_too(self, registrar_options: Options, raw: Raw, routes: str) -> None:
        with pytest.raises(ZeroDivisionError):
            async with Registrar(registrar_options, node="a@h") as registrar:
                assert await raw.under(f"{routes}nodes/")
                raise ZeroDivisionError
        assert not await raw.under(f"{routes}nodes/")
        assert registrar.state is State.CLOSED

    async def test_one_can_come_back_under_the_name_at_once(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        observer = await make_registrar()
        async with observer.subscribe(NodeJoined, NodeLeft) as events:
            for _ in range(3):
                a = await make_registrar("a@h")
                assert set(await raw.under(f"{routes}nodes/")) == {f"{routes}nodes/a@h"}
                await a.close()
            kinds = [type(await next_event(events)) for _ in range(6)]
        assert kinds == [NodeJoined, NodeLeft] * 3

    async def test_leaves_a_successor_alone(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        a = await make_registrar("a@h", routes=[ROUTE], applications=[running("web", "a@h")])
        async with kept_alive(raw) as lease:  # someone took the name by force
            await raw.put(f"{routes}nodes/a@h", NO_ROUTES, lease)
            await a.close()
            assert set(await raw.under(f"{routes}nodes/")) == {f"{routes}nodes/a@h"}
            assert not await raw.under(f"{routes}leaving/")

    async def test_a_killed_process_is_gone_when_its_lease_ends(
        self, make_registrar: Make, registrar_options: Options, etcd: str
    ) -> None:
        observer = await make_registrar()
        program = textwrap.dedent(f"""
            import asyncio
            from ergo_registrar import *
            async def main():
                options = Options(endpoints=({etcd!r},), cluster={registrar_options.cluster!r}, lease_ttl={TTL})
                app = ApplicationRoute("victim@h", "web", 1, 3, 2)
                async with Registrar(options, node="victim@h", applications=[app]):
                    await asyncio.sleep(60)
            asyncio.run(main())
        """)
        async with observer.subscribe(NodeJoined, NodeLeft, ApplicationStopped) as events:
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
            try:
                assert (await next_event(events, NodeJoined, within=15)).name == "victim@h"
            finally:
                os.kill(process.pid, signal.SIGKILL)
                await process.wait()
            killed = time.monotonic()
            left = [await next_event(events, within=TTL + 2) for _ in range(2)]
            assert time.monotonic() - killed < TTL + 1.5
        assert {type(event) for event in left} == {NodeLeft, ApplicationStopped}
        assert len({event.revision for event in left}) == 1


class TestAnObserver:
    async def test_claims_nothing(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        leases = await raw.leases()
        observer = await make_registrar()
        assert await raw.under(routes) == {}
        assert await raw.leases() <= leases
        assert observer.state is State.CONNECTED
        assert "observer" in repr(observer)

    async def test_becomes_a_member(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        registrar = await make_registrar()
        other = await make_registrar("b@h")
        await eventually(registrar.nodes)
        await raw.put(f"services/ergo/cluster/{registrar._options.cluster}/config/a@h/item", "mine")
        try:
            async with registrar.subscribe() as events, other.subscribe(NodeJoined) as seen:
                await registrar.register("a@h", routes=[ROUTE])
                assert (await next_event(seen)).name == "a@h"
                assert await registrar.config_item("item") == "mine"  # a level that only a node has
                assert await registrar.nodes() == ["b@h"]
                await registrar.register_application_route(running("web", "a@h"))
                told = waiting(events)
            assert [type(e).__name__ for e in told] == ["ConfigUpdate", "RegistrarConnected"]
        finally:
            await raw.delete_prefix(f"services/ergo/cluster/{registrar._options.cluster}/config/")

    @pytest.mark.parametrize("attempt", range(3))
    async def test_that_becomes_a_member_is_not_told_of_itself(self, make_registrar: Make, attempt: int) -> None:
        registrar = await make_registrar()
        async with registrar.subscribe() as events:
            await registrar.register("a@h", applications=[running(f"app{n}", "a@h") for n in range(200)])
            assert [type(event) for event in waiting(events)] == [RegistrarConnected]

    async def test_whose_registration_fails_goes_on(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        registrar = await make_registrar()
        await make_registrar("a@h")
        with pytest.raises(TakenError):
            await registrar.register("a@h")
        await settled(raw, registrar)
        assert registrar.state is State.CONNECTED
        async with registrar.subscribe(NodeJoined) as events:
            await make_registrar("b@h")
            await next_event(events)
        assert await registrar.nodes() == ["a@h", "b@h"]
        await registrar.register("c@h")
        assert set(await raw.under(f"{routes}nodes/")) == {f"{routes}nodes/{n}@h" for n in "abc"}

    async def test_cannot_publish(self, make_registrar: Make) -> None:
        observer = await make_registrar()
        with pytest.raises(RegistrarError, match="register"):
            await observer.register_application_route(running("web", "a@h"))
        with pytest.raises(RegistrarError, match="register"):
            await observer.unregister_application_route("web")


class TestRefusals:
    async def test_a_member_cannot_register_again(self, make_registrar: Make) -> None:
        registrar = await make_registrar("a@h")
        with pytest.raises(RegistrarError, match="already, as a@h"):
            await registrar.register("b@h")
        with pytest.raises(RegistrarError, match="already"):
            await registrar.__aenter__()
        assert registrar.state is State.CONNECTED

    async def test_two_registrations_at_once_are_one(self, registrar_options: Options, raw: Raw, routes: str) -> None:
        registrar = Registrar(registrar_options)
        outcomes = await asyncio.gather(registrar.register("a@h"), registrar.register("b@h"), return_exceptions=True)
        try:
            assert outcomes.count(None) == 1
            (refused,) = (outcome for outcome in outcomes if outcome is not None)
            assert isinstance(refused, RegistrarError)
            assert len(await raw.under(f"{routes}nodes/")) == 1
        finally:
            await registrar.close()

    @pytest.mark.parametrize(
        ("node", "given", "field"),
        [
            ("", {}, "node"),
            ("a/b", {}, "node"),
            ("*", {}, "node"),
            ("a\n", {}, "node"),
            ("é" * 128, {}, "node"),
            (7, {}, "node"),
            ("a@h", {"routes": [Route("h", 70_000)]}, "port"),
            ("a@h", {"routes": [Route("h", -1)]}, "port"),
            ("a@h", {"routes": [Route("h" * 65_536, 1)]}, "host"),
            ("a@h", {"routes": ["h:1"]}, "route"),
            ("a@h", {"routes": [None]}, "route"),
            ("a@h", {"applications": [running("web", "b@h")]}, "application.node"),
            ("a@h", {"applications": [running("a/b", "a@h")]}, "application.name"),
            ("a@h", {"applications": [running("web", "a@h", 2**63)]}, "weight"),
            ("a@h", {"applications": [running("web", "a@h"), running("web", "a@h")]}, "applications"),
            ("a@h", {"applications": ["web"]}, "application"),
            ("a@h", {"applications": [ApplicationRoute("a@h", "web", 1, 3, 2, tags=("x",))]}, "tags"),
        ],
    )
    async def test_bad_input_is_named_before_anything_is_sent(
        self, registrar_options: Options, raw: Raw, node: str, given: dict[str, list[object]], field: str
    ) -> None:
        registrar = Registrar(registrar_options)
        with pytest.raises(ValidationError) as refused:
            await registrar.register(node, **given)  # type: ignore[arg-type]  # wrong on purpose
        assert isinstance(refused.value, ValueError)
        assert field in refused.value.field
        assert refused.value.field in str(refused.value)
        assert refused.value.rule in str(refused.value)
        assert registrar.state is State.NEW
        assert not await raw.under(f"services/ergo/cluster/{registrar_options.cluster}/")
        await registrar.close()

    async def test_proxies_are_refused_as_in_the_reference(self, make_registrar: Make) -> None:
        registrar = await make_registrar("a@h")
        from ergo_registrar import UnsupportedError

        with pytest.raises(UnsupportedError, match="b@h"):
            await registrar.register_proxy("b@h")
        with pytest.raises(UnsupportedError, match="b@h"):
            await registrar.unregister_proxy("b@h")
        with pytest.raises(NoRouteError, match="b@h"):
            await registrar.resolve_proxy("b@h")


class TestAboutItself:
    async def test_info_and_version(self, make_registrar: Make, etcd: str) -> None:
        registrar = await make_registrar("a@h")
        info = registrar.info()
        assert info.server == etcd
        assert info.version == registrar.version()
        assert registrar.version().name
        assert (info.embedded_server, info.support_config, info.support_event) == (False, True, True)
        assert (info.support_register_proxy, info.support_register_application) == (False, True)
        assert registrar.resolver is registrar
        assert "'a@h'" in repr(registrar)

    async def test_counts_what_happened(self, make_registrar: Make) -> None:
        registrar = await make_registrar("a@h")
        stats = registrar.stats
        assert (stats.listings, stats.watch_streams, stats.claims, stats.connections_replaced) == (1, 1, 1, 0)
        stats.listings = 99
        assert registrar.stats.listings == 1
        await eventually(lambda: registrar.stats.lease_renewals > 0)
