"""What an operator does by hand, and a test does to see what becomes of it."""

import contextlib

from ergo_registrar.errors import RegistrarError
from ergo_registrar.etcd.connection import Connection, LeaseGoneError
from ergo_registrar.etcd.shield import finish
from ergo_registrar.options import Options
from ergo_registrar.stats import Stats


async def expire_lease(options: Options, key: str) -> None:
    """End the lease that a key hangs on, as if its time had run out: all its keys are deleted in one revision.

    To etcd it is the same: its leader ends an expired lease with the request that this makes, LeaseRevoke
    (https://github.com/etcd-io/etcd/blob/v3.5.1/server/etcdserver/server.go, `run`). Any endpoint of `options` will do.
    Raise `RegistrarError` when the key is absent or has no lease, and `ConnectionFailedError`.
    """
    what = f"expire the lease of {key!r}"
    connection = Connection(options, Stats())
    try:
        found = await connection.call(what, lambda client: client.get(key.encode()))
        if found is None or not found.lease:
            raise RegistrarError(f"{key!r} {'hangs on no lease' if found else 'does not stand in etcd'}")
        with contextlib.suppress(LeaseGoneError):  # a try whose answer was lost has done it, or its time has
            await connection.call(what, lambda client: client.revoke(found.lease))
    finally:
        await finish(connection.close())
