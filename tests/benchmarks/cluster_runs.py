"""How clusters are measured: small ones of both kinds side by side, in rounds, and large ones one after the other.

Side by side, both kinds take turns, seconds apart, so that a ratio of the two is of one moment of one machine. Two that
are large would fill the machine even at rest, so each has it to itself.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import msgspec

from tests.benchmarks.stage import UNHEARD, Cluster, Flow, Joins, Kind, Rest, Usage
from tests.benchmarks.workers import StageError, raise_file_limit

UP_BOUND = 300.0  # seconds for up to 1,000 nodes
UP_BOUND_MOST = 600.0  # seconds for more
PAUSE_BOUND = 120.0  # seconds for all to be back once they go on
KILL_BOUND = 60.0  # seconds for the survivors to converge
_PERIOD = 10 / 3  # seconds of a lease's renewals: whole ones are at rest, or there would be more or fewer by chance
_SPARE_FILES = 500  # that etcd and a process need beside a connection for each node


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do with a cluster: in each of `rounds`, so many joins and so long a flow; then wait, pause, kill half."""

    rounds: int
    joins: int
    flow: float
    rest: float
    hold: float = 0.0
    pause: float = 0.0
    kill: bool = False


class Taken(msgspec.Struct):
    """What was measured of one cluster. `failed` says by step why that, and all steps after it, are not there."""

    kind: Kind
    nodes: int
    up: float | None = None
    rest: Rest | None = None
    joins: list[Joins] = []
    flows: list[Flow] = []
    held: float = 0.0
    reborn: int = 0
    paused: float = 0.0
    recovered: float | None = None
    killed: float | None = None
    usage: Usage | None = None
    storm_faults: dict[str, float] = {}
    faults: dict[str, float] = {}
    kill_faults: dict[str, float] = {}
    failed: dict[str, str] = {}

    def delays(self, number: int | None = None) -> list[float]:
        """Return the delays of one round, or of all. What never came counts as long as it was waited for."""
        joins = self.joins if number is None else [self.joins[number]]
        return [delay for each in joins for delay in (*each.delays, *[UNHEARD] * each.unheard)]


async def side_by_side(nodes: int, plan: Plan, *, uvloop: bool = False) -> tuple[Taken, Taken]:
    """Measure a cluster of bare gRPC and one of registrars, in turns."""
    raw, registrars = Taken(Kind.RAW, nodes), Taken(Kind.REGISTRARS, nodes)
    raise_file_limit(nodes + _SPARE_FILES)
    async with Cluster(Kind.REGISTRARS, nodes, uvloop=uvloop) as its_cluster:
        async with Cluster(Kind.RAW, nodes, uvloop=uvloop) as raw_cluster:
            both = ((raw_cluster, raw), (its_cluster, registrars))
            for cluster, taken in both:
                await _rise(cluster, taken)
            await asyncio.gather(*(_rest(cluster, taken, plan.rest) for cluster, taken in both))
            for number in range(plan.rounds):
                for cluster, taken in both if number % 2 else reversed(both):
                    await _round(cluster, taken, plan)
            await _end(raw_cluster, raw)
        await _end(its_cluster, registrars)
        if plan.kill:
            await _kill(its_cluster, registrars)
    return raw, registrars


async def alone(kind: Kind, nodes: int, plan: Plan) -> Taken:
    """Measure one cluster that has the machine to itself."""
    taken = Taken(kind, nodes)
    raise_file_limit(nodes + _SPARE_FILES)
    async with Cluster(kind, nodes) as cluster:
        await _rise(cluster, taken)
        began, lives = time.monotonic(), dict[bytes, int]()
        async with _step(taken, "hold"):
            lives = await cluster.lives()
        await _rest(cluster, taken, plan.rest)
        for _ in range(plan.rounds):
            await _round(cluster, taken, plan)
        if taken.up is not None:
            async with _step(taken, "hold"):
                await asyncio.sleep(max(0.0, began + plan.hold - time.monotonic()))
                taken.held = time.monotonic() - began
                after = await cluster.lives()
                taken.reborn = sum(after.get(key) != created for key, created in lives.items())
        await _end(cluster, taken)
        if plan.pause:
            await _pause(cluster, taken, plan.pause)
        if plan.kill:
            await _kill(cluster, taken)
    return taken


@contextlib.asynccontextmanager
async def _step(taken: Taken, name: str) -> AsyncIterator[None]:
    """Make a step, and say why should it fail."""
    try:
        yield
    except StageError as error:
        taken.failed.setdefault(name, str(error))


async def _rise(cluster: Cluster, taken: Taken) -> None:
    async with _step(taken, "up"):
        taken.up = await cluster.up(UP_BOUND if taken.nodes <= 1000 else UP_BOUND_MOST)
    async with _step(taken, "faults"):
        taken.storm_faults = await cluster.faults()


async def _rest(cluster: Cluster, taken: Taken, seconds: float) -> None:
    if taken.up is not None:
        async with _step(taken, "rest"):
            taken.rest = await cluster.rest(max(1, round(seconds / _PERIOD)) * _PERIOD)


async def _round(cluster: Cluster, taken: Taken, plan: Plan) -> None:
    if taken.rest is None:
        return
    async with _step(taken, "joins"):
        taken.joins.append(await cluster.joins(plan.joins))
    async with _step(taken, "flow"):
        taken.flows.append(await cluster.flow(plan.flow, taken.rest))


async def _end(cluster: Cluster, taken: Taken) -> None:
    async with _step(taken, "faults"):
        taken.faults = await cluster.faults()
        taken.usage = await cluster.usage()


async def _pause(cluster: Cluster, taken: Taken, seconds: float) -> None:
    if taken.up is not None:
        taken.paused = seconds
        async with _step(taken, "pause"):
            taken.recovered = await cluster.stand_still(seconds, PAUSE_BOUND)


async def _kill(cluster: Cluster, taken: Taken) -> None:
    if taken.up is not None:
        async with _step(taken, "kill"):
            taken.killed = await cluster.kill_half(KILL_BOUND)
        async with _step(taken, "faults"):
            taken.kill_faults = await cluster.faults()
