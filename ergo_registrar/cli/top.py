"""`ergo-registrar top`: the cluster as it is, drawn again and again."""

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Annotated

import anyio
import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ergo_registrar import Options, Registrar
from ergo_registrar.cli.connecting import Json, SuspectGrace, connecting, print_json, with_grace
from ergo_registrar.cli.documents import (
    LiveApplication,
    LiveNode,
    TopDocument,
    addresses,
    application_fields,
    route_documents,
    tags_text,
    version_text,
)
from ergo_registrar.cli.output import console, print_table, printable, say_nothing_of_the_session
from ergo_registrar.cli.picture import Picture
from ergo_registrar.cli.running import run

_NODES = ("node", "routes", "applications", "")
_APPLICATIONS = ("application", "node", "weight", "state", "mode", "tags", "version", "")
_SPARE = 9  # lines of a screen that are no rows: what stands above, the heads, and what is between


@connecting
def top(
    options: Options,
    interval: Annotated[float, typer.Option("--interval", "-i", min=0.1, help="Seconds between two looks.")] = 1.0,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, help="How many looks.", show_default="until Ctrl-C")
    ] = None,
    suspect_grace: SuspectGrace = None,
    json: Json = False,
) -> None:
    """Show the nodes and applications of a cluster, kept up to date, until Ctrl-C or SIGTERM, which end it with 0.

    Above them: whether this view is current, since when etcd has not proved it, and the revision of etcd that it is of.
    While etcd is not there, what was last known stays, and is said to be old.

    On a terminal it fills the screen. Elsewhere, as in a pipe, each look is printed below the one before, all of it;
    with `--json` each is a document, on one line.

    For example:

    - `ergo-registrar top --suspect-grace 30`

    - `ergo-registrar top --count 1 | grep web1`
    """
    run(lambda: _top(options, interval, count, suspect_grace, json))


async def _top(options: Options, interval: float, count: int | None, suspect_grace: float | None, json: bool) -> None:
    screen = Live(console=console, screen=True, auto_refresh=False) if console.is_terminal and not json else None
    say_nothing_of_the_session()  # it is told here
    async with Registrar(with_grace(options, suspect_grace)) as registrar:
        picture = Picture(registrar)
        with screen or nullcontext():
            for look in itertools.count(1):
                picture.refresh()
                document = _document(options.cluster, registrar, picture)
                if json:
                    print_json(document)
                elif screen is not None:
                    screen.update(_drawn(document), refresh=True)
                else:
                    _print(document, first=look == 1)
                if look == count:
                    break
                await anyio.sleep(interval)


def _document(cluster: str, registrar: Registrar, picture: Picture) -> TopDocument:
    health = registrar.health()
    return TopDocument(
        time=datetime.now().astimezone().isoformat(timespec="milliseconds"),
        cluster=cluster,
        endpoint=health.endpoint,
        state=health.state.value,
        reason=health.reason,
        revision=health.revision,
        staleness=round(health.staleness, 3),
        nodes=[
            LiveNode(name, route_documents(name, routes), name in picture.suspected)
            for name, routes in sorted(picture.nodes.items())
        ],
        applications=[
            LiveApplication(**application_fields(route), suspected=node in picture.suspected)
            for (_, node), route in sorted(picture.applications.items())
        ],
    )


def _head(document: TopDocument) -> Text:
    suspects = sum(node.suspected for node in document.nodes)
    counts = f"{len(document.nodes)} nodes, {suspects} suspected; {len(document.applications)} application routes"
    where = f" at {document.endpoint}" if document.endpoint else ""
    proof = f"{document.state}; etcd{where} proved {document.staleness:.1f} s ago that nothing is missing here"
    lines = [
        Text(printable(f"cluster {document.cluster} at revision {document.revision}: {counts}"), style="bold"),
        Text(proof),
    ]
    if document.reason is not None:
        lines.append(Text(printable(f"what is below may be old: {document.reason}"), style="bold red"))
    return Text("\n").join(lines)


def _node_rows(document: TopDocument) -> list[tuple[str, ...]]:
    return [
        (
            node.name,
            addresses(node.routes),
            " ".join(each.name for each in document.applications if each.node == node.name) or "-",
            "suspected" if node.suspected else "",
        )
        for node in document.nodes
    ]


def _application_rows(document: TopDocument) -> list[tuple[str, ...]]:
    return [
        (
            each.name,
            each.node,
            str(each.weight),
            str(each.state),
            str(each.mode),
            tags_text(each.tags),
            version_text(each.version),
            "suspected" if each.suspected else "",
        )
        for each in document.applications
    ]


def _print(document: TopDocument, *, first: bool) -> None:
    if not first:
        console.print()
    console.print(_head(document), soft_wrap=True)
    for header, rows in ((_NODES, _node_rows(document)), (_APPLICATIONS, _application_rows(document))):
        console.print()
        print_table(header, rows)


def _drawn(document: TopDocument) -> Group:
    """Return a screenful. Of what does not fit, it says how much there is more."""
    nodes, applications = _node_rows(document), _application_rows(document)
    free = max(2, console.height - _SPARE)
    for_nodes = max(free // 2, free - len(applications))
    for_applications = free - min(for_nodes, len(nodes))
    return Group(
        _head(document),
        Text(),
        _table(_NODES, nodes, for_nodes),
        Text(),
        _table(_APPLICATIONS, applications, for_applications),
    )


def _table(header: Sequence[str], rows: list[tuple[str, ...]], most: int) -> Table:
    table = Table(*header, box=None, pad_edge=False, header_style="dim")
    for column in table.columns:
        column.no_wrap = True
    for row in rows if len(rows) <= most else rows[: most - 1]:
        table.add_row(*map(Text, map(printable, row)), style="yellow" if row[-1] else "")
    if len(rows) > most:
        table.add_row(Text(f"... and {len(rows) - most + 1} more"))
    return table
