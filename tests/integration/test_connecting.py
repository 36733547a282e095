"""Reaching etcd: several endpoints, login, TLS, and what is said when it cannot be."""

import asyncio
import dataclasses
import gc
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

from ergo_registrar import (
    TLS,
    ConnectionFailedError,
    NodeJoined,
    Options,
    Registrar,
    RegistrarConnected,
    RegistrarDisconnected,
    State,
)
from ergo_registrar.etcd.connection import Connection
from ergo_registrar.etcd.server import LocalEtcd, ServerTLS
from ergo_registrar.stats import Stats
from ergo_registrar.testing.proxy import FaultProxy
from tests.integration.support import (
    NO_ROUTES,
    Raw,
    etcdctl,
    eventually,
    next_event,
    running,
    settled,
    short_options,
    waiting,
)

Make = Callable[..., Awaitable[Registrar]]
SECRET = "s3cr3t-p4ssw0rd"


@pytest.fixture
def registrar_options(etcd: str, relay: FaultProxy) -> Options:  # the relay first, so that it ends after the registrars
    return short_options(etcd)


@pytest.fixture
def closed_port() -> Iterator[str]:
    """An endpoint where nobody listens, as long as the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def mute_port() -> Iterator[str]:
    """An endpoint that takes connections and never answers."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        yield f"127.0.0.1:{mute.getsockname()[1]}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PEM files: two authorities, and what the first one issued: for 127.0.0.1, for other names, and for a client."""
    place = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    files = {"ca": place / "ca.pem", "other_ca": place / "other_ca.pem", "garbage": place / "garbage.pem"}
    files["garbage"].write_text("this is no certificate")
    ca.cert_pem.write_to_path(str(files["ca"]))
    trustme.CA().cert_pem.write_to_path(str(files["other_ca"]))
    for name, identity in {
        "": "127.0.0.1",
        "named_": "etcd.example.org",
        "wildcard_": "*.example.org",
        "client_": "web@example.org",
    }.items():
        issued = ca.issue_cert(identity)
        files[f"{name}key"], files[f"{name}cert"] = place / f"{name}key.pem", place / f"{name}cert.pem"
        issued.private_key_pem.write_to_path(str(files[f"{name}key"]))
        files[f"{name}cert"].write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    return files


async def fails(options: Options, within: float = 10) -> ConnectionFailedError:
    """Return the error of a registrar that cannot enter, and see that it left nothing behind."""
    registrar = Registrar(options, node="a@h")
    with pytest.raises(ConnectionFailedError) as failed:
        async with asyncio.timeout(within):
            await registrar.__aenter__()
    assert registrar.state is State.NEW
    await registrar.close()
    return failed.value


class TestAnEtcdThatIsNotThere:
    async def test_is_an_error_that_names_every_endpoint_and_why(self, closed_port: str, mute_port: str) -> None:
        began = time.monotonic()
        failed = await fails(Options(endpoints=(closed_port, mute_port), dial_timeout=1))
        assert 0.8 < time.monotonic() - began < 1.6
        assert failed.endpoints.keys() == {closed_port, mute_port}
        for endpoint, why in failed.endpoints.items():
            assert f"{endpoint}: {why}" in str(failed)
        assert "refused" in failed.endpoints[closed_port].lower()
        assert "no answer" in failed.endpoints[mute_port] or "timed out" in failed.endpoints[mute_port].lower()

    async def test_whose_name_nobody_knows_says_so(self) -> None:
        failed = await fails(Options(endpoints=("nobody.invalid:2379",), dial_timeout=1))
        assert "nobody.invalid:2379" in failed.endpoints
        assert "nobody.invalid" in str(failed)

    async def test_that_comes_within_dial_timeout_is_used(self) -> None:
        async with LocalEtcd() as first:
            port = int(first.endpoint.rpartition(":")[2])
        registrar = Registrar(short_options(first.endpoint, dial_timeout=20), node="a@h")
        entering = asyncio.create_task(registrar.__aenter__())
        await eventually(lambda: registrar.state is State.CONNECTING)
        async with LocalEtcd(port=port):
            await entering
            assert registrar.state is State.CONNECTED
            await registrar.close()

    async def test_may_be_tried_again_with_the_same_registrar(self) -> None:
        async with LocalEtcd() as first:
            port = int(first.endpoint.rpartition(":")[2])
        registrar = Registrar(short_options(first.endpoint, dial_timeout=0.3))
        for _ in range(2):
            with pytest.raises(ConnectionFailedError):
                await registrar.register("a@h")
        async with LocalEtcd(port=port):
            await registrar.register("a@h")
            await registrar.close()

    async def test_does_not_speak_http2(self) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            port = server.sockets[0].getsockname()[1]
            failed = await fails(Options(endpoints=(f"127.0.0.1:{port}",), dial_timeout=0.5))
            assert f"127.0.0.1:{port}" in str(failed)
        finally:
            server.close()


class TestAnEtcdThatIsThere:
    async def test_is_left_without_a_connection(self, registrar_options: Options, relay: FaultProxy) -> None:
        options = dataclasses.replace(registrar_options, endpoints=(relay.endpoint,))
        async with Registrar(options, node="a@h"), Registrar(options):
            assert relay.open_connections == 2
        await eventually(lambda: relay.open_connections == 0)

    async def test_is_left_by_who_still_knows_of_a_call_that_was_cancelled(
        self, registrar_options: Options, relay: FaultProxy
    ) -> None:
        """anyio keeps the error of a cancelled task until the next garbage collection, which may be far away."""
        connection = Connection(dataclasses.replace(registrar_options, endpoints=(relay.endpoint,)), Stats())
        await connection.look(timeout=5)
        relay.delay(0.5)
        call = asyncio.create_task(connection.call("read", lambda c: c.page(b"a", b"b", limit=1, revision=0)))
        await anyio.wait_all_tasks_blocked()
        call.cancel()
        with pytest.raises(asyncio.CancelledError) as known:
            await call
        await connection.close()
        await eventually(lambda: relay.open_connections == 0)
        assert known.type is asyncio.CancelledError


class TestSeveralEndpoints:
    async def test_a_dead_first_one_is_passed_over(self, make_registrar: Make, closed_port: str, etcd: str) -> None:
        registrar = await make_registrar("a@h", endpoints=(closed_port, etcd))
        assert registrar.info().server == etcd
        assert registrar.stats.connections_replaced == 1

    async def test_a_mute_first_one_is_passed_over(self, make_registrar: Make, mute_port: str, etcd: str) -> None:
        began = time.monotonic()
        registrar = await make_registrar("a@h", endpoints=(mute_port, etcd), dial_timeout=2)
        assert time.monotonic() - began < 2
        assert registrar.info().server == etcd

    async def test_one_that_dies_later_is_left_for_the_next(
        self, make_registrar: Make, relay: FaultProxy, etcd: str, registrar_options: Options
    ) -> None:
        registrar = await make_registrar("a@h", endpoints=(relay.endpoint, etcd), lease_ttl=10)
        assert registrar.info().server == relay.endpoint
        async with registrar.subscribe(RegistrarConnected, RegistrarDisconnected) as told, Raw(etcd) as raw:
            await relay.refuse()
            await settled(raw, registrar)
            await eventually(lambda: registrar.info().server == etcd)
            await registrar.register_application_route(running("web", "a@h"))
            assert waiting(told) == []
        assert registrar.stats.claims == 1

    async def test_one_that_falls_silent_is_left_before_the_lease_ends(
        self, make_registrar: Make, relay: FaultProxy, etcd: str
    ) -> None:
        """The lease's answers are the heartbeat: a third of its time without one, and the next endpoint is asked."""
        registrar = await make_registrar("a@h", endpoints=(relay.endpoint, etcd), lease_ttl=6)
        async with registrar.subscribe(RegistrarConnected, RegistrarDisconnected) as told, Raw(etcd) as raw:
            relay.black_hole()
            await eventually(lambda: registrar.info().server == etcd, within=6)
            await settled(raw, registrar)
            await eventually(lambda: registrar.state is State.CONNECTED)
            assert waiting(told) == []
            await relay.heal()

    async def test_all_members_serve_one_cluster_and_one_may_die(self) -> None:
        async with LocalEtcd(3) as etcd:
            options = short_options(etcd.endpoint, endpoints=etcd.endpoints, lease_ttl=10)
            async with Registrar(options, node="a@h") as a, Registrar(options, node="b@h") as b:
                async with b.subscribe(NodeJoined) as joined:
                    await etcd.members[0].kill()
                    await eventually(lambda: a.info().server == b.info().server == etcd.endpoints[1], within=10)
                    async with Registrar(options, node="c@h") as c:
                        assert (await next_event(joined, within=10)).name == "c@h"
                        assert await c.nodes() == ["a@h", "b@h"]
                assert a.stats.claims == b.stats.claims == 1


