"""What etcd knew of a login is lost, or the login itself is: who asks for a token, how often, and who is told why."""

import asyncio
import contextlib
import itertools
import time
from functools import partial

import pytest

from ergo_registrar import ConnectionFailedError, NodeLeft, Registrar, RegistrarConnected, RegistrarDisconnected, State
from ergo_registrar.etcd import connection
from ergo_registrar.etcd.connection import Connection
from ergo_registrar.etcd.server import LocalEtcd
from ergo_registrar.stats import Stats
from ergo_registrar.testing.proxy import FaultProxy
from tests.faults.support import (
    LOAD,
    SECRET,
    connected,
    forget_tokens,
    hold,
    logins,
    set_password,
    web_options,
)
from tests.integration.support import Raw, eventually, next_event, running, waiting


async def ask_often(link: Connection) -> None:
    """Make 50 calls at once that need a login, each of which must be answered."""
    key = b"services/ergo/config/global/item"
    calls = [link.call("read", lambda client: client.get(key)) for _ in range(50)]
    assert await asyncio.gather(*calls) == [None] * 50


class TestTokensThatAreLost:
    """50 calls at once meet that; one of them logs in, and all go on."""

    async def test_because_an_operator_set_the_password_anew(self, guarded: LocalEtcd) -> None:
        """To what it was: every call is refused."""
        async with Raw(guarded.endpoint, "root", SECRET) as raw, connected(web_options(guarded.endpoint)) as link:
            await set_password(raw, SECRET)
            before = await logins(raw)
            await ask_often(link)
            assert await logins(raw) == before + 1

    async def test_because_etcd_restarts(self, guarded: LocalEtcd) -> None:
        """Tokens are in its memory only."""
        async with connected(web_options(guarded.endpoint)) as link:
            await forget_tokens(guarded.members[0])
            await ask_often(link)
            assert await logins(Raw(guarded.endpoint)) == 1

    async def test_are_carried_by_no_stream_any_more_on_which_a_lease_was_renewed(self, guarded: LocalEtcd) -> None:
        """Another call logged in since: the renewal goes on a new stream, and costs no login of its own."""
        async with connected(web_options(guarded.endpoint)) as link:
            client = await link._connected(5)
            await link.call("grant", lambda client: client.grant(77, 60))
            await link.call("keep alive", lambda client: client.keep_alive(77))
            stream = client._renewals
            await client.log_in()
            await link.call("keep alive", lambda client: client.keep_alive(77))
            assert client._renewals is not stream
            assert stream.cancelled()

    async def test_because_the_connection_is(self, guarded: LocalEtcd) -> None:
        """All calls find it cut, and wait for the one that makes the next."""
        raw = Raw(guarded.endpoint)
        async with FaultProxy(guarded.endpoint) as proxy, connected(web_options(proxy.endpoint)) as link:
            before = await logins(raw)
            await proxy.refuse()
            asking = asyncio.create_task(ask_often(link))
            await eventually(lambda: link.endpoint == "")
            await proxy.heal()
            await asking
            assert await logins(raw) == before + 1

    async def test_by_many_at_once_are_given_anew_to_all(self, guarded: LocalEtcd) -> None:
        """Together their logins take longer than a call may: each is waited for over several calls, not begun again."""
        async with contextlib.AsyncExitStack() as stack:
            links = [Connection(web_options(guarded.endpoint), Stats()) for _ in range(20)]
            for link in links:
                stack.push_async_callback(link.close)

            async def served(link: Connection) -> bool:
                with contextlib.suppress(ConnectionFailedError):
                    await link.call("read", lambda client: client.get(b"services/ergo/config/global/item"), timeout=0.5)
                    return True
                return False

            before = await logins(Raw(guarded.endpoint))
            await asyncio.gather(*(eventually(partial(served, link), within=30) for link in links))
            # One each, and some more where the answer to the call itself took longer than that, under load.
            assert await logins(Raw(guarded.endpoint)) <= before + 3 * len(links)

    async def test_under_members_that_publish_and_watch(self, guarded: LocalEtcd) -> None:
        """etcd restarts: each member logs in once, and nobody leaves."""
        options = web_options(guarded.endpoint, lease_ttl=10)
        async with (
            Registrar(options, node="a@h") as a,
            Registrar(options, node="b@h") as b,
            b.subscribe(NodeLeft, RegistrarDisconnected) as seen,
        ):
            await forget_tokens(guarded.members[0])
            await asyncio.gather(
                *(
                    r.register_application_route(running(f"app{n}", node))
                    for r, node in ((a, "a@h"), (b, "b@h"))
                    for n in range(10)
                )
            )
            await eventually(lambda: a.state is b.state is State.CONNECTED)
            assert await logins(Raw(guarded.endpoint)) == 2
            assert len([await b.pick(f"app{n}") for n in range(10)]) == 10
            assert waiting(seen) == []


