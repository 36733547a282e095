"""Typed settings of a running registrar: read at once, bound to what changes, and never taken unless valid."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pydantic
import pytest

from ergo_registrar import (
    ConfigLevel,
    Options,
    Registrar,
    RegistrarError,
    SettingsError,
    TerminatedError,
    ValidationError,
)
from ergo_registrar.testing.proxy import FaultProxy
from tests.integration.support import Raw, eventually, settled

Make = Callable[..., Awaitable[Registrar]]


class Database(msgspec.Struct, frozen=True):
    host: str = "localhost"
    port: int = 5432


class Settings(msgspec.Struct, frozen=True):
    database: Database = Database()
    workers: int = 1


@dataclasses.dataclass
class Dataclass:
    workers: int = 1


class Model(pydantic.BaseModel):
    workers: int = 1


@pytest.fixture
async def prefix(registrar_options: Options, raw: Raw) -> AsyncIterator[str]:
    """What the keys of the test's cluster-wide items begin with. What was put goes with the test."""
    prefix = f"services/ergo/cluster/{registrar_options.cluster}/config/*/"
    yield prefix
    await raw.delete_prefix(prefix)


class TestReading:
    @pytest.mark.parametrize("kind", [Settings, Dataclass, Model])
    async def test_fills_each_kind_of_class(self, make_registrar: Make, raw: Raw, prefix: str, kind: Any) -> None:
        await raw.put(f"{prefix}workers", "int:4")
        await raw.put(f"{prefix}shop.workers", "int:5")
        registrar = await make_registrar("web1")
        assert await registrar.settings(kind) == kind(workers=4)
        assert await registrar.settings(kind, prefix="shop") == kind(workers=5)

    async def test_takes_the_deciding_level_and_names_it(self, make_registrar: Make, prefix: str) -> None:
        registrar = await make_registrar("web1")
        await registrar.set_config("workers", "many", level=ConfigLevel.CLUSTER)
        await registrar.set_config("database.port", 1, level=ConfigLevel.CLUSTER)
        await registrar.set_config("database.port", "1", level=ConfigLevel.CLUSTER_NODE)
        with pytest.raises(SettingsError) as raised:
            await registrar.settings(Settings)
        assert [(problem.item, problem.level, problem.raw) for problem in raised.value.problems] == [
            ("database.port", 2, "1"),
            ("workers", 3, "many"),
        ]
        await registrar.unset_config("database.port", level=ConfigLevel.CLUSTER_NODE)
        await registrar.set_config("workers", 2, level=ConfigLevel.CLUSTER, expect="many")
        assert await registrar.settings(Settings) == Settings(Database(port=1), 2)

    async def test_needs_a_class_and_a_registrar_that_runs(
        self, make_registrar: Make, registrar_options: Options
    ) -> None:
        outside = Registrar(registrar_options)
        with pytest.raises(RegistrarError, match="the cluster is not known yet"):
            await outside.settings(Settings)
        with pytest.raises(RegistrarError, match="the cluster is not known yet"):
            await outside.bind(Settings).__aenter__()
        for call in (outside.settings, outside.bind):
            with pytest.raises(ValidationError, match="settings: must be a msgspec Struct"):
                called = call(dict)
                await called  # type: ignore[misc]  # the one that is no coroutine raises before
        registrar = await make_registrar()
        await registrar.close()
        with pytest.raises(TerminatedError):
            await registrar.settings(Settings)


