"""Who is there and what runs where: what a member of the cluster knows, and what it is told, as the cluster changes."""

import asyncio
import collections
import random
from collections.abc import Awaitable, Callable

import pytest

from ergo_registrar import (
    ApplicationLoaded,
    ApplicationMode,
    ApplicationRoute,
    ApplicationStarted,
    ApplicationState,
    ApplicationStopped,
    ApplicationStopping,
    ApplicationUpdated,
    NodeJoined,
    NodeLeft,
    NoRouteError,
    Options,
    Registrar,
    Route,
    ValidationError,
    Version,
)
from ergo_registrar.core.edf import encode_application_route, encode_routes
from tests.integration.support import (
    NO_ROUTES,
    WEB_ON_NODE1,
    Raw,
    eventually,
    next_event,
    running,
    settled,
    take,
    waiting,
)

Make = Callable[..., Awaitable[Registrar]]


class TestAnApplication:
    async def test_is_told_as_it_goes_through_its_states(self, make_registrar: Make) -> None:
        node = await make_registrar("a@h")
        other = await make_registrar("b@h")
        async with other.subscribe() as events:
            for state in (ApplicationState.LOADED, ApplicationState.RUNNING, ApplicationState.STOPPING):
                await node.register_application_route(ApplicationRoute("a@h", "web", 5, 3, state))
            await node.unregister_application_route("web")
            told = await take(events, 4)
        assert [type(event) for event in told] == [
            ApplicationLoaded,
            ApplicationStarted,
            ApplicationStopping,
            ApplicationStopped,
        ]
        for event in told:
            assert (event.name, event.node, event.weight, event.mode) == ("web", "a@h", 5, ApplicationMode.PERMANENT)
        assert told[-1].route.state is ApplicationState.STOPPING  # the last known
        revisions = [event.revision for event in told]
        assert revisions == sorted(set(revisions))

    async def test_that_changes_its_weight_is_updated(self, make_registrar: Make) -> None:
        node = await make_registrar("a@h", applications=[running("web", "a@h", 1)])
        other = await make_registrar("b@h")
        async with other.subscribe() as events:
            await node.register_application_route(running("web", "a@h", 9))
            updated = await next_event(events)
        assert isinstance(updated, ApplicationUpdated)
        assert (updated.weight, updated.previous) == (9, running("web", "a@h", 1))

    async def test_written_again_as_it_is_says_nothing(self, make_registrar: Make, raw: Raw) -> None:
        node = await make_registrar("a@h", applications=[running("web", "a@h")])
        other = await make_registrar("b@h")
        async with other.subscribe() as events:
            await node.register_application_route(running("web", "a@h"))
            await settled(raw, other)
            assert [e for e in waiting(events) if type(e).__name__ != "ConfigUpdate"] == []

    async def test_is_known_here_too_when_the_call_returns(self, make_registrar: Make) -> None:
        node = await make_registrar("a@h")
        for weight in range(20):
            await node.register_application_route(running("web", "a@h", weight))
            assert (await node.pick("web", include_self=True)).weight == weight
        await node.unregister_application_route("web")
        with pytest.raises(NoRouteError):
            await node.pick("web", include_self=True)

    async def test_withdrawn_twice_is_no_error(self, make_registrar: Make) -> None:
        node = await make_registrar("a@h", applications=[running("web", "a@h")])
        await node.unregister_application_route("web")
        await node.unregister_application_route("web")
        await node.unregister_application_route("never")

    async def test_stands_under_the_nodes_lease(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        node = await make_registrar("node1@host")
        await node.register_application_route(ApplicationRoute("node1@host", "web-server", 100, 3, 2))
        keys = await raw.under(routes)
        assert keys[f"{routes}applications/web-server/node1@host"].value == WEB_ON_NODE1
        assert len({kv.lease for kv in keys.values()}) == 1

    async def test_published_by_many_tasks_at_once(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        node = await make_registrar("a@h")
        await asyncio.gather(*(node.register_application_route(running(f"app{n}", "a@h", n)) for n in range(40)))
        assert len(await raw.under(f"{routes}applications/")) == 40

    @pytest.mark.parametrize("layout", ["v3.1", "tags", "tags+version"])
    async def test_in_every_layout_is_read_by_all(self, make_registrar: Make, layout: str) -> None:
        tags = None if layout == "v3.1" else ("blue", "canary")
        version = Version("web", "1.2", "abc", "MIT") if layout == "tags+version" else Version()
        route = ApplicationRoute("a@h", "web", 1, 3, 2, tags, version)
        await make_registrar("a@h", applications=[route], application_route_layout=layout)
        other = await make_registrar("b@h")
        assert await other.resolve_application("web") == [route]

    @pytest.mark.parametrize(
        ("route", "field"),
        [
            (running("web", "other@h"), "application.node"),
            (running("", "a@h"), "application.name"),
            (running("web", "a@h", 2**63), "application.weight"),
            (running("web", "a@h", state=2**31), "application.state"),
            (None, "application"),
        ],
    )
    async def test_that_breaks_a_rule_is_refused(
        self, make_registrar: Make, raw: Raw, routes: str, route: ApplicationRoute, field: str
    ) -> None:
        node = await make_registrar("a@h")
        with pytest.raises(ValidationError) as refused:
            await node.register_application_route(route)
        assert refused.value.field == field
        assert not await raw.under(f"{routes}applications/")


class TestPicking:
    async def publish(self, make_registrar: Make, weights: dict[str, int]) -> Registrar:
        for node, weight in weights.items():
            await make_registrar(node, applications=[running("web", node, weight)])
        return await make_registrar("picker@h")

    async def test_follows_the_weights_exactly(self, make_registrar: Make) -> None:
        picker = await self.publish(make_registrar, {"a@h": 5, "b@h": 3, "c@h": 2})
        picked = collections.Counter([(await picker.pick("web")).node for _ in range(100)])
        assert picked == {"a@h": 50, "b@h": 30, "c@h": 20}

    async def test_resolving_begins_with_the_pick_and_gives_all(self, make_registrar: Make) -> None:
        picker = await self.publish(make_registrar, {"a@h": 3, "b@h": 1})
        found = [[route.node for route in await picker.resolve_application("web")] for _ in range(8)]
        assert collections.Counter(nodes[0] for nodes in found) == {"a@h": 6, "b@h": 2}
        assert all(sorted(nodes) == ["a@h", "b@h"] for nodes in found)

    async def test_zero_counts_as_one_and_negative_never(self, make_registrar: Make) -> None:
        picker = await self.publish(make_registrar, {"a@h": 0, "b@h": 1, "c@h": -1})
        picked = collections.Counter([(await picker.pick("web")).node for _ in range(20)])
        assert picked == {"a@h": 10, "b@h": 10}
        assert {r.node for r in await picker.resolve_application("web")} == {"a@h", "b@h"}

    async def test_of_nothing_but_negative_ones_says_so(self, make_registrar: Make) -> None:
        picker = await self.publish(make_registrar, {"a@h": -1})
        with pytest.raises(NoRouteError, match="negative weight"):
            await picker.pick("web")
        with pytest.raises(NoRouteError, match="negative weight"):
            await picker.resolve_application("web")

    async def test_leaves_the_own_one_out_unless_asked(self, make_registrar: Make) -> None:
        node = await make_registrar("a@h", applications=[running("web", "a@h")])
        with pytest.raises(NoRouteError, match="include_self"):
            await node.pick("web")
        assert (await node.pick("web", include_self=True)).node == "a@h"
        await make_registrar("b@h", applications=[running("web", "b@h")])
        await eventually(node.nodes)
        assert [r.node for r in await node.resolve_application("web")] == ["b@h"]
        picked = {(await node.pick("web", include_self=True)).node for _ in range(4)}
        assert picked == {"a@h", "b@h"}

    async def test_prefers_what_runs(self, make_registrar: Make) -> None:
        await make_registrar("a@h", applications=[running("web", "a@h", 100, ApplicationState.LOADED)])
        await make_registrar("b@h", applications=[running("web", "b@h", 1)])
        picker = await make_registrar()
        for _ in range(5):
            assert [r.node for r in await picker.resolve_application("web")] == ["b@h", "a@h"]

    async def test_follows_a_weight_that_changes(self, make_registrar: Make, raw: Raw) -> None:
        a = await make_registrar("a@h", applications=[running("web", "a@h", 1)])
        await make_registrar("b@h", applications=[running("web", "b@h", 1)])
        picker = await make_registrar()
        await a.register_application_route(running("web", "a@h", -5))
        await settled(raw, picker)
        assert {(await picker.pick("web")).node for _ in range(6)} == {"b@h"}


class TestResolving:
    async def test_a_node_that_is_not_there_names_those_that_are(self, make_registrar: Make) -> None:
        await make_registrar("b@h")
        node = await make_registrar("a@h")
        with pytest.raises(NoRouteError, match=r"'nobody@h'.*b@h") as missing:
            await node.resolve("nobody@h")
        assert isinstance(missing.value, LookupError)

    @pytest.mark.parametrize("name", ["", "a/b", "a\0", None, 3])
    async def test_what_cannot_be_a_name_is_refused(self, make_registrar: Make, name: str) -> None:
        node = await make_registrar("a@h")
        for call in (node.resolve, node.resolve_application, node.pick):
            with pytest.raises(ValidationError):
                await call(name)
        with pytest.raises(ValidationError):
            await node.unregister_application_route(name)

    async def test_go_s_nil_routes_are_no_routes(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        await raw.put(f"{routes}nodes/go@h", b"ggAhnYMAHSNlcmdvLnNlcnZpY2VzL2VyZ28vZ2VuL1JvdXRl/w==")
        observer = await make_registrar()
        assert await observer.resolve("go@h") == []

    async def test_a_node_that_changes_its_routes_is_told_again(
        self, make_registrar: Make, raw: Raw, routes: str
    ) -> None:
        await raw.put(f"{routes}nodes/go@h", NO_ROUTES)
        observer = await make_registrar()
        async with observer.subscribe() as events:
            revision = await raw.put(f"{routes}nodes/go@h", encode_routes([Route("h", 7)]))
            joined = await next_event(events)
        assert joined == NodeJoined(revision=revision, name="go@h", routes=(Route("h", 7),))
        assert await observer.resolve("go@h") == [Route("h", 7)]


class TestWhatDoesNotBelongThere:
    async def test_is_skipped_counted_and_logged_once_per_key(
        self, make_registrar: Make, raw: Raw, routes: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        await raw.put(f"{routes}nodes/odd@h", b"\xff\xfe not base64")
        await raw.put(f"{routes}nodes/a/b/c", NO_ROUTES)
        await raw.put(f"{routes}something/else", b"x")
        await raw.put(f"{routes}applications/web/odd@h", WEB_ON_NODE1)  # of another node
        await raw.put(f"{routes}nodes/good@h", NO_ROUTES)
        observer = await make_registrar()
        assert await observer.nodes() == ["good@h"]
        assert observer.stats.keys_skipped == 4
        for _ in range(3):
            await raw.put(f"{routes}nodes/odd@h", b"AAAA")
        await settled(raw, observer)
        assert observer.stats.keys_skipped == 7
        logged = [
            r.getMessage() for r in caplog.records if r.name.startswith("ergo_registrar") and r.levelname == "WARNING"
        ]
        assert len(logged) == 4
        assert sum("nodes/odd@h" in message for message in logged) == 1

    async def test_makes_a_known_node_leave_and_come_back(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        await raw.put(f"{routes}nodes/go@h", NO_ROUTES)
        observer = await make_registrar()
        async with observer.subscribe() as events:
            await raw.put(f"{routes}nodes/go@h", b"garbage")
            assert isinstance(await next_event(events), NodeLeft)
            await raw.put(f"{routes}nodes/go@h", NO_ROUTES)
            assert isinstance(await next_event(events), NodeJoined)

    async def test_random_bytes_do_no_harm(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        observer = await make_registrar()
        chance = random.Random(7)
        keys = [f"{routes}{kind}/{n}" for kind in ("nodes", "leaving", "applications/web", "") for n in range(20)]
        await raw.put_many((key, chance.randbytes(chance.randrange(200))) for key in keys)
        await settled(raw, observer)
        assert observer.state.value == "connected"
        assert await observer.nodes() == []


class TestReadingTheCluster:
    @pytest.mark.parametrize("attempt", range(12))
    async def test_has_no_gap_while_it_changes(self, make_registrar: Make, raw: Raw, routes: str, attempt: int) -> None:
        """Keys come and go while a process enters; whatever moment it enters at, it then knows what stands in etcd."""
        chance = random.Random(attempt)
        stop = asyncio.Event()
        written = 0

        async def churn() -> None:
            nonlocal written
            async with Raw(raw.endpoint) as client:
                while not stop.is_set():
                    node = f"n{chance.randrange(8)}@h"
                    if chance.random() < 0.5:
                        await client.put(f"{routes}nodes/{node}", encode_routes([Route("h", written % 65536)]))
                    else:
                        await client.delete(f"{routes}nodes/{node}")
                    if chance.random() < 0.5:
                        value = encode_application_route(running("web", node, written))
                        await client.put(f"{routes}applications/web/{node}", value)
                    written += 1

        churning = [asyncio.create_task(churn()) for _ in range(2)]
        try:
            await eventually(lambda: written > 20)
            observer = await make_registrar()
            folded: dict[str, tuple[Route, ...]] = {}
            async with observer.subscribe(NodeJoined, NodeLeft, replay=True) as events:
                so_far = written
                await eventually(lambda: written > so_far + 30)
                stop.set()
                await asyncio.gather(*churning)
                await settled(raw, observer)
                for event in waiting(events):
                    if isinstance(event, NodeJoined):
                        folded[event.name] = event.routes
                    else:
                        del folded[event.name]
        finally:
            stop.set()
            await asyncio.gather(*churning)
        stored = await raw.under(f"{routes}nodes/")
        known = {name: encode_routes(await observer.resolve(name)) for name in await observer.nodes()}
        assert known == {key.rpartition("/")[2]: kv.value for key, kv in stored.items()}
        assert folded == {name: tuple(await observer.resolve(name)) for name in await observer.nodes()}
        stored = await raw.under(f"{routes}applications/")
        found = await observer.resolve_application("web") if stored else []
        assert {encode_application_route(route) for route in found} == {kv.value for kv in stored.values()}

    async def test_of_more_than_4_mib_goes_in_pages(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        count = 32_000
        entries = [
            (f"{routes}applications/{app}/{node}", encode_application_route(running(app, node, n)))
            for n, app, node in ((n, f"app-{n:05}", f"node-{n % 50}@host") for n in range(count))
        ]
        assert sum(len(key) + len(value) for key, value in entries) > 5 * 1024 * 1024
        await raw.put_many(entries)
        before = (await raw.metrics())["etcd_mvcc_range_total"]
        observer = await make_registrar(request_timeout=30)
        reads = (await raw.metrics())["etcd_mvcc_range_total"] - before
        assert reads >= 4 + 2  # growing pages of the routes, and two levels of configuration
        for n in (0, 999, 1000, 1001, 15_000, count - 1):
            assert (await observer.pick(f"app-{n:05}")).weight == n
        assert len({event.name for event in waiting(observer.subscribe(ApplicationStarted, replay=True))}) == count

    async def test_in_pages_shows_one_moment(self, registrar_options: Options, raw: Raw, routes: str) -> None:
        """An application moves to and fro between the first page and the last, always in one transaction."""
        filler = (f"node-{n:04}@h" for n in range(3000))
        await raw.put_many(
            (f"{routes}applications/m/{node}", encode_application_route(running("m", node))) for node in filler
        )
        ends = ("aaa@h", "zzz@h")
        stop = asyncio.Event()
        moves = 0

        async def move() -> None:
            nonlocal moves
            async with Raw(raw.endpoint) as client:
                while not stop.is_set():
                    new, old = ends if moves % 2 else reversed(ends)
                    value = encode_application_route(running("m", new))
                    await client.move(f"{routes}applications/m/{old}", f"{routes}applications/m/{new}", value)
                    moves += 1

        moving = asyncio.create_task(move())
        try:
            await eventually(lambda: moves > 2)
            for _ in range(8):
                registrar = Registrar(registrar_options)
                events = registrar.subscribe(ApplicationStarted)
                async with registrar:
                    told = waiting(events)
                listed = {event.node for event in told if event.revision == told[0].revision}
                assert len(listed) == 3001
                assert len(listed.intersection(ends)) == 1
        finally:
            stop.set()
            await moving

    async def test_in_pages_misses_no_key_at_their_edges(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        """Some names begin with another's whole name, and a page may end between the two."""
        nodes = [f"n{n:04}{more}" for n in range(1100) for more in ("", "0", "00")]
        await raw.put_many((f"{routes}nodes/{node}", NO_ROUTES) for node in nodes)
        observer = await make_registrar()
        assert await observer.nodes() == sorted(nodes)

    async def test_watches_its_five_prefixes_and_nothing_else(
        self, make_registrar: Make, raw: Raw, registrar_options: Options
    ) -> None:
        async def watchers() -> float:
            return (await raw.metrics())["etcd_debugging_mvcc_watcher_total"]

        before = await watchers()
        observer = await make_registrar()
        assert await watchers() - before == 3
        member = await make_registrar("a@h")
        assert await watchers() - before == 8
        cluster = registrar_options.cluster
        async with member.subscribe() as events:
            for elsewhere in (
                "services/ergo/other",
                "services/ergo/cluster/other/routes/nodes/x@h",
                f"services/ergo/cluster/{cluster}/other",
                f"services/ergo/cluster/{cluster}/config/b@h/item",
                f"services/ergo/config/{cluster}/b@h/item",
                f"services/ergo/config/{cluster}/item",
                "services/ergo/config/global2/item",
            ):
                await raw.put(elsewhere, b"x")
            await raw.put("services/ergo/config/global/here", "now")
            told = await next_event(events)
            assert told.item == "here"
        assert member.stats.keys_skipped == 0
        await raw.delete_prefix("services/ergo/other")
        await raw.delete_prefix("services/ergo/cluster/other/")
        await raw.delete_prefix(f"services/ergo/cluster/{cluster}/")
        await raw.delete_prefix("services/ergo/config/")
        await observer.close()
        await member.close()

        async def back() -> bool:
            return await watchers() == before

        await eventually(back)
