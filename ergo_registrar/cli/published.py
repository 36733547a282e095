"""What `nodes` and `apps` have in common: both read once what stands in etcd."""

import contextlib
import difflib
from collections.abc import Iterable

from rich.text import Text

from ergo_registrar import ConnectionFailedError, Options
from ergo_registrar.admin.connection import connected
from ergo_registrar.admin.published import Lease, Published, read_clusters, read_published
from ergo_registrar.cli.documents import SkippedDocument
from ergo_registrar.cli.output import complain, console, printable

_SHOWN = 10  # names in a hint


async def published(options: Options) -> Published:
    """Read what the nodes of the cluster have published."""
    async with connected(options) as connection:
        return await read_published(connection, options.cluster)


def title(cluster: str, revision: int) -> None:
    """Say of what cluster the table is, and as of when."""
    console.print(Text(f"cluster {printable(cluster)} at revision {revision}", style="bold"), soft_wrap=True)


def lease_cell(lease: Lease | None) -> str:
    """Return what is left of a lease, for a table."""
    return "no lease" if lease is None else f"{lease.left} of {lease.granted} s"


def say_skipped(skipped: Iterable[SkippedDocument]) -> None:
    """Tell on standard error which keys were left out, and why."""
    for each in skipped:
        complain(f"left out {printable(each.key)}: {printable(each.reason)}")


async def say_nothing_there(options: Options, what: str, found: Published) -> None:
    """Say on standard error that there is nothing; of an empty cluster also which others there are, if one may know."""
    there = f"no {what} in cluster {options.cluster!r} at revision {found.revision}"
    others: list[str] = []
    if not found.nodes and not found.applications:
        with contextlib.suppress(ConnectionFailedError):  # this user may not look at other clusters
            async with connected(options) as connection:
                others = [cluster for cluster in await read_clusters(connection) if cluster != options.cluster]
    complain(f"{there}; --cluster names another: {choice(options.cluster, others)}" if others else there)


def choice(wanted: str, names: Iterable[str]) -> str:
    """Return names to choose from, those first that look like the one that was wanted."""
    ordered = sorted(names, key=lambda name: (-difflib.SequenceMatcher(None, wanted, name).ratio(), name))
    more = f", and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(map(printable, ordered[:_SHOWN])) + more
