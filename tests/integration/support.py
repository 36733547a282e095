"""What the integration stories share: short options, etcd seen without this package, waiting for conditions.

`Raw` and `etcdctl` look at etcd through aetcd and etcdctl alone, so that a story does not prove the package by itself.
"""

import asyncio
import contextlib
import dataclasses
import inspect
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import aetcd
from aetcd import rpc, transactions

from ergo_registrar import ApplicationRoute, ConnectionFailedError, Event, Options, Registrar, Subscription
from ergo_registrar.etcd.server import find_etcdctl

T = TypeVar("T")

TTL = 2  # seconds: the shortest lease that etcd grants with its default election timeout

# What the Go encoder made of these values (tests/vectors/edf.json, "named"), written down here so that a story shows
# what stands in etcd. NO_ROUTES is an empty []Route; ONE_ROUTE that of `routes_one`; WEB_* of application web-server.
NO_ROUTES = b"ggAhnYMAHSNlcmdvLnNlcnZpY2VzL2VyZ28vZ2VuL1JvdXRlnQAAAAA="
ONE_ROUTE = (
    b"ggAhnYMAHSNlcmdvLnNlcnZpY2VzL2VyZ28vZ2VuL1JvdXRlnQAAAAEACWxvY2FsaG9zdDqYAAADRUhTAAJSMQAAAANNSVQAA0VOUAACUjEA"
    b"B2FiYzEyMzQAA01JVA=="
)
WEB_ON_NODE1 = (
    b"gwAoI2VyZ28uc2VydmljZXMvZXJnby9nZW4vQXBwbGljYXRpb25Sb3V0ZQAKbm9kZTFAaG9zdAAKd2ViLXNlcnZlcgAAAAAAAABkAAAAAAAAAAMA"
    b"AAAC"
)


def short_options(endpoint: str, **overrides: Any) -> Options:
    """Options with short times and a cluster of the test's own."""
    options = Options(
        endpoints=(endpoint,),
        cluster=f"test-{uuid.uuid4().hex}",
        lease_ttl=TTL,
        dial_timeout=5,
        request_timeout=5,
        close_timeout=3,
    )
    return dataclasses.replace(options, **overrides)


def running(name: str, node: str, weight: int = 1, state: int = 2, mode: int = 3) -> ApplicationRoute:
    return ApplicationRoute(node, name, weight, mode, state)


# Waiting


@overload
async def eventually(condition: Callable[[], Coroutine[Any, Any, T]], within: float = 10.0) -> T: ...
@overload
async def eventually(condition: Callable[[], T], within: float = 10.0) -> T: ...
async def eventually(condition: Callable[[], Any], within: float = 10.0) -> Any:
    """Return what `condition` returns, or awaits to, once that is true. Fail when that takes too long."""
    try:
        async with asyncio.timeout(within):
            while True:
                answer = condition()
                found = await answer if inspect.isawaitable(answer) else answer
                if found:
                    return found
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"this did not come true within {within:g} s") from None


async def next_event(subscription: Subscription, *types: type[Event], within: float = 10.0) -> Any:
    """Return the next event of these types, of any without types; others are passed over."""
    seen: list[Event] = []
    try:
        async with asyncio.timeout(within):
            while True:
                event = await subscription.get()
                if not types or isinstance(event, types):
                    return event
                seen.append(event)
    except TimeoutError:
        names = " or ".join(kind.__name__ for kind in types) or "event"
        raise AssertionError(f"no {names} within {within:g} s, but {seen}") from None


async def take(subscription: Subscription, count: int, within: float = 10.0) -> list[Any]:
    """Return the next so many events."""
    events: list[Any] = []
    try:
        async with asyncio.timeout(within):
            while len(events) < count:
                events.append(await subscription.get())
    except TimeoutError:
        raise AssertionError(f"{count} events were expected within {within:g} s, and there were {events}") from None
    return events


def waiting(subscription: Subscription) -> list[Any]:
    """Return the events that wait to be read, without waiting for any."""
    events: list[Any] = []
    with contextlib.suppress(asyncio.QueueEmpty):
        while True:
            events.append(subscription.get_nowait())
    return events


async def until_end(subscription: Subscription) -> list[Any]:
    """Return everything that is heard until the subscription ends."""
    async with asyncio.timeout(5):
        return [event async for event in subscription]


async def settled(raw: "Raw", registrar: Registrar) -> None:
    """Wait until the registrar has taken in whatever stands in etcd by now."""
    revision = await raw.revision()

    async def known() -> bool:
        with contextlib.suppress(ConnectionFailedError):  # not within request_timeout, which may be shorter
            await registrar.wait_revision(revision)
            return True
        return False

    await eventually(known)


# etcd as it is


