"""The dashboard and the alerts of the how-to: what they ask for is there, and a real Prometheus answers each query."""

import asyncio
import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from blockbuster import BlockBuster
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, start_http_server

from ergo_registrar import Options, Registrar, State
from ergo_registrar.otel import instrument
from ergo_registrar.testing.proxy import FaultProxy
from tests.integration.support import Raw, eventually, running, settled, short_options

HOW_TO = Path(__file__).parents[2] / "docs/how-to"
DASHBOARD = json.loads((HOW_TO / "grafana-dashboard.json").read_text())
RULES = yaml.safe_load((HOW_TO / "prometheus-rules.yml").read_text())
ALERTS = {rule["alert"]: rule["expr"] for group in RULES["groups"] for rule in group["rules"]}
PANELS = DASHBOARD["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
VARIABLE = "ERGO_REGISTRAR_PROMETHEUS"
SCRAPED_EVERY = 0.25  # seconds


# Without Prometheus


@pytest.fixture
def page() -> Iterator[tuple[MeterProvider, CollectorRegistry]]:
    """A provider of the how-to's kind, and the registry whose page Prometheus would read."""
    registry = CollectorRegistry()
    provider = MeterProvider([PrometheusMetricReader(registry=registry)])
    yield provider, registry
    provider.shutdown()


async def test_every_name_in_a_query_is_exported(
    page: tuple[MeterProvider, CollectorRegistry], registrar_options: Options
) -> None:
    provider, registry = page
    registrar = Registrar(registrar_options, node="a@h")
    instrument(registrar, provider)
    async with registrar:
        await eventually(lambda: registrar.stats.lease_renewals)
        samples = [sample for family in registry.collect() for sample in family.samples]
    names = {sample.name for sample in samples}
    labels = {label for sample in samples for label in sample.labels} | {"instance"}  # which Prometheus puts there
    texts = [*QUERIES, *ALERTS.values(), *(v["definition"] for v in VARIABLES.values() if v["type"] == "query")]
    asked = {name for text in texts for name in re.findall(r"\bergo_registrar_\w+", text)}
    legends = [target["legendFormat"] for panel in PANELS for target in panel["targets"]]
    asked_labels = {label for text in [*texts, *legends] for label in re.findall(r"\bergo_(?!registrar_)\w+", text)}
    asked_labels |= {label for text in legends for label in re.findall(r"{{(\w+)}}", text)}
    assert len(asked) > 20
    assert asked - names == set()
    assert asked_labels - labels == set()


def test_the_dashboard_is_laid_out_without_gaps() -> None:
    """As far as it can be said without Grafana: every panel has its place, a title, a unit, a source and a query."""
    assert DASHBOARD["schemaVersion"] >= 39
    assert [panel["id"] for panel in PANELS] == list(range(1, len(PANELS) + 1))
    covered: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & covered, panel["title"]
        covered |= cells
        assert panel["type"] in ("stat", "timeseries")
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= set(VARIABLES)
    assert len(covered) == 24 * max(y + 1 for _, y in covered)
    assert VARIABLES["datasource"]["query"] == "prometheus"


# With it


def find_prometheus() -> str:
    if given := os.environ.get(VARIABLE):
        return given  # wrong is not missing: that fails
    if found := shutil.which("prometheus"):
        return found
    pytest.skip(f"there is no program prometheus: install it, or name it by {VARIABLE}")


class Prometheus:
    """A real one, that scrapes one page and has the rules of the how-to."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    async def ask(self, path: str, **parameters: str) -> Any:
        url = f"http://{self._endpoint}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        return (await asyncio.to_thread(_load, url))["data"]

    async def has(self, query: str) -> bool:
        """Say whether a query gives a number."""
        return any(value != "NaN" for _, value in await self.values(query))

    async def values(self, query: str) -> list[Any]:
        return [series["value"] for series in (await self.ask("query", query=query))["result"]]


def _load(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:  # a 4xx, for a query that is wrong, is raised
        return json.load(answer)


@pytest.fixture
def prometheus(page: tuple[MeterProvider, CollectorRegistry], tmp_path: Path) -> Iterator[Prometheus]:
    program = find_prometheus()
    server, thread = start_http_server(0, "127.0.0.1", page[1])
    target = f"127.0.0.1:{server.server_port}"
    every = f"{int(SCRAPED_EVERY * 1000)}ms"
    config = {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": [str(HOW_TO / "prometheus-rules.yml")],
        "scrape_configs": [{"job_name": "ergo", "static_configs": [{"targets": [target]}]}],
    }
    file, log = tmp_path / "prometheus.yml", tmp_path / "log"
    file.write_text(yaml.safe_dump(config))
    arguments = [f"--config.file={file}", f"--storage.tsdb.path={tmp_path}/data", "--web.listen-address=127.0.0.1:0"]
    with log.open("wb") as output, subprocess.Popen([program, *arguments], stdout=output, stderr=output) as process:
        try:
            yield Prometheus(_listening(process, log))
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            server.shutdown()
            server.server_close()
            thread.join()


def _listening(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 20
    while "Server is ready" not in (text := log.read_text()):
        assert process.poll() is None, f"prometheus ended:\n{text}"
        assert time.monotonic() < deadline, f"prometheus is not ready:\n{text}"
        time.sleep(0.05)
    found = re.search(r'msg="Listening on".* address=(\S+)', text)
    assert found, text
    return found[1]


@pytest.fixture
def may_stand_still(no_blocking_calls: BlockBuster) -> None:
    no_blocking_calls.functions["time.sleep"].can_block_in("integration/test_dashboard.py", "stand_still")


def stand_still(seconds: float) -> None:
    time.sleep(seconds)


async def test_a_real_prometheus_answers_every_query(
    prometheus: Prometheus, page: tuple[MeterProvider, CollectorRegistry], registrar_options: Options
) -> None:
    """Each gives a number, as soon as a registrar lives for a while; and the variables have what to choose from."""
    registrar = Registrar(registrar_options, node="a@h", applications=[running("web", "a@h")])
    instrument(registrar, page[0])
    async with registrar:
        cluster = registrar.options.cluster
        for query in QUERIES:
            asked = query.replace("$cluster", cluster).replace("$node", ".*").replace("$__rate_interval", "5s")
            await eventually(functools.partial(prometheus.has, asked))
        for name, known in (("cluster", cluster), ("node", "a@h")):
            definition = VARIABLES[name]["definition"].replace("$cluster", cluster)
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", definition)
            assert found
            assert await prometheus.ask(f"label/{found[2]}/values", **{"match[]": found[1]}) == [known]


async def test_each_alert_is_silent_until_there_is_reason(
    prometheus: Prometheus,
    page: tuple[MeterProvider, CollectorRegistry],
    registrar_options: Options,
    relay: FaultProxy,
    raw: Raw,
    routes: str,
    may_stand_still: None,
) -> None:
    options = short_options(relay.endpoint, cluster=registrar_options.cluster)
    registrar = Registrar(options, node="a@h")
    instrument(registrar, page[0])

    async def firing() -> set[str]:
        return {alert for alert, query in ALERTS.items() if await prometheus.values(query)}

    async def fires(alert: str, meanwhile: Callable[[], object] = lambda: None) -> bool:
        meanwhile()
        return alert in await firing()

    async with registrar, registrar.subscribe(maxsize=1) as unread:
        await eventually(lambda: prometheus.has("count_over_time(ergo_registrar_events_missed_total[5s]) > 4"))
        assert await firing() == set()
        for number in range(3):
            await raw.put(f"{routes}nodes/n{number}@h", b"ggAhnYMAHSNlcmdvLnNlcnZpY2VzL2VyZ28vZ2VuL1JvdXRlnQAAAAA=")
        await settled(raw, registrar)
        assert unread.missed == 2
        await eventually(lambda: fires("ErgoRegistrarEventsMissed"))
        await eventually(lambda: fires("ErgoRegistrarLoopLag", lambda: stand_still(0.9)))
        await relay.refuse()
        await eventually(lambda: fires("ErgoRegistrarSessionLost"))
        await eventually(lambda: fires("ErgoRegistrarStale"))
        await relay.heal()
        await eventually(lambda: registrar.state is State.CONNECTED)
    rules = [rule for group in (await prometheus.ask("rules"))["groups"] for rule in group["rules"]]
    assert {(rule["name"], rule["health"], rule.get("lastError", "")) for rule in rules} == {
        (alert, "ok", "") for alert in ALERTS
    }
