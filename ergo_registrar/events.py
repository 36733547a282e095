"""What a registrar tells its subscribers. All frozen, all about others: a process is not told of itself.

`revision` is the etcd revision that caused the event, 0 for one that this process caused. Folding the events over the
state at subscription always gives the state (see `docs/reference/events.md` for how each is folded).
"""

import msgspec

from ergo_registrar.routes import ApplicationMode, ApplicationRoute, RegistrarInfo, Route

Value = int | float | bool | str
"""A configuration value as Python sees it: the type comes from the prefix of the text in etcd."""


class _Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):  # gc: see routes.py
    revision: int = 0


class NodeJoined(_Event, frozen=True):
    """A node appeared. Told again, with the new routes, when a node that is already there changes its routes."""

    name: str
    routes: tuple[Route, ...] = ()


class NodeLeft(_Event, frozen=True):
    """A node is gone: it left, its lease ended, or the grace of a suspicion did."""

    name: str


class NodeSuspected(_Event, frozen=True):
    """The key of a node is gone and nobody said good-bye. Only with `Options.suspect_grace` > 0.

    Its routes and applications are kept, after every healthy one, until it recovers or the grace ends.
    """

    name: str


class NodeRecovered(_Event, frozen=True):
    """A suspected node is back in time."""

    name: str


class _ApplicationEvent(_Event, frozen=True):
    route: ApplicationRoute

    @property
    def name(self) -> str:
        """The application."""
        return self.route.name

    @property
    def node(self) -> str:
        """The node it runs on."""
        return self.route.node

    @property
    def weight(self) -> int:
        """The weight of the route."""
        return self.route.weight

    @property
    def mode(self) -> ApplicationMode | int:
        """The mode of the route."""
        return self.route.mode


class ApplicationLoaded(_ApplicationEvent, frozen=True):
    """An application became loaded on another node."""


class ApplicationStarted(_ApplicationEvent, frozen=True):
    """An application became running on another node."""


class ApplicationStopping(_ApplicationEvent, frozen=True):
    """An application began to stop on another node."""


class ApplicationUpdated(_ApplicationEvent, frozen=True):
    """An application changed its weight, mode, tags or version, or went to a state this package has no name for.

    `previous` is the route before, None where there was none.
    """

    previous: ApplicationRoute | None = None


class ApplicationStopped(_ApplicationEvent, frozen=True):
    """An application is gone from a node. `route` is the last that was known of it."""


class ConfigUpdate(_Event, frozen=True):
    """The effective value of a configuration item changed.

    `value` is None when no level has the item any more, `previous` None when none had it. `level` is the level that
    decides now (1 to 4), None with `value`.
    """

    item: str
    value: Value | None
    previous: Value | None = None
    level: int | None = None


class RegistrarConnected(_Event, frozen=True):
    """This process gained its session: it is registered, or, as an observer, its view is current."""

    info: RegistrarInfo


class RegistrarDisconnected(_Event, frozen=True, gc=True):
    """This process lost its session. `reason` says why; the registrar goes on trying to get it back."""

    reason: Exception


class EventsMissed(_Event, frozen=True):
    """`count` events did not fit into this subscription's queue and were dropped here. Read the state again."""

    count: int


Event = (
    NodeJoined
    | NodeLeft
    | NodeSuspected
    | NodeRecovered
    | ApplicationLoaded
    | ApplicationStarted
    | ApplicationStopping
    | ApplicationUpdated
    | ApplicationStopped
    | ConfigUpdate
    | RegistrarConnected
    | RegistrarDisconnected
    | EventsMissed
)
