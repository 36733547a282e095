"""`python -m tests.benchmarks.page`: write the kept figures into docs/explanation/performance.md, and plot them.

The figures stand in docs/explanation/benchmarks.json, as `nox -s bench` wrote them.
"""

from collections.abc import Iterable
from math import floor, log10

from tests.benchmarks.report import KEPT, Figure, Report, read

PAGE = KEPT.with_name("performance.md")
BEGIN, END = "<!-- {} of benchmarks.json, by tests/benchmarks/page.py -->\n", "<!-- end of {} -->\n"


def written(page: str, report: Report) -> str:
    """Return the page with the figures of a report."""
    for name, text in {"the machine": machine(report), "goals": goals(report), "figures": figures(report)}.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n{text}\n{end}{after}"
    return page


def machine(report: Report) -> str:
    """Return what all figures depend on, as a sentence."""
    on = report.machine
    packages = ", ".join(f"{name} {version}" for name, version in on.packages.items())
    return f"{on.cores} cores of {on.cpu}, {on.system}, Python {on.python}, etcd {on.etcd}; {packages}.\n"


def goals(report: Report) -> str:
    """Return the table of what has a goal."""
    rows = [
        (each.row, each.name, _goal(each), _number(each.median, each.unit), _spread(each), _verdict(each))
        for each in report.figures
        if each.goal is not None
    ]
    return _table(("row", "what", "goal", "measured", "rounds", ""), _without_repetition(rows))


def figures(report: Report) -> str:
    """Return the table of all that has no goal, and what could not be measured."""
    rows = [
        (each.row, each.name, _number(each.median, each.unit), _spread(each), each.note)
        for each in report.figures
        if each.goal is None
    ]
    table = _table(("row", "what", "measured", "rounds", ""), _without_repetition(rows))
    missing = "".join(f"- {what}: {_plain(why)}\n" for what, why in report.missing.items())
    return f"{table}\nNot measured:\n\n{missing}" if missing else table


def _goal(figure: Figure) -> str:
    assert figure.goal is not None
    return f"{'≤' if figure.better == 'lower' else '≥'} {_number(figure.goal, figure.unit)}"


def _verdict(figure: Figure) -> str:
    said = "met" if figure.met else "**not met**"
    return f"{said}: {_plain(figure.note)}" if figure.note else said


def _spread(figure: Figure) -> str:
    least, most = figure.spread
    count = len(figure.rounds)
    return f"{_digits(least)} to {_digits(most)} in {count}" if count > 1 else "1"


def _number(value: float, unit: str) -> str:
    return f"{_digits(value)} x" if unit == "x" else f"{_digits(value)} {unit}"


def _digits(value: float) -> str:
    """Return a number with three digits that count, and with all of a whole one."""
    if value == 0:
        return "0"
    return f"{value:,.{max(0, 2 - floor(log10(abs(value))))}f}"


def _plain(text: str) -> str:
    """Return a text that a table can hold."""
    words = " ".join(text.replace("|", "/").split())
    return words if len(words) <= 200 else f"{words[:200]} ..."


def _without_repetition(rows: Iterable[tuple[str, ...]]) -> Iterable[tuple[str, ...]]:
    before = None
    for row in rows:
        yield (row[0] if row[0] != before else "", *row[1:])
        before = row[0]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


if __name__ == "__main__":
    kept = read(KEPT)
    PAGE.write_text(written(PAGE.read_text(), kept))
    from tests.benchmarks import plots  # what draws is not installed where only the page is compared

    plots.draw(kept)
