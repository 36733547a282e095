"""How the examples of a page are read, and how they are run. `CONTRIBUTING.md` tells what a page may say.

A page is a story: its blocks run from top to bottom, in one directory, against one etcd of its own. Wherever it says
`localhost:2379` or `localhost:12379`, that etcd's endpoint is put, and a free port for that of `localhost:9464`.
"""

import contextlib
import dataclasses
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

RUNNABLE = ("python", "console", "bash", "sh", "shell")
NOTES = ("not run: ", "file: ", "background", "output", "with: registrar")
COMMAND_TIMEOUT = 40.0  # seconds for one command, and for a background one to print what the page shows
INTERRUPT_TIMEOUT = 10.0  # seconds from Ctrl-C to the end of a background command

WITH_REGISTRAR = """\
import asyncio

from ergo_registrar import *


async def main():
    options = Options.from_env(cluster="production")
    async with Registrar(options, node="docs@localhost", routes=[Route(host="localhost", port=15000)]) as registrar:
{block}


asyncio.run(main())
"""


class PageError(Exception):
    """A page says something that cannot be run, or what it says is not so."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block. `note` is what an HTML comment on the line above says of it."""

    page: Path
    line: int
    language: str
    text: str
    note: str = ""

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.language in RUNNABLE and not self.note.startswith("not run: ")


def read(page: Path, text: str | None = None) -> Iterator[Block]:
    """Yield the fenced blocks of a page in Markdown. Raise `PageError` for a note that means nothing."""
    lines = iter(enumerate((page.read_text() if text is None else text).splitlines(), 1))
    note = ""
    for number, line in lines:
        if comment := re.fullmatch(r"\s*<!-- (.*) -->\s*", line):
            note = comment[1]
        elif fence := re.fullmatch(r"\s*(`{3,}|~{3,})\s*(\S*).*", line):
            inside = []
            for _, line_inside in lines:
                if re.fullmatch(rf"\s*{fence[1]}+\s*", line_inside):
                    break
                inside.append(line_inside)
            block = Block(page, number, fence[2], textwrap.dedent("\n".join(inside)), note)
            if note and not note.startswith(NOTES):
                raise PageError(f"{block.place}: the note {note!r} must be one of {', '.join(NOTES)}")
            if note.strip() == "not run:":
                raise PageError(f"{block.place}: say why it is not run")
            yield block
            note = ""
        elif line.strip():
            note = ""


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block with the output that the page shows, empty where it shows none."""
    command = ""
    output: list[str] = []
    for line in block.text.splitlines():
        if command.endswith("\\\n"):
            command += line + ("\n" if line.endswith("\\") else "")
        elif line.startswith("$ "):
            if command:
                yield command, "\n".join(output)
            command, output = line[2:] + ("\n" if line.endswith("\\") else ""), []
        elif command:
            output.append(line)
        elif line.strip() and not line.startswith("#"):
            raise PageError(f"{block.place}: a console block begins with a command, `$ ...`")
    if command:
        yield command, "\n".join(output)


def looks_like(shown: str, printed: str) -> bool:
    """Tell whether `printed` is what the page shows, `...` alone standing for any lines, inside one for any text."""
    parts = []
    for line in shown.rstrip().splitlines():
        if line.strip() == "...":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(r"[^\n]*?".join(map(re.escape, line.rstrip().split("..."))) + "\n")
    return bool(re.fullmatch("".join(parts), "".join(f"{line.rstrip()}\n" for line in printed.rstrip().splitlines())))


@dataclasses.dataclass(frozen=True)
class Background:
    """A command that runs until the page ends. Its first line is awaited at once, the rest at the end."""

    block: Block
    shown: str
    process: subprocess.Popen[bytes]
    output: Path

    def wait_for(self, shown: str) -> None:
        """Wait until the output begins with what is shown."""
        deadline = time.monotonic() + COMMAND_TIMEOUT
        while shown and not looks_like(f"{shown}\n...", printed := self.output.read_text()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise PageError(f"{self.block.place} printed\n{printed}\nwhere the page shows\n{self.shown}")
            time.sleep(0.05)


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """End a command as Ctrl-C does, and by force if it does not mind."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(INTERRUPT_TIMEOUT)


class Story:
    """The run of one page. A context manager: at its end what runs in the background is interrupted, as by Ctrl-C."""

    def __init__(self, directory: Path, endpoint: str, etcdctl: str | Path) -> None:
        self._directory = directory
        self._endpoint = endpoint
        self._background: list[Background] = []
        self._metrics = f"localhost:{_free_port()}"
        program = shlex.quote(str(etcdctl))
        tools = directory / ".tools"
        tools.mkdir()
        shim = tools / "etcdctl"
        shim.write_text(
            f'#!/bin/sh\ncase "$*" in *--endpoints*) exec {program} "$@" ;; esac\n'
            f'exec {program} --endpoints={endpoint} "$@"\n'
        )
        shim.chmod(0o755)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ERGO_REGISTRAR_", "ETCDCTL_")) or name == "ERGO_REGISTRAR_ETCD"
        }
        path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
        self._environment = kept | {
            "ERGO_REGISTRAR_ENDPOINTS": endpoint,
            "PATH": path,
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "error",
            "NO_COLOR": "1",
            "COLUMNS": "120",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        for background in self._background:
            try:
                if not failed:
                    background.wait_for(background.shown)
            finally:
                interrupt(background.process)

    def run(self, blocks: list[Block]) -> None:
        """Run the blocks of a page, from top to bottom. Raise `PageError` at the first that is not as shown."""
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            if not block.runs:
                continue
            shown = following.text if following and following.note == "output" else ""
            if block.note.startswith("file: "):
                self._write(block.note.removeprefix("file: "), block.text)
            elif block.language == "console":
                for command, output in commands(block):
                    self._run(block, command, output)
            elif block.language == "python":
                name = f"block_{block.line}.py"
                is_part = block.note == "with: registrar"
                text = WITH_REGISTRAR.format(block=textwrap.indent(block.text, " " * 8)) if is_part else block.text
                self._write(name, text)
                self._run(block, f"python {name}", shown)
            else:
                self._run(block, f"set -e\n{block.text}", shown)

    def _run(self, block: Block, command: str, shown: str) -> None:
        shown = self._here(shown)
        path = self._directory / f".output_{block.line}_{len(self._background)}"
        with path.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", self._here(command)],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if block.note == "background":
            background = Background(block, shown, process, path)
            self._background.append(background)
            background.wait_for("\n".join(shown.splitlines()[:1]))
            return
        try:
            status = process.wait(COMMAND_TIMEOUT)
        except subprocess.TimeoutExpired:
            interrupt(process)
            raise PageError(f"{block.place} did not end within {COMMAND_TIMEOUT:g} s:\n{path.read_text()}") from None
        if status:
            raise PageError(f"{block.place} `{command}` ended with status {status}:\n{path.read_text()}")
        if shown and not looks_like(shown, path.read_text()):
            raise PageError(f"{block.place} `{command}` printed\n{path.read_text()}\nwhere the page shows\n{shown}")

    def _write(self, name: str, text: str) -> None:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._here(text) + "\n")

    def _here(self, text: str) -> str:
        return re.sub(r"\blocalhost:9464\b", self._metrics, re.sub(r"\blocalhost:1?2379\b", self._endpoint, text))


def _free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        port: int = server.getsockname()[1]
        return port
