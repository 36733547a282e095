"""The watch breaks, is cancelled, denied, silent or overtaken: what is known here comes to what stands in etcd."""

import asyncio
import dataclasses
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ergo_registrar import (
    ConfigUpdate,
    ConnectionFailedError,
    NodeJoined,
    NodeLeft,
    Options,
    Registrar,
    RegistrarConnected,
    RegistrarDisconnected,
    Route,
    State,
    Subscription,
)
from ergo_registrar.core.edf import encode_application_route, encode_routes
from ergo_registrar.etcd import watch
from ergo_registrar.etcd.client import Client
from ergo_registrar.etcd.server import LocalEtcd, Member
from ergo_registrar.testing.proxy import FaultProxy
from tests.faults.support import LOAD, ROOT, SECRET, hold, known, logins, web_options
from tests.integration.support import (
    NO_ROUTES,
    ONE_ROUTE,
    Raw,
    etcdctl,
    eventually,
    next_event,
    running,
    short_options,
    waiting,
)
from tests.property.folding import State as Known
from tests.property.folding import fold_all

Make = Callable[..., Awaitable[Registrar]]


def web(node: str, weight: int) -> bytes:
    return encode_application_route(running("web", node, weight))


def told_by(subscription: Subscription) -> list[Any]:
    """Return what was told of others and of the configuration."""
    return [
        event for event in waiting(subscription) if not isinstance(event, RegistrarConnected | RegistrarDisconnected)
    ]


def names(events: list[Any]) -> list[tuple[str, str]]:
    """Return of each event its type, and the name of what it is about."""
    return [(type(event).__name__, event.item if isinstance(event, ConfigUpdate) else event.name) for event in events]


async def caught_up(registrar: Registrar, options: Options, within: float = 10.0) -> None:
    """Wait until a registrar knows what one that just came reads."""
    async with Registrar(options) as fresh:
        await eventually(lambda: known(registrar) == known(fresh), within=within)


class Unread:
    """The watch stream of a registrar, of which nothing is read until this is over, or the stream."""

    def __init__(self, call: Any) -> None:
        self.over = asyncio.Event()
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def read(self) -> Any:
        waiting = {asyncio.create_task(each) for each in (self.over.wait(), self._call.code())}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        return await self._call.read()


def unread(registrar: Registrar) -> Unread:
    """Let a registrar read no more from its watch stream, but for what it is waiting for already."""
    session = registrar._runner._session
    assert session
    assert session.watcher
    stream = session.watcher._stream
    assert stream
    stream._call = ending = Unread(stream._call)
    return ending


