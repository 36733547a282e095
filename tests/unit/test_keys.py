"""Where things stand in etcd, and what a name may be."""

import unicodedata
from collections.abc import Callable

import pytest

from ergo_registrar.core.keys import (
    ApplicationKey,
    ConfigLevel,
    LeavingKey,
    NodeKey,
    application_key,
    check_name,
    check_node_name,
    config_key,
    config_prefix,
    config_prefixes,
    leaving_key,
    node_key,
    parse_config_key,
    parse_route_key,
    prefix_end,
    routes_prefix,
)
from ergo_registrar.errors import DecodeError, ValidationError

NOT_NAMES = [
    "",
    "a/b",
    "/",
    "\0",
    "a\n",
    "\x7f",
    "\x80",
    "\x9f",
    "a" * 256,
    "é" * 128,  # 256 bytes in 128 characters
    "\ud800",
    None,
    b"bytes",
    5,
]
NAMES = [
    "a",
    "web1@host",
    "a" * 255,
    "é" * 127,
    "имя@хост",
    "{cluster}",
    "a b",
    ".",
    "..",
    "\N{NO-BREAK SPACE}",
    "global",
]


def test_routes_stand_where_go_nodes_look_for_them() -> None:
    assert routes_prefix("production") == b"services/ergo/cluster/production/routes/"
    assert node_key("production", "web1@host") == b"services/ergo/cluster/production/routes/nodes/web1@host"
    assert application_key("production", "web", "web1@host") == (
        b"services/ergo/cluster/production/routes/applications/web/web1@host"
    )
    assert leaving_key("production", "web1@host") == b"services/ergo/cluster/production/routes/leaving/web1@host"


@pytest.mark.parametrize(
    ("level", "key"),
    [
        (ConfigLevel.CROSS_CLUSTER_NODE, b"services/ergo/config/production/web1@host/db.port"),
        (ConfigLevel.CLUSTER_NODE, b"services/ergo/cluster/production/config/web1@host/db.port"),
        (ConfigLevel.CLUSTER, b"services/ergo/cluster/production/config/*/db.port"),
        (ConfigLevel.GLOBAL, b"services/ergo/config/global/db.port"),
    ],
)
def test_an_item_stands_at_its_level_and_is_found_there(level: ConfigLevel, key: bytes) -> None:
    assert config_key(level, "production", "web1@host", "db.port") == key
    prefix = config_prefix(level, "production", "web1@host")
    assert prefix + b"db.port" == key
    assert parse_config_key(prefix, key) == "db.port"


def test_levels_are_numbered_from_the_highest_and_all_count_for_a_node() -> None:
    assert [level.value for level in ConfigLevel] == [1, 2, 3, 4]
    assert list(config_prefixes("production", "web1@host").items()) == [
        (level, config_prefix(level, "production", "web1@host")) for level in ConfigLevel
    ]


