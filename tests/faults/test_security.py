"""Who is let in, by what, and what never shows: certificates, the documented roles, secrets."""

import asyncio
import contextlib
import logging
import os
import re
import sys
import traceback
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from anyio.from_thread import start_blocking_portal

from ergo_registrar import (
    TLS,
    ConfigLevel,
    ConnectionFailedError,
    NodeLeft,
    Options,
    Registrar,
    RegistrarConnected,
    RegistrarDisconnected,
    State,
    TerminatedError,
)
from ergo_registrar.admin.config import configured
from ergo_registrar.etcd.client import Client
from ergo_registrar.etcd.server import LocalEtcd, ServerTLS
from ergo_registrar.testing.proxy import FaultProxy
from tests.faults.support import CLUSTER, LOAD, ROOT, SECRET
from tests.integration.support import Raw, etcdctl, eventually, next_event, running, settled, short_options, waiting

PAGE = Path(__file__).parents[2] / "docs/reference/keys.md"
PREFIX = f"services/ergo/cluster/{CLUSTER}/"


# Certificates


class Papers:
    """The PEM files of an etcd and of its clients, all issued by one authority, until they are renewed by another."""

    def __init__(self, place: Path) -> None:
        self.ca = place / "ca.pem"
        self.cert, self.key = place / "client.pem", place / "client.key"
        self._server_cert, self._server_key = place / "server.pem", place / "server.key"
        self.renew()

    @property
    def server(self) -> ServerTLS:
        return ServerTLS(cert=self._server_cert, key=self._server_key, client_ca=self.ca)

    @property
    def client(self) -> TLS:
        return TLS(ca=self.ca, cert=self.cert, key=self.key)

    def renew(self) -> None:
        """Replace every file, as issued by an authority that was not there before."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca))
        for identity, cert, key in (
            ("127.0.0.1", self._server_cert, self._server_key),
            ("web@example.org", self.cert, self.key),
        ):
            issued = authority.issue_cert(identity)
            issued.private_key_pem.write_to_path(str(key))
            issued.cert_chain_pems[0].write_to_path(str(cert))


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    return Papers(tmp_path)


class TestCertificates:
    async def test_replaced_on_both_sides_are_used_from_the_next_connection_on(self, papers: Papers) -> None:
        """A new authority for all, and etcd restarted with it: the lease goes on, and nobody sees it leave."""
        async with LocalEtcd(tls=papers.server) as etcd:
            options = short_options(etcd.endpoint, tls=papers.client, lease_ttl=20)
            async with Registrar(options, node="a@h") as member, Registrar(options) as observer:
                async with observer.subscribe(NodeLeft) as left:
                    await asyncio.to_thread(papers.renew)
                    await etcd.members[0].restart()
                    await member.register_application_route(running("web", "a@h"))
                    await eventually(lambda: member.health().ok and observer.health().ok)
                    await observer.wait_revision(member.revision)
                    assert (await observer.pick("web")).node == "a@h"
                    assert waiting(left) == []
                assert member.stats.claims == 1
            async with Registrar(options) as another:
                await eventually(lambda: another.state is State.CONNECTED)

    async def test_of_etcd_replaced_without_proof_are_trusted_again(self, papers: Papers) -> None:
        """`insecure_skip_verify` trusts who answers first at each connection, so a renewed certificate is no hurdle."""
        server = ServerTLS(cert=papers.server.cert, key=papers.server.key)
        async with LocalEtcd(tls=server) as etcd:
            with pytest.warns(UserWarning, match="insecure_skip_verify: whoever answers first is trusted"):
                options = short_options(etcd.endpoint, insecure_skip_verify=True, lease_ttl=20)
            async with Registrar(options, node="a@h") as member:
                await asyncio.to_thread(papers.renew)
                await etcd.members[0].restart()
                await member.register_application_route(running("web", "a@h"))
                assert member.stats.claims == 1

    @pytest.mark.parametrize("field", ["ca", "cert", "key"])
    async def test_that_are_away_for_a_moment_are_named_and_read_again(
        self, papers: Papers, tmp_path: Path, field: str
    ) -> None:
        """A file is away when the connection breaks: `SUSPENDED`, and the reason names it; back when the file is."""
        async with LocalEtcd(tls=papers.server) as etcd, FaultProxy(etcd.endpoint) as proxy:
            options = short_options(proxy.endpoint, tls=papers.client, lease_ttl=20)
            async with Registrar(options, node="a@h") as member:
                file, away = anyio.Path(getattr(papers, field)), anyio.Path(tmp_path, "away")
                await file.rename(away)
                await proxy.cut()
                named = f"tls.{field}: cannot read '{file}'"
                await eventually(lambda: named in (member.health().reason or ""))
                assert member.state is State.SUSPENDED
                await away.rename(file)
                await eventually(lambda: member.health().ok)
                assert member.stats.claims == 1

    async def test_that_do_not_fit_each_other_for_a_moment_are_read_again(self, papers: Papers) -> None:
        """The new certificate is there, and the new key not yet: `SUSPENDED`, and back when both are."""
        async with LocalEtcd(tls=papers.server) as etcd, FaultProxy(etcd.endpoint) as proxy:
            options = short_options(proxy.endpoint, tls=papers.client, lease_ttl=20)
            async with Registrar(options, node="a@h") as member:
                key = anyio.Path(papers.key)
                right, other = await key.read_bytes(), trustme.CA().issue_cert("web@example.org").private_key_pem
                await key.write_bytes(other.bytes())
                await proxy.cut()
                await eventually(lambda: member.health().state is State.SUSPENDED)
                await key.write_bytes(right)
                await eventually(lambda: member.health().ok)
                assert member.stats.claims == 1

    async def test_of_an_authority_among_the_default_roots_need_no_option(self, papers: Papers) -> None:
        """An `https://` endpoint is enough where gRPC's default roots, which a variable names, know the authority."""
        program = (
            "import asyncio, sys\n"
            "from ergo_registrar import Options, Registrar\n"
            "async def main():\n"
            "    async with Registrar(Options(endpoints=(sys.argv[1],), dial_timeout=5)) as registrar:\n"
            "        print(registrar.state)\n"
            "asyncio.run(main())\n"
        )
        server = ServerTLS(cert=papers.server.cert, key=papers.server.key)
        async with LocalEtcd(tls=server) as etcd:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", program, f"https://{etcd.endpoint}"),
                env=os.environ | {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(papers.ca)},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            async with asyncio.timeout(15):
                printed, _ = await process.communicate()
        assert printed.decode().strip() == "State.CONNECTED"


