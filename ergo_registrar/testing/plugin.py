"""The pytest plugin: an etcd, registrars on it, and what can happen to them, for the tests of services.

Installing the package is enough to have the fixtures. Nothing but pytest and pytest-asyncio, which is a plugin as well,
is imported before one of them is used.
"""

import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import asyncio

    from ergo_registrar import ApplicationRoute, Options, Registrar, Route
    from ergo_registrar.testing.proxy import FaultProxy

_VARIABLE = "ERGO_REGISTRAR_TEST_ETCD"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--etcd-endpoint` and `--etcd-required`."""
    group = parser.getgroup("ergo-registrar")
    group.addoption(
        "--etcd-endpoint",
        metavar="HOST:PORT",
        help=f"the etcd of the `etcd` fixture; else that of {_VARIABLE}; else a local one is started",
    )
    group.addoption(
        "--etcd-required",
        action="store_true",
        help="where there is no etcd, let the tests that need one fail: they are skipped otherwise",
    )


# The event loop of the test


def _loop_of(scope: Any) -> Callable[..., Any]:
    @pytest_asyncio.fixture(name=f"_ergo_registrar_loop_of_{scope}", loop_scope=scope)
    async def loop() -> "AsyncIterator[asyncio.AbstractEventLoop]":
        import asyncio

        yield asyncio.get_running_loop()

    return loop


try:
    import pytest_asyncio

    _loop_of_function = _loop_of("function")
    _loop_of_class = _loop_of("class")
    _loop_of_module = _loop_of("module")
    _loop_of_package = _loop_of("package")
    _loop_of_session = _loop_of("session")
except (ImportError, TypeError):  # TypeError: one before 0.24 knows no loop_scope

    @pytest.fixture(name="_ergo_registrar_loop_of_function")
    def _no_loop() -> None:
        pytest.fail("this fixture needs pytest-asyncio 0.24 or later: pip install pytest-asyncio", pytrace=False)


@pytest.fixture
def _ergo_registrar_loop(request: pytest.FixtureRequest) -> "asyncio.AbstractEventLoop":
    """The event loop that the test will run in, held open until whatever uses this has ended.

    Which one pytest-asyncio will take stands in the test's marker, else in its setting.
    """
    scope: str | None = None
    if marker := request.node.get_closest_marker("asyncio"):
        scope = marker.kwargs.get("loop_scope") or marker.kwargs.get("scope")
    with contextlib.suppress(ValueError):  # a pytest-asyncio before 0.26, or none, has no such setting
        scope = scope or request.config.getini("asyncio_default_test_loop_scope")
    loop: asyncio.AbstractEventLoop = request.getfixturevalue(f"_ergo_registrar_loop_of_{scope or 'function'}")
    return loop


# etcd


@pytest.fixture(scope="session")
def etcd(pytestconfig: pytest.Config) -> Iterator[str]:
    """The endpoint, HOST:PORT, of an etcd that lasts as long as the test session; of each worker's, with pytest-xdist.

    The one given by `--etcd-endpoint` or ERGO_REGISTRAR_TEST_ETCD, else a local one (`LocalEtcd`), else one in Docker
    (by testcontainers, where that is installed). Without any of them the test is skipped, or, with `--etcd-required`,
    it fails.
    """
    if given := pytestconfig.getoption("etcd_endpoint") or os.environ.get(_VARIABLE):
        yield given
        return
    from ergo_registrar.errors import RegistrarError, UnsupportedError
    from ergo_registrar.etcd.server import find_etcd
    from ergo_registrar.testing.docker import etcd_in_docker

    missing = ""
    try:
        find_etcd()
    except RegistrarError as error:
        if os.environ.get("ERGO_REGISTRAR_ETCD"):  # somebody wanted a certain one: that is wrong, not missing
            raise
        missing = f"{error}; or name a running one with --etcd-endpoint or {_VARIABLE}"
    with contextlib.ExitStack() as running:
        try:
            endpoint = running.enter_context(etcd_in_docker() if missing else _local_etcd())
        except UnsupportedError as error:
            missing = f"{missing}; or let one run in Docker ({error})"
            if pytestconfig.getoption("etcd_required"):
                pytest.fail(missing, pytrace=False)
            pytest.skip(missing)
        yield endpoint


@contextlib.contextmanager
def _local_etcd() -> Iterator[str]:
    """Run an etcd in a thread with a loop of its own: it outlives the event loops of the tests."""
    from anyio.from_thread import start_blocking_portal

    from ergo_registrar.etcd.server import LocalEtcd

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(LocalEtcd()) as local:
        yield local.endpoint


# Registrars, and what can happen to them


@pytest.fixture
def registrar_options(etcd: str) -> "Options":
    """Options for the etcd of the `etcd` fixture, with a cluster name of the test's own. Override it to set others."""
    from ergo_registrar import Options

    return Options(endpoints=(etcd,), cluster=f"test-{uuid.uuid4().hex}")


@pytest.fixture
def make_registrar(
    request: pytest.FixtureRequest, registrar_options: "Options", _ergo_registrar_loop: "asyncio.AbstractEventLoop"
) -> Iterator[Callable[..., Awaitable["Registrar"]]]:
    """A function that makes registrars, all in one cluster of the test's own, and closes them when the test ends.

        web = await make_registrar("web1@h", routes=[...], applications=[...])
        observer = await make_registrar()

    The registrar is registered when the call returns; without a node it observes. Other keywords are fields of
    `Options` and win over those of `registrar_options`. It raises what entering a `Registrar` raises.

    Each is closed in the event loop it was made in, whatever the loop scope of the test. The last made closes first.
    """
    import asyncio
    import dataclasses

    from ergo_registrar import Registrar

    if "fault_proxy" in request.fixturenames:
        request.getfixturevalue("fault_proxy")  # set up before this, so there until every registrar has closed

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


@pytest.fixture
def fault_proxy(etcd: str, _ergo_registrar_loop: "asyncio.AbstractEventLoop") -> Iterator["FaultProxy"]:
    """A `FaultProxy` in front of the etcd of the `etcd` fixture, in the event loop of the test, and closed after it.

        web = await make_registrar("web1@h", endpoints=(fault_proxy.endpoint,))
        await fault_proxy.cut()

    Heal it before the test ends: a registrar that closes over a broken one takes its `close_timeout`.
    """
    from ergo_registrar.testing.proxy import FaultProxy

    proxy = FaultProxy(etcd)
    _ergo_registrar_loop.run_until_complete(proxy.__aenter__())
    yield proxy
    _ergo_registrar_loop.run_until_complete(proxy.__aexit__(None, None, None))


@pytest.fixture
def expire_lease(
    request: pytest.FixtureRequest, registrar_options: "Options"
) -> Callable[["Registrar | str"], Awaitable[None]]:
    """A function that ends the lease of a registrar, as if its node had stalled for too long.

        await expire_lease(web)         # a registrar, or
        await expire_lease("web1@h")    # the name of a node, for a service that makes its registrar itself

    It works on any etcd, through `registrar_options`, in their cluster; but past the `fault_proxy`, as time does. It
    returns when the node's keys are gone; a registrar that lives puts them back by itself. `RegistrarError`: the node
    is not there.
    """
    import dataclasses

    from ergo_registrar import Registrar
    from ergo_registrar.core.keys import check_node_name, node_key
    from ergo_registrar.etcd.operator import expire_lease

    endpoints = list(registrar_options.endpoints)
    if "fault_proxy" in request.fixturenames:
        proxied: str = request.getfixturevalue("fault_proxy").endpoint
        endpoints = [request.getfixturevalue("etcd") if endpoint == proxied else endpoint for endpoint in endpoints]
    options = dataclasses.replace(registrar_options, endpoints=tuple(endpoints))

    async def expire(of: "Registrar | str") -> None:
        node = check_node_name("node", of.node if isinstance(of, Registrar) else of)
        await expire_lease(options, node_key(options.cluster, node).decode())

    return expire
