"""What stands in etcd for routes: what is refused, both ways. What Go writes: test_vectors.py."""

import base64
import struct
from typing import Any

import msgspec
import pytest

from ergo_registrar.core.edf import (
    decode_application_route,
    decode_application_route_of,
    decode_routes,
    encode_application_route,
    encode_routes,
)
from ergo_registrar.errors import DecodeError, ValidationError
from ergo_registrar.routes import ApplicationMode, ApplicationRoute, ApplicationState, Route, Version

VERSION = Version("web", "1.2.3", "deadbeef", "MIT")
ROUTE = Route("host", 15000, True, Version("EHS", "R1"), VERSION)
PLAIN = ApplicationRoute("n@h", "web", 100, ApplicationMode.PERMANENT, ApplicationState.RUNNING)
TAGGED = msgspec.structs.replace(PLAIN, tags=("blue",))
VERSIONED = msgspec.structs.replace(TAGGED, version=VERSION)

ROUTES_TYPE = b"\x82\x00\x21\x9d\x83\x00\x1d#ergo.services/ergo/gen/Route"
APPLICATION_TYPE = b"\x83\x00\x28#ergo.services/ergo/gen/ApplicationRoute"
EMPTY_VERSION = b"\x00\x00" * 4
HEAD = b"\x00\x01n\x00\x01a" + struct.pack(">qq", 1, 1)  # of an application route, up to Mode


def b64(edf: bytes) -> bytes:
    return base64.b64encode(edf)


def application(rest: bytes) -> bytes:
    return b64(APPLICATION_TYPE + rest)


def routes(rest: bytes) -> bytes:
    return b64(ROUTES_TYPE + rest)


def one_route(**changes: object) -> list[Route]:
    return [msgspec.structs.replace(ROUTE, **changes)]


# Reading


def test_the_layout_is_told_by_what_follows_mode() -> None:
    state = struct.pack(">i", 2)
    plain = ApplicationRoute("n", "a", 1, 1, 2)
    assert decode_application_route(application(HEAD + state)) == plain
    assert decode_application_route(application(HEAD + b"\xff" + state)) == plain
    empty = decode_application_route(application(HEAD + b"\x9d\0\0\0\0" + state))
    assert empty == msgspec.structs.replace(plain, tags=())
    versioned = decode_application_route(application(HEAD + b"\xff" + state + b"\0\1v" + b"\0\0" * 3))
    assert versioned == msgspec.structs.replace(plain, version=Version("v"))


def test_a_state_that_begins_like_tags_is_a_state() -> None:
    for state in (-1, -2, int.from_bytes(b"\x9d\0\0\0", "big", signed=True)):
        data = application(HEAD + struct.pack(">i", state))
        assert decode_application_route(data) == ApplicationRoute("n", "a", 1, 1, state)


def test_known_numbers_get_names_and_unknown_ones_stay_numbers() -> None:
    known = decode_application_route(encode_application_route(PLAIN))
    assert known.mode is ApplicationMode.PERMANENT
    assert known.state is ApplicationState.RUNNING
    unknown = decode_application_route(encode_application_route(ApplicationRoute("n", "a", 1, 4, 0)))
    assert (type(unknown.mode), unknown.mode, type(unknown.state), unknown.state) == (int, 4, int, 0)


def test_text_is_read_like_bytes() -> None:
    assert decode_routes(encode_routes([ROUTE]).decode()) == [ROUTE]
    assert decode_application_route(encode_application_route(PLAIN).decode()) == PLAIN


@pytest.mark.parametrize("data", [encode_routes([ROUTE, ROUTE]), encode_routes([]), encode_routes(None)])
def test_routes_cut_off_anywhere_are_a_decode_error(data: bytes) -> None:
    edf = base64.b64decode(data)
    for length in range(len(edf)):
        with pytest.raises(DecodeError, match=r"^routes: "):
            decode_routes(b64(edf[:length]))


@pytest.mark.parametrize(("route", "layout"), [(PLAIN, "v3.1"), (TAGGED, "tags"), (VERSIONED, "tags+version")])
def test_an_application_route_cut_off_anywhere_is_a_decode_error(route: ApplicationRoute, layout: Any) -> None:
    edf = base64.b64decode(encode_application_route(route, layout))
    as_plain = len(base64.b64decode(encode_application_route(PLAIN)))  # four bytes of tags look like a state
    as_tagged = len(base64.b64decode(encode_application_route(TAGGED, "tags")))
    for length in set(range(len(edf))) - {as_plain, as_tagged}:
        with pytest.raises(DecodeError, match=r"^application route: "):
            decode_application_route(b64(edf[:length]))


