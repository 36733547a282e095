"""How the benchmarks tell what they found: which ratio is worse, and that the page shows the kept figures."""

from pathlib import Path

import pytest

from tests.benchmarks import page
from tests.benchmarks.compare import worse
from tests.benchmarks.curves import PLOTS, Plot, digest
from tests.benchmarks.report import KEPT, Better, Figure, Report, read, this_machine, write


def figure(name: str = "cost", *rounds: float, better: Better = "lower", relative: bool = True) -> Figure:
    return Figure(row="a row", name=name, unit="x", rounds=list(rounds), better=better, relative=relative)


@pytest.mark.parametrize(
    ("now", "better", "found"),
    [
        (1.2, "lower", False),
        (1.34, "lower", True),
        (0.5, "lower", False),
        (0.8, "higher", False),
        (0.74, "higher", True),
        (2.0, "higher", False),
    ],
)
def test_a_ratio_that_is_worse_by_a_third_is_told(now: float, better: Better, found: bool) -> None:
    told = worse([figure("cost", 1.0, better=better)], [figure("cost", now, better=better)])
    assert (list(told) == ["cost"]) is found


def test_it_says_how_much_it_was_and_is() -> None:
    assert worse([figure("cost", 1.0, 1.0, 9.0)], [figure("cost", 2.0)]) == {"cost": "2 x, was 1: worse by 100%"}


def test_times_of_two_machines_are_not_compared_nor_what_only_one_run_has() -> None:
    kept = [figure("time", 1.0, relative=False), figure("gone", 1.0)]
    assert worse(kept, [figure("time", 9.0, relative=False), figure("new", 9.0)]) == {}


def test_a_figure_counts_by_its_median_and_knows_whether_its_goal_is_met() -> None:
    seconds = Figure(row="a row", name="up", unit="s", rounds=[9.0, 1.0, 2.0], goal=2.0)
    assert (seconds.median, seconds.spread, seconds.met) == (2.0, (1.0, 9.0), True)
    rate = Figure(row="a row", name="rate", unit="events/s", rounds=[9.0, 10.0, 11.0], goal=10.5, better="higher")
    assert rate.met is False
    assert figure("cost", 1.0).met is None


def test_a_report_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    report = Report(quick=True, machine=this_machine("3.5.1"), figures=[figure("a", 1.5, 2.5)], missing={"b": "why"})
    write(report, tmp_path / "report.json")
    assert read(tmp_path / "report.json") == report


def test_a_figure_that_is_measured_again_replaces_the_one_before() -> None:
    report = Report(quick=True, machine=this_machine(""), figures=[figure("a", 1.0), figure("b", 1.0)])
    report.add([figure("a", 2.0), figure("c", 3.0)])
    assert [(each.name, each.median) for each in report.figures] == [("a", 2.0), ("c", 3.0), ("b", 1.0)]


def test_the_page_shows_the_figures_that_are_kept() -> None:
    text = page.PAGE.read_text()
    assert text == page.written(text, read(KEPT)), "write them anew: python -m tests.benchmarks.page"


@pytest.mark.parametrize("plot", PLOTS, ids=[plot.file for plot in PLOTS])
def test_the_drawings_are_of_the_figures_that_are_kept(plot: Plot) -> None:
    drawn = KEPT.with_name(plot.file).read_text()
    assert digest(plot, read(KEPT)) in drawn, "draw them anew: python -m tests.benchmarks.page"
    assert len(plot.curves(read(KEPT))) >= 2


def test_a_goal_that_is_not_met_is_told_as_plainly_as_one_that_is() -> None:
    met = Figure(row="a row", name="one", unit="us", rounds=[1.5], goal=2.0)
    missed = Figure(row="a row", name="two", unit="x", rounds=[1.0, 3.0, 2.5], goal=2.0, note="a | reason")
    shown = page.goals(Report(quick=False, machine=this_machine(""), figures=[met, missed]))
    assert "| a row | one | ≤ 2.00 us | 1.50 us | 1 | met |" in shown
    assert "|  | two | ≤ 2.00 x | 2.50 x | 1.00 to 3.00 in 3 | **not met**: a / reason |" in shown
