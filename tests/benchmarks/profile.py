"""`python -m tests.benchmarks.profile`: where the time goes of what did not meet its goal.

Written to docs/explanation/performance-profile.txt, which the page shows. Four parts: a member at rest, its CPU by
thread, as the kernel counts it; single puts until their event is in a subscriber's hands, by stages; a pick among ten,
by its parts; and the large clusters, what the CPU time of all their processes goes to at each step (`sampling`).
"""

import asyncio
import statistics
import time
import timeit
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aetcd import rpc

from ergo_registrar import ApplicationMode, ApplicationRoute, ApplicationState, Options, Registrar
from ergo_registrar.core.balance import Choice, Choices, WeightedRoundRobin
from ergo_registrar.core.edf import encode_application_route
from ergo_registrar.core.filter import EVERY
from ergo_registrar.core.keys import application_key
from ergo_registrar.core.mirror import Mirror
from ergo_registrar.core.records import Record
from ergo_registrar.etcd import stream, watch
from ergo_registrar.etcd.server import LocalEtcd
from tests.benchmarks import raw
from tests.benchmarks.cluster_runs import KILL_BOUND
from tests.benchmarks.report import KEPT
from tests.benchmarks.stage import Cluster, Kind, Rest
from tests.benchmarks.workers import StageError, raise_file_limit

FILE = KEPT.with_name("performance-profile.txt")
REST = 40.0  # seconds
PUTS = 2000
PICKS = 20_000
START = 100.0  # seconds; what is not up then is told of as far as it came
FLOW = 10.0  # seconds
KILLED = 1000  # nodes, of which half are killed
_CALLED = {Kind.RAW: "bare gRPC", Kind.REGISTRARS: "registrars"}


async def main() -> None:
    """Measure both and write them down."""
    async with LocalEtcd() as etcd:
        at_rest = await _at_rest(etcd.endpoint)
        by_stage = await _by_stage(etcd.endpoint)
    large = [await _large(Kind.RAW, 1000), await _large(Kind.REGISTRARS, 1000), await _large(Kind.REGISTRARS, 3000)]
    FILE.write_text("\n".join((at_rest, by_stage, of_a_pick(), *large)))
    print(FILE.read_text(), end="")


async def _at_rest(endpoint: str) -> str:
    async with Registrar(Options(endpoints=(endpoint,), cluster="rest"), node="me@host"):
        await asyncio.sleep(5)
        before = _cpu_by_thread()
        await asyncio.sleep(REST)
        after = _cpu_by_thread()
    used = {name: (after[name] - before.get(name, 0.0)) / REST * 100 for name in after}
    lines = [f"{used[name]:7.4f} %  {name}\n" for name in sorted(used, key=lambda name: -used[name]) if used[name] > 0]
    return f"A member at rest for {REST:g} s: CPU by thread, in % of a core\n" + "".join(lines)


def _cpu_by_thread() -> dict[str, float]:
    """Return the seconds of CPU that the threads of this process used, by their names."""
    used: dict[str, float] = defaultdict(float)
    for task in Path("/proc/self/task").iterdir():
        name = (task / "comm").read_text().strip()
        used[name] += int((task / "schedstat").read_text().split()[0]) / 1e9  # nanoseconds on a core
    return used


async def _by_stage(endpoint: str) -> str:
    at: dict[str, float] = {}
    _stamp_before(watch.Watcher, "_apply", "applied from", at)
    read = stream.Stream._answer

    async def answered(self: stream.Stream, prefix: bytes | None) -> Any:
        answer = await read(self, prefix)
        at["read"] = time.perf_counter()
        return answer

    stream.Stream._answer = answered  # type: ignore[method-assign]  # only to look at the clock
    stages: dict[str, list[float]] = defaultdict(list)
    async with (
        Registrar(Options(endpoints=(endpoint,), cluster="stages"), node="me@host") as registrar,
        registrar.subscribe() as events,
        raw.channel(endpoint) as channel,
    ):
        put = rpc.KVStub(channel).Put
        for number in range(PUTS):
            route = ApplicationRoute(f"n{number}@h", "app", 1, ApplicationMode.PERMANENT, ApplicationState.RUNNING)
            key, value = application_key("stages", "app", route.node), encode_application_route(route)
            began = time.perf_counter()
            sent = asyncio.ensure_future(put(rpc.PutRequest(key=key, value=value)))
            await events.get()
            ended = time.perf_counter()
            await sent
            stages["the put, etcd and gRPC, until the answer is read"].append(at["read"] - began)
            stages["from there until it is applied: fragments, revisions, records"].append(
                at["applied from"] - at["read"]
            )
            stages["applied, told, and the subscriber's task woken"].append(ended - at["applied from"])
            stages["all"].append(ended - began)
    lines = [f"{statistics.median(taken) * 1e6:7.0f} us  {stage}\n" for stage, taken in stages.items()]
    return f"{PUTS} single puts until the event is in a subscriber's hands: medians\n" + "".join(lines)


