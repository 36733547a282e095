"""How a follower in a process of its own is spoken to, in the lines of the Go peer. The standard library only.

It says {"ready": true}, and answers each line with one: `mark` forgets what it was told until now; `wait NAME COUNT
TIMEOUT` tells when the follower was told of application NAME, in nanoseconds by `time.perf_counter`; `cpu` tells the
CPU time of the process; `quit`, or the end of the input, ends it.
"""

import asyncio
import json
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any


async def converse(follow: Callable[[], Awaitable[bytes | str]], application: Callable[[Any], str]) -> None:
    """Follow, and answer what is asked on stdin, until told to quit."""
    told: dict[str, list[int]] = defaultdict(list)
    came = asyncio.Event()

    async def keep_following() -> None:
        while True:
            what = await follow()
            told[application(what)].append(time.perf_counter_ns())
            came.set()

    async def wait(name: str, count: str, timeout: str) -> dict[str, Any]:
        try:
            async with asyncio.timeout(float(timeout)):
                while len(told[name]) < int(count):
                    came.clear()
                    await came.wait()
        except TimeoutError:
            pass  # what came by then is told, and how much is missing
        return {"times": told[name], "missing": max(0, int(count) - len(told[name]))}

    following = asyncio.create_task(keep_following())
    lines = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    try:
        say({"ready": True})
        while (words := (await lines.readline()).decode().split()) and words != ["quit"]:
            if following.done():
                following.result()
            match words:
                case ["mark"]:
                    told.clear()
                    say({"marked": True})
                case ["wait", name, count, timeout]:
                    say(await wait(name, count, timeout))
                case ["cpu"]:
                    say({"cpu_seconds": time.process_time()})
                case _:
                    say({"error": f"what is {' '.join(words)!r}?"})
    finally:
        following.cancel()
        transport.close()


def say(answer: dict[str, Any]) -> None:
    """Write a line of JSON."""
    print(json.dumps(answer), flush=True)
