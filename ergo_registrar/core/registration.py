"""What a process publishes, as the keys and values that stand in etcd. Pure, checked before anything is sent."""

from collections.abc import Iterable
from typing import Self, TypeVar

import msgspec

from ergo_registrar.core import edf, keys
from ergo_registrar.errors import NoRouteError, ValidationError
from ergo_registrar.routes import ApplicationRoute, ApplicationRouteLayout, Route

T = TypeVar("T")

DRAINED = -1
"""The weight of a drained application. No Go node returns one below 0."""

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


class Drains:
    """Which applications of this node are drained: published with a negative weight, to be put back as they were.

    An application counts as drained as long as the very value that drained it is published. So whatever else is, or
    was taken back, has ended it, and nobody need say so.
    """

    def __init__(self, cluster: str, layout: ApplicationRouteLayout, node: str) -> None:
        self._cluster = cluster
        self._layout: ApplicationRouteLayout = layout
        self._node = node
        self._former: dict[str, tuple[bytes, bytes]] = {}  # application -> the value that drained it, the one before

    def drain(self, name: str, published: bytes | None) -> bytes:
        """Return the value to publish instead of this one. Raise `NoRouteError` where nothing is published."""
        value = self._there(name, published)
        route = edf.decode_application_route(value)
        if route.weight < 0:
            return value
        drained = edf.encode_application_route(msgspec.structs.replace(route, weight=DRAINED), self._layout)
        self._former[name] = drained, value
        return drained

    def undrain(self, name: str, published: bytes | None) -> bytes:
        """Return the value to publish instead of this one. Raise `NoRouteError` where nothing is published."""
        value = self._there(name, published)
        drained, former = self._former.get(name, (None, value))
        return former if value == drained else value

    def _there(self, name: str, published: bytes | None) -> bytes:
        if published is None:
            raise NoRouteError(
                f"{self._node!r} publishes no application {name!r} in cluster {self._cluster!r}: "
                "register its route first"
            )
        return published


def _listed(field: str, given: Iterable[T], kind: str) -> list[T]:
    try:
        return list(given)
    except TypeError:
        raise ValidationError(field, given, f"must be a list or tuple of {kind}") from None
