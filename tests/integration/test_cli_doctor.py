"""`ergo-registrar doctor`: each of its findings, with the problem planted in a real etcd, through its entry point."""

import asyncio
import contextlib
import datetime
import itertools
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aetcd
import msgspec
import pytest
import trustme
from aetcd import rpc
from anyio.from_thread import start_blocking_portal

from ergo_registrar import Options, Registrar, Route
from ergo_registrar.etcd.client import progress_comes_last
from ergo_registrar.etcd.server import LocalEtcd, ServerTLS
from ergo_registrar.testing.proxy import FaultProxy
from tests.faults.support import CLUSTER, SECRET
from tests.faults.test_security import MEMBER, OBSERVER
from tests.integration.support import NO_ROUTES, WEB_ON_NODE1, Raw, etcdctl, eventually
from tests.integration.test_cli import COMMAND

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are stopped as POSIX does it")

ROUTES = f"services/ergo/cluster/{CLUSTER}/routes/"
CONFIG = f"services/ergo/cluster/{CLUSTER}/config/"


class Finding(msgspec.Struct, forbid_unknown_fields=True):
    """As `--json` writes it."""

    id: str
    severity: str
    where: str
    what: str
    cure: str


class Diagnosis:
    """What one run found."""

    def __init__(self, exit_code: int | None, out: str, err: str) -> None:
        self.exit_code = exit_code
        self.err = err
        self.findings = msgspec.json.decode(out, type=list[Finding])
        assert exit_code == any(finding.severity == "error" for finding in self.findings)

    def of(self, id: str, where: str | None = None) -> Finding:
        """Return the one finding with this id, and this place where one is given."""
        found = [each for each in self.findings if each.id == id and where in (None, each.where)]
        assert len(found) == 1, f"{len(found)} of {id} at {where} in {self.findings}"
        assert found[0].severity in ("ok", "note") or found[0].cure, "what to do about it?"
        return found[0]

    @property
    def bad(self) -> set[str]:
        """The ids of errors and warnings."""
        return {finding.id for finding in self.findings if finding.severity in ("error", "warning")}


async def run(*arguments: str, **environ: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        "doctor",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if not k.startswith("ERGO_REGISTRAR_")} | environ,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def diagnose(*arguments: str, **environ: str) -> Diagnosis:
    return Diagnosis(*await run("--json", "--cluster", CLUSTER, *arguments, **environ))


# The keys


@contextlib.asynccontextmanager
async def sick() -> AsyncIterator[Diagnosis]:
    """An etcd with all that can be wrong with keys, and what was found there as node1@host."""
    async with LocalEtcd() as etcd, Raw(etcd.endpoint) as raw:
        live = await raw.grant(600)
        for key, value, lease in (
            ("nodes/node1@host", NO_ROUTES, live),
            ("applications/web-server/node1@host", WEB_ON_NODE1, live),
            ("applications/web-server/gone@host", WEB_ON_NODE1.replace(b"node1", b"gone1"), live),
            ("nodes/by-hand@host", NO_ROUTES, 0),
            ("leaving/left@host", b"", 0),
            ("nodes/odd@host", b"no base64", live),
            ("elsewhere/what\x1b[2J", b"", live),
        ):
            await raw.put(ROUTES + key, value, lease)
        for key, text in (
            ("*/port", b"int:5432"),
            ("*/ratio", b"float:much"),
            ("*/name", b"\xff"),
            ("*/a/b", b"x"),
            ("never@host/x", b"x"),
        ):
            await raw.put(CONFIG + key, text)

        async def keep_some_tired() -> None:
            """At any time there is a lease of which less than a third is left, whenever the doctor comes."""
            for n in itertools.count():
                await raw.put(f"{ROUTES}nodes/tired{n}@host", NO_ROUTES, await raw.grant(6))
                await asyncio.sleep(0.5)

        async def standing() -> dict[str, tuple[int, bytes]]:
            found = await raw.under("services/")
            return {key: (it.modified, it.value) for key, it in found.items() if "nodes/tired" not in key}

        async def one_has_gone() -> bool:
            return await raw.get(f"{ROUTES}nodes/tired0@host") is None

        before = await standing()
        tiring = asyncio.create_task(keep_some_tired())
        try:
            await eventually(lambda: raw.get(f"{ROUTES}nodes/tired1@host"))
            await eventually(one_has_gone, within=20)
            diagnosis = await diagnose("--node", "node1@host", "--endpoints", etcd.endpoint)
        finally:
            tiring.cancel()
        assert await standing() == before
        yield diagnosis


