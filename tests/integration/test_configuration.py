"""Configuration at four levels: which one counts, what type it has, and what is told when it changes."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from ergo_registrar import (
    ConfigLevel,
    ConfigUpdate,
    Options,
    Registrar,
    UnknownItemError,
    ValidationError,
)
from tests.integration.support import Raw, etcdctl, next_event, settled

Make = Callable[..., Awaitable[Registrar]]
NODE = "web1"


class Levels:
    """The four keys of an item, by level."""

    def __init__(self, cluster: str) -> None:
        self.prefixes = {
            1: f"services/ergo/config/{cluster}/{NODE}/",
            2: f"services/ergo/cluster/{cluster}/config/{NODE}/",
            3: f"services/ergo/cluster/{cluster}/config/*/",
            4: "services/ergo/config/global/",
        }
        self.cluster = cluster

    def key(self, level: int, item: str) -> str:
        return self.prefixes[level] + item


@pytest.fixture
async def levels(registrar_options: Options, raw: Raw) -> AsyncIterator[Levels]:
    levels = Levels(registrar_options.cluster)
    yield levels
    for prefix in levels.prefixes.values():
        await raw.delete_prefix(prefix)


class TestTheSeedPage:
    async def test_its_example_reads_as_it_says(
        self, make_registrar: Make, registrar_options: Options, raw: Raw, levels: Levels, etcd: str
    ) -> None:
        cluster = registrar_options.cluster
        for key, value in {
            f"services/ergo/cluster/{cluster}/config/web1/database.port": "int:5432",
            f"services/ergo/cluster/{cluster}/config/*/cache.ratio": "float:0.75",
            f"services/ergo/cluster/{cluster}/config/*/debug.enabled": "bool:true",
            f"services/ergo/cluster/{cluster}/config/web1/ssl.enabled": "bool:false",
            "services/ergo/config/global/log.level": "info",
        }.items():
            await etcdctl(etcd, "put", key, value)
        registrar = await make_registrar(NODE)
        port = await registrar.config_item("database.port")
        assert (port, type(port)) == (5432, int)
        assert await registrar.config("database.port", "cache.ratio", "debug.enabled", "log.level", "nothing") == {
            "database.port": 5432,
            "cache.ratio": 0.75,
            "debug.enabled": True,
            "log.level": "info",
        }
        assert await registrar.config_item("ssl.enabled") is False
        everything = await registrar.config()
        assert everything.keys() == {"database.port", "cache.ratio", "debug.enabled", "ssl.enabled", "log.level"}


class TestLevels:
    async def test_a_higher_one_masks_and_unmasks(self, make_registrar: Make, raw: Raw, levels: Levels) -> None:
        registrar = await make_registrar(NODE)
        async with registrar.subscribe(ConfigUpdate) as events:
            for level in (4, 3, 2, 1):
                revision = await raw.put(levels.key(level, "item"), f"int:{level}")
                update = await next_event(events)
                previous = level + 1 if level < 4 else None
                assert update == ConfigUpdate(
                    revision=revision, item="item", value=level, previous=previous, level=level
                )
                assert await registrar.config_item("item") == level
            for level in (1, 2, 3):
                await raw.delete(levels.key(level, "item"))
                update = await next_event(events)
                assert (update.value, update.previous, update.level) == (level + 1, level, level + 1)
                assert await registrar.config_item("item") == level + 1
            await raw.delete(levels.key(4, "item"))
            update = await next_event(events)
            assert (update.value, update.previous, update.level) == (None, 4, None)
        with pytest.raises(UnknownItemError):
            await registrar.config_item("item")

    async def test_what_is_masked_changes_in_silence(self, make_registrar: Make, raw: Raw, levels: Levels) -> None:
        await raw.put(levels.key(1, "item"), "int:1")
        registrar = await make_registrar(NODE)
        async with registrar.subscribe(ConfigUpdate) as events:
            for level in (2, 3, 4):
                await raw.put(levels.key(level, "item"), "hidden")
                await raw.delete(levels.key(level, "item"))
            await raw.put(levels.key(2, "item"), "int:1")
            await raw.delete(levels.key(1, "item"))  # unmasks the same value
            await raw.put(levels.key(2, "item"), "int:1")
            await raw.put(levels.key(2, "item"), "int:01")  # says the same
            await raw.put(levels.key(2, "item"), "1")  # a string
            update = await next_event(events)
        assert (update.value, update.previous) == ("1", 1)

    async def test_explain_shows_all_four(self, make_registrar: Make, raw: Raw, levels: Levels) -> None:
        await raw.put(levels.key(4, "item"), "float:0x1p-1")
        third = await raw.put(levels.key(3, "item"), "bool:T")
        await raw.put(levels.key(2, "item"), b"\xff")
        registrar = await make_registrar(NODE)
        one, two, three, four = await registrar.explain("item")
        assert [source.level for source in (one, two, three, four)] == list(ConfigLevel)
        assert [source.key for source in (one, two, three, four)] == [levels.key(n, "item") for n in (1, 2, 3, 4)]
        assert (one.raw, one.value, one.revision, one.winner) == (None, None, 0, False)
        assert (two.raw, two.value, two.winner) == (None, None, False)
        assert (three.raw, three.value, three.revision, three.winner) == ("bool:T", True, third, True)
        assert (four.raw, four.value, four.winner) == ("float:0x1p-1", 0.5, False)
        assert registrar.stats.keys_skipped == 1
        assert not any(source.winner for source in await registrar.explain("unknown"))

    async def test_an_observer_has_the_two_that_need_no_node(
        self, make_registrar: Make, raw: Raw, levels: Levels
    ) -> None:
        for level in (1, 2, 3, 4):
            await raw.put(levels.key(level, "item"), f"int:{level}")
        observer = await make_registrar()
        assert await observer.config_item("item") == 3
        assert [source.key is None for source in await observer.explain("item")] == [True, True, False, False]

    async def test_another_nodes_levels_are_not_ours(self, make_registrar: Make, raw: Raw, levels: Levels) -> None:
        await raw.put(levels.key(1, "item"), "int:1")
        await raw.put(levels.key(2, "item"), "int:2")
        other = await make_registrar(NODE + "0")
        with pytest.raises(UnknownItemError):
            await other.config_item("item")


class TestValues:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("int:5432", 5432),
            ("int:-0", 0),
            ("int:+7", 7),
            ("int: 7", "int: 7"),
            ("int:1_000", "int:1_000"),
            ("int:9223372036854775808", "int:9223372036854775808"),
            ("float:3.14", 3.14),
            ("float:inf", math.inf),
            ("float:1e999", "float:1e999"),
            ("bool:t", True),
            ("bool:FALSE", False),
            ("bool:yes", "bool:yes"),
            ("", ""),
            ("INT:1", "INT:1"),
            ("grüße 日本", "grüße 日本"),
        ],
    )
    async def test_have_the_type_that_go_gives_them(
        self, make_registrar: Make, raw: Raw, levels: Levels, text: str, value: object
    ) -> None:
        await raw.put(levels.key(3, "item"), text)
        observer = await make_registrar()
        read = await observer.config_item("item")
        assert (read, type(read)) == (value, type(value))
        assert (await observer.explain("item"))[2].raw == text


class TestLiveUpdates:
    async def test_by_etcdctl_reach_a_running_process(
        self, make_registrar: Make, registrar_options: Options, levels: Levels, etcd: str
    ) -> None:
        registrar = await make_registrar(NODE)
        async with registrar.subscribe(ConfigUpdate) as events:
            await etcdctl(etcd, "put", levels.key(2, "ssl.enabled"), "bool:true")
            update = await next_event(events)
            assert (update.item, update.value, update.level) == ("ssl.enabled", True, ConfigLevel.CLUSTER_NODE)
            await etcdctl(etcd, "del", levels.key(2, "ssl.enabled"))
            assert (await next_event(events)).value is None

    async def test_reach_only_the_nodes_they_concern(self, make_registrar: Make, raw: Raw, levels: Levels) -> None:
        web1, web2 = await make_registrar(NODE), await make_registrar("web2")
        async with web1.subscribe(ConfigUpdate) as one, web2.subscribe(ConfigUpdate) as two:
            await raw.put(levels.key(2, "item"), "x")
            assert (await next_event(one)).item == "item"
            await raw.put(levels.key(3, "shared"), "x")
            assert (await next_event(two)).item == "shared"

    async def test_what_cannot_be_read_unmasks_the_next_level(
        self, make_registrar: Make, raw: Raw, levels: Levels, caplog: pytest.LogCaptureFixture
    ) -> None:
        await raw.put(levels.key(4, "item"), "global")
        await raw.put(levels.key(1, "item"), "mine")
        registrar = await make_registrar(NODE)
        async with registrar.subscribe(ConfigUpdate) as events:
            await raw.put(levels.key(1, "item"), b"\xff\xfe")
            assert (await next_event(events)).value == "global"
            await raw.put(levels.key(1, "item"), b"\xff\xfd")
            await settled(raw, registrar)
        assert registrar.stats.keys_skipped == 2
        assert sum(levels.key(1, "item") in record.getMessage() for record in caplog.records) == 1

    async def test_a_key_that_names_no_item_is_skipped(self, make_registrar: Make, raw: Raw, levels: Levels) -> None:
        registrar = await make_registrar(NODE)
        await raw.put(levels.key(3, "a/b"), "x")
        await raw.put(levels.key(3, ""), "x")
        await settled(raw, registrar)
        assert registrar.stats.keys_skipped == 2
        assert await registrar.config() == {}


class TestBadItems:
    @pytest.mark.parametrize("item", ["", "a/b", "a\n", "x" * 256, None, 1])
    async def test_are_named(self, make_registrar: Make, item: str) -> None:
        registrar = await make_registrar()
        for call in (registrar.config_item, registrar.config, registrar.explain):
            with pytest.raises(ValidationError, match="item"):
                await call(item)

    async def test_unknown_ones_say_where_they_would_stand(self, make_registrar: Make, levels: Levels) -> None:
        registrar = await make_registrar(NODE)
        with pytest.raises(UnknownItemError) as unknown:
            await registrar.config_item("nothing")
        assert isinstance(unknown.value, KeyError)
        for level in (1, 2, 3, 4):
            assert levels.key(level, "nothing") in str(unknown.value)
