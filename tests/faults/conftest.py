"""What the fault stories need: etcd seen without this package, a proxy that breaks, a cluster of their own, an etcd of
three members, and one that wants a login."""

from collections.abc import AsyncIterator

import pytest

from ergo_registrar import Options
from ergo_registrar.etcd.server import LocalEtcd
from ergo_registrar.testing.proxy import FaultProxy
from tests.faults.support import demand_login
from tests.integration.conftest import raw, relay, routes
from tests.integration.support import short_options

__all__ = ["raw", "relay", "routes"]  # fixtures, found here by their names


@pytest.fixture
def registrar_options(etcd: str, relay: FaultProxy) -> Options:  # the relay first, so that it ends after the registrars
    return short_options(etcd)


@pytest.fixture
async def three() -> AsyncIterator[LocalEtcd]:
    """An etcd of three members."""
    async with LocalEtcd(3) as etcd:
        yield etcd


@pytest.fixture
async def guarded() -> AsyncIterator[LocalEtcd]:
    """An etcd that wants a login, with the users of `demand_login`."""
    async with LocalEtcd() as etcd:
        await demand_login(etcd.endpoint)
        yield etcd