@pytest.fixture(scope="module")
def keys() -> Iterator[Diagnosis]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(sick()) as diagnosis:
        yield diagnosis


@pytest.mark.parametrize(
    ("id", "where", "told"),
    [
        ("key-unknown", ROUTES, "1 key: services/ergo/cluster/c/routes/elsewhere/what\x1b[2J"),
        ("key-unknown", f"{CONFIG}*/", "1 key: services/ergo/cluster/c/config/*/a/b"),
        ("value-undecodable", ROUTES, "2 values: "),
        ("value-undecodable", f"{CONFIG}*/", "1 value: services/ergo/cluster/c/config/*/name (byte 0: "),
        ("value-untyped", f"{CONFIG}*/", "1 value not of the type in front, read as text: ratio = float:much"),
        ("application-orphaned", ROUTES, "1 application on a node that is not there: web-server on gone@host"),
        ("key-without-lease", ROUTES, "1 key without a lease, so nothing ever takes them away: "),
        ("marker-without-lease", ROUTES, "1 departure marker without a lease: "),
        ("lease-expiring", f"{ROUTES}nodes/", "about to expire, since the lease was not renewed lately: tired"),
        ("config-of-absent-node", CONFIG, "configuration for 1 node not there now: never@host"),
        ("node-registered", f"{ROUTES}nodes/node1@host", "'node1@host' is registered, its lease of 600 s has "),
    ],
)
def test_a_problem_with_keys_is_found(keys: Diagnosis, id: str, where: str, told: str) -> None:
    finding = keys.of(id, where)
    assert told in finding.what
    assert finding.severity == ("note" if id in ("config-of-absent-node", "node-registered") else "warning")


def test_warnings_alone_are_no_failure(keys: Diagnosis) -> None:
    assert (keys.exit_code, keys.err) == (0, "")


# The endpoints


async def test_problems_with_endpoints_are_found_side_by_side(etcd: str) -> None:
    """One is well, and nobody is at one, one swallows everything, one is slow, one is of another cluster."""
    async with (
        LocalEtcd() as other,
        FaultProxy(etcd) as closed,
        FaultProxy(etcd) as silent,
        FaultProxy(etcd) as slow,
    ):
        await closed.refuse()
        silent.black_hole()
        slow.delay(0.15)
        endpoints = [etcd, closed.endpoint, silent.endpoint, slow.endpoint, other.endpoint]
        found = await diagnose("--endpoints", ",".join(endpoints), "--request-timeout", "4")
    assert found.of("endpoint", etcd).what.startswith("etcd 3.")
    assert found.of("endpoint-unreachable", endpoints[1]).severity == "error"
    assert "no answer within" in found.of("endpoint-silent", endpoints[2]).what
    assert found.of("endpoint-slow", endpoints[3]).severity == "warning"
    assert f"another etcd cluster than {etcd}" in found.of("endpoint-other-cluster", endpoints[4]).what
    assert {finding.where for finding in found.findings if finding.id.startswith("endpoint-")} == set(endpoints[1:])
    assert found.of("permissions").where == f"{etcd}, {endpoints[3]}"
    assert found.exit_code == 1


async def test_a_member_that_stands_still_costs_a_timeout_and_no_more() -> None:
    async with LocalEtcd() as etcd:
        await etcd.members[0].pause()
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = await diagnose("--endpoints", etcd.endpoint, "--request-timeout", "1")
        assert loop.time() - began < 8  # one second, the start of a process, and a busy machine
        etcd.members[0].resume()
    assert [finding.id for finding in found.findings] == ["endpoint-silent"]


async def test_a_member_without_a_leader_is_found() -> None:
    async with LocalEtcd(3) as etcd:
        one, *others = etcd.members
        well = await diagnose("--endpoints", ",".join(etcd.endpoints))
        assert [each.where for each in well.findings if each.id == "endpoint"] == list(etcd.endpoints)
        assert well.bad == set()
        for other in others:
            await other.kill()

        async def leaderless() -> bool:
            client = aetcd.Client(*one.endpoint.split(":"))
            async with client:
                status = await client.maintenancestub.Status(rpc.StatusRequest(), timeout=10)
            return bool(status.leader == 0)

        await eventually(leaderless, within=20)
        found = await diagnose("--endpoints", ",".join(etcd.endpoints), "--request-timeout", "3")
    assert found.of("endpoint-no-leader").where == one.endpoint
    assert [each.where for each in found.findings if each.id == "endpoint-unreachable"] == list(etcd.endpoints[1:])


