"""`ergo-registrar resolve`: what a process would be told when it asks for a node or an application."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Annotated, Any

import typer

from ergo_registrar import (
    ApplicationRoute,
    ApplicationState,
    NoRouteError,
    Options,
    Registrar,
    Route,
    ValidationError,
)
from ergo_registrar.cli.connecting import Json, connecting, print_json
from ergo_registrar.cli.documents import (
    ApplicationAnswer,
    InstanceDocument,
    NodeAnswer,
    addresses,
    application_fields,
    route_documents,
    tags_text,
    version_text,
)
from ergo_registrar.cli.output import print_table
from ergo_registrar.cli.picture import Picture
from ergo_registrar.cli.published import choice
from ergo_registrar.cli.running import run_to_end


class Kind(Enum):
    """What a name may be of."""

    NODE = "node"
    APP = "app"


class StateName(Enum):
    """The states that an application may be asked for in."""

    LOADED = "loaded"
    RUNNING = "running"
    STOPPING = "stopping"


@connecting
def resolve(
    options: Options,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A node, or an application.")],
    kind: Annotated[
        Kind | None, typer.Option("--as", help="Which of the two NAME is.", show_default="whichever there is")
    ] = None,
    state: Annotated[
        list[StateName] | None,
        typer.Option(help="Only instances in this state. May be repeated: in any of them.", show_default="any"),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only instances with this tag. May be repeated: with all of them.")
    ] = None,
    without_tag: Annotated[
        list[str] | None, typer.Option(help="No instance with this tag. May be repeated: with none of them.")
    ] = None,
    json: Json = False,
) -> None:
    """Find a node or an application as a process of the cluster would.

    Of a node, its addresses. Of an application, the instances to go to, best first: running ones before others, no
    negative weights. The first is the pick. A process that asks again is given each in turn, by weight, beginning with
    the heaviest; this command asks once.

    For example:

    - `ergo-registrar resolve web1@host1`

    - `ergo-registrar resolve web-server --state running --tag eu`
    """
    wanted: dict[str, Any] = {
        "state": [ApplicationState[each.name] for each in state or ()] or None,
        "tags": tag or (),
        "without_tags": without_tag or (),
    }
    if any(wanted.values()):
        kind = Kind.APP  # nodes have neither
    run_to_end(lambda: _resolve(options, name, kind, wanted, json))


async def _resolve(options: Options, name: str, kind: Kind | None, wanted: dict[str, Any], json: bool) -> None:
    async with Registrar(options) as registrar:
        picture = Picture(registrar)
        if _kind(picture, name, kind, options.cluster) is Kind.NODE:
            _tell_node(options.cluster, registrar.revision, name, await registrar.resolve(name), json)
        else:
            instances = await registrar.resolve_application(name, **wanted)
            _tell_application(options.cluster, registrar.revision, name, instances, picture.nodes, json)


def _kind(picture: Picture, name: str, kind: Kind | None, cluster: str) -> Kind:
    """Return what a name is of. Raise `NoRouteError` if there is no such thing, with the names that there are."""
    applications = {application for application, _ in picture.applications}
    there = {Kind.NODE: picture.nodes.keys(), Kind.APP: applications}
    kinds = [kind for kind, names in there.items() if name in names]
    if kind is None and len(kinds) == 1:
        return kinds[0]
    if kind in kinds:
        return kind
    if kind is None and kinds:
        raise ValidationError("NAME", name, "is both a node and an application: say which, --as node or --as app")
    asked = {kind: there[kind]} if kind else there
    words = {Kind.NODE: "node", Kind.APP: "application"}
    missing = " and no ".join(words[each] for each in asked)
    known = "; ".join(f"{words[each]}s: {choice(name, names) or 'none'}" for each, names in asked.items())
    raise NoRouteError(f"no {missing} {name!r} in cluster {cluster!r}; {known}")


def _tell_node(cluster: str, revision: int, name: str, routes: list[Route], json: bool) -> None:
    document = NodeAnswer(cluster, revision, name, route_documents(name, routes))
    if json:
        print_json(document)
        return
    rows = [
        (
            route.address,
            "yes" if route.tls else "no",
            version_text(route.handshake_version),
            version_text(route.proto_version),
        )
        for route in document.routes
    ]
    print_table(("address", "TLS", "handshake", "protocol"), rows)


def _tell_application(
    cluster: str,
    revision: int,
    name: str,
    instances: list[ApplicationRoute],
    nodes: Mapping[str, Sequence[Route]],
    json: bool,
) -> None:
    found = [
        InstanceDocument(**application_fields(each), routes=route_documents(each.node, nodes.get(each.node, ())))
        for each in instances
    ]
    if json:
        print_json(ApplicationAnswer(cluster, revision, name, found))
        return
    rows = [
        (
            "" if number else "pick",
            each.node,
            addresses(each.routes),
            str(each.weight),
            str(each.state),
            tags_text(each.tags),
        )
        for number, each in enumerate(found)
    ]
    print_table(("", "node", "routes", "weight", "state", "tags"), rows)