class TestFollowing:
    async def test_changes_are_taken_as_they_come(self, make_registrar: Make, raw: Raw, prefix: str) -> None:
        registrar = await make_registrar("web1")
        async with registrar.bind(Settings) as live:
            assert live.current == Settings()
            for n in (2, 3):
                changing = asyncio.create_task(live.changed())
                await raw.put(f"{prefix}workers", f"int:{n}")
                async with asyncio.timeout(5):
                    assert await changing == live.current == Settings(workers=n)
            await raw.delete(f"{prefix}workers")
            await eventually(lambda: live.current == Settings())

    async def test_what_is_not_valid_is_not_taken(
        self, make_registrar: Make, raw: Raw, prefix: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        await raw.put(f"{prefix}workers", "int:2")
        registrar = await make_registrar("web1")
        async with registrar.bind(Settings) as live:
            first = live.current
            await raw.put(f"{prefix}database.port", "5433")
            (problem,) = await eventually(lambda: live.problems)
            assert str(problem) == "database.port: expected int, not '5433' of level 3; int:5433 would be right"
            await raw.put(f"{prefix}workers", "int:3")  # valid by itself, and part of what is not
            await raw.put(f"{prefix}workers", "x")
            await eventually(lambda: len(live.problems) == 2)
            assert live.current is first
            warnings = [r.getMessage() for r in caplog.records if "the last valid settings stay" in r.getMessage()]
            assert len(warnings) == 2  # one for each set of problems
            assert str(problem) in warnings[0]
            await raw.put(f"{prefix}workers", "int:2")
            await raw.delete(f"{prefix}database.port")
            await eventually(lambda: live.problems == ())
            assert live.current is first  # nothing changed in the end
            await raw.put(f"{prefix}database.port", "int:5433")
            await eventually(lambda: live.current == Settings(Database(port=5433), 2))

    async def test_what_does_not_concern_them_changes_nothing(
        self, make_registrar: Make, raw: Raw, prefix: str
    ) -> None:
        registrar = await make_registrar("web1")
        async with registrar.bind(Settings) as live:
            first, changing = live.current, asyncio.create_task(live.changed())
            await raw.put(f"{prefix}other", "x")
            await settled(raw, registrar)
            assert live.current is first
            assert not changing.done()
            await raw.put(f"{prefix}workers", "int:9")
            assert (await changing).workers == 9

    async def test_begins_valid_or_not_at_all(self, make_registrar: Make, raw: Raw, prefix: str) -> None:
        await raw.put(f"{prefix}workers", "x")
        registrar = await make_registrar("web1")
        live = registrar.bind(Settings)
        with pytest.raises(SettingsError, match="workers: expected int"):
            await live.__aenter__()
        with pytest.raises(RegistrarError, match="there are no settings yet"):
            _ = live.current
        await raw.put(f"{prefix}workers", "int:2")
        await eventually(lambda: _config(registrar, "workers"))
        async with live:
            assert live.current.workers == 2
            with pytest.raises(RegistrarError, match="bound already"):
                await live.__aenter__()

    async def test_of_many_changes_the_last_is_told(self, make_registrar: Make, raw: Raw, prefix: str) -> None:
        """Iterating begins with what is there, skips what is over, and misses no end."""
        registrar = await make_registrar("web1")
        async with registrar.bind(Settings) as live, asyncio.timeout(10):
            seen = []
            async for settings in live:
                seen.append(settings.workers)
                if settings.workers == 1:
                    for n in range(2, 102):
                        await raw.put(f"{prefix}workers", f"int:{n}")
                if settings.workers == 101:
                    break
        assert seen[0] == 1
        assert seen == sorted(set(seen))
        assert len(seen) < 101

    async def test_a_transaction_is_taken_as_one(self, make_registrar: Make, raw: Raw, prefix: str) -> None:
        class Range(msgspec.Struct, frozen=True):
            least: int = 0
            most: int = 0

            def __post_init__(self) -> None:
                if self.least > self.most:
                    raise ValueError("least is more than most")

        registrar = await make_registrar("web1")
        async with registrar.bind(Range) as live:
            await raw.put_many([(f"{prefix}least", b"int:8"), (f"{prefix}most", b"int:9")])
            await eventually(lambda: live.current == Range(8, 9))
            assert live.problems == ()

    async def test_several_follow_by_themselves(self, make_registrar: Make, raw: Raw, prefix: str) -> None:
        registrar = await make_registrar("web1")
        async with registrar.bind(Settings) as one, registrar.bind(Model) as two:
            async with registrar.bind(Settings, prefix="shop") as three:
                await raw.put_many([(f"{prefix}workers", b"int:7"), (f"{prefix}shop.workers", b"int:8")])
                await eventually(lambda: (one.current.workers, two.current.workers, three.current.workers) == (7, 7, 8))
            await raw.put_many([(f"{prefix}workers", b"int:9"), (f"{prefix}shop.workers", b"int:9")])
            await eventually(lambda: (one.current.workers, two.current.workers) == (9, 9))
            assert three.current.workers == 8

    async def test_goes_on_after_more_changes_than_a_queue_holds(
        self, make_registrar: Make, raw: Raw, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registrar = await make_registrar("web1")
        subscribe = registrar.subscribe
        monkeypatch.setattr(registrar, "subscribe", lambda *types: subscribe(*types, maxsize=1))
        async with registrar.bind(Settings) as live:
            await raw.put_many((f"{prefix}item{n}", b"x") for n in range(99))  # in one revision, so in one moment
            await settled(raw, registrar)
            assert registrar.stats.events_missed > 0
            await raw.put_many([*((f"{prefix}item{n}", b"y") for n in range(98)), (f"{prefix}workers", b"int:7")])
            await eventually(lambda: live.current.workers == 7)

    async def test_goes_on_behind_a_broken_connection(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, prefix: str
    ) -> None:
        registrar = await make_registrar("web1", endpoints=(relay.endpoint,))
        async with registrar.bind(Settings) as live:
            await relay.refuse()
            await raw.put(f"{prefix}workers", "int:2")
            await raw.put(f"{prefix}workers", "int:3")
            assert live.current.workers == 1
            await relay.heal()
            await eventually(lambda: live.current.workers == 3)


async def _config(registrar: Registrar, item: str) -> bool:
    return isinstance((await registrar.config(item))[item], int)


class TestEnding:
    async def test_with_the_registrar_ends_who_waits(self, make_registrar: Make, raw: Raw, prefix: str) -> None:
        registrar = await make_registrar("web1")
        seen: list[int] = []
        async with registrar.bind(Settings) as live:
            waiting = asyncio.create_task(live.changed())

            async def iterate() -> None:
                async for settings in live:
                    seen.append(settings.workers)  # noqa: PERF401  # it is looked at meanwhile

            iterating = asyncio.create_task(iterate())
            await eventually(lambda: seen)
            await registrar.close()
            async with asyncio.timeout(5):
                await iterating
                with pytest.raises(TerminatedError, match="have ended"):
                    await waiting
            assert seen == [1]
            assert live.current == Settings()
            with pytest.raises(TerminatedError):
                await live.changed()

    async def test_of_the_block_ends_who_waits(self, make_registrar: Make) -> None:
        registrar = await make_registrar("web1")
        async with registrar.bind(Settings) as live:
            waiting = asyncio.create_task(live.changed())
            await asyncio.sleep(0)
        assert all(task.get_name() != "ergo_registrar settings" for task in asyncio.all_tasks())
        with pytest.raises(TerminatedError, match="have ended"):
            await waiting

    async def test_by_a_bug_tells_its_cause(
        self, make_registrar: Make, raw: Raw, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registrar = await make_registrar("web1")

        def fail(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        async with registrar.bind(Settings) as live:
            waiting = asyncio.create_task(live.changed())
            await asyncio.sleep(0)
            monkeypatch.setattr(registrar._view, "changed", fail)
            await raw.put(f"{prefix}workers", "int:2")
            with pytest.raises(TerminatedError, match="a bug") as raised:
                await waiting
            assert isinstance(raised.value.__cause__, ZeroDivisionError)
            with pytest.raises(TerminatedError, match="a bug"):
                async for _ in live:
                    pass

    async def test_by_a_bug_of_their_own_tells_its_cause(
        self, make_registrar: Make, raw: Raw, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registrar = await make_registrar("web1")
        bug = ZeroDivisionError("planted")
        async with registrar.bind(Settings) as live:

            def broken() -> None:
                raise bug

            monkeypatch.setattr(live, "_read", broken)
            waiting = asyncio.create_task(live.changed())
            await raw.put(f"{prefix}workers", "int:4")
            async with asyncio.timeout(5):
                with pytest.raises(TerminatedError, match="planted") as raised:
                    await waiting
            assert raised.value.__cause__ is bug
            assert live.current == Settings()

    async def test_by_cancellation_leaves_nothing_behind(self, make_registrar: Make, raw: Raw, prefix: str) -> None:
        registrar = await make_registrar("web1")
        entered = asyncio.Event()

        async def bound() -> None:
            async with registrar.bind(Settings) as live:
                entered.set()
                await live.changed()

        task = asyncio.create_task(bound())
        await entered.wait()
        before = asyncio.all_tasks()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        following = {each for each in before if each.get_name() == "ergo_registrar settings"}
        assert following
        assert all(each.done() for each in following)
        await raw.put(f"{prefix}workers", "int:2")
        await settled(raw, registrar)
        assert (await registrar.settings(Settings)).workers == 2
