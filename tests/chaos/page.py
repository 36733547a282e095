"""`python -m tests.chaos.page`: write the figures of kept runs into docs/explanation/reliability.md.

The runs stand in docs/explanation/chaos.jsonl, one line each, as `python -m tests.chaos --json` wrote them.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos import plan

EXPLANATION = Path(__file__).parents[2] / "docs/explanation"
PAGE, RUNS = EXPLANATION / "reliability.md", EXPLANATION / "chaos.jsonl"
BEGIN, END = "<!-- figures of chaos.jsonl, by tests/chaos/page.py -->\n", "<!-- end of figures -->\n"

_SUMS = (
    *("chapters", "lives", "events delivered", "events missed", "reconnects", "re-registrations"),
    *("changes in etcd", "checks"),
)


def figures(runs: list[dict[str, Any]]) -> str:
    """Return the tables of these runs, in Markdown."""
    steps: Counter[str] = Counter()
    longest: dict[str, float] = {}
    calls: dict[str, float] = {}
    for run in runs:
        steps.update(run["steps"])
        for kept, measured in ((longest, run["longest"]), (calls, run["longest call"])):
            for what, seconds in measured.items():
                kept[what] = max(kept.get(what, 0.0), seconds)
    broken = sum(bool(run["violations"]) for run in runs)
    rows = [
        ("runs, each of a seed of its own", len({run["seed"] for run in runs})),
        ("minutes", round(sum(run["seconds"] for run in runs) / 60)),
        *((what, sum(run[what] for run in runs)) for what in _SUMS),
        ("runs in which the checker found a promise broken", broken),
    ]
    kinds: Counter[str] = Counter()
    for step, count in steps.items():
        kinds[plan.category(step)] += count
    drawn = [(kind, count, _listed(steps, kind)) for kind, count in kinds.most_common()]
    waited = [(what, f"{seconds:.2f} s") for what, seconds in longest.items() if ", with " not in what]
    by_fault = sorted(
        ((what.partition(", with ")[2], seconds) for what, seconds in longest.items() if ", with " in what),
        key=lambda each: -each[1],
    )
    return "\n".join(
        [
            _table(("what", "count"), rows),
            "Faults and deeds that were drawn:\n",
            _table(("kind", "count", "of these"), drawn),
            "The longest that anything took, on two cores that up to four such runs shared with other tests:\n",
            _table(("from the fault's end, or the deed, until", "at most"), waited),
            "Until every process knew all again, by a fault of that chapter: "
            + ", ".join(f"{fault} {seconds:.1f} s" for fault, seconds in by_fault)
            + ".\n",
            "Public calls, the longest of each: "
            + ", ".join(f"`{call}` {calls[call]:.2f} s" for call in sorted(calls))
            + ".\n",
        ]
    )


def written(page: str, runs: list[dict[str, Any]]) -> str:
    """Return the page with the figures of these runs."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{figures(runs)}\n{END}{after}"


def kept_runs() -> list[dict[str, Any]]:
    """Return the runs that are kept."""
    return [json.loads(line) for line in RUNS.read_text().splitlines()]


def _listed(steps: Counter[str], kind: str) -> str:
    return ", ".join(f"{step} {count}" for step, count in steps.most_common() if plan.category(step) == kind)


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *cells))


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(), kept_runs()))
