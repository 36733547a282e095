"""Which figures of a report make which curve of which plot."""

import hashlib

import msgspec

from tests.benchmarks.report import Report


class Curve(msgspec.Struct, frozen=True):
    """A line of a plot: whose it is, its name, and its points, from left to right."""

    of: str
    name: str
    points: list[tuple[float, float]]


class Plot(msgspec.Struct, frozen=True):
    """A plot: its file beside the page, its words, and the series it shows by the name and owner of their lines."""

    file: str
    title: str
    across: str
    up: str
    series: dict[str, tuple[str, str]]

    def curves(self, report: Report) -> list[Curve]:
        """Return the lines that a report has points for."""
        found = []
        for series, (of, name) in self.series.items():
            points = sorted(
                (each.at, each.median) for each in report.figures if each.series == series and each.at is not None
            )
            if points:
                found.append(Curve(of, name, points))
        return found


PLOTS = (
    Plot(
        "performance-joins.svg",
        "Until all others know of a node that joins",
        "nodes",
        "seconds",
        {
            "join p50 by nodes": ("ours", "registrars, p50"),
            "join p99 by nodes": ("ours", "registrars, p99"),
            "raw: join p50 by nodes": ("raw", "bare gRPC, p50"),
            "raw: join p99 by nodes": ("raw", "bare gRPC, p99"),
        },
    ),
    Plot(
        "performance-cost.svg",
        "What an event costs each client",
        "nodes",
        "CPU, us",
        {
            "CPU for an event by nodes": ("ours", "registrars"),
            "raw: CPU for an event by nodes": ("raw", "bare gRPC"),
        },
    ),
    Plot(
        "performance-listing.svg",
        "Reading a cluster",
        "keys",
        "seconds",
        {
            "listing: ours": ("ours", "a registrar, entered"),
            "listing: raw": ("raw", "bare gRPC, nothing kept"),
            "listing: etcetra": ("etcetra", "etcetra, in one answer"),
        },
    ),
)


def digest(plot: Plot, report: Report) -> str:
    """Return what stands in a drawing to tell which figures it shows."""
    return hashlib.sha256(msgspec.json.encode([plot, plot.curves(report)])).hexdigest()
