"""The tables of docs/explanation/scaling.md: what the simulation says, beside what was measured where that was done."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.report import KEPT as REPORT
from tests.benchmarks.report import Report
from tests.benchmarks.simulation import figures
from tests.benchmarks.simulation.model import Cluster, Outcome, Parameters, loss, restart, simulate

PAGE = REPORT.parent / "scaling.md"
BEGIN, END = "<!-- tables of benchmarks.json, by tests/benchmarks/simulation -->\n", "<!-- end of tables -->\n"

SEED = 1
NODES = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
A_DAY = 26.0  # changes of a node: it restarts once, and changes a route every hour
DEPLOY = 600.0  # seconds in which every node is restarted once: two changes each
OFF = 1.5  # times too much or too little, from where a prediction is said to be off

# From where a limit is one. Of etcd's cores no more than that, so that renewals are answered in time.
MOST_ETCD, MOST_DELAY, MOST_CLIENT, MOST_MEMORY, MOST_CLIENT_MEMORY, MOST_RESTART = 0.7, 1.0, 0.2, 16e9, 500e6, 300.0


_VALIDATED = f"""The simulation of that machine, where etcd and all clients share its cores, beside what was measured
there. Bold: off by more than {OFF:g} times."""
_SIZES = f"""One etcd of three members with four cores each, every client on a core of its own. On a quiet day each node
makes {A_DAY:g} changes. In a deployment every node restarts once in {DEPLOY / 60:g} minutes."""
_OTHERWISE = "What 10,000 and 100,000 nodes take otherwise, during such a deployment:"


def tables(report: Report) -> str:
    """Return what stands between the markers. Raises `MissingFigureError`."""
    parameters = figures.parameters(report)
    machine = report.machine
    etcd = machine.etcd or "of unknown version"
    parts = (
        (
            f"Measured on {machine.cpu} with {machine.cores} cores, etcd {etcd}. What one thing costs:",
            _costs(parameters),
        ),
        (_VALIDATED, _validation(report, parameters)),
        (_SIZES, _sizes(parameters)),
        (_OTHERWISE, _ways(parameters)),
    )
    return "\n".join(f"{said}\n\n{table}" for said, table in parts)


def written(page: str, report: Report) -> str:
    """Return the page with the tables of a report."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN.strip()} with an {END.strip()} behind it")
    return f"{before}{BEGIN}\n{tables(report)}\n{END}{after}"


def write(page: Path, report: Report) -> None:
    """Write the tables into the page."""
    page.write_text(written(page.read_text(), report))


def validation(report: Report, parameters: Parameters) -> list[tuple[str, str, float | None, float]]:
    """Return what was measured, of which cluster, how much it was (None: it was not), and what is predicted."""
    found: list[tuple[str, str, float | None, float]] = []
    for nodes in figures.VALIDATED:
        cluster = Cluster(nodes, rate=0.2, cores=report.machine.cores, together=True)
        joins = simulate(parameters, cluster, random.Random(SEED), seconds=300.0)
        for what, name, predicted in (
            (
                "etcd at rest, % of a core",
                figures.ETCD_REST,
                100 * (parameters.etcd_alone + parameters.etcd_node * nodes),
            ),
            ("etcd's memory, MB", figures.ETCD_MEMORY, joins.etcd_memory / 1e6),
            ("a join seen, p50, s", figures.JOIN_P50, joins.p50),
            ("a join seen, p99, s", figures.JOIN_P99, joins.p99),
            ("all join at once, s", figures.UP, restart(parameters, cluster)),
            ("half are killed, s", figures.KILLED, loss(parameters, cluster, random.Random(SEED))),
        ):
            measured = figures.value_or_none(report, name.format(nodes=nodes))
            found.append((what, f"{nodes:,}", measured, predicted))
    return found


def limits(parameters: Parameters, cluster: Cluster, outcome: Outcome, seconds: float) -> list[str]:
    """Return what such a cluster is too large for: first what is used up, then what comes of that."""
    beyond = {
        "etcd's CPU": outcome.etcd / MOST_ETCD,
        "a client's CPU": outcome.client / MOST_CLIENT,
        "etcd's memory": outcome.etcd_memory / MOST_MEMORY,
        "a client's memory": outcome.client_memory / MOST_CLIENT_MEMORY,
        "delay": outcome.p99 / MOST_DELAY,
        "renewals": outcome.longest_renewal / (cluster.ttl / 3),
        "restart": seconds / MOST_RESTART,
    }
    return [name for name, times in beyond.items() if times > 1]


def _costs(parameters: Parameters) -> str:
    rows = [
        ("etcd: a change sent to one watcher", f"{parameters.etcd_send * 1e6:.3g} us"),
        ("a client: an event", f"{parameters.client_event * 1e6:.3g} us"),
        ("etcd: at rest, without nodes", f"{parameters.etcd_alone * 100:.2g} % of a core"),
        ("etcd: a node at rest", f"{parameters.etcd_node * 100:.2g} % of a core"),
        ("a client at rest", f"{parameters.client_node * 100:.2g} % of a core"),
        ("etcd: a key read, at most", f"{parameters.etcd_read * 1e6:.3g} us"),
        ("a client: a key read", f"{parameters.client_read * 1e6:.3g} us"),
        ("a client: all else of a start", f"{parameters.client_join * 1e3:.3g} ms"),
        ("from a put to the only watcher", f"{parameters.floor * 1e3:.2g} ms"),
        ("etcd's memory for a node", f"{parameters.etcd_memory_node / 1e3:.3g} kB"),
        ("a client's memory for a key", f"{parameters.client_memory_key:.3g} B"),
    ]
    return _table(("what", "costs"), rows)


