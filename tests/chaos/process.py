"""The processes of the registrars, seen from the checker: started, asked, stopped, killed."""

import asyncio
import contextlib
import dataclasses
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from tests.chaos.history import Violation
from tests.chaos.node import Setup

_ROOT = Path(__file__).parents[2]
_LIMIT = 64 * 1024 * 1024  # bytes of one answer
_NO_ANSWER = 40.0  # seconds: longer than any call may take
_EXIT = 10.0  # seconds from the last word of a process to its end
_COMPLAINTS = (
    "Traceback (most recent call last)",
    "never retrieved",
    "never awaited",
    "was destroyed but",
    "died of a",
)


class GoneError(Exception):
    """The process has ended, so it cannot be asked."""


@dataclasses.dataclass
class Ended:
    """That a life was over. `due` is set by the checker: when the last of its keys must be gone."""

    life: int
    at: float
    how: str


class Registrar:
    """One life of a node: its process, what it was told to publish, and what is wrong with it."""

    def __init__(self, name: str, setup: Setup, directory: Path) -> None:
        self.name = name
        self.setup = setup
        self.life = setup.life
        self.violations: list[Violation] = []
        self.applications: dict[str, tuple[int, int]] = {}  # name -> weight and state, as far as acknowledged
        self.changing = asyncio.Lock()  # one change after the other: of two at once nobody knows which came last
        self.up_at: float | None = None
        self.state = "new"
        self.stopped = False
        self.closed: dict[str, Any] = {}
        self.last_dump: dict[str, Any] = {}
        self._log = directory / f"life{setup.life}.log"
        self._process: asyncio.subprocess.Process | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._hearing: asyncio.Task[None] | None = None
        self._expected_end = False

    async def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.chaos.node", msgspec.json.encode(self.setup).decode()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LIMIT,
                cwd=_ROOT,
                start_new_session=True,
            )
        self._hearing = asyncio.create_task(self._hear(self._process))

    @property
    def alive(self) -> bool:
        return not self._expected_end and self._process is not None and self._process.returncode is None

    async def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Return the answer to a command. Raise `GoneError` when the process ends before it answers."""
        number = id(future := asyncio.get_running_loop().create_future())
        self._answers[number] = future
        try:
            self._write({"id": number, "do": do, **details})
            async with asyncio.timeout(_NO_ANSWER):
                answer: dict[str, Any] = await future
                return answer
        except TimeoutError:
            if not self.stopped:
                self.wrong(6, f"did not answer {do} within {_NO_ANSWER:g} s")
            raise GoneError from None
        finally:
            del self._answers[number]

    async def close(self) -> None:
        """Let it leave, and wait until the process has ended by itself."""
        self._expected_end = True
        self._write({"id": 0, "do": "close"})
        await self._end("close")
        if not self.closed:
            self.wrong(6, "ended without having closed")
        elif self.closed["left"] or self.closed["state"] != "closed":
            self.wrong(7, f"close() left behind: {self.closed}")

    async def kill(self) -> None:
        self._expected_end = True
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._end("kill")

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)
        self.stopped = True

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)
        self.stopped = False

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _end(self, how: str) -> None:
        assert self._hearing is not None
        assert self._process is not None
        done, _ = await asyncio.wait({self._hearing}, timeout=_NO_ANSWER)
        if not done:
            self.wrong(7, f"the process did not end within {_NO_ANSWER:g} s of {how}")
            self._process.kill()
            await self._hearing

    async def _hear(self, process: asyncio.subprocess.Process) -> None:
        """Take what the process says until it ends, and look at how it ended."""
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self._take(msgspec.json.decode(line))
        try:
            async with asyncio.timeout(_EXIT):
                status = await process.wait()
        except TimeoutError:
            self.wrong(7, f"closed its stdout and did not end within {_EXIT:g} s")
            process.kill()
            status = await process.wait()
        for future in self._answers.values():
            if not future.done():
                future.set_exception(GoneError())
        if status != (0 if self.closed else -signal.SIGKILL) or not self._expected_end:
            self.wrong(7, f"ended with status {status}: {self._said()[-2000:]}")
        elif any(complaint in self._said() for complaint in _COMPLAINTS):
            self.wrong(7, f"complained: {self._said()[-4000:]}")

    def _take(self, line: dict[str, Any]) -> None:
        match line:
            case {"answer": number}:
                if (future := self._answers.get(number)) is not None and not future.done():
                    future.set_result(line)
            case {"problem": evidence, "invariant": invariant}:
                self.wrong(invariant, evidence)
            case {"up": at}:
                self.up_at = at
            case {"closed": _}:
                self.closed = line
            case {"state": state}:
                self.state = state

    def _write(self, command: dict[str, Any]) -> None:
        if self._process is None or self._process.stdin is None or self._process.returncode is not None:
            raise GoneError
        self._process.stdin.write(msgspec.json.encode(command) + b"\n")

    def wrong(self, invariant: int, evidence: str) -> None:
        self.violations.append(Violation(invariant, f"{self.name}, life {self.life}: {evidence}"))

    def _said(self) -> str:
        return self._log.read_text(errors="replace")
