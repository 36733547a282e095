"""The pytest plugin: `etcd`, `registrar_options` and `make_registrar`, for the tests of services that use this package.

Installing the package is enough to have them. Nothing but pytest is imported before a fixture is used.
"""

import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ergo_registrar import ApplicationRoute, Options, Registrar, Route

try:
    import pytest_asyncio
except ImportError:  # `etcd` and `registrar_options` do without

    @pytest.fixture(name="_ergo_registrar_loop")
    def _no_loop() -> None:
        pytest.fail("make_registrar needs pytest-asyncio: pip install pytest-asyncio", pytrace=False)

else:

    @pytest_asyncio.fixture(name="_ergo_registrar_loop", loop_scope="function")
    async def _loop() -> AsyncIterator[None]:
        """Hold the function's event loop open until `make_registrar`, set up after this, has closed in it."""
        yield


_VARIABLE = "ERGO_REGISTRAR_TEST_ETCD"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--etcd-endpoint`."""
    parser.getgroup("ergo-registrar").addoption(
        "--etcd-endpoint",
        metavar="HOST:PORT",
        help=f"the etcd of the `etcd` fixture; else that of {_VARIABLE}; else a local one is started",
    )


@pytest.fixture(scope="session")
def etcd(pytestconfig: pytest.Config) -> Iterator[str]:
    """The endpoint, HOST:PORT, of an etcd that lasts as long as the test session.

    The one given by `--etcd-endpoint` or ERGO_REGISTRAR_TEST_ETCD, else a local one. Where there is no etcd program
    either, the test is skipped.
    """
    if given := pytestconfig.getoption("etcd_endpoint") or os.environ.get(_VARIABLE):
        yield given
        return
    from anyio.from_thread import start_blocking_portal

    from ergo_registrar.errors import RegistrarError
    from ergo_registrar.etcd.server import LocalEtcd, find_etcd

    try:
        find_etcd()
    except RegistrarError as error:
        if os.environ.get("ERGO_REGISTRAR_ETCD"):  # somebody wanted a certain one: that is wrong, not missing
            raise
        pytest.skip(f"{error}; or name a running one with --etcd-endpoint or {_VARIABLE}")
    # A thread with a loop of its own: this outlives the event loops of the tests.
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(LocalEtcd()) as local:
        yield local.endpoint


@pytest.fixture
def registrar_options(etcd: str) -> "Options":
    """Options for the etcd of the `etcd` fixture, with a cluster name of the test's own. Override it to set others."""
    from ergo_registrar import Options

    return Options(endpoints=(etcd,), cluster=f"test-{uuid.uuid4().hex}")


@pytest.fixture
def make_registrar(
    registrar_options: "Options", _ergo_registrar_loop: None
) -> Iterator[Callable[..., Awaitable["Registrar"]]]:
    """A function that makes registrars, all in one cluster of the test's own, and closes them when the test ends.

        web = await make_registrar("web1@h", routes=[...], applications=[...])
        observer = await make_registrar()

    The registrar is registered when the call returns; without a node it observes. Other keywords are fields of
    `Options` and win over those of `registrar_options`. It raises what entering a `Registrar` raises.

    Each is closed in the event loop it was made in, whatever the loop scope of the test. The last made closes first.
    """
    import asyncio
    import contextlib
    import dataclasses

    from ergo_registrar import Registrar

    def close(loop: asyncio.AbstractEventLoop, registrar: Registrar) -> None:
        loop.run_until_complete(registrar.close())

    with contextlib.ExitStack() as closing:

        async def make(
            node: str | None = None,
            routes: Iterable["Route"] = (),
            applications: Iterable["ApplicationRoute"] = (),
            **overrides: Any,
        ) -> Registrar:
            options = dataclasses.replace(registrar_options, **overrides)
            registrar = Registrar(options, node=node, routes=routes, applications=applications)
            await registrar.__aenter__()
            closing.callback(close, asyncio.get_running_loop(), registrar)
            return registrar

        yield make
