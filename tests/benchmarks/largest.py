"""A cluster of 3,000 nodes, alone on the machine. Bare gRPC is not measured beside it."""

import asyncio

from tests.benchmarks.cluster import apart
from tests.benchmarks.cluster_figures import Findings
from tests.benchmarks.cluster_runs import Plan
from tests.benchmarks.report import Figure
from tests.benchmarks.setting import Setting


def measure(setting: Setting) -> tuple[list[Figure], dict[str, str]]:
    """Measure it; in short, not."""
    findings = Findings()
    if not setting.quick:
        plan = Plan(rounds=2, joins=12, flow=5, rest=30)
        asyncio.run(apart(findings, 3000, plan, beside_raw=False))
    return findings.figures, findings.missing
