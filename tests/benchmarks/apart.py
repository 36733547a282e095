"""The put and event of propagation.py with each peer in a process of its own, as etcetra and Go need one.

A burst of puts each by turns, from one more process (putting.py), with a pause between two; and the CPU time that the
peer's process took for it. What a peer is asked is in conversation.py.
"""

import contextlib
from collections.abc import Iterator
from statistics import median
from typing import Literal

import msgspec

from ergo_registrar.core.keys import routes_prefix
from ergo_registrar.etcd.server import LocalEtcd
from tests.benchmarks.followers import FOLLOWERS
from tests.benchmarks.programs import Program, ProgramError, module, run
from tests.benchmarks.putting import Block, fresh, write
from tests.benchmarks.report import Figure
from tests.benchmarks.setting import ETCETRA, GO_PEER, Setting
from tests.benchmarks.timing import each

TIMEOUT = 15.0  # seconds for one burst, and for an event
PAUSE = 0.002  # seconds between two puts of a burst: an event has arrived by then
TRIES = 20  # puts, a second apart, until a peer must have been told of one
WHAT = "put to event, apart"
GO = "Go's registrar"
GO_ROW = "the same work on the Go registrar"


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
        missing[f"{WHAT}, etcetra"] = f"{ETCETRA} names no Python that has it"
    if setting.go_peer:
        options = {"endpoint": endpoint, "cluster": "apart-go", "nodes": "1", "prefix": "gonode", "app": "a"}
        command = [setting.go_peer, *(part for name, value in options.items() for part in (f"--{name}", value))]
        peers[GO] = Apart(command=command, cluster="apart-go", clock="clock")
    else:
        missing[f"{WHAT}, {GO}"] = f"{GO_PEER} names no program"
    return peers


async def measure(setting: Setting, row: str, missing: dict[str, str]) -> list[Figure]:
    """Measure each peer by turns, and return figures for that row of the table; tell what is missing."""
    rounds, puts = (3, 100) if setting.quick else (setting.rounds, 300)
    async with contextlib.AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(LocalEtcd())
        writer = await stack.enter_async_context(run("writer", module("putting", etcd.endpoint)))
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
                except (ProgramError, KeyError) as error:  # a KeyError: it answered something else
                    missing[f"{WHAT}, {kind}"] = str(error)
                    del peers[kind]
    return [figure for kind in peers for figure in _figures(row, kind, peers)]


async def _until_told(writer: Program, program: Program, peer: Apart) -> None:
    """Put until the peer is told: etcetra does not say when its watch has begun."""
    for name, key, value in fresh(peer.cluster, TRIES):
        await write(writer, Block(puts=[(key, value)]), TIMEOUT)
        if not (await program.ask(f"wait {name} 1 1"))["missing"]:
            return
    raise ProgramError(f"{program.name} was not told of {TRIES} puts")


async def _burst(writer: Program, program: Program, peer: Apart, puts: int) -> None:
    routes = fresh(peer.cluster, puts)
    await program.ask("mark")
    before = (await program.ask("cpu"))["cpu_seconds"]
    begun = await write(writer, Block(puts=[(key, value) for _, key, value in routes], pause=PAUSE), TIMEOUT)
    after = (await program.ask("cpu"))["cpu_seconds"]
    times = []
    for (name, _, _), begin in zip(routes, getattr(begun, peer.clock), strict=True):
        told = await program.ask(f"wait {name} 1 {TIMEOUT:g}", 2 * TIMEOUT)
        if told["missing"]:
            raise ProgramError(f"{program.name} was not told of {name} within {TIMEOUT:g} s")
        times.append((told["times"][0] - begin) / 1e9)
    peer.times.append(times)
    peer.cpu.append((after - before) / puts)


def _figures(row: str, kind: str, peers: dict[str, Apart]) -> Iterator[Figure]:
    names = (f"{WHAT}, {kind}, median", f"client CPU per event, {kind}")
    found = dict(zip(names, _found(peers[kind]), strict=True))
    for name, seconds in found.items():
        yield Figure(row=row, name=name, unit="us", rounds=[1e6 * s for s in seconds])
    if kind != "raw" and "raw" in peers:
        for (name, seconds), others in zip(found.items(), _found(peers["raw"]), strict=True):
            yield Figure(row=row, name=f"{name}, x raw", unit="x", rounds=each(seconds, others), relative=True)
    if kind == "registrar" and GO in peers:
        for (name, seconds), others in zip(found.items(), _found(peers[GO]), strict=True):
            yield Figure(row=GO_ROW, name=f"{name}, x Go's", unit="x", rounds=each(seconds, others), goal=1.0)


def _found(peer: Apart) -> tuple[list[float], list[float]]:
    """Return its median time and its CPU per event, in seconds, of each round."""
    return [median(times) for times in peer.times], peer.cpu
