"""What the bytes in etcd mean, read and written from docs/reference/wire.md anew: the package is not its own witness.

A view is what a process should know, as JSON has it: nodes by name, applications by name and node, configuration.
A process signs what it publishes with its number, its *life*: in the host of its route, in its applications' weights.
"""

import base64
import binascii
import json
import struct
from collections.abc import Mapping
from typing import Any

CLUSTER = "chaos"
ROUTES = f"services/ergo/cluster/{CLUSTER}/routes/"

WITNESS = "witness"  # the configuration item, and the application, that the checker counts up
_WEIGHTS = 100  # of one life: the weights from life * 100 on, or their negatives

_ROUTE = b"#ergo.services/ergo/gen/Route"
_APPLICATION = b"#ergo.services/ergo/gen/ApplicationRoute"
_ROUTES_HEAD = b"\x82\x00\x21\x9d\x83" + struct.pack(">H", len(_ROUTE)) + _ROUTE
_APPLICATION_HEAD = b"\x83" + struct.pack(">H", len(_APPLICATION)) + _APPLICATION
_NO_VERSION = {"name": "", "release": "", "commit": "", "license": ""}

View = dict[str, Any]


class _Reader:
    """Bytes, and how far they were read. Reading beyond the end is a struct.error or ValueError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, form: str) -> int:
        (number,) = struct.unpack_from(">" + form, self._data, self._at)
        self._at += struct.calcsize(">" + form)
        return int(number)

    def text(self) -> str:
        length = self.number("H")
        piece = self._data[self._at : self._at + length]
        if len(piece) < length:
            raise ValueError("cut short")
        self._at += length
        return piece.decode()

    def items(self, read: Any) -> list[Any] | None:
        if (mark := self.number("B")) == 0xFF:
            return None
        if mark != 0x9D:
            raise ValueError("not a list")
        return [read() for _ in range(self.number("I"))]

    def version(self) -> dict[str, str]:
        return {field: self.text() for field in _NO_VERSION}

    def route(self) -> dict[str, Any]:
        route: dict[str, Any] = {"host": self.text(), "port": self.number("H"), "tls": bool(self.number("B"))}
        return route | {"handshake_version": self.version(), "proto_version": self.version()}

    def left(self) -> int:
        return len(self._data) - self._at


def _begun(value: bytes, head: bytes) -> _Reader:
    data = base64.b64decode(value, validate=True)
    if not data.startswith(head):
        raise ValueError("another type")
    return _Reader(data[len(head) :])


def read_routes(value: bytes) -> list[dict[str, Any]] | None:
    """Return the routes of a node; None for what is none."""
    try:
        reader = _begun(value, _ROUTES_HEAD)
        routes = reader.items(reader.route) or []
        return None if reader.left() else routes
    except (struct.error, ValueError, binascii.Error):
        return None


def read_application(value: bytes) -> dict[str, Any] | None:
    """Return the route of an application in any layout; None for what is none."""
    try:
        reader = _begun(value, _APPLICATION_HEAD)
        route: dict[str, Any] = {"node": reader.text(), "name": reader.text()}
        route |= {"weight": reader.number("q"), "mode": reader.number("q")}
        tags = reader.items(reader.text) if reader.left() != 4 else None
        route |= {"state": reader.number("i"), "tags": tags}
        route["version"] = reader.version() if reader.left() else _NO_VERSION
        return None if reader.left() else route
    except (struct.error, ValueError, binascii.Error):
        return None


def write_routes(host: str, port: int) -> bytes:
    """Return a node's only route as it stands in etcd."""
    route = _text(host) + struct.pack(">HB", port, 0) + bytes(2 * 4 * 2)
    return base64.b64encode(_ROUTES_HEAD + b"\x9d\x00\x00\x00\x01" + route)


def write_application(node: str, name: str, weight: int, state: int) -> bytes:
    """Return an application's route as it stands in etcd, in the oldest layout."""
    return base64.b64encode(_APPLICATION_HEAD + _text(node) + _text(name) + struct.pack(">qqi", weight, 3, state))