# Roles


def documented(role: str) -> list[tuple[str, str]]:
    """Return the permissions that the page grants a role: access and prefix, for cluster CLUSTER and node a@h."""
    text = PAGE.read_text().replace("production", CLUSTER).replace("web1@localhost", "a@h")
    found = re.findall(rf'role grant-permission {role} --prefix=true (\w+) "(.+)"', text)
    assert found, f"{PAGE} grants {role} nothing"
    return found


MEMBER, OBSERVER, OPERATOR = documented("member"), documented("observer"), documented("operator")


@contextlib.asynccontextmanager
async def with_the_documented_roles() -> AsyncIterator[str]:
    async with LocalEtcd() as etcd:
        for command in (f"user add {ROOT}", "user grant-role root root"):
            await etcdctl(etcd.endpoint, *command.split())
        for user, role in (("member", MEMBER), ("observer", OBSERVER), ("operator", OPERATOR)):
            await etcdctl(etcd.endpoint, "role", "add", user)
            await etcdctl(etcd.endpoint, "user", "add", f"{user}:{SECRET}")
            await etcdctl(etcd.endpoint, "user", "grant-role", user, user)
            for access, prefix in role:
                await etcdctl(etcd.endpoint, "role", "grant-permission", user, "--prefix", access, prefix)
        await etcdctl(etcd.endpoint, "auth", "enable")
        yield etcd.endpoint


