"""`python -m tests.benchmarks [--quick] [--output FILE] [PART ...]`: measure, print a table, write a report."""

import argparse
import asyncio
import importlib
import sys
from pathlib import Path

from aetcd import rpc

from ergo_registrar.etcd.server import LocalEtcd
from tests.benchmarks import raw
from tests.benchmarks.report import Report, read, this_machine, write
from tests.benchmarks.setting import Setting

PARTS = ("calls", "events", "propagation", "listing", "idle", "cluster")
"""Each is a module here, whose `measure(setting)` returns its figures, and what is missing, by name."""


def main() -> int:
    """Run the parts that are asked for, all without any."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="few and small rounds: under two minutes")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks.json"), help="the report to write, or to add to"
    )
    asked = parser.parse_args()
    setting = Setting.from_env(quick=asked.quick)
    report = Report(quick=asked.quick, machine=this_machine(asyncio.run(_etcd_version())))
    if asked.parts and asked.output.exists():
        report = read(asked.output)
    for part in asked.parts or PARTS:
        figures, missing = importlib.import_module(f"tests.benchmarks.{part}").measure(setting)
        report.add(figures)
        report.missing |= missing
        write(report, asked.output)
        for figure in figures:
            least, most = figure.spread
            verdict = {True: "met", False: "NOT MET", None: ""}[figure.met]
            print(
                f"{figure.name:70} {figure.median:12.4g} {figure.unit:8} {least:.4g} to {most:.4g} {verdict}",
                flush=True,
            )
        for what, why in missing.items():
            print(f"{what}: not measured: {why}", flush=True)
    return 0


async def _etcd_version() -> str:
    """Return the version of the etcd that the benchmarks will find, as its own status tells."""
    async with LocalEtcd() as etcd, raw.channel(etcd.endpoint) as channel, asyncio.timeout(10):
        version: str = (await rpc.MaintenanceStub(channel).Status(rpc.StatusRequest())).version
        return version


if __name__ == "__main__":
    sys.exit(main())
