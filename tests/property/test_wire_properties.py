"""What holds of everything on the wire: it comes back as it went, and damage is one documented error."""

import base64
import contextlib
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ergo_registrar.core.edf import (
    decode_application_route,
    decode_application_route_of,
    decode_routes,
    encode_application_route,
    encode_routes,
)
from ergo_registrar.core.keys import (
    ApplicationKey,
    ConfigLevel,
    LeavingKey,
    NodeKey,
    application_key,
    check_name,
    config_key,
    config_prefix,
    leaving_key,
    node_key,
    parse_config_key,
    parse_route_key,
    prefix_end,
    routes_prefix,
)
from ergo_registrar.core.values import format_value, parse_value
from ergo_registrar.errors import DecodeError, ValidationError
from ergo_registrar.routes import ApplicationMode, ApplicationRoute, ApplicationState, Route, Version

LAYOUTS = ("v3.1", "tags", "tags+version")

text = st.text(st.characters(exclude_categories=["Cs"]))
atoms = text.filter(lambda atom: len(atom.encode()) <= 255)
int64 = st.integers(-(2**63), 2**63 - 1)
versions = st.builds(Version, text, text, text, text)
routes = st.builds(Route, text, st.integers(0, 65_535), st.booleans(), versions, versions)
names = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=60)
node_names = names.filter(lambda name: name != "*")


def application_routes(layout: str) -> st.SearchStrategy[ApplicationRoute]:
    return st.builds(
        ApplicationRoute,
        atoms,
        atoms,
        int64,
        st.sampled_from(ApplicationMode) | int64,
        st.sampled_from(ApplicationState) | st.integers(-(2**31), 2**31 - 1),
        st.none() if layout == "v3.1" else st.none() | st.lists(atoms, max_size=5).map(tuple),
        versions if layout == "tags+version" else st.just(Version()),
    )


