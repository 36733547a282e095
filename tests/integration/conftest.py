"""What most integration stories need: etcd seen without this package, a relay to it, a cluster of their own."""

from collections.abc import AsyncIterator

import pytest

from ergo_registrar import Options
from ergo_registrar.testing.proxy import FaultProxy
from tests.integration.support import Raw, short_options


@pytest.fixture
def registrar_options(etcd: str) -> Options:
    return short_options(etcd)


@pytest.fixture
async def raw(etcd: str) -> AsyncIterator[Raw]:
    async with Raw(etcd) as raw:
        yield raw


@pytest.fixture
async def relay(etcd: str) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(etcd) as relay:
        yield relay


@pytest.fixture
async def routes(registrar_options: Options, raw: Raw) -> AsyncIterator[str]:
    """What the keys of the test's own cluster begin with. What a story put there by hand goes with it."""
    prefix = f"services/ergo/cluster/{registrar_options.cluster}/routes/"
    yield prefix
    await raw.delete_prefix(f"{prefix}nodes/")
    await raw.delete_prefix(f"{prefix}applications/")
