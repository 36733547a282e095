"""One's own keys are never taken away from oneself, and those of whoever took the name never touched: in any order."""

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from ergo_registrar import (
    ConnectionFailedError,
    NodeJoined,
    NodeLeft,
    Options,
    Registrar,
    RegistrarConnected,
    RegistrarDisconnected,
    State,
    TakenError,
)
from ergo_registrar.clock import now
from ergo_registrar.core.records import Record
from ergo_registrar.etcd.claim import Claim, Lease
from ergo_registrar.etcd.connection import BrokenError
from ergo_registrar.testing.proxy import FaultProxy
from tests.faults.support import LOAD, hold
from tests.integration.support import ONE_ROUTE, Raw, eventually, kept_alive, next_event, running, waiting

Make = Callable[..., Awaitable[Registrar]]
Take = Callable[[], Awaitable[None]]


def claim_of(registrar: Registrar) -> Claim:
    return registrar._runner.registration._claim


@contextlib.contextmanager
def meanwhile(where: Any, act: Take) -> Iterator[None]:
    """Act once, right behind the next transaction of a claim, or of any."""
    commit = where._commit

    async def and_then(*arguments: Any, **more: Any) -> Any:
        where._commit = commit
        answer = await commit(*arguments, **more)
        await act()
        return answer

    where._commit = and_then
    try:
        yield
    finally:
        where._commit = commit