class TestAnObserverThatIsCutOff:
    async def test_is_told_of_each_change_once(
        self, make_registrar: Make, registrar_options: Options, relay: FaultProxy, raw: Raw, routes: str
    ) -> None:
        """It goes on behind the last change it knew: nothing is lost, nothing is told or counted twice."""
        limit = f"services/ergo/cluster/{registrar_options.cluster}/config/*/limit"
        await raw.put(f"{routes}nodes/old@h", NO_ROUTES)
        observer = await make_registrar(endpoints=(relay.endpoint,))
        await raw.put(f"{routes}nodes/before@h", NO_ROUTES)
        await raw.put(f"{routes}nodes/garbage@h", b"garbage")  # counted, so that a second time would show
        await observer.wait_revision(await raw.revision())
        before = known(observer)
        async with observer.subscribe() as events:
            await relay.refuse()
            await raw.put(f"{routes}nodes/new@h", NO_ROUTES)
            await raw.put(f"{routes}nodes/new@h", ONE_ROUTE)
            await raw.delete(f"{routes}nodes/old@h")
            await raw.put(f"{routes}nodes/old@h", NO_ROUTES)
            await raw.put(f"{routes}applications/web/old@h", web("old@h", 1))
            await raw.put(f"{routes}applications/web/old@h", web("old@h", 2))
            await raw.delete(f"{routes}applications/web/old@h")
            for value in ("int:1", "int:2"):
                await raw.put(limit, value)
            await raw.delete(limit)
            await relay.heal()
            await caught_up(observer, registrar_options)
            told = told_by(events)
        assert fold_all(before, told) == known(observer)
        assert names([event for event in told if not isinstance(event, ConfigUpdate)]) == [
            ("NodeJoined", "new@h"),
            ("NodeJoined", "new@h"),
            ("NodeLeft", "old@h"),
            ("NodeJoined", "old@h"),
            ("ApplicationStarted", "web"),
            ("ApplicationUpdated", "web"),
            ("ApplicationStopped", "web"),
        ]
        assert [event.value for event in told if isinstance(event, ConfigUpdate)] == [1, 2, None]
        assert observer.stats.listings == 1
        assert observer.stats.keys_skipped == 1

    async def test_for_longer_than_etcd_keeps_changes_is_told_the_difference(
        self, make_registrar: Make, registrar_options: Options, relay: FaultProxy, raw: Raw, routes: str
    ) -> None:
        """A compaction took away what happened: routes and configuration are read anew, each difference told once."""
        config = f"services/ergo/cluster/{registrar_options.cluster}/config/*/"
        for node in ("stays@h", "goes@h"):
            await raw.put(f"{routes}nodes/{node}", NO_ROUTES)
            await raw.put(f"{routes}applications/web/{node}", web(node, 1))
        for item in ("stays", "goes", "changes", "there-and-back"):
            await raw.put(f"{config}{item}", "int:1")
        observer = await make_registrar(endpoints=(relay.endpoint,))
        before = known(observer)
        async with observer.subscribe() as events:
            await relay.refuse()
            for prefix in (f"{routes}nodes/", f"{routes}applications/web/"):
                await raw.delete(f"{prefix}goes@h")
            await raw.put(f"{routes}applications/web/stays@h", web("stays@h", 2))
            await raw.put(f"{routes}nodes/flash@h", NO_ROUTES)
            await raw.delete(f"{routes}nodes/flash@h")
            await raw.put(f"{routes}nodes/comes@h", NO_ROUTES)
            await raw.delete(f"{config}goes")
            for value in ("int:2", "int:1"):
                await raw.put(f"{config}there-and-back", value)
            await raw.put(f"{config}changes", "int:2")
            await raw.put(f"{config}comes", "int:1")
            await raw.compact(await raw.revision())
            await relay.heal()
            await caught_up(observer, registrar_options)
            told = told_by(events)
        assert observer.stats.listings == 2
        assert fold_all(before, told) == known(observer)
        assert sorted(names(told)) == [
            ("ApplicationStopped", "web"),
            ("ApplicationUpdated", "web"),
            ("ConfigUpdate", "changes"),
            ("ConfigUpdate", "comes"),
            ("ConfigUpdate", "goes"),
            ("NodeJoined", "comes@h"),
            ("NodeLeft", "goes@h"),
        ]

    @pytest.mark.parametrize("compacted", [False, True], ids=["kept", "compacted"])
    async def test_while_2000_routes_change_catches_up(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, routes: str, compacted: bool
    ) -> None:
        """Within 2 s plus one reconnect it knows them all, each told once, whether etcd keeps the changes or not."""
        names = [f"n{n:04}@h" for n in range(2000)]
        gone, new = names[:500], names[500:]
        await raw.put_many((f"{routes}nodes/{name}", NO_ROUTES) for name in names[:1000])
        observer = await make_registrar(endpoints=(relay.endpoint,))
        async with observer.subscribe() as events:
            await relay.refuse()
            value = encode_routes([Route("h", 1)])
            await raw.put_many((f"{routes}nodes/{name}", value) for name in new)
            for name in gone:
                await raw.delete(f"{routes}nodes/{name}")
            revision = await raw.revision()
            if compacted:
                await raw.compact(revision)
            await relay.heal()
            began = time.monotonic()
            await observer.wait_revision(revision)
            assert await observer.nodes() == new
            assert time.monotonic() - began < 2 + watch._RETRY_MOST + LOAD
            told = told_by(events)
        assert {event.name for event in told if isinstance(event, NodeLeft)} == set(gone)
        assert {event.name: event.routes for event in told if isinstance(event, NodeJoined)} == {
            name: (Route("h", 1),) for name in new
        }
        assert len(told) == 2000
        assert observer.stats.listings == (2 if compacted else 1)


