"""A real etcd of one's own, for development, demos and tests: `LocalEtcd`.

It listens on the loopback alone, writes without fsync, and ends with the block that started it. Not for production.
"""

import dataclasses
import errno
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import aetcd
import anyio
import grpc
from anyio import to_thread

from ergo_registrar.errors import RegistrarError, UnsupportedError, ValidationError
from ergo_registrar.etcd.client import Client
from ergo_registrar.etcd.operator import expire_lease
from ergo_registrar.etcd.process import HOST, POLL, SIGKILL, Process
from ergo_registrar.etcd.program import find_etcd, find_etcdctl
from ergo_registrar.etcd.shield import finish
from ergo_registrar.options import Options

__all__ = ["LocalEtcd", "Member", "ServerTLS", "find_etcd", "find_etcdctl"]

_TRIES = 5  # with other ports each; more than one lost race in a row means something else is wrong
_TERMINATE_TIMEOUT = 5.0  # seconds from SIGTERM to SIGKILL; a healthy single member needs some 10 ms
_KILL_TIMEOUT = 5.0
_VERSION_TIMEOUT = 5.0
_CALL_TIMEOUT = 10.0  # seconds for what an operator asks of etcd


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerTLS:
    """What a `LocalEtcd` proves itself with to clients: paths of PEM files. `client_ca` asks for proof from them too.

    The certificate must be good for 127.0.0.1. Between members, and for the health page, there is no TLS.
    """

    cert: str | Path
    key: str | Path
    client_ca: str | Path | None = None


class Member:
    """One process of a `LocalEtcd`. `endpoint` is HOST:PORT for clients; `log` is the file with all it printed."""

    def __init__(
        self, name: str, directory: Path, client_port: int, peer_port: int, health_port: int, start_timeout: float
    ) -> None:
        self.name = name
        self.endpoint: str = f"{HOST}:{client_port}"
        self.peer_url: str = f"http://{HOST}:{peer_port}"
        self.data: Path = directory / name
        self.log: Path = directory / f"{name}.log"
        self._health_port = health_port
        self._start_timeout = start_timeout
        self._process = Process(self.data, self.log, health_port)
        self._command: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"<Member {self.name} at {self.endpoint}, process {self.pid}, exit status {self.returncode}>"

    @property
    def pid(self) -> int | None:
        """The process's id, None before its first start."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """What the process ended with, minus the number of the signal that ended it; None while it lives."""
        return self._process.returncode

    async def kill(self) -> None:
        """End the process with SIGKILL, paused or not; return when it is dead. Nothing if it is dead already.

        When this is cancelled, it is being killed all the same.
        """
        await self._process.kill()

    async def pause(self) -> None:
        """Let the process stand still (SIGSTOP), its connections open; return when every thread of it does.

        Raises:
            RegistrarError: the process is dead.
            UnsupportedError: there is no SIGSTOP here, or no waitid(2): Windows, and macOS before Python 3.13.
        """
        await self._process.pause()

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT). Nothing if it is not paused. `UnsupportedError` on Windows."""
        self._process.resume()

    async def restart(self, *, wait: bool = True) -> None:
        """Kill the process if it lives, and start it again, on the same data and ports and with the same flags.

        With `wait`, return when it has a leader and serves reads, which takes a majority of the members. Cancelling
        ends the waiting; a process that was being started lives.

        Raises:
            RegistrarError: it ended instead, or was not ready within `start_timeout` (the end of its log is in it); or
                the block of its `LocalEtcd` has ended.
        """
        if not self._command:
            raise RegistrarError(f"{self.name} cannot be started again: its LocalEtcd has ended")
        await self._process.start(self._command)
        if wait:
            await _until_ready([self], self._start_timeout)


