"""One cluster that is measured: an etcd of its own, the processes that share its nodes, and who makes changes in it."""

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self, TypeVar

import grpc
import msgspec

from ergo_registrar.etcd.server import LocalEtcd
from tests.benchmarks.workers import Processes, StageError
from tests.benchmarks.writer import Writer

T = TypeVar("T")

PROCESSES = 4
_SHORT = 60.0  # seconds for a question: a loop that is flooded with events takes its time to come to it
UNHEARD = 15.0  # seconds after which an event that has not arrived never will
_LOOK = 0.05  # seconds between two looks at whether all has arrived
_QUIET = 0.3  # seconds in which nothing arrives any more when everything has
_MOST_CHANGES, _DELIVERIES = 50.0, 4000.0  # a second, of a flow: it must fill neither the cores nor the queues
_MANY = 1000.0  # nodes, from which on being there takes a good part of the cores
_PER_JOIN = 2  # events: the node, and its application
# How many nodes of one process may be starting at the same time: all. Who comes late reads of those before in one
# listing; who was there is told of each that comes, which costs several times as much.
PACE = 1000
RAW_PACE = 4  # bare gRPC does not survive that: its keepalives starve


class Kind(Enum):
    """What the nodes are."""

    REGISTRARS = "tests.benchmarks.cluster_node"
    RAW = "tests.benchmarks.raw_node"


class Rest(msgspec.Struct, frozen=True):
    """What a cluster costs when nothing happens: shares of a core of etcd and of all clients, and etcd's memory."""

    etcd: float | None
    clients: float
    memory: int | None


class Joins(msgspec.Struct, frozen=True):
    """How long after each put each node heard of it, in seconds, and how many never did."""

    delays: list[float]
    unheard: int


class Flow(msgspec.Struct, frozen=True):
    """What an event costs: CPU seconds of the client that is told, and of etcd."""

    client: float
    etcd: float | None


class Usage(msgspec.Struct, frozen=True):
    """What all processes used until now."""

    cpu: float
    delivered: int
    memory: int
    longest_collection: float
    collecting: float


