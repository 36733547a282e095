"""`ergo-registrar nodes`: who is in the cluster."""

from ergo_registrar import Options, Registrar
from ergo_registrar.cli.connecting import Json, connecting, print_json
from ergo_registrar.cli.output import console
from ergo_registrar.cli.running import run


@connecting
def nodes(options: Options, json: Json = False) -> None:
    """List the nodes of a cluster, and how each is reached."""
    run(lambda: _nodes(options, json))


async def _nodes(options: Options, json: bool) -> None:
    async with Registrar(options) as registrar:
        found = {node: await registrar.resolve(node) for node in await registrar.nodes()}
    if json:
        print_json([{"name": name, "routes": routes} for name, routes in found.items()])
        return
    for name, routes in found.items():
        console.print(name, *(f"{route.host}:{route.port}" for route in routes), sep="  ")