@pytest.fixture(scope="module")
def strict() -> Iterator[str]:
    """The endpoint of an etcd that lets in member and observer, as documented, and root."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(with_the_documented_roles()) as endpoint:
        yield endpoint


@pytest.fixture
async def root(strict: str) -> AsyncIterator[Raw]:
    """That etcd as its root sees it, with nothing in it."""
    async with Raw(strict, "root", SECRET) as root:
        await root.delete_prefix("services/ergo/")
        yield root


def options_of(user: str, endpoint: str, **overrides: Any) -> Options:
    return short_options(endpoint, cluster=CLUSTER, username=user, password=SECRET, **overrides)


class TestARole:
    async def test_as_documented_is_enough_for_a_member(self, strict: str, root: Raw) -> None:
        """Enter, publish, withdraw, read all four levels, reconnect, come back under a new lease, leave."""
        async with FaultProxy(strict) as proxy, Registrar(options_of("member", proxy.endpoint), node="a@h") as member:
            await member.register_application_route(running("web", "a@h"))
            await member.register_application_route(running("db", "a@h"))
            await member.unregister_application_route("db")
            for n, prefix in enumerate(prefix for access, prefix in MEMBER if access == "read"):
                await member.wait_revision(await root.put(f"{prefix}item{n}", f"int:{n}"))
            assert await member.config() == {f"item{n}": n for n in range(4)}
            await proxy.cut()
            await member.register_application_route(running("db", "a@h"))
            await root.put(f"{PREFIX}config/*/item2", "int:7")
            await settled(root, member)
            assert await member.config_item("item2") == 7
            async with member.subscribe(RegistrarConnected) as told:
                key = await root.get(f"{PREFIX}routes/nodes/a@h")
                assert key
                await root.revoke(key.lease)
                await next_event(told)
            assert set(await root.under(f"{PREFIX}routes/applications/")) == {
                f"{PREFIX}routes/applications/{name}/a@h" for name in ("db", "web")
            }
        assert set(await root.under(f"{PREFIX}routes/")) == {f"{PREFIX}routes/leaving/a@h"}

    async def test_as_documented_is_enough_for_an_observer(self, strict: str, root: Raw) -> None:
        """Enter, see who comes, read both levels, reconnect."""
        async with FaultProxy(strict) as proxy, Registrar(options_of("observer", proxy.endpoint)) as observer:
            async with Registrar(options_of("member", strict), node="a@h"):
                for n, prefix in enumerate(prefix for _, prefix in OBSERVER[1:]):
                    await observer.wait_revision(await root.put(f"{prefix}item{n}", f"int:{n}"))
                assert await observer.nodes() == ["a@h"]
                assert await observer.config() == {"item0": 0, "item1": 1}
                await proxy.cut()
            await root.put(f"{PREFIX}config/*/item0", "int:7")
            await settled(root, observer)
            assert await observer.nodes() == []
            assert await observer.config_item("item0") == 7

    async def test_as_documented_is_enough_for_an_operator(self, strict: str, root: Raw) -> None:
        """Write and delete at each level; the others may not, and are told which key."""
        levels = {level: "a@h" if level in (1, 2) else None for level in ConfigLevel}
        async with Registrar(options_of("operator", strict)) as operator:
            for level, node in levels.items():
                await operator.set_config("item", level, level=level, node=node, expect=None)
            async with configured(options_of("operator", strict), "a@h") as config:
                assert len((await config.read()).stored) == 4
            for level, node in levels.items():
                await operator.unset_config("item", level=level, node=node, expect=int(level))
        assert await root.under("services/ergo/config/") == {}
        async with Registrar(options_of("member", strict), node="a@h") as member:
            for source in await member.explain("item"):
                await root.put(str(source.key), "x")
                with pytest.raises(ConnectionFailedError, match="permission denied") as failed:
                    await member.set_config("item", 1, level=source.level)
                assert f"configure '{source.key}'" in str(failed.value)
                with pytest.raises(ConnectionFailedError, match="permission denied") as failed:
                    await member.unset_config("item", level=source.level)
                assert f"configure '{source.key}'" in str(failed.value)

    async def test_that_names_the_keys_one_by_one_is_enough_too(self, strict: str, root: Raw) -> None:
        """The stricter one of the page: a member may write nothing but its own keys."""
        routes = f"{PREFIX}routes/"
        own = [f"{routes}{key}" for key in ("nodes/a@h", "leaving/a@h", "applications/web/a@h")]
        await etcdctl(strict, "role", "add", "strict", user=ROOT)
        for arguments in (
            ("--prefix", "read", routes),
            *(("--prefix", access, prefix) for access, prefix in MEMBER if prefix != routes),
            *(("readwrite", key) for key in own),
        ):
            await etcdctl(strict, "role", "grant-permission", "strict", *arguments, user=ROOT)
        await etcdctl(strict, "user", "add", f"strict:{SECRET}", user=ROOT)
        await etcdctl(strict, "user", "grant-role", "strict", "strict", user=ROOT)
        options = options_of("strict", strict)
        async with Registrar(options, node="a@h", applications=[running("web", "a@h")]) as member:
            await member.register_application_route(running("web", "a@h", 7))
            with pytest.raises(ConnectionFailedError, match="permission denied"):
                await member.register_application_route(running("db", "a@h"))
            assert set(await root.under(routes)) == set(own) - {f"{routes}leaving/a@h"}
        assert set(await root.under(routes)) == {f"{routes}leaving/a@h"}

    @pytest.mark.parametrize(
        ("user", "access", "prefix", "left"),
        [
            *(("member", access, prefix, None) for access, prefix in MEMBER),
            *(("member", access, prefix, "read") for access, prefix in MEMBER if access == "readwrite"),
            *(("member", access, prefix, "write") for access, prefix in MEMBER if access == "readwrite"),
            *(("observer", access, prefix, None) for access, prefix in OBSERVER),
        ],
    )
    async def test_one_permission_short_is_an_error_that_names_the_prefix(
        self, strict: str, user: str, access: str, prefix: str, left: str | None
    ) -> None:
        """At once, and with the page that lists the role; in again as soon as it is granted."""
        await etcdctl(strict, "role", "revoke-permission", user, "--prefix", prefix, user=ROOT)
        if left:
            await etcdctl(strict, "role", "grant-permission", user, "--prefix", left, prefix, user=ROOT)
        registrar = Registrar(options_of(user, strict), node="a@h" if user == "member" else None)
        try:
            with pytest.raises(ConnectionFailedError, match="permission denied") as failed:
                await asyncio.wait_for(registrar.__aenter__(), LOAD)
            assert prefix in str(failed.value)
            assert "docs/reference/keys.md" in str(failed.value)
        finally:
            await etcdctl(strict, "role", "grant-permission", user, "--prefix", access, prefix, user=ROOT)
        async with registrar:
            await eventually(lambda: registrar.state is State.CONNECTED)

    async def test_that_loses_a_permission_while_it_runs_is_told_at_the_next_write(
        self, strict: str, root: Raw
    ) -> None:
        """The call raises, with the prefix; the member stays a member, and goes on as soon as it may again."""
        (access, prefix), *_ = MEMBER
        async with Registrar(options_of("member", strict), node="a@h") as member:
            await etcdctl(strict, "role", "grant-permission", "member", "--prefix", "read", prefix, user=ROOT)
            try:
                with pytest.raises(ConnectionFailedError, match="permission denied") as failed:
                    await member.register_application_route(running("web", "a@h"))
                assert prefix in str(failed.value)
                renewals = member.stats.lease_renewals
                await eventually(lambda: member.stats.lease_renewals > renewals)
                assert await root.get(f"{prefix}nodes/a@h")
            finally:
                await etcdctl(strict, "role", "grant-permission", "member", "--prefix", access, prefix, user=ROOT)
            await member.register_application_route(running("web", "a@h"))
            assert member.stats.claims == 1


# Secrets


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and everything that a traceback of it could show."""
    yield error
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        if other is not None:
            yield from chain(other)


