"""What a run of the benchmarks found: figures, and whose machine. Kept in docs/explanation/benchmarks.json."""

import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec

KEPT = Path(__file__).parents[2] / "docs/explanation/benchmarks.json"

Better = Literal["lower", "higher"]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was measured, once in each round.

    `row` is the row of the table it belongs to, `name` tells it from the others in the run. `goal` is None for what is
    only shown, such as a peer's own time. Figures that are `relative` are ratios to something measured in the same
    round of the same run, and steady, so that two machines can be compared by them. Figures of one `series` make a
    curve: `at` is where on it.
    """

    row: str
    name: str
    unit: str
    rounds: list[float]
    goal: float | None = None
    better: Better = "lower"
    relative: bool = False
    series: str | None = None
    at: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest of the rounds."""
        return min(self.rounds), max(self.rounds)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        return self.median <= self.goal if self.better == "lower" else self.median >= self.goal


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures depend on."""

    cpu: str
    cores: int
    system: str
    python: str
    packages: dict[str, str]
    etcd: str


class Report(msgspec.Struct, kw_only=True):
    """All figures of one run."""

    quick: bool
    machine: Machine
    figures: list[Figure] = []
    missing: dict[str, str] = {}
    """What could not be measured here, and why."""

    def add(self, other: "list[Figure]") -> None:
        """Take these figures instead of those of the same names, and in their place."""
        names = {figure.name for figure in other}
        at = next((at for at, figure in enumerate(self.figures) if figure.name in names), len(self.figures))
        behind = [figure for figure in self.figures[at:] if figure.name not in names]
        self.figures = self.figures[:at] + other + behind


def this_machine(etcd: str) -> Machine:
    """Return what this run's figures depend on; `etcd` is the version of the etcd that is used."""
    return Machine(
        cpu=_cpu(),
        cores=os.cpu_count() or 0,
        system=platform.platform(terse=True),
        python=platform.python_version(),
        packages={name: version(name) for name in ("ergo-registrar", "grpcio", "protobuf", "msgspec", "anyio")},
        etcd=etcd,
    )


def read(path: Path) -> Report:
    """Return a report from its file."""
    return msgspec.json.decode(path.read_bytes(), type=Report)


def write(report: Report, path: Path) -> None:
    """Write a report to its file, one figure a line."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
