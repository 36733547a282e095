"""A process that hosts many nodes of a cluster: told what to do by lines of JSON on its stdin, answering on its stdout.

What a node is, a registrar or bare gRPC, is its module's matter (`cluster_node`, `raw_node`). How nodes are started,
what is waited for, and what is counted, is the same for both, and stands here.
"""

import asyncio
import contextlib
import gc
import importlib
import resource
import sys
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

import msgspec

from tests.benchmarks.membership import name_of, names_of
from tests.benchmarks.sampling import Sampler

_POLL = 0.02  # seconds between two looks at what a node knows
_TURN = 0.05  # seconds that a turn of the event loop may take for another node to be started
_RETRY = 0.5  # seconds before a node whose start failed is tried again


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Which nodes a process hosts, and how. `pace` is how many of them may be starting at the same time."""

    endpoint: str
    first: int
    last: int
    pace: int
    uvloop: bool = False
    sample: bool = False

    @property
    def numbers(self) -> range:
        """The numbers of its nodes."""
        return range(self.first, self.last)


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, within `seconds`.

    - start: let every node join.
    - see: wait until every node sees those in `ranges` and no others, itself included.
    - expect: note from now on when each node hears that these `probes` joined.
    - arrivals: tell what was noted. usage: tell what was used. faults: tell what went wrong.
    - spent: tell what the CPU time went to since that was asked before, and of how many events the nodes were told, of
      a process that samples it.
    """

    id: int
    do: str
    seconds: float
    ranges: list[tuple[int, int]] = []
    probes: list[str] = []


class Members(Protocol):
    """The nodes of a process."""

    delivered: int
    """How many events reached the nodes, each node's counted."""

    async def start(self, name: str) -> None:
        """Let a node join. Return once it is in, raise what `failure` names when it cannot."""
        ...

    def known(self, name: str) -> int:
        """Return how many nodes a node sees, itself included."""
        ...

    async def seen(self, name: str) -> set[str]:
        """Return the nodes that a node sees, itself included."""
        ...

    def expect(self, probes: list[str]) -> None:
        """Note from now on when each node hears that one of these joined."""
        ...

    def arrivals(self) -> dict[str, list[float]]:
        """Return what was noted, by probe, in seconds of CLOCK_MONOTONIC, which all processes share."""
        ...

    def faults(self) -> dict[str, float]:
        """Return what went wrong until now, by what it is."""
        ...


MakeMembers = Callable[[str], Members]
"""Called with the endpoint of etcd inside the running loop."""


class Worker:
    """Does what the commands say with the nodes of one process."""

    def __init__(self, setup: Setup, members: Members, failure: type[Exception]) -> None:
        self._setup = setup
        self._members = members
        self._failure = failure
        self._in: list[str] = []
        self._failed_starts = 0
        self._last_failure = ""
        self._collections = _Collections()
        self._sampler = Sampler() if setup.sample else None
        self._told = 0  # events, when it was asked for what was spent

    async def obey(self, command: Command) -> None:
        """Do one thing and say how it went."""
        try:
            async with asyncio.timeout(command.seconds):
                answer = await self._do(command)
        except TimeoutError:
            least = min(map(self._members.known, self._in), default=0)
            answer = {
                "error": f"{command.do} took more than {command.seconds:g} s: {len(self._in)} of "
                f"{len(self._setup.numbers)} nodes of a process are in, the one that sees the fewest sees {least}, "
                f"{self._failed_starts} starts failed{self._last_failure}"
            }
        say(answer=command.id, **answer)

    async def _do(self, command: Command) -> dict[str, Any]:
        match command.do:
            case "start":
                return {"at": await self._start()}
            case "see":
                return {"at": await self._see(names_of(command.ranges))}
            case "expect":
                self._members.expect(command.probes)
                return {}
            case "arrivals":
                return {"arrivals": self._members.arrivals()}
            case "usage":
                return self._usage()
            case "faults":
                return {"faults": {"starts that failed": self._failed_starts, **self._members.faults()}}
            case "spent" if self._sampler is not None:
                before, self._told = self._told, self._members.delivered
                return {"spent": self._sampler.spent(), "events": self._told - before}
        return {"error": f"no such command: {command.do}"}

    async def _start(self) -> float:
        """Let all join, `pace` at a time, and none while those before still have much to hear."""
        left = iter(self._setup.numbers)

        async def start_some() -> None:
            for number in left:
                await _calm()
                await self._start_one(name_of(number))
                self._in.append(name_of(number))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._setup.pace):
                tasks.create_task(start_some())
        return time.monotonic()

    async def _start_one(self, name: str) -> None:
        while True:
            try:
                return await self._members.start(name)
            except self._failure as error:
                self._failed_starts += 1
                self._last_failure = f", the last one: {error}"
                await asyncio.sleep(_RETRY)

    async def _see(self, names: set[str]) -> float:
        """Return when the last node saw these and no others. Only one node is looked at, until that one is done."""
        own = [name_of(number) for number in self._setup.numbers]
        for name in own:
            while self._members.known(name) != len(names):
                await asyncio.sleep(_POLL)
        at = time.monotonic()
        for name in own:
            while await self._members.seen(name) != names:  # as many, but not the same
                await asyncio.sleep(_POLL)
                at = time.monotonic()
            await asyncio.sleep(0)
        return at

    def _usage(self) -> dict[str, Any]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "cpu": used.ru_utime + used.ru_stime,
            "at": time.monotonic(),
            "delivered": self._members.delivered,
            "rss": used.ru_maxrss * 1024,
            "collecting": self._collections.total,
            "longest_collection": self._collections.longest,
        }


class _Collections:
    """How long Python's cyclic garbage collector has worked, and how long it stopped everything at most."""

    def __init__(self) -> None:
        self.total = 0.0  # seconds of CPU time
        self.longest = 0.0  # seconds
        self._began = 0.0
        self._before = 0.0
        gc.callbacks.append(self._note)

    def _note(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._began, self._before = time.perf_counter(), time.thread_time()
        else:
            self.total += time.thread_time() - self._before
            self.longest = max(self.longest, time.perf_counter() - self._began)


async def _calm() -> None:
    """Return once the event loop is not flooded, so that a start does not run into the timeouts of its calls.

    Each of them takes several turns of the loop; and in a turn, every node here is told of one change.
    """
    while True:
        began = time.monotonic()
        await asyncio.sleep(_TURN / 5)
        if time.monotonic() - began < _TURN:
            return


def say(**line: Any) -> None:
    """Write one line of JSON."""
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def main(make: MakeMembers, failure: type[Exception]) -> None:
    """Be the process, until stdin ends. `failure` is what a start may raise, and is tried again."""
    setup = msgspec.json.decode(sys.argv[1], type=Setup)
    if setup.uvloop:
        importlib.import_module("uvloop").run(_live(setup, make, failure))  # no types where it is not installed
    else:
        asyncio.run(_live(setup, make, failure))


async def _live(setup: Setup, make: MakeMembers, failure: type[Exception]) -> None:
    worker = Worker(setup, make(setup.endpoint), failure)
    under_way: set[asyncio.Task[None]] = set()
    say(ready=True)
    async with contextlib.aclosing(_commands()) as commands:
        async for command in commands:
            task = asyncio.create_task(worker.obey(command))
            under_way.add(task)
            task.add_done_callback(under_way.discard)


async def _commands() -> AsyncGenerator[Command, None]:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        while line := await reader.readline():
            yield msgspec.json.decode(line, type=Command)
    finally:
        transport.close()
