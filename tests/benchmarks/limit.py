"""A cluster whose node keys no longer fit into 4 MiB, asked for by Ergo's own registrar in Go, and by this one."""

import asyncio
import time
from collections.abc import Iterator

from aetcd import rpc

from ergo_registrar import Options, Registrar
from ergo_registrar.core.edf import encode_routes
from ergo_registrar.core.keys import node_key
from ergo_registrar.etcd.server import LocalEtcd
from tests.benchmarks import raw
from tests.benchmarks.apart import GO_ROW
from tests.benchmarks.population import PART
from tests.benchmarks.programs import ProgramError, run
from tests.benchmarks.report import Figure
from tests.benchmarks.setting import GO_PEER, Setting

NODES = 30_000
CLUSTER = "bench-limit"
TIMEOUT = 30.0  # seconds for an answer


def measure(setting: Setting) -> tuple[list[Figure], dict[str, str]]:
    """Ask both for the nodes of such a cluster."""
    if setting.quick:
        return [], {}
    missing: dict[str, str] = {}
    return asyncio.run(_measure(setting, missing)), missing


async def _measure(setting: Setting, missing: dict[str, str]) -> list[Figure]:
    async with LocalEtcd() as etcd:
        async with raw.channel(etcd.endpoint) as channel:
            for part in _parts():
                await rpc.KVStub(channel).Txn(rpc.TxnRequest(success=part))
        began = time.perf_counter()
        async with Registrar(Options(endpoints=etcd.endpoints, cluster=CLUSTER)) as registrar:
            seconds = time.perf_counter() - began
            ours = len(await registrar.nodes())
        figures = [
            Figure(
                row=GO_ROW,
                name=f"nodes() of a cluster of {NODES:,}, ours",
                unit="nodes",
                rounds=[ours],
                goal=NODES,
                better="higher",
            ),
            Figure(row=GO_ROW, name="the same, until entered, ours", unit="s", rounds=[seconds]),
        ]
        if setting.go_peer is None:
            missing["Go's registrar"] = f"{GO_PEER} names no program"
            return figures
        command = [setting.go_peer, "--endpoint", etcd.endpoint, "--cluster", CLUSTER, "--nodes", "1", "--prefix", "go"]
        async with run("Go's registrar", command) as go:
            try:
                await go.hear(TIMEOUT)
                found, note = (await go.ask("nodes", TIMEOUT))["count"], ""
            except ProgramError as error:
                found, note = 0, str(error)
        name = f"Nodes() of a cluster of {NODES:,}, Go's registrar"
        return [*figures, Figure(row=GO_ROW, name=name, unit="nodes", rounds=[found], note=note)]


def _parts() -> Iterator[list[object]]:
    value = encode_routes(())
    for first in range(0, NODES, PART):
        nodes = (f"node{number:06}@host.example.com" for number in range(first, first + PART))
        puts = [rpc.PutRequest(key=node_key(CLUSTER, node), value=value) for node in nodes]
        yield [rpc.RequestOp(request_put=put) for put in puts]
