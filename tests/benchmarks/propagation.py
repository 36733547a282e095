"""How long a put takes until its event is in a subscriber's hands, on one node.

Twice. First in one process, which decides: the raw watch stream, the registrar and aetcd follow a cluster each, and
take turns of some twenty puts, so that what slows the machine slows all. A put is sent when the event of the one before
has arrived, by the same event loop on a channel of its own: with a writer in another process the ratios are the same,
and spread twice as much, since there are more processes than cores. The clock stops when what the peer gave was looked
at. Once more so, under uvloop.

Then each peer in a process of its own, since etcetra and Go's registrar need one: a burst of puts each, from one more
(writer.py), with a pause between two, and the CPU time that the peer's process took for it.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from statistics import median
from typing import Any, Literal

import msgspec
from aetcd import rpc

from ergo_registrar import ApplicationMode, ApplicationRoute, ApplicationState
from ergo_registrar.core.edf import encode_application_route
from ergo_registrar.core.keys import application_key, routes_prefix
from ergo_registrar.etcd.server import LocalEtcd
from tests.benchmarks import raw
from tests.benchmarks.followers import FOLLOWERS, Next, application
from tests.benchmarks.programs import Program, ProgramError, module, run
from tests.benchmarks.report import Figure
from tests.benchmarks.setting import ETCETRA, GO_PEER, Setting
from tests.benchmarks.timing import blocks, p99
from tests.benchmarks.writer import Block, write

ROW = "a put until the event is in a subscriber's hands, one node"
APART = "put to event, apart"
TURN = 20  # puts
TIMEOUT = 15.0  # seconds for one turn, and for an event
PAUSE = 0.002  # seconds between two puts of a burst: an event has arrived by then
WARM_UP = 50  # puts before the first round, for each peer
TRIES = 20  # puts, a second apart, until a peer must have been told of one
WRITER = "writer@bench"
SERIAL = count()

Times = dict[str, list[float]]
"""Of each peer, what it took in seconds, put by put."""


def measure(setting: Setting) -> tuple[list[Figure], dict[str, str]]:
    """Measure all of it."""
    missing: dict[str, str] = {}
    puts = 300 if setting.quick else 600
    figures = [
        *_together_figures("put to event", _under(None, list(FOLLOWERS), setting.rounds, puts), goals=(1.15, 1.3))
    ]
    try:
        import uvloop  # there is none for Windows
    except ImportError as error:
        missing["put to event under uvloop"] = str(error)
    else:
        rounds = _under(uvloop.new_event_loop, ["raw", "registrar"], setting.rounds, puts)
        figures += _together_figures("put to event under uvloop", rounds, goals=(None, None))
    figures += asyncio.run(_apart(setting, 3 if setting.quick else 9, 100 if setting.quick else 300, missing))
    return figures, missing


def _under(
    loop: Callable[[], asyncio.AbstractEventLoop] | None, kinds: Sequence[str], rounds: int, puts: int
) -> list[Times]:
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(_together(kinds, rounds, puts))


async def _together(kinds: Sequence[str], rounds: int, puts: int) -> list[Times]:
    """Measure those peers in this process, in turns."""
    async with contextlib.AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(LocalEtcd())
        put = rpc.KVStub(await stack.enter_async_context(raw.channel(etcd.endpoint))).Put
        follow = {kind: await stack.enter_async_context(FOLLOWERS[kind](etcd.endpoint, kind)) for kind in kinds}
        for kind in kinds:
            await _turn(put, follow[kind], kind, WARM_UP)
        measured = []
        for _ in range(rounds):
            times: Times = defaultdict(list)
            for size in blocks(puts, TURN):
                for kind in kinds:
                    times[kind] += await _turn(put, follow[kind], kind, size)
            measured.append(times)
        return measured


async def _turn(put: Any, follow: Next, cluster: str, puts: int) -> list[float]:
    """Put one by one, each when the one before has arrived; return what each took."""
    names = [f"app{next(SERIAL)}" for _ in range(puts)]
    took, told = [], []
    async with asyncio.timeout(TIMEOUT):
        for key, value in _block(cluster, names).puts:
            request = rpc.PutRequest(key=key.encode(), value=value)
            begun = time.perf_counter()
            answer = put(request)
            what = await follow()
            took.append(time.perf_counter() - begun)
            told.append(application(what))
            await answer
    if told != names:
        raise RuntimeError(f"the follower of {cluster} was told of {told}, not of {names}")
    return took


def _block(cluster: str, names: list[str], pause: float = 0.0) -> Block:
    return Block(
        puts=[(application_key(cluster, name, WRITER).decode(), _value(name)) for name in names],
        pause=pause,
    )


def _value(name: str) -> bytes:
    route = ApplicationRoute(WRITER, name, 100, ApplicationMode.PERMANENT, ApplicationState.RUNNING)
    return encode_application_route(route)


class Apart(msgspec.Struct, kw_only=True):
    """A peer in a process of its own: how to run it, where it looks, and what was measured, round by round."""

    command: list[str]
    cluster: str
    clock: Literal["counter", "clock"] = "counter"
    """By which it tells times: Python's `perf_counter`, or the time of day."""
    times: list[list[float]] = []
    cpu: list[float] = []


