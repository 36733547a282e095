"""Whatever anyone writes under the prefixes: it is served or skipped, counted and logged once, and ends nothing."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aetcd import transactions
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ergo_registrar import Options, Registrar, Route, State
from ergo_registrar.core.edf import encode_application_route, encode_routes
from ergo_registrar.etcd.server import LocalEtcd
from tests.faults.support import known
from tests.integration.support import NO_ROUTES, ONE_ROUTE, Raw, eventually, running, settled, short_options

Make = Callable[..., Awaitable[Registrar]]
Entries = dict[bytes, bytes]

WEB = encode_application_route(running("web", "good@h", 7))
LARGEST = 1_500_000  # bytes of a value: etcd takes requests of 1.5 MiB

# What no name may be: empty, more than one, with control characters, no UTF-8, too long.
NO_NAMES = (
    *(b"", b"/", b"//", b"a/b", b"a//b", b"/a", b"a/", b"a/b/c/d@h", b"//a@h"),
    *(b"\0", b"a\nb", b"\x1b[2J", b"\x7f", b"\xc2\x85", b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", b"\xc3"),
    *(b"x" * 256, "é".encode() * 128, b"x" * 5000),
)
NO_ROUTE_LISTS = (b"", b"\0", b"=", b"{}", b"garbage", b"\xff" * 40, ONE_ROUTE[:-4], ONE_ROUTE + b"AAAA", WEB)


def prefixes(cluster: str) -> dict[str, bytes]:
    """Return what the keys of the routes, and of each level of a@h's configuration, begin with."""
    return {
        "routes": f"services/ergo/cluster/{cluster}/routes/".encode(),
        "level 1": f"services/ergo/config/{cluster}/a@h/".encode(),
        "level 2": f"services/ergo/cluster/{cluster}/config/a@h/".encode(),
        "level 3": f"services/ergo/cluster/{cluster}/config/*/".encode(),
        "level 4": b"services/ergo/config/global/",
    }


def good(cluster: str) -> Entries:
    """Return what must be served, whatever stands beside it: a node, an application of it, an item at each level."""
    routes, *levels = prefixes(cluster).values()
    return {
        routes + b"nodes/good@h": ONE_ROUTE,
        routes + b"applications/web/good@h": WEB,
        **{level + b"item%d" % n: b"int:%d" % n for n, level in enumerate(levels, start=1)},
    }


def bad(cluster: str) -> Entries:
    """Return a thousand keys, each of which must be skipped, for what it is called or for what it holds."""
    routes, *levels = prefixes(cluster).values()
    chance = random.Random(cluster)
    entries = {routes + name: NO_ROUTES for name in (b"nodes", b"leaving", b"applications", b"applications/web")}
    for name in (*NO_NAMES, b"*"):
        entries |= {
            routes + name: NO_ROUTES,
            routes + b"nodes/" + name: NO_ROUTES,
            routes + b"leaving/" + name: b"",
            routes + b"applications/web/" + name: WEB,
            routes + b"applications/" + name + b"/good@h": WEB,
        }
    for name in NO_NAMES:
        entries |= {level + name: b"int:1" for level in levels}
    for n, value in enumerate(NO_ROUTE_LISTS):
        entries[routes + b"nodes/odd%d@h" % n] = value
        entries[routes + b"applications/web/odd%d@h" % n] = value  # the last is that of another node
    for level in levels:
        entries[level + b"odd"] = b"\xff\xfe"
    while len(entries) < 1000:
        kind = chance.choice((b"", b"nodes/", b"applications/web/", b"applications/"))
        entries[routes + kind + chance.randbytes(chance.randrange(1, 300)) + b"\0"] = chance.randbytes(200)
    return entries


async def put(raw: Raw, entries: Entries) -> None:
    """Put keys that need not be text."""
    await commit(raw, [transactions.Put(key, value) for key, value in entries.items()])


async def commit(raw: Raw, operations: list[Any]) -> None:
    """Do many things, in transactions of 100."""
    for start in range(0, len(operations), 100):
        await raw._client.transaction([], operations[start : start + 100], [])


async def serves_the_good(registrar: Registrar) -> None:
    """Fail unless the registrar is connected, and knows what `good` returns and nothing else."""
    await eventually(lambda: registrar.state is State.CONNECTED)
    assert await registrar.nodes() == ["good@h"]
    (route,) = await registrar.resolve("good@h")
    assert (route.host, route.port) == ("localhost", 15000)
    assert await registrar.resolve_application("web") == [running("web", "good@h", 7)]
    assert await registrar.config() == {f"item{n}": n for n in range(1, 5)}


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the package's warnings about what it skipped."""
    return [r.getMessage() for r in caplog.records if r.name == "ergo_registrar.view" and r.levelname == "WARNING"]


@pytest.fixture
async def evil(registrar_options: Options, raw: Raw) -> AsyncIterator[Entries]:
    """The thousand bad keys, to be put. They go with the story, and the good ones too."""
    evil = bad(registrar_options.cluster)
    yield evil
    await commit(raw, [transactions.Delete(key) for key in evil | good(registrar_options.cluster)])