class TestAWatchThatEtcdCancels:
    async def test_because_it_fell_behind_a_compaction_is_made_anew(self) -> None:
        """A process too busy to read for a while: what etcd held for it is no longer kept, and is read anew."""
        async with LocalEtcd() as etcd, Raw(etcd.endpoint) as raw:
            options = short_options(etcd.endpoint, lease_ttl=30)  # so that nobody misses an answer meanwhile
            async with Registrar(options) as observer, observer.subscribe() as events:
                reading = unread(observer)
                while not (await raw.metrics())["etcd_debugging_mvcc_slow_watcher_total"]:
                    for _ in range(20):
                        await raw.put("services/ergo/config/global/big", "x" * 100_000)
                await raw.put("services/ergo/config/global/small", "int:1")
                await raw.compact(await raw.revision())
                reading.over.set()
                await caught_up(observer, options)
                await eventually(lambda: observer.state is State.CONNECTED)
                assert observer.stats.connections_replaced == 0
                assert observer.stats.watch_streams == observer.stats.listings == 2
                assert fold_all(Known(), told_by(events)) == known(observer)

    async def test_because_a_permission_is_gone_is_the_reason_until_it_is_back(self, guarded: LocalEtcd) -> None:
        """A role loses a prefix: a member is suspended, with the reason, and lives on; then all is as before."""
        prefix = "services/ergo/cluster/c/config/*/"
        permission = ("member", "--prefix")
        async with FaultProxy(guarded.endpoint) as proxy, Raw(guarded.endpoint, "root", SECRET) as raw:
            options = web_options(proxy.endpoint)
            async with (
                Registrar(options, node="a@h") as a,
                a.subscribe(RegistrarConnected, RegistrarDisconnected) as told,
            ):
                before = await hold(raw, options)
                await etcdctl(guarded.endpoint, "role", "revoke-permission", *permission, prefix, user=ROOT)
                await proxy.cut()
                await eventually(lambda: "permission denied" in (a.health().reason or ""))
                assert prefix in str(a.health().reason)
                assert a.health().state is State.SUSPENDED
                renewals = a.stats.lease_renewals
                await eventually(lambda: a.stats.lease_renewals >= renewals + 4)
                assert a.health().state is State.SUSPENDED
                await raw.put(f"{prefix}item", "int:7")
                await etcdctl(guarded.endpoint, "role", "grant-permission", *permission, "read", prefix, user=ROOT)

                async def shown() -> bool:
                    return await a.config("item") == {"item": 7}

                await eventually(shown, within=3 + LOAD)
                await eventually(lambda: a.state is State.CONNECTED, within=LOAD)
                assert waiting(told) == []
                assert await hold(raw, options) == before

    async def test_because_a_permission_is_gone_costs_etcd_little(self, guarded: LocalEtcd) -> None:
        """It is tried for again and again, with a new login once: the old one might have been to blame."""
        permission = ("member", "--prefix", "services/ergo/cluster/c/config/*/")
        raw = Raw(guarded.endpoint)
        async with FaultProxy(guarded.endpoint) as proxy, Registrar(web_options(proxy.endpoint), node="a@h") as a:
            await etcdctl(guarded.endpoint, "role", "revoke-permission", *permission, user=ROOT)
            before = await logins(raw)
            await proxy.cut()
            await eventually(lambda: "permission denied" in (a.health().reason or ""))
            renewals = a.stats.lease_renewals
            await eventually(lambda: a.stats.lease_renewals >= renewals + 6)
            assert await logins(raw) <= before + 2  # for the connection that was cut, and for the refusal


