"""The life behind the facade: one task that owns every other, the session's state, and the way in and out.

`enter` runs in the caller's task, so that cancelling the caller cancels the claim; what must live on afterwards runs in
the runner's task group, so that `register` and `close` may be awaited from different tasks. An exception that nobody
expects ends the runner, and with it every subscription and call, with its cause.
"""

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from itertools import chain, repeat
from types import MappingProxyType
from typing import Any, Never, TypeVar

import anyio
import anyio.abc

from ergo_registrar.clock import now
from ergo_registrar.core.change import ConfigChange
from ergo_registrar.core.records import Record
from ergo_registrar.core.registration import Publication
from ergo_registrar.core.session import Announcement, Input, State, advance
from ergo_registrar.errors import ConnectionFailedError, RegistrarError, TerminatedError
from ergo_registrar.etcd.claim import Lease
from ergo_registrar.etcd.configuration import Configuration
from ergo_registrar.etcd.connection import Connection
from ergo_registrar.etcd.lease import Registration
from ergo_registrar.etcd.shield import finish, was_cancelled
from ergo_registrar.etcd.watch import Change, Watcher
from ergo_registrar.events import RegistrarConnected, RegistrarDisconnected, Value
from ergo_registrar.forks import forget_in_copies, generation, refuse_copied_grpc, refuse_copy
from ergo_registrar.health import Health
from ergo_registrar.logs import StateLog, Throttle, about, since
from ergo_registrar.options import Options
from ergo_registrar.routes import RegistrarInfo
from ergo_registrar.stats import RequestListener, Stats
from ergo_registrar.subscription import Hub
from ergo_registrar.version import VERSION
from ergo_registrar.view import View

_log = logging.getLogger(__name__)

T = TypeVar("T")

_ASK_PAUSES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)  # seconds before etcd is asked again how far it is, for one who waits
_LAGS = 10  # how often within a lease period the event loop's lag is measured
_LAG_SHARE = 0.2  # of the lease: from there on a lag is warned of. What is measured may be shorter by a tenth
_READ = (State.CONNECTED, State.SUSPENDED, State.LOST)  # the cluster is known, though perhaps not as it is now
UNREAD: Mapping[str, Value] = MappingProxyType({})
_DEPART_SHARE = 0.8  # of close_timeout; the rest is for ending tasks and the channel


class _Job:
    """A task of the runner's that can be ended by itself."""

    def __init__(self, tasks: anyio.abc.TaskGroup, work: Callable[[], Awaitable[None]]) -> None:
        self._scope = anyio.CancelScope()
        self._done = asyncio.Event()
        tasks.start_soon(self._run, work)

    async def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            with self._scope:
                await work()
        finally:
            self._done.set()

    async def end(self) -> None:
        """Cancel the task and wait until it is over."""
        self._scope.cancel()
        await self._done.wait()


class _Session:
    """What exists between entering and leaving: a connection, and the tasks on it, once they `began`."""

    tasks: anyio.abc.TaskGroup

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.began = asyncio.Event()
        self.registration: Registration | None = None
        self.watcher: Watcher | None = None
        self.keeping: _Job | None = None
        self.watching: _Job | None = None

    async def stop_keeping(self) -> None:
        """End what keeps the session alive, if there is anything."""
        keeping, self.keeping = self.keeping, None
        if keeping is not None:
            await keeping.end()

    async def stop_watching(self) -> None:
        """End the watch, if there is one."""
        watching, self.watching = self.watching, None
        if watching is not None:
            await watching.end()


