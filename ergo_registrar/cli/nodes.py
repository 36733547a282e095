"""`ergo-registrar nodes`: who is in the cluster."""

from ergo_registrar import Options
from ergo_registrar.admin.published import Published
from ergo_registrar.cli.connecting import Json, connecting, print_json
from ergo_registrar.cli.documents import (
    NodeDocument,
    NodesDocument,
    addresses,
    key_fields,
    route_documents,
    skipped_documents,
)
from ergo_registrar.cli.output import print_table
from ergo_registrar.cli.published import lease_cell, published, say_nothing_there, say_skipped, title
from ergo_registrar.cli.running import run_to_end


@connecting
def nodes(options: Options, json: Json = False) -> None:
    """List the nodes of a cluster: how each is reached, what it runs, and how long its lease still lasts.

    It reads etcd once. `created` and `changed` are the revisions of etcd at which the node's key was put first and
    last: etcd keeps no time. A live node renews its lease, so that what is left of it goes up and down.

    For example:

    - `ergo-registrar nodes`

    - `ergo-registrar nodes --json`
    """
    run_to_end(lambda: _nodes(options, json))


async def _nodes(options: Options, json: bool) -> None:
    found = await published(options)
    document = _document(options.cluster, found)
    if json:
        print_json(document)
        return
    say_skipped(document.skipped)
    if not document.nodes:
        await say_nothing_there(options, "nodes", found)
        return
    title(options.cluster, found.revision)
    print_table(
        ("node", "routes", "applications", "created", "changed", "lease left"),
        [
            (
                node.name,
                addresses(node.routes),
                " ".join(node.applications) or "-",
                str(node.create_revision),
                str(node.mod_revision),
                lease_cell(node.lease),
            )
            for node in document.nodes
        ],
    )


def _document(cluster: str, found: Published) -> NodesDocument:
    return NodesDocument(
        cluster,
        found.revision,
        [
            NodeDocument(
                name=node.name,
                routes=route_documents(node.name, node.routes),
                applications=[each.route.name for each in found.applications if each.route.node == node.name],
                **key_fields(node.key),
            )
            for node in found.nodes
        ],
        skipped_documents(found),
    )
