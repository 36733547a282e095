"""`ergo-registrar etcd`: a local etcd for as long as the command runs."""

from pathlib import Path
from typing import Annotated

import anyio
import typer

from ergo_registrar.cli.output import complain
from ergo_registrar.cli.running import run
from ergo_registrar.etcd.server import LocalEtcd

_POLL = 0.25  # seconds between two looks at the members


def etcd(
    members: Annotated[int, typer.Option(min=1, max=9, help="How many, forming one cluster.")] = 1,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="For clients of the first member.", show_default="any free")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="The directory for data and logs. One member goes on from the data it finds there.",
            show_default="temporary, removed at the end",
        ),
    ] = None,
) -> None:
    """Keep a local etcd running for development, until Ctrl-C.

    It prints where clients reach it, and how to point this package and etcdctl at it. With --port 2379 it stands where
    both look by themselves.

    The program is the one that ERGO_REGISTRAR_ETCD names, else the one on PATH, else that of the extra "embedded". It
    listens on 127.0.0.1 alone and does not wait for the disk: not for production.

    With several members, kill one to see how clients go on.
    """
    run(lambda: _serve(LocalEtcd(members, port=port, directory=data)))


async def _serve(server: LocalEtcd) -> None:
    async with server:
        endpoints = ",".join(server.endpoints)
        lines = [
            f"endpoints: {endpoints}",
            *(f"log: {log}" for log in server.logs),
            "",
            "For this package, and for etcdctl, in another terminal:",
            f"export ERGO_REGISTRAR_ENDPOINTS={endpoints}",
            f"export ETCDCTL_ENDPOINTS={endpoints}",
            "",
            "Ctrl-C ends it.",
        ]
        print("\n".join(lines), flush=True)
        await _until_all_ended(server)


async def _until_all_ended(server: LocalEtcd) -> None:
    """Tell of each member that ends, and raise `typer.Exit` when none is left."""
    running = list(server.members)
    while running:
        for member in [member for member in running if member.returncode is not None]:
            running.remove(member)
            complain(f"{member.name} at {member.endpoint} ended with status {member.returncode}; its log: {member.log}")
        await anyio.sleep(_POLL)
    complain("no etcd is left running")
    raise typer.Exit(1)
