"""The disk of etcd is full, as far as its quota goes: it raises its NOSPACE alarm and takes no more writes."""

import asyncio
import time
from collections.abc import AsyncIterator

import aetcd
import pytest

from ergo_registrar import (
    ConnectionFailedError,
    NodeLeft,
    NoRouteError,
    Options,
    Registrar,
    RegistrarConnected,
    RegistrarDisconnected,
    State,
)
from ergo_registrar.etcd.server import LocalEtcd
from tests.faults.support import LOAD, hold
from tests.integration.support import Raw, etcdctl, eventually, next_event, running, short_options, waiting

WHAT_TO_DO = r"etcd is out of space: compact, defragment and disarm its NOSPACE alarm"


@pytest.fixture
async def small() -> AsyncIterator[Raw]:
    """An etcd that is soon full."""
    async with LocalEtcd(arguments=["--quota-backend-bytes=4194304"]) as etcd, Raw(etcd.endpoint) as raw:
        yield raw


@pytest.fixture
def options(small: Raw) -> Options:
    return short_options(small.endpoint)


async def fill(raw: Raw) -> None:
    """Write until etcd takes no more."""
    with pytest.raises(aetcd.ClientError, match="database space exceeded"):
        while True:
            await raw.put("filler", b"x" * 400_000)

    async def alarm() -> bool:
        return "NOSPACE" in await etcdctl(raw.endpoint, "alarm", "list")

    await eventually(alarm)


async def make_room(raw: Raw) -> None:
    """Do what the error says."""
    await etcdctl(raw.endpoint, "compact", str(await raw.revision()))
    await etcdctl(raw.endpoint, "defrag")
    await etcdctl(raw.endpoint, "alarm", "disarm")


async def test_members_stay_members(small: Raw, options: Options) -> None:
    """Leases go on, the state stays `CONNECTED`, nobody is told anything, and observers may still come."""
    async with Registrar(options, node="a@h") as member, Registrar(options) as observer:
        before = await hold(small, options)
        async with observer.subscribe(NodeLeft) as left, member.subscribe() as told:
            await fill(small)
            renewals = member.stats.lease_renewals
            await eventually(lambda: member.stats.lease_renewals >= renewals + 4)  # more than a TTL of 2 s
            assert member.health().ok
            assert observer.health().ok
            async with Registrar(options) as another:
                assert await another.nodes() == ["a@h"]
            assert waiting(left) == waiting(told) == []
        assert await hold(small, options) == before


async def test_whoever_writes_is_told_what_to_do(small: Raw, options: Options) -> None:
    """Publishing and registering raise at once, with the cure, and change nothing; then each works.

    Whether etcd lets a withdrawal pass depends on how full it is: a deletion costs nothing.
    """
    async with Registrar(options, node="a@h", applications=[running("web", "a@h")]) as member:
        await fill(small)
        newcomer = Registrar(options)
        for call in (member.register_application_route(running("db", "a@h")), newcomer.register("b@h")):
            with pytest.raises(ConnectionFailedError, match=WHAT_TO_DO):
                await asyncio.wait_for(call, LOAD)
        assert member.health().ok
        await make_room(small)
        await newcomer.register("b@h")
        assert (await newcomer.pick("web")).node == "a@h"
        with pytest.raises(NoRouteError):
            await newcomer.pick("db")
        await member.register_application_route(running("db", "a@h"))
        await member.unregister_application_route("web")
        assert await small.under(f"services/ergo/cluster/{options.cluster}/routes/applications/web/") == {}
        await newcomer.close()


async def test_a_member_that_loses_its_lease_is_back_when_there_is_room(small: Raw, options: Options) -> None:
    """`LOST`, and the health tells the cure; registered again 3 s after it was applied."""
    async with Registrar(options, node="a@h") as member:
        async with member.subscribe(RegistrarConnected, RegistrarDisconnected) as told:
            await fill(small)
            lease, _ = await hold(small, options)
            await small.revoke(lease)
            assert isinstance(await next_event(told), RegistrarDisconnected)
            await eventually(lambda: WHAT_TO_DO in (member.health().reason or ""))
            assert member.state is State.LOST
            await make_room(small)
            began = time.monotonic()
            assert isinstance(await next_event(told), RegistrarConnected)
            assert time.monotonic() - began < 3 + LOAD
        await eventually(lambda: member.health().ok)


async def test_a_member_whose_key_is_deleted_says_that_nobody_sees_it(small: Raw, options: Options) -> None:
    """It cannot be put back: `SUSPENDED`, and the health tells the cure; back, under the same lease, 3 s after it."""
    async with Registrar(options, node="a@h") as member:
        lease, _ = await hold(small, options)
        await fill(small)
        await small.delete(f"services/ergo/cluster/{options.cluster}/routes/nodes/a@h")
        await eventually(lambda: WHAT_TO_DO in (member.health().reason or ""))
        assert member.state is State.SUSPENDED
        await make_room(small)
        await eventually(lambda: member.health().ok, within=3 + LOAD)
        assert (await hold(small, options))[0] == lease


async def test_a_member_leaves_at_once(small: Raw, options: Options) -> None:
    """`close()` needs no room: the keys are gone when it returns, though no marker can be left."""
    member = Registrar(options, node="a@h")
    await member.__aenter__()
    await fill(small)
    await member.close()
    assert await small.under(f"services/ergo/cluster/{options.cluster}/") == {}
    assert member.state is State.CLOSED
