"""One node name held in etcd: claim it, keep its lease alive, revive or move it, mend it, depart.

The lease is the life of everything this process publishes. Three guards make it safe:

- **Claim**: the keys are put only if nobody has the node's key (`CREATE(node key) == 0`).
- **Own**: every later write and delete holds only while the node's key hangs on a lease of ours.
- **Move**: everything is put under the new lease before the old one is revoked; the other way round looks like death.

Time is counted from when a request was sent, on the monotonic clock, so the own clock ends before etcd's does.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Never

import msgspec
from aetcd import transactions

from ergo_registrar.core import keys
from ergo_registrar.core.backoff import delays
from ergo_registrar.core.records import Record
from ergo_registrar.core.registration import MOST_BYTES, Publication, application_entry
from ergo_registrar.core.session import Input
from ergo_registrar.errors import ConnectionFailedError, RegistrarError, TakenError
from ergo_registrar.etcd.client import hangs_on, is_absent
from ergo_registrar.etcd.connection import BrokenError, Connection, LeaseGoneError
from ergo_registrar.etcd.shield import finish
from ergo_registrar.options import Options
from ergo_registrar.routes import ApplicationRoute
from ergo_registrar.stats import Stats

_log = logging.getLogger(__name__)

_OPERATIONS = 100  # in one transaction; etcd takes 128 (--max-txn-ops)
_MARKER_TTL = 60  # seconds a departure marker stands: long enough for a process that reads the cluster anew
_CLAIM_PAUSE = 0.2  # seconds between two looks at a taken name
_MOST_LEASES = 16  # remembered; one that failed to carry anything is long over when that many came after it
_MEND_PAUSE = 0.1  # seconds between two repairs
_REGAIN_TIMEOUT = 2.0  # seconds for one call of a try to come back: a connection that hangs must not hold it up
_RETRY_FIRST, _RETRY_MOST = 0.1, 1.0  # seconds between two tries for a lost session


class Lease(msgspec.Struct, frozen=True):
    """A lease as granted: etcd may grant more seconds than were asked for. `proven` is on the monotonic clock."""

    id: int
    ttl: float
    proven: float

    @property
    def ends(self) -> float:
        """When it may be over, unless it is renewed."""
        return self.proven + self.ttl


class LeaseLostError(RegistrarError):
    """The lease is over. The reason of a `RegistrarDisconnected`, never raised to a caller."""


Notify = Callable[[Input, Exception | None], None]


class Registration:
    """A node name, the routes and applications under it, and the lease that carries them.

    `notify` is told, without delay, what happens to the session: an `Input` of the session's table and its reason.
    `claiming` is called with the name when it is free and about to be put: what the watch shows under it from then on
    is our own.
    """

    def __init__(
        self,
        connection: Connection,
        options: Options,
        publication: Publication,
        notify: Notify,
        claiming: Callable[[str], None],
        stats: Stats,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.node: str = publication.node
        self._connection = connection
        self._options = options
        self._notify = notify
        self._claiming = claiming
        self._clock = clock
        self._random = rng or random.Random()  # jitter is no secret
        self._stats = stats
        self._node_key = publication.node_key
        self._wanted = dict(publication.entries)
        self._strays: set[bytes] = set()
        self._lease: Lease | None = None
        self._leases: dict[int, None] = {}  # every lease of ours that may still live, the newest last
        self._granted: Lease | None = None  # one that was to carry everything, and does not yet
        self._broken = False  # something of ours was found wrong, and could not be mended
        self._writing = asyncio.Lock()
        self._held = asyncio.Event()  # there is a lease, as far as we know
        self._woken = asyncio.Event()  # something of ours in etcd is not as it should be

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

    async def publish(self, route: ApplicationRoute) -> int:
        """Put an application's route; return the revision from which on it is seen.

        Raises `ValidationError`, or `ConnectionFailedError` when it could not be written in time: then it is not
        published, and taken back should it turn out to have been.
        """
        return await self._change(
            *application_entry(self._options.cluster, self._options.application_route_layout, self.node, route)
        )

    async def unpublish(self, name: str) -> int:
        """Delete an application's route; return the revision from which on it is gone, 0 if there was none.

        Raises `ConnectionFailedError` when it could not be deleted in time: then it goes on being published.
        """
        key = keys.application_key(self._options.cluster, keys.check_name("name", name), self.node)
        return await self._change(key, None) if key in self._wanted else 0

    @property
    def held(self) -> bool:
        """Whether there is a lease, as far as is known here."""
        return self._held.is_set()

    def listed(self, records: Iterable[Record]) -> None:
        """Take note of everything that stands under our routes' prefix, as `seen`."""
        found = {record.key: record for record in records}
        self.seen(found.values())
        if not self._wanted.keys() <= found.keys():
            self._woken.set()

    def seen(self, records: Iterable[Record]) -> None:
        """Take note of changes in etcd, and wake the keeper where a key of ours is not what we put there."""
        suffix = b"/" + self.node.encode()
        for record in records:
            if not record.key.endswith(suffix):
                continue
            wanted = self._wanted.get(record.key)
            if wanted is not None:
                if record.value != wanted or record.lease not in self._leases:
                    self._woken.set()
            elif record.value is not None and record.lease in self._leases:
                self._strays.add(record.key)
                self._woken.set()

    async def depart(self, timeout: float) -> None:
        """Leave a departure marker and revoke the lease, so that this node is gone for everyone at once.

        Takes at most `timeout` seconds. Without a marker it looks like a lease that ended; without the revoke the lease
        does end by itself.
        """
        if self._lease is not None:
            marker = keys.leaving_key(self._options.cluster, self.node)
            try:
                lease = await self._grant(_MARKER_TTL, timeout / 3)
                put = transactions.Put(marker, b"", lease.id, prev_kv=True)
                held, answers = await self._commit("leave", [self._is_ours(self._lease.id)], [put], timeout=timeout / 3)
                if held:  # else the name has a successor, who does not leave
                    self._leases.pop(lease.id)
                    self._leases[answers[0].response_put.prev_kv.lease] = None  # of an earlier life's marker
            except RegistrarError as error:
                _log.debug("no departure marker for %s: %s", self.node, error)
        await self.revoke(timeout / 3)

    async def revoke(self, timeout: float) -> None:
        """End every lease of ours in at most `timeout` seconds, as far as etcd can be reached."""
        leases, self._leases, self._lease, self._granted = self._leases, {}, None, None
        leases.pop(0, None)
        self._held.clear()
        await asyncio.gather(*(self._revoke(lease, timeout) for lease in reversed(leases)))

    # Holding

    async def _hold(self) -> Never:
        """Renew and mend until the session is lost: `LeaseLostError` or `TakenError`."""
        pauses = self._pauses()
        while True:
            if self._lease is None:
                raise LeaseLostError("there is no lease")
            due = self._lease.proven + self._lease.ttl / 3
            await self._sleep(due - self._clock())
            try:
                if self._clock() >= due:
                    await self._renew(self._lease)
                if self._woken.is_set():
                    await self._mend(self._lease)
                    await asyncio.sleep(_MEND_PAUSE)  # against someone who breaks it again at once
                pauses = self._pauses()
            except (LeaseLostError, TakenError):
                raise
            except RegistrarError as error:
                _log.debug("%s tries again to hold its name: %s", self.node, error)
                await asyncio.sleep(next(pauses))

    async def _renew(self, lease: Lease) -> None:
        sent = self._clock()
        try:
            ttl = await self._keep_alive(lease)
        except ConnectionFailedError as error:
            self._notify(Input.SILENT, error)
            if self._clock() >= lease.ends:
                raise LeaseLostError(f"etcd did not answer for the {lease.ttl:g} s of the lease: {error}") from error
            raise
        if ttl <= 0:
            self._leases.pop(lease.id, None)
            raise LeaseLostError("etcd says that the lease is over: it expired or was revoked")
        self._lease = Lease(lease.id, ttl, sent)
        self._stats.lease_renewals += 1
        if not self._broken:
            self._notify(Input.PROVEN, None)

    async def _mend(self, lease: Lease) -> None:
        """Put back what was deleted or changed by someone else, and delete what should not be there."""
        self._woken.clear()
        try:
            async with asyncio.timeout(lease.ttl / 3), self._writing:  # the lease must not wait for a stuck write
                await self._put_all(lease)
            self._stats.repairs += 1
            self._broken = False
            self._notify(Input.PROVEN, None)
        except TimeoutError:
            self._woken.set()
        except LeaseGoneError as error:
            raise LeaseLostError("etcd does not know the lease any more") from error
        except ConnectionFailedError as error:
            self._woken.set()
            self._broken = True
            self._notify(Input.SILENT, error)  # others may not see us, until it is mended
            raise

    async def _regain(self, told: Exception) -> None:
        """Try for the session again until it is there. A name in other hands is told once."""
        self._broken = False
        for pause in self._pauses():
            self._woken.clear()
            try:
                if not await self._revive():
                    await self._claim_once(_REGAIN_TIMEOUT)
                return
            except TakenError as taken:
                if not isinstance(told, TakenError):
                    self._notify(Input.STOLEN, taken)
                    told = taken
                await self.revoke(_REGAIN_TIMEOUT)  # our applications must not stand under someone else's name
            except RegistrarError as error:
                _log.debug("%s is not back yet: %s", self.node, error)
            await self._sleep(pause)

    async def _revive(self) -> bool:
        """Go on with the lease there was, if it lives after all: then others saw nothing."""
        lease = self._lease
        if lease is None or lease.id not in self._leases:
            return False
        sent = self._clock()
        ttl = await self._keep_alive(lease)
        if ttl <= 0:
            self._leases.pop(lease.id, None)
            return False
        async with self._writing:
            await self._put_all(lease, timeout=_REGAIN_TIMEOUT)
        self._lease = Lease(lease.id, ttl, sent)
        self._held.set()
        return True

    # Writing

    async def _claim_once(self, timeout: float | None = None) -> None:
        """Put everything under a new lease, then revoke the ones before it."""
        async with self._writing:
            holder = await self._connection.call("claim", lambda c: c.get(self._node_key), timeout=timeout)
            if holder is not None and holder.lease not in self._leases:
                raise await self._taken(holder.lease)
            lease, self._granted = self._granted, None
            if lease is None or lease.id not in self._leases or self._clock() > lease.proven + lease.ttl / 2:
                lease = await self._grant(int(self._options.lease_ttl), timeout)
            self._granted = lease  # for the next try, should this one fail
            self._claiming(self.node)
            try:
                await self._put_all(lease, timeout=timeout)
            except TakenError:  # someone was faster; after any other error the keys may be under the new lease
                await self._revoke(lease.id)
                raise
            self._lease, self._granted = lease, None
            self._stats.claims += 1
            self._held.set()
            before = [each for each in self._leases if each != lease.id]
            # All at once and not for long: nobody renews the new lease meanwhile, and the old ones end by themselves.
            await asyncio.gather(*(self._revoke(each, min(_REGAIN_TIMEOUT, lease.ttl / 3)) for each in before))

    async def _put_all(self, lease: Lease, *, timeout: float | None = None) -> None:
        """Put everything wanted under `lease`, where nobody has the name, or where it hangs on a lease of ours.

        The node's key and as many others as fit go in one transaction, the rest in the next ones.
        """
        strays = [transactions.Delete(key) for key in self._strays if key not in self._wanted]
        puts = [transactions.Put(key, value, lease.id) for key, value in self._wanted.items()]
        first, *others = _parts([*puts, *strays])
        look = [transactions.Get(self._node_key)]
        guard = is_absent(self._node_key)
        while True:
            held, answers = await self._commit("claim", [guard], first, look, timeout=timeout)
            if held:
                break
            found = answers[0]
            holder = found[0][1].lease if found else None
            if holder is None:
                guard = is_absent(self._node_key)
            elif holder in self._leases:
                guard = self._is_ours(holder)
            else:
                raise await self._taken(holder)
        for part in others:
            held, _ = await self._commit("claim", [self._is_ours(lease.id)], part, timeout=timeout)
            if not held:
                raise LeaseGoneError("the node's key was taken away while its applications were put")
        self._strays.clear()

    async def _change(self, key: bytes, value: bytes | None) -> int:
        """Put or delete one key of ours; return the revision of it."""
        timeout = self._options.request_timeout
        ends = self._clock() + timeout
        try:
            async with asyncio.timeout(timeout):
                await self._held.wait()
                await self._writing.acquire()
        except TimeoutError:
            raise ConnectionFailedError(f"publish: {self.node} got no session within {timeout:g} s") from None
        try:
            return await self._change_now(key, value, ends - self._clock())
        finally:
            self._writing.release()

    async def _change_now(self, key: bytes, value: bytes | None, timeout: float) -> int:
        if self._lease is None:
            raise ConnectionFailedError(f"publish: {self.node} has just lost its session")
        before = self._wanted.get(key)
        self._want(key, value)  # first, so that the watch, which may be faster than the answer, finds it right
        change = transactions.Delete(key) if value is None else transactions.Put(key, value, self._lease.id)
        try:
            ours = [self._is_ours(self._lease.id)]
            held, answers = await self._commit("publish", ours, [change], timeout=timeout)
            if not held:
                raise ConnectionFailedError(f"publish: the name {self.node} is in other hands at the moment")
        except BaseException as error:  # also cancelled
            self._want(key, before)
            if isinstance(error, BrokenError) or not isinstance(error, ConnectionFailedError):
                self._strays.add(key)  # it may have been written, and must be as it was
                self._woken.set()
            raise
        answer = answers[0].response_delete_range if value is None else answers[0].response_put
        return int(answer.header.revision)

    def _want(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self._wanted.pop(key, None)
        else:
            self._wanted[key] = value

    # Talking to etcd

    async def _commit(
        self,
        what: str,
        compare: Sequence[Any],
        success: Sequence[Any],
        failure: Sequence[Any] = (),
        *,
        timeout: float | None = None,
    ) -> tuple[bool, list[Any]]:
        return await self._connection.call(
            what, lambda client: client.commit(compare, success, failure), timeout=timeout
        )

    def _is_ours(self, lease: int) -> Any:
        return hangs_on(self._node_key, lease)

    async def _grant(self, ttl: int, timeout: float | None = None) -> Lease:
        lease = self._random.getrandbits(62) + 1
        self._leases[lease] = None  # before it is asked for: when the answer is lost, there is still who revokes it
        if len(self._leases) > _MOST_LEASES:
            self._leases.pop(next(each for each in self._leases if self._lease is None or each != self._lease.id))
        sent = self._clock()
        granted = await self._connection.call("grant a lease", lambda c: c.grant(lease, ttl), timeout=timeout)
        return Lease(lease, float(granted), sent)

    async def _keep_alive(self, lease: Lease) -> int:
        """Return the seconds that the lease has again, 0 when it is gone."""
        try:
            return await self._connection.call(
                "keep the lease alive", lambda client: client.keep_alive(lease.id), timeout=lease.ttl / 3
            )
        except LeaseGoneError:
            return 0

    async def _revoke(self, lease: int, timeout: float | None = None) -> None:
        self._leases.pop(lease, None)
        try:
            await self._connection.call("revoke", lambda client: client.revoke(lease), timeout=timeout)
        except RegistrarError as error:
            _log.debug("lease %x of %s was not revoked and will end by itself: %s", lease, self.node, error)

    async def _taken(self, lease: int) -> TakenError:
        left: float | None = None
        if lease != 0:
            seconds = await self._connection.call("look at the holder's lease", lambda c: c.remaining(lease))
            left = max(0.0, float(seconds))
        return TakenError(self.node, self._options.cluster, left)

    # Waiting

    def _pauses(self) -> Iterator[float]:
        return delays(self._random, first=_RETRY_FIRST, most=_RETRY_MOST)

    async def _sleep(self, seconds: float) -> None:
        """Wait for so many seconds, or until something is to be mended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._woken.wait()


def _parts(operations: Iterable[Any]) -> Iterator[list[Any]]:
    """Cut operations into as few transactions as etcd takes, by number and by bytes."""
    part: list[Any] = []
    size = 0
    for operation in operations:
        added = len(operation.key) + len(getattr(operation, "value", b""))
        if part and (len(part) == _OPERATIONS or size + added > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(operation)
        size += added
    yield part