def of_a_pick() -> str:
    """Return what a pick among ten instances of five weights takes without the call that is awaited, by its parts."""
    mirror, choices, choice, balance = Mirror("pick"), Choices(), Choice(), WeightedRoundRobin()
    mode, state = ApplicationMode.PERMANENT, ApplicationState.RUNNING
    routes = [ApplicationRoute(f"node{number}@host", "app", 1 + number % 5, mode, state) for number in range(10)]
    records = [Record(application_key("pick", "app", r.node), encode_application_route(r), 9, 9) for r in routes]
    mirror.batch(records, 9, 0.0)
    instances, weights = mirror.instances("app"), {route.node: route.weight for route in routes}
    choice.renew(instances, EVERY, None)
    parts: dict[str, Callable[[], object]] = {
        "its instances, as the mirror has them": lambda: mirror.instances("app"),
        "the round robin of its filter": lambda: choices.of("app", False, EVERY),
        "the round robin itself, and the route": choice.pick,
        "of that, weighing the five weights": lambda: balance.pick(weights),
    }
    lines = []
    for part, call in parts.items():
        rounds = timeit.repeat(call, number=PICKS, repeat=9)
        lines.append(f"{statistics.median(rounds) / PICKS * 1e6:7.2f} us  {part}\n")
    return "A pick among ten, by its parts: medians\n" + "".join(lines)


async def _large(kind: Kind, nodes: int) -> str:
    """Take a large cluster through its steps, and return what each went to."""
    raise_file_limit(nodes + 500)
    report = f"{nodes:,} nodes, {_CALLED[kind]}: what the CPU time of all their processes goes to\n"
    async with Cluster(kind, nodes, sample=True) as cluster:
        steps: dict[str, Callable[[], Awaitable[object]]] = {
            "the start of all": lambda: cluster.up(START),
            f"at rest for {REST:g} s": lambda: cluster.rest(REST),
            f"at rest, and told of changes for {FLOW:g} s": lambda: cluster.flow(FLOW, Rest(None, 0.0, None)),
        }
        if nodes <= KILLED:
            steps["half of them killed, until the others know"] = lambda: cluster.kill_half(KILL_BOUND)
        for what, step in steps.items():
            await cluster.spent()
            began = time.monotonic()
            failed = ""
            try:
                await step()
            except StageError as error:
                failed = f"    not done: {error}\n"
            report += _told(what, time.monotonic() - began, *await cluster.spent()) + failed
            if failed:
                break
    return report


def _told(what: str, took: float, spent: dict[str, float], events: int) -> str:
    total = sum(spent.values())
    each = f"; {events:,} events, {total / events * 1e6:.0f} us each" if events else ""
    shares = ((seconds / total, place) for place, seconds in spent.items() if seconds >= total / 100)
    return f"\n  {what}: {took:.1f} s, {total:.1f} s of CPU{each}\n" + "".join(
        f"    {share:4.0%}  {place}\n" for share, place in sorted(shares, reverse=True)
    )


def _stamp_before(owner: type, name: str, stage: str, at: dict[str, float]) -> None:
    """Note when a method is called."""
    method: Callable[..., object] = getattr(owner, name)

    def stamped(*arguments: object) -> object:
        at[stage] = time.perf_counter()
        return method(*arguments)

    setattr(owner, name, stamped)


if __name__ == "__main__":
    asyncio.run(main())
