"""etcd as the checker sees it: over its own channels, as root, and through nothing of the package.

Calls go to one member after the other until one answers. A write may happen twice; every one here may.
"""

import asyncio
import contextlib
import dataclasses
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from aetcd import rpc

PREFIX = b"services/ergo/"
_END = b"services/ergo0"
_PATIENCE = 1.5  # seconds for one answer of one member
_SILENCE = 1.5  # seconds without a word on the watch until another member is asked
_OPERATIONS = 100  # in one transaction
_LIMIT = [("grpc.max_receive_message_length", 64 * 1024 * 1024), ("grpc.use_local_subchannel_pool", 1)]
_FINAL = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
)


@dataclasses.dataclass(frozen=True)
class Change:
    """One key put or, with no value, deleted. `at` is when the checker heard of it, on the monotonic clock."""

    revision: int
    at: float
    key: bytes
    value: bytes | None
    lease: int


class UnreachableError(Exception):
    """No member answered in time."""


class Etcd:
    """A client of all members at once: an async context manager."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._endpoints = endpoints
        self._channels: list[Any] = []
        self._turn = 0
        self._password = ""
        self._metadata: tuple[tuple[str, str], ...] = ()

    async def __aenter__(self) -> "Etcd":
        self._channels = [rpc.insecure_channel(endpoint, options=_LIMIT) for endpoint in self._endpoints]
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()

    async def call(self, stub: Any, method: str, request: Any, *, timeout: float = 10.0) -> Any:
        """Return the answer of the first member that gives one. Raise `UnreachableError`, or what etcd refused."""
        ends = time.monotonic() + timeout
        last: object = "nobody was asked"
        while time.monotonic() < ends:
            try:
                channel = self._channels[self._turn]
                return await self._ask(channel, stub, method, request, min(_PATIENCE, timeout))
            except grpc.aio.AioRpcError as error:
                details = error.details() or ""
                last = f"{error.code().name} {details} at {self._endpoints[self._turn]}"
                if self._password and ("auth" in details or "permission denied" in details):
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        await self.log_in(self._password)
                elif error.code() in _FINAL:
                    raise
                self._turn = (self._turn + 1) % len(self._channels)
                await asyncio.sleep(0.02)
        raise UnreachableError(f"{method}: {last}")

    async def _ask(self, channel: Any, stub: Any, method: str, request: Any, timeout: float) -> Any:
        return await getattr(stub(channel), method)(request, metadata=self._metadata, timeout=timeout)

    async def log_in(self, password: str) -> None:
        """Be root from now on."""
        request = rpc.AuthenticateRequest(name="root", password=password)
        answer = await self._ask(self._channels[self._turn], rpc.AuthStub, "Authenticate", request, _PATIENCE)
        self._password, self._metadata = password, (("token", answer.token),)

    # Keys and leases

    async def everything(self) -> tuple[int, dict[bytes, Any]]:
        """Return the revision, and every key-value pair under `services/ergo/`, as a majority has them."""
        request = rpc.RangeRequest(key=PREFIX, range_end=_END)
        answer = await self.call(rpc.KVStub, "Range", request)
        return answer.header.revision, {kv.key: kv for kv in answer.kvs}

    async def get(self, key: bytes) -> Any:
        """Return a key-value pair, or None."""
        answer = await self.call(rpc.KVStub, "Range", rpc.RangeRequest(key=key))
        return answer.kvs[0] if answer.kvs else None

    async def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        await self.put_all([(key, value)], lease)

    async def put_all(self, pairs: Sequence[tuple[bytes, bytes]], lease: int = 0) -> int:
        """Put some keys at once, at most 100 in one revision; return the last revision.

        Each write happens once: a request that a paused member still holds must not undo a later one when it goes on.
        """
        revision = 0
        for start in range(0, len(pairs), _OPERATIONS):
            batch = [rpc.PutRequest(key=key, value=value, lease=lease) for key, value in pairs[start:][:_OPERATIONS]]
            revision = await self._put_once(batch)
        return revision

    async def _put_once(self, puts: list[Any]) -> int:
        while True:
            before = await self.get(puts[0].key)
            known = 0 if before is None else before.mod_revision
            operations = [rpc.RequestOp(request_put=put) for put in puts]
            answer = await self._transaction(puts[0].key, known, operations)
            if answer.succeeded:
                return int(answer.header.revision)
            now = await self.get(puts[0].key)
            if (
                now is not None
                and now.mod_revision != known
                and (now.value, now.lease) == (puts[0].value, puts[0].lease)
            ):
                return int(now.mod_revision)  # only the answer was lost

    async def delete_if(self, key: bytes, revision: int) -> None:
        """Delete a key if it was not changed since a revision."""
        await self._transaction(key, revision, [rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))])

    async def _transaction(self, key: bytes, revision: int, operations: list[Any]) -> Any:
        compare = rpc.Compare(target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, key=key, mod_revision=revision)
        return await self.call(rpc.KVStub, "Txn", rpc.TxnRequest(compare=[compare], success=operations))

    async def compact(self, revision: int) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):  # it was done before
            await self.call(rpc.KVStub, "Compact", rpc.CompactionRequest(revision=revision, physical=True))

    async def grant(self, ttl: int) -> int:
        """Grant a lease, once, under a number that is chosen here."""
        lease = random.getrandbits(62) + 1
        with contextlib.suppress(grpc.aio.AioRpcError):  # an earlier try did it
            await self.call(rpc.LeaseStub, "LeaseGrant", rpc.LeaseGrantRequest(ID=lease, TTL=ttl))
        return lease

    async def revoke(self, lease: int) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):  # it is gone already
            await self.call(rpc.LeaseStub, "LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease))

    async def leases(self) -> dict[int, tuple[int, set[bytes]]]:
        """Return for each lease its granted seconds and its keys."""
        answer = await self.call(rpc.LeaseStub, "LeaseLeases", rpc.LeaseLeasesRequest())
        found = {}
        for lease in answer.leases:
            request = rpc.LeaseTimeToLiveRequest(ID=lease.ID, keys=True)
            told = await self.call(rpc.LeaseStub, "LeaseTimeToLive", request)
            if told.TTL >= 0:  # -1: gone meanwhile
                found[int(lease.ID)] = int(told.grantedTTL), set(told.keys)
        return found

    # Members

    async def status(self, member: int) -> Any:
        """Return the status of one member. Raise `grpc.aio.AioRpcError` when it does not answer at once."""
        return await self._ask(self._channels[member], rpc.MaintenanceStub, "Status", rpc.StatusRequest(), 1.0)

    async def hashes(self, revision: int) -> list[int]:
        """Return for each member the hash of everything up to a revision: they differ only if etcd itself is broken."""
        await self.log_in(self._password)  # a member that was restarted knows no token
        request = rpc.HashKVRequest(revision=revision)
        return [
            (await self._ask(channel, rpc.MaintenanceStub, "HashKV", request, 5.0)).hash for channel in self._channels
        ]

    # Users

    async def enforce_logins(self, password: str, roles: dict[str, list[tuple[bytes, bool]]], secret: str) -> None:
        """Make a user with a role of its own for each name, with prefixes to read or also write, and switch it on."""
        for user, word in {"root": password, **dict.fromkeys(roles, secret)}.items():
            await self.call(rpc.AuthStub, "UserAdd", rpc.AuthUserAddRequest(name=user, password=word))
            await self.call(rpc.AuthStub, "RoleAdd", rpc.AuthRoleAddRequest(name=user))
            await self.call(rpc.AuthStub, "UserGrantRole", rpc.AuthUserGrantRoleRequest(user=user, role=user))
            for prefix, write in roles.get(user, ()):
                await self.permit(user, prefix, write)
        await self.call(rpc.AuthStub, "AuthEnable", rpc.AuthEnableRequest())
        await self.log_in(password)

    async def permit(self, role: str, prefix: bytes, write: bool) -> None:
        kind = rpc.Permission.READWRITE if write else rpc.Permission.READ
        permission = rpc.Permission(permType=kind, key=prefix, range_end=_behind(prefix))
        request = rpc.AuthRoleGrantPermissionRequest(name=role, perm=permission)
        await self.call(rpc.AuthStub, "RoleGrantPermission", request)

    async def forbid(self, role: str, prefix: bytes) -> None:
        request = rpc.AuthRoleRevokePermissionRequest(role=role, key=prefix, range_end=_behind(prefix))
        with contextlib.suppress(grpc.aio.AioRpcError):  # an earlier try did it
            await self.call(rpc.AuthStub, "RoleRevokePermission", request)

    async def change_password(self, user: str, password: str) -> None:
        request = rpc.AuthUserChangePasswordRequest(name=user, password=password)
        await self.call(rpc.AuthStub, "UserChangePassword", request)

    # Watching

    async def watch(self, revision: int) -> AsyncIterator[Change]:
        """Yield every change under `services/ergo/` from a revision on, for ever, over whichever member answers."""
        turn = 0
        while True:
            call = rpc.WatchStub(self._channels[turn]).Watch(metadata=(*self._metadata, ("hasleader", "true")))
            try:
                async for answer in _heard(call, revision):
                    events = [_changed(event, time.monotonic()) for event in answer.events]
                    for change in events:
                        yield change
                    revision = max([revision, *(change.revision + 1 for change in events)])
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError, ConnectionError):
                turn = (turn + 1) % len(self._channels)
                await asyncio.sleep(0.05)
                with contextlib.suppress(grpc.aio.AioRpcError, UnreachableError):
                    await self.get(b"services/ergo/")  # logs in anew where the token is old
            finally:
                call.cancel()


async def _heard(call: Any, revision: int) -> AsyncIterator[Any]:
    """Create the watch and yield what comes. Raise when it ends, or when the member says nothing even when asked."""
    create = rpc.WatchCreateRequest(key=PREFIX, range_end=_END, start_revision=revision)
    await call.write(rpc.WatchRequest(create_request=create))
    while True:
        async with asyncio.timeout(_SILENCE):
            reading = asyncio.ensure_future(call.read())
            try:
                done, _ = await asyncio.wait({reading}, timeout=_SILENCE / 3)
                if not done:
                    await call.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
                answer = await reading
            finally:
                reading.cancel()
        if answer is grpc.aio.EOF or answer.canceled:
            assert not getattr(answer, "compact_revision", 0), "the checker's own watch was compacted away"
            raise ConnectionError("the watch ended")
        yield answer


def _changed(event: Any, at: float) -> Change:
    kv = event.kv
    gone = event.type == rpc.Event.DELETE
    return Change(kv.mod_revision, at, kv.key, None if gone else kv.value, 0 if gone else kv.lease)


def _behind(prefix: bytes) -> bytes:
    return prefix[:-1] + bytes([prefix[-1] + 1])