def _peers(setting: Setting, endpoint: str, missing: dict[str, str]) -> dict[str, Apart]:
    """Return the peers there are here."""
    peers = {
        kind: Apart(command=module("peer", kind, endpoint, f"apart-{kind}"), cluster=f"apart-{kind}")
        for kind in FOLLOWERS
    }
    if setting.etcetra:
        prefix = routes_prefix("apart-etcetra").decode()
        command = [setting.etcetra, "-m", "tests.benchmarks.etcetra_peer", "follow", endpoint, prefix]
        peers["etcetra"] = Apart(command=command, cluster="apart-etcetra")
    else:
        missing[f"{APART}, etcetra"] = f"{ETCETRA} names no Python that has it"
    if setting.go_peer:
        options = {"endpoint": endpoint, "cluster": "apart-go", "nodes": "1", "prefix": "gonode", "app": "a"}
        command = [setting.go_peer, *(part for name, value in options.items() for part in (f"--{name}", value))]
        peers["Go's registrar"] = Apart(command=command, cluster="apart-go", clock="clock")
    else:
        missing[f"{APART}, Go's registrar"] = f"{GO_PEER} names no program"
    return peers


async def _apart(setting: Setting, rounds: int, puts: int, missing: dict[str, str]) -> list[Figure]:
    """Measure each peer in a process of its own, by turns of a burst."""
    async with contextlib.AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(LocalEtcd())
        writer = await stack.enter_async_context(run("writer", module("writer", etcd.endpoint)))
        peers = _peers(setting, etcd.endpoint, missing)
        programs: dict[str, Program] = {}
        for number in range(-1, rounds):
            for kind, peer in list(peers.items()):
                try:
                    if number < 0:
                        programs[kind] = await stack.enter_async_context(run(kind, peer.command))
                        await programs[kind].hear()
                        await _until_told(writer, programs[kind], peer)
                    else:
                        await _burst(writer, programs[kind], peer, puts)
                except ProgramError as error:
                    missing[f"{APART}, {kind}"] = str(error)
                    del peers[kind]
    return [figure for kind, peer in peers.items() for figure in _apart_figures(kind, peer, peers.get("raw"))]


async def _until_told(writer: Program, program: Program, peer: Apart) -> None:
    """Put until the peer is told: etcetra does not say when its watch has begun."""
    for _ in range(TRIES):
        name = f"app{next(SERIAL)}"
        await write(writer, _block(peer.cluster, [name]), TIMEOUT)
        if not (await program.ask(f"wait {name} 1 1"))["missing"]:
            return
    raise ProgramError(f"{program.name} was not told of {TRIES} puts")


async def _burst(writer: Program, program: Program, peer: Apart, puts: int) -> None:
    names = [f"app{next(SERIAL)}" for _ in range(puts)]
    await program.ask("mark")
    before = (await program.ask("cpu"))["cpu_seconds"]
    begun = await write(writer, _block(peer.cluster, names, PAUSE), TIMEOUT)
    after = (await program.ask("cpu"))["cpu_seconds"]
    times = []
    for name, begin in zip(names, getattr(begun, peer.clock), strict=True):
        told = await program.ask(f"wait {name} 1 {TIMEOUT:g}", 2 * TIMEOUT)
        if told["missing"]:
            raise ProgramError(f"{program.name} was not told of {name} within {TIMEOUT:g} s")
        times.append((told["times"][0] - begin) / 1e9)
    peer.times.append(times)
    peer.cpu.append((after - before) / puts)


def _apart_figures(kind: str, peer: Apart, least: Apart | None) -> Iterator[Figure]:
    medians = [median(times) for times in peer.times]
    yield _figure(f"{APART}, {kind}, median", medians, note="a put every 2 ms or so")
    yield _figure(f"client CPU per event, {kind}", peer.cpu)
    if least is not None and kind != "raw":
        raw_medians = [median(times) for times in least.times]
        yield _relative(f"{APART}, {kind}, median, x raw", _each(medians, raw_medians))
        yield _relative(f"client CPU per event, {kind}, x raw", _each(peer.cpu, least.cpu))


def _together_figures(what: str, rounds: list[Times], *, goals: tuple[float | None, float | None]) -> Iterator[Figure]:
    """Tell the medians and 99th percentiles, first the registrar's by the raw stream's, then each by itself."""
    kinds = list(rounds[0])
    summaries: list[tuple[str, Callable[[Sequence[float]], float]]] = [("median", median), ("p99", p99)]
    for (name, of), goal in zip(summaries, goals, strict=True):
        each = {kind: [of(times[kind]) for times in rounds] for kind in kinds}
        yield _relative(f"{what}, {name}, x raw", _each(each["registrar"], each["raw"]), goal)
        for kind in kinds:
            yield _figure(f"{what}, {name}, {kind}", each[kind])


def _each(ours: list[float], others: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, others, strict=True)]


def _relative(name: str, ratios: list[float], goal: float | None = None) -> Figure:
    return Figure(row=ROW, name=name, unit="x", rounds=ratios, goal=goal, relative=True)


def _figure(name: str, seconds: list[float], note: str = "") -> Figure:
    return Figure(row=ROW, name=name, unit="us", rounds=[1e6 * s for s in seconds], note=note)
