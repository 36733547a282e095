"""Members of etcd die, stand still, are cut off, or are restarted: what their clients see, and others of these."""

import asyncio
import contextlib
import dataclasses
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from ergo_registrar import (
    ApplicationStarted,
    NodeLeft,
    Registrar,
    RegistrarConnected,
    RegistrarDisconnected,
    State,
)
from ergo_registrar.etcd.server import LocalEtcd, Member
from ergo_registrar.testing.proxy import FaultProxy
from tests.faults.support import LOAD, SECRET, demand_login, hold, web_options
from tests.integration.support import Raw, eventually, next_event, running, short_options, waiting


async def follower(etcd: LocalEtcd) -> Member:
    leader = await etcd.leader()
    return next(member for member in etcd.members if member is not leader)


def with_first(first: str, etcd: LocalEtcd, member: Member) -> tuple[str, ...]:
    """Return the endpoints of the others, with `first` in front, which stands for this member."""
    return (first, *(each.endpoint for each in etcd.members if each is not member))


class TestTheMemberOneIsConnectedTo:
    """It fails, and another one is used before the lease can end: others see nothing, and nobody is told."""

    TTL = 6

    async def is_left_in_time(self, endpoints: tuple[str, ...], fault: Callable[[], Awaitable[None]]) -> None:
        """Let the first endpoint fail, and see how its client goes on, and what others see of it."""
        options = short_options(endpoints[0], endpoints=endpoints, lease_ttl=self.TTL)
        elsewhere = dataclasses.replace(options, endpoints=endpoints[1:])
        async with (
            Raw(endpoints[1]) as raw,
            Registrar(elsewhere) as other,
            Registrar(options, node="a@h") as a,
            other.subscribe(NodeLeft) as left,
            a.subscribe(RegistrarConnected, RegistrarDisconnected) as told,
        ):
            before = await hold(raw, options)
            assert a.info().server == endpoints[0]
            began = time.monotonic()
            await fault()
            await eventually(lambda: a.info().server in endpoints[1:])
            assert time.monotonic() - began < self.TTL
            await a.register_application_route(running("web", "a@h"))
            renewals = a.stats.lease_renewals
            await eventually(lambda: a.stats.lease_renewals > renewals)
            await eventually(lambda: a.state is State.CONNECTED)
            await other.wait_revision(await raw.revision())
            assert (await other.pick("web")).node == "a@h"
            assert waiting(left) == waiting(told) == []
            assert await hold(raw, options) == before

    async def test_dies(self, three: LocalEtcd) -> None:
        """kill -9: the next member at once."""
        member = await follower(three)
        await self.is_left_in_time(with_first(member.endpoint, three, member), member.kill)

    async def test_hangs(self, three: LocalEtcd) -> None:
        """SIGSTOP: the connection stands, and nothing comes. The next member before the lease ends."""
        member = await follower(three)
        await self.is_left_in_time(with_first(member.endpoint, three, member), member.pause)

    async def test_cannot_be_reached(self, three: LocalEtcd) -> None:
        """The network swallows everything: the next member before the lease ends."""
        member = await follower(three)
        async with FaultProxy(member.endpoint) as proxy:

            async def swallow() -> None:
                proxy.black_hole()

            await self.is_left_in_time(with_first(proxy.endpoint, three, member), swallow)

    async def test_loses_its_leader(self, three: LocalEtcd) -> None:
        """It answers, and is cut off from its leader: the next member before the lease ends."""
        async with peers_through_proxies(three) as proxies:
            member = await follower(three)
            endpoints = with_first(member.endpoint, three, member)
            await self.is_left_in_time(endpoints, partial(cut_off, three, member, proxies))

    async def test_loses_its_leader_under_an_observer(self, three: LocalEtcd) -> None:
        """Who has no lease to renew is not left with what the member knew last: no frozen view."""
        async with peers_through_proxies(three) as proxies:
            member = await follower(three)
            endpoints = with_first(member.endpoint, three, member)
            options = short_options(member.endpoint, endpoints=endpoints, lease_ttl=self.TTL)
            async with Registrar(options) as observer, Raw((await three.leader()).endpoint) as raw:
                await cut_off(three, member, proxies)
                revision = await raw.put("services/ergo/config/global/item", "int:1")
                await eventually(lambda: observer.info().server in endpoints[1:])
                await observer.wait_revision(revision)
                assert await observer.config_item("item") == 1
                assert observer.stats.listings == 1


