"""The keys of Ergo's registrar in etcd: how they are built, what stands under them, and what a name may be.

The layout is that of `ergo.services/registrar/etcd` (`etcd/registrar.go`), because Go nodes read and write the same:

    services/ergo/cluster/{cluster}/routes/nodes/{node}
    services/ergo/cluster/{cluster}/routes/applications/{application}/{node}
    services/ergo/cluster/{cluster}/routes/leaving/{node}
    services/ergo/config/{cluster}/{node}/{item}                level 1
    services/ergo/cluster/{cluster}/config/{node}/{item}        level 2
    services/ergo/cluster/{cluster}/config/*/{item}             level 3
    services/ergo/config/global/{item}                          level 4

A name in a key obeys the same rules, whether this process builds the key or finds it.

A cluster may be called "global", although its level 1 then lies under the prefix of level 4: no key is ambiguous,
since an item has no slash, and those of that cluster's nodes do not parse as global items. They are skipped there.
"""

import re
from enum import IntEnum

import msgspec

from ergo_registrar.errors import DecodeError, ValidationError

_NAME = re.compile(r"[^/\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,255}")  # \x..: all of Unicode's category Cc
_MOST_BYTES = 255  # what one atom holds (Ergo: edf.ErrAtomTooLong)
_NAME_RULE = "must be 1 to 255 bytes of UTF-8 without '/' or control characters"
_ANY_NODE = "*"  # stands for every node in the keys of level 3


class ConfigLevel(IntEnum):
    """Where a configuration item stands. A lower number wins over a higher one."""

    CROSS_CLUSTER_NODE = 1
    CLUSTER_NODE = 2
    CLUSTER = 3
    GLOBAL = 4


NODE_LEVELS = (ConfigLevel.CROSS_CLUSTER_NODE, ConfigLevel.CLUSTER_NODE)
"""The levels that are of one node."""

_CONFIG_PREFIXES = {
    ConfigLevel.CROSS_CLUSTER_NODE: "services/ergo/config/{cluster}/{node}/",
    ConfigLevel.CLUSTER_NODE: "services/ergo/cluster/{cluster}/config/{node}/",
    ConfigLevel.CLUSTER: "services/ergo/cluster/{cluster}/config/*/",
    ConfigLevel.GLOBAL: "services/ergo/config/global/",
}


class ConfigKey(msgspec.Struct, frozen=True, gc=False):
    """Where an item stands: at which level, and for which node at the two levels of a node, else None."""

    level: ConfigLevel
    item: str
    node: str | None = None


class NodeKey(msgspec.Struct, frozen=True, gc=False):
    """The key of a node's routes."""

    node: str


class ApplicationKey(msgspec.Struct, frozen=True, gc=False):
    """The key of the route of application `name` on `node`."""

    name: str
    node: str


class LeavingKey(msgspec.Struct, frozen=True, gc=False):
    """The key by which a node says that it leaves on purpose."""

    node: str


def check_name(field: str, name: object) -> str:
    """Return `name`, which may name a cluster, an application or an item. Otherwise raise ValidationError for `field`.

    A name is not empty, has no slash and no control character, and takes at most 255 bytes in UTF-8.
    """
    if not isinstance(name, str) or not _is_name(name):
        raise ValidationError(field, name, _NAME_RULE)
    return name


def check_node_name(field: str, name: object) -> str:
    """Return `name`, which may name a node: as `check_name`, and not `*`, which stands for every node."""
    checked = check_name(field, name)
    if checked == _ANY_NODE:
        raise ValidationError(field, name, "must not be '*', which stands for every node")
    return checked


def routes_prefix(cluster: str) -> bytes:
    """Return what the keys of all routes of a cluster begin with. Raises ValidationError."""
    return f"services/ergo/cluster/{check_name('cluster', cluster)}/routes/".encode()


def node_key(cluster: str, node: str) -> bytes:
    """Return the key of a node's routes. Raises ValidationError."""
    return routes_prefix(cluster) + f"nodes/{check_node_name('node', node)}".encode()


def application_key(cluster: str, name: str, node: str) -> bytes:
    """Return the key of the route of application `name` on `node`. Raises ValidationError."""
    application = check_name("application", name)
    return routes_prefix(cluster) + f"applications/{application}/{check_node_name('node', node)}".encode()


def leaving_key(cluster: str, node: str) -> bytes:
    """Return the key by which a node says that it leaves on purpose. Raises ValidationError."""
    return routes_prefix(cluster) + f"leaving/{check_node_name('node', node)}".encode()


def config_prefix(level: ConfigLevel, cluster: str, node: str | None) -> bytes:
    """Return what the keys of one level begin with, for one node. Raises ValidationError.

    `node` is needed for the two levels of a node; the others do not look at it.
    """
    check_name("cluster", cluster)
    if level in NODE_LEVELS:
        check_node_name("node", node)
    return _CONFIG_PREFIXES[level].format(cluster=cluster, node=node).encode()


def config_prefixes(cluster: str, node: str | None) -> dict[ConfigLevel, bytes]:
    """Return the prefix of each level that counts for a process, highest first. Raises ValidationError.

    Without a node, an observer, these are the cluster-wide and the global one.
    """
    levels = ConfigLevel if node is not None else (ConfigLevel.CLUSTER, ConfigLevel.GLOBAL)
    return {level: config_prefix(level, cluster, node) for level in levels}


def config_key(level: ConfigLevel, cluster: str, node: str | None, item: str) -> bytes:
    """Return the key of an item at one level, `node` as in `config_prefix`. Raises ValidationError."""
    return config_prefix(level, cluster, node) + check_name("item", item).encode()


def prefix_end(prefix: bytes) -> bytes:
    """Return etcd's `range_end` for all keys that begin with `prefix`: the first key behind them.

    Where there is none behind (`prefix` is empty, or all 0xff), that is a zero byte, which etcd takes for "to the
    last key". Source: `RangeRequest.range_end` in etcd's rpc.proto.
    """
    counted = prefix.rstrip(b"\xff")
    return counted[:-1] + bytes([counted[-1] + 1]) if counted else b"\0"


def parse_route_key(prefix: bytes, key: bytes) -> NodeKey | ApplicationKey | LeavingKey:
    """Return what `key` stands for, `prefix` being its cluster's `routes_prefix`. Raises DecodeError."""
    match _names(prefix, key):
        case ["applications", name, node] if node != _ANY_NODE:
            return ApplicationKey(name, node)
        case ["nodes", node] if node != _ANY_NODE:
            return NodeKey(node)
        case ["leaving", node] if node != _ANY_NODE:
            return LeavingKey(node)
    raise DecodeError(f"key {key!r} should name a node, an application on a node, or a node that leaves")


def parse_config_key(prefix: bytes, key: bytes) -> str:
    """Return the item that `key` names, `prefix` being that of its level. Raises DecodeError."""
    match _names(prefix, key):
        case [item]:
            return item
    raise DecodeError(f"key {key!r} should name one item behind {prefix!r}")


def _names(prefix: bytes, key: bytes) -> list[str]:
    """Return the names between the slashes behind the prefix, nothing where one is none."""
    if not key.startswith(prefix):
        return []
    try:
        text = key[len(prefix) :].decode()
    except UnicodeDecodeError:
        return []
    names = text.split("/")
    if text.isascii() and text.isprintable() and len(text) <= _MOST_BYTES:  # as nearly always, and quickly seen
        return [] if "" in names else names
    return names if all(map(_is_name, names)) else []


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None and len(text.encode()) <= _MOST_BYTES
