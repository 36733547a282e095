"""The curves of a report, as drawings beside the page that shows them."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure as Drawing

from tests.benchmarks.curves import PLOTS, Curve, Plot, digest
from tests.benchmarks.report import KEPT, Report

_COLOURS = {"ours": "#2962ff", "raw": "#888888"}


def draw(report: Report, directory: Path = KEPT.parent) -> None:
    """Write each plot of a report. The same report gives the same bytes."""
    mpl.rcParams["svg.hashsalt"] = "ergo_registrar"
    for plot in PLOTS:
        _draw(plot, plot.curves(report), directory / plot.file, digest(plot, report))


def _draw(plot: Plot, curves: list[Curve], path: Path, of: str) -> None:
    drawing = Drawing(figsize=(7, 4), layout="constrained")
    axes = drawing.add_subplot(xscale="log", yscale="log", xlabel=plot.across, ylabel=plot.up, title=plot.title)
    for curve in curves:
        x, y = zip(*curve.points, strict=True)
        style = "--" if "p99" in curve.name else "-"
        axes.plot(x, y, style, marker="o", label=curve.name, color=_COLOURS.get(curve.of))
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    drawing.savefig(path, metadata={"Date": None, "Description": of})
