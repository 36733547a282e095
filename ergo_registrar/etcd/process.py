"""The process of one member of a `LocalEtcd`: started, asked, and ended again, as often as needed."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import anyio
from anyio import to_thread

from ergo_registrar import children
from ergo_registrar.errors import RegistrarError, UnsupportedError
from ergo_registrar.etcd.shield import finish

HOST = "127.0.0.1"
POLL = 0.02  # seconds between two questions
SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows both end a process at once

_ANSWER_TIMEOUT = 1.0  # seconds for one answer of a member that has no leader yet
_TAIL_LINES = 25  # a wrong flag is named first and then followed by 20 lines of usage
_TAIL_BYTES = 16_384


class Process:
    """One etcd process, or after `start` was called again the latest of several on the same data and ports."""

    def __init__(self, data: Path, log: Path, health_port: int) -> None:
        self._data = data
        self._log = log
        self._health_port = health_port
        self._log_start = 0
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process's id, None before its first start."""
        return self._process.pid if self._process else None

    @property
    def returncode(self) -> int | None:
        """What the process ended with, minus the number of the signal that ended it; None while it lives."""
        return self._process.returncode if self._process else None

    async def start(self, command: Sequence[str]) -> None:
        """Start it, after killing the one that may still run."""
        await finish(self._replace(command))  # half started, it would be nobody's to end

    async def _replace(self, command: Sequence[str]) -> None:
        async with self._starting:
            await self.kill()
            with await to_thread.run_sync(self._log.open, "ab") as log:
                self._log_start = log.seek(0, os.SEEK_END)
                self._process = await children.start(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=_environment(),
                    start_new_session=True,  # a Ctrl-C is for us, and we end it
                )

    async def started(self) -> None:
        """Wait for what is being started, if anything is."""
        async with self._starting:
            pass

    def signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self._process and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)  # `send_signal` polls, and so takes the exit status from asyncio

    async def ended(self) -> None:
        """Wait until the process has ended."""
        if self._process:
            await self._process.wait()

    async def kill(self) -> None:
        """End the process at once, also one that stands still."""
        self.signal(SIGKILL)
        await self.ended()

    async def pause(self) -> None:
        """Let the process stand still. Raise `RegistrarError` when it has ended."""
        if not hasattr(signal, "SIGSTOP") or not hasattr(os, "waitid"):
            raise UnsupportedError("to pause a process takes SIGSTOP and waitid(2), which this Python does not have")
        while self._process and self._process.returncode is None:
            self.signal(signal.SIGSTOP)  # each time: someone may resume it meanwhile
            if _stands_still(self._process.pid):
                return
            await anyio.sleep(POLL)
        raise RegistrarError("a process that has ended cannot be paused: restart it first")

    def resume(self) -> None:
        """Let the process go on."""
        if not hasattr(signal, "SIGCONT"):
            raise UnsupportedError("to resume a process takes SIGCONT, which this system does not have")
        self.signal(signal.SIGCONT)

    async def healthy(self) -> bool:
        """Tell whether this member has a leader and serves reads that a majority confirmed: etcd's `/health` does one.

        It makes its data directory only once it has its ports. Without that, whoever answers is someone else.
        """
        return b'"health":"true"' in await self._get("/health") and await to_thread.run_sync(self._data.exists)

    async def leads(self) -> bool:
        """Tell whether this member is the leader. One that was deposed and does not know it yet is not healthy."""
        return b"\netcd_server_is_leader 1\n" in await self._get("/metrics") and await self.healthy()

    async def _get(self, path: str) -> bytes:
        """Return what etcd serves there, nothing when it does not answer."""
        with anyio.move_on_after(_ANSWER_TIMEOUT), suppress(OSError, anyio.BrokenResourceError):
            async with await anyio.connect_tcp(HOST, self._health_port) as stream:
                await stream.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                return b"".join([part async for part in stream])
        return b""

    async def log_tail(self) -> str:
        """Return the last lines that the latest process printed."""
        return await to_thread.run_sync(_tail, self._log, self._log_start)


def _environment() -> dict[str, str]:
    """Return ours, without what would be settings to etcd."""
    return {k: v for k, v in os.environ.items() if not k.startswith("ETCD_") or k == "ETCD_UNSUPPORTED_ARCH"}


def _stands_still(pid: int) -> bool:
    """Tell whether a child is stopped: a moment after SIGSTOP a thread of it may still run."""
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:  # it ended, and asyncio is about to say so
        return False


def _tail(log: Path, start: int) -> str:
    lines: list[str] = []
    with suppress(FileNotFoundError), log.open("rb") as file:  # it never came to be if time ran out before
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:]) or "    (nothing)"