class Cluster:
    """A cluster of so many nodes. Each step raises `StageError` where it cannot be made in time."""

    def __init__(self, kind: Kind, nodes: int, *, uvloop: bool = False, sample: bool = False) -> None:
        self.kind = kind
        self.nodes = nodes
        self._uvloop = uvloop
        self._sample = sample
        self._flowing = False
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            logs = Path(stack.enter_context(TemporaryDirectory(prefix="ergo-benchmark-")))
            self._etcd = await stack.enter_async_context(LocalEtcd())
            self._writer = await stack.enter_async_context(Writer(self._etcd.endpoint))
            self._processes = await stack.enter_async_context(
                Processes(
                    self.kind.value,
                    self._etcd.endpoint,
                    self.nodes,
                    logs / self.kind.name,
                    count=PROCESSES,
                    pace=PACE if self.kind is Kind.REGISTRARS else RAW_PACE,
                    uvloop=self._uvloop,
                    sample=self._sample,
                )
            )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def up(self, seconds: float) -> float:
        """Let all nodes join; return the seconds until each is in and sees all the others."""
        began = time.monotonic()
        await self._processes.ask("start", seconds)
        left = max(1.0, began + seconds - time.monotonic())
        return await self._seen([(0, self.nodes)], left) - began

    async def rest(self, seconds: float) -> Rest:
        """Do nothing for so long, and return what that costs."""
        began, before, etcd_before = time.monotonic(), await self.usage(), self._etcd_cpu()
        await asyncio.sleep(seconds)
        etcd_after, after, took = self._etcd_cpu(), await self.usage(), time.monotonic() - began
        etcd = None if etcd_before is None or etcd_after is None else (etcd_after - etcd_before) / took
        return Rest(etcd, (after.cpu - before.cpu) / took, self._etcd_memory())

    async def joins(self, count: int) -> Joins:
        """Let some nodes join one by one, each when the one before has long been heard of by all."""
        probes = self._writer.probes(count)
        await self._processes.ask("expect", _SHORT, probes=probes)
        before = (await self.usage()).delivered
        put = {}
        for probe in probes:
            put[probe] = await self._written(self._writer.join(probe))
            await asyncio.sleep(self._apart)
        await self._arrive(before + count * _PER_JOIN * self.nodes)
        delays, unheard = [], 0
        stamps = await self._processes.ask("arrivals", _SHORT)
        for probe, at in put.items():
            heard = [stamp - at for answer in stamps for stamp in answer["arrivals"][probe]]
            delays += heard
            unheard += self.nodes - len(heard)
        return Joins(delays, unheard)

    async def flow(self, seconds: float, resting: Rest) -> Flow:
        """Return what each event of a flow of changes costs, beyond what is used at rest."""
        rate = min(_MOST_CHANGES, _DELIVERIES / self.nodes * min(1.0, _MANY / self.nodes))
        if not self._flowing:
            self._flowing = True
            await self._written(self._writer.begin_flow())
            await self._settle()
        began, before, etcd_before = time.monotonic(), await self.usage(), self._etcd_cpu()
        changes = await self._written(self._writer.flow(rate, seconds))
        after = await self._arrive(before.delivered + changes * self.nodes)
        took, etcd_after = time.monotonic() - began, self._etcd_cpu()
        delivered = after.delivered - before.delivered
        if delivered < changes * self.nodes:
            raise StageError(f"{delivered} events arrived of {changes * self.nodes}")
        etcd = None
        if etcd_before is not None and etcd_after is not None and resting.etcd is not None:
            etcd = (etcd_after - etcd_before - resting.etcd * took) / delivered
        return Flow((after.cpu - before.cpu - resting.clients * took) / delivered, etcd)

    async def kill_half(self, seconds: float) -> float:
        """Kill half of the processes at once; return the seconds until all nodes left see each other and no others."""
        await self._written(self._writer.clear())
        self._flowing = False
        await self._settle()
        doomed, left = self._processes.all[: PROCESSES // 2], self._processes.all[PROCESSES // 2 :]
        ranges = [(process.setup.first, process.setup.last) for process in left]
        began = time.monotonic()
        await self._processes.kill(doomed)
        return await self._seen(ranges, seconds) - began

    async def stand_still(self, pause: float, seconds: float) -> float:
        """Stop all processes for longer than a lease; return the seconds from then until all are back, and see all."""
        before = await self.lives()
        try:
            for process in self._processes.all:
                process.send(signal.SIGSTOP)
            await asyncio.sleep(pause)
        finally:
            for process in self._processes.all:
                process.send(signal.SIGCONT)
        began = time.monotonic()
        while (left := began + seconds - time.monotonic()) > 0:
            after = await self.lives()
            is_anew = len(after) == self.nodes and all(before.get(key) != created for key, created in after.items())
            if is_anew and (await self.faults())["not connected"] == 0:
                return await self._seen([(0, self.nodes)], left) - began
            await asyncio.sleep(1)
        raise StageError(f"not all were back within {seconds:g} s")

    async def lives(self) -> dict[bytes, int]:
        """Return the key of each node, and the revision that it was created at."""
        return await self._written(self._writer.lives())

    async def faults(self) -> dict[str, float]:
        """Return what went wrong until now, by what it is."""
        answers = [answer["faults"] for answer in await self._processes.ask("faults", _SHORT)]
        return {name: sum(answer[name] for answer in answers) for name in answers[0]}

    async def usage(self) -> Usage:
        """Return what all processes that live used until now."""
        answers = await self._processes.ask("usage", _SHORT)
        return Usage(
            sum(answer["cpu"] for answer in answers),
            sum(answer["delivered"] for answer in answers),
            sum(answer["rss"] for answer in answers),
            max(answer["longest_collection"] for answer in answers),
            sum(answer["collecting"] for answer in answers),
        )

    async def spent(self) -> tuple[dict[str, float], int]:
        """Return what the CPU time of all that live went to since this was asked before, and how many events they got.

        Only of processes that sample it.
        """
        spent: dict[str, float] = defaultdict(float)
        answers = await self._processes.ask("spent", _SHORT)
        for answer in answers:
            for place, seconds in answer["spent"].items():
                spent[place] += seconds
        return spent, sum(answer["events"] for answer in answers)

    async def _seen(self, ranges: list[tuple[int, int]], seconds: float) -> float:
        """Return when the last node saw these and no others."""
        stamps: list[float] = [answer["at"] for answer in await self._processes.ask("see", seconds, ranges=ranges)]
        return max(stamps)

    @property
    def _apart(self) -> float:
        """Seconds between two joins: several times what all nodes need to hear of one, on two cores.

        Where they are more than a thousand, being there takes a good part of the cores, so it is longer.
        """
        return 0.02 + self.nodes * 0.5e-3 * max(1.0, self.nodes / _MANY)

    async def _arrive(self, delivered: int) -> Usage:
        """Return what was used once so many events were delivered, or when they had time enough for it."""
        ends = time.monotonic() + UNHEARD
        while (used := await self.usage()).delivered < delivered and time.monotonic() < ends:
            await asyncio.sleep(_LOOK)
        return used

    async def _settle(self) -> None:
        """Return once nothing arrives any more."""
        ends, before = time.monotonic() + UNHEARD, -1
        while (delivered := (await self.usage()).delivered) != before and time.monotonic() < ends:
            before = delivered
            await asyncio.sleep(_QUIET)

    async def _written(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except grpc.aio.AioRpcError as error:
            raise StageError(f"etcd does not take a change: {error.details()}") from error

    def _etcd_cpu(self) -> float | None:
        """Return the seconds of CPU that etcd used; None where there is no /proc."""
        try:
            line = Path(f"/proc/{self._etcd.members[0].pid}/stat").read_text()
        except OSError:
            return None
        user, system = line.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _etcd_memory(self) -> int | None:
        try:
            pages = Path(f"/proc/{self._etcd.members[0].pid}/statm").read_text().split()[1]
        except OSError:
            return None
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
