"""What a call costs that is answered from memory, and what it costs to tell of an event.

The measuring is pytest-benchmark's, in a process of its own: calls_bench.py. Before each of its rounds the yardstick is
measured, the await of a coroutine that looks into a dict: what a call costs in yardsticks, machines can be compared by.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.report import Figure
from tests.benchmarks.setting import QUICK, Setting

_BENCH = Path(__file__).with_name("calls_bench.py")
_TIMEOUT = 300.0  # seconds for all of them


def measure(setting: Setting) -> tuple[list[Figure], dict[str, str]]:
    """Have pytest-benchmark measure all calls."""
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory) / "found.json"
        quiet = ("--noconftest", "-p", "no:randomly", "-p", "no:cacheprovider", "--benchmark-columns=median", "-q")
        command = [sys.executable, "-m", "pytest", *quiet, f"--benchmark-json={found}", str(_BENCH)]
        environment = os.environ | ({QUICK: "1"} if setting.quick else {})
        ran = subprocess.run(
            [
                *command,
                f"--benchmark-json={found}",
                "--benchmark-disable-gc",
                "--benchmark-columns=median",
                str(_BENCH),
            ],
            env=environment,
            cwd=_BENCH.parents[2],
            timeout=_TIMEOUT,
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode != 0:
            return [], {"calls from memory": ran.stdout[-2000:] + ran.stderr[-2000:]}
        benchmarks = json.loads(found.read_text())["benchmarks"]
    return [figure for benchmark in benchmarks for figure in _figures(benchmark)], {}


def _figures(benchmark: dict[str, Any]) -> list[Figure]:
    told = benchmark["extra_info"]
    seconds = [each / told["calls"] for each in benchmark["stats"]["data"]]
    in_unit = [each * {"us": 1e6, "ms": 1e3}[told["unit"]] for each in seconds]
    ratios = [each / yardstick for each, yardstick in zip(seconds, told["yardsticks"], strict=True)]
    name, row = told["name"], told["row"]
    return [
        Figure(row=row, name=name, unit=told["unit"], rounds=in_unit, goal=told["goal"]),
        Figure(row=row, name=f"{name}, x yardstick", unit="x", rounds=ratios, relative=True),
    ]
