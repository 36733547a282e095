"""What a process publishes, as the keys and values that stand in etcd. Pure, checked before anything is sent."""

from collections.abc import Iterable
from typing import Self, TypeVar

import msgspec

from ergo_registrar.core import edf, keys
from ergo_registrar.errors import ValidationError
from ergo_registrar.routes import ApplicationRoute, ApplicationRouteLayout, Route

T = TypeVar("T")

MOST_BYTES = 1_000_000
"""What one transaction carries: etcd takes requests of 1.5 MiB (--max-request-bytes)."""


class Publication(msgspec.Struct, frozen=True):
    """A node with its routes and applications, ready to be put: the node's own key first."""

    node: str
    node_key: bytes
    entries: dict[bytes, bytes]

    @classmethod
    def of(
        cls,
        cluster: str,
        layout: ApplicationRouteLayout,
        node: str,
        routes: Iterable[Route],
        applications: Iterable[ApplicationRoute],
    ) -> Self:
        """Return the publication of `node`. Raise `ValidationError`, naming what breaks a rule."""
        node_key = keys.node_key(cluster, keys.check_node_name("node", node))
        entries = {node_key: edf.encode_routes(_listed("routes", routes, "Route"))}
        if len(entries[node_key]) > MOST_BYTES:
            size = f"{len(entries[node_key])} bytes"
            raise ValidationError("routes", size, f"must fit, encoded, into {MOST_BYTES} bytes")
        for route in _listed("applications", applications, "ApplicationRoute"):
            key, value = application_entry(cluster, layout, node, route)
            if key in entries:
                raise ValidationError("applications", route.name, "must name each application once")
            entries[key] = value
        return cls(node, node_key, entries)


def application_entry(
    cluster: str, layout: ApplicationRouteLayout, node: str, route: ApplicationRoute
) -> tuple[bytes, bytes]:
    """Return the key and value that publish one application of `node`. Raise `ValidationError`."""
    if not isinstance(route, ApplicationRoute):
        raise ValidationError("application", route, "must be an ApplicationRoute")
    if route.node != node:
        raise ValidationError("application.node", route.node, f"must be this process's own node, {node!r}")
    keys.check_name("application.name", route.name)
    value = edf.encode_application_route(route, layout)
    if len(value) > MOST_BYTES:
        raise ValidationError("application.tags", f"{len(value)} bytes", f"must fit, encoded, into {MOST_BYTES} bytes")
    return keys.application_key(cluster, route.name, node), value


def _listed(field: str, given: Iterable[T], kind: str) -> list[T]:
    try:
        return list(given)
    except TypeError:
        raise ValidationError(field, given, f"must be a list or tuple of {kind}") from None