async def test_an_etcd_that_fills_up_is_found_before_and_after() -> None:
    async with LocalEtcd(arguments=["--quota-backend-bytes=8388608"]) as etcd, Raw(etcd.endpoint) as raw:
        while (await raw.metrics())["etcd_mvcc_db_total_size_in_bytes"] < 8388608 * 0.82:
            await raw.put("filler", b"x" * 100_000)
        assert (await diagnose("--endpoints", etcd.endpoint)).bad == {"database-nearly-full"}
        with pytest.raises(aetcd.ClientError, match="database space exceeded"):
            while True:
                await raw.put("filler", b"x" * 700_000)
        found = await diagnose("--endpoints", etcd.endpoint, "--node", "a@h")
        assert found.bad == {"alarm-nospace"}
        assert "disarm" in found.of("alarm-nospace").cure
        assert found.of("permissions").severity == "ok"


async def test_an_etcd_with_corrupt_data_is_found() -> None:
    async with LocalEtcd() as etcd, Raw(etcd.endpoint) as raw:
        alarm = rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, memberID=1, alarm=rpc.CORRUPT)
        await raw._client.maintenancestub.Alarm(alarm, timeout=10)
        found = await diagnose("--endpoints", etcd.endpoint, "--node", "a@h")
    assert found.of("alarm-corrupt").severity == "error"
    assert "corrupt" in found.of("unanswered").what


async def test_an_etcd_with_a_known_fault_is_noted(etcd: str) -> None:
    found = await diagnose("--endpoints", etcd)
    version = found.of("endpoint").what.split()[1].rstrip(",")
    noted = [each for each in found.findings if each.id == "etcd-old-progress"]
    assert bool(noted) != progress_comes_last(version)
    assert all("15220" in each.what and each.severity == "note" for each in noted)


# TLS


class Papers:
    """The certificates of an etcd, which it reads at each connection, and of its clients."""

    def __init__(self, place: Path) -> None:
        self.ca, self.other_ca = place / "ca.pem", place / "other.pem"
        self.client, self.client_key = place / "client.pem", place / "client.key"
        self.server, self.server_key = place / "server.pem", place / "server.key"
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(str(self.ca))
        trustme.CA().cert_pem.write_to_path(str(self.other_ca))
        self._write(self._authority.issue_cert("web@example.org"), self.client, self.client_key)
        self.serve(365)

    def serve(self, days: float) -> None:
        """Give etcd a certificate that ends so many days from now."""
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        begins = ends - datetime.timedelta(days=400)
        self._write(
            self._authority.issue_cert("127.0.0.1", not_before=begins, not_after=ends), self.server, self.server_key
        )

    def _write(self, issued: trustme.LeafCert, cert: Path, key: Path) -> None:
        issued.private_key_pem.write_to_path(str(key))
        issued.cert_chain_pems[0].write_to_path(str(cert))


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


@pytest.fixture(scope="module")
def secure(papers: Papers) -> Iterator[str]:
    """The endpoint of an etcd that proves who it is, and wants its clients to."""
    etcd = LocalEtcd(tls=ServerTLS(cert=papers.server, key=papers.server_key, client_ca=papers.ca))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(etcd):
        yield etcd.endpoint


