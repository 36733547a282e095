"""Routes to what stands in etcd, and back: standard base64 of EDF, the Ergo Data Format.

Source: `net/edf` of `ergo.services/ergo`, used without caches, and `encode` in `etcd/marshal.go` of
`ergo.services/registrar`. Every number is big-endian.

    atom, string       uint16 length, UTF-8; an atom has at most 255 bytes, since a longer length is the id of a cache
    int  int32  uint16  bool        8, 4, 2, 1 bytes
    list               0xff for nil, or 0x9d, uint32 count, items
    struct             its fields in order, in front of the outermost one 0x83, uint16 length, name of the type

    Version            Name Release Commit License string
    Route              Host string, Port uint16, TLS bool, HandshakeVersion ProtoVersion Version
    []Route            0x82, uint16 length of the type that follows, 0x9d 0x83 ... Route, then the list
    ApplicationRoute   Node Name atom, Weight Mode int, State int32                                     "v3.1"
                       Node Name atom, Weight Mode int, Tags []atom, State int32                        "tags"
                       Node Name atom, Weight Mode int, Tags []atom, State int32, Version               "tags+version"

Only what an Ergo node can write is read, so bytes that decode encode to the same bytes again. Go's decoder passes over
more: it skips line breaks in base64 and leftover bits at its end, ignores trailing bytes, and takes a bool other than 1
for false. No encoder writes these, so here they are damage. Nor is text read that is not UTF-8, though Go's may be.
"""

import binascii
import struct
from collections.abc import Callable
from typing import TypeVar, get_args

from ergo_registrar.errors import DecodeError, ValidationError
from ergo_registrar.routes import (
    NO_VERSION,
    ApplicationMode,
    ApplicationRoute,
    ApplicationRouteLayout,
    ApplicationState,
    Route,
    Version,
)

_T = TypeVar("_T")

_NIL, _LIST = 0xFF, 0x9D
_ROUTE_NAME = b"#ergo.services/ergo/gen/Route"
_ROUTE_TYPE = b"\x9d\x83" + struct.pack(">H", len(_ROUTE_NAME)) + _ROUTE_NAME
_ROUTES_PREFIX = b"\x82" + struct.pack(">H", len(_ROUTE_TYPE)) + _ROUTE_TYPE
_APPLICATION_NAME = b"#ergo.services/ergo/gen/ApplicationRoute"
_APPLICATION_PREFIX = b"\x83" + struct.pack(">H", len(_APPLICATION_NAME)) + _APPLICATION_NAME

_UINT16, _UINT32 = struct.Struct(">H"), struct.Struct(">I")
_LIST_HEAD = struct.Struct(">BI")
_PORT_TLS = struct.Struct(">HB")
_WEIGHT_MODE = struct.Struct(">qq")
_STATE = struct.Struct(">i")
_WEIGHT_MODE_STATE = struct.Struct(">qqi")
_NO_VERSION_BYTES = bytes(4 * _UINT16.size)  # four empty strings

_MOST_ATOM, _MOST_STRING = 255, 65_535  # bytes
_MOST_ITEMS = 2**32 - 1
_MODES: dict[int, ApplicationMode] = {mode.value: mode for mode in ApplicationMode}
_STATES: dict[int, ApplicationState] = {state.value: state for state in ApplicationState}


def encode_routes(routes: list[Route] | tuple[Route, ...] | None) -> bytes:
    """Return what stands in etcd for the routes of a node, None being Go's nil.

    Raises ValidationError, naming the field, for what the wire cannot hold: a port beyond 65535, a string of more than
    65,535 bytes of UTF-8, or a wrong type.
    """
    return _to_base64(_ROUTES_PREFIX + _list_bytes("routes", routes, _route_bytes))


def decode_routes(data: bytes | str) -> list[Route] | None:
    """Return the routes of a node from what stands in etcd, None for Go's nil. Raises DecodeError, and no other."""
    return _decode(data, _ROUTES_PREFIX, _read_routes, "routes")


