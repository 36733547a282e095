"""A real etcd of one's own, for development, demos and tests: `LocalEtcd`.

It listens on the loopback alone, writes without fsync, and ends with the block that started it. Not for production.
"""

import asyncio
import dataclasses
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from anyio import to_thread

from ergo_registrar.errors import RegistrarError, ValidationError
from ergo_registrar.etcd.program import find_etcd, find_etcdctl
from ergo_registrar.etcd.shield import finish

__all__ = ["LocalEtcd", "Member", "ServerTLS", "find_etcd", "find_etcdctl"]

_HOST = "127.0.0.1"
_TRIES = 5  # with other ports each; more than one lost race in a row means something else is wrong
_POLL = 0.02  # seconds between two questions
_ANSWER_TIMEOUT = 1.0  # seconds for one answer of a member that has no leader yet
_SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows both end a process at once
_TERMINATE_TIMEOUT = 5.0  # seconds from SIGTERM to SIGKILL; a healthy single member needs some 10 ms
_KILL_TIMEOUT = 5.0
_VERSION_TIMEOUT = 5.0
_TAIL_LINES = 25  # a wrong flag is named first and then followed by 20 lines of usage
_TAIL_BYTES = 16_384

# Runs in the new process, in front of etcd: is killed when the thread that started it ends, the one that runs the
# event loop (prctl(2): 1 is PR_SET_PDEATHSIG, 9 SIGKILL). Not a `preexec_fn`: that runs Python between fork and exec,
# where locks that gRPC's threads held have nobody left to release them.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


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

    def __init__(self, name: str, directory: Path, client_port: int, peer_port: int, health_port: int) -> None:
        self.name = name
        self.endpoint: str = f"{_HOST}:{client_port}"
        self.peer_url: str = f"http://{_HOST}:{peer_port}"
        self.data: Path = directory / name
        self.log: Path = directory / f"{name}.log"
        self._health_port = health_port
        self._log_start = 0
        self._process: asyncio.subprocess.Process | None = None

    def __repr__(self) -> str:
        return f"<Member {self.name} at {self.endpoint}, process {self.pid}, exit status {self.returncode}>"

    @property
    def pid(self) -> int | None:
        """The process's id, None before its first start."""
        return self._process.pid if self._process else None

    @property
    def returncode(self) -> int | None:
        """What the process ended with, minus the number of the signal that ended it; None while it lives."""
        return self._process.returncode if self._process else None

    async def _start(self, command: Sequence[str]) -> None:
        await finish(self._spawn(_dying_with_parent(command)))  # half started, it would be nobody's to end

    async def _spawn(self, command: Sequence[str]) -> None:
        with await to_thread.run_sync(self.log.open, "ab") as log:
            self._log_start = log.seek(0, os.SEEK_END)
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={k: v for k, v in os.environ.items() if not k.startswith("ETCD_") or k == "ETCD_UNSUPPORTED_ARCH"},
                start_new_session=True,  # a Ctrl-C is for us, and we end it
            )

    async def _healthy(self) -> bool:
        """Tell whether this member has a leader and serves reads that a majority confirmed: etcd's `/health` does one.

        It makes its data directory only once it has its ports. Without that, whoever answers is someone else.
        """
        with anyio.move_on_after(_ANSWER_TIMEOUT), suppress(OSError, anyio.BrokenResourceError):
            async with await anyio.connect_tcp(_HOST, self._health_port) as stream:
                await stream.send(b"GET /health HTTP/1.0\r\n\r\n")
                answer = b"".join([part async for part in stream])
            return b'"health":"true"' in answer and await to_thread.run_sync(self.data.exists)
        return False

    async def _log_tail(self) -> str:
        return await to_thread.run_sync(_tail, self.log, self._log_start)

    def _signal(self, number: int) -> None:
        if self._process and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _ended(self) -> None:
        if self._process:
            await self._process.wait()


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
        try:
            with anyio.fail_after(self._start_timeout):
                command = [str(program), *await self._common_flags(program)]
                for tries_left in reversed(range(_TRIES)):
                    self._members = self._lay_out(directory)
                    if await self._try_to_start(command, last=tries_left == 0):
                        return
        except TimeoutError:
            unready = [member for member in self._members if not await member._healthy()]
            raise RegistrarError(
                f"etcd was not ready within {self._start_timeout:g} s. " + await self._tails(unready)
            ) from None

    async def _make_directory(self) -> Path:
        self._directory = await to_thread.run_sync(_make_directory, self._given_directory, self._count)
        return self._directory

    async def _try_to_start(self, command: Sequence[str], *, last: bool) -> bool:
        """Start all members and wait until they are ready. Return False if they lost a race for their ports."""
        cluster = ",".join(f"{member.name}={member.peer_url}" for member in self._members)
        for member in self._members:
            await member._start([*command, *self._flags(member, cluster), *self._arguments])
        failed = await self._first_to_fail()
        if failed is None:
            return True
        tail = await failed._log_tail()
        if last or ": bind: " not in tail:
            raise RegistrarError(
                f"etcd ended with status {failed.returncode} before it was ready. " + await self._tails([failed])
            )
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
        return tuple(Member(f"etcd{i + 1}", directory, client[i], peer[i], health[i]) for i in range(n))

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
        return [*flags, f"--listen-metrics-urls=http://{_HOST}:{member._health_port}"] if self._tls else flags

    async def _common_flags(self, program: Path) -> list[str]:
        flags = ["--unsafe-no-fsync"] if await to_thread.run_sync(_takes_unsafe_no_fsync, program) else []
        if self._tls:
            flags += [f"--cert-file={self._tls.cert}", f"--key-file={self._tls.key}"]
            if self._tls.client_ca:
                flags += [f"--trusted-ca-file={self._tls.client_ca}", "--client-cert-auth"]
        return flags

    async def _first_to_fail(self) -> Member | None:
        """Wait until all are ready, and return None, or until one ended, and return it."""
        waiting = list(self._members)
        while True:
            for member in self._members:
                if member.returncode is not None:
                    return member
            if not waiting:
                return None
            if await waiting[0]._healthy():
                waiting.pop(0)
            else:
                await anyio.sleep(_POLL)

    async def _tails(self, members: Iterable[Member]) -> str:
        return "\n".join([f"The log of {member.name} ends with:\n{await member._log_tail()}" for member in members])

    async def _stop(self) -> None:
        await self._end_processes()
        directory, self._directory = self._directory, None
        if directory and self._given_directory is None:
            await to_thread.run_sync(_remove, directory)

    async def _end_processes(self) -> None:
        # Data that will be read again deserves a SIGTERM. Three members that all got one would not end for 7 s: the
        # leader looks for a successor.
        gently = self._count == 1 and self._given_directory is not None
        for number, timeout in ((signal.SIGTERM, _TERMINATE_TIMEOUT), (_SIGKILL, _KILL_TIMEOUT))[0 if gently else 1 :]:
            for member in self._members:
                member._signal(number)
            with anyio.move_on_after(timeout):
                for member in self._members:
                    await member._ended()


def _dying_with_parent(command: Sequence[str]) -> Sequence[str]:
    is_python = bool(sys.executable) and not getattr(sys, "frozen", False)  # a frozen program would start itself
    if sys.platform != "linux" or not is_python:
        return command
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]


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
                listener.bind((_HOST, first if n == 0 and first else 0))
            except OSError as error:
                if n or not first:
                    raise
                why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
                raise RegistrarError(f"port {first} of {_HOST} {why}: give another one, or None for any free") from None
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


def _tail(log: Path, start: int) -> str:
    lines: list[str] = []
    with suppress(FileNotFoundError), log.open("rb") as file:  # it never came to be if time ran out before
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:]) or "    (nothing)"
