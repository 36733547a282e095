"""Run by calls.py: pytest-benchmark's measuring of what is answered from memory."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ergo_registrar import (
    ApplicationMode,
    ApplicationRoute,
    ApplicationState,
    ConfigLevel,
    NodeLeft,
    Options,
    Registrar,
    Subscription,
)
from ergo_registrar.core.edf import encode_application_route
from ergo_registrar.core.keys import application_key, config_key, routes_prefix
from ergo_registrar.core.records import Record
from ergo_registrar.etcd.server import LocalEtcd
from tests.benchmarks.setting import QUICK

ROUNDS = 7 if os.environ.get(QUICK) else 21
YARDSTICKS = 20_000
CLUSTER = "bench"
FAN_OUT = 1000


class Entered:
    """A registrar in a cluster, and the loop it lives in, which runs while something is awaited."""

    def __init__(self, runner: asyncio.Runner, registrar: Registrar) -> None:
        self.runner = runner
        self.registrar = registrar
        self.view: Any = vars(registrar)["_view"]

    def publish(self, name: str, instances: int) -> None:
        """Let an application be on so many nodes, with weights of 1 to 5, as the watch would tell it."""
        routes = [
            ApplicationRoute(f"node{number}@host", name, 1 + number % 5, ApplicationMode.PERMANENT, RUNNING)
            for number in range(instances)
        ]
        records = [
            Record(application_key(CLUSTER, name, route.node), encode_application_route(route), 9, 9)
            for route in routes
        ]
        self.view.changed(routes_prefix(CLUSTER), [(self.view.revision + 1, records)])

    def configure(self, items: int, value: int, *, first_only: bool = False) -> None:
        """Give so many items a value at the global level, or only the first of them."""
        names = ["item.0"] if first_only else [f"item.{number}" for number in range(items)]
        revision = self.view.revision + 1
        records = [
            Record(config_key(ConfigLevel.GLOBAL, CLUSTER, None, name), f"int:{value}".encode(), revision, revision)
            for name in names
        ]
        self.view.changed(records[0].key[: -len(names[0])], [(revision, records)])


RUNNING = ApplicationState.RUNNING


@pytest.fixture
def entered() -> Iterator[Entered]:
    """Return a member that knows a cluster: nobody else is in it, but what is told as if there were."""
    with asyncio.Runner() as runner:
        etcd = LocalEtcd()
        runner.run(etcd.__aenter__())
        try:
            registrar = Registrar(Options(endpoints=etcd.endpoints, cluster=CLUSTER), node="me@host")
            runner.run(registrar.__aenter__())
            yield Entered(runner, registrar)
            runner.run(registrar.close())
        finally:
            runner.run(etcd.__aexit__(None, None, None))


class Bench:
    """Measures rounds of many calls, with the yardstick in front of each."""

    def __init__(self, benchmark: BenchmarkFixture, runner: asyncio.Runner) -> None:
        self._benchmark = benchmark
        self._runner = runner
        self._yardsticks: list[float] = []

    def awaited(self, call: Callable[..., Coroutine[Any, Any, object]], *arguments: object, calls: int) -> None:
        """Measure a call that is awaited."""

        async def rounds() -> None:
            for _ in range(calls):
                await call(*arguments)

        self._measure(lambda: self._runner.run(rounds()), calls)

    def called(self, call: Callable[[], object], calls: int = 1) -> None:
        """Measure a plain call."""

        def rounds() -> None:
            for _ in range(calls):
                call()

        self._measure(rounds, calls)

    def tell(self, row: str, name: str, unit: str = "us", goal: float | None = None) -> None:
        """Say what was measured."""
        told = {"row": row, "name": name, "unit": unit, "goal": goal}
        self._benchmark.extra_info.update(told, yardsticks=self._yardsticks)

    def _measure(self, rounds: Callable[[], None], calls: int) -> None:
        rounds()
        self._benchmark.extra_info["calls"] = calls
        measure: Any = self._benchmark.pedantic  # has no types
        measure(rounds, setup=self._yardstick, rounds=ROUNDS)

    def _yardstick(self) -> None:
        known = {"item": 1}

        async def look(item: str) -> int:
            return known[item]

        async def many() -> None:
            for _ in range(YARDSTICKS):
                await look("item")

        began = time.perf_counter()
        self._runner.run(many())
        self._yardsticks.append((time.perf_counter() - began) / YARDSTICKS)


@pytest.fixture
def bench(benchmark: BenchmarkFixture, entered: Entered) -> Bench:
    """Return what measures."""
    return Bench(benchmark, entered.runner)


def test_an_item_of_the_configuration(bench: Bench, entered: Entered) -> None:
    entered.configure(1000, 5)
    bench.awaited(entered.registrar.config_item, "item.500", calls=50_000)
    bench.tell("config_item", "config_item, awaited", goal=0.3)


@pytest.mark.parametrize("items", [10, 10_000])
def test_a_change_of_one_item(bench: Bench, entered: Entered, items: int) -> None:
    entered.configure(items, 0)
    values = iter(range(1, 10**9))
    bench.called(lambda: entered.configure(items, next(values), first_only=True), 200)
    bench.tell("config_item", f"change one of {items:,} items")


@pytest.mark.parametrize(("instances", "goal"), [(10, 2.0), (1000, 5.0)])
def test_the_pick_alone(bench: Bench, entered: Entered, instances: int, goal: float) -> None:
    entered.publish("web", instances)
    bench.awaited(entered.registrar.pick, "web", calls=10_000)
    bench.tell("resolve_application", f"pick among {instances:,}", goal=goal)


@pytest.mark.parametrize(("instances", "calls", "goal"), [(10, 5000, 10.0), (1000, 50, 1000.0)])
def test_the_whole_ordered_list(bench: Bench, entered: Entered, instances: int, calls: int, goal: float) -> None:
    entered.publish("web", instances)
    bench.awaited(entered.registrar.resolve_application, "web", calls=calls)
    bench.tell("resolve_application", f"resolve_application of {instances:,}", goal=goal)


def test_a_pick_after_each_change(bench: Bench, entered: Entered) -> None:
    """The dearest there is: nothing that was made for the pick before can be used again."""
    entered.publish("web", 1000)
    weights = iter(range(1, 10**9))
    pick = entered.registrar.pick

    async def change_and_pick() -> None:
        route = ApplicationRoute("node0@host", "web", next(weights) % 5, ApplicationMode.PERMANENT, RUNNING)
        record = Record(application_key(CLUSTER, "web", route.node), encode_application_route(route), 9, 9)
        entered.view.changed(routes_prefix(CLUSTER), [(entered.view.revision + 1, [record])])
        await pick("web")

    bench.awaited(change_and_pick, calls=50)
    bench.tell("resolve_application", "pick among 1,000, each time after one changed")


def test_an_event_to_many_subscriptions(bench: Bench, entered: Entered) -> None:
    subscriptions = [entered.registrar.subscribe(maxsize=10 * ROUNDS) for _ in range(FAN_OUT)]
    hub, event = vars(entered.registrar)["_hub"], [NodeLeft(name="gone")]
    bench.called(lambda: hub.publish(event))
    bench.tell("one event to 1,000 subscriptions", "one event into 1,000 queues", "ms", goal=2.0)
    assert {each.qsize() for each in subscriptions} == {ROUNDS + 1}


def test_an_event_to_many_that_wait_for_it(bench: Bench, entered: Entered) -> None:
    """asyncio wakes each of them, which costs more than all else: here it is until each task has it."""
    hub, event = vars(entered.registrar)["_hub"], [NodeLeft(name="gone")]
    tasks = entered.runner.run(_waiting([_take(entered.registrar.subscribe()) for _ in range(FAN_OUT)]))
    bench.awaited(lambda: _until_taken(tasks, lambda: hub.publish(event)), calls=1)
    bench.tell("one event to 1,000 subscriptions", "one event into the hands of 1,000 waiting tasks", "ms")
    entered.runner.run(_end(tasks))


def test_the_same_by_bare_queues(bench: Bench, entered: Entered) -> None:
    queues = [asyncio.Queue[object](10) for _ in range(FAN_OUT)]
    tasks = entered.runner.run(_waiting([_take(queue) for queue in queues]))

    def publish() -> None:
        for queue in queues:
            queue.put_nowait(1)

    bench.awaited(lambda: _until_taken(tasks, publish), calls=1)
    bench.tell("one event to 1,000 subscriptions", "the same by bare asyncio.Queues", "ms")
    entered.runner.run(_end(tasks))


async def _take(source: Subscription | asyncio.Queue[object]) -> None:
    while True:
        await source.get()
        _taken.append(None)


_taken: list[None] = []


async def _until_taken(tasks: list[asyncio.Task[None]], publish: Callable[[], None]) -> None:
    _taken.clear()
    publish()
    while len(_taken) < len(tasks):
        await asyncio.sleep(0)


async def _waiting(work: list[Coroutine[Any, Any, None]]) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(each) for each in work]
    await asyncio.sleep(0)
    return tasks


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