class TestAWatchThatIsSilent:
    async def test_because_the_network_swallows_everything_is_left_in_time(
        self,
        make_registrar: Make,
        registrar_options: Options,
        relay: FaultProxy,
        etcd: str,
        raw: Raw,
        routes: str,
    ) -> None:
        """An observer, who has no lease to renew: asked after a third of its TTL, left after another, found anew."""
        ttl = 3
        observer = await make_registrar(endpoints=(relay.endpoint, etcd), lease_ttl=ttl)
        async with observer.subscribe(RegistrarConnected, RegistrarDisconnected) as told:
            began = time.monotonic()
            relay.black_hole()
            await raw.put(f"{routes}nodes/n@h", NO_ROUTES)
            await eventually(lambda: observer.info().server == etcd)
            await caught_up(observer, registrar_options)
            assert time.monotonic() - began < ttl * 2 / 3 + LOAD
            assert await observer.nodes() == ["n@h"]
            await eventually(lambda: observer.state is State.CONNECTED)
            assert waiting(told) == []
            await relay.heal()

    async def test_though_etcd_answers_everything_else_is_replaced(
        self, make_registrar: Make, raw: Raw, routes: str
    ) -> None:
        """No frozen view: while the lease is renewed as ever, a watch that shows nothing is given up in time."""
        ttl = 3
        a = await make_registrar("a@h", lease_ttl=ttl)
        unread(a)
        async with a.subscribe(RegistrarConnected, RegistrarDisconnected, NodeJoined) as told:
            began = time.monotonic()
            for node in ("first@h", "second@h"):  # what is being read already may show the first
                await raw.put(f"{routes}nodes/{node}", NO_ROUTES)
                assert (await next_event(told)).name == node
            assert time.monotonic() - began < ttl * 2 / 3 + LOAD
            await eventually(lambda: a.state is State.CONNECTED)
            assert waiting(told) == []
        assert a.stats.claims == 1
        assert a.stats.watch_streams == 2


class TestAnEtcdRestoredFromABackup:
    """Its revisions go backwards, and what was written since the backup never was: the view is that of the backup."""

    async def restore(self, member: Member, backup: Path) -> None:
        """Let a member start again on what a backup holds, as the same cluster."""
        await member.kill()
        flags = dict(flag.split("=", 1) for flag in member._command if flag.startswith("--") and "=" in flag)
        await asyncio.to_thread(shutil.rmtree, member.data)
        same = ("--name", "--data-dir", "--initial-cluster", "--initial-cluster-token", "--initial-advertise-peer-urls")
        await etcdctl(member.endpoint, "snapshot", "restore", str(backup), *(f"{flag}={flags[flag]}" for flag in same))
        await member.restart()

    @pytest.mark.parametrize("writes", [0, 50], ids=["behind", "overtaken"])
    async def test_is_what_everyone_sees(self, tmp_path: Path, writes: int) -> None:
        """Within 3 s, also when so much was written since that its revision is past the last one seen."""
        async with LocalEtcd() as etcd, Raw(etcd.endpoint) as raw, FaultProxy(etcd.endpoint) as proxy:
            options = short_options(proxy.endpoint, lease_ttl=10)
            routes = f"services/ergo/cluster/{options.cluster}/routes/"
            item = "services/ergo/config/global/item"
            await raw.put(f"{routes}nodes/old@h", NO_ROUTES)
            await raw.put(item, "int:1")
            async with Registrar(options, node="a@h") as a, Registrar(options) as observer:
                await etcdctl(etcd.endpoint, "snapshot", "save", str(tmp_path / "backup"))
                await raw.put(f"{routes}nodes/late@h", NO_ROUTES)
                await raw.delete(f"{routes}nodes/old@h")
                await raw.put(item, "int:2")
                await caught_up(observer, options)
                before = known(observer)
                async with observer.subscribe() as events:
                    await proxy.refuse()
                    await self.restore(etcd.members[0], tmp_path / "backup")
                    for _ in range(writes):
                        await raw.put("of/somebody/else", "x")
                    await proxy.heal()
                    await eventually(lambda: a.stats.listings == observer.stats.listings == 2, within=3 + LOAD)
                    await eventually(lambda: a.state is observer.state is State.CONNECTED)
                    for registrar, nodes in ((a, ["old@h"]), (observer, ["a@h", "old@h"])):
                        assert await registrar.config() == {"item": 1}
                        assert await registrar.nodes() == nodes
                    assert fold_all(before, told_by(events)) == known(observer)
                await a.register_application_route(running("web", "a@h"))
                await caught_up(observer, options)
                assert (await observer.pick("web")).node == "a@h"


