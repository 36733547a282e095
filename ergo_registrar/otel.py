"""Metrics by OpenTelemetry: what a registrar knows of itself, read from memory whenever an exporter asks.

It needs the extra `otel`, which is OpenTelemetry's API alone; the SDK and the exporter are the service's choice. All
metrics stand in `docs/reference/observability.md`.

A callback of an observable instrument cannot be taken back. So each meter provider gets one set of instruments, which
observes those of the registrars that are alive and not closed.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from threading import Lock
from typing import NamedTuple, get_args
from weakref import WeakKeyDictionary, WeakSet

from ergo_registrar import Event, EventsMissed, Health, Registrar, State, TerminatedError
from ergo_registrar.version import VERSION

try:
    from opentelemetry import metrics
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        "ergo_registrar.otel needs opentelemetry-api, which is not installed: pip install 'ergo-registrar[otel]'",
        name=_missing.name,
    ) from _missing

_Readings = Iterable[tuple[float | None, dict[str, str]]]  # None: there is none now
_EVENTS = sorted(kind.__name__ for kind in get_args(Event) if kind is not EventsMissed)
_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)  # as of OpenTelemetry's db.client.operation.duration


class _Metric(NamedTuple):
    name: str  # behind "ergo_registrar."
    unit: str
    read: Callable[[Registrar, Health], _Readings]
    description: str


def _health(field: str) -> Callable[[Registrar, Health], _Readings]:
    get = attrgetter(field)
    return lambda _registrar, health: [(get(health), {})]


def _stats(field: str) -> Callable[[Registrar, Health], _Readings]:
    get = attrgetter(field)
    return lambda registrar, _health: [(get(registrar.stats), {})]


def _states(_registrar: Registrar, health: Health) -> _Readings:
    return [(health.state is state, {"ergo.state": state.value}) for state in State]


def _events(registrar: Registrar, _health: Health) -> _Readings:
    counts = registrar.stats.events_by_type
    return [(counts.get(name, 0), {"ergo.event": name}) for name in _EVENTS]


def _lease_ttl(registrar: Registrar, _health: Health) -> _Readings:
    return [(registrar.options.lease_ttl, {})]


_GAUGES = (
    _Metric("lease.ttl", "s", _lease_ttl, "The option lease_ttl: the most that staleness may be"),
    _Metric("lease.slack", "s", _health("lease_left"), "Until others may see this process leave"),
    _Metric("staleness", "s", _health("staleness"), "Since etcd last proved that nothing is missing here"),
    _Metric("revision", "{revision}", _health("revision"), "The newest revision of etcd that is known here"),
    _Metric("revision.lag", "{revision}", _health("revision_lag"), "What etcd had more when it confirmed the lease"),
    _Metric("loop.lag", "s", _health("loop_lag"), "The most that the event loop was late in the last lease period"),
)
_SUMS = (
    _Metric("session.state", "{registrar}", _states, "1 for the state that the registrar is in, 0 for the others"),
    _Metric("mirror.nodes", "{node}", _health("nodes"), "Other nodes"),
    _Metric("mirror.applications", "{application}", _health("applications"), "Applications on any node"),
    _Metric("mirror.instances", "{instance}", _health("instances"), "The nodes of each application, summed up"),
    _Metric("config.items", "{item}", _health("config_items"), "Configuration items that have a value"),
)
_COUNTERS = (
    _Metric("events", "{event}", _events, "Events, each counted once"),
    _Metric("events.missed", "{event}", _stats("events_missed"), "Events that did not fit into a subscription's queue"),
    _Metric("keys.skipped", "{key}", _stats("keys_skipped"), "Keys left out, as not what belongs there"),
    _Metric("claims", "{claim}", _stats("claims"), "Claims of the name under a new lease, the first one too"),
    _Metric("re_registrations", "{claim}", _stats("re_registrations"), "Claims of the name after a lost session"),
    _Metric("lease.renewals", "{renewal}", _stats("lease_renewals"), "Confirmations of the lease"),
    _Metric("repairs", "{repair}", _stats("repairs"), "Repairs of own keys that someone else changed"),
    _Metric("listings", "{listing}", _stats("listings"), "Readings of everything"),
    _Metric("watch.streams", "{stream}", _stats("watch_streams"), "Watch streams opened"),
    _Metric("connections.replaced", "{connection}", _stats("connections_replaced"), "Connections given up for another"),
)


class _Instruments:
    """The instruments of one meter provider, and whom they observe."""

    def __init__(self, provider: metrics.MeterProvider) -> None:
        self._registrars: WeakSet[Registrar] = WeakSet()
        self._lock = Lock()  # an exporter reads in a thread of its own
        meter = provider.get_meter("ergo_registrar", VERSION.release)
        kinds = (
            (_GAUGES, meter.create_observable_gauge),
            (_SUMS, meter.create_observable_up_down_counter),
            (_COUNTERS, meter.create_observable_counter),
        )
        for some, create in kinds:
            for metric in some:
                callback = self._callback(metric.read)
                create(f"ergo_registrar.{metric.name}", [callback], unit=metric.unit, description=metric.description)
        self._durations = meter.create_histogram(
            "ergo_registrar.request.duration",
            unit="s",
            description="Requests to etcd, each with all its tries",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )

    def observe(self, registrar: Registrar) -> None:
        with self._lock:
            is_new = registrar not in self._registrars
            self._registrars.add(registrar)
        if is_new:
            cluster = registrar.options.cluster  # without the node: durations of several may be put together

            def record(operation: str, seconds: float, outcome: str) -> None:
                attributes = {"ergo.cluster": cluster, "ergo.operation": operation, "ergo.outcome": outcome}
                self._durations.record(seconds, attributes)

            registrar.on_request(record)

    def _callback(
        self, read: Callable[[Registrar, Health], _Readings]
    ) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
        def observations(_: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
            for registrar, health in self._open():
                who = {"ergo.cluster": registrar.options.cluster}
                if registrar.node is not None:
                    who["ergo.node"] = registrar.node
                for value, more in read(registrar, health):
                    if value is not None and math.isfinite(value):
                        yield metrics.Observation(value, {**who, **more})

        return observations

    def _open(self) -> Iterator[tuple[Registrar, Health]]:
        with self._lock:
            registrars = list(self._registrars)
        for registrar in registrars:
            try:
                health = registrar.health()
            except TerminatedError:  # the copy that a fork made
                continue
            if health.state is not State.CLOSED:
                yield registrar, health


_by_provider: WeakKeyDictionary[metrics.MeterProvider, _Instruments] = WeakKeyDictionary()
_global: list[_Instruments] = []  # of the global provider, or of what stands for it until it is set


def instrument(registrar: Registrar, meter_provider: metrics.MeterProvider | None = None) -> None:
    """Let OpenTelemetry observe a registrar, from now until it is closed.

    May be called before or after entering, for any number of registrars, and again, which changes nothing. Without
    `meter_provider` it is the global one, also if that is set only later. Whatever is observed is read from memory
    when an exporter asks, in whichever thread it does: there is no task, and nothing is sent. A registrar is not kept
    alive by being observed.

    Importing this module raises `ModuleNotFoundError` where the extra `otel` is not installed.
    """
    default = metrics.get_meter_provider()
    provider = meter_provider or default
    instruments = _by_provider.get(provider)
    if instruments is None and provider is default and _global:
        instruments = _global[0]
    if instruments is None:
        instruments = _by_provider[provider] = _Instruments(provider)
        if provider is default:
            _global.append(instruments)
    instruments.observe(registrar)
