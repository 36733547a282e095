"""The figures of measured clusters, each beside that of bare gRPC, and the goals of the issue."""

from collections.abc import Sequence

from ergo_registrar import Options
from tests.benchmarks.cluster_runs import KILL_BOUND, PAUSE_BOUND, UP_BOUND, UP_BOUND_MOST, Taken
from tests.benchmarks.report import Figure
from tests.benchmarks.stage import Kind

_UP_GOAL = 30.0  # seconds for 1,000 nodes
_JOIN_GOALS = {1000: 0.25, 3000: 1.0}  # seconds, p99
_ETCD_GOAL = 15.0  # % of a core
_COST_GOAL = 1.5  # times raw
_COST_GOAL_FROM = 100  # nodes; in fewer, the few events are lost in what a cluster costs at rest
_HOLD = 600  # seconds in which none may be lost
_KILL_SLACK = 15.0  # seconds beyond the TTL


class Findings:
    """The figures so far, and why others are missing."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.missing: dict[str, str] = {}

    def take(self, taken: Taken, suffix: str = "") -> None:
        """Add what was measured of one cluster."""
        _Sheet(self, taken, suffix).fill()

    def compare(self, raw: Taken, registrars: Taken, suffix: str = "") -> None:
        """Add what registrars took as multiples of what bare gRPC took, round by round where they took turns."""
        nodes = registrars.nodes
        for share, called in ((0.5, "p50"), (0.99, "p99")):
            self._ratio(
                registrars,
                f"{nodes:,} nodes{suffix}: a join seen by all others, {called}, x raw",
                [_percentile(raw.delays(number), share) for number in range(len(raw.joins))],
                [_percentile(registrars.delays(number), share) for number in range(len(registrars.joins))],
                is_steady=share <= 0.5,
            )
        self._ratio(
            registrars,
            f"{nodes:,} nodes{suffix}: client CPU for an event, x raw",
            [flow.client for flow in raw.flows],
            [flow.client for flow in registrars.flows],
            goal=_COST_GOAL if nodes >= _COST_GOAL_FROM and not suffix else None,
        )
        if raw.rest is not None and registrars.rest is not None:
            name = f"{nodes:,} nodes{suffix}: client CPU at rest, x raw"
            self._ratio(registrars, name, [raw.rest.clients], [registrars.rest.clients])

    def _ratio(
        self,
        taken: Taken,
        name: str,
        raw: Sequence[float],
        its: Sequence[float],
        *,
        goal: float | None = None,
        is_steady: bool = True,
    ) -> None:
        ratios = [mine / other for other, mine in zip(raw, its, strict=False) if other > 0]
        if ratios:
            figure = Figure(row=_row(taken), name=name, unit="x", rounds=ratios, goal=goal, relative=is_steady)
            self.figures.append(figure)
        else:
            self.missing[name] = "one of the two could not be measured"


class _Sheet:
    """The figures of one cluster."""

    def __init__(self, findings: Findings, taken: Taken, suffix: str) -> None:
        self._findings = findings
        self._taken = taken
        self._is_raw = taken.kind is Kind.RAW
        self._of = f"{taken.nodes:,} nodes{suffix}{', raw' if self._is_raw else ''}"
        self._series = suffix == ""

    def fill(self) -> None:
        taken, nodes = self._taken, self._taken.nodes
        bound = UP_BOUND if nodes <= 1000 else UP_BOUND_MOST
        goals = {1000: _UP_GOAL, 3000: bound - 1}  # of 3,000, the goal is that they come at all
        self._bounded("up", "all in, and seen by all others", taken.up, bound, goals.get(nodes))
        self._storm()
        if taken.rest is not None:
            self._rest()
        if taken.joins:
            self._joins()
        if taken.flows:
            costs = [flow.client * 1e6 for flow in taken.flows]
            self._add("client CPU for an event", "us", costs, series="CPU for an event by nodes")
            of_etcd = [flow.etcd * 1e6 for flow in taken.flows if flow.etcd is not None]
            if of_etcd:
                self._add("etcd's CPU for an event", "us", of_etcd)
        if taken.usage is not None:
            used = taken.usage
            self._add("memory of a node in its process", "MB", [used.memory / nodes / 1e6])
            note = f"all collections: {used.collecting:.1f} s of {used.cpu:.1f} s of CPU; users do not switch them off"
            self._add("longest garbage collection", "s", [used.longest_collection], note=note)
        if not self._is_raw:
            self._faults()
            if taken.paused:
                what = f"all stand still for {taken.paused:g} s, all are back"
                self._bounded("pause", what, taken.recovered, PAUSE_BOUND, None)
            if taken.killed is not None or "kill" in taken.failed:
                goal = Options().lease_ttl + _KILL_SLACK
                self._bounded("kill", "half killed at once, all others agree", taken.killed, KILL_BOUND, goal)
        for step in ("rest", "joins", "flow", "hold", "faults"):
            if step in taken.failed:
                self._findings.missing[f"{self._of}: {step}"] = taken.failed[step]

    def _storm(self) -> None:
        """What was lost while all came at once."""
        note = _counted(self._taken.storm_faults)
        lost = self._taken.storm_faults.get("sessions lost")
        if lost is not None:
            self._add("sessions lost while they came", "sessions", [lost], goal=None if self._is_raw else 0, note=note)

    def _rest(self) -> None:
        rest, nodes = self._taken.rest, self._taken.nodes
        assert rest is not None
        if rest.etcd is None or rest.memory is None:
            self._findings.missing[f"{self._of}: etcd at rest"] = "there is no /proc on this system"
        else:
            goal = _ETCD_GOAL if nodes == 1000 and not self._is_raw else None
            self._add("etcd at rest", "% core", [rest.etcd * 100], goal=goal, series="etcd at rest by nodes")
            self._add("etcd's memory", "MB", [rest.memory / 1e6])
        self._add("a client at rest", "% core", [rest.clients * 100 / nodes], series="a client at rest by nodes")

    def _joins(self) -> None:
        taken = self._taken
        delays, unheard = taken.delays(), sum(each.unheard for each in taken.joins)
        note = f"{len(delays)} deliveries" + (f", {unheard} of which never came" if unheard else "")
        for share, called in ((0.5, "p50"), (0.99, "p99")):
            goal = _JOIN_GOALS.get(taken.nodes) if called == "p99" and not self._is_raw else None
            name, seconds = f"a join seen by all others, {called}", _percentile(delays, share)
            self._add(name, "s", [seconds], goal=goal, series=f"join {called} by nodes", note=note)

    def _faults(self) -> None:
        taken = self._taken
        note = _counted(taken.faults)
        if taken.held and "sessions lost" in taken.faults:
            lost = max(taken.faults["sessions lost"], taken.faults["not connected"], taken.reborn)
            is_long = taken.held >= _HOLD
            what = f"sessions lost {'in ten minutes' if is_long else 'once all were in'}"
            self._add(what, "sessions", [lost], goal=0 if is_long else None, note=note)
        faults = {name: max(count, taken.kill_faults.get(name, 0)) for name, count in taken.faults.items()}
        if "events missed" in faults:
            self._add("events missed", "events", [faults["events missed"]], goal=0, note=_counted(faults))

    def _bounded(self, step: str, what: str, seconds: float | None, bound: float, goal: float | None) -> None:
        """Add a time; where it was longer than anyone waited, how long that was."""
        if self._is_raw:
            goal = None
        note = "" if seconds is not None else f"not within that: {self._taken.failed.get(step, '')}"
        self._add(what, "s", [bound if seconds is None else seconds], goal=goal, note=note)

    def _add(
        self,
        what: str,
        unit: str,
        rounds: list[float],
        *,
        goal: float | None = None,
        series: str | None = None,
        note: str = "",
    ) -> None:
        in_series = series if self._series else None
        self._findings.figures.append(
            Figure(
                row=_row(self._taken),
                name=f"{self._of}: {what}",
                unit=unit,
                rounds=rounds,
                goal=goal,
                series=in_series and (f"raw: {in_series}" if self._is_raw else in_series),
                at=None if in_series is None else float(self._taken.nodes),
                note=note,
            )
        )


def _row(taken: Taken) -> str:
    return f"a cluster of {taken.nodes:,} nodes"


def _percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that no less than this share of all are at most."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _counted(faults: dict[str, float]) -> str:
    """Return what went wrong in words."""
    return ", ".join(f"{count:g} {what}" for what, count in faults.items() if count)
