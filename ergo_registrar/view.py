"""What this process knows, and who is told when it changes: the mirrors of routes and configuration, and the hub.

A change is committed to the mirrors before it is published, and never waits for anybody.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Never

from ergo_registrar.clock import now
from ergo_registrar.core.balance import Choice, Choices
from ergo_registrar.core.config import ConfigMirror
from ergo_registrar.core.filter import Filter, shortfall
from ergo_registrar.core.keys import ConfigLevel, check_name, check_node_name, config_prefixes, routes_prefix
from ergo_registrar.core.mirror import Mirror
from ergo_registrar.core.records import Record, Skipped, Step
from ergo_registrar.errors import NoRouteError, WaitTimeoutError
from ergo_registrar.events import Event
from ergo_registrar.logs import about
from ergo_registrar.options import Options
from ergo_registrar.routes import ApplicationRoute, Route
from ergo_registrar.stats import Stats
from ergo_registrar.subscription import Hub

_log = logging.getLogger(__name__)

_REMEMBERED = 10_000  # keys that were logged as skipped; beyond that, each may be logged again


class View:
    """The cluster and its configuration as of the last revision that went in, and the hub that tells of changes."""

    def __init__(self, options: Options, hub: Hub, stats: Stats, *, clock: Callable[[], float] = now) -> None:
        self.mirror: Mirror = Mirror(options.cluster, suspect_grace=options.suspect_grace)
        self.config: ConfigMirror = ConfigMirror(options.cluster)
        self.revision: int = 0
        self.complete: int = 0  # the revision up to which every change went in, as far as etcd has proved it
        self._proven = -math.inf  # when etcd was asked for its last proof
        self.node: str | None = None
        self._options = options
        self._hub = hub
        self._stats = stats
        self._clock = clock
        self._routes = routes_prefix(options.cluster)
        self._levels: dict[bytes, ConfigLevel] = {}
        self._choices = Choices()
        self._logged: set[bytes] = set()
        self._waiting: dict[asyncio.Future[None], None] = {}  # who came first is woken first
        self.aim(None)

    def adopt(self, node: str | None) -> None:
        """Take this node for oneself from now on, or none; an earlier holder of the name, if it is known, has left."""
        self._commit(self.mirror.become(node))

    def aim(self, node: str | None) -> tuple[bytes, ...]:
        """Be the view of this node, or of an observer, from the next listing on; return what to watch for it."""
        self.adopt(node)
        self.node = node
        self._levels = {prefix: level for level, prefix in config_prefixes(self._options.cluster, node).items()}
        return self.prefixes

    @property
    def prefixes(self) -> tuple[bytes, ...]:
        """What to read and watch: the routes of the own cluster, and each level of the own configuration."""
        return (self._routes, *self._levels)

    @property
    def levels(self) -> Collection[ConfigLevel]:
        """The levels of configuration that are read and watched."""
        return self._levels.values()

    def listed(self, revision: int, found: dict[bytes, list[Record]], asked: float) -> None:
        """Take the whole of every prefix, as asked for at that time, and tell how it differs from what was known."""
        before = self.config.effective()
        config = ConfigMirror(self._options.cluster, self.node)
        configured = config.snapshot(
            {level: found[prefix] for prefix, level in self._levels.items()}, revision, previous=before
        )
        routed = self.mirror.snapshot(found[self._routes], revision, self._clock())
        self.config = config
        self.revision = self.complete = revision
        self._proven = asked
        self._commit(routed, configured)
        self._wake()

    def changed(self, prefix: bytes, changes: Sequence[tuple[int, Sequence[Record]]]) -> None:
        """Take all changes under one prefix, of one revision after the other, and tell of them."""
        if prefix == self._routes:
            at = self._clock()
            steps = [self.mirror.batch(records, revision, at) for revision, records in changes]
        else:
            level = self._levels[prefix]
            steps = [self.config.batch(level, records, revision) for revision, records in changes]
        self.revision = max(self.revision, changes[-1][0])
        self._commit(*steps)
        self._wake()

    def shown(self, revision: int, asked: float) -> None:
        """Take note that every change up to `revision` went in, and all there were when etcd was asked for it."""
        self._proven = max(self._proven, asked)
        self.complete = max(self.complete, revision)
        self.revision = max(self.revision, revision)
        self._wake()

    @property
    def staleness(self) -> float:
        """Seconds since etcd last proved that nothing is missing here; infinite before the first time."""
        return self._clock() - self._proven

    def tick(self) -> float | None:
        """End the suspicions whose grace is over; return the seconds until the next may be, None if there is none."""
        at = self._clock()
        self._commit(self.mirror.tick(at))
        deadline = self.mirror.next_deadline(at)
        return None if deadline is None else deadline - at

    async def reached(self, revision: int) -> None:
        """Return as soon as the routes as of `revision` went in. Needs a deadline of the caller's."""
        while self.mirror.revision < revision:
            await self.progress()

    async def progress(self) -> None:
        """Return as soon as anything went in, or was proved. Needs a deadline of the caller's."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = None
        try:
            await waiting
        finally:
            del self._waiting[waiting]

    def _wake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def state_events(self) -> list[Event]:
        """Return the state as the events that would lead to it."""
        return [*self.mirror.state_events(), *self.config.state_events()]

    def resolve(self, node: str) -> list[Route]:
        """Return how to reach a node. Raise `NoRouteError`."""
        routes = self.mirror.routes(check_node_name("node", node))
        if routes is None:
            raise NoRouteError(f"no node {node!r} in {self._where()}; {self._known_nodes()}")
        return list(routes)

    def resolve_application(self, name: str, wanted: Filter, include_self: bool) -> list[ApplicationRoute]:
        """Return where an application is, the weighted pick first. Raise `NoRouteError`."""
        return self._choice(name, wanted, include_self).order() or self._no_instance(name, wanted, include_self)

    def pick(self, name: str, wanted: Filter, include_self: bool) -> ApplicationRoute:
        """Return the weighted pick alone. Raise `NoRouteError`."""
        return self._choice(name, wanted, include_self).pick() or self._no_instance(name, wanted, include_self)

    async def wait_for(
        self, name: str, wanted: Filter, include_self: bool, instances: int, timeout: float
    ) -> list[ApplicationRoute]:
        """Return where an application is, once it is there so often. Raise `WaitTimeoutError`."""
        check_name("name", name)
        found = 0
        try:
            async with asyncio.timeout(timeout):
                while True:
                    found = sum(map(len, self._choice(name, wanted, include_self).tiers))
                    if found >= instances:
                        return self.resolve_application(name, wanted, include_self)
                    await self.progress()
        except TimeoutError:
            raise WaitTimeoutError(
                f"application {name!r} in {self._where()}: {found} of {instances} wanted after {timeout:g} s: "
                + self._shortfall(name, wanted, include_self, instances)
            ) from None
        finally:  # also cancelled
            if not found:
                self._choices.forget(name, include_self, wanted)

    def _choice(self, name: str, wanted: Filter, include_self: bool) -> Choice:
        """Return the way to choose, up to date with what is known. A name that has instances obeys the rules."""
        try:
            instances = self.mirror.instances(name)
        except TypeError:  # no str
            check_name("name", name)
            raise
        choice = self._choices.of(name, include_self, wanted)
        if choice.instances is not instances:
            choice.renew(instances, wanted, None if include_self else self.node)
        return choice

    def _no_instance(self, name: str, wanted: Filter, include_self: bool) -> Never:
        self._choices.forget(name, include_self, wanted)
        check_name("name", name)
        why = self._shortfall(name, wanted, include_self, 1)
        raise NoRouteError(f"no application {name!r} in {self._where()}: {why}")

    def _shortfall(self, name: str, wanted: Filter, include_self: bool, instances: int) -> str:
        routes = dict(self.mirror.instances(name).routes)
        own = None if include_self else routes.pop(self.node or "", None)
        if own is not None and not routes:
            return "only this node itself has it: include_self=True counts it in"
        return shortfall(wanted, routes.values(), instances)

    def _where(self) -> str:
        return f"cluster {self._options.cluster!r} as of revision {self.revision}"

    def _known_nodes(self) -> str:
        nodes = self.mirror.nodes()
        names = ", ".join(nodes[:5]) + (", ..." if len(nodes) > 5 else "")
        return f"there are {len(nodes)} others: {names}" if nodes else "there are no others"

    def _commit(self, *steps: Step) -> None:
        for step in steps:
            if step.skipped:
                self._note(step.skipped)
        events = steps[0].events if len(steps) == 1 else [event for step in steps for event in step.events]
        if events:
            self._hub.publish(events)

    def _note(self, skipped: Iterable[Skipped]) -> None:
        for each in skipped:
            self._stats.keys_skipped += 1
            if each.key not in self._logged:
                if len(self._logged) >= _REMEMBERED:
                    self._logged.clear()
                self._logged.add(each.key)
                key = each.key.decode(errors="backslashreplace")
                fields = {"key": key, "reason": each.reason, "revision": self.revision}
                extra = about("key_skipped", self._options.cluster, self.node, **fields)
                _log.warning("skipped %r: %s", key, each.reason, extra=extra)
