"""What a node publishes about itself: how to reach it, and what it runs.

The shapes are Ergo's own (`gen.Route`, `gen.ApplicationRoute`, `gen.Version`, `gen.RegistrarInfo` of
`ergo.services/ergo/gen`), so that a Go node reads here what it would read from another Go node. Nothing is checked
when a value is made: whatever etcd holds must be representable. `Registrar` checks what it is asked to publish.

The garbage collector does not look at them (`gc=False`): nothing in them can lead back to them, and in a large cluster
there are so many that each of its full rounds would take long.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import Literal

import msgspec


class Version(msgspec.Struct, frozen=True, gc=False):
    """A name and a release of something: of a protocol, of an application, of this registrar."""

    name: str = ""
    release: str = ""
    commit: str = ""
    license: str = ""


NO_VERSION = Version()


class Route(msgspec.Struct, frozen=True, gc=False):
    """One way to reach a node.

    `host` may be empty, as Go nodes write it: then the host is the part of the node's name behind the `@`.
    `port` is 0 to 65535. The two versions name the protocols that a Go node speaks there.
    """

    host: str
    port: int
    tls: bool = False
    handshake_version: Version = NO_VERSION
    proto_version: Version = NO_VERSION


class ApplicationMode(IntEnum):
    """What the end of an application means to its node, as numbered on the wire."""

    TEMPORARY = 1
    TRANSIENT = 2
    PERMANENT = 3


class ApplicationState(IntEnum):
    """How far an application is, as numbered on the wire."""

    LOADED = 1
    RUNNING = 2
    STOPPING = 3


ApplicationRouteLayout = Literal["v3.1", "tags", "tags+version"]
"""Which fields an application route is written with: those of Ergo 3.1, also `tags`, or also `version`."""


class ApplicationRoute(msgspec.Struct, frozen=True, gc=False):
    """An application on a node.

    `weight` is a signed 64-bit number: a higher one is picked proportionally more often, 0 counts as 1, and a negative
    one is never picked. `mode` and `state` are plain ints where a newer node uses a number that this package has no
    name for. `tags` and `version` exist on the wire only in the newer layouts (`Options.application_route_layout`);
    `tags=None` is Go's nil, which is not the same bytes as no tags. A list of tags is taken, and kept as a tuple.
    """

    node: str
    name: str
    weight: int
    mode: ApplicationMode | int
    state: ApplicationState | int
    tags: tuple[str, ...] | None = None
    version: Version = NO_VERSION

    def __post_init__(self) -> None:
        tags: Iterable[str] | None = self.tags
        if tags is not None and not isinstance(tags, tuple | str):  # a str is no list of tags; encoding refuses it
            msgspec.structs.force_setattr(self, "tags", tuple(tags))


class RegistrarInfo(msgspec.Struct, frozen=True, gc=False):
    """What this registrar is and can do, with the fields of Go's `gen.RegistrarInfo`.

    `server` is the endpoint in use, empty while there is none.
    """

    server: str
    version: Version
    embedded_server: bool = False
    support_config: bool = True
    support_event: bool = True
    support_register_proxy: bool = False
    support_register_application: bool = True