async def test_another_etcd_behind_the_same_endpoints_is_read_anew() -> None:
    """It has gone on for longer, and nothing of ours was known: only its cluster id tells that it is another one."""
    async with LocalEtcd() as one, LocalEtcd() as other, Raw(one.endpoint) as raw, Raw(other.endpoint) as its_raw:
        options = short_options(one.endpoint, endpoints=(one.endpoint, other.endpoint))
        routes = f"services/ergo/cluster/{options.cluster}/routes/"
        await its_raw.put(f"{routes}nodes/b@h", NO_ROUTES)
        for etcd, writes in ((raw, 10), (its_raw, 50)):
            for _ in range(writes):
                await etcd.put("of/somebody/else", "x")
        async with Registrar(options) as observer, observer.subscribe(NodeJoined) as joined:
            assert await observer.nodes() == []
            await one.members[0].kill()
            assert (await next_event(joined)).name == "b@h"


class TestAComparisonWithOldEtcds:
    async def test_is_begun_again_at_once_when_a_compaction_outruns_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where etcd's answers on the stream prove nothing; who waits for a proof need not wait a beat longer."""
        async with (
            LocalEtcd() as etcd,
            Raw(etcd.endpoint) as raw,
            Registrar(dataclasses.replace(short_options(etcd.endpoint), lease_ttl=60)) as observer,
        ):
            await observer.wait_revision(await raw.revision())
            youngest, begun, failed = Client.youngest, 0, False

            async def outrun(self: Client, start: bytes, end: bytes, *, revision: int) -> Any:
                nonlocal begun, failed
                begun += not revision
                if revision and not failed:
                    failed = True
                    await raw.compact(await raw.put("of/somebody/else", "x"))
                return await youngest(self, start, end, revision=revision)

            monkeypatch.setattr(Client, "youngest", outrun)
            assert observer._runner._session is not None
            watcher: Any = observer._runner._session.watcher
            watcher._stream.answers_last = False
            watcher.ask()
            await eventually(lambda: begun >= 2)
            assert failed
            assert observer.state is State.CONNECTED


class TestReadingTheClusterForTheFirstTime:
    """Page after page at one revision, while a compaction takes that revision away."""

    @pytest.fixture(autouse=True)
    def small_pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(watch, "_PAGE", 5)

    def compact_behind(self, raw: Raw, monkeypatch: pytest.MonkeyPatch, times: float) -> None:
        """Compact behind the first page of each reading, so many times."""
        page = Client.page
        left = times

        async def overtaken(client: Client, start: bytes, end: bytes, *, limit: int, revision: int) -> Any:
            nonlocal left
            if revision and left > 0:
                left -= 1
                await raw.compact(await raw.put("of/somebody/else", "x"))
            return await page(client, start, end, limit=limit, revision=revision)

        monkeypatch.setattr(Client, "page", overtaken)

    async def test_is_begun_anew_when_a_compaction_outruns_it(
        self, make_registrar: Make, raw: Raw, routes: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Entering takes a little longer, and nothing is missing."""
        await raw.put_many((f"{routes}nodes/n{n:02}@h", NO_ROUTES) for n in range(20))
        self.compact_behind(raw, monkeypatch, times=3)
        a = await make_registrar("a@h")
        assert await a.nodes() == [f"n{n:02}@h" for n in range(20)]
        assert a.stats.listings == 1

    async def test_is_given_up_in_time_when_compactions_always_outrun_it(
        self, registrar_options: Options, raw: Raw, routes: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Entering raises what etcd said within `request_timeout`, and leaves nothing behind."""
        await raw.put_many((f"{routes}nodes/n{n:02}@h", NO_ROUTES) for n in range(20))
        self.compact_behind(raw, monkeypatch, times=float("inf"))
        registrar = Registrar(dataclasses.replace(registrar_options, request_timeout=1), node="a@h")
        began = time.monotonic()
        with pytest.raises(ConnectionFailedError, match=r"compacted|no answer within"):
            await registrar.__aenter__()
        assert 1 <= time.monotonic() - began < 1 + 1 + LOAD  # the last pause is up to 1 s
        assert registrar.state is State.NEW
        assert f"{routes}nodes/a@h" not in await raw.under(f"{routes}nodes/")
        await registrar.close()