def shuffled(entries: Entries) -> Entries:
    """Return the same in another order."""
    return dict(random.sample(list(entries.items()), len(entries)))


class TestAThousandBadKeys:
    """Their names cannot be names, or their values not values; three good ones stand among them."""

    async def test_that_lie_there_before_it_starts(
        self,
        make_registrar: Make,
        registrar_options: Options,
        raw: Raw,
        evil: Entries,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It enters, and serves the good ones; each bad one is skipped, counted and logged once, in plain text."""
        await put(raw, shuffled(evil | good(registrar_options.cluster)))
        member = await make_registrar("a@h")
        await serves_the_good(member)
        assert member.stats.keys_skipped == len(evil)
        assert len(set(logged(caplog))) == len(logged(caplog)) == len(evil)
        assert all(message.isprintable() for message in logged(caplog))

    async def test_that_come_while_it_runs(
        self,
        make_registrar: Make,
        registrar_options: Options,
        raw: Raw,
        evil: Entries,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The same; what is written again is counted again, and not logged again."""
        member = await make_registrar("a@h")
        for times in (1, 2):
            await put(raw, shuffled(evil | good(registrar_options.cluster)))
            await settled(raw, member)
            await serves_the_good(member)
            assert member.stats.keys_skipped == times * len(evil)
            assert len(logged(caplog)) == len(evil)
        assert member.stats.repairs == 0


class TestValuesAsLargeAsEtcdTakes:
    """1.5 MB each, thirty at once: more than gRPC takes in one message, so they are read one after the other."""

    @pytest.mark.parametrize("before", [True, False])
    async def test_are_served_or_skipped(self, caplog: pytest.LogCaptureFixture, before: bool) -> None:
        """Lying there before it starts, or coming while it runs: the good ones are served, and the log stays short."""
        async with LocalEtcd() as etcd, Raw(etcd.endpoint) as raw:
            options = short_options(etcd.endpoint, request_timeout=20)
            routes, _, _, level3, _ = prefixes(options.cluster).values()
            many = [Route(f"host{n}" + "x" * 200, 1 + n % 65_000) for n in range(4000)]
            entries = {
                **{routes + b"nodes/odd%d@h" % n: b"x" * LARGEST for n in range(25)},
                **{level3 + b"odd%d" % n: b"\xff" * LARGEST for n in range(5)},
                routes + b"nodes/good@h": encode_routes(many),
                level3 + b"item": b"x" * LARGEST,
            }
            assert len(entries[routes + b"nodes/good@h"]) > 1_000_000

            async def write() -> None:
                for key, value in shuffled(entries).items():
                    await put(raw, {key: value})

            if before:
                await write()
            async with Registrar(options, node="a@h") as member:
                if not before:
                    await write()
                await eventually(lambda: member.stats.keys_skipped == 30)
                await settled(raw, member)
                assert await member.resolve("good@h") == many
                assert await member.config() == {"item": "x" * LARGEST}
                await eventually(lambda: member.state is State.CONNECTED)
        assert len(logged(caplog)) == 30
        assert max(map(len, logged(caplog))) < 1000


# Few good keys, so that one is written again and again, among whatever else there may be.
NAMES = st.sampled_from(["item", "a@h", "*", "", "ä"]).map(str.encode) | st.binary(max_size=12)
ROUTES = st.sampled_from([b"nodes/a@h", b"nodes/good@h", b"applications/web/good@h", b"leaving/good@h"]) | st.builds(
    bytes.__add__,
    st.sampled_from([b"", b"nodes/", b"leaving/", b"applications/", b"applications/web/"]),
    st.lists(NAMES, max_size=3).map(b"/".join),
)
VALUES = st.sampled_from([NO_ROUTES, ONE_ROUTE, WEB, b"", b"int:7"])
CUT = st.builds(lambda value, at: value[:at] + value[at + 1 :], VALUES, st.integers(0, 100))
WRITES = st.tuples(st.just("routes"), ROUTES) | st.tuples(st.just("level 3"), st.just(b"item") | NAMES)


# Not shrunk: the time limit of a test would end that first.
@settings(max_examples=25, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=st.lists(st.tuples(WRITES, st.none() | VALUES | CUT | st.binary(max_size=60)), min_size=20, max_size=60))
async def test_any_bytes_are_the_same_to_who_watches_and_to_who_reads(
    etcd: str, raw: Raw, writes: list[tuple[tuple[str, bytes], bytes | None]]
) -> None:
    """One who was there while they came and went, and one who came later, know the same, and both are `CONNECTED`."""
    options = short_options(etcd)
    under = prefixes(options.cluster)
    try:
        async with Registrar(options) as watching:
            for (where, name), value in writes:
                key = under[where] + name
                change = transactions.Delete(key) if value is None else transactions.Put(key, value)
                await commit(raw, [change])
            await settled(raw, watching)
            async with Registrar(options) as reading:
                assert known(watching) == known(reading)
                await eventually(lambda: watching.state is reading.state is State.CONNECTED)
    finally:
        await raw.delete_prefix(f"services/ergo/cluster/{options.cluster}/")