def test_trailing_bytes_are_a_decode_error() -> None:
    for more in (b"\0", b"\xff", b"more"):
        for routes_edf in (encode_routes([ROUTE]), encode_routes([]), encode_routes(None)):
            with pytest.raises(DecodeError, match="should end at byte"):
                decode_routes(b64(base64.b64decode(routes_edf) + more))
        for application_data in (
            encode_application_route(PLAIN),
            encode_application_route(TAGGED, "tags"),
            encode_application_route(VERSIONED, "tags+version"),
        ):
            with pytest.raises(DecodeError):
                decode_application_route(b64(base64.b64decode(application_data) + more))


def test_a_declared_count_costs_nothing() -> None:
    with pytest.raises(DecodeError, match="ends too early"):
        decode_routes(routes(b"\x9d\xff\xff\xff\xff"))
    with pytest.raises(DecodeError, match="ends too early"):
        decode_application_route(application(HEAD + b"\x9d\xff\xff\xff\xff" + b"\0" * 4))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        "",
        b"\0",
        b"====",
        b"gg",
        b"\xff\xfe",
        "ünïcode",
        "\ud800",
        encode_routes([]) + b"\n",
        b"\n" + encode_routes([]),
        encode_routes([])[:20] + b"\r\n" + encode_routes([])[20:],
        encode_routes([]).rstrip(b"="),
        encode_routes([]) + b"=",
        encode_routes([]) + b"AAAA",
        encode_routes([])[:-2] + b"B=",  # bits behind the last byte
        encode_routes([]).replace(b"A", b"-", 1),
        base64.b64decode(encode_routes([])),
    ],
)
def test_what_is_not_standard_base64_is_a_decode_error(data: bytes | str) -> None:
    assert encode_routes([]).endswith(b"A=")
    with pytest.raises(DecodeError):
        decode_routes(data)
    with pytest.raises(DecodeError):
        decode_application_route(data)


@pytest.mark.parametrize(
    "data",
    [
        encode_application_route(PLAIN),
        b64(b"\x83\x00\x1d#ergo.services/ergo/gen/Route\x9d\0\0\0\0"),
        b64(b"\x83\x10\x00" + b"\0" * 40),  # the id of a cache, which no one shares in etcd
        routes(b"\x9e\0\0\0\0"),
        routes(b"\x00"),
    ],
)
def test_what_is_no_list_of_routes_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError, match=r"^routes: "):
        decode_routes(data)


def test_a_bool_that_go_does_not_write_is_a_decode_error() -> None:
    for flag, tls in ((b"\0", False), (b"\1", True)):
        data = routes(b"\x9d\0\0\0\1" + b"\0\1h" + b"\0\5" + flag + EMPTY_VERSION * 2)
        assert decode_routes(data) == [Route("h", 5, tls)]
    for flag in (b"\2", b"\xff"):
        data = routes(b"\x9d\0\0\0\1" + b"\0\1h" + b"\0\5" + flag + EMPTY_VERSION * 2)
        with pytest.raises(DecodeError, match="bool should be 0 or 1"):
            decode_routes(data)


@pytest.mark.parametrize("text", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3"])
def test_text_that_is_not_utf_8_is_a_decode_error(text: bytes) -> None:
    written = struct.pack(">H", len(text)) + text
    tail = struct.pack(">qqi", 1, 1, 1)
    for data in (written + b"\0\1a" + tail, b"\0\1n" + written + tail):
        with pytest.raises(DecodeError, match="utf-8"):
            decode_application_route(application(data))
    with pytest.raises(DecodeError, match="utf-8"):
        decode_routes(routes(b"\x9d\0\0\0\1" + written + b"\0\5\0" + EMPTY_VERSION * 2))


def test_an_atom_beyond_255_bytes_is_a_decode_error() -> None:
    for length in (255, 256):
        atom = struct.pack(">H", length) + b"a" * length
        edfs = [
            atom + b"\0\1a" + struct.pack(">qqi", 1, 1, 1),
            b"\0\1n" + atom + struct.pack(">qqi", 1, 1, 1),
            HEAD + b"\x9d\0\0\0\1" + atom + struct.pack(">i", 1),
        ]
        for edf in edfs:
            if length == 255:
                decode_application_route(application(edf))
            else:
                with pytest.raises(DecodeError, match="at most 255"):
                    decode_application_route(application(edf))


# Writing


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", None),
        ("host", b"host"),
        ("host", "h" * 65_536),
        ("host", "é" * 32_768),
        ("host", "\ud800"),
        ("port", -1),
        ("port", 65_536),
        ("port", 10**30),
        ("port", "80"),
        ("port", 80.0),
        ("port", True),
        ("tls", 1),
        ("tls", None),
        ("handshake_version", None),
        ("proto_version", "R1"),
    ],
)
def test_a_route_the_wire_cannot_hold_is_refused_by_its_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        encode_routes(one_route(**{field: value}))
    assert (refused.value.field, refused.value.value) == (f"route.{field}", value)
    assert "must be" in refused.value.rule


