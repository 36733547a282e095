"""What OpenTelemetry is told of registrars: read from memory, of those that are open, as the reference page has it."""

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from ergo_registrar import ConfigLevel, NodeJoined, Options, Registrar, State
from ergo_registrar.otel import instrument
from ergo_registrar.testing.proxy import FaultProxy
from tests.integration.metering import OF_ALL, exported, kind_of, points, rows
from tests.integration.support import TTL, Raw, eventually, next_event, running, settled, short_options

Make = Callable[..., Awaitable[Registrar]]


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    provider = MeterProvider([reader])
    yield provider
    provider.shutdown()


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Let threads take turns as often as they can, so that one soon comes in between."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class TestThePage:
    async def test_has_every_metric_as_it_is_exported(
        self, make_registrar: Make, provider: MeterProvider, reader: InMemoryMetricReader
    ) -> None:
        registrar = await make_registrar("a@h")
        instrument(registrar, provider)
        await eventually(lambda: points(reader, "request.duration"))
        found = []
        for metric in exported(reader):
            attributes = {name for point in metric.data.data_points for name in point.attributes} - OF_ALL
            shown = ", ".join(f"`{name}`" for name in sorted(attributes))
            name = metric.name.removeprefix("ergo_registrar.")
            found.append([f"`{name}`", f"`{metric.unit}`", kind_of(metric), shown, metric.description])
        assert sorted(found) == sorted(rows("metric"))

    async def test_has_every_operation(
        self, make_registrar: Make, registrar_options: Options, provider: MeterProvider, reader: InMemoryMetricReader
    ) -> None:
        """A whole life, with a name that was taken and one that someone meddled with, asks for no more than is told."""
        registrar = Registrar(registrar_options)
        instrument(registrar, provider)
        other = await make_registrar("a@h")
        async with registrar:
            with pytest.raises(Exception, match="a@h"):
                await registrar.register("a@h")
            await other.close()
            await registrar.register("a@h", applications=[running("web", "a@h")])
            await registrar.register_application_route(running("web", "a@h", 2))
            await registrar.set_config("item", 1, level=ConfigLevel.CLUSTER_NODE)
            await registrar.unset_config("item", level=ConfigLevel.CLUSTER_NODE)
            await eventually(lambda: points(reader, "request.duration", operation="keep alive", outcome="ok"))
        told = {
            point.attributes["ergo.operation"]
            for metric in exported(reader)
            if metric.name == "ergo_registrar.request.duration"
            for point in metric.data.data_points
        }
        assert {operation for operation, _ in rows("operation")} - told <= {"compare"}  # which newer etcds need not
        assert told <= {operation for operation, _ in rows("operation")}