async def cut_off(etcd: LocalEtcd, member: Member, proxies: dict[str, FaultProxy]) -> None:
    """Let a follower and the leader not reach each other. They reach the third, which is a majority with the leader."""
    for each in (member, await etcd.leader()):
        await proxies[each.name].refuse()


@contextlib.asynccontextmanager
async def peers_through_proxies(etcd: LocalEtcd) -> AsyncIterator[dict[str, FaultProxy]]:
    """Restart all members, so that each is reached by the others through a proxy; yield these by the member's name."""
    async with contextlib.AsyncExitStack() as stack:
        proxies: dict[str, FaultProxy] = {}
        for member in etcd.members:
            await member.kill()
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                peers = "{}:{}".format(*free.getsockname())
            proxy = FaultProxy(peers, port=int(member.peer_url.rpartition(":")[2]))
            proxies[member.name] = await stack.enter_async_context(proxy)
            member._command = [*member._command, f"--listen-peer-urls=http://{peers}"]
        for member in etcd.members:
            await member.restart(wait=False)
        await etcd.ready()
        yield proxies


async def test_the_leader_of_three_dies_with_clients_on_it(three: LocalEtcd) -> None:
    """kill -9 of the leader: nobody sees a node leave, and 3 s after the next election everything works."""
    leader = await three.leader()
    survivor = await follower(three)
    options = short_options(leader.endpoint, endpoints=with_first(leader.endpoint, three, leader), lease_ttl=10)
    async with (
        Raw(survivor.endpoint) as raw,
        Registrar(options, node="a@h") as a,
        Registrar(options, node="b@h") as b,
        Registrar(options) as observer,
        observer.subscribe(NodeLeft, ApplicationStarted) as seen,
        a.subscribe(RegistrarConnected, RegistrarDisconnected, NodeLeft) as told,
    ):
        before = [await hold(raw, options, node) for node in ("a@h", "b@h")]
        assert {registrar.info().server for registrar in (a, b, observer)} == {leader.endpoint}
        await leader.kill()
        await three.leader()
        async with asyncio.timeout(3 + LOAD):
            await b.register_application_route(running("web", "b@h"))
            assert (await next_event(seen)).name == "web"
        await eventually(lambda: all(r.state is State.CONNECTED for r in (a, b, observer)), within=3 + LOAD)
        assert leader.endpoint not in {registrar.info().server for registrar in (a, b, observer)}
        renewals = a.stats.lease_renewals, b.stats.lease_renewals
        await eventually(lambda: a.stats.lease_renewals > renewals[0] and b.stats.lease_renewals > renewals[1])
        assert [await hold(raw, options, node) for node in ("a@h", "b@h")] == before
        assert waiting(seen) == waiting(told) == []


async def test_the_leader_of_three_stands_still_with_clients_on_it(three: LocalEtcd) -> None:
    """SIGSTOP of the connected member, the leader, with the default lease of 10 s: nobody sees a node leave."""
    leader = await three.leader()
    survivor = await follower(three)
    options = short_options(leader.endpoint, endpoints=with_first(leader.endpoint, three, leader), lease_ttl=10)
    elsewhere = dataclasses.replace(options, endpoints=(survivor.endpoint,))
    async with (
        Raw(survivor.endpoint) as raw,
        Registrar(options, node="a@h") as a,
        Registrar(elsewhere) as other,
        other.subscribe(NodeLeft) as left,
        a.subscribe(RegistrarConnected, RegistrarDisconnected) as told,
    ):
        before = await hold(raw, options)
        granted = time.monotonic()
        await leader.pause()
        renewals = a.stats.lease_renewals
        await eventually(lambda: a.info().server != leader.endpoint and a.stats.lease_renewals > renewals)
        assert time.monotonic() - granted < options.lease_ttl
        await eventually(lambda: a.state is other.state is State.CONNECTED)
        await other.wait_revision(await raw.revision())
        assert waiting(left) == waiting(told) == []
        assert await hold(raw, options) == before
        leader.resume()  # it learns that it was deposed, and nobody is led astray
        await three.ready()
        await a.register_application_route(running("web", "a@h"))
        await other.wait_revision(await raw.revision())
        assert (await other.pick("web")).node == "a@h"
        assert waiting(left) == waiting(told) == []


