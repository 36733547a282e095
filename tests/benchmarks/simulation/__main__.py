"""`python -m tests.benchmarks.simulation [--write] [REPORT]`: what a cluster of any size would cost, by a report.

Prints the tables of docs/explanation/scaling.md, or writes them into it.
"""

import argparse
import sys
from pathlib import Path

from tests.benchmarks.report import KEPT, read
from tests.benchmarks.simulation import page
from tests.benchmarks.simulation.figures import MissingFigureError


def main() -> int:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.simulation", description=__doc__)
    parser.add_argument("report", nargs="?", type=Path, default=KEPT, help="as the benchmarks wrote it")
    parser.add_argument("--write", action="store_true", help=f"into {page.PAGE.name}, instead of printing them")
    asked = parser.parse_args()
    if not asked.report.exists():
        print(f"there is no report {asked.report}: python -m tests.benchmarks writes one", file=sys.stderr)
        return 1
    try:
        report = read(asked.report)
        if asked.write:
            page.write(page.PAGE, report)
        else:
            print(page.tables(report))
    except MissingFigureError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
