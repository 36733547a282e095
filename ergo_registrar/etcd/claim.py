"""What one node has in etcd, and how it is written: only where nobody has the name, or where it is ours.

Three guards make it safe:

- **Claim**: the keys are put only if nobody has the node's key (`CREATE(node key) == 0`).
- **Own**: every later write and delete holds only while the node's key hangs on a lease of ours.
- **Move**: everything is put under the new lease before the old one is revoked; the other way round looks like death.

Each of them is a compare of the writing transaction itself, so a write that is repeated, or late, does nothing.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from aetcd import transactions

from ergo_registrar.core import keys
from ergo_registrar.core.records import Record
from ergo_registrar.core.registration import Publication
from ergo_registrar.errors import RegistrarError, TakenError
from ergo_registrar.etcd.client import hangs_on, is_absent, parts
from ergo_registrar.etcd.connection import Connection, LeaseGoneError
from ergo_registrar.logs import about

_log = logging.getLogger(__name__)

_MARKER_TTL = 60  # seconds a departure marker stands: long enough for a process that reads the cluster anew
_LATE_GRANT = (0.02, 0.05, 0.1, 0.2)  # seconds in which a grant that was cancelled may still arrive in etcd
_MOST_LEASES = 16  # remembered; one that failed to carry anything is long over when that many came after it


class Lease(msgspec.Struct, frozen=True):
    """A lease as granted: etcd may grant more seconds than were asked for.

    `proven` is when the request was sent that etcd answered last, so the own clock ends before etcd's does.
    `revision` is that of etcd in the answer, 0 before the first renewal.
    """

    id: int
    ttl: float
    proven: float
    revision: int = 0

    @property
    def ends(self) -> float:
        """When it may be over, unless it is renewed."""
        return self.proven + self.ttl


class Claim:
    """A node name, the entries wanted under it, and every lease of ours that may carry them.

    Writes raise `ConnectionFailedError`, and `TakenError` where someone else has the name. One writer at a time:
    whoever calls `take`, `put` or `change` holds `writing`.
    """

    def __init__(
        self,
        connection: Connection,
        cluster: str,
        publication: Publication,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.node: str = publication.node
        self.wanted: dict[bytes, bytes] = dict(publication.entries)
        self.lease: Lease | None = None  # the one that carries everything, as far as we know
        self.strays: set[bytes] = set()  # keys under a lease of ours that are not wanted, or may be there unwanted
        self.put_at: int = 0  # etcd's revision when everything wanted was put last
        self.writing: asyncio.Lock = asyncio.Lock()
        self._connection = connection
        self._cluster = cluster
        self._node_key = publication.node_key
        self._ending = f"/{self.node}".encode()  # of every key of ours
        self._clock = clock
        self._random = rng
        self._leases: dict[int, None] = {}  # every lease of ours that may still live, the newest last
        self._unanswered: set[int] = set()  # leases asked for, and nobody knows whether they were granted
        self._granted: Lease | None = None  # one that was to carry everything, and does not yet

    def has(self, lease: int) -> bool:
        """Say whether a lease is one of ours, and may live."""
        return lease in self._leases

    def is_amiss(self, record: Record) -> bool:
        """Say whether a key in etcd is not as we put it, and take note of one that should not be there."""
        if not record.key.endswith(self._ending):
            return False
        wanted = self.wanted.get(record.key)
        if wanted is not None:
            return record.value != wanted or not self.has(record.lease)
        if record.value is None or not self.has(record.lease):
            return False
        self.strays.add(record.key)
        return True

    async def take(self, ttl: int, free: Callable[[], None], timeout: float | None = None) -> Lease:
        """Put everything under a new lease and return it, which from then on carries it; `revoke_others` comes then.

        `free` is called when nobody else has the name, before anything is put.
        """
        holder = await self._connection.call(
            "claim", lambda c: c.get(self._node_key), key=self._node_key, timeout=timeout
        )
        if holder is not None and not self.has(holder.lease):
            raise await self._taken(holder.lease)
        lease, self._granted = self._granted, None
        if lease is None or not self.has(lease.id) or self._clock() > lease.proven + lease.ttl / 2:
            lease = await self._grant(ttl, timeout)
        self._granted = lease  # for the next try, should this one fail
        free()
        try:
            await self.put(lease, timeout)
        except TakenError:  # someone was faster; after any other error the keys may be under the new lease
            await self.revoke(lease.id)
            raise
        self.lease, self._granted = lease, None
        return lease

    async def put(self, lease: Lease, timeout: float | None = None) -> None:
        """Put everything wanted under `lease`, where nobody has the name, or where it hangs on a lease of ours.

        The node's key and as many others as fit go in one transaction, the rest in the next ones. Raises
        `LeaseGoneError` also when the node's key was taken away in between.
        """
        strays, self.strays = self.strays, set()  # what turns up from now on, this may come too early for
        try:
            await self._put(lease, strays, timeout)
        except BaseException:  # also cancelled
            self.strays |= strays
            raise

    async def _put(self, lease: Lease, strays: Iterable[bytes], timeout: float | None) -> None:
        deletes = [transactions.Delete(key) for key in strays if key not in self.wanted]
        puts = [transactions.Put(key, value, lease.id) for key, value in self.wanted.items()]
        first, *others = parts([*puts, *deletes])
        look = [transactions.Get(self._node_key)]
        guard = is_absent(self._node_key)
        while True:
            held, answers = await self._commit("claim", self._node_key, [guard], first, look, timeout=timeout)
            if held:
                break
            found = answers[0]
            holder = found[0][1].lease if found else None
            if holder is None:
                guard = is_absent(self._node_key)
            elif self.has(holder):
                guard = self._is_ours(holder)
            else:
                raise await self._taken(holder)
        revision: int = answers[0].response_put.header.revision  # of the node's key
        for part in others:
            held, _ = await self._commit("claim", self._node_key, [self._is_ours(lease.id)], part, timeout=timeout)
            if not held:
                raise LeaseGoneError("the node's key was taken away while its applications were put")
        self.put_at = revision

    async def change(self, lease: Lease, key: bytes, value: bytes | None, timeout: float) -> int | None:
        """Put or delete one key; return the revision of that, None if the node's key does not hang on `lease`."""
        change = transactions.Delete(key) if value is None else transactions.Put(key, value, lease.id)
        held, answers = await self._commit("publish", key, [self._is_ours(lease.id)], [change], timeout=timeout)
        if not held:
            return None
        answer = answers[0].response_delete_range if value is None else answers[0].response_put
        return int(answer.header.revision)

    async def renew(self, lease: Lease) -> bool:
        """Keep the lease that carries everything alive; return False if it is gone."""
        sent = self._clock()
        try:
            ttl, revision = await self._connection.call(
                "keep alive", lambda client: client.keep_alive(lease.id), timeout=lease.ttl / 3
            )
        except LeaseGoneError:
            ttl = revision = 0
        if ttl <= 0:
            self._leases.pop(lease.id, None)
            return False
        self.lease = Lease(lease.id, ttl, sent, revision)
        return True

    async def leave_marker(self, lease: Lease, timeout: float) -> None:
        """Say that this node leaves on purpose, unless the name has a successor, who does not leave."""
        marker = await self._grant(_MARKER_TTL, timeout / 2)
        key = keys.leaving_key(self._cluster, self.node)
        put = transactions.Put(key, b"", marker.id, prev_kv=True)
        held, answers = await self._commit("leave", key, [self._is_ours(lease.id)], [put], timeout=timeout / 2)
        if held:  # else `revoke_all` ends the marker's lease, too
            self._leases.pop(marker.id)
            self._leases[answers[0].response_put.prev_kv.lease] = None  # of an earlier life's marker

    async def revoke_others(self, lease: Lease, timeout: float) -> None:
        """End every lease of ours but this one, which carries everything."""
        await self._revoke_each([each for each in self._leases if each != lease.id], timeout)

    async def revoke_all(self, timeout: float) -> None:
        """End every lease of ours in at most `timeout` seconds, as far as etcd can be reached."""
        leases, self._leases = self._leases, {}
        self.lease = self._granted = None
        leases.pop(0, None)
        await self._revoke_each(reversed(leases), timeout)

    async def revoke(self, lease: int, timeout: float | None = None) -> None:
        """End a lease of ours. Where that fails it ends by itself."""
        self._leases.pop(lease, None)
        try:
            # One that is asked for and was never answered may be granted yet: the revoke may have overtaken the grant.
            for pause in _LATE_GRANT if lease in self._unanswered else ():
                with contextlib.suppress(LeaseGoneError):
                    return await self._revoke_once(lease, timeout)
                await asyncio.sleep(pause)
            await self._revoke_once(lease, timeout)
        except RegistrarError as error:
            _log.debug(
                "lease %x of %s was not revoked and will end by itself: %s",
                lease,
                self.node,
                error,
                extra=about("lease_not_revoked", self._cluster, self.node, lease=f"{lease:x}", reason=str(error)),
            )
        finally:
            self._unanswered.discard(lease)

    async def _revoke_once(self, lease: int, timeout: float | None) -> None:
        await self._connection.call("revoke", lambda client: client.revoke(lease), timeout=timeout)

    async def _revoke_each(self, leases: Iterable[int], timeout: float) -> None:
        await asyncio.gather(*(self.revoke(lease, timeout) for lease in leases))

    async def _grant(self, ttl: int, timeout: float | None = None) -> Lease:
        lease = self._random.getrandbits(62) + 1
        self._leases[lease] = None  # before it is asked for: when the answer is lost, there is still who revokes it
        if len(self._leases) > _MOST_LEASES:
            oldest = next(each for each in self._leases if self.lease is None or each != self.lease.id)
            self._leases.pop(oldest)
            self._unanswered.discard(oldest)
        self._unanswered.add(lease)
        sent = self._clock()
        granted = await self._connection.call("grant", lambda c: c.grant(lease, ttl), timeout=timeout)
        self._unanswered.discard(lease)
        return Lease(lease, float(granted), sent)

    async def _commit(
        self,
        what: str,
        key: bytes,
        compare: Sequence[Any],
        success: Sequence[Any],
        failure: Sequence[Any] = (),
        *,
        timeout: float | None = None,
    ) -> tuple[bool, list[Any]]:
        return await self._connection.call(
            what, lambda client: client.commit(compare, success, failure), key=key, timeout=timeout
        )

    def _is_ours(self, lease: int) -> Any:
        return hangs_on(self._node_key, lease)

    async def _taken(self, lease: int) -> TakenError:
        left: float | None = None
        if lease != 0:
            seconds = await self._connection.call("look", lambda c: c.remaining(lease))
            left = max(0.0, float(seconds))
        return TakenError(self.node, self._cluster, left)