class TestARegistrar:
    async def test_is_seen_as_it_is(
        self, make_registrar: Make, raw: Raw, routes: str, provider: MeterProvider, reader: InMemoryMetricReader
    ) -> None:
        """What it knows and what it heard, and each of them says of whom."""
        registrar = await make_registrar("a@h")
        instrument(registrar, provider)
        cluster = registrar.options.cluster
        async with registrar.subscribe(NodeJoined) as events:
            await make_registrar("b@h", applications=[running("web", "b@h"), running("db", "b@h")])
            await next_event(events)
            await raw.put(f"{routes}nodes/bad@h", b"garbage")
            await settled(raw, registrar)

        def value(name: str, **attributes: str) -> Any:
            (only,) = points(reader, name, cluster=cluster, node="a@h", **attributes)
            return only

        assert [value(f"mirror.{size}") for size in ("nodes", "applications", "instances")] == [1, 2, 2]
        assert value("events", event="NodeJoined") == 1
        assert value("events", event="ApplicationStarted") == 2
        assert value("events", event="NodeLeft") == 0
        assert value("keys.skipped") == 1
        assert value("session.state", state="connected") == 1
        assert value("session.state", state="lost") == 0
        assert 0 < value("lease.slack") <= value("lease.ttl") == TTL
        assert 0 <= value("staleness") < TTL
        assert value("revision") == registrar.revision
        assert value("config.items") == 0
        await raw.put(f"services/ergo/cluster/{cluster}/config/*/item", "int:1")
        await settled(raw, registrar)
        assert value("config.items") == 1
        await raw.delete(f"services/ergo/cluster/{cluster}/config/*/item")

    async def test_that_etcd_left_is_seen_all_the_same(
        self, registrar_options: Options, relay: FaultProxy, provider: MeterProvider, reader: InMemoryMetricReader
    ) -> None:
        """With etcd gone: lost, older and older, without slack. Then back, and counted. No task, and no request."""
        options = short_options(relay.endpoint, cluster=registrar_options.cluster)
        async with Registrar(options, node="a@h") as registrar:
            tasks = asyncio.all_tasks()
            instrument(registrar, provider)
            assert asyncio.all_tasks() == tasks
            await relay.refuse()
            await eventually(lambda: points(reader, "session.state", state="lost") == [1])
            before = relay.connections
            (staleness,) = points(reader, "staleness")
            assert staleness > TTL
            assert relay.connections == before
            assert points(reader, "lease.slack") == [0]
            await eventually(lambda: points(reader, "request.duration", outcome="unreachable"))
            await relay.heal()
            await eventually(lambda: points(reader, "session.state", state="connected") == [1])
            assert points(reader, "re_registrations") == [1]
            assert points(reader, "claims") == [2]
            assert points(reader, "events", event="RegistrarDisconnected") == [1]

    async def test_whose_watch_stands_still_lags(
        self, make_registrar: Make, raw: Raw, provider: MeterProvider, reader: InMemoryMetricReader
    ) -> None:
        """Etcd goes on, and says so when it confirms the lease; the lag is over once the watch has caught up."""
        registrar = await make_registrar("a@h")
        instrument(registrar, provider)
        assert points(reader, "revision.lag") == [0]

        async def lags() -> bool:
            await raw.put("other/key", b"")
            return points(reader, "revision.lag") > [0]

        await eventually(lags)
        await raw.delete("other/key")
        await eventually(lambda: points(reader, "revision.lag") == [0])

    async def test_that_is_closed_is_not_seen_any_more(
        self, make_registrar: Make, provider: MeterProvider, reader: InMemoryMetricReader
    ) -> None:
        """Of several in one process, and instrumented twice, each is seen once, until it closes."""
        one, other, observer = await make_registrar("a@h"), await make_registrar("b@h"), await make_registrar()
        for registrar in (one, other, observer, one):
            instrument(registrar, provider)
        assert points(reader, "claims", node="a@h") == points(reader, "claims", node="b@h") == [1]
        assert len(one._request_listeners) == 1
        assert len(points(reader, "mirror.nodes")) == 3
        await one.close()
        assert points(reader, "mirror.nodes", node="a@h") == points(reader, "claims", node="a@h") == []
        assert points(reader, "claims", node="b@h") == [1]
        await other.close()
        await observer.close()
        assert {metric.name for metric in exported(reader)} <= {"ergo_registrar.request.duration"}

    async def test_is_told_to_several_providers(
        self, make_registrar: Make, provider: MeterProvider, reader: InMemoryMetricReader
    ) -> None:
        registrar, another = await make_registrar("a@h"), InMemoryMetricReader()
        second = MeterProvider([another])
        instrument(registrar, provider)
        instrument(registrar, second)
        await eventually(lambda: points(reader, "request.duration") and points(another, "request.duration"))
        assert points(reader, "claims") == points(another, "claims") == [1]
        second.shutdown()

    async def test_is_read_in_another_thread_at_any_time(
        self,
        registrar_options: Options,
        provider: MeterProvider,
        reader: InMemoryMetricReader,
        caplog: pytest.LogCaptureFixture,
        eager_threads: None,
    ) -> None:
        """An exporter reads while registrars come and go; nothing is torn, and every state is seen as one."""
        ended, seen = threading.Event(), []

        def read() -> None:
            while not ended.is_set():
                seen.append(sum(points(reader, "session.state")))

        reading = threading.Thread(target=read)
        reading.start()
        try:
            for _ in range(10):
                async with Registrar(registrar_options, node="a@h") as registrar:
                    instrument(registrar, provider)
        finally:
            ended.set()
            await asyncio.to_thread(reading.join)
        assert set(seen) == {0, 1}
        assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


