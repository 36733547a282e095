"""Configuration as an operator sees it: whatever stands at a level, read or not; and what makes it as wanted."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import msgspec

from ergo_registrar.admin.connection import connected, read
from ergo_registrar.core.change import Write
from ergo_registrar.core.config_diff import Difference, Stored, read_stored
from ergo_registrar.core.keys import ConfigLevel, config_prefix, config_prefixes
from ergo_registrar.etcd.client import parts
from ergo_registrar.etcd.configuration import Configuration
from ergo_registrar.etcd.connection import Connection
from ergo_registrar.options import Options


class Standing(msgspec.Struct, frozen=True):
    """What stands at some levels, by level and key, at one revision."""

    revision: int
    stored: list[Stored]


class Config:
    """The configuration in etcd as a node of a cluster sees it, or an observer where `node` is None."""

    def __init__(self, connection: Connection, options: Options, node: str | None) -> None:
        self._connection = connection
        self._options = options
        self._node = node

    async def read(self, levels: Iterable[ConfigLevel] | None = None) -> Standing:
        """Return what stands at these levels, by default at all that count for the node.

        Raise `ConnectionFailedError`, and `ValidationError` before anything is sent.
        """
        cluster, node = self._options.cluster, self._node
        wanted = config_prefixes(cluster, node) if levels is None else levels
        prefixes = {level: config_prefix(level, cluster, node) for level in wanted}
        revision, listing = await read(self._connection, prefixes.values())
        return Standing(revision, read_stored(prefixes, listing))

    async def make(self, differences: Iterable[Difference]) -> AsyncIterator[tuple[int, int]]:
        """Do what `differences` ask for, in as few transactions as etcd takes; after each of them yield how many
        differences are gone by then, and the revision that it made.

        Each transaction happens as a whole, and only if all that it changes still stands as it was read. Otherwise
        raise `ConflictError`; or `ConnectionFailedError`, which says so where the last one may have happened all the
        same.
        """
        configuration = Configuration(self._connection, self._options)
        changes = [difference.change(self._node) for difference in differences]
        writes = [Write.of(self._options.cluster, change) for change in changes]
        done = 0
        for part in parts(writes) if writes else ():
            revision = await configuration.change(*changes[done : done + len(part)])
            done += len(part)
            yield done, revision


@asynccontextmanager
async def configured(options: Options, node: str | None) -> AsyncIterator[Config]:
    """The configuration on a connection of its own, open while the block runs."""
    async with connected(options) as connection:
        yield Config(connection, options, node)
