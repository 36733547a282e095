"""How long a put takes until its event is in a subscriber's hands, on one node.

Twice. First in one process, which decides: the raw watch stream, the registrar and aetcd follow a cluster each, and
take turns of some twenty puts, so that what slows the machine slows all. A put is sent when the event of the one before
has arrived, by the same event loop on a channel of its own: with a writer in another process the ratios are the same,
and spread twice as much, since there are more processes than cores. The clock stops when what the peer gave was looked
at. Once more so, under uvloop. Then each peer in a process of its own (apart.py).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import aetcd
import grpc
from aetcd import rpc

from ergo_registrar import RegistrarError
from ergo_registrar.etcd.server import LocalEtcd
from tests.benchmarks import apart, raw
from tests.benchmarks.followers import FOLLOWERS, Next, application
from tests.benchmarks.putting import fresh
from tests.benchmarks.report import Figure
from tests.benchmarks.setting import Setting
from tests.benchmarks.timing import blocks, each, p99

ROW = "a put until the event is in a subscriber's hands, one node"
TURN = 20  # puts
TIMEOUT = 15.0  # seconds for one turn, and to begin to follow
MOST = 300.0  # seconds for all turns
WARM_UP = 50  # puts before the first round, for each peer
FAILURES = (aetcd.ClientError, grpc.aio.AioRpcError, RegistrarError, RuntimeError, OSError)  # TimeoutError is the last

Times = dict[str, list[list[float]]]
"""Of each peer, round by round, what each put took in seconds."""


def measure(setting: Setting) -> tuple[list[Figure], dict[str, str]]:
    """Measure all of it."""
    puts = 300 if setting.quick else 600
    missing: dict[str, str] = {}
    times = _under(None, list(FOLLOWERS), setting.rounds, puts, missing)
    figures = list(_figures("put to event", times, goals=(1.15, 1.3)))
    under = "put to event under uvloop"
    try:
        import uvloop  # there is none for Windows
    except ImportError as error:
        missing[under] = str(error)
    else:
        times = _under(uvloop.new_event_loop, ["raw", "registrar"], setting.rounds, puts, missing)
        figures += _figures(under, times, goals=(None, None))
    figures += asyncio.run(apart.measure(setting, ROW, missing))
    return figures, missing


def _under(
    loop: Callable[[], asyncio.AbstractEventLoop] | None,
    kinds: Sequence[str],
    rounds: int,
    puts: int,
    missing: dict[str, str],
) -> Times:
    """Measure those peers in this process, by an event loop of that kind; None is Python's own."""

    async def bounded() -> Times:
        async with asyncio.timeout(MOST):
            return await _together(kinds, rounds, puts, missing)

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(bounded())


async def _together(kinds: Sequence[str], rounds: int, puts: int, missing: dict[str, str]) -> Times:
    times: Times = {kind: [[] for _ in range(rounds)] for kind in kinds}
    async with contextlib.AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(LocalEtcd())
        put = rpc.KVStub(await stack.enter_async_context(raw.channel(etcd.endpoint))).Put
        follow: dict[str, Next] = {}

        async def take_turn(kind: str, puts: int) -> list[float]:
            """Return what each put took. A peer that fails takes no more turns."""
            try:
                async with asyncio.timeout(TIMEOUT):
                    if kind not in follow:
                        follow[kind] = await stack.enter_async_context(FOLLOWERS[kind](etcd.endpoint, kind))
                    return await _turn(put, follow[kind], kind, puts)
            except FAILURES as error:
                missing[f"put to event, {kind}"] = f"{type(error).__name__}: {error}"
                del times[kind]
                return []

        for kind in kinds:
            await take_turn(kind, WARM_UP)
        for number in range(rounds):
            for size in blocks(puts, TURN):
                for kind in list(times):
                    took = await take_turn(kind, size)
                    if kind in times:
                        times[kind][number] += took
    return times


async def _turn(put: Any, follow: Next, cluster: str, puts: int) -> list[float]:
    """Put one by one, each when the one before has arrived; return what each took."""
    names, took, told = [], [], []
    for name, key, value in fresh(cluster, puts):
        request = rpc.PutRequest(key=key.encode(), value=value)
        begun = time.perf_counter()
        answer = put(request)
        what = await follow()
        took.append(time.perf_counter() - begun)
        names.append(name)
        told.append(application(what))
        await answer
    for name, what in zip(names, told, strict=True):
        if name != what:
            raise RuntimeError(f"the follower of {cluster} was told of {what}, not of {name}")
    return took


def _figures(what: str, times: Times, *, goals: tuple[float | None, float | None]) -> Iterator[Figure]:
    """Tell the medians and 99th percentiles, first the registrar's by the raw stream's, then each by itself."""
    summaries: list[tuple[str, Callable[[Sequence[float]], float]]] = [("median", median), ("p99", p99)]
    for (summary, of), goal in zip(summaries, goals, strict=True):
        found = {kind: [of(took) for took in rounds] for kind, rounds in times.items()}
        if {"raw", "registrar"} <= found.keys():
            ratios = each(found["registrar"], found["raw"])
            name = f"{what}, {summary}, x raw"
            is_steady = summary == "median"  # a p99 of so few is not, and no reason to call anything worse
            yield Figure(row=ROW, name=name, unit="x", rounds=ratios, goal=goal, relative=is_steady)
        for kind, seconds in found.items():
            microseconds = [1e6 * s for s in seconds]
            yield Figure(row=ROW, name=f"{what}, {summary}, {kind}", unit="us", rounds=microseconds)
