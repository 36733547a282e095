"""Changes of the configuration in etcd, of any node and at every level, that hurt nobody else's.

A change looks at what stands there, asks `core.change` whether it may happen, and happens only if nothing did
meanwhile, in one transaction. Otherwise it looks again. So a write that is repeated, or late, does nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aetcd import transactions

from ergo_registrar.clock import now
from ergo_registrar.core.change import ConfigChange, Write
from ergo_registrar.core.records import Record
from ergo_registrar.errors import ConflictError, ConnectionFailedError
from ergo_registrar.etcd.client import Client, is_unchanged, parts
from ergo_registrar.etcd.connection import BrokenError, Connection
from ergo_registrar.options import Options


class Configuration:
    """The configuration of a cluster's nodes, in etcd, to be changed."""

    def __init__(self, connection: Connection, options: Options, *, clock: Callable[[], float] = now) -> None:
        self._connection = connection
        self._cluster = options.cluster
        self._timeout = options.request_timeout
        self._clock = clock

    async def change(self, *changes: ConfigChange) -> int:
        """Make changes and return the revision of the last. Each hundred of them, by their order, is made as a whole.

        Raises:
            ValidationError: one breaks a rule; nothing was sent.
            ConflictError: what stands there is not as expected; of its hundred, nothing was changed.
            ConnectionFailedError: etcd refused, or did not answer in time; the message says which key, and whether it
                may have happened all the same.

        Cancelled, it may have happened, or may not.
        """
        writes = [Write.of(self._cluster, change) for change in changes]
        ends = self._clock() + self._timeout
        revision = 0
        for part in parts(writes) if writes else ():
            revision = await self._write(part, ends)
        return revision

    async def _write(self, writes: Sequence[Write], ends: float) -> int:
        others = f" and {len(writes) - 1} more" if len(writes) > 1 else ""
        what = f"{'delete' if writes[0].value is None else 'put'} {writes[0].key.decode()!r}{others}"
        in_doubt = False  # an answer was lost
        while (left := ends - self._clock()) > 0:
            revision, found = await self._connection.call(
                "configure", lambda c: _stand(c, writes), key=writes[0].key, timeout=left
            )
            try:
                for write, record in zip(writes, found, strict=True):
                    write.refuse(record.value)
            except ConflictError as error:
                if in_doubt:
                    raise BrokenError(f"{what}: an answer of etcd was lost; it was done, or: {error}") from error
                raise
            operations = [
                transactions.Delete(write.key) if write.value is None else transactions.Put(write.key, write.value)
                for write, record in zip(writes, found, strict=True)
                if write.value is not None or record.value is not None
            ]
            if not operations:
                return revision
            guards = [is_unchanged(record.key, record.mod_revision) for record in found]
            commit = _Commit(guards, operations)
            try:
                done = await self._connection.call(
                    "configure", commit, key=writes[0].key, timeout=max(0.0, ends - self._clock())
                )
            except BrokenError as error:
                doubt = "; it may have been done all the same, so read it back" if commit.sent else ""
                raise BrokenError(f"{error}{doubt}", error.endpoints) from error
            if done is not None:
                return done
            in_doubt |= commit.sent > 1
        raise ConnectionFailedError(f"{what}: others changed it again and again, for {self._timeout:g} s")


class _Commit:
    """A transaction, as an operation of a connection: it may be sent more than once."""

    def __init__(self, guards: Sequence[Any], operations: Sequence[Any]) -> None:
        self.sent = 0
        self._guards = guards
        self._operations = operations

    async def __call__(self, client: Client) -> int | None:
        """Return the revision that it made, None where something had changed."""
        self.sent += 1
        held, answers = await client.commit(self._guards, self._operations)
        if not held:
            return None
        answer = answers[-1]
        return int(getattr(answer, answer.WhichOneof("response")).header.revision)


async def _stand(client: Client, writes: Sequence[Write]) -> tuple[int, list[Record]]:
    """Return etcd's revision, and what stands at each key.

    All are asked for at once, since a hundred round trips would take longer than a call may; but not in one
    transaction, which may not only read (see `Client.youngest`).
    """
    pages = (client.page(write.key, write.key + b"\0", limit=1, revision=0) for write in writes)
    answers = await asyncio.gather(*pages, return_exceptions=True)  # so that none goes on behind the first that fails
    revision, found = 0, []
    for write, answer in zip(writes, answers, strict=True):
        if isinstance(answer, BaseException):
            raise answer
        revision = max(revision, answer.header.revision)
        kv = answer.kvs[0] if answer.kvs else None
        found.append(Record(write.key, kv.value, mod_revision=kv.mod_revision) if kv else Record(write.key, None))
    return revision, found