class TestRequests:
    async def test_are_told_with_how_they_ended(self, registrar_options: Options, relay: FaultProxy) -> None:
        options = short_options(relay.endpoint, cluster=registrar_options.cluster)
        told: list[tuple[str, float, str]] = []
        registrar = Registrar(options)
        registrar.on_request(lambda *request: told.append(request))
        async with registrar:
            assert {(what, how) for what, _, how in told} >= {("connect", "ok"), ("read", "ok"), ("watch", "ok")}
            relay.black_hole()
            entering = asyncio.create_task(registrar.register("a@h"))
            await eventually(lambda: registrar.state is State.SUSPENDED)
            entering.cancel()
            await asyncio.wait({entering})
            await eventually(lambda: {"cancelled", "unreachable"} <= {how for _, _, how in told})
            await relay.heal()
        assert all(0 <= seconds < 10 for _, seconds, _ in told)

    async def test_survive_a_listener_that_fails(self, registrar_options: Options) -> None:
        """Its error goes where those of any callback of the event loop go."""
        handled: list[str] = []
        loop = asyncio.get_running_loop()
        before = loop.get_exception_handler()
        loop.set_exception_handler(lambda _, context: handled.append(str(context["exception"])))

        def fail(*_: object) -> None:
            raise ValueError("a bug of the listener")

        registrar = Registrar(registrar_options, node="a@h")
        registrar.on_request(fail)
        async with registrar:
            assert registrar.health().ok
        await eventually(lambda: set(handled) == {"a bug of the listener"})
        loop.set_exception_handler(before)


ONLY_LATER = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from ergo_registrar import Options, Registrar
from ergo_registrar.otel import instrument

registrars = [Registrar(Options(cluster=name)) for name in ("before", "after", "named")]
instrument(registrars[0])
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
instrument(registrars[1])
instrument(registrars[2], metrics.get_meter_provider())
(resource,) = reader.get_metrics_data().resource_metrics
(scope,) = resource.scope_metrics
(claims,) = [metric for metric in scope.metrics if metric.name == "ergo_registrar.claims"]
print(*sorted(point.attributes["ergo.cluster"] for point in claims.data.data_points))
"""
IN_A_FORK = """
import os
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from ergo_registrar import Registrar
from ergo_registrar.otel import instrument

registrar, reader = Registrar(), InMemoryMetricReader()
instrument(registrar, MeterProvider([reader]))
assert reader.get_metrics_data().resource_metrics
if (child := os.fork()) == 0:
    os._exit(1 if reader.get_metrics_data() else 0)
print(os.waitpid(child, 0)[1])
"""
WITHOUT_IT = """
import sys
import ergo_registrar
print(*[name for name in sys.modules if name.startswith("opentelemetry")])
sys.modules["opentelemetry"] = None
try:
    import ergo_registrar.otel
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        pytest.param(ONLY_LATER, "after before named\n", id="the global provider may be set later"),
        pytest.param(IN_A_FORK, "0\n", id="the copy that a fork made has no points"),
        pytest.param(
            WITHOUT_IT,
            "\nergo_registrar.otel needs opentelemetry-api, which is not installed: "
            "pip install 'ergo-registrar[otel]'\n",
            id="the package does without, and says what is missing",
        ),
    ],
)
def test_in_a_process_of_its_own(program: str, printed: str) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=50, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, printed, "")
