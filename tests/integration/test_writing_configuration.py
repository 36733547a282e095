"""Configuration is written: by name, by value, and only where nobody was faster."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from ergo_registrar import (
    ConfigLevel,
    ConfigUpdate,
    ConflictError,
    ConnectionFailedError,
    Options,
    Registrar,
    RegistrarError,
    State,
    TerminatedError,
    UnknownItemError,
    ValidationError,
    Value,
)
from ergo_registrar.admin.connection import connected
from ergo_registrar.core.change import ConfigChange
from ergo_registrar.core.keys import ConfigKey
from ergo_registrar.etcd.configuration import Configuration
from ergo_registrar.testing.proxy import FaultProxy
from tests.integration.support import Raw, eventually, next_event

Make = Callable[..., Awaitable[Registrar]]
CLUSTER = ConfigLevel.CLUSTER
DELAY = 0.8  # seconds in each direction: time to lose an answer in, and less than etcd's answers may take


@pytest.fixture
async def prefix(registrar_options: Options, raw: Raw) -> AsyncIterator[str]:
    """What the keys of the test's cluster-wide items begin with. What was put for the cluster goes with the test."""
    cluster = registrar_options.cluster
    yield f"services/ergo/cluster/{cluster}/config/*/"
    await raw.delete_prefix(f"services/ergo/cluster/{cluster}/config/")
    await raw.delete_prefix(f"services/ergo/config/{cluster}/")


@pytest.fixture
async def stored(registrar_options: Options, prefix: str) -> AsyncIterator[Configuration]:
    async with connected(registrar_options) as connection:
        yield Configuration(connection, registrar_options)


def change(item: str, value: Value | None, level: int = 3, node: str | None = None) -> ConfigChange:
    return ConfigChange(ConfigKey(ConfigLevel(level), item, node), value)


class TestSetting:
    async def test_is_readable_at_once_here_and_soon_elsewhere(
        self, make_registrar: Make, raw: Raw, prefix: str
    ) -> None:
        registrar, other = await make_registrar("web1"), await make_registrar()
        for value in (5432, 0.5, True, "grüße"):
            revision = await registrar.set_config("item", value, level=CLUSTER)
            assert await registrar.config_item("item") == value
            await other.wait_revision(revision)
            assert await other.config_item("item") == value
            key = await raw.get(f"{prefix}item")
            assert key
            assert key.modified == revision
        revision = await registrar.unset_config("item", level=CLUSTER)
        assert await registrar.config() == {}
        await other.wait_revision(revision)
        assert await other.config() == {}

    async def test_is_readable_although_the_watch_is_not_proven_yet(self, make_registrar: Make, prefix: str) -> None:
        """What comes on a new stream is held back for a moment."""
        for n in range(5):
            registrar = await make_registrar()
            await registrar.set_config("item", n, level=CLUSTER)
            assert await registrar.config_item("item") == n

    @pytest.mark.parametrize("level", ConfigLevel)
    async def test_reaches_each_level(self, make_registrar: Make, raw: Raw, prefix: str, level: ConfigLevel) -> None:
        registrar = await make_registrar("web1")
        item = registrar.info().server.replace(":", "-") + prefix.split("/")[3]  # the global level is everyone's
        async with registrar.subscribe(ConfigUpdate) as updates:
            revision = await registrar.set_config(item, 1, level=level)
            update = await next_event(updates)
            assert (update.item, update.value, update.level, update.revision) == (item, 1, level, revision)
            source = (await registrar.explain(item))[level - 1]
            assert source.key
            assert await raw.get(source.key)
            revision = await registrar.unset_config(item, level=level)
            assert (await next_event(updates)).revision == revision
            assert await raw.get(source.key) is None

    async def test_of_another_node_is_not_ours(self, make_registrar: Make, raw: Raw, prefix: str) -> None:
        observer, web = await make_registrar(), await make_registrar("web1")
        revision = await observer.set_config("item", 7, level=ConfigLevel.CLUSTER_NODE, node="web1")
        await web.wait_revision(revision)
        assert await web.config_item("item") == 7
        assert await observer.config() == {}
        with pytest.raises(ValidationError, match="node: must be given"):
            await observer.set_config("item", 7, level=ConfigLevel.CLUSTER_NODE)

    async def test_under_a_higher_level_changes_nothing_here_and_does_not_wait(
        self, make_registrar: Make, prefix: str
    ) -> None:
        registrar = await make_registrar("web1")
        await registrar.set_config("item", 2, level=ConfigLevel.CLUSTER_NODE)
        await registrar.set_config("item", 3, level=CLUSTER)
        assert await registrar.config_item("item") == 2
        assert [source.value for source in await registrar.explain("item")] == [None, 2, 3, None]

    async def test_of_what_breaks_a_rule_sends_nothing(self, make_registrar: Make, raw: Raw, prefix: str) -> None:
        registrar = await make_registrar("web1")
        for item, value in (("a/b", 1), ("item", "int:5"), ("item", None), ("item", 2**63), ("item", [])):
            with pytest.raises(ValidationError):
                await registrar.set_config(item, value, level=CLUSTER)  # type: ignore[arg-type]  # what must be refused
        assert await raw.under(prefix) == {}


