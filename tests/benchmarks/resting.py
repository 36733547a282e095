"""`python -m tests.benchmarks.resting KIND ENDPOINT SECONDS`: be a member at rest, and say what that took.

The raw one is what no member can do without: a lease that is kept alive on one stream, and five watches on another.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
from aetcd import rpc

from ergo_registrar import Options, Registrar, Route
from ergo_registrar.core.edf import encode_routes
from ergo_registrar.core.keys import node_key
from tests.benchmarks import raw

CLUSTER = "bench-idle"
NODE = "idle@bench"
ROUTES = [Route("bench", 15000)]
SETTLING = 4.0  # seconds until what belongs to the start is over: the first proof of the watches, and a first renewal
TTL = int(Options().lease_ttl)
_ESTABLISHED = "01"  # as the column `st` of /proc/net/tcp has it


class Rested(msgspec.Struct, kw_only=True):
    """What a rest took: CPU seconds, of so many. How many connections there were to etcd, where the system tells."""

    seconds: float
    cpu: float
    connections: int | None


@contextlib.asynccontextmanager
async def by_raw(endpoint: str) -> AsyncIterator[None]:
    """Keep a lease alive and five watches open, by gRPC alone."""
    async with raw.channel(endpoint) as channel:
        lease = (await rpc.LeaseStub(channel).LeaseGrant(rpc.LeaseGrantRequest(TTL=TTL))).ID
        put = rpc.PutRequest(key=node_key(CLUSTER, NODE), value=encode_routes(ROUTES), lease=lease)
        await rpc.KVStub(channel).Put(put)
        async with raw.watch(channel, raw.member_prefixes(CLUSTER, NODE)) as watch:
            tasks = [asyncio.create_task(_keep_alive(channel, lease)), asyncio.create_task(watch.read())]
            try:
                yield
                for task in tasks:
                    if task.done():
                        raise RuntimeError(f"it did not rest: {task.result()}")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)


async def _keep_alive(channel: object, lease: int) -> None:
    call = rpc.LeaseStub(channel).LeaseKeepAlive()
    while True:
        await call.write(rpc.LeaseKeepAliveRequest(ID=lease))
        await call.read()
        await asyncio.sleep(TTL / 3)


@contextlib.asynccontextmanager
async def by_registrar(endpoint: str) -> AsyncIterator[None]:
    """Be a member with the options that everyone has."""
    async with Registrar(Options(endpoints=(endpoint,), cluster=CLUSTER), node=NODE, routes=ROUTES):
        yield


RESTING: dict[str, Callable[[str], AbstractAsyncContextManager[None]]] = {"raw": by_raw, "registrar": by_registrar}


def _connections(port: int) -> int | None:
    """Return how many TCP connections this process has open to a port of this machine."""
    try:
        tables = [Path("/proc/net", name).read_text() for name in ("tcp", "tcp6")]
        open_files = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    except OSError:
        return None
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    ours = {  # by inode, since a row can come twice when the table changes while it is read
        row[5]
        for _, _, remote, state, *row in rows
        if state == _ESTABLISHED and remote.endswith(f":{port:04X}") and f"socket:[{row[5]}]" in open_files
    }
    return len(ours)


async def main() -> None:
    kind, endpoint, seconds = sys.argv[1:]
    lines = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    async with RESTING[kind](endpoint):
        await asyncio.sleep(SETTLING)
        print(msgspec.json.encode({"ready": True}).decode(), flush=True)
        await lines.readline()
        began, before = time.perf_counter(), time.process_time()
        await asyncio.sleep(float(seconds))
        took, cpu = time.perf_counter() - began, time.process_time() - before
        connections = _connections(int(endpoint.rpartition(":")[2]))
        rested = Rested(seconds=took, cpu=cpu, connections=connections)
        print(msgspec.json.encode(rested).decode(), flush=True)
        await lines.readline()  # the watches are counted meanwhile
    transport.close()


if __name__ == "__main__":
    asyncio.run(main())
