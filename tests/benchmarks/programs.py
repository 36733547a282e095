"""Programs beside this one: started, spoken to line by line, and always ended."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ergo_registrar import children
from ergo_registrar.etcd.shield import finish

ROOT = Path(__file__).parents[2]
START = 20.0  # seconds until a program must be ready
END = 5.0  # seconds from the end of its input to its own, before it is killed


class ProgramError(Exception):
    """A program ended, or did not answer in time, or said that it could not."""


class Program:
    """A running program: one line in, one line of JSON out."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    def tell(self, line: bytes) -> None:
        """Write a line, at once."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")

    async def hear(self, timeout: float = START) -> dict[str, Any]:
        """Return the next line. Raise `ProgramError` when there is none in time, or it tells of an error."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise ProgramError(f"{self.name} did not answer within {timeout:g} s: {self._said()}") from None
        if not line:
            raise ProgramError(f"{self.name} ended: {self._said()}")
        try:
            answer = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise ProgramError(f"{self.name} said {line[:80]!r}: {error}") from None
        if "error" in answer:
            raise ProgramError(f"{self.name}: {answer['error']}")
        return answer

    async def ask(self, line: str, timeout: float = START) -> dict[str, Any]:
        """Write a line, and return the answer to it."""
        self.tell(line.encode())
        return await self.hear(timeout)

    async def end(self) -> None:
        """Let it end by the end of its input, and kill it if it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(END):
                await self._process.wait()
        except TimeoutError:
            self._kill()
            await self._process.wait()
        except asyncio.CancelledError:
            self._kill()
            raise

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)

    def _said(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "it said nothing"


@contextlib.asynccontextmanager
async def run(name: str, command: Sequence[str]) -> AsyncIterator[Program]:
    """Run a program in the root of the repository, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="ergo-registrar-bench-") as directory:
        log = Path(directory, "stderr")
        with log.open("wb") as stderr:
            how: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr, "cwd": ROOT}
            try:
                process = await finish(children.start(command, start_new_session=True, **how))
            except OSError as error:
                raise ProgramError(f"{name}: {error.strerror or error}: {command[0]}") from None
        program = Program(name, process, log)
        try:
            yield program
        finally:
            await program.end()


async def once(name: str, command: Sequence[str], timeout: float) -> dict[str, Any]:
    """Run a program that says one line and ends; return that line."""
    async with run(name, command) as program:
        return await program.hear(timeout)


def module(name: str, *arguments: str) -> list[str]:
    """Return the command that runs a module beside this one, in the same Python."""
    return [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments]