class TestUnsetting:
    async def test_uncovers_the_level_below(self, make_registrar: Make, prefix: str) -> None:
        registrar = await make_registrar("web1")
        await registrar.set_config("item", 3, level=CLUSTER)
        await registrar.set_config("item", 2, level=ConfigLevel.CLUSTER_NODE)
        await registrar.unset_config("item", level=ConfigLevel.CLUSTER_NODE, expect=2)
        assert await registrar.config_item("item") == 3

    async def test_of_what_is_not_there_changes_nothing(self, make_registrar: Make, raw: Raw, prefix: str) -> None:
        registrar = await make_registrar("web1")
        before = await raw.put(prefix.replace("*", "web2") + "item", "x")  # of which this one hears nothing
        assert await asyncio.wait_for(registrar.unset_config("item", level=CLUSTER), 2) >= before
        assert await registrar.unset_config("item", level=CLUSTER, expect=None) >= before
        with pytest.raises(ConflictError, match="nothing stands there"):
            await registrar.unset_config("item", level=CLUSTER, expect="x")
        assert await raw.under(prefix) == {}


class TestExpecting:
    async def test_what_does_not_stand_there_writes_nothing(self, make_registrar: Make, raw: Raw, prefix: str) -> None:
        registrar = await make_registrar("web1")
        before = await raw.put(f"{prefix}item", "int:007")
        for expect in (None, 8, 7.0, "int:7", "7", True):
            with pytest.raises(ConflictError) as conflict:
                await registrar.set_config("item", 9, level=CLUSTER, expect=expect)
            assert (conflict.value.key, conflict.value.expected, conflict.value.found) == (
                f"{prefix}item",
                expect,
                "int:007",
            )
        stands = await raw.get(f"{prefix}item")
        assert stands is not None
        assert stands.modified == before
        await registrar.set_config("item", 9, level=CLUSTER, expect=7)
        await registrar.set_config("item", 10, level=CLUSTER, expect="int:9")
        assert await registrar.config_item("item") == 10

    async def test_lets_one_of_many_writers_win(self, make_registrar: Make, raw: Raw, prefix: str) -> None:
        """Each counts up what it has seen, and tries anew when somebody was faster: no step is lost or doubled."""
        writers = [await make_registrar(f"web{n}") for n in range(4)]
        await writers[0].set_config("count", 0, level=CLUSTER)
        conflicts = 0

        async def count(registrar: Registrar) -> None:
            nonlocal conflicts
            for _ in range(10):
                while True:
                    seen = (await registrar.explain("count"))[2].value
                    try:
                        await registrar.set_config("count", int(seen or 0) + 1, level=CLUSTER, expect=seen)
                        break
                    except ConflictError:
                        conflicts += 1

        async with asyncio.timeout(30):
            await asyncio.gather(*map(count, writers))
        count_key = await raw.get(f"{prefix}count")
        assert count_key
        assert count_key.value == b"int:40"
        assert conflicts > 0

    async def test_nothing_lets_one_in(self, make_registrar: Make, prefix: str) -> None:
        writers = [await make_registrar(f"web{n}") for n in range(4)]
        tries = (writer.set_config("leader", True, level=CLUSTER, expect=None) for writer in writers)
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert [type(result) for result in results if not isinstance(result, int)] == [ConflictError] * 3


