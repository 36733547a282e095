"""The command line for async stories: a process of its own, through the real entry point, while registrars run here."""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ergo_registrar import Options

SCRIPT = shutil.which("ergo-registrar", path=str(Path(sys.executable).parent))
COMMAND = [SCRIPT] if SCRIPT else [sys.executable, "-m", "ergo_registrar.cli"]
LONGEST = 60.0  # seconds for one command, or one line of it: a story starts several at once


def environ(options: Options | None = None, **more: str) -> dict[str, str]:
    """The environment of a command: nothing of this machine's, wide, without colours; etcd and cluster of `options`."""
    base = {
        k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "TTY_COMPATIBLE") and "ERGO_REGISTRAR" not in k
    }
    where = {}
    if options is not None:
        where = {"ERGO_REGISTRAR_ENDPOINTS": ",".join(options.endpoints), "ERGO_REGISTRAR_CLUSTER": options.cluster}
    return base | {"COLUMNS": "80", "PYTHONUTF8": "1"} | where | more


async def cli(*arguments: str, env: dict[str, str]) -> tuple[int, str, str]:
    """Run a command to its end; return the exit code and all it printed."""
    async with running(*arguments, env=env) as process, asyncio.timeout(LONGEST):
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()


@asynccontextmanager
async def running(*arguments: str, env: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command that runs during the block, and is killed at its end if it still does."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        limit=2**20,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: asyncio.subprocess.Process, wanted: Callable[[str], object]) -> str:
    """Return the next line of its standard output that is wanted."""
    assert process.stdout is not None
    seen = []
    try:
        async with asyncio.timeout(LONGEST):
            while text := (await process.stdout.readline()).decode():
                if wanted(text):
                    return text.rstrip("\n")
                seen.append(text)
    except TimeoutError:
        pass
    raise AssertionError(f"the line did not come, but {''.join(seen)}")


async def document(process: asyncio.subprocess.Process, **fields: Any) -> dict[str, Any]:
    """Return the next document, one a line, that has these fields."""
    text = await line(process, lambda text: fields.items() <= json.loads(text).items())
    found: dict[str, Any] = json.loads(text)
    return found


async def ended(process: asyncio.subprocess.Process, number: signal.Signals) -> tuple[int, str]:
    """Send a signal; return the exit code, and what was on standard error."""
    process.send_signal(number)
    async with asyncio.timeout(LONGEST):
        _, err = await process.communicate()
    return process.returncode or 0, err.decode()
