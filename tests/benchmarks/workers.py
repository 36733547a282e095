"""The processes of a measured cluster, seen from the run: started, asked, killed, and always ended."""

import asyncio
import contextlib
import itertools
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from ergo_registrar import children
from ergo_registrar.etcd.shield import finish
from tests.benchmarks.worker import Command, Setup

_ROOT = Path(__file__).parents[2]
_LIMIT = 64 * 1024 * 1024  # bytes of one answer
_READY = 60.0  # seconds for a process to import everything, beside others that do the same
_LATE = 20.0  # seconds that an answer may come after the time that the command had: starts are taken back


class StageError(Exception):
    """Something could not be measured, and why."""


class Process:
    """One process that hosts nodes."""

    def __init__(self, module: str, setup: Setup, log: Path) -> None:
        self.setup = setup
        self._module = module
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._hearing: asyncio.Task[None] | None = None
        self._number = 0

    async def start(self) -> None:
        """Start it, and return when it takes commands."""
        ready = self._expect(0)
        await finish(self._spawn())  # half started, it would be nobody's to end
        await self._answer(ready, _READY, "start up")

    async def _spawn(self) -> None:
        with self._log.open("wb") as log:
            self._process = await children.start(
                [sys.executable, "-m", self._module, msgspec.json.encode(self.setup).decode()],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LIMIT,
                cwd=_ROOT,
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
                start_new_session=True,  # a Ctrl-C is for us, and we end it
            )
        self._hearing = asyncio.create_task(self._hear(self._process))

    async def ask(self, do: str, seconds: float, **details: Any) -> dict[str, Any]:
        """Return the answer to a command. `StageError` when the process says that it could not, or says nothing."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._number += 1
        command = Command(id=self._number, do=do, seconds=seconds, **details)
        answer = self._expect(self._number)
        with contextlib.suppress(ConnectionError):  # it has ended, and who waits is told so
            self._process.stdin.write(msgspec.json.encode(command) + b"\n")
        return await self._answer(answer, seconds + _LATE, do)

    def _expect(self, number: int) -> asyncio.Future[dict[str, Any]]:
        self._answers[number] = asyncio.get_running_loop().create_future()
        self._answers[number].add_done_callback(lambda _: self._answers.pop(number))
        return self._answers[number]

    async def _answer(self, future: asyncio.Future[dict[str, Any]], seconds: float, do: str) -> dict[str, Any]:
        if self._hearing is not None and self._hearing.done():
            future.cancel()
            raise StageError(f"{do}: the process has ended: {self._said()}")
        try:
            async with asyncio.timeout(seconds):
                answer = await future
        except TimeoutError:
            raise StageError(f"{do}: no answer within {seconds:g} s") from None
        if "error" in answer:
            raise StageError(answer["error"])
        return answer

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """End it with SIGKILL, and return when it has ended."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._hearing is not None:
            await asyncio.wait({self._hearing})

    async def _hear(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            answer = msgspec.json.decode(line)
            future = self._answers.get(answer.get("answer", 0))
            if future is not None and not future.done():
                future.set_result(answer)
        for future in list(self._answers.values()):
            if not future.done():
                future.set_exception(StageError(f"the process ended: {self._said()}"))

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-1000:]


class Processes:
    """The processes that share the nodes of one cluster between them. All end with the block."""

    def __init__(
        self, module: str, endpoint: str, nodes: int, log: Path, *, count: int, pace: int, uvloop: bool, sample: bool
    ) -> None:
        bounds = [nodes * number // count for number in range(count + 1)]
        self.all = [
            Process(
                module,
                Setup(endpoint=endpoint, first=first, last=last, pace=pace, uvloop=uvloop, sample=sample),
                log.with_name(f"{log.name}{first}.log"),
            )
            for first, last in itertools.pairwise(bounds)
        ]

    async def __aenter__(self) -> Self:
        try:
            ended = await asyncio.gather(*(process.start() for process in self.all), return_exceptions=True)
            for error in filter(None, ended):  # now that none is half started
                raise error
        except BaseException:  # also cancelled
            await finish(self._end())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await finish(self._end())

    async def _end(self) -> None:
        await asyncio.gather(*(process.kill() for process in self.all))

    async def ask(self, do: str, seconds: float, **details: Any) -> list[dict[str, Any]]:
        """Ask all that live the same."""
        return await asyncio.gather(*(process.ask(do, seconds, **details) for process in self.all))

    async def kill(self, doomed: Sequence[Process]) -> None:
        """Kill some at once; they are none of these any more."""
        self.all = [process for process in self.all if process not in doomed]
        await asyncio.gather(*(process.kill() for process in doomed))


def raise_file_limit(files: int) -> None:
    """Let this process, and all that it starts from now on, open so many files. `StageError` where that is forbidden.

    Each node is a connection, and etcd holds all of them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise StageError(f"it takes {files} open files, and the limit is {hard}: raise `ulimit -Hn`")
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
