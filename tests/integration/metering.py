"""What OpenTelemetry's SDK makes of a registrar, and what the reference page says of it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry.sdk.metrics.export import Gauge, Histogram, InMemoryMetricReader, Sum

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs/reference/observability.md").read_text()
OF_ALL = {"ergo.cluster", "ergo.node"}  # the attributes of every metric


def exported(reader: InMemoryMetricReader) -> Iterator[Any]:
    """Yield every metric that has points now."""
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            yield from scope.metrics


def points(reader: InMemoryMetricReader, name: str, **attributes: str) -> list[Any]:
    """Return the values of a metric where it has these attributes (`ergo.` is put before each); sums of durations."""
    wanted = {f"ergo.{key}": value for key, value in attributes.items()}
    return [
        point.sum if isinstance(metric.data, Histogram) else point.value
        for metric in exported(reader)
        if metric.name == f"ergo_registrar.{name}"
        for point in metric.data.data_points
        if wanted.items() <= point.attributes.items()
    ]


def kind_of(metric: Any) -> str:
    if isinstance(metric.data, Sum):
        return "counter" if metric.data.is_monotonic else "up-down counter"
    return {Gauge: "gauge", Histogram: "histogram"}[type(metric.data)]


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the reference page's table whose first heading this is."""
    table = REFERENCE.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()[2:]]
