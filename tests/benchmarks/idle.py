"""What one member takes that is at rest: of a core, of etcd, and of its connections.

Two members rest at the same time, each in a process and with an etcd of its own (resting.py): a registrar with the
options that everyone has, so a TTL of ten seconds, and beside it the least there is, a lease kept alive and the five
watches, by bare gRPC. Counted from when the start is over:

- the CPU time of the process, all threads, user and system;
- the messages that etcd received, by its metric `grpc_server_msg_received_total`, over all methods. So each message on
  a stream counts as a request: each renewal of the lease, and each question how far the watch is. Per third of the TTL,
  in which the lease must be renewed once. The rest is a little shorter than so many thirds, lest what happens once in
  each is counted once more. Newer etcds also count the end of each stream as a message; that is taken off again;
- the watches, by etcd's `etcd_debugging_mvcc_watcher_total`, less those there were before;
- the connections of the process to etcd's port, by the files it has open and /proc/net/tcp.
"""

import asyncio
import contextlib
import re
from urllib.request import urlopen

import msgspec
from aetcd import rpc

from ergo_registrar.etcd.server import LocalEtcd
from tests.benchmarks import raw
from tests.benchmarks.programs import ProgramError, module, run
from tests.benchmarks.report import Figure
from tests.benchmarks.resting import RESTING, TTL, Rested
from tests.benchmarks.setting import Setting

ROW = "one idle registrar"
RECEIVED = "grpc_server_msg_received_total"
ENDED = 'grpc_server_handled_total{[^}]*grpc_type="bidi_stream"[^}]*}'
WATCHERS = "etcd_debugging_mvcc_watcher_total"
MARGIN = 0.2  # seconds
ANSWER = 5.0  # seconds for etcd's page of metrics

GOALS = {"CPU": 0.1, "requests per TTL/3": 1.0, "watches": 5.0, "connections": 1.0}
UNITS = {"CPU": "%", "requests per TTL/3": "", "watches": "", "connections": ""}


def measure(setting: Setting) -> tuple[list[Figure], dict[str, str]]:
    """Let both rest for half a minute, five times; in short, for a quarter of one, once."""
    return asyncio.run(_measure(*((1, 5) if setting.quick else (5, 9))))


async def _measure(rounds: int, thirds: int) -> tuple[list[Figure], dict[str, str]]:
    taken: dict[str, list[dict[str, float | None]]] = {kind: [] for kind in RESTING}
    missing: dict[str, str] = {}
    for _ in range(rounds):
        for kind, what in zip(taken, await asyncio.gather(*(_rest(kind, thirds) for kind in taken)), strict=True):
            if isinstance(what, str):
                missing[_called(kind)] = what
            else:
                taken[kind].append(what)
    figures: list[Figure] = []
    for kind, found in taken.items():
        for name in GOALS:
            values = [value for each in found if (value := each[name]) is not None]
            goal = GOALS[name] if kind == "registrar" else None
            if values:
                what = f"{_called(kind)}, {name}"
                figures.append(Figure(row=ROW, name=what, unit=UNITS[name], rounds=values, goal=goal))
            elif found:
                missing[f"{_called(kind)}, {name}"] = "this system does not tell"
    return figures, missing


def _called(kind: str) -> str:
    return "idle registrar" if kind == "registrar" else f"idle, {kind}"


async def _rest(kind: str, thirds: int) -> dict[str, float | None] | str:
    """Return what a rest took, by name, or why it could not be measured."""
    seconds = thirds * TTL / 3 - MARGIN
    try:
        async with LocalEtcd() as etcd:
            counted = await _counted_per_end(etcd.endpoint)
            watchers = _sum(await _metrics(etcd.endpoint), WATCHERS)
            async with run(kind, module("resting", kind, etcd.endpoint, str(seconds))) as program:
                await program.hear()
                before = await _metrics(etcd.endpoint)
                rested = msgspec.convert(await program.ask("", seconds + 10), Rested)
                after = await _metrics(etcd.endpoint)
    except (ProgramError, OSError) as error:
        return str(error)
    messages = _sum(after, RECEIVED) - _sum(before, RECEIVED)
    messages -= counted * (_sum(after, ENDED) - _sum(before, ENDED))
    return {
        "CPU": 100 * rested.cpu / rested.seconds,
        "requests per TTL/3": messages / thirds,
        "watches": _sum(after, WATCHERS) - watchers,
        "connections": rested.connections,
    }


async def _counted_per_end(endpoint: str) -> float:
    """Return how many messages this etcd counts for the end of a stream: one since 3.6 or so, none before."""
    before = await _metrics(endpoint)
    async with asyncio.timeout(ANSWER), raw.channel(endpoint) as channel:
        call = rpc.LeaseStub(channel).LeaseKeepAlive()
        await call.write(rpc.LeaseKeepAliveRequest(ID=1))
        await call.read()
        call.cancel()
        while _sum(after := await _metrics(endpoint), ENDED) == _sum(before, ENDED):
            await asyncio.sleep(0.05)
        return _sum(after, RECEIVED) - _sum(before, RECEIVED) - 1


async def _metrics(endpoint: str) -> str:
    def get() -> str:
        with contextlib.closing(urlopen(f"http://{endpoint}/metrics", timeout=ANSWER)) as answer:
            page: bytes = answer.read()
            return page.decode()

    return await asyncio.to_thread(get)


def _sum(page: str, name: str) -> float:
    """Return the value of the metrics of a name, a regular expression; the sum, where it has labels."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))
