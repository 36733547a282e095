"""What a registrar says of itself while things go wrong, and that it is true: state, staleness, health, the lag."""

import ast
import asyncio
import contextlib
import functools
import itertools
import math
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aetcd.rpc
import grpc
import pytest
from blockbuster import BlockBuster

import ergo_registrar
from ergo_registrar import (
    ConnectionFailedError,
    NodeJoined,
    NodeLeft,
    NodeRecovered,
    NodeSuspected,
    Options,
    Registrar,
    RegistrarConnected,
    RegistrarDisconnected,
    RegistrarError,
    State,
    TakenError,
    TerminatedError,
    clock,
)
from ergo_registrar.etcd.server import LocalEtcd
from ergo_registrar.health import Health
from ergo_registrar.testing.proxy import FaultProxy
from tests.faults.support import LOAD, hold
from tests.integration.support import (
    NO_ROUTES,
    ONE_ROUTE,
    TTL,
    Raw,
    eventually,
    kept_alive,
    next_event,
    short_options,
    waiting,
)

Make = Callable[..., Awaitable[Registrar]]

HUNG = 15.0  # seconds after which something is not slow, but hangs
REGAINED = 3.0 + LOAD  # seconds in which a live process is registered again
FUTURE = 2**62  # a revision that etcd will not have

_time_of_day = time.time


@pytest.fixture(autouse=True, scope="module")
def may_stand_still(no_blocking_calls: BlockBuster) -> None:
    """Let `stand_still`, and nothing else here, block the event loop."""
    for function in no_blocking_calls.functions.values():
        function.can_block_in("faults/test_visible_state.py", "stand_still")


def stand_still(seconds: float, until: Callable[[], bool] = lambda: True) -> float:
    """Block the event loop for so many seconds, and until something is true; return for how many seconds."""
    began = time.monotonic()
    time.sleep(seconds)
    while not until():
        assert time.monotonic() - began < HUNG
    return time.monotonic() - began


@contextlib.contextmanager
def gone(etcd: str, key: str) -> Iterator[Callable[[], bool]]:
    """A condition that needs no event loop: this key is not in etcd."""
    with grpc.insecure_channel(etcd) as channel:
        read = aetcd.rpc.KVStub(channel).Range
        yield lambda: read(aetcd.rpc.RangeRequest(key=key.encode(), count_only=True), timeout=10).count == 0


def truthful(registrar: Registrar) -> Health:
    """Return the health. Fail if it says that all is well and cannot know that."""
    health = registrar.health()
    assert health.ok == (health.state is State.CONNECTED)
    if health.ok:
        assert health.reason is None
        assert health.staleness <= registrar._options.lease_ttl
        assert health.lease_left is None or health.lease_left > 0
    return health


async def kept_asking(registrar: Registrar) -> None:
    """Have it ask etcd for the newest revision, again and again."""
    while True:
        await registrar.wait_revision(registrar.revision + 1)


