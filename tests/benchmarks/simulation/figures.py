"""The figures of a report that the simulation stands on, by their names, and those that it is held against."""

from tests.benchmarks.report import Report
from tests.benchmarks.simulation.model import Parameters

SMALL, MAIN = 100, 1000  # nodes of the clusters whose figures are taken
LISTED = 11_000  # keys
VALIDATED = (100, 1000, 3000)  # nodes

ETCD_EVENT = "{nodes:,} nodes: etcd's CPU for an event"  # us
CLIENT_EVENT = "{nodes:,} nodes: client CPU for an event"  # us
ETCD_REST = "{nodes:,} nodes: etcd at rest"  # % core
CLIENT_REST = "{nodes:,} nodes: a client at rest"  # % core
ETCD_MEMORY = "{nodes:,} nodes: etcd's memory"  # MB
JOIN_P50 = "{nodes:,} nodes: a join seen by all others, p50"  # s
JOIN_P99 = "{nodes:,} nodes: a join seen by all others, p99"  # s
UP = "{nodes:,} nodes: all in, and seen by all others"  # s
KILLED = "{nodes:,} nodes: half killed at once, all others agree"  # s
LIST = "list {keys:,} keys, ours"  # s
LIST_RAW = "list {keys:,} keys, raw"  # s
KEPT = "list {keys:,} keys, ours, kept above idle"  # MB
FLOOR = "put to event, median, registrar"  # us


class MissingFigureError(LookupError):
    """A report lacks a figure that the simulation needs."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the report has no figure {name!r}: run python -m tests.benchmarks, all parts and without --quick"
        )


def value(report: Report, name: str) -> float:
    """Return the median of a figure. Raises `MissingFigureError`."""
    found = next((figure.median for figure in report.figures if figure.name == name), None)
    if found is None:
        raise MissingFigureError(name)
    return found


def value_or_none(report: Report, name: str) -> float | None:
    """Return the median of a figure, None where it was not measured: what did not end in time was not."""
    if any(figure.name == name and figure.note.startswith("not within") for figure in report.figures):
        return None
    try:
        return value(report, name)
    except MissingFigureError:
        return None


def parameters(report: Report) -> Parameters:
    """Return what one thing costs, by a report. Raises `MissingFigureError`."""
    client_event = value(report, CLIENT_EVENT.format(nodes=MAIN)) * 1e-6
    etcd_send = value(report, ETCD_EVENT.format(nodes=MAIN)) * 1e-6
    client_read = value(report, LIST.format(keys=LISTED)) / LISTED
    # What bare gRPC takes is etcd's work and reading the bytes: more than etcd's part, and at most by the reading.
    etcd_read = value(report, LIST_RAW.format(keys=LISTED)) / LISTED
    small, main = (value(report, ETCD_MEMORY.format(nodes=nodes)) * 1e6 for nodes in (SMALL, MAIN))
    each = max(0.0, (main - small) / (MAIN - SMALL))
    known = SMALL * (2 * SMALL) * (client_read + etcd_read)  # by each of the small cluster, of each: its two keys
    few, many = (value(report, ETCD_REST.format(nodes=nodes)) / 100 for nodes in (SMALL, MAIN))
    etcd_node = max(0.0, (many - few) / (MAIN - SMALL))
    etcd_alone = max(0.0, few - SMALL * etcd_node)
    client_node = value(report, CLIENT_REST.format(nodes=MAIN)) / 100
    left = report.machine.cores - few - SMALL * client_node  # of the cores, beside what they take at rest
    up = value(report, UP.format(nodes=SMALL)) * left
    return Parameters(
        etcd_send=etcd_send,
        client_event=client_event,
        etcd_alone=etcd_alone,
        etcd_node=etcd_node,
        client_node=client_node,
        etcd_read=etcd_read,
        client_read=client_read,
        client_join=max(0.0, up - known) / SMALL,
        floor=value(report, FLOOR) * 1e-6,
        etcd_memory=max(0.0, small - SMALL * each),
        etcd_memory_node=each,
        client_memory_key=value(report, KEPT.format(keys=LISTED)) * 1e6 / LISTED,
    )
