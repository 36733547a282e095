"""One registrar in a process of its own, told what to do by lines of JSON on its stdin, answering on its stdout.

It uses public names only, and is the first judge of them: every call is timed and its errors looked at, and every
subscriber folds what it is told and compares the result with what the registrar says at that very moment. What is wrong
is said at once, as a line {"problem": ...}, for this process may be killed at any time.
"""

import asyncio
import ctypes
import logging
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec

from ergo_registrar import (
    ApplicationMode,
    ApplicationRoute,
    Options,
    Registrar,
    RegistrarError,
    Route,
    TerminatedError,
)
from tests.chaos.follower import READABLE, Follower, Reader, Stalls
from tests.chaos.wire import WITNESS, first_application, host_of

T = TypeVar("T")

SLACK = 1.0  # seconds beyond its timeout that a call may take on two loaded cores
_OVERFLOW = 8  # events that the slow subscriber's queue holds
_PROBE = 10  # ticks between two rounds of calls that are answered from memory


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Who the process is. `applications` are all names that may ever be seen; `life` is written into its routes."""

    node: str | None
    life: int
    options: dict[str, Any]
    applications: tuple[str, ...]


class Command(msgspec.Struct, frozen=True):
    """What to do: publish, withdraw, witness, dump, block or close."""

    id: int
    do: str
    application: str = ""
    weight: int = 0
    state: int = 2
    revision: int = 0
    seconds: float = 0.0


class Node:
    """A registrar and what watches it."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.stalls = Stalls()
        self.options = Options(**setup.options)
        self.registrar = Registrar(self.options)
        self._routes = [Route(host=host_of(setup.life), port=1000 + setup.life)]
        self._longest: dict[str, float] = {}
        self._reader = Reader(self.registrar, setup.node, setup.applications)
        self._followers = [
            Follower(self._reader, self.problem, maxsize=10_000, pause=0),
            Follower(self._reader, self.problem, maxsize=_OVERFLOW, pause=0.2),
        ]
        self._entered = False
        self._closing = False

    def problem(self, invariant: int, evidence: str) -> None:
        say(problem=evidence, invariant=invariant)

    async def live(self) -> None:
        """Enter, do what is told, leave."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.problem(7, f"reached the event loop: {context}"))
        tasks = [asyncio.create_task(follower.follow()) for follower in self._followers]
        watching = asyncio.create_task(self._watch())
        entering = asyncio.create_task(self._enter())
        say(up=time.monotonic())
        commands: set[asyncio.Task[None]] = set()
        async for command in requests():
            if command.do == "close":
                break
            task = asyncio.create_task(self._obey(command))
            commands.add(task)
            task.add_done_callback(commands.discard)
        self._closing = True
        began = time.monotonic()
        await self.call("close", self.registrar.close(), self.options.close_timeout)
        took = time.monotonic() - began
        await asyncio.wait([*tasks, *commands, entering], timeout=2 * SLACK)
        watching.cancel()
        await asyncio.wait({watching})
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            _, left = await asyncio.wait(left, timeout=SLACK)  # grpc's own tasks end a moment after their calls
        say(closed=took, left=[str(task) for task in left], state=self.registrar.state.value)
        for done in (*tasks, entering, watching):
            if done.done() and not done.cancelled() and (error := done.exception()):
                self.problem(7, f"a task of the node ended with {error!r}")

    async def _enter(self) -> None:
        """Enter as often as it takes: a try that failed leaves nothing behind."""
        options, node = self.options, self.setup.node
        bound = options.dial_timeout + options.claim_timeout + 3 * options.request_timeout + options.close_timeout
        while not self._entered and not self._closing:
            if node is None:
                failed: object = await self.call("enter", self.registrar.__aenter__(), bound)
            else:
                web = self._application(*first_application(self.setup.life))
                failed = await self.call("register", self.registrar.register(node, self._routes, [web]), bound)
            self._entered = not isinstance(failed, RegistrarError)
            if not self._entered:
                await asyncio.sleep(0.2)

    def _application(self, name: str, weight: int, state: int) -> ApplicationRoute:
        assert self.setup.node is not None
        return ApplicationRoute(self.setup.node, name, weight, ApplicationMode.PERMANENT, state)

    async def call(self, name: str, work: Awaitable[T], timeout: float) -> T | RegistrarError:
        """Return what a call returns, or the documented error it raises. It may take its timeout and no longer."""
        began, stalled = time.monotonic(), self.stalls.total
        try:
            return await work
        except RegistrarError as error:
            return error
        except Exception as error:  # noqa: BLE001  # whatever is not documented is what we look for
            self.problem(8, f"{name} raised {error!r}")
            return RegistrarError(repr(error))
        finally:
            took = time.monotonic() - began
            if took > timeout + SLACK:
                await asyncio.sleep(SLACK)  # a stall that has just ended is noted by then
            took -= self.stalls.total - stalled
            self._longest[name] = max(self._longest.get(name, 0.0), took)
            if took > timeout + SLACK:
                self.problem(6, f"{name} took {took:.2f} s, its timeout is {timeout:g} s")

    async def _obey(self, command: Command) -> None:
        answer: dict[str, Any] = {}
        match command.do:
            case "publish":
                route = self._application(command.application, command.weight, command.state)
                answer = await self._change("publish", self.registrar.register_application_route(route))
            case "withdraw":
                work = self.registrar.unregister_application_route(command.application)
                answer = await self._change("withdraw", work)
            case "block":
                time.sleep(command.seconds)  # the fault itself
            case "witness":
                answer = await self._witness(command.revision)
            case "dump":
                answer = await self._dump()
        say(answer=command.id, **answer)

    async def _change(self, name: str, work: Awaitable[None]) -> dict[str, Any]:
        failed = await self.call(name, work, self.options.request_timeout)
        return {"error": repr(failed)} if isinstance(failed, RegistrarError) else {}

    async def _witness(self, revision: int) -> dict[str, Any]:
        """Return what is known of the two counters that the checker counts up, and how old that may be.

        With a revision, wait for it first. Nothing else happens between the end of that and the reading.
        """
        registrar = self.registrar
        if revision and (failed := await self._change("wait_revision", registrar.wait_revision(revision))):
            return failed
        if registrar.state not in READABLE:
            return {"error": "not entered"}
        values = await registrar.config(WITNESS)
        routes = await self._reader.application(WITNESS)
        counted = {"config": values.get(WITNESS, 0), "routes": max((route.weight for route in routes), default=0)}
        return {"at": time.monotonic(), "staleness": registrar.staleness, "counted": counted}

    async def _watch(self) -> None:
        """Measure the loop, and ask what is answered from memory, all the time."""
        tick, before = 0, self.registrar.state
        while True:
            await self.stalls.tick()
            tick += 1
            if self.registrar.state is not before:
                before = self.registrar.state
                say(state=before.value, at=time.monotonic())
            if tick % _PROBE == 0 and not self._closing:
                await self._probe()

    async def _probe(self) -> None:
        registrar = self.registrar
        for name, work in (
            ("nodes", registrar.nodes()),
            ("resolve", registrar.resolve("nobody")),
            ("pick", registrar.pick("web")),
            ("config_item", registrar.config_item("item0")),
            ("explain", registrar.explain("item0")),
            ("resolve_proxy", registrar.resolve_proxy("nobody")),
        ):
            failed: Any = await self.call(name, work, 0.0)
            if isinstance(failed, TerminatedError):
                self.problem(8, f"{name} says that the registrar has ended: {failed.__cause__!r}")
        health = registrar.health()
        if health.ok and health.staleness > self.options.lease_ttl:
            self.problem(1, f"says that it is well although its view may be old: {health}")

    async def _dump(self) -> dict[str, Any]:
        registrar, stats = self.registrar, self.registrar.stats
        dump: dict[str, Any] = {
            "state": registrar.state.value,
            "entered": self._entered,
            "revision": registrar.revision,
            "stalled": self.stalls.total,
            "staleness": registrar.staleness,
            "longest": self._longest,
            "counts": sum((follower.counts for follower in self._followers), Counter[str]())
            + Counter({"reconnects": stats.connections_replaced, "re-registrations": max(0, stats.claims - 1)}),
        }
        if registrar.state in READABLE:
            dump["view"] = await self._reader.view()
        return dump


def say(**line: Any) -> None:
    """Write one line of JSON."""
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


async def requests() -> Any:
    """Yield commands until stdin ends."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        while line := await reader.readline():
            yield msgspec.json.decode(line, type=Command)
    finally:
        transport.close()


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a stopped process would outlive a killed run
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    asyncio.run(Node(msgspec.json.decode(sys.argv[1], type=Setup)).live())


if __name__ == "__main__":
    main()