def shown(error: BaseException) -> Iterator[str]:
    """Yield whatever anyone prints of an error: also tools that print the variables of every call in a traceback."""
    yield "".join(traceback.format_exception(error))
    for each in chain(error):
        yield from (str(each), repr(each), repr(vars(each)))
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if frame.f_code.co_filename != __file__:
                yield from (repr(value) for value in frame.f_locals.values())


class TestASecret:
    """The password shows nowhere, whatever fails."""

    WRONG = "wr0ng-p4ssw0rd"

    def hides(self, texts: Iterable[str], secret: str) -> None:
        for text in texts:
            assert secret not in text

    async def test_of_a_login_that_is_refused(self, strict: str, caplog: pytest.LogCaptureFixture) -> None:
        """Not in the error, its group, its cause and their variables, the log at DEBUG, the options, the health."""
        caplog.set_level(logging.DEBUG)
        options = short_options(strict, cluster=CLUSTER, username="member", password=self.WRONG)
        registrar = Registrar(options, node="a@h")
        with pytest.raises(ExceptionGroup) as failed:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(registrar.register("a@h"))
        self.hides(shown(failed.value), self.WRONG)
        self.hides([repr(options), str(options), repr(registrar), repr(registrar.health())], self.WRONG)
        self.hides([caplog.text, *(repr(vars(record)) for record in caplog.records)], self.WRONG)
        assert "etcd refuses the login of 'member'" in caplog.text
        await registrar.close()

    async def test_of_a_login_that_is_refused_later(
        self, strict: str, root: Raw, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Etcd forgets the user: the event, the health and the log tell of the refusal, and not of what was refused."""
        caplog.set_level(logging.DEBUG)
        await etcdctl(strict, "user", "add", f"brief:{self.WRONG}", user=ROOT)
        await etcdctl(strict, "user", "grant-role", "brief", "observer", user=ROOT)
        async with FaultProxy(strict) as proxy:
            options = short_options(proxy.endpoint, cluster=CLUSTER, username="brief", password=self.WRONG)
            async with Registrar(options) as observer, observer.subscribe() as told:
                await etcdctl(strict, "user", "delete", "brief", user=ROOT)
                await proxy.cut()
                lost = await next_event(told, RegistrarDisconnected)
                assert "wrong username or password" in str(lost.reason)
                self.hides(shown(lost.reason), self.WRONG)
                self.hides([repr(lost), repr(observer.health())], self.WRONG)
        self.hides([caplog.text, *(repr(vars(record)) for record in caplog.records)], self.WRONG)

    async def test_of_a_registrar_that_dies_of_a_bug(
        self, strict: str, root: Raw, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The traceback of the bug is logged and raised, through every call of the package that it came by."""
        caplog.set_level(logging.DEBUG)
        async with Registrar(options_of("member", strict), node="a@h") as member:

            async def broken(*_: object, **__: object) -> None:
                raise ZeroDivisionError("a bug")

            monkeypatch.setattr(Client, "keep_alive", broken)
            await eventually(lambda: member.state is State.FAILED)
            with pytest.raises(TerminatedError) as ended:
                await member.nodes()
            self.hides(shown(ended.value), SECRET)
            self.hides([repr(member), repr(member.health())], SECRET)
        self.hides([caplog.text, *(repr(vars(record)) for record in caplog.records)], SECRET)
