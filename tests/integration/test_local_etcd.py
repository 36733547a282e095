"""A real etcd of one's own: it starts, answers, and is gone with the block, whatever ends that."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import sys
import time
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

from ergo_registrar import TLS, Options
from ergo_registrar.errors import ConnectionFailedError, RegistrarError, UnsupportedError, ValidationError
from ergo_registrar.etcd import server
from ergo_registrar.etcd.server import LocalEtcd, Member, ServerTLS
from tests.integration.support import Raw, etcdctl

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


def stands_still(member: Member) -> bool:
    assert member.pid
    return os.waitid(os.P_PID, member.pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG) is not None


class TestAMember:
    async def test_that_is_killed_is_dead_when_that_returns(self) -> None:
        async with LocalEtcd() as etcd:
            (member,) = etcd.members
            for _ in range(2):  # the second does nothing
                await member.kill()
                assert member.returncode == -signal.SIGKILL
            assert not await to_thread.run_sync(listens, member.endpoint)

    async def test_that_is_paused_stands_still_and_keeps_its_connections(self) -> None:
        async with LocalEtcd() as etcd, Raw(etcd.endpoint) as raw:
            (member,) = etcd.members
            await raw.put("a", "1")
            for _ in range(10):
                for _ in range(2):  # the second changes nothing
                    await member.pause()
                    assert stands_still(member)
                for _ in range(2):
                    member.resume()
                await raw.put("a", "2")
            await member.pause()
            putting = asyncio.create_task(raw.put("a", "3"))
            assert not (await asyncio.wait({putting}, timeout=0.3))[0]
            member.resume()
            async with asyncio.timeout(10):
                await putting

    async def test_that_is_dead_cannot_be_paused_and_resumes_to_no_effect(self) -> None:
        async with LocalEtcd() as etcd:
            (member,) = etcd.members
            await member.kill()
            with pytest.raises(RegistrarError, match="restart it first"):
                await member.pause()
            member.resume()

    async def test_that_dies_while_it_is_being_paused_is_said_to(self) -> None:
        async with LocalEtcd() as etcd:
            (member,) = etcd.members
            pausing = asyncio.create_task(member.pause())
            await asyncio.sleep(0)
            await member.kill()
            with contextlib.suppress(RegistrarError):  # or it stood still before
                async with asyncio.timeout(10):
                    await pausing

    @pytest.mark.parametrize("name", ["SIGSTOP", "waitid"])
    async def test_cannot_be_paused_where_the_system_cannot(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        async with LocalEtcd() as etcd:
            monkeypatch.delattr(signal if name == "SIGSTOP" else os, name)
            with pytest.raises(UnsupportedError, match=name):
                await etcd.members[0].pause()
            monkeypatch.delattr(signal, "SIGCONT")
            with pytest.raises(UnsupportedError, match="SIGCONT"):
                etcd.members[0].resume()

    async def test_that_is_paused_can_be_killed(self) -> None:
        async with LocalEtcd() as etcd:
            (member,) = etcd.members
            await member.pause()
            async with asyncio.timeout(5):
                await member.kill()
            assert member.returncode == -signal.SIGKILL

    @pytest.mark.parametrize("kept", [True, False])
    async def test_that_is_paused_ends_with_the_block(self, tmp_path: Path, kept: bool) -> None:
        async with LocalEtcd(directory=tmp_path if kept else None) as etcd:
            await etcd.members[0].pause()
            began = time.monotonic()
        assert time.monotonic() - began < 4
        assert etcd.members[0].returncode == -(signal.SIGTERM if kept else signal.SIGKILL)

    @pytest.mark.parametrize("state", ["alive", "dead", "paused"])
    async def test_restarts_where_it_was(self, state: str) -> None:
        async with LocalEtcd(arguments=["--max-request-bytes=1000"]) as etcd:
            (member,) = etcd.members
            before = member.endpoint, member.pid
            await put_and_get(etcd.endpoint, b"kept")
            if state == "dead":
                await member.kill()
            elif state == "paused":
                await member.pause()
            await member.restart()
            assert member.endpoint == before[0]
            assert member.pid != before[1]
            assert member.returncode is None
            assert await get(etcd.endpoint) == b"kept"
            with pytest.raises(aetcd.ClientError, match="request is too large"):
                await put_and_get(etcd.endpoint, b"x" * 1001)

    async def test_restarts_without_waiting(self) -> None:
        async with LocalEtcd() as etcd:
            (member,) = etcd.members
            await member.restart(wait=False)
            assert member.returncode is None
            assert not await to_thread.run_sync(listens, member.endpoint)
            await etcd.ready()
            assert await put_and_get(etcd.endpoint, b"hello") == b"hello"

    async def test_that_cannot_restart_says_why(self) -> None:
        async with LocalEtcd() as etcd:
            (member,) = etcd.members
            await member.kill()
            with (
                socket.create_server(("127.0.0.1", int(member.endpoint.rpartition(":")[2]))),
                pytest.raises(RegistrarError, match=r"(?s)ended with status 1 .*address already in use"),
            ):
                await member.restart()
            await member.restart()
            assert await put_and_get(etcd.endpoint, b"hello") == b"hello"

    @linux
    async def test_that_is_restarted_twice_at_once_is_there_once(self, tmp_path: Path) -> None:
        async with LocalEtcd(directory=tmp_path) as etcd:
            (member,) = etcd.members
            # One may kill what another waits for, which then says so.
            await asyncio.gather(*(member.restart() for _ in range(3)), return_exceptions=True)
            assert await to_thread.run_sync(processes_in, tmp_path) == [member.pid]

    @linux
    @pytest.mark.parametrize("steps", [0, 1, 4, 16])
    async def test_that_is_being_restarted_when_the_block_ends_ends_too(self, tmp_path: Path, steps: int) -> None:
        async with LocalEtcd(directory=tmp_path) as etcd:
            (member,) = etcd.members
            restarting = asyncio.create_task(member.restart())
            for _ in range(steps):
                await asyncio.sleep(0)
            restarting.cancel()
        assert await to_thread.run_sync(processes_in, tmp_path) == []
        assert restarting.cancelled()
        with pytest.raises(RegistrarError, match="its LocalEtcd has ended"):
            await member.restart()

    @linux
    @pytest.mark.parametrize("steps", [0, 1, 4, 16])
    async def test_whose_restart_is_cancelled_is_not_left_behind(self, tmp_path: Path, steps: int) -> None:
        async with LocalEtcd(directory=tmp_path) as etcd:
            restarting = asyncio.create_task(etcd.members[0].restart())
            for _ in range(steps):
                await asyncio.sleep(0)
            restarting.cancel()
            await asyncio.wait({restarting})
            assert restarting.cancelled()
            assert etcd.members[0].returncode is None, "it was killed to be started again"
            await etcd.ready()
        assert await to_thread.run_sync(processes_in, tmp_path) == []


class TestACluster:
    async def leader_by_etcd(self, etcd: LocalEtcd, member: Member) -> bool:
        """Say whether a member is the leader by its own word."""
        host, _, port = member.endpoint.rpartition(":")
        async with aetcd.Client(host=host, port=int(port)) as client:
            status = await client.maintenancestub.Status(rpc.StatusRequest(), timeout=5)
        return bool(status.leader == status.header.member_id)

    async def test_has_one_leader_whatever_falls_away(self) -> None:
        async with LocalEtcd(3) as etcd:
            first = await etcd.leader()
            assert [m for m in etcd.members if await self.leader_by_etcd(etcd, m)] == [first]
            await first.kill()
            second = await etcd.leader()
            assert second is not first
            assert await self.leader_by_etcd(etcd, second)
            await first.restart()
            await etcd.ready()
            await second.pause()
            third = await etcd.leader()
            assert third is not second
            assert await self.leader_by_etcd(etcd, third)
            second.resume()
            await etcd.ready()
            assert [m for m in etcd.members if await self.leader_by_etcd(etcd, m)] == [await etcd.leader()]
            assert await put_and_get(second.endpoint, b"hello") == b"hello"

    async def test_without_a_majority_has_none_and_is_not_ready(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with LocalEtcd(3) as etcd:
            for owner in (etcd, *etcd.members):
                monkeypatch.setattr(owner, "_start_timeout", 0.5)
            last = await etcd.leader()
            for member in set(etcd.members) - {last}:
                await member.kill()
            with pytest.raises(RegistrarError, match=r"(?s)no member led within 0.5 s.*log of etcd1 ends with"):
                await etcd.leader()  # though the last one takes itself for it for a while
            for call in (last.restart, etcd.ready):
                with pytest.raises(RegistrarError, match=rf"(?s)not ready within 0.5 s.*log of {last.name} ends with"):
                    await call()
            with pytest.raises(RegistrarError, match="no member led"):
                await etcd.compact()

    async def test_is_ready_when_all_that_live_are(self) -> None:
        async with LocalEtcd(3) as etcd:
            await etcd.members[0].kill()
            await etcd.ready()
            for member in etcd.members[1:]:
                assert await put_and_get(member.endpoint, b"hello") == b"hello"

    async def test_asks_a_member_that_lives(self) -> None:
        async with LocalEtcd(3) as etcd:
            await etcd.members[0].kill()
            await etcd.members[1].restart()
            async with Raw(etcd.members[1].endpoint) as raw:
                await raw.put("a", "1", await raw.grant(60))
                await etcd.expire_lease("a")
                assert await raw.get("a") is None
                await etcd.compact()


class TestWhatTimeDoes:
    async def is_forgotten(self, raw: Raw, revision: int) -> bool:
        printed = await etcdctl(raw.endpoint, "get", "a", f"--rev={revision}", check=False)
        return "has been compacted" in printed

    async def test_compaction_forgets_what_was_before_a_revision(self) -> None:
        async with LocalEtcd() as etcd, Raw(etcd.endpoint) as raw:
            revisions = [await raw.put("a", str(n)) for n in range(5)]
            for _ in range(2):  # the second finds it done
                await etcd.compact(revisions[2])
                assert [await self.is_forgotten(raw, r) for r in revisions] == [True, True, False, False, False]
            for _ in range(2):
                await etcd.compact()
                assert [await self.is_forgotten(raw, r) for r in revisions] == [True, True, True, True, False]

    async def test_compaction_of_what_is_not_yet_is_refused(self) -> None:
        async with LocalEtcd() as etcd:
            with pytest.raises(RegistrarError, match=rf"compact at {etcd.endpoint}: .*future revision"):
                await etcd.compact(1000)

    async def test_a_lease_ends_with_all_its_keys_in_one_revision(self) -> None:
        async with LocalEtcd() as etcd, Raw(etcd.endpoint) as raw:
            lease = await raw.grant(600)
            other = await raw.grant(600)
            for key in ("a/1", "a/2"):
                await raw.put(key, "", lease)
            await raw.put("a/3", "", other)
            before = await raw.revision()
            await etcd.expire_lease("a/2")
            assert set(await raw.under("a/")) == {"a/3"}
            assert await raw.revision() == before + 1
            assert await raw.leases() == {other}

    async def test_a_key_without_a_lease_and_no_key_are_refused(self) -> None:
        async with LocalEtcd() as etcd, Raw(etcd.endpoint) as raw:
            await raw.put("a", "")
            with pytest.raises(RegistrarError, match="'a' hangs on no lease"):
                await etcd.expire_lease("a")
            with pytest.raises(RegistrarError, match="'b' does not stand in etcd"):
                await etcd.expire_lease("b")

    async def test_takes_a_login(self) -> None:
        root = Options(endpoints=("nowhere:1",), username="root", password="secret")
        async with LocalEtcd() as etcd, Raw(etcd.endpoint) as raw:
            await raw.put("a", "", await raw.grant(600))
            await etcdctl(etcd.endpoint, "user", "add", "root:secret")
            await etcdctl(etcd.endpoint, "user", "grant-role", "root", "root")
            await etcdctl(etcd.endpoint, "auth", "enable")
            with pytest.raises(RegistrarError, match="user name is empty"):
                await etcd.expire_lease("a")
            with pytest.raises(RegistrarError, match="authentication failed") as raised:
                await etcd.compact(options=dataclasses.replace(root, password="wrong"))
            assert "wrong" not in str(raised.value)
            await etcd.expire_lease("a", options=root)
            await etcd.compact(options=root)
            assert await etcdctl(etcd.endpoint, "get", "a", user="root:secret") == ""

    async def test_takes_tls(self, certificate: dict[str, Path]) -> None:
        options = Options(endpoints=("nowhere:1",), tls=TLS(ca=certificate["ca"]))
        async with LocalEtcd(tls=ServerTLS(cert=certificate["cert"], key=certificate["key"])) as etcd:
            await etcd.compact(options=options)
            with pytest.raises(RegistrarError, match="does not stand in etcd"):
                await etcd.expire_lease("a", options=options)
            with pytest.raises(ConnectionFailedError, match=r"tls\.ca"):
                await etcd.compact(options=Options(tls=TLS(ca="nowhere.pem")))
