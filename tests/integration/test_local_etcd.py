"""A real etcd of one's own: it starts, answers, and is gone with the block, whatever ends that."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aetcd
import anyio
import grpc
import pytest
import pytest_asyncio
import trustme
from aetcd import rpc
from anyio import to_thread

from ergo_registrar.errors import RegistrarError, ValidationError
from ergo_registrar.etcd import server
from ergo_registrar.etcd.server import LocalEtcd, ServerTLS

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


async def put_and_get(endpoint: str, value: bytes) -> bytes:
    host, _, port = endpoint.rpartition(":")
    async with aetcd.Client(host=host, port=int(port)) as client:
        await client.put(b"greeting", value)
        return bytes((await client.get(b"greeting")).value)


async def get(endpoint: str) -> bytes:
    host, _, port = endpoint.rpartition(":")
    async with aetcd.Client(host=host, port=int(port)) as client:
        return bytes((await client.get(b"greeting")).value)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def processes_in(directory: Path) -> list[int]:
    """The processes that were started with something in this directory."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if str(directory).encode() in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def listens(endpoint: str) -> bool:
    host, _, port = endpoint.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


async def until(condition: Callable[[], object], within: float = 10.0) -> None:
    with anyio.fail_after(within):
        while not await to_thread.run_sync(condition):
            await asyncio.sleep(0.01)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a shell script in etcd's place. It takes all of etcd's flags."""
    program = tmp_path / "etcd"

    def put(script: str) -> None:
        program.write_text(f'#!/bin/sh\ncase "$*" in *--version*) exit 0;; esac\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("ERGO_REGISTRAR_ETCD", str(program))

    return put


async def test_answers_and_is_gone_with_the_block() -> None:
    async with LocalEtcd() as etcd:
        (member,) = etcd.members
        assert etcd.endpoints == (etcd.endpoint,) == (member.endpoint,)
        assert await put_and_get(etcd.endpoint, b"hello") == b"hello"
        assert member.pid is not None
        assert await to_thread.run_sync(is_alive, member.pid)
        (log,) = etcd.logs
        directory = log.parent
        assert await to_thread.run_sync(log.read_bytes)
    assert member.returncode is not None
    assert not await to_thread.run_sync(is_alive, member.pid)
    assert not await to_thread.run_sync(listens, member.endpoint)
    assert not await to_thread.run_sync(directory.exists)


async def test_three_members_are_one_cluster_and_each_answers() -> None:
    async with LocalEtcd(3) as etcd:
        assert len(set(etcd.endpoints)) == 3
        for endpoint in etcd.endpoints:
            assert await put_and_get(endpoint, endpoint.encode()) == endpoint.encode()
            assert [await get(other) for other in etcd.endpoints] == [endpoint.encode()] * 3
    assert all(member.returncode is not None for member in etcd.members)


async def test_two_at_once_do_not_meet() -> None:
    async with LocalEtcd() as one, LocalEtcd() as other:
        await put_and_get(one.endpoint, b"one")
        assert await put_and_get(other.endpoint, b"other") == b"other"
        assert await get(one.endpoint) == b"one"


async def test_a_given_directory_keeps_data_and_log(tmp_path: Path) -> None:
    async with LocalEtcd(directory=tmp_path / "kept") as etcd:
        await put_and_get(etcd.endpoint, b"kept")
    assert etcd.members[0].returncode == -signal.SIGTERM, "its data will be read again: it may end in good order"
    async with LocalEtcd(directory=tmp_path / "kept") as etcd:
        assert await get(etcd.endpoint) == b"kept"
    assert await to_thread.run_sync(etcd.logs[0].is_file)
    with pytest.raises(RegistrarError, match="must be empty: 3 members"):
        await LocalEtcd(3, directory=tmp_path / "kept").__aenter__()


async def test_the_same_one_can_be_started_again_but_not_twice() -> None:
    etcd = LocalEtcd()
    with pytest.raises(RegistrarError, match="never started"):
        _ = etcd.endpoints
    async with etcd:
        with pytest.raises(RegistrarError, match="runs already"):
            await etcd.__aenter__()
        assert await put_and_get(etcd.endpoint, b"unharmed") == b"unharmed"
    async with etcd:
        assert await put_and_get(etcd.endpoint, b"again") == b"again"


@pytest_asyncio.fixture
async def from_fixture() -> AsyncIterator[LocalEtcd]:
    async with LocalEtcd() as etcd:
        yield etcd


async def test_lives_in_a_fixture_whose_ends_are_different_tasks(from_fixture: LocalEtcd) -> None:
    assert await put_and_get(from_fixture.endpoint, b"hello") == b"hello"


async def test_flags_and_port_are_taken(free_port: int) -> None:
    async with LocalEtcd(port=free_port, arguments=["--max-request-bytes=1000"]) as etcd:
        assert etcd.endpoint == f"127.0.0.1:{free_port}"
        with pytest.raises(aetcd.ClientError, match="request is too large"):
            await put_and_get(etcd.endpoint, b"x" * 1001)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("given", "field"), [({"members": 0}, "members"), ({"port": 65536}, "port"), ({"arguments": "--x"}, "arguments")]
)
def test_wrong_options_are_refused_before_anything_starts(given: dict[str, int], field: str) -> None:
    with pytest.raises(ValidationError) as raised:
        LocalEtcd(**given)  # type: ignore[arg-type]  # wrong on purpose
    assert raised.value.field == field


async def test_a_taken_fixed_port_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RegistrarError, match=f"port {port} of 127.0.0.1 is taken"):
            await LocalEtcd(port=port).__aenter__()


@pytest.mark.parametrize("members", [1, 3])
async def test_a_port_lost_to_another_process_is_replaced(members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    free_ports = server._free_ports
    with socket.create_server(("127.0.0.1", 0)) as other:
        lost = other.getsockname()[1]
        laid_out: list[list[int]] = []

        def lose_one(count: int, first: int | None = None) -> list[int]:
            ports = free_ports(count, first)
            laid_out.append([*ports[:-1], ports[-1] if laid_out else lost])
            return laid_out[-1]

        monkeypatch.setattr(server, "_free_ports", lose_one)
        async with LocalEtcd(members) as etcd:
            assert len(laid_out) == 2
            assert lost not in laid_out[1]
            for endpoint in etcd.endpoints:
                assert await put_and_get(endpoint, b"hello") == b"hello"


async def test_ports_that_are_lost_every_time_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_TRIES", 2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setattr(server, "_free_ports", lambda count, first: [other.getsockname()[1]] * count)
        with pytest.raises(RegistrarError, match="address already in use"):
            await LocalEtcd().__aenter__()


async def test_an_etcd_that_ends_at_once_is_shown_by_its_log() -> None:
    etcd = LocalEtcd(arguments=["--no-such-flag"])
    with pytest.raises(RegistrarError) as raised:
        await etcd.__aenter__()
    assert "ended with status 2 before it was ready" in str(raised.value)
    assert "flag provided but not defined: -no-such-flag" in str(raised.value)
    assert not await to_thread.run_sync(etcd.logs[0].parent.exists)


@linux
async def test_an_etcd_that_is_never_ready_is_ended_and_shown(tmp_path: Path, stand_in: Callable[[str], None]) -> None:
    await to_thread.run_sync(stand_in, "echo still thinking; exec sleep 1000")
    with pytest.raises(RegistrarError, match=r"(?s)not ready within 0.5 s.*etcd1 ends with:\n +still thinking"):
        await LocalEtcd(directory=tmp_path / "data", start_timeout=0.5).__aenter__()
    assert await to_thread.run_sync(processes_in, tmp_path) == []


@linux
@pytest.mark.parametrize("timeout", [0.001, 0.1])
async def test_too_little_time_leaves_nothing_behind(tmp_path: Path, timeout: float) -> None:
    with pytest.raises(RegistrarError, match=f"not ready within {timeout} s"):
        await LocalEtcd(3, directory=tmp_path, start_timeout=timeout).__aenter__()
    assert await to_thread.run_sync(processes_in, tmp_path) == []


@linux
async def test_one_that_ignores_sigterm_is_killed(
    tmp_path: Path, stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    await to_thread.run_sync(stand_in, "trap '' TERM; echo deaf; while true; do sleep 0.1; done")
    monkeypatch.setattr(server, "_TERMINATE_TIMEOUT", 0.2)
    etcd = LocalEtcd(directory=tmp_path / "data", start_timeout=0.5)
    with pytest.raises(RegistrarError, match="deaf"):
        await etcd.__aenter__()
    assert etcd.members[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelling_the_block_ends_it_first(times: int) -> None:
    etcd = LocalEtcd(3)
    inside = asyncio.Event()

    async def block() -> None:
        async with etcd:
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(block())
    async with asyncio.timeout(30):
        await inside.wait()
        for _ in range(times):  # the second reaches the block while it is ending its processes
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
    assert all(member.returncode == -signal.SIGKILL for member in etcd.members)
    assert not await to_thread.run_sync(etcd.logs[0].parent.exists)


async def test_a_timeout_around_the_block_ends_it_too() -> None:
    etcd = LocalEtcd()
    with anyio.CancelScope() as scope:
        async with etcd:
            scope.cancel()
            await asyncio.Event().wait()
    assert scope.cancelled_caught
    assert etcd.members[0].returncode is not None
    assert not await to_thread.run_sync(etcd.logs[0].parent.exists)


@linux
async def test_cancelling_the_start_leaves_nothing_behind(tmp_path: Path) -> None:
    task = asyncio.create_task(LocalEtcd(3, directory=tmp_path).__aenter__())
    await until(lambda: processes_in(tmp_path))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await to_thread.run_sync(processes_in, tmp_path) == []


@linux
async def test_killing_us_kills_it(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from ergo_registrar.etcd.server import LocalEtcd\n"
        "async def main():\n"
        "    async with LocalEtcd(directory=sys.argv[1]) as etcd:\n"
        "        print(etcd.members[0].pid, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    us = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path / "data"), stdout=asyncio.subprocess.PIPE
    )
    assert us.stdout is not None
    async with asyncio.timeout(30):
        pid = int(await us.stdout.readline())
        assert await to_thread.run_sync(is_alive, pid)
        us.kill()
        await us.wait()
    await until(lambda: not is_alive(pid))


async def test_the_environments_own_etcd_settings_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_NAME", "other")  # beside --name it would be fatal
    monkeypatch.setenv("ETCD_INITIAL_CLUSTER_STATE", "existing")
    async with LocalEtcd() as etcd:
        assert await put_and_get(etcd.endpoint, b"hello") == b"hello"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("127.0.0.1", "localhost")
    paths = {name: directory / f"{name}.pem" for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(paths["ca"])
    issued.cert_chain_pems[0].write_to_path(paths["cert"])
    issued.private_key_pem.write_to_path(paths["key"])
    return paths


async def put_over_tls(endpoint: str, credentials: grpc.ChannelCredentials) -> None:
    async with grpc.aio.secure_channel(endpoint, credentials) as channel:
        await rpc.KVStub(channel).Put(rpc.PutRequest(key=b"greeting", value=b"hello"), timeout=5)


@pytest.mark.parametrize("members", [1, 3])
async def test_speaks_tls_and_asks_for_it_in_return(
    members: int, authority: trustme.CA, certificate: dict[str, Path]
) -> None:
    ca = authority.cert_pem.bytes()
    client = authority.issue_cert("client@example.org")
    known = grpc.ssl_channel_credentials(ca, client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes())
    unknown = grpc.ssl_channel_credentials(ca)
    tls = ServerTLS(cert=certificate["cert"], key=certificate["key"])
    async with LocalEtcd(members, tls=tls) as etcd:
        for endpoint in etcd.endpoints:
            await put_over_tls(endpoint, unknown)
    mutual = ServerTLS(cert=certificate["cert"], key=certificate["key"], client_ca=certificate["ca"])
    async with LocalEtcd(members, tls=mutual) as etcd:
        for endpoint in etcd.endpoints:
            await put_over_tls(endpoint, known)
            with pytest.raises(grpc.aio.AioRpcError):
                await put_over_tls(endpoint, unknown)