def encode_application_route(route: ApplicationRoute, layout: ApplicationRouteLayout = "v3.1") -> bytes:
    """Return what stands in etcd for the route of an application.

    `layout` says which fields to write (`Options.application_route_layout`). Raises ValidationError, naming the field,
    for what the wire cannot hold: tags or a version in a layout without them, weight and mode beyond 64 bits signed,
    state beyond 32, a node, name or tag of more than 255 bytes of UTF-8, or a wrong type.
    """
    if layout not in get_args(ApplicationRouteLayout):
        layouts = ", ".join(map(repr, get_args(ApplicationRouteLayout)))
        raise ValidationError("layout", layout, f"must be one of {layouts}")
    if not isinstance(route, ApplicationRoute):
        raise ValidationError("application", route, "must be an ApplicationRoute")
    parts = [
        _APPLICATION_PREFIX,
        _text_bytes("application.node", route.node, _MOST_ATOM),
        _text_bytes("application.name", route.name, _MOST_ATOM),
        _int_bytes("application.weight", route.weight, 64),
        _int_bytes("application.mode", route.mode, 64),
    ]
    if layout != "v3.1":
        parts.append(_list_bytes("application.tags", route.tags, _tag_bytes))
    elif route.tags is not None:
        rule = "must be None in layout 'v3.1'; set application_route_layout to 'tags' or 'tags+version' to write it"
        raise ValidationError("application.tags", route.tags, rule)
    parts.append(_int_bytes("application.state", route.state, 32))
    if layout == "tags+version":
        parts.append(_version_bytes("application.version", route.version))
    elif route.version != NO_VERSION:
        rule = f"must be empty in layout {layout!r}; set application_route_layout to 'tags+version' to write it"
        raise ValidationError("application.version", route.version, rule)
    return _to_base64(b"".join(parts))


def decode_application_route(data: bytes | str) -> ApplicationRoute:
    """Return the route of an application from what stands in etcd, in any layout. Raises DecodeError, and no other.

    A mode or state without a name here stays an int.
    """
    return _decode(data, _APPLICATION_PREFIX, _read_application_route, "application route")


def decode_application_route_of(node: str, name: str, data: bytes) -> ApplicationRoute:
    """Return the route of that application on that node from what stands in etcd. Raises DecodeError, and no other.

    It is a DecodeError if the route is another's. Quicker than `decode_application_route` where it is theirs, in layout
    "v3.1": then only the numbers are new.
    """
    try:
        edf = binascii.a2b_base64(data)
        of_node, of_name = node.encode(), name.encode()
        head = b"%b\0%c%b\0%c%b" % (_APPLICATION_PREFIX, len(of_node), of_node, len(of_name), of_name)
        end = len(head)
        if len(edf) - end == _WEIGHT_MODE_STATE.size and edf.startswith(head) and data == _to_base64(edf):
            weight, mode, state = _WEIGHT_MODE_STATE.unpack_from(edf, end)
            return ApplicationRoute(node, name, weight, _MODES.get(mode, mode), _STATES.get(state, state))
    except (ValueError, OverflowError):  # no base64, or a name longer than an atom: the words are those of the other
        pass
    route = decode_application_route(data)
    if route.name != name or route.node != node:
        raise DecodeError(f"the value is about application {route.name!r} on node {route.node!r}")
    return route


def _to_base64(edf: bytes) -> bytes:
    return binascii.b2a_base64(edf, newline=False)


def _decode(data: bytes | str, prefix: bytes, read: Callable[[bytes, int], tuple[_T, int]], what: str) -> _T:
    try:
        written = data.encode() if isinstance(data, str) else data
        edf = binascii.a2b_base64(written)
        if _to_base64(edf) != written:  # a2b_base64 passes over strange characters and leftover bits
            raise DecodeError("should be standard base64 with padding and nothing else")
        if not edf.startswith(prefix):
            raise DecodeError(f"should begin with its type, {prefix!r}")
        value, end = read(edf, len(prefix))
        if end != len(edf):
            raise DecodeError(f"should end at byte {end} of {len(edf)}")
    except (struct.error, IndexError):
        raise DecodeError(f"{what}: ends too early") from None
    except (DecodeError, ValueError) as error:  # ValueError: base64 without its padding, or text that is not UTF-8
        raise DecodeError(f"{what}: {error}") from None
    return value


# Readers take the bytes and where to begin, and return what they read and where it ends. `struct` and an index refuse
# what is behind the end, and each item of a list takes at least two bytes, so a false count ends with the bytes. A text
# that is cut short ends behind the end: whoever reads on there fails, and so does `_decode` when it was the last.


def _read_string(edf: bytes, at: int) -> tuple[str, int]:
    start = at + 2
    end = start + (edf[at] << 8 | edf[at + 1])
    return edf[start:end].decode(), end


def _read_atom(edf: bytes, at: int) -> tuple[str, int]:
    if edf[at] > 0:
        length = edf[at] << 8 | edf[at + 1]
        raise DecodeError(f"byte {at}: a text of {length} bytes, should be at most {_MOST_ATOM}")
    start = at + 2
    end = start + edf[at + 1]
    return edf[start:end].decode(), end


def _read_count(edf: bytes, at: int) -> tuple[int | None, int]:
    kind = edf[at]
    if kind == _NIL:
        return None, at + 1
    if kind != _LIST:
        raise DecodeError(f"byte {at}: a list should begin with {_LIST:#x} or {_NIL:#x}, not {kind:#x}")
    (count,) = _UINT32.unpack_from(edf, at + 1)
    return count, at + _LIST_HEAD.size