class TestAPasswordThatIsChanged:
    """By an operator, while the registrar runs with the old one."""

    PAUSE = 1.0

    @pytest.fixture(autouse=True)
    def steady_pauses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connection, "delays", lambda *_, **__: itertools.repeat(self.PAUSE))

    async def test_is_told_to_who_publishes(self, guarded: LocalEtcd) -> None:
        """The error names the cause; publishing works again a pause after the password does."""
        async with (
            Raw(guarded.endpoint, "root", SECRET) as raw,
            Registrar(web_options(guarded.endpoint, lease_ttl=10), node="a@h") as a,
        ):
            await set_password(raw, "another")
            for _ in range(2):
                with pytest.raises(ConnectionFailedError, match="wrong username or password"):
                    await a.register_application_route(running("web", "a@h"))
            await set_password(raw, SECRET)

            async def published() -> bool:
                with contextlib.suppress(ConnectionFailedError):
                    await a.register_application_route(running("web", "a@h"))
                    return True
                return False

            await eventually(published, within=self.PAUSE + LOAD)

    async def test_leaves_a_member_its_lease_where_renewing_takes_no_login(self, guarded: LocalEtcd) -> None:
        """It stays registered. Where etcd asks for a login then, too, it is lost, and says why."""
        options = web_options(guarded.endpoint)
        async with Raw(guarded.endpoint, "root", SECRET) as raw, Registrar(options, node="a@h") as a:
            before = await hold(raw, options)
            await set_password(raw, "another")
            renewals = a.stats.lease_renewals
            await eventually(lambda: a.stats.lease_renewals >= renewals + 4 or a.state is State.LOST)
            if a.state is State.LOST:  # etcd 3.5.35 and 3.7 on: checkLeaseRenew in its v3_server.go
                await eventually(lambda: "wrong username or password" in (a.health().reason or ""))
            else:
                assert await hold(raw, options) == before
            await set_password(raw, SECRET)
            await eventually(lambda: a.state is State.CONNECTED, within=self.PAUSE + 3 + LOAD)

    async def test_is_the_reason_once_the_session_ends_and_costs_etcd_little(self, guarded: LocalEtcd) -> None:
        """`health().reason` names it; etcd is asked again once per pause, not more; back when the password is back."""
        options = web_options(guarded.endpoint)
        async with (
            Raw(guarded.endpoint, "root", SECRET) as raw,
            Registrar(options, node="a@h") as a,
            a.subscribe(RegistrarConnected, RegistrarDisconnected) as told,
        ):
            await set_password(raw, "another")
            lease, _ = await hold(raw, options)
            await raw.revoke(lease)
            assert isinstance(await next_event(told), RegistrarDisconnected)
            await eventually(lambda: "wrong username or password" in (a.health().reason or ""))
            assert a.state is State.LOST
            before, began = await logins(raw), time.monotonic()

            async def asked_again() -> bool:
                return await logins(raw) >= before + 3

            await eventually(asked_again)
            assert time.monotonic() - began > 2 * self.PAUSE  # between three there are two
            await set_password(raw, SECRET)
            assert isinstance(await next_event(told, within=self.PAUSE + 3 + LOAD), RegistrarConnected)
            assert waiting(told) == []
