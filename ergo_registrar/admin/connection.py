"""A connection for a few questions: open while the block runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ergo_registrar.etcd.connection import Connection
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
