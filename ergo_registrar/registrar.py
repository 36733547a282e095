"""The facade: a process joins a cluster, and from then on knows who else is there."""

from collections.abc import Iterable
from types import TracebackType
from typing import Protocol, Self, TypeVar

import msgspec

from ergo_registrar.core.change import ConfigChange
from ergo_registrar.core.config import ConfigSource
from ergo_registrar.core.filter import EVERY, described
from ergo_registrar.core.keys import NODE_LEVELS, ConfigKey, ConfigLevel, check_name
from ergo_registrar.core.registration import Publication
from ergo_registrar.core.session import State
from ergo_registrar.core.settings import Plan
from ergo_registrar.errors import NoRouteError, UnsupportedError, ValidationError
from ergo_registrar.events import ConfigUpdate, Event, Value
from ergo_registrar.health import Health
from ergo_registrar.logs import about
from ergo_registrar.options import Options, check_seconds
from ergo_registrar.routes import ApplicationRoute, ApplicationState, RegistrarInfo, Route, Version
from ergo_registrar.runner import UNREAD, Runner
from ergo_registrar.settings import LiveSettings
from ergo_registrar.stats import RequestListener, Stats
from ergo_registrar.subscription import DEFAULT_MAXSIZE, Hub, Subscription
from ergo_registrar.version import VERSION
from ergo_registrar.view import View

T = TypeVar("T")


class Resolver(Protocol):
    """The part of a registrar that finds others (Ergo: `gen.Resolver`). `Registrar` is one."""

    async def resolve(self, node: str) -> list[Route]:
        """Return how to reach a node."""
        ...

    async def resolve_application(
        self,
        name: str,
        *,
        state: ApplicationState | Iterable[ApplicationState] | None = None,
        tags: Iterable[str] = (),
        without_tags: Iterable[str] = (),
        include_self: bool = False,
    ) -> list[ApplicationRoute]:
        """Return where an application is."""
        ...

    async def resolve_proxy(self, node: str) -> list[Route]:
        """Return how to reach a node through another."""
        ...


