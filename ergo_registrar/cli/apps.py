"""`ergo-registrar apps`: which applications there are, and where."""

from typing import Annotated

import typer

from ergo_registrar import NoRouteError, Options
from ergo_registrar.admin.published import Published
from ergo_registrar.cli.connecting import Json, connecting, print_json
from ergo_registrar.cli.documents import (
    ApplicationDocument,
    ApplicationsDocument,
    application_fields,
    key_fields,
    skipped_documents,
    tags_text,
    version_text,
)
from ergo_registrar.cli.output import print_table
from ergo_registrar.cli.published import choice, lease_cell, published, say_nothing_there, say_skipped, title
from ergo_registrar.cli.running import run_to_end


@connecting
def apps(
    options: Options,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this application.", show_default="all")
    ] = None,
    json: Json = False,
) -> None:
    """List the applications of a cluster, and every node that has published one.

    It reads etcd once, and shows also what `resolve` leaves out: a negative weight takes an instance out of the choice.
    `created` and `changed` are the revisions of etcd at which the key was put first and last: etcd keeps no time. A
    live node renews its lease, so that what is left of it goes up and down.

    For example:

    - `ergo-registrar apps`

    - `ergo-registrar apps web-server --json`
    """
    run_to_end(lambda: _apps(options, name, json))


async def _apps(options: Options, name: str | None, json: bool) -> None:
    found = await published(options)
    document = _document(options.cluster, found, name)
    if name is not None and not document.applications:
        names = {each.route.name for each in found.applications}
        there = f"there are: {choice(name, names)}" if names else "nothing has published one there"
        raise NoRouteError(
            f"no application {name!r} in cluster {options.cluster!r} at revision {found.revision}; {there}"
        )
    if json:
        print_json(document)
        return
    say_skipped(document.skipped)
    if not document.applications:
        await say_nothing_there(options, "applications", found)
        return
    title(options.cluster, found.revision)
    print_table(
        ("application", "node", "weight", "state", "mode", "tags", "version", "created", "changed", "lease left"),
        [_row(each) for each in document.applications],
    )


def _row(application: ApplicationDocument) -> tuple[str, ...]:
    return (
        application.name,
        application.node,
        str(application.weight),
        str(application.state),
        str(application.mode),
        tags_text(application.tags),
        version_text(application.version),
        str(application.create_revision),
        str(application.mod_revision),
        lease_cell(application.lease),
    )


def _document(cluster: str, found: Published, name: str | None) -> ApplicationsDocument:
    return ApplicationsDocument(
        cluster,
        found.revision,
        [
            ApplicationDocument(**application_fields(each.route), **key_fields(each.key))
            for each in found.applications
            if name in (None, each.route.name)
        ],
        skipped_documents(found),
    )