class TestTLS:
    @pytest.fixture
    def proof(self, papers: Papers) -> list[str]:
        return ["--tls-ca", str(papers.ca), "--tls-cert", str(papers.client), "--tls-key", str(papers.client_key)]

    async def test_that_is_well(self, secure: str, proof: list[str]) -> None:
        found = await diagnose("--endpoints", secure, *proof)
        assert found.bad == set()
        assert found.of("permissions").severity == "ok"

    async def test_of_an_unknown_authority(self, secure: str, proof: list[str], papers: Papers) -> None:
        found = await diagnose("--endpoints", secure, *proof, "--tls-ca", str(papers.other_ca))
        assert [each.id for each in found.findings] == ["tls-untrusted"]

    async def test_for_another_name(self, secure: str, proof: list[str]) -> None:
        found = await diagnose("--endpoints", secure, *proof, "--tls-server-name", "etcd.example.org")
        assert [each.id for each in found.findings] == ["tls-other-name"]

    @pytest.mark.parametrize(("days", "id"), [(-1, "tls-expired"), (3, "tls-expires-soon")])
    async def test_whose_certificate_ends(
        self, secure: str, proof: list[str], papers: Papers, days: int, id: str
    ) -> None:
        await asyncio.to_thread(papers.serve, days)
        try:
            found = await diagnose("--endpoints", secure, *proof)
        finally:
            await asyncio.to_thread(papers.serve, 365)
        assert found.bad == {id}

    async def test_without_the_certificate_that_etcd_wants(self, secure: str, papers: Papers) -> None:
        found = await diagnose("--endpoints", secure, "--tls-ca", str(papers.ca))
        assert [each.id for each in found.findings] == ["tls-client-certificate"]

    async def test_that_only_etcd_speaks(self, secure: str) -> None:
        found = await diagnose("--endpoints", secure)
        assert [each.id for each in found.findings] == ["tls-wanted"]

    async def test_that_etcd_does_not_speak(self, etcd: str, proof: list[str]) -> None:
        found = await diagnose("--endpoints", etcd, *proof)
        assert [each.id for each in found.findings] == ["tls-not-spoken"]

    async def test_whose_files_are_not_there(self, secure: str, proof: list[str], tmp_path: Path) -> None:
        found = await diagnose("--endpoints", secure, *proof, "--tls-ca", str(tmp_path / "none.pem"))
        assert [each.id for each in found.findings] == ["tls-files"]

    async def test_that_proves_nothing(self, secure: str, proof: list[str]) -> None:
        found = await diagnose("--endpoints", secure, *proof[2:], "--insecure-skip-verify")
        assert found.bad == {"tls-unverified"}


# Login and permissions


@contextlib.asynccontextmanager
async def with_roles() -> AsyncIterator[str]:
    """An etcd that wants a login, with a user for each documented role, and for each that lacks something."""
    async with LocalEtcd() as etcd:
        one_by_one = [("read", ROUTES), *(each for each in MEMBER if each[1] != ROUTES)]
        roles = {
            "root": [],
            "member": MEMBER,
            "observer": OBSERVER,
            "reader": [("read", prefix) for _, prefix in MEMBER],
            "blind": [each for each in MEMBER if each[1] != f"{CONFIG}*/"],
            "strict": one_by_one,
        }
        for user, permissions in roles.items():
            await etcdctl(etcd.endpoint, "user", "add", f"{user}:{SECRET}")
            await etcdctl(etcd.endpoint, "role", "add", user)
            await etcdctl(etcd.endpoint, "user", "grant-role", user, user)
            for access, prefix in permissions:
                await etcdctl(etcd.endpoint, "role", "grant-permission", user, "--prefix", access, prefix)
        for kind in ("nodes", "leaving"):
            await etcdctl(etcd.endpoint, "role", "grant-permission", "strict", "readwrite", f"{ROUTES}{kind}/a@h")
        await etcdctl(etcd.endpoint, "auth", "enable")
        yield etcd.endpoint


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(with_roles()) as endpoint:
        yield endpoint


