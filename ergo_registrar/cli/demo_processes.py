"""The other processes of the demo: its nodes, and etcdctl. None of them outlives the block that started it."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import IO, TypeVar

import anyio
import anyio.abc
import msgspec
from anyio import to_thread
from anyio.streams.buffered import BufferedByteReceiveStream

from ergo_registrar import RegistrarError
from ergo_registrar.cli.demo_node import Answer, Leave, Request, Setup
from ergo_registrar.etcd.server import find_etcdctl

T = TypeVar("T")

_LEAVE_TIMEOUT = 3.0  # seconds from the end of its stdin until a node is killed
_MOST_BYTES = 65_536  # of one answer
_ANSWERS: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


class Node:
    """A node process, asked and answering one line at a time."""

    def __init__(self, setup: Setup, process: anyio.abc.Process, log: IO[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.setup = setup
        self.pid: int = process.pid
        self._process = process
        self._log = log
        self._requests = process.stdin
        self._answers = BufferedByteReceiveStream(process.stdout)

    async def ask(self, request: Request, answer: type[T]) -> T:
        """Send a request and return its answer. Raise `RegistrarError` when the process ended."""
        await self._send(request)
        return await self.hear(answer)

    async def hear(self, answer: type[T]) -> T:
        """Return the next answer, which must be of this type. Raise `RegistrarError` when the process ended."""
        try:
            line = await self._answers.receive_until(b"\n", _MOST_BYTES)
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            raise await self._ended() from None
        received = _ANSWERS.decode(line)
        if not isinstance(received, answer):
            raise RegistrarError(f"node {self.setup.name} answered {received}, not {answer.__name__}")
        return received

    async def leave(self) -> None:
        """Ask it to leave the cluster and end; return as soon as it was asked."""
        await self._send(Leave())

    def kill(self) -> None:
        """End it by SIGKILL, where there is one."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> int:
        """Wait until the process ended, and return its exit status."""
        return await self._process.wait()

    async def hang_up(self) -> None:
        """End its stdin, which asks it to leave and end."""
        with suppress(OSError, anyio.BrokenResourceError):
            await self._requests.aclose()

    async def put_away(self) -> None:
        """Free what is left of a process that ended."""
        await self._process.aclose()
        self._log.close()

    async def _send(self, request: Request) -> None:
        try:
            await self._requests.send(msgspec.json.encode(request) + b"\n")
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise await self._ended() from None

    async def _ended(self) -> RegistrarError:
        status = await self._process.wait()
        said = await to_thread.run_sync(_whole, self._log)
        return RegistrarError(f"node {self.setup.name} ended with status {status}" + (f":\n{said}" if said else ""))


@asynccontextmanager
async def running_nodes(setups: Sequence[Setup]) -> AsyncIterator[dict[str, Node]]:
    """Start a process for each; yield them by name. Afterwards each has ended, if need be by SIGKILL."""
    nodes: dict[str, Node] = {}
    try:
        for setup in setups:
            with anyio.CancelScope(shield=True):  # or a process might start that nobody knows of
                nodes[setup.name] = await _start(setup)
        yield nodes
    finally:
        with anyio.CancelScope(shield=True):
            await _end(list(nodes.values()))


async def _start(setup: Setup) -> Node:
    log = await to_thread.run_sync(tempfile.TemporaryFile)
    process = await anyio.open_process(
        [sys.executable, "-m", "ergo_registrar.cli.demo_node", msgspec.json.encode(setup).decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,  # a Ctrl-C is for the demo, which ends them
    )
    return Node(setup, process, log)


async def _end(nodes: Sequence[Node]) -> None:
    for node in nodes:
        await node.hang_up()
    with anyio.move_on_after(_LEAVE_TIMEOUT):
        for node in nodes:
            await node.ended()
    for node in nodes:
        node.kill()
        await node.put_away()


async def run_etcdctl(command: str, endpoint: str) -> None:
    """Run a shell command that begins with `etcdctl`, without a shell, for this endpoint. Raise `RegistrarError`."""
    program = await to_thread.run_sync(find_etcdctl)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")}
    done = await anyio.run_process(
        [str(program), *shlex.split(command)[1:]],
        stdin=subprocess.DEVNULL,
        check=False,
        env=environ | {"ETCDCTL_ENDPOINTS": endpoint},
        start_new_session=True,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise RegistrarError(f"{command!r} ended with status {done.returncode}" + (f":\n{said}" if said else ""))


def describe_status(status: int) -> str:
    """Return what an exit status tells: a number, or the name of a signal."""
    return f"exit status {status}" if status >= 0 else f"ended by {signal.Signals(-status).name}"


def _whole(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace").strip()
