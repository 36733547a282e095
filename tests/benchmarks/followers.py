"""Ways in which a Python process can be told of a put in etcd. Each yields a function that waits for the next one.

That returns what the peer gives its user without more work: the key, or the name of the application.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import aetcd

from ergo_registrar import Options, Registrar
from ergo_registrar.core.keys import routes_prefix
from tests.benchmarks import raw

NODE = "follower@bench"

Next = Callable[[], Awaitable[bytes | str]]


def application(told: bytes | str) -> str:
    """Return the application that a follower was told of."""
    return told if isinstance(told, str) else told.split(b"/")[-2].decode()


@contextlib.asynccontextmanager
async def by_raw(endpoint: str, cluster: str) -> AsyncIterator[Next]:
    """Read a watch stream of gRPC, which has the same five watches as the registrar's."""
    async with raw.channel(endpoint) as channel, raw.watch(channel, raw.member_prefixes(cluster, NODE)) as call:

        async def next_key() -> bytes:
            while True:
                answer = await call.read()
                for event in answer.events:
                    key: bytes = event.kv.key
                    return key

        yield next_key


@contextlib.asynccontextmanager
async def by_registrar(endpoint: str, cluster: str) -> AsyncIterator[Next]:
    """Be a member, and subscribe."""
    options = Options(endpoints=(endpoint,), cluster=cluster)
    async with Registrar(options, node=NODE) as registrar, registrar.subscribe() as subscription:

        async def next_name() -> str:
            while True:
                name: str | None = getattr(await subscription.get(), "name", None)
                if name is not None:  # else the registrar tells of itself
                    return name

        yield next_name


@contextlib.asynccontextmanager
async def by_aetcd(endpoint: str, cluster: str) -> AsyncIterator[Next]:
    """Watch the prefix of the routes by aetcd's own client, whose iterator is fed by a callback."""
    host, _, port = endpoint.rpartition(":")
    async with aetcd.Client(host, int(port)) as client:
        watch = await client.watch_prefix(routes_prefix(cluster))
        events: Any = aiter(watch)

        async def next_key() -> bytes:
            event = await anext(events)
            key: bytes = event.kv.key
            return key

        try:
            yield next_key
        finally:
            await watch.cancel()


FOLLOWERS: dict[str, Callable[[str, str], AbstractAsyncContextManager[Next]]] = {
    "raw": by_raw,
    "registrar": by_registrar,
    "aetcd": by_aetcd,
}
