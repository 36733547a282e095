"""One node name held in etcd for as long as it is wanted: keep its lease alive, revive or move it, mend it, depart.

The lease is the life of everything this process publishes. What is written, and under which guards, is `claim.py`'s;
when, and what becomes of the session meanwhile, is decided here.
"""

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Never

import msgspec

from ergo_registrar.clock import now
from ergo_registrar.core import keys
from ergo_registrar.core.backoff import delays
from ergo_registrar.core.records import Record
from ergo_registrar.core.registration import Drains, Publication, application_entry
from ergo_registrar.core.session import Input
from ergo_registrar.errors import ConnectionFailedError, RegistrarError, TakenError
from ergo_registrar.etcd.claim import Claim, Lease
from ergo_registrar.etcd.connection import BrokenError, Connection, LeaseGoneError
from ergo_registrar.etcd.shield import finish
from ergo_registrar.logs import about
from ergo_registrar.options import Options
from ergo_registrar.routes import ApplicationRoute
from ergo_registrar.stats import Stats

_log = logging.getLogger(__name__)

_CLAIM_PAUSE = 0.2  # seconds between two looks at a taken name
_MEND_PAUSE = 0.1  # seconds between two repairs
_REGAIN_TIMEOUT = 2.0  # seconds for one call of a try to come back: a connection that hangs must not hold it up
_RETRY_FIRST, _RETRY_MOST = 0.1, 1.0  # seconds between two tries for a lost session


class LeaseLostError(RegistrarError):
    """The lease is over. The reason of a `RegistrarDisconnected`, never raised to a caller."""


class Change(msgspec.Struct, frozen=True):
    """What was done to one key of ours: the value from then on, and the one before, None for no such key."""

    key: bytes
    value: bytes | None
    before: bytes | None


Notify = Callable[[Input, Exception | None], None]