class LocalEtcd:
    """A real etcd on this machine's loopback: an async context manager.

        async with LocalEtcd() as etcd:
            options = Options(endpoints=etcd.endpoints)

    - `members`: how many, forming one cluster.
    - `directory`: where data and logs stay. None: a temporary one, removed at the end. One member starts again on
      the data it finds; several need an empty place, since they know each other by ports that are new every time.
    - `port`: the client port of the first member. None, and for all others: any that is free.
    - `arguments`: more flags for etcd, of every member; they win over ours.
    - `tls`: for client connections.
    - `start_timeout`: seconds until every member answers.

    Entering returns when each member has a leader and serves reads. It raises `RegistrarError` when no etcd is found
    (naming the three ways to get one), when `port` is taken, and when a member ends or is not ready in time (with the
    end of its log). Leaving, a failure and cancellation all end every process before they go on, within some 10 s even
    if it does not want to. A cancellation that arrives meanwhile is raised afterwards.

    For tests of what a service survives, a `Member` can be killed, paused, resumed and restarted, and `compact` and
    `expire_lease` do what otherwise time does. All calls belong to the event loop that entered the block.

    The processes have a session of their own, so that Ctrl-C reaches this process only. On Linux they also die when
    the thread whose event loop started them dies, be it by SIGKILL; elsewhere, killing this process leaves them.
    """

    def __init__(
        self,
        members: int = 1,
        *,
        directory: str | Path | None = None,
        port: int | None = None,
        arguments: Sequence[str] = (),
        tls: ServerTLS | None = None,
        start_timeout: float = 30.0,
    ) -> None:
        if members < 1:
            raise ValidationError("members", members, "must be at least 1")
        if port is not None and not 0 < port <= 65535:
            raise ValidationError("port", port, "must be from 1 to 65535, or None for any free one")
        if isinstance(arguments, str):
            raise ValidationError("arguments", arguments, "must be a sequence of flags, such as ['--log-level=debug']")
        self._count = members
        self._given_directory = directory
        self._port = port
        self._arguments = tuple(arguments)
        self._tls = tls
        self._start_timeout = start_timeout
        self._directory: Path | None = None
        self._members: tuple[Member, ...] = ()

    @property
    def members(self) -> tuple[Member, ...]:
        """The processes. Raises `RegistrarError` before the block is entered."""
        if not self._members:
            raise RegistrarError("this LocalEtcd was never started: enter it with `async with` first")
        return self._members

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where clients reach the members, HOST:PORT each: what `Options` takes."""
        return tuple(member.endpoint for member in self.members)

    @property
    def endpoint(self) -> str:
        """The first member's endpoint."""
        return self.members[0].endpoint

    @property
    def logs(self) -> tuple[Path, ...]:
        """The members' log files. They last as long as the directory does."""
        return tuple(member.log for member in self.members)

    async def leader(self) -> Member:
        """Return the member that leads, once there is one. `RegistrarError` if there is none within `start_timeout`."""
        with anyio.move_on_after(self._start_timeout):
            while True:
                for member in self.members:
                    if await member._process.leads():
                        return member
                await anyio.sleep(POLL)
        raise RegistrarError(f"no member led within {self._start_timeout:g} s. " + await _tails(self.members))

    async def ready(self) -> None:
        """Wait until every member that lives has a leader and serves reads. A paused one lives, and never does.

        Raises:
            RegistrarError: that was not so within `start_timeout`, or one of them ended. The end of its log is in it.
        """
        await _until_ready([member for member in self.members if member.returncode is None], self._start_timeout)

    async def compact(self, revision: int | None = None, *, options: Options | None = None) -> None:
        """Let etcd forget what was before a revision, None for the present one; return when its disk has, too.

        `options` is for TLS and login, which takes a user with the role root; its endpoints are not used.
        `RegistrarError` when etcd refuses or does not answer. What is forgotten already is no error.
        """
        endpoint = (await self.leader()).endpoint
        client = _Operator(endpoint, options or Options(endpoints=(endpoint,)))
        try:
            with anyio.fail_after(_CALL_TIMEOUT):
                await client.connect()
                await client.log_in()
                await client.compact(revision)
        except (aetcd.ClientError, grpc.aio.AioRpcError, TimeoutError) as error:
            reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error) or "no answer"
            raise RegistrarError(f"compact at {endpoint}: {reason}") from error
        finally:
            await finish(client.close())

    async def expire_lease(self, key: str, *, options: Options | None = None) -> None:
        """End the lease that a key hangs on, as if its time had run out: all its keys are deleted in one revision.

        A live holder finds its lease gone, as after a stall longer than the TTL.

        `options` as for `compact`. `RegistrarError` when the key is absent or has no lease, and as for `compact`.
        """
        endpoints = ((await self.leader()).endpoint,)
        await expire_lease(dataclasses.replace(options or Options(), endpoints=endpoints), key)

    async def __aenter__(self) -> Self:
        if self._directory is not None:
            raise RegistrarError("this LocalEtcd runs already: make another one")
        try:
            await self._start()
        except BaseException:
            await finish(self._stop())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await finish(self._stop())

    async def _start(self) -> None:
        program = await to_thread.run_sync(find_etcd)
        directory = await finish(self._make_directory())
        command = [str(program), *await self._common_flags(program)]
        try:
            with anyio.fail_after(self._start_timeout):
                for tries_left in reversed(range(_TRIES)):
                    self._members = self._lay_out(directory)
                    if await self._try_to_start(command, last=tries_left == 0):
                        return
        except TimeoutError:
            raise await _not_ready(self._members, self._start_timeout) from None

    async def _make_directory(self) -> Path:
        self._directory = await to_thread.run_sync(_make_directory, self._given_directory, self._count)
        return self._directory

    async def _try_to_start(self, command: Sequence[str], *, last: bool) -> bool:
        """Start all members and wait until they are ready. Return False if they lost a race for their ports."""
        cluster = ",".join(f"{member.name}={member.peer_url}" for member in self._members)
        for member in self._members:
            member._command = [*command, *self._flags(member, cluster), *self._arguments]
            await member._process.start(member._command)
        failed = await _first_to_fail(self._members)
        if failed is None:
            return True
        if last or ": bind: " not in await failed._process.log_tail():
            raise await _ended(failed)
        await self._end_processes()
        if self._count > 1:  # the others wrote the lost port into their data; a single one wrote nothing
            for member in self._members:
                await to_thread.run_sync(_remove, member.data)
        return False

    def _lay_out(self, directory: Path) -> tuple[Member, ...]:
        n = self._count
        ports = _free_ports(3 * n if self._tls else 2 * n, first=self._port)
        client, peer = ports[:n], ports[n : 2 * n]
        # /health stands on the client port, and with TLS on a plain one of its own: we may have no certificate for it.
        health = ports[2 * n :] if self._tls else client
        return tuple(
            Member(f"etcd{i + 1}", directory, client[i], peer[i], health[i], self._start_timeout) for i in range(n)
        )

    def _flags(self, member: Member, cluster: str) -> list[str]:
        client_url = f"{'https' if self._tls else 'http'}://{member.endpoint}"
        flags = [
            f"--name={member.name}",
            f"--data-dir={member.data}",
            f"--listen-client-urls={client_url}",
            f"--advertise-client-urls={client_url}",
            f"--listen-peer-urls={member.peer_url}",
            f"--initial-advertise-peer-urls={member.peer_url}",
            f"--initial-cluster={cluster}",
            f"--initial-cluster-token={cluster}",  # a stray member of another cluster is turned away
        ]
        return [*flags, f"--listen-metrics-urls=http://{HOST}:{member._health_port}"] if self._tls else flags

    async def _common_flags(self, program: Path) -> list[str]:
        flags = ["--unsafe-no-fsync"] if await to_thread.run_sync(_takes_unsafe_no_fsync, program) else []
        if self._tls:
            flags += [f"--cert-file={self._tls.cert}", f"--key-file={self._tls.key}"]
            if self._tls.client_ca:
                flags += [f"--trusted-ca-file={self._tls.client_ca}", "--client-cert-auth"]
        return flags

    async def _stop(self) -> None:
        for member in self._members:
            member._command = ()
            await member._process.started()  # a restart whose caller has gone
        await self._end_processes()
        directory, self._directory = self._directory, None
        if directory and self._given_directory is None:
            await to_thread.run_sync(_remove, directory)

    async def _end_processes(self) -> None:
        # Data that will be read again deserves a SIGTERM. Three members that all got one would not end for 7 s: the
        # leader looks for a successor.
        gently = self._count == 1 and self._given_directory is not None
        for number, timeout in ((signal.SIGTERM, _TERMINATE_TIMEOUT), (SIGKILL, _KILL_TIMEOUT))[0 if gently else 1 :]:
            for member in self._members:
                member._process.signal(number)
                if gently:
                    with suppress(UnsupportedError):
                        member.resume()  # or it would not hear of it
            with anyio.move_on_after(timeout):
                for member in self._members:
                    await member._process.ended()


