"""The example without Docker: etcd, two services and their client, a process each. One that dies is started again.

`python docs/examples/run.py`, with `ergo-registrar[embedded]` installed. Ctrl-C ends all.
"""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

from ergo_registrar.etcd.server import LocalEtcd

HERE = Path(__file__).parent
NODES = {"greeter1@localhost": "service.py", "greeter2@localhost": "service.py", "client@localhost": "client.py"}


async def show(node: str, output: asyncio.StreamReader) -> None:
    """Print what a node prints, to its end."""
    async for line in output:
        print(f"{node:18} | {line.decode().rstrip()}", flush=True)


async def keep_up(node: str, program: str, environment: dict[str, str]) -> None:
    """Run a node, again and again. Cancelled, it asks the node to leave, and waits until it has."""
    while True:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(HERE / program), node),
            env=environment,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,  # a Ctrl-C is for this process, which ends the others
        )
        assert process.stdout
        print(f"{node:18} | process {process.pid} started", flush=True)
        try:
            await show(node, process.stdout)
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                process.terminate()
            await show(node, process.stdout)
            raise
        finally:
            print(f"{node:18} | process {process.pid} ended with status {await process.wait()}", flush=True)
        await asyncio.sleep(1)


async def main() -> None:
    """Run the cluster until SIGTERM or Ctrl-C."""
    main_task = asyncio.current_task()
    assert main_task
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, main_task.cancel)
    async with LocalEtcd() as etcd, asyncio.TaskGroup() as tasks:
        print(f"export ETCDCTL_ENDPOINTS={etcd.endpoints[0]}", flush=True)
        settings = {
            "ERGO_REGISTRAR_ENDPOINTS": etcd.endpoints[0],
            "ERGO_REGISTRAR_CLUSTER": "example",
            "ERGO_REGISTRAR_LEASE_TTL": "3",  # seconds until the others see that a node was killed
            "ERGO_REGISTRAR_CLAIM_TIMEOUT": "15",  # seconds that it waits for its own old name when it is back
        }
        for node, program in NODES.items():
            tasks.create_task(keep_up(node, program, os.environ | settings))


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        print("everything has ended")
