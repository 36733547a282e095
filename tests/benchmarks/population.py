"""Clusters of a certain size, put into etcd as if the nodes had done it: valid keys and values, without leases."""

import asyncio
from collections.abc import Iterator
from itertools import islice
from typing import Any

from aetcd import rpc

from ergo_registrar import ApplicationMode, ApplicationRoute, ApplicationState, Route, Version
from ergo_registrar.core.edf import encode_application_route, encode_routes
from ergo_registrar.core.keys import application_key, node_key

APPLICATIONS = 100  # names; every node runs some of them
OF_EACH = 10  # applications on a node
PART = 100  # puts in a transaction

HANDSHAKE = Version(name="EHS", release="R1", license="BSL 1.1")
PROTO = Version(name="ENP", release="R1", license="BSL 1.1")


def keys_of(nodes: int) -> int:
    """Return how many keys a cluster of that many nodes has."""
    return nodes * (1 + OF_EACH)


async def populate(channel: Any, cluster: str, nodes: int) -> None:
    """Put a cluster of that many nodes."""
    transact = rpc.KVStub(channel).Txn
    puts = _puts(cluster, nodes)
    while part := list(islice(puts, PART)):
        async with asyncio.timeout(30):
            await transact(rpc.TxnRequest(success=[rpc.RequestOp(request_put=put) for put in part]))


def _puts(cluster: str, nodes: int) -> Iterator[Any]:
    for number in range(nodes):
        node = f"node{number}@host{number}.example.com"
        routes = [Route(node.partition("@")[2], 15000, handshake_version=HANDSHAKE, proto_version=PROTO)]
        yield rpc.PutRequest(key=node_key(cluster, node), value=encode_routes(routes))
        for place in range(OF_EACH):
            name = f"app{(number * OF_EACH + place) % APPLICATIONS}"
            route = ApplicationRoute(node, name, 100, ApplicationMode.PERMANENT, ApplicationState.RUNNING)
            yield rpc.PutRequest(key=application_key(cluster, name, node), value=encode_application_route(route))