def outcome(decode: Callable[[], ApplicationRoute]) -> ApplicationRoute | str:
    try:
        return decode()
    except DecodeError as error:
        return str(error)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Bytes that were routes or an application route once, and had something happen to them."""
    layout: Any = draw(st.sampled_from(LAYOUTS))
    whole = draw(
        st.lists(routes, max_size=2).map(encode_routes)
        | application_routes(layout).map(lambda route: encode_application_route(route, layout))
    )
    edf = base64.b64decode(whole)
    start = draw(st.integers(0, len(edf)))
    end = draw(st.integers(start, min(len(edf), start + 4)))
    return base64.b64encode(edf[:start] + draw(st.binary(max_size=4)) + edf[end:])


@given(st.none() | st.lists(routes, max_size=4))
def test_routes_come_back_as_they_went(given_routes: list[Route] | None) -> None:
    assert decode_routes(encode_routes(given_routes)) == given_routes


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
def test_application_routes_come_back_as_they_went(layout: Any, data: st.DataObject) -> None:
    route = data.draw(application_routes(layout))
    assert decode_application_route(encode_application_route(route, layout)) == route


@given(st.binary() | st.binary().map(base64.b64encode) | st.text() | damaged())
def test_whatever_is_decoded_is_a_route_of_these_bytes_or_a_decode_error(data: bytes | str) -> None:
    written = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
    with contextlib.suppress(DecodeError):
        assert encode_routes(decode_routes(data)) == written
    with contextlib.suppress(DecodeError):
        route = decode_application_route(data)
        writings = set()
        for layout in LAYOUTS:
            with contextlib.suppress(ValidationError):  # not every layout has a place for everything
                writings.add(encode_application_route(route, layout))  # type: ignore[arg-type]  # one of the three
        assert written in writings


@given(st.data())
def test_knowing_whose_a_route_is_changes_nothing_but_that_it_must_be_theirs(data: st.DataObject) -> None:
    """The quick way reads what the plain one does, from damaged bytes, too."""
    layout: Any = data.draw(st.sampled_from(LAYOUTS))
    given_route = data.draw(application_routes(layout))
    whole = encode_application_route(given_route, layout)
    damage = data.draw(st.just(whole) | st.sampled_from([b"=", b"\n", b"AA==", b"*"]).map(lambda end: whole + end))
    written = data.draw(st.just(damage) | damaged() | st.binary())
    node, name = data.draw(st.just((given_route.node, given_route.name)) | st.tuples(atoms, atoms))
    plainly, quickly = (
        outcome(lambda: decode_application_route(written)),
        outcome(lambda: decode_application_route_of(node, name, written)),
    )
    if isinstance(plainly, ApplicationRoute) and (plainly.node, plainly.name) != (node, name):
        plainly = f"the value is about application {plainly.name!r} on node {plainly.node!r}"
    assert quickly == plainly


@given(int64 | st.booleans() | st.floats(allow_nan=False))
def test_values_come_back_with_their_type_and_bits(value: float) -> None:
    again = parse_value(format_value(value))
    assert type(again) is type(value)
    assert again == value
    if isinstance(value, float):
        assert struct.pack(">d", again) == struct.pack(">d", value)


@given(
    st.text()
    | st.builds(
        "{}:{}".format, st.sampled_from(["int", "float", "bool"]), st.text() | st.text("0123456789_.eExXpP+-afFinty")
    )
)
@example("float:0x")
def test_every_text_has_a_value_and_is_written_unless_it_reads_as_another(given_text: str) -> None:
    value = parse_value(given_text)
    if isinstance(value, str):
        assert value is given_text
    try:
        assert format_value(given_text) is given_text
    except ValidationError:
        assert not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value)
    else:
        assert isinstance(value, str)


@given(names, names, node_names)
def test_keys_of_routes_name_what_they_were_made_of(cluster: str, application: str, node: str) -> None:
    prefix = routes_prefix(cluster)
    assert parse_route_key(prefix, node_key(cluster, node)) == NodeKey(node)
    assert parse_route_key(prefix, application_key(cluster, application, node)) == ApplicationKey(application, node)
    assert parse_route_key(prefix, leaving_key(cluster, node)) == LeavingKey(node)


@given(st.sampled_from(ConfigLevel), names | st.just("global"), node_names, names)
def test_keys_of_items_name_the_item_at_their_level_only(
    level: ConfigLevel, cluster: str, node: str, item: str
) -> None:
    key = config_key(level, cluster, node, item)
    found = []
    for other in ConfigLevel:
        with contextlib.suppress(DecodeError):
            found.append((other, parse_config_key(config_prefix(other, cluster, node), key)))
    assert found == [(level, item)]


@given(st.binary() | st.builds(bytes.__add__, st.sampled_from([b"nodes/", b"applications/", b"leaving/"]), st.binary()))
def test_any_key_parses_into_names_or_is_a_decode_error(rest: bytes) -> None:
    prefix = routes_prefix("c")
    for key in (rest, prefix + rest):
        with contextlib.suppress(DecodeError):
            match parse_route_key(prefix, key):
                case NodeKey(node):
                    assert key == node_key("c", node)
                case ApplicationKey(name, node):
                    assert key == application_key("c", name, node)
                case LeavingKey(node):
                    assert key == leaving_key("c", node)
        with contextlib.suppress(DecodeError):
            assert check_name("item", parse_config_key(prefix, key)).encode() == rest


keys = st.binary(max_size=6) | st.lists(st.sampled_from([0, 1, 0x61, 0xFE, 0xFF]), max_size=6).map(bytes)


@given(keys, keys)
def test_a_range_covers_exactly_the_keys_with_its_prefix(prefix: bytes, key: bytes) -> None:
    end = prefix_end(prefix)
    for candidate in (key, prefix + key):
        inside = candidate >= prefix and (end == b"\0" or candidate < end)  # as etcd reads a range
        assert inside == candidate.startswith(prefix)