async def test_two_of_three_are_down_for_longer_than_the_lease(three: LocalEtcd) -> None:
    """Suspended, then lost, which is told once; what is known can be asked; connected within 3 s of a majority.

    Without a majority etcd ends no lease, and its next leader starts their time anew: the node keeps its own.
    """
    survivor, *others = three.members
    options = short_options(survivor.endpoint, endpoints=three.endpoints, lease_ttl=4)
    async with (
        Registrar(options, node="a@h") as a,
        Registrar(options, node="b@h") as b,
        Registrar(options) as observer,
        a.subscribe(RegistrarConnected, RegistrarDisconnected, NodeLeft) as told,
        observer.subscribe(NodeLeft, RegistrarConnected, RegistrarDisconnected) as seen,
    ):
        everyone = (a, b, observer)
        async with Raw(survivor.endpoint) as raw:
            before = [await hold(raw, options, node) for node in ("a@h", "b@h")]
        for member in others:
            await member.kill()
        states: dict[Registrar, list[State]] = {registrar: [] for registrar in everyone}

        def all_lost() -> bool:
            for registrar, passed in states.items():
                if passed[-1:] != [registrar.state]:
                    passed.append(registrar.state)
            return all(registrar.state is State.LOST for registrar in everyone)

        await eventually(all_lost, within=20)
        assert {tuple(passed[-2:]) for passed in states.values()} == {(State.SUSPENDED, State.LOST)}
        assert await a.nodes() == ["b@h"]
        assert await observer.nodes() == ["a@h", "b@h"]
        assert a.health().reason
        await others[0].restart()
        await three.leader()
        await eventually(lambda: all(registrar.state is State.CONNECTED for registrar in everyone), within=3 + LOAD)
        async with Raw(survivor.endpoint) as raw:
            await observer.wait_revision(await raw.revision())
            assert [await hold(raw, options, node) for node in ("a@h", "b@h")] == before
        for subscription in (told, seen):
            assert [type(event) for event in waiting(subscription)] == [RegistrarDisconnected, RegistrarConnected]


async def test_all_three_are_restarted_one_after_the_other_with_login(three: LocalEtcd) -> None:
    """A rolling restart, for a user with the documented role: nobody leaves, and after each one everything works."""
    await demand_login(three.endpoint)
    options = web_options(three.endpoint, endpoints=three.endpoints, lease_ttl=10)
    async with (
        Registrar(options, node="a@h") as a,
        Registrar(options, node="b@h") as b,
        b.subscribe(ApplicationStarted, NodeLeft) as seen,
        a.subscribe(RegistrarConnected, RegistrarDisconnected, NodeLeft) as told,
    ):
        async with Raw(three.endpoint, "root", SECRET) as raw:
            before = [await hold(raw, options, node) for node in ("a@h", "b@h")]
        for number, member in enumerate(three.members):
            await member.restart()
            await a.register_application_route(running(f"app{number}", "a@h"))
            assert (await next_event(seen)).name == f"app{number}"
        await eventually(lambda: a.state is b.state is State.CONNECTED)
        async with Raw(three.endpoint, "root", SECRET) as raw:
            assert [await hold(raw, options, node) for node in ("a@h", "b@h")] == before
        assert waiting(seen) == waiting(told) == []
