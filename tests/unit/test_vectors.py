"""The bytes and the values of Go itself, every one, in both directions."""

import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ergo_registrar.core.edf import (
    decode_application_route,
    decode_routes,
    encode_application_route,
    encode_routes,
)
from ergo_registrar.core.values import format_value, parse_value
from ergo_registrar.errors import ValidationError
from ergo_registrar.routes import (
    ApplicationMode,
    ApplicationRoute,
    ApplicationRouteLayout,
    ApplicationState,
    Route,
    Version,
)

VECTORS = Path(__file__).parent.parent / "vectors"
EDF: dict[str, dict[ApplicationRouteLayout, Any]] = json.loads((VECTORS / "edf.json").read_text("utf-8"))
CONFIG_VALUES: list[dict[str, str]] = json.loads((VECTORS / "config_values.json").read_text("utf-8"))

HANDSHAKE = Version("EHS", "R1", "", "MIT")
PROTO = Version("ENP", "R1", "abc1234", "MIT")
ROUTES: dict[str, list[Route] | None] = {
    "routes_nil": None,
    "routes_empty": [],
    "routes_one": [Route("localhost", 15000, False, HANDSHAKE, PROTO)],
    "routes_two": [Route("10.0.0.1", 11144, True, HANDSHAKE, PROTO), Route("fe80::1", 65535)],
    "routes_unicode": [Route("хост.пример", 1, False, Version(), Version("日本", "é"))],
    "routes_zero": [Route("", 0)],
}

TEMPORARY, TRANSIENT, PERMANENT = ApplicationMode
LOADED, RUNNING, STOPPING = ApplicationState
APPLICATIONS = {  # in the layout that has all fields; the others have None and nothing for what they lack
    "app_atom255": ApplicationRoute("n" * 255, "a" * 255, 7, TEMPORARY, LOADED),
    "app_loaded": ApplicationRoute("node2@host", "web-server", 1, TEMPORARY, LOADED),
    "app_maxw": ApplicationRoute("n@h", "a", 2**63 - 1, PERMANENT, RUNNING),
    "app_minw": ApplicationRoute("n@h", "a", -(2**63), PERMANENT, RUNNING),
    "app_running": ApplicationRoute(
        "node1@host",
        "web-server",
        100,
        PERMANENT,
        RUNNING,
        ("blue", "canary"),
        Version("web", "1.2.3", "deadbee", "MIT"),
    ),
    "app_state9": ApplicationRoute("n@h", "a", 5, 9, 9),
    "app_stopping": ApplicationRoute("n@h", "a", -1, TRANSIENT, STOPPING, ()),
    "app_unicode": ApplicationRoute("узел@хост", "приложение", 5, TRANSIENT, RUNNING, ("тег",), Version("日本")),
    "app_zero": ApplicationRoute("", "", 0, 0, 0),
}


def named(kind: str) -> list[Any]:
    return [
        pytest.param(layout, name, wire.encode(), id=f"{layout}-{name}")
        for layout, vectors in EDF["named"].items()
        for name, wire in vectors.items()
        if name.startswith(kind)
    ]


def random(kind: str) -> list[Any]:
    return [
        pytest.param(layout, vector["value"], vector["wire"].encode(), id=f"{layout}-{number}")
        for layout, vectors in EDF["random"].items()
        for number, vector in enumerate(vectors)
        if vector["kind"] == kind
    ]


def version_of(value: dict[str, str]) -> Version:
    return Version(**value)


def route_of(value: dict[str, Any]) -> Route:
    versions = {which: version_of(value[which]) for which in ("handshake_version", "proto_version")}
    fields: dict[str, Any] = value | versions
    return Route(**fields)


def application_of(value: dict[str, Any]) -> ApplicationRoute:
    read: dict[str, Any] = {
        "mode": ApplicationMode[value["mode"].upper()],
        "state": ApplicationState[value["state"].upper()],
        "version": version_of(value.get("version", {})),
    }
    return ApplicationRoute(**(value | read))


def test_every_vector_is_used() -> None:
    for layout in EDF["named"]:
        assert set(EDF["named"][layout]) == set(ROUTES) | set(APPLICATIONS)
        assert {vector["kind"] for vector in EDF["random"][layout]} == {"routes", "application_route"}
    assert len(named("")) == 45
    assert len(random("routes")) + len(random("application_route")) == 120
    assert len(CONFIG_VALUES) == 500


@pytest.mark.parametrize(("layout", "name", "wire"), named("routes"))
def test_named_routes(layout: ApplicationRouteLayout, name: str, wire: bytes) -> None:
    assert decode_routes(wire) == ROUTES[name]
    assert encode_routes(ROUTES[name]) == wire


@pytest.mark.parametrize(("layout", "name", "wire"), named("app"))
def test_named_application_routes(layout: ApplicationRouteLayout, name: str, wire: bytes) -> None:
    route = APPLICATIONS[name]
    if layout == "v3.1":
        route = msgspec.structs.replace(route, tags=None)
    if layout != "tags+version":
        route = msgspec.structs.replace(route, version=Version())
    decoded = decode_application_route(wire)
    assert decoded == route
    assert (type(decoded.mode), type(decoded.state)) == (type(route.mode), type(route.state))
    assert encode_application_route(route, layout) == wire


@pytest.mark.parametrize(("layout", "value", "wire"), random("routes"))
def test_random_routes(layout: ApplicationRouteLayout, value: list[dict[str, Any]], wire: bytes) -> None:
    routes = [route_of(route) for route in value]
    assert decode_routes(wire) == routes
    assert encode_routes(routes) == wire


@pytest.mark.parametrize(("layout", "value", "wire"), random("application_route"))
def test_random_application_routes(layout: ApplicationRouteLayout, value: dict[str, Any], wire: bytes) -> None:
    route = application_of(value)
    assert decode_application_route(wire) == route
    assert encode_application_route(route, layout) == wire


@pytest.mark.parametrize("vector", CONFIG_VALUES, ids=lambda vector: ascii(vector["raw"]))
def test_config_values(vector: dict[str, str]) -> None:
    raw, value = vector["raw"], parse_value(vector["raw"])
    match vector["type"]:
        case "string":
            assert value == vector["value"] == raw
            assert format_value(raw) == raw
        case "float":
            assert type(value) is float
            assert struct.pack(">d", value).hex() == vector["value"]
        case "int":
            assert type(value) is int
            assert str(value) == vector["value"]
        case "bool":
            assert {True: "true", False: "false"}[bool(value)] == vector["value"]
            assert type(value) is bool
        case other:
            pytest.fail(f"unknown type {other}")
    if vector["type"] != "string":
        with pytest.raises(ValidationError):
            format_value(raw)
        again = parse_value(format_value(value))
        assert (type(again), repr(again)) == (type(value), repr(value))
