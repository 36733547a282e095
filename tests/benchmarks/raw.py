"""The least that Python can do on etcd: `grpc.aio` on aetcd's compiled stubs, with the package's settings of gRPC."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aetcd import rpc

from ergo_registrar.core.keys import config_prefixes, prefix_end, routes_prefix
from ergo_registrar.etcd.client import _settings
from ergo_registrar.options import Options

PAGE = 1_000  # keys
LARGE_PAGE = 10_000


@contextlib.asynccontextmanager
async def channel(endpoint: str) -> AsyncIterator[Any]:
    """Open a channel to etcd, with the settings that the package gives its own."""
    made = rpc.insecure_channel(endpoint, options=list(_settings(Options()).items()))
    try:
        yield made
    finally:
        await made.close()


def member_prefixes(cluster: str, node: str) -> list[bytes]:
    """Return the five prefixes that a member follows."""
    return [routes_prefix(cluster), *config_prefixes(cluster, node).values()]


@contextlib.asynccontextmanager
async def watch(on: Any, prefixes: list[bytes]) -> AsyncIterator[Any]:
    """Open one stream with a watch for each prefix, each acknowledged; yield the call to `read` from."""
    call = rpc.WatchStub(on).Watch(metadata=(("hasleader", "true"),))
    try:
        for number, prefix in enumerate(prefixes, start=1):
            create = rpc.WatchCreateRequest(
                key=prefix, range_end=prefix_end(prefix), watch_id=number, progress_notify=True, fragment=True
            )
            await call.write(rpc.WatchRequest(create_request=create))
            answer = await call.read()
            if not answer.created or answer.canceled:
                raise RuntimeError(f"etcd did not create the watch of {prefix!r}: {answer}")
        yield call
    finally:
        call.cancel()


async def count(on: Any, prefix: bytes, page_size: int = PAGE) -> int:
    """Read all keys of a prefix at one revision, page by page, and return how many there are."""
    stub = rpc.KVStub(on)
    start, end, revision, found = prefix, prefix_end(prefix), 0, 0
    while True:
        page = await stub.Range(rpc.RangeRequest(key=start, range_end=end, limit=page_size, revision=revision))
        found += len(page.kvs)
        if not page.more:
            return found
        revision, start = page.header.revision, page.kvs[-1].key + b"\0"
