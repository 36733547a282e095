"""The commands that read: `nodes`, `apps`, `resolve`, `watch`, `top`. Their documents are read by the types below,
which say what `docs/reference/cli.md` says, and refuse any other field.
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from ergo_registrar import ApplicationRoute, Options, Registrar, Route, Version
from ergo_registrar.cli.picture import Picture
from ergo_registrar.etcd.server import LocalEtcd
from ergo_registrar.subscription import DEFAULT_MAXSIZE
from ergo_registrar.testing.proxy import FaultProxy
from tests.faults.support import CLUSTER, SECRET, demand_login
from tests.faults.test_security import Papers
from tests.integration.cli import COMMAND, cli, document, ended, environ, line, running
from tests.integration.support import NO_ROUTES, TTL, Raw, eventually

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals as POSIX has them"),
    pytest.mark.timeout(120),
]

WEB = ApplicationRoute("web1@h", "web", 10, 3, 2, ("eu", "blue"), Version("web", "1.2"))
STANDBY = ApplicationRoute("web2@h", "web", -1, 1, 7)
BATCH = ApplicationRoute("web2@h", "batch", 5, 2, 1)


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Named(Strict):
    name: str
    release: str
    commit: str
    license: str


class Reached(Strict):
    address: str
    host: str
    port: int
    tls: bool
    handshake_version: Named
    proto_version: Named


class Lease(Strict):
    id: str
    granted: int
    left: int


class Skipped(Strict):
    key: str
    reason: str


class Keyed(Strict):
    create_revision: int
    mod_revision: int
    lease: Lease | None


class Node(Keyed):
    name: str
    routes: list[Reached]
    applications: list[str]


class Nodes(Strict):
    cluster: str
    revision: int
    nodes: list[Node]
    skipped: list[Skipped]


class Application(Strict):
    node: str
    name: str
    weight: int
    mode: Literal["temporary", "transient", "permanent"] | int
    state: Literal["loaded", "running", "stopping"] | int
    tags: list[str] | None
    version: Named


class Kept(Application):
    create_revision: int
    mod_revision: int
    lease: Lease | None


class Applications(Strict):
    cluster: str
    revision: int
    applications: list[Kept]
    skipped: list[Skipped]


class Instance(Application):
    routes: list[Reached]


class Answer(Strict, tag_field="kind"):
    cluster: str
    revision: int
    name: str


class NodeAnswer(Answer, tag="node"):
    routes: list[Reached]


class ApplicationAnswer(Answer, tag="application"):
    instances: list[Instance]


class Live(Strict):
    name: str
    routes: list[Reached]
    suspected: bool


class LiveApplication(Application):
    suspected: bool


class Top(Strict):
    time: str
    cluster: str
    endpoint: str
    state: Literal["connected", "suspended", "lost"]
    reason: str | None
    revision: int
    staleness: float
    nodes: list[Live]
    applications: list[LiveApplication]


ABOUT_APPLICATION = {field.name for field in msgspec.structs.fields(Application)}
FIELDS = {  # of the documents of `watch`, beside those that all have
    "NodeJoined": {"name", "routes"},
    "NodeLeft": {"name"},
    "NodeSuspected": {"name"},
    "NodeRecovered": {"name"},
    "ApplicationLoaded": ABOUT_APPLICATION,
    "ApplicationStarted": ABOUT_APPLICATION,
    "ApplicationStopping": ABOUT_APPLICATION,
    "ApplicationStopped": ABOUT_APPLICATION,
    "ApplicationUpdated": ABOUT_APPLICATION | {"previous"},
    "ConfigUpdate": {"item", "value", "previous", "level"},
    "RegistrarConnected": {"endpoint"},
    "RegistrarDisconnected": {"reason"},
    "EventsMissed": {"count"},
}


def check_event(told: dict[str, Any]) -> None:
    assert set(told) == {"type", "time", "present", "revision"} | FIELDS[told["type"]]
    if "weight" in told:
        msgspec.convert({name: told[name] for name in ABOUT_APPLICATION}, Application)
    for route in told.get("routes", ()):
        msgspec.convert(route, Reached)


def rows(out: str) -> list[list[str]]:
    """The cells of a table that was printed."""
    return [re.split(r" {3,}", text.strip()) for text in out.splitlines()]


@pytest.fixture
def options(registrar_options: Options) -> Options:
    return dataclasses.replace(registrar_options, application_route_layout="tags+version", lease_ttl=20)


async def test_nodes_and_apps_show_what_stands_in_etcd(options: Options, raw: Raw, routes: str) -> None:
    """Two nodes, one put by hand, and a key that makes no sense: with revisions, and what each lease has left."""
    here = [Route("", 15000), Route("::1", 15001, True, Version("EHS", "R1"))]
    async with (
        Registrar(options, node="web1@h", routes=here, applications=[WEB]) as web1,
        Registrar(options, node="web2@h", applications=[STANDBY, BATCH]),
    ):
        await web1.register_application_route(msgspec.structs.replace(WEB, weight=20))
        await raw.put(f"{routes}nodes/by-hand", NO_ROUTES)
        await raw.put(f"{routes}applications/web/broken", b"%")
        env = environ(options)
        (
            (code, listed, _),
            (_, table, warned),
            (_, applications, _),
            (_, batch, _),
            (_, app_table, _),
        ) = await asyncio.gather(
            cli("nodes", "--json", env=env),
            cli("nodes", env=env),
            cli("apps", "--json", env=env),
            cli("apps", "batch", "--json", env=env),
            cli("apps", env=env),
        )
        stands = await raw.under(routes)

    assert code == 0
    nodes = msgspec.json.decode(listed, type=Nodes)
    assert nodes.cluster == options.cluster
    assert nodes.revision >= max(key.modified for key in stands.values())
    assert [(node.name, node.applications) for node in nodes.nodes] == [
        ("by-hand", []),
        ("web1@h", ["web"]),
        ("web2@h", ["batch", "web"]),
    ]
    by_hand, first, _ = nodes.nodes
    assert by_hand.lease is None
    assert [route.address for route in first.routes] == ["h:15000", "[::1]:15001"]
    assert [route.tls for route in first.routes] == [False, True]
    assert [skipped.key for skipped in nodes.skipped] == [f"{routes}applications/web/broken"]

    found = msgspec.json.decode(applications, type=Applications)
    web, standby = [each for each in found.applications if each.name == "web"]
    assert (web.node, web.weight, web.mode, web.state, web.tags) == (
        "web1@h",
        20,
        "permanent",
        "running",
        ["eu", "blue"],
    )
    assert (standby.weight, standby.mode, standby.state, standby.tags) == (-1, "temporary", 7, None)
    assert web.create_revision < web.mod_revision
    seen: tuple[tuple[Node | Kept, str], ...] = ((first, "nodes/web1@h"), (web, "applications/web/web1@h"))
    for each, name in seen:
        key = stands[f"{routes}{name}"]
        assert (each.create_revision, each.mod_revision) == (key.created, key.modified)
        assert each.lease is not None
        assert each.lease.id == f"{key.lease:016x}"
        assert 0 < each.lease.left <= each.lease.granted == 20
    assert [each.name for each in msgspec.json.decode(batch, type=Applications).applications] == ["batch"]

    assert warned.startswith(f"ergo-registrar: left out {routes}applications/web/broken: ")
    title, head, *body = table.splitlines()
    assert title == f"cluster {options.cluster} at revision {nodes.revision}"
    assert head.split("   ")[0] == "node"
    assert rows("\n".join(body))[0] == ["by-hand", "-", "-", *[str(by_hand.create_revision)] * 2, "no lease"]
    assert rows(body[1])[0][:3] == ["web1@h", "h:15000 [::1]:15001 TLS", "web"]
    row = next(row for row in rows(app_table) if row[:2] == ["web", "web1@h"])
    assert row[2:7] == ["20", "running", "permanent", "eu,blue", "web 1.2"]
    assert row[7:9] == [str(web.create_revision), str(web.mod_revision)]
    assert re.fullmatch(r"\d+ of 20 s", row[9])


async def test_what_is_not_there_is_answered_by_what_is(options: Options, raw: Raw) -> None:
    """A cluster, an application, a node under a name that is nearly right."""
    async with Registrar(options, node="web1@h", routes=[Route("h", 1)], applications=[WEB]):
        env = environ(options)
        wrong = env | {"ERGO_REGISTRAR_CLUSTER": f"{options.cluster}x"}
        empty, empty_json, no_app, nowhere, not_node = await asyncio.gather(
            cli("nodes", env=wrong),
            cli("apps", "--json", env=wrong),
            cli("apps", "wbe", env=env),
            cli("resolve", "web1", env=env),
            cli("resolve", "web", "--as", "node", env=env),
        )
    code, out, err = empty
    assert (code, out) == (0, "")
    assert re.match(rf"ergo-registrar: no nodes in cluster '{options.cluster}x' at revision \d+; --cluster names", err)
    assert options.cluster in err.rstrip().partition("another: ")[2].split(", ")
    assert msgspec.json.decode(empty_json[1], type=Applications).applications == []
    assert (no_app[0], no_app[1]) == (1, "")
    assert "no application 'wbe' in cluster" in no_app[2]
    assert no_app[2].endswith("; there are: web\n")
    assert nowhere[0] == 1
    assert "no node and no application 'web1' in cluster" in nowhere[2]
    assert nowhere[2].endswith("; nodes: web1@h; applications: web\n")
    assert not_node[0] == 1
    assert "no node 'web' in cluster" in not_node[2]


async def test_resolve_answers_as_a_process_would_be(options: Options) -> None:
    """A node's addresses, an application's instances by weight and filter; a name of both must be said."""
    both = ApplicationRoute("web2@h", "web1@h", 1, 3, 2)
    async with (
        Registrar(options, node="web1@h", routes=[Route("", 15000)], applications=[WEB]),
        Registrar(options, node="web2@h", applications=[STANDBY, both]),
        Registrar(options, node="web3@h", applications=[ApplicationRoute("web3@h", "web", 90, 3, 2, ("us",))]),
        Registrar(options, node="web4@h", applications=[ApplicationRoute("web4@h", "web", 99, 3, 1, ("eu",))]),
    ):
        env = environ(options)
        node, unclear, app, table, tagged, loaded, none = await asyncio.gather(
            cli("resolve", "web1@h", "--as", "node", "--json", env=env),
            cli("resolve", "web1@h", env=env),
            cli("resolve", "web", "--json", env=env),
            cli("resolve", "web", env=env),
            cli("resolve", "web", "--tag", "eu", "--without-tag", "blue", "--json", env=env),
            cli("resolve", "web", "--state", "loaded", "--state", "stopping", "--json", env=env),
            cli("resolve", "web", "--tag", "asia", env=env),
        )
    answer = msgspec.json.decode(node[1], type=NodeAnswer | ApplicationAnswer)
    assert isinstance(answer, NodeAnswer)
    assert [route.address for route in answer.routes] == ["h:15000"]
    assert (unclear[0], unclear[1]) == (2, "")
    assert "say which, --as node or --as app" in unclear[2]

    def instances(result: tuple[int, str, str]) -> list[str]:
        answer = msgspec.json.decode(result[1], type=NodeAnswer | ApplicationAnswer)
        assert isinstance(answer, ApplicationAnswer)
        assert answer.name == "web"
        return [each.node for each in answer.instances]

    assert instances(app) == ["web3@h", "web1@h", "web4@h"]  # running ones by weight, then others, no negative weight
    assert [row[0] for row in rows(table[1])[1:]] == ["pick", "web1@h", "web4@h"]
    assert rows(table[1])[2] == ["web1@h", "h:15000", "10", "running", "eu,blue"]
    assert instances(tagged) == ["web4@h"]
    assert instances(loaded) == ["web4@h"]
    assert (none[0], none[1]) == (1, "")
    assert "none of them with tag 'asia'" in none[2]


async def test_watch_tells_everything_once(options: Options, relay: FaultProxy, raw: Raw) -> None:
    """What is there, what happens, a lost etcd and what happened meanwhile; a signal ends it with 0."""
    item = f"services/ergo/cluster/{options.cluster}/config/*/limit"
    env = environ(dataclasses.replace(options, endpoints=(relay.endpoint,)), ERGO_REGISTRAR_LEASE_TTL=str(TTL))
    try:
        async with (
            Registrar(options, node="web1@h", routes=[Route("h", 1)], applications=[WEB]) as web1,
            running("watch", env=env) as words,
            running("watch", "--json", env=env) as everything,
            running("watch", "--json", "--no-replay", "--type", "ConfigUpdate", "-t", "NODES", env=env) as some,
        ):
            for process in (everything, some):
                check_event(first := await document(process))
                assert (first["type"], first["endpoint"], first["present"]) == (
                    "RegistrarConnected",
                    relay.endpoint,
                    False,
                )
            assert re.match(r"\d\d:\d\d:\d\d\.\d{3}  RegistrarConnected     to ", await line(words, str.strip))
            assert await line(words, str.strip) == "present       NodeJoined             web1@h at h:1"
            there = [await document(everything), await document(everything)]
            assert [(told["type"], told["name"], told["present"]) for told in there] == [
                ("NodeJoined", "web1@h", True),
                ("ApplicationStarted", "web", True),
            ]

            await raw.put(item, "int:5")
            check_event(told := await document(everything))
            assert (told["item"], told["value"], told["previous"], told["level"], told["present"]) == (
                *("limit", 5, None, 3),
                False,
            )
            await web1.register_application_route(msgspec.structs.replace(WEB, weight=-1))
            check_event(told := await document(everything))
            assert (told["type"], told["weight"], told["previous"]["weight"]) == ("ApplicationUpdated", -1, 10)
            updated = await line(words, lambda text: "ApplicationUpdated" in text)
            assert (
                "web on web1@h, weight -1, state running, tags eu,blue, version web 1.2, before: weight 10," in updated
            )

            await relay.refuse()
            await relay.cut()
            check_event(await document(everything, type="RegistrarDisconnected"))
            await raw.put(item, "int:6")
            await relay.heal()
            check_event(told := await document(everything))  # what happened meanwhile comes first
            assert (told["type"], told["value"]) == ("ConfigUpdate", 6)
            check_event(await document(everything, type="RegistrarConnected"))
            assert (await document(some))["value"] == 5  # the first it tells of is that which came after its start
            assert (await document(some, type="ConfigUpdate"))["value"] == 6
            for process, number in ((everything, signal.SIGINT), (some, signal.SIGTERM), (words, signal.SIGTERM)):
                assert await ended(process, number) == (0, "")
    finally:
        await raw.delete(item)


async def test_top_keeps_what_it_knew_and_says_how_old_it_is(options: Options, relay: FaultProxy, raw: Raw) -> None:
    """Suspects are marked; while etcd is away, what was known stays, with the reason; a signal ends it with 0."""
    relayed = dataclasses.replace(options, endpoints=(relay.endpoint,))
    env = environ(relayed, ERGO_REGISTRAR_LEASE_TTL=str(TTL))
    async with Registrar(options, node="web1@h", routes=[Route("h", 1)], applications=[WEB]):
        dying = await raw.grant(60)
        await raw.put(f"services/ergo/cluster/{options.cluster}/routes/nodes/web2@h", NO_ROUTES, dying)
        once = cli("top", "--count", "2", "--interval", "0.1", env=environ(options))
        async with running("top", "-i", "0.1", "--suspect-grace", "60", "--json", env=env) as top:
            first = msgspec.convert(await document(top), Top)
            assert (first.state, first.reason, first.endpoint) == ("connected", None, relay.endpoint)
            assert first.staleness < TTL
            assert [(node.name, node.suspected) for node in first.nodes] == [("web1@h", False), ("web2@h", False)]
            assert [(each.name, each.weight, each.suspected) for each in first.applications] == [("web", 10, False)]

            await raw.revoke(dying)
            suspected = await line(top, lambda text: any(node["suspected"] for node in json.loads(text)["nodes"]))
            nodes = msgspec.json.decode(suspected, type=Top).nodes
            assert [node.name for node in nodes if node.suspected] == ["web2@h"]

            await relay.refuse()
            await relay.cut()
            late = await line(top, lambda text: json.loads(text)["state"] != "connected")
            last = msgspec.json.decode(late, type=Top)
            assert last.reason
            assert [node.name for node in last.nodes] == ["web1@h", "web2@h"]
            await relay.heal()
            await document(top, state="connected")
            assert await ended(top, signal.SIGTERM) == (0, "")
        code, out, err = await once
    assert (code, err) == (0, "")
    looks = out.split("\n\ncluster ")
    assert len(looks) == 2
    for look in looks:
        assert "nodes, 0 suspected; 1 application routes" in look
        assert re.search(r"connected; etcd at \S+ proved \d\.\d s ago that nothing is missing here", look)
        assert ["web", "web1@h", "10", "running", "permanent", "eu,blue", "web 1.2"] in rows(look)


async def test_top_fills_a_terminal_and_gives_it_back(options: Options) -> None:
    """On a terminal of 12 lines, what does not fit is counted; Ctrl-C ends it, and the screen before is there again."""
    many = [ApplicationRoute("web1@h", f"app{n:02}", 1, 3, 2) for n in range(40)]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 80, 0, 0))
    os.set_blocking(ours, False)
    seen = bytearray()

    def shows(text: str) -> bool:
        with contextlib.suppress(BlockingIOError, OSError):  # nothing there; or the other end is closed
            seen.extend(os.read(ours, 65536))
        return text.encode() in seen

    async with Registrar(options, node="web1@h", applications=many):
        env = {k: v for k, v in environ(options, TERM="xterm").items() if k != "COLUMNS"}
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "top", env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        try:
            await eventually(lambda: shows("app00"), within=30)
            await eventually(lambda: shows("more"))
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(30):
                assert await process.wait() == 0
            await eventually(lambda: shows("\x1b[?1049l"))
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            os.close(theirs)
            os.close(ours)
    assert b"\x1b[?1049h" in seen
    assert b"app39" not in seen
    assert re.search(rb"\.\.\. and \d\d more", seen)


async def test_a_name_cannot_steer_the_terminal(options: Options) -> None:
    """A tag that would turn the terminal red, or fake a line, is written as what it is."""
    evil = msgspec.structs.replace(WEB, tags=("\x1b[31mred", "new\nline"))
    async with Registrar(options, node="web1@h", applications=[evil]):
        env = environ(options)
        printed = await asyncio.gather(
            cli("apps", env=env), cli("resolve", "web", env=env), cli("top", "-n", "1", env=env)
        )
    for code, out, _ in printed:
        assert code == 0
        assert "\x1b" not in out
        assert r"\x1b[31mred,new\nline" in out


async def test_what_comes_faster_than_it_is_heard_is_in_the_picture(options: Options, raw: Raw, routes: str) -> None:
    """More nodes join between two looks of `top` than a subscription holds: it reads the state again."""
    names = [f"n{number}" for number in range(DEFAULT_MAXSIZE + 500)]
    async with Registrar(options) as observer:
        picture = Picture(observer)
        await raw.put_many((f"{routes}nodes/{name}", NO_ROUTES) for name in names)
        await observer.wait_revision(await raw.revision())
        picture.refresh()
        assert observer.stats.events_missed > 0
        assert sorted(picture.nodes) == sorted(names)
        await raw.delete(f"{routes}nodes/n0")
        await observer.wait_revision(await raw.revision())
        picture.refresh()
        assert len(picture.nodes) == len(names) - 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_before_the_answer_is_no_success(relay: FaultProxy, number: signal.Signals) -> None:
    """etcd takes the connection and says nothing: `nodes | wc -l` must not count none."""
    relay.black_hole()
    async with running("nodes", "-e", relay.endpoint, env=environ()) as nodes:
        await eventually(lambda: relay.open_connections, within=30)
        assert await ended(nodes, number) == (128 + number, "")


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    return Papers(tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> Papers:
    """Those of another authority."""
    (tmp_path / "other").mkdir()
    return Papers(tmp_path / "other")


class TestWrong:
    """What a stranger gets wrong, and what it says."""

    async def test_endpoint(self, etcd: str) -> None:
        plain, closed, nobody, bad = await asyncio.gather(
            cli("nodes", "-e", etcd, "--request-timeout", "2", "--insecure-skip-verify", env=environ()),
            cli("nodes", "-e", "127.0.0.1:1", "--request-timeout", "2", env=environ()),
            cli("watch", "-e", "nobody.invalid:2379", "--request-timeout", "2", env=environ()),
            cli("top", "-e", "http:/x", env=environ()),
        )
        assert plain[0] == closed[0] == nobody[0] == 1
        assert "ergo-registrar: insecure_skip_verify: whoever answers first is trusted to be etcd\n" in plain[2]
        assert "perhaps it does not speak TLS" in plain[2]
        assert "nothing listens there: is etcd running, and is this its port for clients?" in closed[2]
        assert "no such host" in nobody[2]
        assert bad[0] == 2
        assert "HOST:PORT, such as" in bad[2]

    async def test_password(self) -> None:
        async with LocalEtcd() as etcd:
            await demand_login(etcd.endpoint)
            at = ("nodes", "-e", etcd.endpoint, "-c", CLUSTER)
            alone, wrong, elsewhere, right = await asyncio.gather(
                cli(*at, env=environ()),
                cli(*at, "--username", "web", "--password", "no", env=environ()),
                cli(*at, "--username", "web", "-c", "other", env=environ(ERGO_REGISTRAR_PASSWORD=SECRET)),
                cli(*at, "--username", "web", env=environ(ERGO_REGISTRAR_PASSWORD=SECRET)),
            )
        assert [alone[0], wrong[0], elsewhere[0], right[0]] == [1, 1, 1, 0]
        assert "etcd wants a login: set username and password" in alone[2]
        assert "wrong username or password" in wrong[2]
        assert "this user lacks a permission" in elsewhere[2]
        assert SECRET not in "".join(elsewhere[1:])
        assert right[2] == f"ergo-registrar: no nodes in cluster {CLUSTER!r} at revision 1\n"  # it may not see others

    async def test_certificates(self, papers: Papers, other: Papers, tmp_path: Path) -> None:
        ca = ("--tls-ca", str(papers.ca))
        pair = ("--tls-cert", str(papers.cert), "--tls-key", str(papers.key))
        async with LocalEtcd(tls=papers.server) as etcd:
            at = ("nodes", "-e", etcd.endpoint, "--request-timeout", "2")
            said = await asyncio.gather(
                cli(*at, *pair, env=environ(ERGO_REGISTRAR_TLS_CA=str(papers.ca))),
                cli(*at, *ca, env=environ()),
                cli(*at, "--tls-ca", str(other.ca), *pair, env=environ()),
                cli(*at, *ca, "--tls-cert", str(papers.cert), "--tls-key", str(other.key), env=environ()),
                cli(*at, *ca, *pair, "--tls-server-name", "etcd.example", env=environ()),
                cli(*at, "--tls-ca", str(tmp_path / "none"), env=environ()),
                cli(*at, *ca, *pair[:2], env=environ()),
                cli(*at, env=environ()),
            )
        codes, errors = [code for code, _, _ in said], [" ".join(err.split()) for _, _, err in said]
        assert codes == [0, 1, 1, 1, 1, 1, 2, 1], errors
        for error, right in zip(
            errors[1:],
            [
                "tls.cert and tls.key)",
                "the authority in tls.ca did not issue etcd's certificate",
                "the key is of another certificate",
                "etcd's certificate is for another name: tls.server_name says which",
                f"tls.ca: cannot read '{tmp_path / 'none'}'",
                "tls.key: must be given together with its other half",
                "perhaps it wants TLS and this is none",
            ],
            strict=True,
        ):
            assert right in error
            assert "ssl_transport_security" not in error  # what gRPC writes by itself

    async def test_words(self) -> None:
        nods, flag, kind, state, seconds, variable = await asyncio.gather(
            cli("nods", env=environ()),
            cli("nodes", "--endpoint", "x", env=environ()),
            cli("watch", "--type", "foo", env=environ()),
            cli("resolve", "web", "--state", "run", env=environ()),
            cli("nodes", env=environ(ERGO_REGISTRAR_REQUEST_TIMEOUT="5s")),
            cli("nodes", env=environ(ERGO_REGISTRAR_ENDPOINT="x")),
        )
        for (code, out, err), right in (
            (nods, "'nodes'"),
            (flag, "--endpoints"),
            (kind, "'foo' is none of nodes, apps, config, NodeJoined, NodeLeft,"),
            (state, "'loaded', 'running', 'stopping'"),
            (seconds, "ERGO_REGISTRAR_REQUEST_TIMEOUT: must be a number of seconds, not '5s'"),
            (variable, "ERGO_REGISTRAR_ENDPOINTS"),
        ):
            assert (code, out) == (2, "")
            assert right in re.sub(r"[\s│]+", " ", err)


class TestCompletion:
    """What `--install-completion` installs, as the shells use it."""

    async def test_bash(self, tmp_path: Path) -> None:
        """Installed into a home, read by a new bash, asked for commands, flags and values."""
        path = os.pathsep.join([str(Path(COMMAND[0]).parent), os.environ["PATH"]])
        env = environ(HOME=str(tmp_path), PATH=path)
        script = """
            ergo-registrar --install-completion >/dev/null && source ~/.bashrc || exit 1
            ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ergo_registrar_completion ergo-registrar
                    echo "${COMPREPLY[@]}"; }
            ask ergo-registrar no
            ask ergo-registrar watch --suspect
            ask ergo-registrar resolve --as ""
        """
        process = await asyncio.create_subprocess_exec("bash", "-c", script, env=env, stdout=-1, stderr=-1)
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert (process.returncode, err.decode()) == (0, "")
        assert out.decode().splitlines() == ["nodes", "--suspect-grace", "node app"]

    async def test_zsh_and_fish(self) -> None:
        zsh, fish, asked = await asyncio.gather(
            cli(env=environ(_ERGO_REGISTRAR_COMPLETE="source_zsh")),
            cli(env=environ(_ERGO_REGISTRAR_COMPLETE="source_fish")),
            cli(env=environ(_ERGO_REGISTRAR_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="ergo-registrar no")),
        )
        assert zsh[1].strip().startswith("#compdef ergo-registrar\n")
        assert "_ERGO_REGISTRAR_COMPLETE=complete_zsh" in zsh[1]
        assert "complete --command ergo-registrar" in fish[1]
        assert '"nodes"' in asked[1]
