"""Measure, print a table, and write a report.

Without PART, every part is measured, in this order: calls, events, propagation, listing, idle, limit, cluster,
large, largest. A ratio that is
worse by a third than in the report that is kept (docs/explanation/benchmarks.json) is measured once more, and if it is
worse again, the run fails.
"""

import argparse
import asyncio
import importlib
import sys
from pathlib import Path

from aetcd import rpc

from ergo_registrar.etcd.server import LocalEtcd
from tests.benchmarks import raw
from tests.benchmarks.compare import worse
from tests.benchmarks.report import KEPT, Figure, Report, read, this_machine, write
from tests.benchmarks.setting import Setting

PARTS = ("calls", "events", "propagation", "listing", "idle", "limit", "cluster", "large", "largest")
"""Each is a module here, whose `measure(setting)` returns its figures, and what is missing, by name."""


def main() -> int:
    """Run the parts that are asked for, all without any. Return 1 if something is worse than it was."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one or more of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="few and small rounds: under two minutes in all")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmarks.json"),
        help="the report to write, or to add PART to",
    )
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    setting = Setting.from_env(quick=asked.quick)
    report = Report(quick=asked.quick, machine=this_machine(asyncio.run(_etcd_version())))
    if asked.parts and asked.output.exists():
        report = read(asked.output)
    kept = read(KEPT).figures if KEPT.exists() and asked.output.resolve() != KEPT else []
    regressions: dict[str, str] = {}
    for part in asked.parts or PARTS:
        print(f"{part}:", flush=True)
        figures = _measured(part, setting, report, asked.output)
        if worse(kept, figures):
            print("Worse than in the kept report, so once more:", flush=True)
            first = worse(kept, figures)
            again = worse(kept, _measured(part, setting, report, asked.output))
            regressions |= {name: how for name, how in again.items() if name in first}
    for name, how in regressions.items():
        print(f"WORSE  {name}: {how}")
    return 1 if regressions else 0


def _measured(part: str, setting: Setting, report: Report, output: Path) -> list[Figure]:
    figures: list[Figure]
    figures, missing = importlib.import_module(f"tests.benchmarks.{part}").measure(setting)
    report.add(figures)
    report.missing = {what: why for what, why in report.missing.items() if not what.startswith(f"{part}, ")}
    report.missing |= {f"{part}, {what}": why for what, why in missing.items()}
    write(report, output)
    for figure in figures:
        least, most = figure.spread
        verdict = {True: "met", False: "NOT MET", None: ""}[figure.met]
        measured = f"{figure.median:12.4g} {figure.unit:8} {least:.4g} to {most:.4g}"
        print(f"  {figure.name:70} {measured} {verdict}", flush=True)
    for what, why in missing.items():
        print(f"  not measured: {what}: {why}", flush=True)
    return figures


async def _etcd_version() -> str:
    """Return the version of the etcd that the benchmarks will find, as its own status tells."""
    async with LocalEtcd() as etcd, raw.channel(etcd.endpoint) as channel, asyncio.timeout(10):
        version: str = (await rpc.MaintenanceStub(channel).Status(rpc.StatusRequest())).version
        return version


if __name__ == "__main__":
    sys.exit(main())
