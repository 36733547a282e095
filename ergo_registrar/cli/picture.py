"""The cluster as its events tell of it: what the facade answers one by one, all at once."""

import asyncio
import contextlib

from ergo_registrar import (
    ApplicationLoaded,
    ApplicationRoute,
    ApplicationStarted,
    ApplicationStopped,
    ApplicationStopping,
    ApplicationUpdated,
    Event,
    EventsMissed,
    NodeJoined,
    NodeLeft,
    NodeRecovered,
    NodeSuspected,
    Registrar,
    Route,
    Subscription,
)


class Picture:
    """Nodes and applications, folded from events as `docs/reference/events.md` says."""

    def __init__(self, registrar: Registrar) -> None:
        self.nodes: dict[str, tuple[Route, ...]] = {}
        self.suspected: set[str] = set()
        self.applications: dict[tuple[str, str], ApplicationRoute] = {}  # by application and node
        self._registrar = registrar
        self._events: Subscription = self._begin()
        self.refresh()

    def refresh(self) -> None:
        """Take in everything that has happened."""
        with contextlib.suppress(asyncio.QueueEmpty):
            while True:
                self._fold(self._events.get_nowait())

    def _begin(self) -> Subscription:
        self.nodes.clear()
        self.suspected.clear()
        self.applications.clear()
        return self._registrar.subscribe(replay=True)

    def _fold(self, event: Event) -> None:
        match event:
            case NodeJoined():
                self.nodes[event.name] = event.routes
            case NodeLeft():
                del self.nodes[event.name]
                self.suspected.discard(event.name)
            case NodeSuspected():
                self.suspected.add(event.name)
            case NodeRecovered():
                self.suspected.remove(event.name)
            case ApplicationStopped():
                del self.applications[event.name, event.node]
            case ApplicationLoaded() | ApplicationStarted() | ApplicationStopping() | ApplicationUpdated():
                self.applications[event.name, event.node] = event.route
            case EventsMissed():
                self._events.close()
                self._events = self._begin()
            case _:
                pass  # the configuration, and the session, which the registrar tells better
