"""`python -m tests.benchmarks.raw_node SETUP`: the raw limit, a process of many nodes that are bare gRPC.

Each has what a registrar has in etcd, and nothing of a registrar: a channel, a lease kept alive, five watches on one
stream. No value is decoded, no event made, nothing checked, nothing comes back when it breaks.
"""

import asyncio
import time
from typing import Any

import grpc
from aetcd import rpc

from ergo_registrar.core.keys import config_prefixes, node_key, prefix_end, routes_prefix
from ergo_registrar.etcd.client import _settings
from tests.benchmarks.membership import CLUSTER, application_entry, node_entry, options_for
from tests.benchmarks.worker import main

_TTL = 10  # seconds, as Options has it
_NODES = node_key(CLUSTER, "x")[:-1]  # what every node's key begins with


class RawNodes:
    """Many nodes of bare gRPC."""

    def __init__(self, endpoint: str) -> None:
        self.delivered = 0
        self._endpoint = endpoint
        self._settings = list(_settings(options_for(endpoint)).items())
        self._seen: dict[str, set[bytes]] = {}  # node -> the keys of all nodes it knows of
        self._arrivals: dict[bytes, list[float]] = {}
        self._lost = 0
        self._broken = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._calls: list[Any] = []  # a call that nobody holds is cancelled

    async def start(self, name: str) -> None:
        channel = rpc.insecure_channel(self._endpoint, options=self._settings)
        kv, leases, watches = rpc.KVStub(channel), rpc.LeaseStub(channel), rpc.WatchStub(channel)
        lease = (await leases.LeaseGrant(rpc.LeaseGrantRequest(TTL=_TTL))).ID
        puts = [rpc.PutRequest(key=k, value=v, lease=lease) for k, v in (node_entry(name), application_entry(name))]
        await kv.Txn(rpc.TxnRequest(success=[rpc.RequestOp(request_put=put) for put in puts]))
        self._tasks.append(asyncio.create_task(self._keep_alive(leases.LeaseKeepAlive(), lease)))
        prefix = routes_prefix(CLUSTER)
        listed = await kv.Range(rpc.RangeRequest(key=prefix, range_end=prefix_end(prefix)))
        self._seen[name] = {kv.key for kv in listed.kvs if kv.key.startswith(_NODES)}
        stream = watches.Watch()
        for number, watched in enumerate((prefix, *config_prefixes(CLUSTER, name).values()), start=1):
            create = rpc.WatchCreateRequest(
                key=watched,
                range_end=prefix_end(watched),
                start_revision=listed.header.revision + 1,
                watch_id=number,
                progress_notify=True,
                fragment=True,
            )
            await stream.write(rpc.WatchRequest(create_request=create))
        self._tasks.append(asyncio.create_task(self._follow(stream, self._seen[name])))
        self._calls += [channel, stream]

    async def _keep_alive(self, call: Any, lease: int) -> None:
        try:
            while True:
                await asyncio.sleep(_TTL / 3)
                await call.write(rpc.LeaseKeepAliveRequest(ID=lease))
                answer = await call.read()
                if answer is grpc.aio.EOF or answer.TTL <= 0:
                    self._lost += 1
                    return
        except grpc.aio.AioRpcError:
            self._lost += 1

    async def _follow(self, stream: Any, seen: set[bytes]) -> None:
        try:
            while (answer := await stream.read()) is not grpc.aio.EOF:
                self.delivered += len(answer.events)
                for event in answer.events:
                    key = event.kv.key
                    if not key.startswith(_NODES):
                        continue
                    if event.type == rpc.Event.PUT:
                        seen.add(key)
                        stamps = self._arrivals.get(key)
                        if stamps is not None:
                            stamps.append(time.monotonic())
                    else:
                        seen.discard(key)
        except grpc.aio.AioRpcError:
            pass
        self._broken += 1

    def known(self, name: str) -> int:
        return len(self._seen[name])

    async def seen(self, name: str) -> set[str]:
        return {key.removeprefix(_NODES).decode() for key in self._seen[name]}

    def expect(self, probes: list[str]) -> None:
        self._arrivals = {node_key(CLUSTER, probe): [] for probe in probes}

    def arrivals(self) -> dict[str, list[float]]:
        return {key.removeprefix(_NODES).decode(): stamps for key, stamps in self._arrivals.items()}

    def faults(self) -> dict[str, float]:
        return {"sessions lost": self._lost, "streams broken": self._broken}


if __name__ == "__main__":
    main(RawNodes, grpc.aio.AioRpcError)