class TestLogin:
    @pytest.fixture
    async def guarded(self) -> AsyncIterator[str]:
        """An etcd that wants a login: root, and a member of cluster "c" who may do no more than one needs to."""
        async with LocalEtcd() as etcd:
            await etcdctl(etcd.endpoint, "user", "add", f"root:{SECRET}")
            await etcdctl(etcd.endpoint, "user", "grant-role", "root", "root")
            await etcdctl(etcd.endpoint, "role", "add", "member")
            for access, prefix in (
                ("readwrite", "services/ergo/cluster/c/routes/"),
                ("read", "services/ergo/config/c/a@h/"),
                ("read", "services/ergo/cluster/c/config/a@h/"),
                ("read", "services/ergo/cluster/c/config/*/"),
                ("read", "services/ergo/config/global/"),
            ):
                await etcdctl(etcd.endpoint, "role", "grant-permission", "member", "--prefix", access, prefix)
            await etcdctl(etcd.endpoint, "user", "add", f"web:{SECRET}")
            await etcdctl(etcd.endpoint, "user", "grant-role", "web", "member")
            await etcdctl(etcd.endpoint, "auth", "enable")
            yield etcd.endpoint

    def options(self, endpoint: str, **more: Any) -> Options:
        return short_options(endpoint, cluster="c", **({"username": "web", "password": SECRET} | more))

    async def test_a_user_restricted_to_the_five_prefixes_can_do_everything(self, guarded: str) -> None:
        async with Raw(guarded, "root", SECRET) as raw:
            await raw.put("services/ergo/config/global/item", "int:4")
            async with Registrar(self.options(guarded), node="a@h", applications=[running("web", "a@h")]) as a:
                assert await a.config_item("item") == 4
                await raw.put("services/ergo/config/c/a@h/item", "int:1")
                await settled(raw, a)
                assert await a.config_item("item") == 1
                await a.register_application_route(running("db", "a@h"))
                await a.unregister_application_route("web")
                async with a.subscribe(RegistrarConnected, RegistrarDisconnected) as told:
                    key = await raw.get("services/ergo/cluster/c/routes/nodes/a@h")
                    assert key
                    await raw.revoke(key.lease)
                    assert isinstance(await next_event(told), RegistrarDisconnected)
                    assert isinstance(await next_event(told), RegistrarConnected)
                with pytest.raises(Exception, match="taken"):
                    await Registrar(self.options(guarded)).register("a@h")
                async with Registrar(self.options(guarded)) as observer:
                    assert await observer.nodes() == ["a@h"]
            assert set(await raw.under("services/ergo/cluster/c/routes/")) == {
                "services/ergo/cluster/c/routes/leaving/a@h"
            }

    async def test_another_cluster_is_denied_with_a_hint_at_the_role(self, guarded: str) -> None:
        began = time.monotonic()
        failed = await fails(dataclasses.replace(self.options(guarded), cluster="elsewhere"))
        assert time.monotonic() - began < 2
        assert "permission denied" in str(failed)
        assert "role" in str(failed)

    async def test_a_missing_read_permission_names_the_prefix(self, guarded: str) -> None:
        prefix = "services/ergo/cluster/c/config/*/"
        root = f"root:{SECRET}"
        await etcdctl(guarded, "role", "revoke-permission", "member", "--prefix", prefix, user=root)
        failed = await fails(self.options(guarded))
        assert "permission denied" in str(failed)
        assert prefix in str(failed)

    @pytest.mark.parametrize(("username", "password"), [("web", "wr0ng-" + SECRET), ("nobody", SECRET)])
    async def test_a_wrong_one_is_refused_at_once(
        self, guarded: str, username: str, password: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        options = self.options(guarded, username=username, password=password)
        began = time.monotonic()
        failed = await fails(options)
        assert time.monotonic() - began < 2
        assert "wrong username or password" in str(failed)
        assert guarded in str(failed)
        seen = [str(failed), repr(failed), repr(failed.__cause__), repr(options), str(options), caplog.text]
        seen += [repr(vars(failed)), *(repr(record.__dict__) for record in caplog.records)]
        assert not any(password in text for text in seen)

    async def test_that_failed_leaves_no_connection(self, guarded: str) -> None:
        async with FaultProxy(guarded) as relay:
            await fails(self.options(relay.endpoint, password="wrong"))
            assert relay.connections
            gc.collect()  # the error holds the call that failed, and gRPC hangs up when that goes
            await eventually(lambda: relay.open_connections == 0)

    async def test_loses_a_permission_and_gets_it_back(self, guarded: str) -> None:
        """A watch that etcd refuses is no watch: an observer must not take it for silence in the cluster."""
        prefix, root = "services/ergo/cluster/c/config/*/", f"root:{SECRET}"
        async with FaultProxy(guarded) as relay, Registrar(self.options(relay.endpoint)) as observer:
            async with observer.subscribe(RegistrarConnected, RegistrarDisconnected) as told:
                await etcdctl(guarded, "role", "revoke-permission", "member", "--prefix", prefix, user=root)
                await relay.refuse()
                await relay.heal()
                lost = await next_event(told, within=8)
                assert isinstance(lost, RegistrarDisconnected)
                assert "permission denied" in str(lost.reason)
                await etcdctl(guarded, "role", "grant-permission", "member", "--prefix", "read", prefix, user=root)
                assert isinstance(await next_event(told), RegistrarConnected)
            async with Raw(guarded, "root", SECRET) as raw:
                await raw.put(f"{prefix}item", "int:7")
                await settled(raw, observer)
            assert await observer.config_item("item") == 7

    async def test_none_at_all_says_what_to_set(self, guarded: str) -> None:
        began = time.monotonic()
        failed = await fails(short_options(guarded, cluster="c"))
        assert time.monotonic() - began < 2
        assert "username and password" in str(failed)

    async def test_to_an_etcd_that_wants_none_does_no_harm(self, make_registrar: Make) -> None:
        registrar = await make_registrar("a@h", username="web", password=SECRET)
        assert registrar.state is State.CONNECTED

    async def test_is_repeated_when_etcd_forgets_it(self, tmp_path: Path) -> None:
        """The tokens of etcd are in memory: a restart ends them all."""
        root = f"root:{SECRET}"
        async with LocalEtcd(directory=tmp_path) as etcd:
            port = int(etcd.endpoint.rpartition(":")[2])
            await etcdctl(etcd.endpoint, "user", "add", root)
            await etcdctl(etcd.endpoint, "user", "grant-role", "root", "root")
            await etcdctl(etcd.endpoint, "auth", "enable")
            options = self.options(etcd.endpoint, username="root", lease_ttl=10)
            a = await Registrar(options, node="a@h").__aenter__()
            observer = await Registrar(options).__aenter__()
        async with LocalEtcd(directory=tmp_path, port=port), Raw(options.endpoints[0], "root", SECRET) as raw:
            await settled(raw, observer)
            await settled(raw, a)
            await a.register_application_route(running("web", "a@h"))
            await settled(raw, observer)
            assert (await observer.pick("web")).node == "a@h"
            await asyncio.gather(a.close(), observer.close())
            assert a.stats.claims == 1

    async def test_is_repeated_when_the_token_runs_out(self) -> None:
        async with LocalEtcd(arguments=["--auth-token-ttl=1"]) as etcd:
            await etcdctl(etcd.endpoint, "user", "add", f"root:{SECRET}")
            await etcdctl(etcd.endpoint, "user", "grant-role", "root", "root")
            await etcdctl(etcd.endpoint, "auth", "enable")
            options = self.options(etcd.endpoint, username="root", lease_ttl=10)
            async with Registrar(options, node="a@h") as a, Registrar(options) as observer:
                await asyncio.sleep(2.5)  # nothing to wait for: it is the passing of time that ends a token
                calls = [a.register_application_route(running(f"app{n}", "a@h")) for n in range(10)]
                await asyncio.gather(*calls)
                await asyncio.sleep(2.5)
                await observer.register("b@h")
                async with Raw(etcd.endpoint, "root", SECRET) as raw:
                    await settled(raw, observer)
                assert await observer.nodes() == ["a@h"]
                assert len([await observer.pick(f"app{n}") for n in range(10)]) == 10


class TestTLS:
    async def works(self, options: Options) -> None:
        async with Registrar(options, node="a@h") as registrar, Registrar(options) as observer:
            assert await observer.nodes() == ["a@h"]
            assert registrar.info().server == options.endpoints[0]

    async def test_with_an_own_ca(self, files: dict[str, Path]) -> None:
        async with LocalEtcd(tls=ServerTLS(cert=files["cert"], key=files["key"])) as etcd:
            await self.works(short_options(etcd.endpoint, tls=TLS(ca=files["ca"])))
            await self.works(short_options(f"https://{etcd.endpoint}", tls=TLS(ca=str(files["ca"]))))

    async def test_on_both_sides(self, files: dict[str, Path]) -> None:
        server = ServerTLS(cert=files["cert"], key=files["key"], client_ca=files["ca"])
        async with LocalEtcd(tls=server) as etcd:
            tls = TLS(ca=files["ca"], cert=files["client_cert"], key=files["client_key"])
            await self.works(short_options(etcd.endpoint, tls=tls))
            failed = await fails(short_options(etcd.endpoint, tls=TLS(ca=files["ca"]), dial_timeout=1))
            assert etcd.endpoint in str(failed)
            with pytest.warns(UserWarning, match="insecure_skip_verify"):
                await self.works(short_options(etcd.endpoint, tls=tls, insecure_skip_verify=True))

    async def test_by_a_stranger_is_an_error_that_names_the_endpoint(self, files: dict[str, Path]) -> None:
        async with LocalEtcd(tls=ServerTLS(cert=files["cert"], key=files["key"])) as etcd:
            failed = await fails(short_options(etcd.endpoint, tls=TLS(ca=files["other_ca"]), dial_timeout=2))
            assert failed.endpoints.keys() == {etcd.endpoint}
            assert "certificate" in str(failed).lower()
            failed = await fails(short_options(f"https://{etcd.endpoint}", dial_timeout=2))  # gRPC's own roots
            assert "certificate" in str(failed).lower()

    async def test_under_another_name_needs_server_name(self, files: dict[str, Path]) -> None:
        async with LocalEtcd(tls=ServerTLS(cert=files["named_cert"], key=files["named_key"])) as etcd:
            tls = TLS(ca=files["ca"])
            failed = await fails(short_options(etcd.endpoint, tls=tls, dial_timeout=1))
            assert etcd.endpoint in str(failed)
            await self.works(short_options(etcd.endpoint, tls=dataclasses.replace(tls, server_name="etcd.example.org")))

    @pytest.mark.parametrize("named", ["", "named_", "wildcard_"])
    async def test_without_proof_works_and_warns(self, files: dict[str, Path], named: str) -> None:
        cert, key = files[f"{named}cert"], files[f"{named}key"]
        async with LocalEtcd(tls=ServerTLS(cert=cert, key=key)) as etcd:
            with pytest.warns(UserWarning, match="insecure_skip_verify: whoever answers first is trusted"):
                await self.works(short_options(etcd.endpoint, insecure_skip_verify=True))

    async def test_without_proof_of_an_etcd_that_is_not_there(self, closed_port: str, mute_port: str) -> None:
        with pytest.warns(UserWarning, match="insecure_skip_verify"):
            failed = await fails(
                Options(endpoints=(closed_port, mute_port), insecure_skip_verify=True, dial_timeout=1), within=3
            )
        assert failed.endpoints.keys() == {closed_port, mute_port}

    async def test_to_an_etcd_without_it_is_an_error(self, etcd: str, files: dict[str, Path]) -> None:
        failed = await fails(short_options(etcd, tls=TLS(ca=files["ca"]), dial_timeout=1))
        assert etcd in str(failed)

    async def test_to_what_hangs_up_on_it_is_an_error_that_says_so(self) -> None:
        """Whether the end or a reset comes first is up to the network: both tell the same."""

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)  # it has begun to speak TLS
            writer.transport.abort()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        linger = struct.pack("ii", 1, 0)  # on, 0 s: closed by a reset; what is accepted inherits it
        server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        try:
            with pytest.warns(UserWarning, match="insecure_skip_verify"):
                failed = await fails(short_options(endpoint, insecure_skip_verify=True, dial_timeout=1))
            assert "Connection reset by peer (it hung up: perhaps it does not speak TLS)" in str(failed)
        finally:
            server.close()

    async def test_missing_where_etcd_wants_it_is_an_error(self, files: dict[str, Path]) -> None:
        async with LocalEtcd(tls=ServerTLS(cert=files["cert"], key=files["key"])) as etcd:
            failed = await fails(short_options(etcd.endpoint, dial_timeout=1))
            assert etcd.endpoint in str(failed)

    @pytest.mark.parametrize("field", ["ca", "cert", "key"])
    async def test_with_a_file_that_is_not_there_names_it(
        self, etcd: str, files: dict[str, Path], field: str, tmp_path: Path
    ) -> None:
        given: dict[str, Any] = {"ca": files["ca"], "cert": files["client_cert"], "key": files["client_key"]}
        given[field] = tmp_path / "absent.pem"
        began = time.monotonic()
        failed = await fails(short_options(etcd, tls=TLS(**given)))
        assert time.monotonic() - began < 1
        assert f"tls.{field}" in str(failed)
        assert "absent.pem" in str(failed)

    @pytest.mark.parametrize("field", ["ca", "cert", "key"])
    async def test_with_a_file_that_is_no_pem_is_an_error(self, files: dict[str, Path], field: str) -> None:
        given: dict[str, Any] = {"ca": files["ca"], "cert": files["client_cert"], "key": files["client_key"]}
        given[field] = files["garbage"]
        async with LocalEtcd(tls=ServerTLS(cert=files["cert"], key=files["key"])) as etcd:
            failed = await fails(short_options(etcd.endpoint, tls=TLS(**given), dial_timeout=1))
            assert etcd.endpoint in str(failed) or "garbage.pem" in str(failed)


class TestFromTheEnvironment:
    async def test_a_registrar_is_set_up(self, etcd: str, relay: FaultProxy) -> None:
        cluster = short_options(etcd).cluster
        options = Options.from_env(
            {"ERGO_REGISTRAR_ENDPOINTS": etcd, "ERGO_REGISTRAR_CLUSTER": cluster, "ERGO_REGISTRAR_LEASE_TTL": "3"}
        )
        async with Registrar(options, node="a@h"), Raw(etcd) as raw:
            key = await raw.get(f"services/ergo/cluster/{cluster}/routes/nodes/a@h")
            assert key
            assert key.value == NO_ROUTES
            assert await raw.ttl(key.lease) == 3
