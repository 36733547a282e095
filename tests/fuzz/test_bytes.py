"""The bytes that stand in etcd, keys and values, in every state of decay."""

import base64
import contextlib
import math
import operator
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from ergo_registrar.core.edf import decode_application_route, decode_routes, encode_application_route, encode_routes
from ergo_registrar.core.keys import (
    ApplicationKey,
    ConfigLevel,
    LeavingKey,
    NodeKey,
    application_key,
    config_key,
    config_prefix,
    leaving_key,
    node_key,
    parse_config_key,
    parse_route_key,
    routes_prefix,
)
from ergo_registrar.core.values import parse_value
from ergo_registrar.errors import DecodeError
from ergo_registrar.routes import ApplicationRoute, Route
from tests.fuzz.mutation import mutated, pieces
from tests.property import test_wire_properties as wire
from tests.unit.test_vectors import CONFIG_VALUES


def property_of(test: Any) -> Callable[..., None]:
    """Return what a Hypothesis test asks of one example."""
    inner: Callable[..., None] = test.hypothesis.inner_test
    return inner


decodes_or_refuses = property_of(wire.test_whatever_is_decoded_is_a_route_of_these_bytes_or_a_decode_error)
comes_back = property_of(wire.test_values_come_back_with_their_type_and_bits)
reads_as_it_is_written = property_of(wire.test_every_text_has_a_value_and_is_written_unless_it_reads_as_another)

written = st.one_of(
    (st.none() | st.lists(wire.routes, max_size=2)).map(encode_routes),
    wire.application_routes("v3.1").map(lambda route: encode_application_route(route, "v3.1")),
    wire.application_routes("tags").map(lambda route: encode_application_route(route, "tags")),
    wire.application_routes("tags+version").map(lambda route: encode_application_route(route, "tags+version")),
)
raw = written.map(base64.b64decode)


@given(mutated(raw).map(base64.b64encode) | mutated(written) | mutated(raw))
def test_any_value_of_a_route_is_decoded_or_refused(data: bytes) -> None:
    decodes_or_refuses(data)


# A list that declares 2**32 - 1 items and has two. The items begin behind the count.
TWO_ROUTES = base64.b64decode(encode_routes([Route("", 0)] * 2))
TWO_TAGS = base64.b64decode(encode_application_route(ApplicationRoute("", "", 0, 0, 0, ("", "")), "tags"))
COUNT = b"\x9d\x00\x00\x00\x02"
HUGE = b"\x9d\xff\xff\xff\xff"

MOST_CALLS, MOST_MEMORY = 2, 24  # for each byte of the input; measured: 1.2 calls, 18 bytes


@contextlib.contextmanager
def calls_at_most(most: int) -> Iterator[None]:
    """Fail at the first call beyond `most`: a loop over what was declared fails there, and does not hang."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")
        assert calls <= most, f"more than {most} calls"

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)


@contextlib.contextmanager
def memory_at_most(most: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= most, f"{peak} bytes of memory, not at most {most}"


long_tails = st.builds(operator.mul, pieces, st.integers(0, 20_000))


@given(mutated(raw | st.sampled_from([TWO_ROUTES, TWO_TAGS])), long_tails)
@example(TWO_ROUTES.replace(COUNT, HUGE), b"")
@example(TWO_ROUTES.replace(COUNT, HUGE), b"\0" * 100_000)
@example(TWO_TAGS.replace(COUNT, HUGE), b"")
@example(TWO_TAGS.replace(COUNT, HUGE), b"\0" * 100_000)
def test_what_it_costs_to_decode_is_bounded_by_the_length(edf: bytes, tail: bytes) -> None:
    data = base64.b64encode(edf + tail)
    for decode in (decode_routes, decode_application_route):
        with calls_at_most(200 + MOST_CALLS * len(data)), contextlib.suppress(DecodeError):
            decode(data)
        with memory_at_most(10_000 + MOST_MEMORY * len(data)), contextlib.suppress(DecodeError):
            decode(data)


CLUSTERS = ("c", "global")
clusters = st.sampled_from(CLUSTERS)
few_names = st.sampled_from(["n@h", "*", "nodes", "config", "global", "ü"]) | wire.names
few_nodes = few_names.filter(lambda name: name != "*")
keys = st.one_of(
    st.builds(node_key, clusters, few_nodes),
    st.builds(application_key, clusters, few_names, few_nodes),
    st.builds(leaving_key, clusters, few_nodes),
    st.builds(config_key, st.sampled_from(ConfigLevel), clusters, few_nodes, few_names),
)


@given(mutated(keys), few_nodes)
@example(b"services/ergo/cluster/c/routes-nodes/n@h", "n@h")
def test_any_key_is_built_again_from_what_it_names_or_is_refused(key: bytes, node: str) -> None:
    for cluster in CLUSTERS:
        with contextlib.suppress(DecodeError):
            match parse_route_key(routes_prefix(cluster), key):
                case NodeKey(named):
                    assert key == node_key(cluster, named)
                case ApplicationKey(name, named):
                    assert key == application_key(cluster, name, named)
                case LeavingKey(named):
                    assert key == leaving_key(cluster, named)
        for level in ConfigLevel:
            with contextlib.suppress(DecodeError):
                item = parse_config_key(config_prefix(level, cluster, node), key)
                assert key == config_key(level, cluster, node, item)


texts = st.sampled_from([vector["raw"].encode() for vector in CONFIG_VALUES])


@given(mutated(texts).map(lambda text: text.decode(errors="surrogateescape")))
def test_any_text_is_a_value_that_reads_as_it_is_written(text: str) -> None:
    reads_as_it_is_written(text)
    value = parse_value(text)
    if not isinstance(value, str) and not math.isnan(value):  # which equals nothing
        comes_back(value)
        assert not math.isinf(value) or "inf" in text.lower()