class TestStaleness:
    async def test_of_an_idle_registrar_is_small(self, make_registrar: Make) -> None:
        """Nothing happens: every third of the TTL it falls, and it stays at two thirds, whatever etcd's version."""
        registrars = [await make_registrar("a@h", lease_ttl=4), await make_registrar(lease_ttl=4)]
        seen: list[list[float]] = [[], []]

        def proven() -> bool:
            for registrar, values in zip(registrars, seen, strict=True):
                assert truthful(registrar).ok
                values.append(registrar.staleness)
            return all(sum(b < a for a, b in itertools.pairwise(values)) >= 4 for values in seen)

        await eventually(proven, within=HUNG)
        assert max(map(max, seen)) < 2 / 3 * 4 + 1  # and a second for a loaded machine

    async def test_grows_while_etcd_stands_still(self) -> None:
        """etcd hangs: `staleness` grows with the time and the state is not `CONNECTED`; both are well again after."""
        async with LocalEtcd() as etcd:
            options = short_options(etcd.endpoint)
            registrars = [Registrar(options, node="a@h"), Registrar(options)]
            assert [registrar.staleness for registrar in registrars] == [math.inf, math.inf]
            async with registrars[0], registrars[1]:
                await etcd.members[0].pause()
                before, began = [registrar.staleness for registrar in registrars], clock.now()
                await eventually(lambda: all(registrar.staleness > TTL + 1 for registrar in registrars))
                passed = clock.now() - began
                for registrar, staleness in zip(registrars, before, strict=True):
                    assert registrar.staleness - staleness == pytest.approx(passed, abs=0.1)
                    assert not truthful(registrar).ok
                etcd.members[0].resume()
                await eventually(lambda: all(truthful(registrar).ok for registrar in registrars))
                assert all(registrar.staleness < TTL for registrar in registrars)

    async def test_on_a_line_that_gets_slow_counts_what_is_on_its_way(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, routes: str
    ) -> None:
        """Changes come late, and it is asked for them often: `staleness` is as long as one is under way, or longer."""
        registrar = await make_registrar(endpoints=(relay.endpoint,), lease_ttl=9)
        key = f"{routes.removesuffix('routes/')}config/*/item"
        written: list[float] = []
        seen: list[float] = []

        async def write() -> None:
            while True:
                await raw.put(key, f"int:{len(written)}")
                written.append(clock.now())
                await asyncio.sleep(0.02)

        async def honest() -> bool:
            at = clock.now()
            seen.append(registrar.staleness)
            known: Any = (await registrar.config()).get("item", -1)
            assert seen[-1] >= at - min(written[known + 1 :], default=at)
            return sum(b < a for a, b in itertools.pairwise(seen)) >= 6

        relay.delay(0.6)
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(write())
            asking = tasks.create_task(kept_asking(registrar))
            await eventually(honest, within=2 * HUNG)
            writing.cancel()
            asking.cancel()


class TestALoopThatStandsStill:
    async def test_for_a_third_of_the_lease_is_warned_of(
        self, make_registrar: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Something blocks for a third of the TTL: one warning says for how long, before the lease is in danger."""
        registrar = await make_registrar("a@h", lease_ttl=6)
        lags = registrar._runner._lags
        await eventually(lambda: len(lags) == 1)  # it begins to measure again, which is the worst moment
        async with registrar.subscribe(RegistrarConnected, RegistrarDisconnected) as told:
            stood = stand_still(2)
            await eventually(lambda: len(lags) == 3)
            assert waiting(told) == []
        (warning,) = [r.getMessage() for r in caplog.records if "event loop" in r.getMessage()]
        said = re.search(r"stood still for ([0-9.]+) s", warning)
        assert said
        assert stood - 0.7 <= float(said[1]) <= stood + LOAD  # it looks every 0.6 s
        assert registrar.health().loop_lag == pytest.approx(float(said[1]), abs=0.1)
        assert truthful(registrar).ok
        assert registrar.stats.claims == 1

    async def test_for_longer_than_the_lease_is_told_and_made_good(
        self, make_registrar: Make, etcd: str, routes: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Others see it leave. The very next line sees `SUSPENDED`; subscribers are told; it is back after 3 s."""
        member, observer = await make_registrar("a@h"), await make_registrar()
        async with (
            observer.subscribe(NodeJoined, NodeLeft) as seen,
            member.subscribe(RegistrarConnected, RegistrarDisconnected) as told,
        ):
            with gone(etcd, f"{routes}nodes/a@h") as is_gone:
                stand_still(TTL + 0.1, until=is_gone)
            for registrar in (member, observer):
                assert truthful(registrar).state is State.SUSPENDED
            began = time.monotonic()
            assert isinstance(await next_event(told), RegistrarDisconnected)
            assert isinstance(await next_event(told), RegistrarConnected)
            assert time.monotonic() - began < REGAINED
            assert isinstance(await next_event(seen), NodeLeft)
            assert isinstance(await next_event(seen), NodeJoined)
            await eventually(lambda: truthful(member).ok and truthful(observer).ok)
            assert waiting(told) == waiting(seen) == []
        assert "the event loop stood still for" in caplog.text


class TestTheTimeOfDay:
    @pytest.mark.parametrize("days", [1, -1])
    async def test_jumps_and_nothing_happens(
        self,
        make_registrar: Make,
        raw: Raw,
        registrar_options: Options,
        monkeypatch: pytest.MonkeyPatch,
        days: int,
    ) -> None:
        """By a day, forth or back: the lease goes on, the state stays `CONNECTED`, and nobody is told anything."""
        member, observer = await make_registrar("a@h"), await make_registrar(suspect_grace=30)
        before = await hold(raw, registrar_options)
        async with member.subscribe() as told, observer.subscribe() as seen:
            monkeypatch.setattr(time, "time", lambda: _time_of_day() + days * 86_400)
            renewals = member.stats.lease_renewals

            def lived_on() -> bool:
                assert truthful(member).ok
                assert truthful(observer).ok
                return member.stats.lease_renewals >= renewals + 2

            await eventually(lived_on)
            assert waiting(told) == waiting(seen) == []
            monkeypatch.undo()  # grpc's timeouts, which `raw` uses, count from the time of day
        assert await hold(raw, registrar_options) == before

    def test_is_not_what_anything_counts_on(self) -> None:
        """No source asks for it, but of the command line and what it asks with: when things happened, and run out."""
        asks = re.compile(r"\bdatetime\b|^from time |^time\.(time|time_ns|localtime|gmtime|ctime|asctime|strftime)$")
        package = Path(ergo_registrar.__file__).parent
        asking = [
            f"{path}:{node.lineno}"
            for path in package.rglob("*.py")
            if path.relative_to(package).parts[0] not in ("cli", "admin")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute | ast.Import | ast.ImportFrom) and asks.search(ast.unparse(node))
        ]
        assert asking == []


