"""`python -m tests.benchmarks.lister KIND ENDPOINT CLUSTER`: read a cluster, in a fresh process, and say what it took.

The process first does the same on a cluster that is empty, so that what gRPC and the imports take is not counted.
"""

import asyncio
import gc
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import aetcd
import msgspec

from ergo_registrar import NoRouteError, Options, Registrar
from ergo_registrar.core.keys import routes_prefix
from tests.benchmarks import raw
from tests.benchmarks.population import APPLICATIONS

EMPTY = "bench-empty"
LARGE = f"raw in pages of {raw.LARGE_PAGE:,}"


class Listed(msgspec.Struct, kw_only=True):
    """What was read, and what that took: seconds, and megabytes above the idle process."""

    keys: int
    seconds: float
    peak: float | None = None
    kept: float | None = None


async def by_raw(endpoint: str, cluster: str, page_size: int = raw.PAGE) -> Listed:
    """Read pages, and keep nothing but a count."""
    began = time.perf_counter()
    async with raw.channel(endpoint) as channel:
        keys = await raw.count(channel, routes_prefix(cluster), page_size)
        return Listed(keys=keys, seconds=time.perf_counter() - began)


async def by_registrar(endpoint: str, cluster: str) -> Listed:
    """Enter as an observer; then look whether everything is there."""
    before = _resident()
    began = time.perf_counter()
    async with Registrar(Options(endpoints=(endpoint,), cluster=cluster)) as registrar:
        listed = Listed(keys=0, seconds=time.perf_counter() - began)
        if before is not None:
            listed.peak, listed.kept = _peak() - before, (_resident() or 0.0) - before
        listed.keys = await _known(registrar)
    return listed


async def _known(registrar: Registrar) -> int:
    """Return how many keys the registrar knows, each asked for by name."""
    nodes = await registrar.nodes()
    known = len([node for node in nodes if await registrar.resolve(node)])
    for number in range(APPLICATIONS):
        try:
            known += len(await registrar.resolve_application(f"app{number}"))
        except NoRouteError:
            pass
    return known


async def by_aetcd(endpoint: str, cluster: str) -> Listed:
    """Read all keys in one answer, as aetcd does."""
    host, _, port = endpoint.rpartition(":")
    began = time.perf_counter()
    async with aetcd.Client(host, int(port)) as client:
        keys = len(list(await client.get_prefix(routes_prefix(cluster))))
        return Listed(keys=keys, seconds=time.perf_counter() - began)


LISTERS: dict[str, Callable[[str, str], Awaitable[Listed]]] = {
    "raw": by_raw,
    LARGE: partial(by_raw, page_size=raw.LARGE_PAGE),
    "registrar": by_registrar,
    "aetcd": by_aetcd,
}


def _resident() -> float | None:
    """Return the megabytes of memory in use; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def _peak() -> float:
    """Return the most megabytes of memory that were in use at any time."""
    import resource  # there is none on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts kilobytes


async def main() -> None:
    kind, endpoint, cluster = sys.argv[1:]
    await LISTERS[kind](endpoint, EMPTY)
    gc.collect()
    try:
        answer: Listed | dict[str, str] = await LISTERS[kind](endpoint, cluster)
    except Exception as error:  # noqa: BLE001  # whatever a peer raises is what is to be told
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(msgspec.json.encode(answer).decode(), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
