"""What `--json` prints, as types: `docs/reference/cli.md` documents each field. A field may be added, none goes."""

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from ergo_registrar import ApplicationMode, ApplicationRoute, ApplicationState, Route, Version
from ergo_registrar.admin.published import Key, Lease, Published


class RouteDocument(msgspec.Struct, frozen=True):
    """A route, and the `address` that comes of it: HOST:PORT, with the node's host where the route names none."""

    address: str
    host: str
    port: int
    tls: bool
    handshake_version: Version
    proto_version: Version


class SkippedDocument(msgspec.Struct, frozen=True):
    """A key that was left out, and why."""

    key: str
    reason: str


class _Application(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    name: str
    weight: int
    mode: str | int
    state: str | int
    tags: tuple[str, ...] | None
    version: Version


class NodeDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One node of `nodes`."""

    name: str
    routes: list[RouteDocument]
    applications: list[str]
    create_revision: int
    mod_revision: int
    lease: Lease | None


class NodesDocument(msgspec.Struct, frozen=True):
    """What `nodes` prints."""

    cluster: str
    revision: int
    nodes: list[NodeDocument]
    skipped: list[SkippedDocument]


class ApplicationDocument(_Application, frozen=True, kw_only=True):
    """One application on one node, of `apps`."""

    create_revision: int
    mod_revision: int
    lease: Lease | None


class ApplicationsDocument(msgspec.Struct, frozen=True):
    """What `apps` prints."""

    cluster: str
    revision: int
    applications: list[ApplicationDocument]
    skipped: list[SkippedDocument]


class NodeAnswer(msgspec.Struct, frozen=True):
    """What `resolve` prints for a node."""

    cluster: str
    revision: int
    name: str
    routes: list[RouteDocument]
    kind: Literal["node"] = "node"


class InstanceDocument(_Application, frozen=True, kw_only=True):
    """One place where an application is, and how its node is reached, of `resolve`."""

    routes: list[RouteDocument]


class ApplicationAnswer(msgspec.Struct, frozen=True):
    """What `resolve` prints for an application: the pick is the first of its instances."""

    cluster: str
    revision: int
    name: str
    instances: list[InstanceDocument]
    kind: Literal["application"] = "application"


class LiveNode(msgspec.Struct, frozen=True):
    """One node of `top`."""

    name: str
    routes: list[RouteDocument]
    suspected: bool


class LiveApplication(_Application, frozen=True, kw_only=True):
    """One application on one node, of `top`."""

    suspected: bool


class TopDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `top` prints at each refresh."""

    time: str
    cluster: str
    endpoint: str
    state: str
    reason: str | None
    revision: int
    staleness: float
    nodes: list[LiveNode]
    applications: list[LiveApplication]


def address(node: str, route: Route) -> str:
    """Return HOST:PORT. A route without a host is on the one in the node's name, behind the `@`."""
    host = route.host or node.rpartition("@")[2]
    return f"[{host}]:{route.port}" if ":" in host else f"{host}:{route.port}"


def route_documents(node: str, routes: Iterable[Route]) -> list[RouteDocument]:
    """Return the routes of a node as they are printed."""
    return [
        RouteDocument(address(node, r), r.host, r.port, r.tls, r.handshake_version, r.proto_version) for r in routes
    ]


def mode_name(mode: ApplicationMode | int) -> str | int:
    """Return the name of a mode, the number of one that has none here."""
    return mode.name.lower() if isinstance(mode, ApplicationMode) else mode


def state_name(state: ApplicationState | int) -> str | int:
    """Return the name of a state, the number of one that has none here."""
    return state.name.lower() if isinstance(state, ApplicationState) else state


def application_fields(route: ApplicationRoute) -> dict[str, Any]:
    """Return what every document says about an application route."""
    return {
        "node": route.node,
        "name": route.name,
        "weight": route.weight,
        "mode": mode_name(route.mode),
        "state": state_name(route.state),
        "tags": route.tags,
        "version": route.version,
    }


def key_fields(key: Key) -> dict[str, Any]:
    """Return what every document says about a key."""
    return {"create_revision": key.created, "mod_revision": key.changed, "lease": key.lease}


def skipped_documents(published: Published) -> list[SkippedDocument]:
    """Return the keys that were left out."""
    return [SkippedDocument(each.key.decode(errors="backslashreplace"), each.reason) for each in published.skipped]


def addresses(routes: Iterable[RouteDocument]) -> str:
    """Return routes as a table shows them."""
    return " ".join(f"{route.address}{' TLS' if route.tls else ''}" for route in routes) or "-"


def version_text(version: Version) -> str:
    """Return a version as a table shows it."""
    return f"{version.name} {version.release}".strip() or "-"


def tags_text(tags: Iterable[str] | None) -> str:
    """Return tags as a table shows them."""
    return ",".join(tags or ()) or "-"
