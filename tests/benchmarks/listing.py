"""How long it takes to read a large cluster, and how much memory: 10,000 nodes that run 100,000 applications.

Ours is to enter as an observer: everything read, decoded and ready to be asked, and the watches open. It is measured
by pages of a thousand keys read by bare gRPC, of which nothing is kept; and by larger ones, since etcd counts at each
page all the keys that are left, so that small ones cost it more than all else. aetcd and etcetra read all keys in one
answer. Each in a fresh process (lister.py), which has done the same on an empty cluster before; memory is counted from
there on: the peak, and what is in use when it is entered.
"""

import asyncio
import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterator

import msgspec

from ergo_registrar.core.keys import routes_prefix
from ergo_registrar.etcd.server import LocalEtcd
from tests.benchmarks import raw
from tests.benchmarks.lister import LARGE, LISTERS, Listed
from tests.benchmarks.population import keys_of, populate
from tests.benchmarks.programs import ProgramError, module, once
from tests.benchmarks.report import Figure
from tests.benchmarks.setting import ETCETRA, Setting
from tests.benchmarks.timing import each

ROW = "list 10,000 nodes and 100,000 application routes"
NODES = (100, 1_000, 10_000)
TIMEOUT = 60.0  # seconds for one process

Measured = dict[tuple[str, int], list[Listed]]
"""What each took, round by round: by its name and the number of nodes."""


def measure(setting: Setting) -> tuple[list[Figure], dict[str, str]]:
    """Measure all sizes; in short, all but the largest."""
    if sys.platform == "win32":
        return [], {ROW: "Windows does not tell a process's peak of memory as it is counted here"}
    missing: dict[str, str] = {}
    if setting.etcetra is None:
        missing["listing, etcetra"] = f"{ETCETRA} names no Python that has it"
    measured = asyncio.run(_measure(setting, NODES[:2] if setting.quick else NODES, missing))
    return [figure for (kind, nodes) in measured for figure in _figures(kind, nodes, measured)], missing


async def _measure(setting: Setting, sizes: tuple[int, ...], missing: dict[str, str]) -> Measured:
    measured: Measured = defaultdict(list)
    async with contextlib.AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(LocalEtcd())
        channel = await stack.enter_async_context(raw.channel(etcd.endpoint))
        commands: dict[tuple[str, int], list[str]] = {}
        for nodes in sizes:
            cluster = f"bench-{nodes}"
            await populate(channel, cluster, nodes)
            commands |= {(kind, nodes): module("lister", kind, etcd.endpoint, cluster) for kind in LISTERS}
            if setting.etcetra:
                prefix = routes_prefix(cluster).decode()
                etcetra = [setting.etcetra, "-m", "tests.benchmarks.etcetra_peer", "list", etcd.endpoint, prefix]
                commands["etcetra", nodes] = etcetra
        for _ in range(setting.rounds):
            for (kind, nodes), command in list(commands.items()):
                try:
                    measured[kind, nodes].append(await _list(kind, nodes, command))
                except ProgramError as error:
                    missing[_name(kind, nodes)] = str(error)
                    del commands[kind, nodes], measured[kind, nodes]
    return measured


async def _list(kind: str, nodes: int, command: list[str]) -> Listed:
    listed = msgspec.convert(await once(kind, command, TIMEOUT), Listed)
    if listed.keys != keys_of(nodes):
        raise ProgramError(f"{kind} found {listed.keys} keys, and there are {keys_of(nodes)}")
    return listed


def _figures(kind: str, nodes: int, measured: Measured) -> Iterator[Figure]:
    largest = nodes == NODES[-1]
    listed = measured[kind, nodes]
    name = _name(kind, nodes)
    seconds = [one.seconds for one in listed]
    yield Figure(row=ROW, name=name, unit="s", rounds=seconds, series=f"listing: {_shown(kind)}", at=keys_of(nodes))
    if kind != "registrar":
        return
    for yardstick in ("raw", LARGE):
        if least := measured.get((yardstick, nodes)):
            ratios = each(seconds, [one.seconds for one in least])
            goal = 3.0 if largest and yardstick == "raw" else None
            yield Figure(row=ROW, name=f"{name}, x {yardstick}", unit="x", rounds=ratios, goal=goal, relative=True)
    peaks = [one.peak for one in listed if one.peak is not None]
    kept = [one.kept for one in listed if one.kept is not None]
    if peaks:
        goal = 150.0 if largest else None
        yield Figure(row=ROW, name=f"{name}, peak above idle", unit="MB", rounds=peaks, goal=goal)
        yield Figure(row=ROW, name=f"{name}, kept above idle", unit="MB", rounds=kept)


def _name(kind: str, nodes: int) -> str:
    return f"list {keys_of(nodes):,} keys, {_shown(kind)}"


def _shown(kind: str) -> str:
    return "ours" if kind == "registrar" else kind
