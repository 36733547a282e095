"""Whole clusters on one etcd: how soon a node is seen, what that costs, and who is lost when it gets rough.

Beside every cluster of registrars stands one of bare gRPC: the limit of what any client in Python could do.
"""

import asyncio
import contextlib
import importlib.util
from collections.abc import Iterator

from ergo_registrar import RegistrarError
from tests.benchmarks.cluster_figures import Findings
from tests.benchmarks.cluster_runs import Plan, Taken, alone, side_by_side
from tests.benchmarks.report import Figure
from tests.benchmarks.setting import Setting
from tests.benchmarks.stage import Kind
from tests.benchmarks.workers import StageError

_QUICK = 100  # nodes; measured in a whole run, too, so that the two can be compared
_SMALL = (10, 50, 200)
_LARGE = (500, 1000, 3000)
_MAIN = 1000  # nodes; most goals are of them
_UVLOOP = 200  # nodes


def measure(setting: Setting) -> tuple[list[Figure], dict[str, str]]:
    """Measure all clusters of a run. Return their figures, and why others are missing."""
    findings = Findings()
    asyncio.run(_quick(setting, findings) if setting.quick else _whole(setting, findings))
    return findings.figures, findings.missing


async def _quick(setting: Setting, findings: Findings) -> None:
    await _pair(findings, _QUICK, Plan(rounds=setting.rounds, joins=5, flow=0.7, rest=3, kill=True))


async def _whole(setting: Setting, findings: Findings) -> None:
    await _quick(setting, findings)
    for nodes in _SMALL:
        await _pair(findings, nodes, Plan(rounds=setting.rounds, joins=10, flow=2, rest=10))
    suffix = ", uvloop"
    if importlib.util.find_spec("uvloop"):
        await _pair(findings, _UVLOOP, Plan(rounds=setting.rounds, joins=10, flow=2, rest=10), suffix)
    else:
        findings.missing[f"{_UVLOOP} nodes{suffix}"] = "uvloop is not installed"
    for nodes in _LARGE:
        is_main = nodes == _MAIN
        plan = Plan(rounds=5, joins=12, flow=5, rest=30)
        raw = await _alone(findings, Kind.RAW, nodes, plan)
        plan = Plan(rounds=5, joins=12, flow=5, rest=30, hold=600 if is_main else 0, kill=is_main)
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
