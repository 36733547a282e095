"""A connection for a few questions: open while the block runs. And the one that all of `admin` asks."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from ergo_registrar.core.records import Record
from ergo_registrar.etcd.connection import CompactedError, Connection
from ergo_registrar.etcd.watch import read_prefixes
from ergo_registrar.options import Options
from ergo_registrar.stats import Stats


@asynccontextmanager
async def connected(options: Options) -> AsyncIterator[Connection]:
    """Connect to a member of etcd that has a leader. Raise `ConnectionFailedError` after `dial_timeout`."""
    connection = Connection(options, Stats())
    try:
        await connection.look(timeout=options.dial_timeout)
        yield connection
    finally:
        await connection.close()


async def read(connection: Connection, prefixes: Iterable[bytes]) -> tuple[int, dict[bytes, list[Record]]]:
    """Return etcd's revision, and what stands under each prefix at it. Raise `ConnectionFailedError`."""
    wanted = tuple(prefixes)
    try:
        revision, _, found = await read_prefixes(connection, wanted)
    except CompactedError:  # while it was read, which takes many more pages than one to happen
        revision, _, found = await read_prefixes(connection, wanted)
    return revision, found
