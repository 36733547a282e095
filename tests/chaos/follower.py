"""What judges a registrar within its process: a clock of the loop, and subscribers that keep the state by events."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ergo_registrar import (
    ApplicationRoute,
    EventsMissed,
    NoRouteError,
    Registrar,
    RegistrarConnected,
    RegistrarDisconnected,
    State,
    TakenError,
    TerminatedError,
)
from tests.property.folding import State as Folded
from tests.property.folding import fold

READABLE = (State.CONNECTED, State.SUSPENDED, State.LOST)
_TICK = 0.02  # seconds between two looks at the own loop
_DULL = 0.05  # seconds that a tick may be late before the loop counts as stalled


class Stalls:
    """How long this event loop did not run, all in all: what calls cannot be blamed for."""

    def __init__(self) -> None:
        self._total = 0.0
        self._due = time.monotonic()

    @property
    def total(self) -> float:
        return self._total + max(0.0, time.monotonic() - self._due - _DULL)

    async def tick(self) -> None:
        """Wait one tick. What goes by between two of them counts, too."""
        self._total, self._due = self.total, time.monotonic() + _TICK
        await asyncio.sleep(_TICK)
        self._total, self._due = self.total, time.monotonic()


class Reader:
    """What a registrar says when it is asked, without a wait in between, since all of it is answered from memory."""

    def __init__(self, registrar: Registrar, own: str | None, applications: Sequence[str]) -> None:
        self.registrar = registrar
        self._own = own
        self._names = applications

    async def others(self) -> Folded:
        """Return what is known of others, as folded events have it, but for suspicions and negative weights."""
        nodes = {name: tuple(await self.registrar.resolve(name)) for name in await self.registrar.nodes()}
        routes = [route for name in self._names for route in await self.application(name) if route.node != self._own]
        applications = {(route.name, route.node): route for route in routes}
        return Folded(nodes, frozenset(), applications, await self.registrar.config())

    async def view(self) -> dict[str, Any]:
        """Return everything that is known, the own node too, in the shape of `wire.View`."""
        nodes = {name: await self.registrar.resolve(name) for name in await self.registrar.nodes()}
        with contextlib.suppress(NoRouteError):
            nodes.update({self._own: await self.registrar.resolve(self._own)} if self._own else {})
        applications = {name: {route.node: route for route in await self.application(name)} for name in self._names}
        found = {name: routes for name, routes in applications.items() if routes}
        return {"nodes": nodes, "applications": found, "config": await self.registrar.config()}

    async def application(self, name: str) -> list[ApplicationRoute]:
        """Return where an application is, here too; nothing where it is not."""
        try:
            return await self.registrar.resolve_application(name, include_self=True)
        except NoRouteError:
            return []

    def replayed(self) -> Folded:
        """Return the state as a new subscriber begins with it."""
        state = Folded()
        subscription = self.registrar.subscribe(replay=True)
        with contextlib.suppress(asyncio.QueueEmpty):
            while True:
                state = fold(state, subscription.get_nowait())
        subscription.close()
        return state


class Follower:
    """A subscriber that keeps the state by events alone. With a pause after each, its small queue overflows."""

    def __init__(self, reader: Reader, problem: Callable[[int, str], None], *, maxsize: int, pause: float) -> None:
        self.counts: Counter[str] = Counter()
        self._reader = reader
        self._problem = problem
        self._pause = pause
        self._state = Folded()
        self._connected = False
        self._subscription = reader.registrar.subscribe(maxsize=maxsize, replay=True)

    async def follow(self) -> None:
        async for event in self._subscription:
            self.counts["events delivered"] += 1
            try:
                self._take(event)
                if self._subscription.qsize() == 0 and self._reader.registrar.state in READABLE:
                    await self._compare()
            except (KeyError, AssertionError) as error:
                self._problem(2, f"{event} does not fit what the events before it told: {error!r}")
                self._state = self._reader.replayed()
            except TerminatedError:  # closed meanwhile
                continue
            if self._pause:
                await asyncio.sleep(self._pause)

    def _take(self, event: Any) -> None:
        if isinstance(event, EventsMissed):
            self.counts["events missed"] += event.count
            self._state = self._reader.replayed()
        elif isinstance(event, RegistrarConnected):
            assert not self._connected or self._pause, "told twice"
            self._connected = True
        elif isinstance(event, RegistrarDisconnected):
            assert self._connected or self._pause or isinstance(event.reason, TakenError), "told twice"
            self._connected = False
        else:
            self._state = fold(self._state, event)

    async def _compare(self) -> None:
        """Compare at once: all of it is answered from memory, so nothing happens in between."""
        self.counts["folds compared"] += 1
        present, known = self._reader.replayed(), await self._reader.others()
        assert self._state == present, f"folded {self._state}, and a new subscriber begins with {present}"
        seen = {instance: route for instance, route in present.applications.items() if route.weight >= 0}
        same = (present.nodes, seen, present.config) == (known.nodes, known.applications, known.config)
        assert same, f"a new subscriber begins with {present}, and the registrar says {known}"
