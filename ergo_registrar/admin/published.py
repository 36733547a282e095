"""What the nodes of a cluster have published, as it stands in etcd at one revision, and what etcd knows of each key.

etcd keeps no time. What it tells of a key's age is in revisions, which count every change of anything in it; and of
its lease, in seconds, how long it lasts unless the owner renews it.
"""

import asyncio
from collections.abc import Iterable

import msgspec

from ergo_registrar.admin.connection import read
from ergo_registrar.core.keys import application_key, node_key, prefix_end, routes_prefix
from ergo_registrar.core.mirror import Mirror
from ergo_registrar.core.records import Skipped
from ergo_registrar.etcd.connection import Connection
from ergo_registrar.events import (
    ApplicationLoaded,
    ApplicationStarted,
    ApplicationStopping,
    ApplicationUpdated,
    NodeJoined,
)
from ergo_registrar.routes import ApplicationRoute, Route

_AT_ONCE = 16  # leases asked for at the same time
_APPLICATION_EVENTS = ApplicationLoaded | ApplicationStarted | ApplicationStopping | ApplicationUpdated
_CLUSTERS = b"services/ergo/cluster/"


class Lease(msgspec.Struct, frozen=True):
    """A lease, by the id that etcdctl shows: the seconds it was granted, and those left, 0 when it just ended."""

    id: str
    granted: int
    left: int


class Key(msgspec.Struct, frozen=True):
    """What etcd knows of a key: since which revision it is there, when it last changed, and the lease it hangs on."""

    created: int
    changed: int
    lease: Lease | None


class PublishedNode(msgspec.Struct, frozen=True):
    """A node, and how it is reached."""

    name: str
    routes: tuple[Route, ...]
    key: Key


class PublishedApplication(msgspec.Struct, frozen=True):
    """An application on a node."""

    route: ApplicationRoute
    key: Key


class Published(msgspec.Struct, frozen=True):
    """The nodes and applications of a cluster, each sorted, at a revision; `skipped` are keys that make no sense."""

    revision: int
    nodes: list[PublishedNode]
    applications: list[PublishedApplication]
    skipped: list[Skipped]


async def read_published(connection: Connection, cluster: str) -> Published:
    """Read everything that the nodes of a cluster have published. Raise `ConnectionFailedError`, `ValidationError`."""
    prefix = routes_prefix(cluster)
    revision, found = await read(connection, [prefix])
    records = {record.key: record for record in found[prefix]}
    leases = await _leases(connection, {record.lease for record in records.values()} - {0})

    def key(name: bytes) -> Key:
        record = records[name]
        return Key(record.create_revision, record.mod_revision, leases.get(record.lease))

    nodes: list[PublishedNode] = []
    applications: list[PublishedApplication] = []
    step = Mirror(cluster).snapshot(records.values(), revision, 0.0)
    for event in step.events:
        if isinstance(event, NodeJoined):
            nodes.append(PublishedNode(event.name, event.routes, key(node_key(cluster, event.name))))
        elif isinstance(event, _APPLICATION_EVENTS):
            route = event.route
            applications.append(PublishedApplication(route, key(application_key(cluster, route.name, route.node))))
    return Published(revision, nodes, applications, step.skipped)


async def _leases(connection: Connection, numbers: Iterable[int]) -> dict[int, Lease]:
    """Ask for the time that each lease has left."""
    found: dict[int, Lease] = {}
    limit = asyncio.Semaphore(_AT_ONCE)

    async def ask(number: int) -> None:
        async with limit:
            left, granted = await connection.call("look at a lease", lambda client: client.lease_times(number))
        found[number] = Lease(f"{number & 2**64 - 1:016x}", granted, max(0, left))

    await asyncio.gather(*map(ask, numbers))
    return found


async def read_clusters(connection: Connection) -> list[str]:
    """Return the names of the clusters that have anything in etcd. Raise `ConnectionFailedError`, also where the user
    may not look.
    """
    clusters: list[str] = []
    start = _CLUSTERS
    while (key := await _first_key(connection, start, prefix_end(_CLUSTERS))) is not None:
        name = key.removeprefix(_CLUSTERS).partition(b"/")[0]
        clusters.append(name.decode(errors="backslashreplace"))
        start = prefix_end(_CLUSTERS + name + b"/")
    return clusters


async def _first_key(connection: Connection, start: bytes, end: bytes) -> bytes | None:
    page = await connection.call("look for clusters", lambda client: client.page(start, end, limit=1, revision=0))
    return bytes(page.kvs[0].key) if page.kvs else None