class Key:
    """A key of etcd: its value, its lease (0: none), and the revisions of its life."""

    def __init__(self, kv: Any) -> None:
        self.value: bytes = kv.value
        self.lease: int = kv.lease
        self.created: int = kv.create_revision
        self.modified: int = kv.mod_revision


class Raw:
    """etcd through aetcd's client, and nothing of this package."""

    def __init__(self, endpoint: str, username: str | None = None, password: str | None = None) -> None:
        host, _, port = endpoint.rpartition(":")
        self.endpoint = endpoint
        self._address = host, int(port)
        self._client = aetcd.Client(host, int(port), username, password)

    async def __aenter__(self) -> Self:
        await self._client.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.close()

    async def put(self, key: str, value: bytes | str, lease: int = 0) -> int:
        """Put a key, and return the revision."""
        answer = await self._client.put(key.encode(), value.encode() if isinstance(value, str) else value, lease)
        return int(answer.header.revision)

    async def put_many(self, entries: Iterable[tuple[str, bytes]], lease: int = 0) -> None:
        """Put many keys, in transactions of 100."""
        for batch in _batched(entries, 100):
            await self._client.transaction(
                [], [transactions.Put(key.encode(), value, lease) for key, value in batch], []
            )

    async def move(self, old: str, new: str, value: bytes) -> None:
        """Delete one key and put another, in one transaction."""
        await self._client.transaction(
            [], [transactions.Delete(old.encode()), transactions.Put(new.encode(), value)], []
        )

    async def delete(self, key: str) -> None:
        await self._client.delete(key.encode())

    async def delete_prefix(self, prefix: str) -> None:
        await self._client.delete_prefix(prefix.encode())

    async def get(self, key: str) -> Key | None:
        return (await self.under(key)).get(key)

    async def under(self, prefix: str) -> dict[str, Key]:
        """Return all keys that begin with a prefix."""
        start = prefix.encode()
        end = start[:-1] + bytes([start[-1] + 1])
        answer = await self._client.kvstub.Range(
            rpc.RangeRequest(key=start, range_end=end), metadata=self._client.metadata, timeout=10
        )
        return {kv.key.decode(errors="backslashreplace"): Key(kv) for kv in answer.kvs}

    async def revision(self) -> int:
        answer = await self._client.kvstub.Range(rpc.RangeRequest(key=b"-"), metadata=self._client.metadata, timeout=10)
        return int(answer.header.revision)

    async def grant(self, ttl: int = TTL) -> int:
        return int((await self._client.lease(ttl)).id)

    async def revoke(self, lease: int) -> None:
        await self._client.revoke_lease(lease)

    async def ttl(self, lease: int) -> int:
        """Return the seconds a lease was granted, -1 when there is none."""
        return int((await self._client.get_lease_info(lease, keys=False)).grantedTTL or -1)

    async def leases(self) -> set[int]:
        answer = await self._client.leasestub.LeaseLeases(rpc.LeaseLeasesRequest(), timeout=10)
        return {lease.ID for lease in answer.leases}

    async def compact(self, revision: int) -> None:
        await self._client.compact(revision, physical=True)

    async def metrics(self) -> dict[str, float]:
        """Return what etcd counts, by name with labels."""
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(*self._address)
            writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            await writer.drain()
            text = (await reader.read()).decode()
            writer.close()
            await writer.wait_closed()
        _, _, page = text.partition("\r\n\r\n")
        lines = [line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#")]
        return {name: float(number) for name, number in lines}


def _batched(entries: Iterable[T], size: int) -> Iterable[tuple[T, ...]]:
    iterator = iter(entries)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


@contextlib.asynccontextmanager
async def kept_alive(raw: Raw, ttl: int = TTL) -> AsyncIterator[int]:
    """A lease that is kept alive as long as the block runs, and revoked at its end."""
    lease = await raw.grant(ttl)

    async def keep() -> None:
        while True:
            await asyncio.sleep(ttl / 4)
            await raw._client.refresh_lease(lease)

    keeping = asyncio.create_task(keep())
    try:
        yield lease
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})
        await raw.revoke(lease)


async def etcdctl(endpoint: str, *arguments: str, user: str | None = None, check: bool = True) -> str:
    """Run etcdctl, and return what it printed."""
    program = await asyncio.to_thread(find_etcdctl)
    login = [f"--user={user}"] if user else []
    process = await asyncio.create_subprocess_exec(
        str(program),
        *(f"--endpoints={endpoint}", "--dial-timeout=15s", "--command-timeout=15s"),
        *login,
        *arguments,
        env={"ETCDCTL_API": "3"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(20):
        printed, _ = await process.communicate()
    assert not check or process.returncode == 0, printed.decode()
    return printed.decode()