def test_only_the_levels_without_a_node_count_for_an_observer() -> None:
    assert config_prefixes("production", None) == {
        ConfigLevel.CLUSTER: b"services/ergo/cluster/production/config/*/",
        ConfigLevel.GLOBAL: b"services/ergo/config/global/",
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_name_may_be_any_text_without_slash_and_control_characters(name: str) -> None:
    assert check_name("item", name) is name
    assert check_node_name("node", name) is name
    assert parse_route_key(routes_prefix(name), node_key(name, name)) == NodeKey(name)
    assert parse_route_key(routes_prefix(name), application_key(name, name, name)) == ApplicationKey(name, name)
    for level in ConfigLevel:
        assert parse_config_key(config_prefix(level, name, name), config_key(level, name, name, name)) == name


@pytest.mark.parametrize("name", NOT_NAMES)
def test_what_is_no_name_is_refused_with_its_field_and_the_rule(name: object) -> None:
    with pytest.raises(
        ValidationError, match="item: must be 1 to 255 bytes of UTF-8 without '/' or control"
    ) as refused:
        check_name("item", name)
    assert (refused.value.field, refused.value.value) == ("item", name)
    with pytest.raises(ValidationError):
        check_node_name("node", name)


def test_control_characters_are_those_of_unicode() -> None:
    for character in map(chr, range(0x110000)):
        refused = character == "/" or unicodedata.category(character) in {"Cc", "Cs"}
        try:
            check_name("item", character)
        except ValidationError:
            assert refused, ascii(character)
        else:
            assert not refused, ascii(character)


def test_a_star_names_anything_but_a_node() -> None:
    assert check_name("item", "*") == "*"
    assert check_node_name("node", "**") == "**"
    with pytest.raises(ValidationError, match="node: must not be '\\*', which stands for every node") as refused:
        check_node_name("node", "*")
    assert (refused.value.field, refused.value.value) == ("node", "*")


@pytest.mark.parametrize("bad", ["", "a/b", "\n"])
def test_no_key_is_built_from_what_is_no_name(bad: str) -> None:
    builders: dict[str, Callable[[], bytes]] = {
        "cluster": lambda: node_key(bad, "n"),
        "node": lambda: node_key("c", bad),
        "application": lambda: application_key("c", bad, "n"),
        "item": lambda: config_key(ConfigLevel.GLOBAL, "c", "n", bad),
    }
    for field, build in builders.items():
        with pytest.raises(ValidationError) as refused:
            build()
        assert refused.value.field == field


def test_no_key_is_built_for_every_node_or_none() -> None:
    builders: list[Callable[[], bytes]] = [
        lambda: node_key("c", "*"),
        lambda: application_key("c", "a", "*"),
        lambda: leaving_key("c", "*"),
        lambda: config_prefix(ConfigLevel.CROSS_CLUSTER_NODE, "c", "*"),
        lambda: config_prefix(ConfigLevel.CLUSTER_NODE, "c", "*"),
        lambda: config_prefix(ConfigLevel.CROSS_CLUSTER_NODE, "c", None),
        lambda: config_prefix(ConfigLevel.CLUSTER_NODE, "c", None),
    ]
    for build in builders:
        with pytest.raises(ValidationError, match="node: "):
            build()
    with pytest.raises(ValidationError, match="cluster: "):
        config_prefix(ConfigLevel.GLOBAL, "", None)


def test_route_keys_are_told_apart() -> None:
    prefix = routes_prefix("c")
    assert parse_route_key(prefix, prefix + b"nodes/n@h") == NodeKey("n@h")
    assert parse_route_key(prefix, prefix + b"applications/web/n@h") == ApplicationKey("web", "n@h")
    assert parse_route_key(prefix, prefix + b"applications/*/n@h") == ApplicationKey("*", "n@h")
    assert parse_route_key(prefix, prefix + b"leaving/n@h") == LeavingKey("n@h")


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"nodes",
        b"nodes/",
        b"nodes/*",
        b"nodes/a/b",
        b"nodes//a",
        b"nodes/a\n",
        b"nodes/" + b"a" * 256,
        b"nodes/\xff",
        b"nodes/\xed\xa0\x80",  # a surrogate
        b"nodes/\xc0\xaf",  # a slash, written too long
        b"Nodes/a",
        b"applications/a",
        b"applications/a/",
        b"applications//n",
        b"applications/a/*",
        b"applications/a/n/x",
        b"leaving/",
        b"leaving/*",
        b"leaving/a/b",
        b"proxies/a",
    ],
)
def test_what_is_no_route_key_is_a_decode_error(rest: bytes) -> None:
    prefix = routes_prefix("c")
    with pytest.raises(DecodeError, match="should name a node"):
        parse_route_key(prefix, prefix + rest)


def test_a_key_of_another_cluster_is_a_decode_error() -> None:
    with pytest.raises(DecodeError):
        parse_route_key(routes_prefix("c"), node_key("d", "n"))
    with pytest.raises(DecodeError):
        parse_config_key(
            config_prefix(ConfigLevel.CLUSTER, "c", None), config_key(ConfigLevel.CLUSTER, "d", None, "item")
        )


@pytest.mark.parametrize("rest", [b"", b"/", b"a/b", b"a/", b"\x01", b"\xff", b"a" * 256])
def test_what_is_no_config_key_is_a_decode_error(rest: bytes) -> None:
    prefix = config_prefix(ConfigLevel.GLOBAL, "c", None)
    with pytest.raises(DecodeError, match="should name one item"):
        parse_config_key(prefix, prefix + rest)


def test_items_of_a_cluster_called_global_are_not_taken_for_global_ones() -> None:
    everywhere = config_prefix(ConfigLevel.GLOBAL, "global", None)
    of_the_node = config_prefix(ConfigLevel.CROSS_CLUSTER_NODE, "global", "n@h")
    key = config_key(ConfigLevel.CROSS_CLUSTER_NODE, "global", "n@h", "item")
    assert key.startswith(everywhere)
    assert parse_config_key(of_the_node, key) == "item"
    with pytest.raises(DecodeError):
        parse_config_key(everywhere, key)
    with pytest.raises(DecodeError):
        parse_config_key(of_the_node, config_key(ConfigLevel.GLOBAL, "global", None, "n@h"))


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        (b"a", b"b"),
        (b"services/", b"services0"),
        (b"a\xff", b"b"),
        (b"a\xfe", b"a\xff"),
        (b"a\xff\xff", b"b"),
        (b"\xffa\xff", b"\xffb"),
        (b"\x00", b"\x01"),
        (b"\xff\xff", b"\0"),  # etcd: to the last key
        (b"", b"\0"),
    ],
)
def test_a_prefix_ends_before_the_first_key_behind_it(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end
