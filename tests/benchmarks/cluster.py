"""Whole clusters on one etcd: how soon a node is seen, what that costs, and who is lost when it gets rough.

Beside every cluster of registrars stands one of bare gRPC: the limit of what any client in Python could do.
"""

import asyncio
import contextlib
import importlib.util
from collections.abc import Iterator

import msgspec

from ergo_registrar import RegistrarError
from tests.benchmarks.cluster_figures import Findings
from tests.benchmarks.cluster_runs import Plan, Taken, alone, side_by_side
from tests.benchmarks.report import Figure
from tests.benchmarks.setting import Setting
from tests.benchmarks.stage import Kind
from tests.benchmarks.workers import StageError

_QUICK = 100  # nodes; measured in a whole run, too, so that the two can be compared
_SMALL = (10, 50, 200)
_UVLOOP = 200  # nodes


def measure(setting: Setting) -> tuple[list[Figure], dict[str, str]]:
    """Measure the clusters that fit beside each other. Return their figures, and why others are missing."""
    findings = Findings()
    asyncio.run(_quick(findings) if setting.quick else _whole(findings))
    return findings.figures, findings.missing


async def _quick(findings: Findings) -> None:
    await _pair(findings, _QUICK, Plan(rounds=5, joins=5, flow=0.7, rest=3, kill=True))


async def _whole(findings: Findings) -> None:
    await _quick(findings)
    plan = Plan(rounds=5, joins=10, flow=2, rest=10)
    for nodes in _SMALL:
        await _pair(findings, nodes, plan)
    suffix = ", uvloop"
    if importlib.util.find_spec("uvloop"):
        await _pair(findings, _UVLOOP, plan, suffix)
    else:
        findings.missing[f"{_UVLOOP} nodes{suffix}"] = "uvloop is not installed"


async def apart(findings: Findings, nodes: int, plan: Plan, *, beside_raw: bool = True) -> None:
    """Measure a cluster that has the machine to itself, after one of bare gRPC that had."""
    raw_plan = msgspec.structs.replace(plan, hold=0, pause=0, kill=False)
    raw = await _alone(findings, Kind.RAW, nodes, raw_plan) if beside_raw else None
    registrars = await _alone(findings, Kind.REGISTRARS, nodes, plan)
    if raw is not None and registrars is not None:
        findings.compare(raw, registrars)


async def _pair(findings: Findings, nodes: int, plan: Plan, suffix: str = "") -> None:
    with _noting(findings, f"{nodes:,} nodes{suffix}"):
        raw, registrars = await side_by_side(nodes, plan, uvloop=bool(suffix))
        for taken in (registrars, raw):
            findings.take(taken, suffix)
        findings.compare(raw, registrars, suffix)


async def _alone(findings: Findings, kind: Kind, nodes: int, plan: Plan) -> Taken | None:
    taken = None
    with _noting(findings, f"{nodes:,} nodes of {kind.name.lower()}"):
        taken = await alone(kind, nodes, plan)
        findings.take(taken)
    return taken


@contextlib.contextmanager
def _noting(findings: Findings, what: str) -> Iterator[None]:
    """Tell of a stage, and let the run go on when it cannot be set up."""
    print(f"cluster: {what}", flush=True)
    try:
        yield
    except (StageError, RegistrarError, OSError) as error:
        findings.missing[what] = str(error)
