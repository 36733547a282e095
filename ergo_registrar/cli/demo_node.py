"""One node of the demo: a process of its own, which `demo` asks over its stdin and which answers on its stdout.

Not for use by hand. It is started as `python -m ergo_registrar.cli.demo_node SETUP`, with a `Setup` in JSON; each
request and each answer is one line of JSON. It leaves the cluster when it is told to, when its stdin ends (so also when
the demo is killed), and after `_LONGEST` seconds whatever happens.
"""

import asyncio
import os
import sys
import threading
from typing import assert_never

import anyio
import msgspec
from anyio import to_thread

from ergo_registrar import (
    ApplicationMode,
    ApplicationRoute,
    ApplicationStarted,
    ApplicationState,
    ConfigSource,
    ConfigUpdate,
    Options,
    Registrar,
    RegistrarError,
    Route,
)

CLUSTER = "production"
APPLICATION = "web-server"

_LONGEST = 60.0


class Setup(msgspec.Struct, frozen=True):
    """Who the node is. With a weight it runs the application."""

    name: str
    endpoint: str
    port: int
    lease_ttl: int
    weight: int | None = None


class Resolve(msgspec.Struct, frozen=True, tag=True):
    """Resolve the application so many times, once it is known to run on all these nodes."""

    times: int
    nodes: frozenset[str]


class Explain(msgspec.Struct, frozen=True, tag=True):
    """Say of each of these configuration items what its effective value is, and where that stands."""

    items: tuple[str, ...]


class Follow(msgspec.Struct, frozen=True, tag=True):
    """Answer `Following`, and then, by itself, the next change of this configuration item."""

    item: str


class Leave(msgspec.Struct, frozen=True, tag=True):
    """Leave the cluster and end."""


Request = Resolve | Explain | Follow | Leave


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The node is registered, and its application runs."""


class Resolved(msgspec.Struct, frozen=True, tag=True):
    """The nodes that were picked, in order."""

    nodes: tuple[str, ...]


class Explained(msgspec.Struct, frozen=True, tag=True):
    """For each item, the level that decides."""

    sources: dict[str, ConfigSource]


class Following(msgspec.Struct, frozen=True, tag=True):
    """From now on a change will be told."""


class Changed(msgspec.Struct, frozen=True, tag=True):
    """The configuration item changed."""

    event: ConfigUpdate


Answer = Ready | Resolved | Explained | Following | Changed


class _Node:
    """What the process is while it lives: a registrar, and two pipes to the demo."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._one_by_one = anyio.CapacityLimiter(1)

    async def live(self) -> None:
        """Join, answer, leave."""
        setup = self._setup
        options = Options(
            endpoints=(setup.endpoint,), cluster=CLUSTER, lease_ttl=setup.lease_ttl, close_timeout=2, claim_timeout=0
        )
        with anyio.move_on_after(_LONGEST) as scope:
            self._listen(scope)
            routes = [Route(host="127.0.0.1", port=setup.port)]
            applications = self._applications(ApplicationState.LOADED)
            async with Registrar(options, node=setup.name, routes=routes, applications=applications) as registrar:
                await self._become(registrar, ApplicationState.RUNNING)
                await self._say(Ready())
                while not isinstance(request := await self._requests.get(), Leave):
                    await self._answer(registrar, request)
                await self._become(registrar, ApplicationState.STOPPING)

    def _applications(self, state: ApplicationState) -> list[ApplicationRoute]:
        name, weight = self._setup.name, self._setup.weight
        if weight is None:
            return []
        return [ApplicationRoute(name, APPLICATION, weight, ApplicationMode.PERMANENT, state)]

    async def _become(self, registrar: Registrar, state: ApplicationState) -> None:
        for route in self._applications(state):
            await registrar.register_application_route(route)

    async def _answer(self, registrar: Registrar, request: Resolve | Explain | Follow) -> None:
        match request:
            case Resolve():
                await _know(registrar, request.nodes)
                routes = [await registrar.resolve_application(APPLICATION) for _ in range(request.times)]
                await self._say(Resolved(tuple(first.node for first, *_ in routes)))
            case Explain():
                sources = {item: await registrar.explain(item) for item in request.items}
                await self._say(Explained({item: _winner(levels) for item, levels in sources.items()}))
            case Follow():
                async with registrar.subscribe(ConfigUpdate) as subscription:
                    await self._say(Following())
                    async for event in subscription:
                        if isinstance(event, ConfigUpdate) and event.item == request.item:
                            await self._say(Changed(event))
                            break
            case _:
                assert_never(request)

    async def _say(self, answer: Answer) -> None:
        line = msgspec.json.encode(answer) + b"\n"
        await to_thread.run_sync(_write, line, limiter=self._one_by_one)

    def _listen(self, scope: anyio.CancelScope) -> None:
        """Read requests in a thread, which works on every system and with every kind of stdin."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=_read, args=(loop, self._requests, scope), daemon=True).start()


async def _know(registrar: Registrar, nodes: frozenset[str]) -> None:
    """Return as soon as the application is known to run on all these nodes."""
    missing = set(nodes)
    async with registrar.subscribe(ApplicationStarted, replay=True) as subscription:
        while missing:
            event = await subscription.get()
            if isinstance(event, ApplicationStarted):
                missing.discard(event.node)


def _read(loop: asyncio.AbstractEventLoop, requests: asyncio.Queue[Request], scope: anyio.CancelScope) -> None:
    decoder = msgspec.json.Decoder(Request)
    buffered = b""
    while chunk := os.read(0, 65536):  # not sys.stdin: its lock, held in a daemon thread, breaks the exit
        *lines, buffered = (buffered + chunk).split(b"\n")
        for line in lines:
            loop.call_soon_threadsafe(requests.put_nowait, decoder.decode(line))
    loop.call_soon_threadsafe(scope.cancel)


def _write(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _winner(levels: tuple[ConfigSource, ...]) -> ConfigSource:
    return next(source for source in levels if source.winner)


def main() -> int:
    """Be the node that the first argument describes; return the exit code."""
    try:
        anyio.run(_Node(msgspec.json.decode(sys.argv[1], type=Setup)).live)
    except RegistrarError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # nobody listens any more
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