class TestManyChanges:
    async def test_are_made_in_transactions_of_a_hundred(self, stored: Configuration, raw: Raw, prefix: str) -> None:
        before = await raw.revision()
        revision = await stored.change(*(change(f"item{n:03}", n) for n in range(250)))
        assert revision == before + 3
        assert len(await raw.under(prefix)) == 250
        await stored.change(*(change(f"item{n:03}", None) for n in range(250)), change("other", "x"))
        assert set(await raw.under(prefix)) == {f"{prefix}other"}

    async def test_of_which_one_is_refused_are_not_made(self, stored: Configuration, raw: Raw, prefix: str) -> None:
        await raw.put(f"{prefix}b", "int:1")
        b = ConfigChange(ConfigKey(CLUSTER, "b"), 2, expect=None)
        with pytest.raises(ConflictError, match="config/\\*/b"):
            await stored.change(change("a", 1), b, change("c", 1))
        assert set(await raw.under(prefix)) == {f"{prefix}b"}

    async def test_to_an_etcd_that_is_far_away_take_few_round_trips(
        self, registrar_options: Options, relay: FaultProxy, raw: Raw, prefix: str
    ) -> None:
        """One by one, a hundred looks would take twenty seconds."""
        async with connected(dataclasses.replace(registrar_options, endpoints=(relay.endpoint,))) as connection:
            relay.delay(0.1)
            await Configuration(connection, registrar_options).change(*(change(f"item{n}", n) for n in range(100)))
        assert len(await raw.under(prefix)) == 100

    async def test_none_are_made(self, stored: Configuration, raw: Raw) -> None:
        assert await stored.change() == 0


class TestWithoutEtcd:
    async def test_a_write_is_an_error_in_time(
        self, make_registrar: Make, registrar_options: Options, relay: FaultProxy, prefix: str
    ) -> None:
        registrar = await make_registrar("web1", endpoints=(relay.endpoint,), request_timeout=1)
        await relay.refuse()
        with pytest.raises(ConnectionFailedError, match=r"config/\*/item.*could not be reached within 1 s") as failed:
            await asyncio.wait_for(registrar.set_config("item", 1, level=CLUSTER), 2)
        assert "may have been done" not in str(failed.value)
        await relay.heal()
        await eventually(lambda: registrar.state is State.CONNECTED)
        with pytest.raises(UnknownItemError):
            await registrar.config_item("item")
        await registrar.set_config("item", 1, level=CLUSTER)
        assert await registrar.config_item("item") == 1

    async def test_an_answer_that_does_not_come_leaves_a_doubt_and_says_so(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, prefix: str
    ) -> None:
        registrar = await make_registrar(endpoints=(relay.endpoint,), request_timeout=4, lease_ttl=20)
        relay.delay(DELAY)
        writing = asyncio.create_task(registrar.set_config("item", 1, level=CLUSTER))
        await eventually(lambda: raw.get(f"{prefix}item"))
        relay.black_hole()
        with pytest.raises(ConnectionFailedError, match="it may have been done all the same, so read it back"):
            await writing
        await relay.heal()

    @pytest.mark.parametrize("guarded", [True, False])
    async def test_an_answer_that_is_lost_is_asked_for_again(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, prefix: str, guarded: bool
    ) -> None:
        """It was done, and nobody but the lost answer could tell by whom: with an expectation that is an error."""
        registrar = await make_registrar(endpoints=(relay.endpoint,), request_timeout=9, lease_ttl=20)
        relay.delay(DELAY)
        setting = registrar.set_config("item", 1, level=CLUSTER, **({"expect": None} if guarded else {}))
        writing = asyncio.create_task(setting)
        await eventually(lambda: raw.get(f"{prefix}item"))
        await relay.cut()
        await relay.heal()
        if guarded:
            with pytest.raises(
                ConnectionFailedError, match=r"an answer of etcd was lost; it was done, or: .*'int:1' stands"
            ):
                await writing
        else:
            await writing
        key = await raw.get(f"{prefix}item")
        assert key
        assert key.value == b"int:1"

    async def test_a_write_ends_with_the_registrar(self, make_registrar: Make, relay: FaultProxy, prefix: str) -> None:
        registrar = await make_registrar("web1", endpoints=(relay.endpoint,))
        relay.black_hole()
        writing = asyncio.create_task(registrar.set_config("item", 1, level=CLUSTER))
        await asyncio.sleep(0)
        await relay.heal()
        await registrar.close()
        with pytest.raises(TerminatedError):
            await writing
        with pytest.raises(TerminatedError):
            await registrar.set_config("item", 1, level=CLUSTER)

    async def test_a_write_before_entering_is_refused(self, registrar_options: Options) -> None:
        with pytest.raises(RegistrarError, match="the cluster is not known yet"):
            await Registrar(registrar_options).set_config("item", 1, level=CLUSTER)