class TestAMachineThatSlept:
    """Time went by, for etcd too unless it slept as well, and no timer of this process noticed."""

    @pytest.fixture
    def sleep(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
        """Let so many seconds have gone by."""

        def sleep(seconds: float) -> None:
            later = SimpleNamespace(
                monotonic=lambda: time.monotonic() + seconds,
                clock_gettime=lambda which: time.clock_gettime(which) + seconds,
            )
            monkeypatch.setattr(clock, "time", later)

        return sleep

    async def test_with_etcd_goes_on_as_before(
        self, make_registrar: Make, raw: Raw, registrar_options: Options, sleep: Callable[[float], None]
    ) -> None:
        """The next line sees `SUSPENDED` and why; `CONNECTED` 3 s later; others see nothing, and nobody is told."""
        member, observer = await make_registrar("a@h"), await make_registrar()
        before = await hold(raw, registrar_options)
        async with member.subscribe() as told, observer.subscribe() as seen:
            sleep(3600)
            for registrar in (member, observer):
                health = truthful(registrar)
                assert health.state is State.SUSPENDED
                assert health.staleness > 3600
                assert health.reason
                assert "ago" in health.reason
            await eventually(lambda: truthful(member).ok and truthful(observer).ok, within=REGAINED)
            assert waiting(told) == waiting(seen) == []
        assert await hold(raw, registrar_options) == before
        assert member.stats.claims == 1

    async def test_without_etcd_is_registered_again(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, routes: str, sleep: Callable[[float], None]
    ) -> None:
        """Its lease is over: the next line sees `SUSPENDED`; subscribers are told; registered again 3 s later."""
        member = await make_registrar("a@h", endpoints=(relay.endpoint,))
        key = await raw.get(f"{routes}nodes/a@h")
        assert key
        async with member.subscribe(RegistrarConnected, RegistrarDisconnected) as told:
            relay.black_hole()
            await raw.revoke(key.lease)
            sleep(3600)
            assert truthful(member).state is State.SUSPENDED
            await relay.heal()
            began = time.monotonic()
            assert isinstance(await next_event(told), RegistrarDisconnected)
            assert isinstance(await next_event(told), RegistrarConnected)
            assert time.monotonic() - began < REGAINED
            assert waiting(told) == []
        await eventually(lambda: truthful(member).ok, within=REGAINED)

    async def test_while_another_took_its_name_harms_nobody(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, routes: str, sleep: Callable[[float], None]
    ) -> None:
        """It is told that the name is taken, and leaves it alone; back within 3 s of its being free."""
        member = await make_registrar("a@h", endpoints=(relay.endpoint,))
        before = await raw.get(f"{routes}nodes/a@h")
        assert before
        async with member.subscribe(RegistrarConnected, RegistrarDisconnected) as told:
            relay.black_hole()
            await raw.revoke(before.lease)
            async with kept_alive(raw) as lease:
                await raw.put(f"{routes}nodes/a@h", ONE_ROUTE, lease)
                sleep(3600)
                assert truthful(member).state is State.SUSPENDED
                await relay.heal()
                await eventually(lambda: isinstance(member._runner._reason, TakenError))
                assert truthful(member).state is State.LOST
                theirs = await raw.get(f"{routes}nodes/a@h")
                assert theirs
                assert (theirs.value, theirs.lease) == (ONE_ROUTE, lease)
            began = time.monotonic()
            await next_event(told, RegistrarConnected)
            assert time.monotonic() - began < REGAINED
        await eventually(lambda: truthful(member).ok, within=REGAINED)

    async def test_forgets_no_suspect(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, routes: str, sleep: Callable[[float], None]
    ) -> None:
        """Nobody looked meanwhile: who came back is told as recovered, and the grace of who did not has stood still."""
        observer = await make_registrar(endpoints=(relay.endpoint,), suspect_grace=30)
        async with kept_alive(raw) as lease, observer.subscribe(NodeLeft, NodeSuspected, NodeRecovered) as told:
            for node in ("b@h", "c@h"):
                await raw.put(f"{routes}nodes/{node}", ONE_ROUTE, lease)
                await observer.wait_revision(await raw.revision())
                await raw.delete(f"{routes}nodes/{node}")
                assert isinstance(await next_event(told), NodeSuspected)
            relay.black_hole()
            await raw.put(f"{routes}nodes/b@h", ONE_ROUTE, lease)
            sleep(3600)
            await eventually(lambda: observer._runner._state is not State.CONNECTED)  # it has noticed, by itself
            await relay.heal()
            assert isinstance(await next_event(told), NodeRecovered)
            await eventually(lambda: truthful(observer).ok)
            await observer.wait_revision(await raw.revision())
            assert await observer.nodes() == ["b@h", "c@h"]
            assert waiting(told) == []


async def received(raw: Raw) -> float:
    """Return how many messages etcd has had from its clients."""
    metrics = await raw.metrics()
    return sum(count for name, count in metrics.items() if name.startswith("grpc_server_msg_received_total"))


class TestWaitRevision:
    """With a TTL of 30 s: what is proven by and by, every 10 s, comes too late for these stories."""

    @pytest.fixture
    def registrar_options(self, registrar_options: Options, relay: FaultProxy) -> Options:
        endpoint = registrar_options.endpoints[0]
        return short_options(endpoint, cluster=registrar_options.cluster, lease_ttl=30, request_timeout=2)

    async def test_what_was_written_can_be_read(self, make_registrar: Make, raw: Raw, routes: str) -> None:
        """As soon as it returns, also for many at once."""
        registrar = await make_registrar()
        key = f"{routes.removesuffix('routes/')}config/*/item"
        for n in range(50):
            revision = await raw.put(key, f"int:{n}")
            await asyncio.gather(*(registrar.wait_revision(revision) for _ in range(10)))
            assert await registrar.config_item("item") == n
            assert registrar.revision >= revision
        await raw.delete(key)

    async def test_right_after_a_break_does_not_return_too_soon(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, routes: str
    ) -> None:
        """The same while etcd is still bringing a new watch up to date."""
        registrar = await make_registrar(endpoints=(relay.endpoint,))
        key = f"{routes.removesuffix('routes/')}config/*/item"
        for n in range(15):
            await relay.cut()
            revision = await raw.put(key, f"int:{n}")
            await registrar.wait_revision(revision)
            assert await registrar.config_item("item") == n
        await raw.delete(key)

    async def test_of_what_is_not_watched_is_proven_at_once(self, make_registrar: Make, raw: Raw) -> None:
        """A write that this process hears nothing of: it asks etcd, and returns."""
        registrar = await make_registrar()
        for _ in range(50):
            revision = await raw.put("elsewhere", "x")
            await registrar.wait_revision(revision)
            assert registrar.revision >= revision
        await raw.delete("elsewhere")

    async def test_that_etcd_does_not_have_is_an_error_in_time(self, make_registrar: Make, raw: Raw) -> None:
        """`ConnectionFailedError` after `request_timeout`; a hundred who wait ask etcd not much oftener than one."""
        registrar = await make_registrar()
        before, began, first = await received(raw), time.monotonic(), await raw.revision()
        answers = await asyncio.gather(*(registrar.wait_revision(FUTURE) for _ in range(100)), return_exceptions=True)
        assert 1.9 < time.monotonic() - began < 2 + LOAD
        assert {type(answer) for answer in answers} == {ConnectionFailedError}
        known = re.findall(r"up to revision (\d+)", str(answers[0]))[-1]
        assert first <= int(known) <= await raw.revision()
        assert await received(raw) - before < 150  # for the whole hundred
        assert truthful(registrar).ok

    @pytest.mark.parametrize("fault", ["black hole", "refuse"])
    async def test_while_cut_off_is_an_error_in_time(
        self, make_registrar: Make, relay: FaultProxy, raw: Raw, fault: str
    ) -> None:
        """`ConnectionFailedError` after `request_timeout`; after the cut it returns again."""
        registrar = await make_registrar(endpoints=(relay.endpoint,))
        await registrar.wait_revision(await raw.put("elsewhere", "x"))
        if fault == "refuse":
            await relay.refuse()
        else:
            relay.black_hole()
        revision = await raw.put("elsewhere", "y")
        began = time.monotonic()
        with pytest.raises(ConnectionFailedError, match=str(revision)):
            await registrar.wait_revision(revision)
        assert 1.9 < time.monotonic() - began < 2 + LOAD
        await relay.heal()

        async def returns() -> bool:
            with contextlib.suppress(ConnectionFailedError):
                await registrar.wait_revision(revision)
                return True
            return False

        await eventually(returns)
        await raw.delete("elsewhere")

    async def test_before_and_after_its_life_says_so(self, registrar_options: Options) -> None:
        """`RegistrarError` before entering; `TerminatedError` once closed, also to who waits already."""
        registrar = Registrar(registrar_options)
        with pytest.raises(RegistrarError, match="not known yet"):
            await registrar.wait_revision(1)
        async with registrar:
            waiters = [asyncio.create_task(registrar.wait_revision(FUTURE)) for _ in range(10)]
            await eventually(lambda: len(registrar._view._waiting) == 10)
        answers = await asyncio.gather(*waiters, return_exceptions=True)
        assert {type(answer) for answer in answers} == {TerminatedError}
        with pytest.raises(TerminatedError):
            await registrar.wait_revision(1)

    async def test_that_is_cancelled_leaves_nothing(self, make_registrar: Make) -> None:
        """No task, and nobody in the queue of those who wait."""
        registrar = await make_registrar()
        tasks = asyncio.all_tasks()
        waiters = [asyncio.create_task(registrar.wait_revision(FUTURE)) for _ in range(10)]
        await eventually(lambda: len(registrar._view._waiting) == 10)
        for waiter in waiters:
            waiter.cancel()
        await asyncio.wait(waiters)
        assert all(waiter.cancelled() for waiter in waiters)
        assert not registrar._view._waiting
        await eventually(lambda: asyncio.all_tasks() <= tasks)  # etcd is being asked, once more


class TestHealth:
    async def test_tells_of_every_state_and_why(self, registrar_options: Options, relay: FaultProxy) -> None:
        """New, connecting, connected, suspended, lost, closed: each is told with what there is to know then."""
        options = short_options(relay.endpoint, cluster=registrar_options.cluster)
        registrar = Registrar(options, node="a@h")
        new = Health(
            ok=False,
            state=State.NEW,
            reason=None,
            staleness=math.inf,
            lease_left=None,
            loop_lag=0.0,
            revision=0,
            revision_lag=None,
            nodes=0,
            applications=0,
            instances=0,
            config_items=0,
            endpoint="",
        )
        assert truthful(registrar) == new
        relay.black_hole()
        entering = asyncio.create_task(registrar.__aenter__())
        await eventually(lambda: truthful(registrar).state is State.CONNECTING)
        assert registrar.health().staleness == math.inf
        await relay.heal()
        await entering
        connected = truthful(registrar)
        assert connected.ok
        assert connected.lease_left
        assert connected.lease_left <= TTL
        assert connected.staleness < TTL
        assert (connected.revision, connected.endpoint) == (registrar.revision, relay.endpoint)

        def is_in(state: State) -> bool:
            return truthful(registrar).state is state

        await relay.refuse()
        for state in (State.SUSPENDED, State.LOST):
            await eventually(functools.partial(is_in, state))
            reason = registrar.health().reason
            assert reason
            assert relay.endpoint in reason
        assert registrar.health().lease_left == 0
        assert registrar.health().staleness > TTL / 3
        await relay.heal()
        await eventually(lambda: truthful(registrar).ok, within=REGAINED)
        await registrar.close()
        closed = truthful(registrar)
        assert (closed.state, closed.lease_left, closed.endpoint) == (State.CLOSED, None, "")

    async def test_sends_nothing(self, make_registrar: Make, raw: Raw) -> None:
        """A probe may ask a thousand times: etcd hears nothing of it."""
        registrar = await make_registrar("a@h", lease_ttl=60)

        async def unheard() -> bool:
            before = await received(raw)
            for _ in range(1000):
                assert registrar.health().ok
                await asyncio.sleep(0)
            return await received(raw) == before

        await eventually(unheard)  # a registrar that has just begun asks a few things of its own

    async def test_never_raises_and_is_never_wrong(self, registrar_options: Options) -> None:
        """Asked at every step of entering and closing."""
        registrar = Registrar(registrar_options, node="a@h")
        states = [registrar.health().state]

        async def live() -> None:
            async with registrar:
                await asyncio.sleep(0)

        living = asyncio.create_task(live())
        while not living.done():
            await asyncio.sleep(0)
            states.append(truthful(registrar).state)
        await living
        told = [state for state, _ in itertools.groupby(states)]
        assert told == [State.NEW, State.CONNECTING, State.CONNECTED, State.CLOSING, State.CLOSED]


class TestABug:
    """It ends every subscription and every call with `TerminatedError` and the cause, in whichever task it is."""

    @pytest.mark.parametrize("task", ["keeping", "following", "proving", "suspecting", "measuring"])
    async def test_in_any_task_is_told_to_everyone(
        self, make_registrar: Make, raw: Raw, routes: str, monkeypatch: pytest.MonkeyPatch, task: str
    ) -> None:
        """`FAILED`, with the bug as the reason, within a beat; and the keys are gone."""
        registrar = await make_registrar("a@h", suspect_grace=30, request_timeout=60)
        session = registrar._runner._session
        assert session
        assert session.registration
        bug = ZeroDivisionError("a bug")

        def broken(*_: object, **__: object) -> Any:
            raise bug

        class BrokenLags(deque[float]):
            append = broken

        calls = [
            asyncio.create_task(registrar.subscribe(RegistrarDisconnected).get()),
            asyncio.create_task(registrar.wait_revision(FUTURE)),
        ]
        await eventually(lambda: registrar._view._waiting)
        match task:
            case "keeping":
                monkeypatch.setattr(session.registration._claim, "renew", broken)
            case "following":
                monkeypatch.setattr(registrar._view, "shown", broken)
            case "proving":
                monkeypatch.setattr(session.watcher, "_clock", broken)  # the first that it asks for
            case "suspecting":
                monkeypatch.setattr(registrar._view, "tick", broken)
                await raw.put(f"{routes}nodes/b@h", NO_ROUTES)  # to have something to think of
            case "measuring":
                monkeypatch.setattr(registrar._runner, "_lags", BrokenLags())
        for call in calls:
            with pytest.raises(TerminatedError) as ended:
                await asyncio.wait_for(call, HUNG)
            assert ended.value.__cause__ is bug
        health = truthful(registrar)
        assert health.state is State.FAILED
        assert health.reason == "a bug"
        with pytest.raises(TerminatedError, match="a bug"):
            await registrar.nodes()

        async def left() -> bool:
            return await raw.get(f"{routes}nodes/a@h") is None

        await eventually(left)