def _validation(report: Report, parameters: Parameters) -> str:
    rows = []
    for what, nodes, measured, predicted in validation(report, parameters):
        if measured is None:
            shown = "not measured", f"{predicted:.3g}", ""
        else:
            times = predicted / measured if measured else float("inf")
            off = f"{times:.2g} x"
            shown = f"{measured:.3g}", f"{predicted:.3g}", off if 1 / OFF <= times <= OFF else f"**{off}**"
        rows.append((what, nodes, *shown))
    return _table(("what", "nodes", "measured", "simulated", "simulated / measured"), rows)


def _sizes(parameters: Parameters) -> str:
    """Return the table of sizes, and the first that is too large."""
    rows: list[tuple[str, ...]] = []
    ends = "None of these sizes is too large."
    for nodes in NODES:
        quiet, deploy = (_simulated(parameters, Cluster(nodes, rate=rate)) for rate in _rates(nodes))
        cluster = Cluster(nodes, rate=_rates(nodes)[1])
        seconds = restart(parameters, cluster)
        passed = ", ".join(limits(parameters, cluster, deploy, seconds))
        if passed and not any(row[-1] != "none" for row in rows):
            ends = f"Of these sizes, the first that is too large is {nodes:,} nodes, by this: {passed}."
        rows.append(
            (
                f"{nodes:,}",
                *(f"{outcome.etcd:.1%}" for outcome in (quiet, deploy)),
                *(_seconds(outcome) for outcome in (quiet, deploy)),
                f"{deploy.client:.1%}",
                f"{deploy.wire / 1e6:,.1f} MB/s",
                f"{deploy.etcd_memory / 1e9:.2g} GB",
                f"{deploy.client_memory / 1e6:,.1f} MB",
                _span(seconds),
                f"{loss(parameters, cluster, random.Random(SEED)):,.0f} s",
                passed or "none",
            )
        )
    head = (
        *("nodes", "etcd's cores, quiet", "deployment", "a change seen, p50 / p99, quiet", "deployment"),
        *("a client's core, deployment", "on the wire, deployment", "a member's memory"),
        *("a client's memory", "all join at once", "half die", "limits passed in the deployment"),
    )
    return f"{_table(head, rows)}\n**{ends}**\n"


_WAYS: tuple[tuple[str, Callable[[Cluster], Cluster]], ...] = (
    ("as it is", lambda c: c),
    ("members of etcd with 16 cores", lambda c: replace(c, cores=16.0)),
    (
        "nine of ten only observe",
        lambda c: replace(c, nodes=c.nodes // 10, observers=c.nodes * 9 // 10, rate=c.rate / 10),
    ),
    ("one registrar for ten processes", lambda c: replace(c, nodes=c.nodes // 10, applications=10, rate=c.rate / 10)),
    ("clusters of 1,000, an etcd for each", lambda c: replace(c, nodes=1000, rate=c.rate * 1000 / c.nodes)),
    ("clusters of 1,000, one etcd", lambda c: replace(c, clusters=max(1, c.nodes // 1000))),
    ("a correct relay for each 2,000, which there is not", lambda c: replace(c, relays=max(1, c.nodes // 2000))),
)


def _ways(parameters: Parameters) -> str:
    rows = []
    for nodes in (10_000, 100_000):
        for way, change in _WAYS:
            cluster = change(Cluster(nodes, rate=_rates(nodes)[1]))
            outcome = _simulated(parameters, cluster)
            seconds = restart(parameters, cluster)
            beyond = ", ".join(limits(parameters, cluster, outcome, seconds)) or "none"
            shown = f"{outcome.etcd:.0%}", _seconds(outcome), f"{outcome.client:.1%}", _span(seconds), beyond
            rows.append((f"{nodes:,}", way, *shown))
    head = (
        *("nodes", "how", "etcd's cores", "a change seen, p50 / p99"),
        *("a client's core", "all join at once", "limits passed"),
    )
    return _table(head, rows)


def _rates(nodes: int) -> tuple[float, float]:
    return nodes * A_DAY / 86_400, nodes * 2 / DEPLOY


def _simulated(parameters: Parameters, cluster: Cluster) -> Outcome:
    """Simulate for as long as it takes to see some changes, and some beats of the leases."""
    seconds = min(600.0, max(5.0, 100 / cluster.rate))
    return simulate(parameters, cluster, random.Random(SEED), seconds=seconds)


def _seconds(outcome: Outcome) -> str:
    if outcome.etcd > 1:
        return "ever more"
    shown = (outcome.p50, outcome.p99)
    return " / ".join(f"{seconds * 1e3:,.0f} ms" if seconds < 1 else f"{seconds:,.1f} s" for seconds in shown)


def _span(seconds: float) -> str:
    return "never" if seconds == math.inf else f"{seconds:,.0f} s"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))