class Registrar:
    """A process's place in a cluster on etcd.

    With `node`, entering `async with` registers it, with its `routes` and `applications`. Without, it is an observer,
    which reads and watches and claims nothing, and may `register` later. Nothing is sent before.

    What others are asked from memory, which the watch keeps current: those calls never wait for etcd. They are
    coroutines to fit the reference's interface, and may be awaited from any task of the loop that entered. Before the
    cluster is known they raise `RegistrarError`, after `close` `TerminatedError`. `state` says how far to trust them.
    """

    def __init__(
        self,
        options: Options | None = None,
        *,
        node: str | None = None,
        routes: Iterable[Route] = (),
        applications: Iterable[ApplicationRoute] = (),
    ) -> None:
        self._options = options or Options()
        self._stats = Stats()
        self._hub = Hub(self._stats)
        self._view = View(self._options, self._hub, self._stats)
        self._request_listeners: list[RequestListener] = []
        self._runner = Runner(self._options, self._view, self._hub, self._stats, self._request_listeners)
        self._publication = None if node is None else self._published(node, routes, applications)

    async def __aenter__(self) -> Self:
        await self._runner.enter(self._publication)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        who = "an observer" if self._view.node is None else repr(self._view.node)
        return f"<Registrar of {who} in cluster {self._options.cluster!r}: {self.state.value}>"

    # Membership

    async def register(
        self, node: str, routes: Iterable[Route] = (), applications: Iterable[ApplicationRoute] = ()
    ) -> None:
        """Join the cluster as `node`. When it returns, others can see it, and it knows the cluster and its own config.

        Raises:
            ValidationError: the name, a route or an application breaks a rule; nothing was sent.
            TakenError: another process holds the name; at once, or after `claim_timeout`.
            ConnectionFailedError: etcd could not be reached within `dial_timeout`, or refused.
            RegistrarError: this registrar is registered already.
            TerminatedError: it is closed.

        Cancelled or failed, it leaves nothing behind, and may be tried again.
        """
        await self._runner.enter(self._published(node, routes, applications))

    async def register_application_route(self, route: ApplicationRoute) -> None:
        """Publish an application of this node, or a change of its weight, mode, state, tags or version.

        When it returns, others can see it. While etcd is silent it waits, for at most `request_timeout`.

        Raises:
            ValidationError: the route breaks a rule, or is not of this node; nothing was sent.
            ConnectionFailedError: it could not be written in time. It then counts as not published, and is taken back
                should it turn out to have been written. So too when it is cancelled.
            RegistrarError: this registrar is not registered. TerminatedError: it is closed.
        """
        registration = self._runner.registration
        await self._runner.attend(registration.publish(route), undo=registration.take_back)

    async def unregister_application_route(self, name: str) -> None:
        """Withdraw an application of this node. One that is not published is no error. Raises as the above."""
        registration = self._runner.registration
        await self._runner.attend(registration.unpublish(name), undo=registration.take_back)

    async def drain(self, name: str) -> None:
        """Take an application of this node out of the choice: publish its route with a weight of -1.

        Nobody is told to come here any more, Go nodes neither, and who is here already may finish. It stays drained,
        whatever becomes of the session, until `undrain`, or until its route is registered again with a weight, which
        is the newer word. Drained already, or of a negative weight anyway, it stays as it is.

        Raises `NoRouteError` if this node does not publish it, and as `register_application_route`: when this fails or
        is cancelled, the weight stays, or is put back.
        """
        registration = self._runner.registration
        await self._runner.attend(registration.drain(name), undo=registration.take_back)

    async def undrain(self, name: str) -> None:
        """Publish the route as it was before `drain`. One that is not drained stays as it is. Raises as `drain`."""
        registration = self._runner.registration
        await self._runner.attend(registration.undrain(name), undo=registration.take_back)

    async def close(self) -> None:
        """Leave the cluster, so that this node is gone for others at once, and end every task and subscription.

        Takes at most `close_timeout`, with etcd there or not; without it, the lease ends by itself. May be called
        again, and at any time. Cancelled, it goes on to its end, and only then raises the cancellation.
        """
        await self._runner.close()

    # Who is there

    async def nodes(self) -> list[str]:
        """Return the names of the other nodes, sorted."""
        self._runner.refuse_unread()
        return self._view.mirror.nodes()

    async def resolve(self, node: str) -> list[Route]:
        """Return how to reach a node, the own one too. Raise `NoRouteError` if it is not there."""
        self._runner.refuse_unread()
        return self._view.resolve(node)

    async def resolve_application(
        self,
        name: str,
        *,
        state: ApplicationState | Iterable[ApplicationState] | None = None,
        tags: Iterable[str] = (),
        without_tags: Iterable[str] = (),
        include_self: bool = False,
    ) -> list[ApplicationRoute]:
        """Return where an application is, best first: [0] is the weighted pick, the others to fall back on.

        Running ones come before others, suspects last. A negative weight is never returned; the own route only with
        `include_self`. Of the rest, those in `state` (one or several; None: in any), with all of `tags` and with none
        of `without_tags`.

        Each call moves the round robin on by one, that of its filter: each filter has a fair one of its own.

        Raises:
            NoRouteError: there is none; it says whether none is there, or which filter left none over.
            ValidationError: a name, state or tag cannot be one.
        """
        self._runner.refuse_unread()
        return self._view.resolve_application(name, described(state, tags, without_tags), include_self)

    async def pick(
        self,
        name: str,
        *,
        state: ApplicationState | Iterable[ApplicationState] | None = None,
        tags: Iterable[str] = (),
        without_tags: Iterable[str] = (),
        include_self: bool = False,
    ) -> ApplicationRoute:
        """Return the first of `resolve_application` alone, which is cheaper. Takes and raises the same."""
        if self._runner.values is UNREAD:  # asked so often that a call which refuses nothing would count
            self._runner.refuse_unread()
        plain = state is None and not tags and not without_tags
        return self._view.pick(name, EVERY if plain else described(state, tags, without_tags), include_self)

    async def wait_for(
        self,
        name: str,
        *,
        instances: int = 1,
        timeout: float | None = None,
        state: ApplicationState | Iterable[ApplicationState] | None = ApplicationState.RUNNING,
        tags: Iterable[str] = (),
        without_tags: Iterable[str] = (),
        include_self: bool = False,
    ) -> list[ApplicationRoute]:
        """Return where an application is, as soon as that many instances of it can be resolved.

        For a service that starts before what it needs. It returns what `resolve_application` returns with these
        filters, but unlike that wants running ones unless told otherwise: only they can serve. `timeout` is in seconds,
        0 to look once; None is `request_timeout`. Nothing is asked of etcd: the watch tells.

        Raises:
            WaitTimeoutError: there were fewer when the time was over; it says how many, and what the others lack.
            RegistrarError: this registrar was not entered. TerminatedError: it is closed, also while this waits.

        Cancelled, it leaves nothing behind.
        """
        self._runner.refuse_unread()
        if not isinstance(instances, int) or instances < 1:
            raise ValidationError("instances", instances, "must be a number of instances, at least 1")
        timeout = self._options.request_timeout if timeout is None else timeout
        check_seconds("timeout", timeout, 0)
        wanted = described(state, tags, without_tags)
        return await self._runner.attend(self._view.wait_for(name, wanted, include_self, instances, timeout))

    async def resolve_proxy(self, node: str) -> list[Route]:
        """Raise `NoRouteError`: this registrar keeps no proxy routes, as the reference keeps none."""
        raise NoRouteError(f"no proxy route to {node!r}: an etcd registrar has none")

    async def register_proxy(self, to: str) -> None:
        """Raise `UnsupportedError`, as the reference does."""
        raise UnsupportedError(f"cannot register a proxy to {to!r}: an etcd registrar has none")

    async def unregister_proxy(self, to: str) -> None:
        """Raise `UnsupportedError`, as the reference does."""
        raise UnsupportedError(f"cannot unregister a proxy to {to!r}: an etcd registrar has none")

    @property
    def resolver(self) -> Resolver:
        """The part of this registrar that finds others: itself."""
        return self

    # Configuration

    async def config_item(self, item: str) -> Value:
        """Return the effective value of a configuration item. Raise `UnknownItemError` if no level has it."""
        try:
            return self._runner.values[item]
        except (KeyError, TypeError):  # there is none, or it is no name, or nothing can be asked
            self._runner.refuse_unread()
            return self._view.config.value(check_name("item", item))

    async def config(self, *items: str) -> dict[str, Value]:
        """Return the effective values of those items that exist; without any, of every item there is."""
        self._runner.refuse_unread()
        return self._view.config.effective([check_name("item", item) for item in items])

    async def explain(self, item: str) -> tuple[ConfigSource, ...]:
        """Return what each of the four levels says about an item, the deciding order first to last."""
        self._runner.refuse_unread()
        return self._view.config.explain(check_name("item", item))

    async def settings(self, settings: type[T], *, prefix: str = "") -> T:
        """Return an object of a msgspec Struct, a dataclass or a pydantic model, filled from the effective values.

        Item `database.port` is for field `port` of the class of field `database`; with a `prefix` of "shop" that is
        `shop.database.port`. Values are converted strictly, save that an int will do for a float; a str will do for
        an Enum, a Literal and whatever else is written as text, such as a UUID. What no item gives, the class's
        defaults do. Items that no field asks for are of no interest.

        Raises:
            SettingsError: the configuration does not fill it; with every problem at once.
            ValidationError: it is no such class, or has a field that no configuration could fill.
            RegistrarError: this registrar was not entered. TerminatedError: it is closed.
        """
        plan = Plan(settings, prefix)
        self._runner.refuse_unread()
        return plan.make(plan.find(self._view.config.source))

    def bind(self, settings: type[T], *, prefix: str = "") -> LiveSettings[T]:
        """Return settings that follow the configuration, in `async with`, which raises what `settings` raises.

        `ValidationError` is raised at once. The registrar must be entered before they are.
        """
        return LiveSettings(Plan(settings, prefix), self._source, self._updates, self._about_settings)

    def _updates(self) -> Subscription:
        self._runner.refuse_unread()
        return self.subscribe(ConfigUpdate)

    def _source(self, item: str) -> ConfigSource | None:
        return self._view.config.source(item)  # of the mirror that there is then

    def _about_settings(self) -> dict[str, object]:
        return about("settings_invalid", self._options.cluster, self._view.node, revision=self.revision)

    async def set_config(
        self,
        item: str,
        value: Value,
        *,
        level: ConfigLevel,
        node: str | None = None,
        expect: Value | msgspec.UnsetType | None = msgspec.UNSET,
    ) -> int:
        """Put a configuration item at one level, and return the revision of etcd that this made.

        `node` is for whom, at the two levels of a node; without it, for this one. `expect` is what must stand there:
        a str is the exact text in etcd (`"int:5"`), an int, float or bool whatever text is read as it, None nothing.
        Without it, whatever stands there is replaced. When it returns, and etcd's changes reach this registrar, the
        new value can be read here too; elsewhere after `wait_revision`. Takes at most `request_timeout`.

        Raises:
            ValidationError: a name, the level or the value breaks a rule, or the value is a str that would be read back
                as something else; nothing was sent.
            ConflictError: what stands there is not as expected; nothing was written.
            ConnectionFailedError: etcd refused, or could not be reached in time. Where it may have been written all
                the same, the message says so.
            RegistrarError: this registrar was not entered. TerminatedError: it is closed.

        Cancelled, it may have been written, or may not.
        """
        if value is None:
            raise ValidationError("value", value, "must be an int, a float, a bool or a str; unset_config deletes")
        return await self._configure(item, value, level, node, expect)

    async def unset_config(
        self,
        item: str,
        *,
        level: ConfigLevel,
        node: str | None = None,
        expect: Value | msgspec.UnsetType | None = msgspec.UNSET,
    ) -> int:
        """Delete a configuration item at one level, so that the next level that has it decides.

        Return the revision of etcd as of which it is gone. One that is not there is no error, unless `expect` says
        what should be. All else is as with `set_config`.
        """
        return await self._configure(item, None, level, node, expect)

    async def _configure(
        self,
        item: str,
        value: Value | None,
        level: ConfigLevel,
        node: str | None,
        expect: Value | msgspec.UnsetType | None,
    ) -> int:
        self._runner.refuse_unread()
        if node is None and level in NODE_LEVELS:
            node = self._view.node
        return await self._runner.attend(
            self._runner.configure(ConfigChange(ConfigKey(level, item, node), value, expect))
        )

    # Changes

    def subscribe(
        self, *event_types: type[Event], maxsize: int = DEFAULT_MAXSIZE, replay: bool = False
    ) -> Subscription:
        """Return a subscription to events of these types, to every event without any, from now on.

        `maxsize` is how many events may wait to be read before `EventsMissed` takes the place of more. With `replay`
        it starts with the present state as events, and goes on without a gap or a repetition. May be called before
        entering. Raise `ValidationError` or `TerminatedError`.
        """
        self._runner.refuse_ended()
        return self._hub.subscribe(event_types, maxsize, self._view.state_events() if replay else ())

    # About itself

    @property
    def options(self) -> Options:
        """The options it was made with."""
        return self._options

    @property
    def node(self) -> str | None:
        """The name it is registered under, None for an observer."""
        return self._view.node

    @property
    def state(self) -> State:
        """Where the registrar is in its life; each state says what it means to the caller."""
        return self._runner.state

    @property
    def revision(self) -> int:
        """The newest revision of etcd that is known here, 0 before the first."""
        return self._view.revision

    @property
    def staleness(self) -> float:
        """Seconds since etcd last proved that what is read here is all there is; infinite before the first time.

        While `CONNECTED` it is proved anew about every third of `lease_ttl`, and never older than `lease_ttl`.
        """
        return self._view.staleness

    async def wait_revision(self, revision: int) -> None:
        """Return when everything up to a revision of etcd is known here: what was written by then can be read.

        For a revision that came with the answer to a write, of whomever. Waits for at most `request_timeout`.

        Raises:
            ConnectionFailedError: etcd did not prove it in time, or has no such revision yet.
            RegistrarError: this registrar was not entered. TerminatedError: it is closed.
        """
        self._runner.refuse_unread()
        await self._runner.attend(self._runner.wait_revision(revision))

    def health(self) -> Health:
        """Return how this registrar is, from memory: made for a probe, and never raising but for a forked copy.

        As `stats`, it may be called from any thread.
        """
        return self._runner.health()

    @property
    def stats(self) -> Stats:
        """The counters as they are now."""
        return self._stats.copy()

    def on_request(self, listener: RequestListener) -> None:
        """Have `listener` called, in the event loop, after each request to etcd from now on; for a metrics library.

        It is given what was asked for ("keep alive", "read" and some more; they are listed in the reference), the
        seconds that it took, and how it ended: "ok", "unreachable", "refused", "compacted", "too large", "lease gone",
        "cancelled", or "error" for a bug. It must not block. What it raises goes to the event loop's exception handler.
        """
        self._request_listeners.append(listener)

    def info(self) -> RegistrarInfo:
        """Return what this registrar is and can do, and the etcd endpoint in use."""
        return self._runner.info()

    def version(self) -> Version:
        """Return the name and version of this registrar."""
        return VERSION

    def _published(self, node: str, routes: Iterable[Route], applications: Iterable[ApplicationRoute]) -> Publication:
        options = self._options
        return Publication.of(options.cluster, options.application_route_layout, node, routes, applications)