class Registration:
    """A node name, the routes and applications under it, and the lease that carries them.

    `notify` is told, without delay, what happens to the session: an `Input` of the session's table and its reason.
    `claiming` is called with the name when it is free and about to be put: what the watch shows under it from then on
    is our own. `known` waits, for at most so many seconds, until the watch has shown a revision.
    """

    def __init__(
        self,
        connection: Connection,
        options: Options,
        publication: Publication,
        notify: Notify,
        claiming: Callable[[str], None],
        known: Callable[[int, float], Awaitable[None]],
        stats: Stats,
        *,
        clock: Callable[[], float] = now,
        rng: random.Random | None = None,
    ) -> None:
        self.node: str = publication.node
        self._options = options
        self._notify = notify
        self._claiming = claiming
        self._known = known
        self._clock = clock
        self._random = rng or random.Random()  # jitter is no secret
        self._stats = stats
        self._claim = Claim(connection, options.cluster, publication, clock, self._random)
        self._drains = Drains(options.cluster, options.application_route_layout, self.node)
        self._last: dict[bytes, Change] = {}  # the last change of each key: an earlier one is not to be taken back
        # The revision at which something of ours in etcd last came to be not as it should be, infinite for an unknown
        # one. What was put anew since is right: the watch may tell late of keys that went with the lease before.
        self._amiss: float = 0
        self._broken = False  # and could not be mended
        self._held = asyncio.Event()  # there is a lease, as far as we know
        self._woken = asyncio.Event()  # something is to be done at once

    async def claim(self) -> None:
        """Take the name, waiting up to `claim_timeout` for a crashed predecessor's lease to end.

        Raises:
            TakenError: someone else holds it.
            ConnectionFailedError: etcd cannot be used.

        Whatever was put is taken back when it fails or is cancelled.
        """
        ends = self._clock() + self._options.claim_timeout
        try:
            while True:
                try:
                    return await self._claim_once()
                except TakenError:
                    left = ends - self._clock()
                    if left <= 0:
                        raise
                    await asyncio.sleep(min(_CLAIM_PAUSE, left))
        except BaseException:  # also cancelled: a lease that nobody keeps would hold the name for its TTL
            await finish(self.revoke(self._options.close_timeout))
            raise

    async def keep(self) -> None:
        """Keep the name for as long as this runs: renew the lease, mend what others broke, come back when lost."""
        while True:
            try:
                await self._hold()
            except (LeaseLostError, TakenError) as lost:
                self._held.clear()
                self._notify(Input.STOLEN if isinstance(lost, TakenError) else Input.EXPIRED, lost)
                await self._regain(lost)
                self._notify(Input.CLAIMED, None)

    async def publish(self, route: ApplicationRoute) -> "Change":
        """Put an application's route, and wait until that is known here too.

        Raises `ValidationError`, or `ConnectionFailedError` when it could not be written in time: then it is not
        published, and taken back should it turn out to have been. So too when it is cancelled.
        """
        key, value = application_entry(self._options.cluster, self._options.application_route_layout, self.node, route)
        return await self._change(key, lambda _: value)

    async def unpublish(self, name: str) -> "Change":
        """Delete an application's route, and wait until that is known here too. Does nothing if there is none.

        Raises `ConnectionFailedError` when it could not be deleted in time: then it goes on being published.
        """
        key = self._key(name)
        if key not in self._claim.wanted and not self._claim.writing.locked():  # else it may be put back yet
            self._last[key] = Change(key, None, None)
            return self._last[key]
        return await self._change(key, lambda _: None)

    async def drain(self, name: str) -> "Change":
        """Publish an application with a negative weight. Raises as `publish`, and `NoRouteError` if it is not there."""
        return await self._change(self._key(name), lambda value: self._drains.drain(name, value))

    async def undrain(self, name: str) -> "Change":
        """Publish an application as it was before `drain`. Raises as that."""
        return await self._change(self._key(name), lambda value: self._drains.undrain(name, value))

    def _key(self, name: str) -> bytes:
        return keys.application_key(self._options.cluster, keys.check_name("name", name), self.node)

    def take_back(self, change: "Change") -> None:
        """Let a change not have been, unless another came after it: what it may have written is put right."""
        if self._last.get(change.key) is change:
            self._want(change.key, change.before)
            self._claim.strays.add(change.key)
            self._is_amiss()

    @property
    def held(self) -> bool:
        """Whether there is a lease, as far as is known here."""
        return self._held.is_set()

    @property
    def lease(self) -> Lease | None:
        """The lease, as etcd last confirmed it; None without one."""
        return self._claim.lease

    @property
    def lease_left(self) -> float | None:
        """Seconds until the lease may be over unless etcd confirms it, negative once it may be; None without one."""
        lease = self._claim.lease
        return None if lease is None else lease.ends - self._clock()

    def hurry(self) -> None:
        """Look at once whether the lease is due: timers may be late."""
        self._woken.set()

    def listed(self, records: Iterable[Record]) -> None:
        """Take note of everything that stands under our routes' prefix, as `seen`."""
        found = {record.key: record for record in records}
        self._claim.put_at = 0  # it may be another etcd, which is not that far
        self.seen(found.values())
        if not self._claim.wanted.keys() <= found.keys():
            self._is_amiss()

    def seen(self, records: Iterable[Record]) -> None:
        """Take note of changes in etcd, and wake the keeper where a key of ours is not what we put there."""
        for record in records:
            if self._claim.is_amiss(record):
                self._is_amiss(record.mod_revision if record.key in self._claim.wanted else math.inf)

    async def depart(self, timeout: float) -> None:
        """Leave a departure marker and revoke the lease, so that this node is gone for everyone at once.

        Takes at most `timeout` seconds. Without a marker it looks like a lease that ended; without the revoke the lease
        does end by itself.
        """
        if self._claim.lease is not None:
            try:
                await self._claim.leave_marker(self._claim.lease, timeout * 2 / 3)
            except RegistrarError as error:
                _log.debug("no departure marker for %s: %s", self.node, error, extra=self._about("no_marker", error))
        await self.revoke(timeout / 3)

    async def revoke(self, timeout: float) -> None:
        """End every lease of ours in at most `timeout` seconds, as far as etcd can be reached."""
        self._held.clear()
        await self._claim.revoke_all(timeout)

    def _about(self, record: str, error: Exception) -> dict[str, object]:
        return about(record, self._options.cluster, self.node, reason=str(error))

    # Holding

    async def _hold(self) -> Never:
        """Renew and mend until the session is lost: `LeaseLostError` or `TakenError`."""
        pauses = self._pauses()
        while True:
            lease = self._claim.lease
            if lease is None:
                raise LeaseLostError("there is no lease")
            due = lease.proven + lease.ttl / 3
            await self._sleep(due - self._clock())
            self._woken.clear()
            try:
                if self._clock() >= due:
                    await self._renew(lease)
                if self._amiss > self._claim.put_at:
                    await self._mend(lease)
                    await asyncio.sleep(_MEND_PAUSE)  # against someone who breaks it again at once
                pauses = self._pauses()
            except (LeaseLostError, TakenError):
                raise
            except RegistrarError as error:
                extra = self._about("renewal_failed", error)
                _log.debug("%s tries again to hold its name: %s", self.node, error, extra=extra)
                await asyncio.sleep(next(pauses))

    async def _renew(self, lease: Lease) -> None:
        try:
            lives = await self._claim.renew(lease)
        except ConnectionFailedError as error:
            self._notify(Input.SILENT, error)
            if self._clock() >= lease.ends:
                raise LeaseLostError(f"etcd did not answer for the {lease.ttl:g} s of the lease: {error}") from error
            raise
        if not lives:
            raise LeaseLostError("etcd says that the lease is over: it expired or was revoked")
        self._stats.lease_renewals += 1
        if not self._broken:
            self._notify(Input.PROVEN, None)

    async def _mend(self, lease: Lease) -> None:
        """Put back what was deleted or changed by someone else, and delete what should not be there."""
        self._amiss = 0
        try:
            async with asyncio.timeout(lease.ttl / 3), self._claim.writing:  # the lease must not wait for a stuck write
                await self._claim.put(lease)
            self._stats.repairs += 1
            self._broken = False
            self._notify(Input.PROVEN, None)
        except TimeoutError:
            self._is_amiss()
        except LeaseGoneError as error:
            raise LeaseLostError("etcd does not know the lease any more") from error
        except ConnectionFailedError as error:
            self._is_amiss()
            self._broken = True
            self._notify(Input.SILENT, error)  # others may not see us, until it is mended
            raise

    async def _regain(self, told: Exception) -> None:
        """Try for the session again until it is there. A name in other hands is told once."""
        self._broken = False
        for pause in self._pauses():
            self._woken.clear()
            self._amiss = 0  # everything is put anyway
            try:
                if not await self._revive():
                    await self._claim_once(_REGAIN_TIMEOUT)
                    self._stats.re_registrations += 1
                return
            except TakenError as taken:
                if not isinstance(told, TakenError):
                    self._notify(Input.STOLEN, taken)
                    told = taken
                await self.revoke(_REGAIN_TIMEOUT)  # our applications must not stand under someone else's name
            except RegistrarError as error:
                self._notify(Input.SILENT, error)  # still lost, and this is why
                _log.debug("%s is not back yet: %s", self.node, error, extra=self._about("not_back", error))
            await self._sleep(pause)

    async def _revive(self) -> bool:
        """Go on with the lease there was, if it lives after all: then others saw nothing."""
        lease = self._claim.lease
        if lease is None or not self._claim.has(lease.id) or not await self._claim.renew(lease):
            return False
        async with self._claim.writing:
            await self._claim.put(lease, _REGAIN_TIMEOUT)
        self._held.set()
        return True

    # Writing

    async def _claim_once(self, timeout: float | None = None) -> None:
        """Put everything under a new lease, then revoke the ones before it."""
        async with self._claim.writing:
            lease = await self._claim.take(int(self._options.lease_ttl), lambda: self._claiming(self.node), timeout)
            self._stats.claims += 1
            self._held.set()
            # Not for long: nobody renews the new lease meanwhile, and the old ones end by themselves.
            await self._claim.revoke_others(lease, min(_REGAIN_TIMEOUT, lease.ttl / 3))

    async def _change(self, key: bytes, decide: Callable[[bytes | None], bytes | None]) -> "Change":
        """Put or delete one key of ours. `decide` is given its value, None where it has none, and returns the next."""
        timeout = self._options.request_timeout
        ends = self._clock() + timeout
        try:
            async with asyncio.timeout(timeout):
                await self._held.wait()
                await self._claim.writing.acquire()
        except TimeoutError:
            raise ConnectionFailedError(f"publish: {self.node} got no session within {timeout:g} s") from None
        try:
            before = self._claim.wanted.get(key)
            change = self._last[key] = Change(key, decide(before), before)
            if change.value is change.before is None:
                return change
            revision = await self._change_now(change, ends - self._clock())
        finally:
            self._claim.writing.release()
        try:
            await self._known(revision, ends - self._clock())
        except BaseException:  # cancelled
            self.take_back(change)
            raise
        return change

    async def _change_now(self, change: "Change", timeout: float) -> int:
        lease = self._claim.lease
        if lease is None:
            raise ConnectionFailedError(f"publish: {self.node} has just lost its session")
        self._want(change.key, change.value)  # first: the watch may be faster than the answer, and must find it right
        try:
            revision = await self._claim.change(lease, change.key, change.value, timeout)
        except BaseException as error:  # also cancelled
            if isinstance(error, BrokenError) or not isinstance(error, ConnectionFailedError):
                self.take_back(change)  # it may have been written, and must be as it was
            else:
                self._want(change.key, change.before)
            raise
        if revision is None:
            self._want(change.key, change.before)
            raise ConnectionFailedError(f"publish: the name {self.node} is in other hands at the moment")
        return revision

    def _want(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self._claim.wanted.pop(key, None)
        else:
            self._claim.wanted[key] = value

    # Waiting

    def _is_amiss(self, since: float = math.inf) -> None:
        self._amiss = max(self._amiss, since)
        self._woken.set()

    def _pauses(self) -> Iterator[float]:
        return delays(self._random, first=_RETRY_FIRST, most=_RETRY_MOST)

    async def _sleep(self, seconds: float) -> None:
        """Wait for so many seconds, or until something is to be done."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._woken.wait()