class _Operator(Client):
    """A client that can also compact."""

    async def compact(self, revision: int | None) -> None:
        if revision is None:
            revision = (await self.page(b"-", b"", limit=1, revision=0)).header.revision
        try:
            await self._open.compact(revision, physical=True)
        except aetcd.ClientError as error:
            if "has been compacted" not in str(error):  # so it has been done
                raise


async def _until_ready(members: Sequence[Member], timeout: float) -> None:
    try:
        with anyio.fail_after(timeout):
            failed = await _first_to_fail(members)
    except TimeoutError:
        raise await _not_ready(members, timeout) from None
    if failed is not None:
        raise await _ended(failed)


async def _first_to_fail(members: Sequence[Member]) -> Member | None:
    """Wait until all are ready, and return None, or until one ended, and return it."""
    waiting = list(members)
    while True:
        for member in members:
            if member.returncode is not None:
                return member
        if not waiting:
            return None
        if await waiting[0]._process.healthy():
            waiting.pop(0)
        else:
            await anyio.sleep(POLL)


async def _not_ready(members: Iterable[Member], timeout: float) -> RegistrarError:
    unready = [member for member in members if not await member._process.healthy()]
    return RegistrarError(f"etcd was not ready within {timeout:g} s. " + await _tails(unready))


async def _ended(member: Member) -> RegistrarError:
    return RegistrarError(f"etcd ended with status {member.returncode} before it was ready. " + await _tails([member]))


