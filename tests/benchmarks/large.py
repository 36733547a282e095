"""Clusters of 500 and 1,000 nodes, alone on the machine: the larger one for ten minutes, then paused, then halved."""

import asyncio

from tests.benchmarks.cluster import apart
from tests.benchmarks.cluster_figures import Findings
from tests.benchmarks.cluster_runs import Plan
from tests.benchmarks.report import Figure
from tests.benchmarks.setting import Setting


def measure(setting: Setting) -> tuple[list[Figure], dict[str, str]]:
    """Measure both; in short, none."""
    findings = Findings()
    if not setting.quick:
        asyncio.run(_measure(findings))
    return findings.figures, findings.missing


async def _measure(findings: Findings) -> None:
    await apart(findings, 500, Plan(rounds=5, joins=12, flow=5, rest=20))
    await apart(findings, 1000, Plan(rounds=5, joins=12, flow=5, rest=30, hold=600, pause=20, kill=True))