class TestAMoveToANewLease:
    """The old one ends last, and whether it does is not waited for long."""

    async def test_from_one_that_lives_is_seen_by_nobody(
        self,
        make_registrar: Make,
        registrar_options: Options,
        relay: FaultProxy,
        raw: Raw,
        routes: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A claim took effect, but its answer was lost with the connection; the next claim moves what stands there."""
        a = await make_registrar("a@h", applications=[running("web", "a@h")], endpoints=(relay.endpoint,), lease_ttl=6)
        other = await make_registrar()
        claim = claim_of(a)
        put = claim.put

        async def answered_in_vain(lease: Lease, timeout: float | None = None) -> None:
            await put(lease, timeout)
            monkeypatch.undo()
            await relay.refuse()
            raise BrokenError("the connection was cut")

        first, _ = await hold(raw, registrar_options)
        async with other.subscribe(NodeJoined, NodeLeft) as seen:
            monkeypatch.setattr(claim, "put", answered_in_vain)
            await raw.revoke(first)
            assert isinstance(await next_event(seen), NodeLeft)
            assert isinstance(await next_event(seen), NodeJoined)
            second, created = await hold(raw, registrar_options)
            granted = claim._granted
            assert granted
            await eventually(lambda: now() > granted.proven + granted.ttl / 2)  # too old to be used for the next claim
            await relay.heal()
            await eventually(lambda: a.state is State.CONNECTED)
            third = await hold(raw, registrar_options)
            assert third[0] not in (first, second)
            assert third[1] == created
            assert not {first, second} & await raw.leases()
            assert (await other.pick("web")).node == "a@h"
            assert waiting(seen) == []

    async def test_is_done_though_ending_the_old_ones_meets_silence(
        self,
        make_registrar: Make,
        registrar_options: Options,
        relay: FaultProxy,
        raw: Raw,
        routes: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """However many there are, and nothing comes back: after a third of the TTL the new one is kept alive."""
        ttl = 6
        a = await make_registrar("a@h", endpoints=(relay.endpoint,), lease_ttl=ttl, request_timeout=10)
        claim = claim_of(a)
        old = [(await claim._grant(60)).id for _ in range(5)]
        put = claim.put

        async def then_silence(lease: Lease, timeout: float | None = None) -> None:
            await put(lease, timeout)
            relay.black_hole()

        first, _ = await hold(raw, registrar_options)
        async with a.subscribe(RegistrarConnected, RegistrarDisconnected) as told:
            monkeypatch.setattr(claim, "put", then_silence)
            await raw.revoke(first)
            assert isinstance(await next_event(told), RegistrarDisconnected)
            began = time.monotonic()
            assert isinstance(await next_event(told), RegistrarConnected)
            assert time.monotonic() - began < ttl / 3 + LOAD
            monkeypatch.undo()
            await relay.heal()
            renewals = a.stats.lease_renewals
            await eventually(lambda: a.stats.lease_renewals > renewals)
            assert waiting(told) == []
        for lease in set(old) & await raw.leases():
            await raw.revoke(lease)


class TestALeaseThatEnded:
    """Its keys went with it, they were put again, and only then the watch tells that they went."""

    @pytest.mark.parametrize("while_put", [False, True])
    async def test_is_no_damage_to_what_came_after_it(
        self, make_registrar: Make, raw: Raw, routes: str, monkeypatch: pytest.MonkeyPatch, while_put: bool
    ) -> None:
        """Whether told behind the keys' return or in the midst of it: nothing is put twice, but what is broken then."""
        a = await make_registrar("a@h")
        key = f"{routes}nodes/a@h"
        first = await raw.get(key)
        assert first
        registration = a._runner.registration
        told: list[Record] = []
        monkeypatch.setattr(registration, "seen", told.extend)

        async def tell() -> None:
            await eventually(lambda: any(record.value is None for record in told))
            monkeypatch.undo()
            registration.seen(told)

        with meanwhile(claim_of(a), tell) if while_put else contextlib.nullcontext():
            await raw.revoke(first.lease)
            await eventually(lambda: a.stats.re_registrations)
        if not while_put:
            await tell()
        renewals = a.stats.lease_renewals
        await eventually(lambda: a.stats.lease_renewals > renewals + 1)
        assert a.stats.repairs == 0
        await raw.delete(key)
        await eventually(lambda: a.stats.repairs == 1)
        assert await raw.get(key)


class TestAThief:
    """Somebody puts the node's key under a lease of its own, and this process was not told of it yet."""

    @pytest.fixture
    async def thief(self, raw: Raw, routes: str) -> AsyncIterator[Take]:
        """Take the name; what was taken must stand as it was put when the story ends."""
        key = f"{routes}nodes/a@h"
        async with kept_alive(raw) as lease:

            async def take() -> None:
                await raw.put(key, ONE_ROUTE, lease)

            yield take
            taken = await raw.get(key)
            assert taken
            assert (taken.value, taken.lease) == (ONE_ROUTE, lease)

    async def robbed(self, make_registrar: Make, take: Take, **more: Any) -> Registrar:
        """Return a member whose name was taken, and who does not notice."""
        a = await make_registrar("a@h", **more)
        claim_of(a).is_amiss = lambda record: False  # type: ignore[method-assign]  # the watch is slow to tell
        await take()
        return a

    async def test_s_name_gets_no_route_of_ours(self, make_registrar: Make, thief: Take, raw: Raw, routes: str) -> None:
        """Publishing says that the name is in other hands, and publishes nothing."""
        a = await self.robbed(make_registrar, thief)
        with pytest.raises(ConnectionFailedError, match="in other hands"):
            await a.register_application_route(running("web", "a@h"))
        assert not await raw.under(f"{routes}applications/")

    async def test_s_routes_are_not_withdrawn(self, make_registrar: Make, thief: Take, raw: Raw, routes: str) -> None:
        """Withdrawing says that the name is in other hands, and deletes nothing."""
        a = await self.robbed(make_registrar, thief, applications=[running("web", "a@h")])
        key = f"{routes}applications/web/a@h"
        await raw.put(key, b"of the thief")
        with pytest.raises(ConnectionFailedError, match="in other hands"):
            await a.unregister_application_route("web")
        found = await raw.get(key)
        assert found
        assert found.value == b"of the thief"

    async def test_s_name_is_not_said_good_bye_for(
        self, make_registrar: Make, thief: Take, raw: Raw, routes: str
    ) -> None:
        """Closing leaves no departure marker, which others would take for the thief's."""
        a = await self.robbed(make_registrar, thief)
        await a.close()
        assert not await raw.under(f"{routes}leaving/")

    async def test_who_comes_while_a_key_is_put_back_keeps_what_he_took(
        self, make_registrar: Make, thief: Take, raw: Raw, routes: str
    ) -> None:
        """Between the look at who has the name and the write: nothing is written, and the loss is told."""
        a = await make_registrar("a@h", applications=[running("web", "a@h")])
        with meanwhile(claim_of(a), thief):
            async with a.subscribe(RegistrarDisconnected) as told:
                await raw.delete(f"{routes}applications/web/a@h")
                assert isinstance((await next_event(told)).reason, TakenError)
        assert not await raw.under(f"{routes}applications/")

    async def test_who_comes_while_a_large_claim_is_put_gets_none_of_it(
        self, make_registrar: Make, thief: Take, raw: Raw, routes: str
    ) -> None:
        """Too much for one transaction, and the name is taken behind the first: the claim fails, and nothing stays."""
        with meanwhile(Claim, thief), pytest.raises(ConnectionFailedError):
            await make_registrar("a@h", applications=[running(f"app{n}", "a@h") for n in range(150)])
        assert not await raw.under(f"{routes}applications/")