async def _tails(members: Iterable[Member]) -> str:
    tails = [f"The log of {member.name} ends with:\n{await member._process.log_tail()}" for member in members]
    return "\n".join(tails)


def _takes_unsafe_no_fsync(program: Path) -> bool:
    """Ask, since 3.4 has it without naming it in its help, and older ones do not. It parses before it prints."""
    command = [str(program), "--unsafe-no-fsync", "--version"]
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, timeout=_VERSION_TIMEOUT, check=False).returncode == 0
    return False


def _free_ports(count: int, first: int | None = None) -> list[int]:
    """Return ports that are free now. All are held until all are found, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for n, listener in enumerate(sockets):
            if os.name == "posix":  # as Go does: old connections do not occupy a port. Elsewhere it means another thing
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, first if n == 0 and first else 0))
            except OSError as error:
                if n or not first:
                    raise
                why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
                raise RegistrarError(f"port {first} of {HOST} {why}: give another one, or None for any free") from None
        return [listener.getsockname()[1] for listener in sockets]


def _make_directory(given: str | Path | None, members: int) -> Path:
    if given is None:
        return Path(tempfile.mkdtemp(prefix="ergo-registrar-etcd-"))
    directory = Path(given).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    if members > 1 and any(directory.iterdir()):
        raise RegistrarError(f"{directory} must be empty: {members} members cannot start again on what is there")
    return directory


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