class TestAUser:
    async def run(self, guarded: str, user: str, *arguments: str, password: str = SECRET) -> Diagnosis:
        return await diagnose(
            *("--endpoints", guarded, "--username", user, *arguments), ERGO_REGISTRAR_PASSWORD=password
        )

    @pytest.mark.parametrize(("user", "as_node"), [("member", ["--node", "a@h"]), ("observer", [])])
    async def test_with_the_documented_role_lacks_nothing(self, guarded: str, user: str, as_node: list[str]) -> None:
        found = await self.run(guarded, user, *as_node)
        assert found.bad == set()
        assert found.of("login").what == f"{user!r} is logged in"
        assert found.of("permissions").what.startswith("all that a")

    async def test_who_may_not_write(self, guarded: str) -> None:
        found = await self.run(guarded, "reader", "--node", "a@h")
        assert found.bad == {"permission-write"}
        assert found.of("permission-write").where == ROUTES
        for kind in ("nodes", "leaving", "applications/doctor"):
            assert f"{ROUTES}{kind}/a@h" in found.of("permission-write").what

    async def test_who_may_not_read_a_prefix(self, guarded: str) -> None:
        found = await self.run(guarded, "blind", "--node", "a@h")
        assert found.bad == {"permission-read"}
        assert found.of("permission-read").where == f"{CONFIG}*/"

    async def test_who_may_read_nothing_of_another_node(self, guarded: str) -> None:
        found = await self.run(guarded, "member", "--node", "b@h")
        assert {each.where for each in found.findings if each.id == "permission-read"} == {
            f"services/ergo/config/{CLUSTER}/b@h/",
            f"{CONFIG}b@h/",
        }

    async def test_with_the_stricter_role_is_noted(self, guarded: str) -> None:
        found = await self.run(guarded, "strict", "--node", "a@h")
        assert found.bad == set()
        assert f"{ROUTES}applications/doctor/a@h" in found.of("permission-write-applications").what

    async def test_with_a_wrong_password(self, guarded: str) -> None:
        found = await self.run(guarded, "member", password="wrong")
        assert found.bad == {"login-refused"}
        assert "wrong" not in found.of("login-refused").cure

    async def test_who_does_not_log_in(self, guarded: str) -> None:
        assert (await diagnose("--endpoints", guarded)).bad == {"login-missing"}

    async def test_whom_nobody_asks(self, etcd: str) -> None:
        assert (await self.run(etcd, "member")).bad == {"login-unused"}

    async def test_without_a_password_is_a_wrong_option(self, guarded: str) -> None:
        code, out, err = await run("--endpoints", guarded, "--username", "member")
        assert (code, out) == (2, "")
        assert "password: must be given together with its other half" in " ".join(err.replace("│", "").split())

    async def test_changes_nothing_by_being_looked_at(self, guarded: str) -> None:
        async with Raw(guarded, "root", SECRET) as raw:
            before = await raw.revision()
            await self.run(guarded, "member", "--node", "a@h")
            assert await raw.revision() == before
            assert await raw.under("services/") == {}


# What it prints


async def test_a_cluster_that_is_well(etcd: str) -> None:
    """As text, without --json: a line for each finding, and a count."""
    options = Options(endpoints=(etcd,), cluster="doctor-well")
    async with Registrar(options, node="a@h", routes=[Route("h", 1)]):
        code, out, err = await run("--endpoints", etcd, "--cluster", "doctor-well", "--node", "b@h")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].startswith(f"ok      {etcd}: etcd 3.")
    assert f"ok      {etcd}: all that a member needs, in 5 prefixes" in lines
    assert "ok      services/ergo/cluster/doctor-well/routes/nodes/b@h: nobody is registered as 'b@h'" in lines
    assert lines[-1].startswith("0 errors, 0 warnings, ")


async def test_a_wrong_node_name_is_a_wrong_option(etcd: str) -> None:
    code, out, err = await run("--endpoints", etcd, "--node", "a/b")
    assert (code, out) == (2, "")
    assert "node: must be 1 to 255 bytes" in err


def test_help_teaches() -> None:
    code, out, _ = asyncio.run(run("--help"))
    assert code == 0
    for word in ("changes nothing", "--node", "--json", "severity", "Exit codes: 0 no error was found"):
        assert word in " ".join(out.split())


# The page


def test_the_page_lists_every_finding() -> None:
    """With the severity that it has, in the sources."""
    root = Path(__file__).parents[2]
    sources = "".join(path.read_text() for path in (root / "ergo_registrar/admin").glob("*.py"))
    found = {(id, severity) for severity, id in re.findall(r'\b(ok|note|warning|error)\(\s*"([a-z-]+)"', sources)}
    found |= {(id, "error") for id in re.findall(r'Fault\.\w+: \(\s*"([a-z-]+)"', sources)}
    page = (root / "docs/reference/run-and-doctor.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \| (\w+) \|", page, re.MULTILINE)) == found


async def test_a_new_etcd_has_nothing_wrong_and_says_what_is_good_to_know() -> None:
    async with LocalEtcd() as etcd:
        diagnosis = await diagnose("--node", "node1@host", "--endpoints", etcd.endpoint)
    assert diagnosis.bad == set()
    assert {finding.id for finding in diagnosis.findings} >= {"login-off", "node-free"}