@pytest.mark.parametrize("part", ["name", "release", "commit", "license"])
@pytest.mark.parametrize("value", [None, 1, "x" * 65_536, "\udfff"])
def test_a_version_the_wire_cannot_hold_is_refused_by_its_field(part: str, value: object) -> None:
    version = msgspec.structs.replace(VERSION, **{part: value})
    for which in ("handshake_version", "proto_version"):
        with pytest.raises(ValidationError) as refused:
            encode_routes(one_route(**{which: version}))
        assert refused.value.field == f"route.{which}.{part}"
    with pytest.raises(ValidationError) as refused:
        encode_application_route(msgspec.structs.replace(PLAIN, version=version), "tags+version")
    assert refused.value.field == f"application.version.{part}"


def test_the_longest_strings_and_ports_fit() -> None:
    longest = Route("h" * 65_535, 65_535, False, Version("v" * 65_535))
    assert decode_routes(encode_routes([longest, Route("", 0)])) == [longest, Route("", 0)]


class Endless(list[Any]):
    def __len__(self) -> int:
        return 2**32


@pytest.mark.parametrize("given", [5, "", b"", {}, iter(()), PLAIN, Endless()])
def test_what_is_no_list_of_routes_is_refused(given: Any) -> None:
    with pytest.raises(ValidationError, match="routes: must be None, or a list or tuple"):
        encode_routes(given)
    with pytest.raises(ValidationError, match="route: must be a Route"):
        encode_routes([given])


def test_a_tuple_of_routes_is_written_like_a_list() -> None:
    assert encode_routes((ROUTE,)) == encode_routes([ROUTE])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node", None),
        ("node", "n" * 256),
        ("name", "é" * 128),
        ("name", "\ud800"),
        ("name", b"web"),
        ("weight", 2**63),
        ("weight", -(2**63) - 1),
        ("weight", 1.0),
        ("weight", True),
        ("weight", None),
        ("mode", 2**63),
        ("mode", "permanent"),
        ("mode", False),
        ("state", 2**31),
        ("state", -(2**31) - 1),
        ("state", "running"),
        ("tags", ("x" * 256,)),
        ("tags", (1,)),
        ("tags", ("\ud800",)),
        ("version", None),
        ("version", "1.2.3"),
    ],
)
def test_an_application_route_the_wire_cannot_hold_is_refused_by_its_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        encode_application_route(msgspec.structs.replace(VERSIONED, **{field: value}), "tags+version")
    assert refused.value.field == f"application.{field}"
    assert "must be" in refused.value.rule


@pytest.mark.parametrize("route", [None, ROUTE, "web"])
def test_what_is_no_application_route_is_refused(route: Any) -> None:
    with pytest.raises(ValidationError, match="application: must be an ApplicationRoute"):
        encode_application_route(route)


@pytest.mark.parametrize(
    ("changes", "layout", "field", "enough"),
    [
        ({"tags": ("blue",)}, "v3.1", "application.tags", "'tags' or 'tags\\+version'"),
        ({"tags": ()}, "v3.1", "application.tags", "'tags' or 'tags\\+version'"),
        ({"version": VERSION}, "v3.1", "application.version", "'tags\\+version'"),
        ({"version": VERSION}, "tags", "application.version", "'tags\\+version'"),
    ],
)
def test_what_a_layout_has_no_place_for_is_refused_not_dropped(
    changes: dict[str, Any], layout: Any, field: str, enough: str
) -> None:
    route = msgspec.structs.replace(PLAIN, **changes)
    with pytest.raises(ValidationError, match=f"set application_route_layout to.*{enough}") as refused:
        encode_application_route(route, layout)
    assert refused.value.field == field
    assert decode_application_route(encode_application_route(route, "tags+version")) == route


@pytest.mark.parametrize("layout", ["", "v3.2", None, 3])
def test_an_unknown_layout_is_refused(layout: Any) -> None:
    with pytest.raises(ValidationError, match=r"layout: must be one of 'v3\.1', 'tags', 'tags\+version'"):
        encode_application_route(PLAIN, layout)


@pytest.mark.parametrize("layout", ["v3.1", "tags"])
def test_the_route_of_a_key_must_be_as_strictly_written_as_any_other(layout: Any) -> None:
    """What Go's decoder and Python's pass over is refused on the quick way, too."""
    whole = encode_application_route(PLAIN, layout)
    assert decode_application_route_of(PLAIN.node, PLAIN.name, whole) == PLAIN
    for strange in (whole + b"\n", whole[:8] + b"\n" + whole[8:], b"*" + whole, whole.rstrip(b"=") + b"*=="):
        with pytest.raises(DecodeError):
            decode_application_route_of(PLAIN.node, PLAIN.name, strange)
    with pytest.raises(DecodeError, match="is about application"):
        decode_application_route_of(PLAIN.node, "another", whole)
