"""Who makes changes in a measured cluster: nodes that join and routes that change, written to etcd directly."""

import asyncio
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from aetcd import rpc

from ergo_registrar.core.keys import node_key, prefix_end
from ergo_registrar.etcd.client import _settings
from tests.benchmarks.membership import CLUSTER, application_entry, node_entry, options_for

_TTL = 3600  # seconds: longer than any run, and nobody need keep it alive
_NODES = node_key(CLUSTER, "x")[:-1]  # what every node's key begins with
_FLOWING = "flow@host"  # whose application changes


class Writer:
    """A client of etcd of its own, with one lease that carries all it puts. `clear` takes it back."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._lease = 0
        self._joined = 0
        self._weight = 1  # as in `join`: a route put again as it is changes nothing

    async def __aenter__(self) -> Self:
        self._channel = rpc.insecure_channel(
            self._endpoint, options=list(_settings(options_for(self._endpoint)).items())
        )
        self._kv: Any = rpc.KVStub(self._channel)
        self._leases: Any = rpc.LeaseStub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._channel.close()

    def probes(self, count: int) -> list[str]:
        """Return the names of the next nodes to join."""
        self._joined += count
        return [f"probe{number:04}@host" for number in range(self._joined - count, self._joined)]

    async def join(self, name: str) -> float:
        """Let a node join with its application, as a registrar does; return when, just before it was sent."""
        return await self._put([node_entry(name), application_entry(name)])

    async def begin_flow(self) -> None:
        """Let the node join whose application is to change."""
        await self.join(_FLOWING)

    async def flow(self, rate: float, seconds: float) -> int:
        """Change a route so many times a second, evenly; return how often. One that is late delays those after it."""
        changes, ends = 0, time.monotonic() + seconds
        while (began := time.monotonic()) < ends:
            self._weight += 1
            await self._put([application_entry(_FLOWING, self._weight)])
            changes += 1
            await asyncio.sleep(max(0.0, began + 1 / rate - time.monotonic()))
        return changes

    async def clear(self) -> None:
        """Take all back that was put, in one revision."""
        if self._lease:
            await self._leases.LeaseRevoke(rpc.LeaseRevokeRequest(ID=self._lease), timeout=30)
            self._lease = 0

    async def lives(self) -> dict[bytes, int]:
        """Return the key of each node, and the revision that it was created at."""
        request = rpc.RangeRequest(key=_NODES, range_end=prefix_end(_NODES), keys_only=True)
        return {kv.key: kv.create_revision for kv in (await self._kv.Range(request, timeout=30)).kvs}

    async def _put(self, entries: Iterable[tuple[bytes, bytes]]) -> float:
        if not self._lease:
            self._lease = (await self._leases.LeaseGrant(rpc.LeaseGrantRequest(TTL=_TTL), timeout=30)).ID
        puts = [rpc.PutRequest(key=key, value=value, lease=self._lease) for key, value in entries]
        request = rpc.TxnRequest(success=[rpc.RequestOp(request_put=put) for put in puts])
        began = time.monotonic()
        await self._kv.Txn(request, timeout=30)
        return began