class Runner:
    """Runs one registrar: gets it in, keeps it there, and gets it out."""

    def __init__(
        self,
        options: Options,
        view: View,
        hub: Hub,
        stats: Stats,
        listeners: Sequence[RequestListener],
        *,
        clock: Callable[[], float] = now,
    ) -> None:
        self.values: Mapping[str, Value] = UNREAD
        """The effective configuration, for as long as there is something to answer from; else nothing."""
        self._state: State = State.NEW
        self._reason: Exception | None = None  # why it is not connected
        self._born = generation()
        forget_in_copies(self)
        self._options = options
        self._view = view
        self._hub = hub
        self._stats = stats
        self._listeners = listeners
        self._clock = clock
        self._entering = asyncio.Lock()
        self._attended: set[asyncio.Task[Any]] = set()
        self._task: asyncio.Task[None] | None = None
        self._session: _Session | None = None
        self._leaving = asyncio.Event()
        self._suspects_changed = asyncio.Event()
        self._lease_silent = False
        self._blind_since: float | None = None  # when the watch broke, None while it shows every change
        self._cause: BaseException | None = None
        self._covered = 0  # etcd's revision when it last confirmed the lease before it proved that nothing is missing
        self._lags: deque[float] = deque(maxlen=_LAGS)
        self._lag_due = math.inf  # when the lag is measured next
        self._state_log = StateLog(_log, lambda: self._about("state_changed"), clock)
        self._lags_told = Throttle(2, 600.0, clock)

    # In and out

    async def enter(self, publication: Publication | None) -> None:
        """Become a member, or an observer without a publication; see `Registrar.register` for what is raised."""
        async with self._entering:
            self.refuse_ended()
            refuse_copied_grpc()
            if self._session is not None and (publication is None or self._session.registration is not None):
                raise RegistrarError(f"this registrar is in the cluster already, as {self._view.node or 'an observer'}")
            fresh = self._session is None
            session = self._session or self._begin()
            try:
                await self.attend(self._join(session, publication))
            except BaseException as error:  # also cancelled: nothing may be left behind
                await finish(self._retreat(session, fresh, error if isinstance(error, Exception) else None))
                raise
            self._advance(Input.ENTERED)
            if session.registration is not None and not session.registration.held:
                self._advance(Input.EXPIRED, ConnectionFailedError("the lease ended while the cluster was being read"))

    async def attend(self, work: Coroutine[Any, Any, T], undo: Callable[[T], None] | None = None) -> T:
        """Await what a caller asked for. Should the registrar end meanwhile, cancel it and raise `TerminatedError`.

        `undo` is called with the result when it was there already, and the caller was cancelled in that moment.
        """
        task = asyncio.create_task(work)
        self._attended.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if undo is not None and task.done() and not task.cancelled() and task.exception() is None:
                undo(task.result())
            if not await was_cancelled():
                self.refuse_ended()
            raise
        finally:
            self._attended.discard(task)

    async def close(self) -> None:
        """Leave the cluster and end everything, within `close_timeout`. Cancelled, it goes on to its end."""
        refuse_copy(self._born)
        was = self._state
        self._advance(Input.CLOSE)
        if was is State.NEW or self._task is None:
            self._hub.end()
        else:
            await finish(self._leave(self._task))

    async def _leave(self, task: asyncio.Task[None]) -> None:
        await self._dismiss()
        if not self._leaving.is_set():
            async with self._entering:  # one that is entering takes back what it claimed, over the connection
                self._leaving.set()
        await asyncio.wait({task})

    @property
    def registration(self) -> Registration:
        """The registration. Raise `RegistrarError` where there is none."""
        self.refuse_ended()
        if self._session is None or self._session.registration is None:
            raise RegistrarError("this registrar is not registered: await register(node, ...) first")
        return self._session.registration

    @property
    def endpoint(self) -> str:
        """The etcd endpoint in use, empty while there is none."""
        session = self._session
        return session.connection.endpoint if session else ""

    def refuse_ended(self) -> None:
        """Raise `TerminatedError` if the registrar is closed, or died, or is the copy that a fork made."""
        refuse_copy(self._born)
        if self._cause is not None:
            raise TerminatedError(f"the registrar died of a bug: {self._cause!r}") from self._cause
        if self._state in (State.CLOSING, State.CLOSED):
            raise TerminatedError("the registrar is closed; make a new one to begin again")

    @property
    def state(self) -> State:
        """Where the registrar is in its life. Connected only while the last proof of that is not too old."""
        return State.SUSPENDED if self._state is State.CONNECTED and self._unproven else self._state

    @property
    def _unproven(self) -> str | None:
        """Why it cannot be called connected, although nothing told us yet: the loop stood still, or the machine."""
        left = self._lease_left
        if left is not None and left <= 0:
            return f"etcd confirmed the lease {-left:.1f} s too long ago"
        if self._view.staleness > self._options.lease_ttl:
            return f"etcd last proved {self._view.staleness:.1f} s ago that nothing is missing here"
        return None

    def _doubt(self) -> None:
        """Take note that the last proof is too old: the grace of suspects stands still from that proof on."""
        if self._state is State.CONNECTED and (why := self._unproven):
            self._view.mirror.pause(self._clock() - self._view.staleness)
            self._advance(Input.SILENT, RegistrarError(why))

    def _ask(self) -> None:
        """Have etcd prove now that nothing is missing here."""
        if self._session is not None and self._session.watcher is not None:
            self._session.watcher.ask()

    @property
    def _lease_left(self) -> float | None:
        registration = self._held
        return registration.lease_left if registration else None

    @property
    def _held(self) -> Registration | None:
        session = self._session  # another thread may ask
        return session.registration if session else None

    @property
    def _lease(self) -> Lease | None:
        registration = self._held
        return registration.lease if registration else None

    @property
    def _revision_lag(self) -> int | None:
        lease = self._lease
        return None if lease is None else max(0, lease.revision - max(self._covered, self._view.revision))

    @property
    def _loop_lag(self) -> float:
        """Seconds that the event loop was late at most in the last lease period, or is by now."""
        return max(0.0, self._clock() - self._lag_due, *self._lags)

    def health(self) -> Health:
        """Return how the registrar is, from memory. Any thread may call it."""
        refuse_copy(self._born)
        state = self.state
        left = self._lease_left
        nodes, applications, instances = self._view.mirror.sizes()
        why = self._cause or self._reason or (self._unproven if self._state is State.CONNECTED else None)
        return Health(
            ok=state is State.CONNECTED,
            state=state,
            reason=None if state is State.CONNECTED or why is None else str(why) or repr(why),
            staleness=self._view.staleness,
            lease_left=None if left is None else max(0.0, left),
            loop_lag=self._loop_lag,
            revision=self._view.revision,
            revision_lag=self._revision_lag,
            nodes=nodes,
            applications=applications,
            instances=instances,
            config_items=self._view.config.size(),
            endpoint=self.endpoint,
        )

    async def wait_revision(self, revision: int) -> None:
        """Return when everything up to `revision` went in; see `Registrar.wait_revision`."""
        pauses = chain(_ASK_PAUSES, repeat(_ASK_PAUSES[-1]))
        timeout = self._options.request_timeout
        try:
            async with asyncio.timeout(timeout):
                while self._view.complete < revision or self._blind_since is not None:  # it may be another etcd then
                    self._ask()
                    await self._view.progress()
                    await asyncio.sleep(next(pauses))
        except TimeoutError:
            known = "the watch is broken" if self._blind_since else f"it did up to revision {self._view.complete}"
            raise ConnectionFailedError(
                f"etcd did not prove within {timeout:g} s that all up to revision {revision} is known here: {known}"
            ) from None

    async def configure(self, change: ConfigChange) -> int:
        """Change one item of the configuration, and wait until that is known here, too, if it is of this node."""
        assert self._session is not None  # else the cluster is not known, which the caller looked at
        at = change.at
        ends = self._clock() + self._options.request_timeout
        revision = await Configuration(self._session.connection, self._options, clock=self._clock).change(change)
        if at.level in self._view.levels and at.node in (None, self._view.node):
            left = ends - self._clock() if self.state is State.CONNECTED else 0.0
            with contextlib.suppress(TimeoutError):  # it stands in etcd, so a slow watch is no error
                async with asyncio.timeout(left):
                    while not self._view.config.reflects(at.level, at.item, revision, gone=change.value is None):
                        await self._view.progress()
        return revision

    def refuse_unread(self) -> None:
        """Raise unless the cluster was read, so that there is something to answer from."""
        if self.values is not UNREAD:
            return
        self.refuse_ended()
        if self._state in (State.NEW, State.CONNECTING):
            raise RegistrarError("the cluster is not known yet: enter `async with`, or await register(), first")

    def forget(self) -> None:
        """Answer nothing any more: this is the copy that a fork made."""
        self.values = UNREAD

    def _show(self) -> None:
        """Let what is asked most often, an item of the configuration, be one look into a dict."""
        readable = self._cause is None and self._state in _READ
        self.values = self._view.config.values if readable else UNREAD

    # What etcd tells, as the watcher's sink

    def listed(self, revision: int, found: dict[bytes, list[Record]], asked: float) -> None:
        """Take the whole of every prefix."""
        self._view.listed(revision, found, asked)
        self._show()
        self._covered = revision  # another etcd may be at a smaller one
        if self._session is not None and self._session.registration is not None:
            self._session.registration.listed(found[self._view.prefixes[0]])
        self._suspects_changed.set()

    def changed(self, prefix: bytes, changes: Sequence[Change]) -> None:
        """Take the changes of one revision after the other."""
        self._view.changed(prefix, changes)
        if self._session is not None and self._session.registration is not None:
            for _, records in changes:
                self._session.registration.seen(records)
        if self._options.suspect_grace:
            self._suspects_changed.set()

    def shown(self, revision: int, asked: float) -> None:
        """Take note that the watch shows every change. For an observer, who has no lease, this is the session."""
        self._view.shown(revision, asked)
        self._covered = (self._lease and self._lease.revision) or self._covered
        self._blind_since = None
        if self._session is None:
            return
        if self._session.registration is not None:
            if not self._lease_silent and self._unproven is None:
                self._advance(Input.PROVEN)
        else:
            self._advance(Input.CLAIMED if self._state is State.LOST else Input.PROVEN)

    def broken(self, reason: Exception) -> None:
        """Take note that the watch does not show every change. An observer loses its session when that lasts."""
        _log.debug("the watch broke: %s", reason, extra=self._about("watch_broken", reason=str(reason)))
        if self._session is None:
            return
        if self._blind_since is None:
            self._blind_since = self._clock()
        is_member = self._session.registration is not None
        if is_member or self._clock() - self._blind_since < self._options.lease_ttl:
            self._advance(Input.SILENT, reason)
        else:
            self._advance(Input.EXPIRED, reason)

    def _told(self, happened: Input, reason: Exception | None) -> None:
        """Take note of what happened to a member, who is connected only while the lease and the watch both are."""
        self._lease_silent = happened is Input.SILENT
        if happened is Input.PROVEN:
            self._confirm()
        if happened is Input.PROVEN and (self._blind_since is not None or self._unproven is not None):
            return
        if happened is Input.EXPIRED and self._session is not None and self._session.watcher is not None:
            self._session.watcher.skip()
        why_blind = self._reason or ConnectionFailedError("the watch is not back yet")
        self._advance(happened, reason)
        if happened is Input.CLAIMED:
            if self._blind_since is not None:
                self._advance(Input.SILENT, why_blind)
            self._doubt()
            self._ask()

    def _confirm(self) -> None:
        """Let the watch know what etcd said of its revision when it confirmed the lease."""
        lease = self._lease
        if lease is not None and self._session is not None and self._session.watcher is not None:
            self._session.watcher.confirmed(lease.revision, lease.proven)

    # The steps of entering

    def _begin(self) -> _Session:
        """Start the runner's task for a new session."""
        self._advance(Input.START)
        self._leaving.clear()
        self._blind_since, self._lease_silent = None, False
        session = self._session = _Session(
            Connection(
                self._options, self._stats, clock=self._clock, listeners=self._listeners, lag=lambda: self._loop_lag
            )
        )
        self._task = asyncio.create_task(self._run(session), name="ergo_registrar")
        return session

    async def _join(self, session: _Session, publication: Publication | None) -> None:
        await session.began.wait()
        await session.connection.look(timeout=self._options.dial_timeout)
        if publication is not None:
            registration = Registration(
                session.connection,
                self._options,
                publication,
                self._told,
                self._view.adopt,
                self._known,
                self._stats,
                clock=self._clock,
            )
            await registration.claim()
            session.registration = registration
            await session.stop_keeping()
            session.keeping = _Job(session.tasks, registration.keep)  # reading the cluster may outlast the lease
        await self._watch(session, None if publication is None else publication.node)

    async def _known(self, revision: int, seconds: float) -> None:
        """Wait until a change of ours is known here too; it stands in etcd, so a slow watch is no error."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds if self.state is State.CONNECTED else 0):
                await self._view.reached(revision)

    async def _watch(self, session: _Session, node: str | None) -> None:
        """Read the cluster as this node sees it, and follow it from there, instead of what was followed before."""
        await session.stop_watching()
        watcher = session.watcher = self._watcher(session, node)
        await watcher.start()
        session.watching = _Job(session.tasks, watcher.run)

    def _watcher(self, session: _Session, node: str | None) -> Watcher:
        return Watcher(
            session.connection,
            self._view.aim(node),
            self,
            self._stats,
            timeout=self._options.request_timeout,
            beat=self._options.lease_ttl / 3,
            clock=self._clock,
        )

    async def _retreat(self, session: _Session, fresh: bool, reason: Exception | None) -> None:
        """Undo an `enter` that failed: be as before it. An observer reads everything anew."""
        if fresh and self._task is not None:
            self._leaving.set()
            await asyncio.wait({self._task})
        elif self._session is session:
            await session.stop_keeping()
            if session.registration is not None:
                await session.registration.depart(self._options.close_timeout * _DEPART_SHARE)
                session.registration = None
            await session.stop_watching()
            session.watcher = self._watcher(session, None)
            session.watching = _Job(session.tasks, session.watcher.run)
        if self._cause is None:
            self._advance(Input.REFUSED, reason)

    # The task

    async def _run(self, session: _Session) -> None:
        try:
            async with anyio.create_task_group() as session.tasks:
                if self._options.suspect_grace:
                    session.tasks.start_soon(self._end_suspicions)
                session.tasks.start_soon(self._heed_lag)
                session.began.set()
                await self._leaving.wait()
                session.tasks.cancel_scope.cancel()
        except asyncio.CancelledError:  # the loop is being shut down around a registrar nobody closed
            self._advance(Input.CLOSE)
            raise
        except Exception as error:  # noqa: BLE001  # a bug: nothing may die silently, and everyone is told
            self._cause = _innermost(error)
            _log.critical("the registrar died of a bug", exc_info=self._cause, extra=self._about("crashed"))
            self._advance(Input.CRASHED)
        finally:
            await finish(self._put_away(session))

    async def _dismiss(self) -> None:
        """Cancel every call under way, and wait until it has put away what it began."""
        under_way = set(self._attended)
        for call in under_way:
            call.cancel()
        if under_way:
            await asyncio.wait(under_way)

    async def _put_away(self, session: _Session) -> None:
        self._session = None
        try:
            await self._dismiss()
            if session.registration is not None:
                timeout = self._options.close_timeout * _DEPART_SHARE
                session.connection.log_in_at_once()
                async with asyncio.timeout(timeout):
                    await session.registration.depart(timeout)
        except TimeoutError:
            _log.warning(
                "could not leave etcd in time; others will see this node until its lease ends",
                extra=self._about("leave_timed_out"),
            )
        finally:
            await session.connection.close()
            if self._state is State.CLOSING:
                self._advance(Input.ENDED)
            if self._state in (State.CLOSED, State.FAILED):
                self._hub.end(self._cause)

    async def _end_suspicions(self) -> None:
        while True:
            self._suspects_changed.clear()
            self._doubt()
            pause = self._view.tick()
            with anyio.move_on_after(pause):
                await self._suspects_changed.wait()

    async def _heed_lag(self) -> Never:
        """Measure how late the event loop is. What blocks it costs the lease, so it is told of before that."""
        try:
            while True:
                self._lag_due = self._clock() + self._options.lease_ttl / _LAGS
                await asyncio.sleep(self._options.lease_ttl / _LAGS)
                late = max(0.0, self._clock() - self._lag_due)
                self._lags.append(late)
                self._state_log.catch_up()
                if late >= self._options.lease_ttl * _LAG_SHARE:
                    self._heed(late)
        finally:
            self._lag_due = math.inf

    def _heed(self, late: float) -> None:
        """See to it that a loop that stood still costs no more than it has: renew the lease, and have all proved."""
        self._tell_of_lag(late)
        self._doubt()
        if self._session is not None and self._session.registration is not None:
            self._session.registration.hurry()
        self._ask()

    def _tell_of_lag(self, late: float) -> None:
        count = self._lags_told.note()
        if count is not None:
            ttl = self._options.lease_ttl
            _log.warning(
                "the event loop stood still for %.1f s: something blocked it, or the machine slept. "
                "When that lasts for the %g s of the lease, others see a member leave%s",
                late,
                ttl,
                since(count),
                extra=self._about("loop_lagged", loop_lag=late, lease_ttl=ttl, count=count),
            )

    def _about(self, record: str, **more: object) -> dict[str, object]:
        """Return the fields of a log record."""
        where = self.endpoint or None
        revision = self._view.revision
        return about(record, self._options.cluster, self._view.node, endpoint=where, revision=revision, **more)

    def _advance(self, happened: Input, reason: Exception | None = None) -> None:
        """Go where the table leads, and tell what it says. The grace of suspects runs only while connected."""
        transition = advance(self._state, happened)
        was, self._state = self._state, transition.state
        self._show()
        self._reason = None if self._state is State.CONNECTED else reason or self._reason
        if was is not self._state:
            self._state_log.changed(self._state, reason)
            if self._state is State.CONNECTED:
                self._view.mirror.resume(self._clock())
            elif was is State.CONNECTED:
                self._view.mirror.pause(self._clock())
            self._suspects_changed.set()
        if transition.announce is Announcement.CONNECTED:
            self._hub.publish([RegistrarConnected(info=self.info())])
        elif transition.announce is Announcement.DISCONNECTED:
            self._hub.publish([RegistrarDisconnected(reason=reason or RegistrarError("the session is lost"))])

    def info(self) -> RegistrarInfo:
        """Return what this registrar is and can do."""
        return RegistrarInfo(server=self.endpoint, version=VERSION)


def _innermost(error: BaseException) -> BaseException:
    """Return the one exception in a group of one, however deep."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