def _read_version(edf: bytes, at: int) -> tuple[Version, int]:
    if edf.startswith(_NO_VERSION_BYTES, at):
        return NO_VERSION, at + len(_NO_VERSION_BYTES)
    name, at = _read_string(edf, at)
    release, at = _read_string(edf, at)
    commit, at = _read_string(edf, at)
    license, at = _read_string(edf, at)
    return Version(name, release, commit, license), at


def _read_routes(edf: bytes, at: int) -> tuple[list[Route] | None, int]:
    count, at = _read_count(edf, at)
    if count is None:
        return None, at
    routes = []
    for _ in range(count):
        host, at = _read_string(edf, at)
        port, tls = _PORT_TLS.unpack_from(edf, at)
        if tls > 1:
            raise DecodeError(f"byte {at + 2}: a bool should be 0 or 1, not {tls}")
        handshake_version, at = _read_version(edf, at + _PORT_TLS.size)
        proto_version, at = _read_version(edf, at)
        routes.append(Route(host, port, tls == 1, handshake_version, proto_version))
    return routes, at


def _read_application_route(edf: bytes, at: int) -> tuple[ApplicationRoute, int]:
    node, at = _read_atom(edf, at)
    name, at = _read_atom(edf, at)
    if len(edf) - at == _WEIGHT_MODE_STATE.size:  # "v3.1"; the shortest Tags would be one byte more
        weight, mode, state = _WEIGHT_MODE_STATE.unpack_from(edf, at)
        return ApplicationRoute(node, name, weight, _MODES.get(mode, mode), _STATES.get(state, state)), len(edf)
    weight, mode = _WEIGHT_MODE.unpack_from(edf, at)
    tags, at = _read_tags(edf, at + _WEIGHT_MODE.size)
    (state,) = _STATE.unpack_from(edf, at)
    at += _STATE.size
    version, at = _read_version(edf, at) if at < len(edf) else (NO_VERSION, at)
    return ApplicationRoute(node, name, weight, _MODES.get(mode, mode), _STATES.get(state, state), tags, version), at


def _read_tags(edf: bytes, at: int) -> tuple[tuple[str, ...] | None, int]:
    count, at = _read_count(edf, at)
    if count is None:
        return None, at
    tags = []
    for _ in range(count):
        tag, at = _read_atom(edf, at)
        tags.append(tag)
    return tuple(tags), at


def _text_bytes(field: str, text: object, most: int) -> bytes:
    rule = f"must be a str of at most {most} bytes of UTF-8"
    if not isinstance(text, str):
        raise ValidationError(field, text, rule)
    try:
        utf8 = text.encode()
    except UnicodeEncodeError:
        raise ValidationError(field, text, rule) from None
    if len(utf8) > most:
        raise ValidationError(field, text, rule)
    return _UINT16.pack(len(utf8)) + utf8


def _tag_bytes(tag: object) -> bytes:
    return _text_bytes("application.tags", tag, _MOST_ATOM)


def _int_bytes(field: str, number: object, bits: int, *, signed: bool = True) -> bytes:
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        raise ValidationError(field, number, f"must be an int from {least} to {most}")
    return number.to_bytes(bits // 8, "big", signed=signed)


def _bool_bytes(field: str, flag: object) -> bytes:
    if not isinstance(flag, bool):
        raise ValidationError(field, flag, "must be True or False")
    return bytes([flag])


def _list_bytes(field: str, items: object, item_bytes: Callable[[object], bytes]) -> bytes:
    if items is None:
        return bytes([_NIL])
    if not isinstance(items, list | tuple) or len(items) > _MOST_ITEMS:
        raise ValidationError(field, items, f"must be None, or a list or tuple of at most {_MOST_ITEMS}")
    return _LIST_HEAD.pack(_LIST, len(items)) + b"".join(map(item_bytes, items))


def _version_bytes(field: str, version: object) -> bytes:
    if not isinstance(version, Version):
        raise ValidationError(field, version, "must be a Version")
    parts = {part: getattr(version, part) for part in ("name", "release", "commit", "license")}
    return b"".join(_text_bytes(f"{field}.{part}", text, _MOST_STRING) for part, text in parts.items())


def _route_bytes(route: object) -> bytes:
    if not isinstance(route, Route):
        raise ValidationError("route", route, "must be a Route")
    return b"".join(
        (
            _text_bytes("route.host", route.host, _MOST_STRING),
            _int_bytes("route.port", route.port, 16, signed=False),
            _bool_bytes("route.tls", route.tls),
            _version_bytes("route.handshake_version", route.handshake_version),
            _version_bytes("route.proto_version", route.proto_version),
        )
    )