def _text(text: str) -> bytes:
    return struct.pack(">H", len(text.encode())) + text.encode()


def host_of(life: int) -> str:
    """Return the host in the route that a life publishes."""
    return f"life{life}"


def weight_of(life: int, weight: int) -> int:
    """Return the weight that a life publishes for one from -99 to 99."""
    return (life * _WEIGHTS + abs(weight)) * (-1 if weight < 0 else 1)


def first_application(life: int) -> tuple[str, int, int]:
    """Return name, weight and state of the application that a life registers with."""
    return "web", weight_of(life, 1), 2


def signature(value: bytes) -> int | None:
    """Return the life that signed a value, None where none did."""
    if routes := read_routes(value):
        number = routes[0]["host"].removeprefix("life")
        return int(number) if number.isdecimal() else None
    application = read_application(value)
    return abs(application["weight"]) // _WEIGHTS or None if application else None


def node_key(name: str) -> bytes:
    """Return the key of a node."""
    return f"{ROUTES}nodes/{name}".encode()


def application_key(name: str, node: str) -> bytes:
    """Return the key of an application on a node."""
    return f"{ROUTES}applications/{name}/{node}".encode()


def route_names(key: bytes) -> list[str]:
    """Return what stands behind `routes/`, such as ["nodes", "a@h"]; nothing for a key that names nothing."""
    return _names(key, ROUTES, {"nodes": 2, "leaving": 2, "applications": 3})


def _names(key: bytes, prefix: str, lengths: Mapping[str, int]) -> list[str]:
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return []
    names = text.removeprefix(prefix).split("/")
    good = text.startswith(prefix) and lengths.get(names[0], lengths.get("", 0)) == len(names)
    return names if good and all(_is_name(name) for name in names) and names[-1] != "*" else []


def _is_name(text: str) -> bool:
    return 0 < len(text.encode()) < 256 and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)


def read_view(keys: Mapping[bytes, bytes], node: str | None) -> View:
    """Return what a node, or an observer, should know when etcd holds these keys and values."""
    nodes: dict[str, Any] = {}
    applications: dict[str, dict[str, Any]] = {}
    for key, value in keys.items():
        match route_names(key):
            case ["nodes", name] if (routes := read_routes(value)) is not None:
                nodes[name] = routes
            case ["applications", name, host]:
                route = read_application(value)
                if route and (route["name"], route["node"]) == (name, host) and route["weight"] >= 0:
                    applications.setdefault(name, {})[host] = route
    return {"nodes": nodes, "applications": applications, "config": _effective(keys, node)}


def levels(node: str | None) -> list[str]:
    """Return the prefixes of the configuration of a node, or of an observer, the highest level first."""
    own = [f"services/ergo/config/{CLUSTER}/{node}/", f"services/ergo/cluster/{CLUSTER}/config/{node}/"]
    return [*(own if node else []), f"services/ergo/cluster/{CLUSTER}/config/*/", "services/ergo/config/global/"]


def _effective(keys: Mapping[bytes, bytes], node: str | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for prefix in reversed(levels(node)):
        for key, value in keys.items():
            if names := _names(key, prefix, {"": 1}):
                try:
                    values[names[0]] = _typed(value.decode())
                except UnicodeDecodeError:
                    continue  # counts as absent at this level
    return values


def _typed(text: str) -> Any:
    kind, _, rest = text.partition(":")
    if kind == "int" and rest.isdecimal():
        return int(rest)
    if kind == "bool" and rest in ("true", "false"):
        return rest == "true"
    return text


def canonical(view: Any) -> str:
    """Return a view as text that is equal for equal views only: 1 and true differ."""
    return json.dumps(view, sort_keys=True)


def difference(expected: Any, found: Any, where: str = "") -> list[str]:
    """Name each place where two views differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            line
            for key in sorted(expected.keys() | found.keys())
            for line in difference(expected.get(key, "nothing"), found.get(key, "nothing"), f"{where}/{key}")
        ]
    return [] if canonical(expected) == canonical(found) else [f"{where}: {found} instead of {expected}"]
