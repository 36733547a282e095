"""A client: it asks a greeter again and again, and goes on with another one when that one dies.

`python client.py client@localhost`, with ERGO_REGISTRAR_ENDPOINTS and the like in the environment.
"""

import asyncio
import contextlib
import signal
import sys

from ergo_registrar import ConfigUpdate, NodeJoined, NodeLeft, NoRouteError, Options, Registrar

PAUSE = 0.5  # seconds between two questions, and before it connects again


async def connect(registrar: Registrar) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the greeter whose turn it is, or else to the next: a crashed one is listed until its lease ends."""
    for greeter in await registrar.resolve_application("greeter"):
        for route in await registrar.resolve(greeter.node):
            with contextlib.suppress(OSError):
                return greeter.node, *await asyncio.open_connection(route.host, route.port)
    raise ConnectionError("no greeter answers")


async def ask(registrar: Registrar) -> None:
    """Ask for ever, whoever is there."""
    while True:
        try:
            node, reader, writer = await connect(registrar)
            with contextlib.closing(writer):
                print("connected to", node, flush=True)
                while True:
                    writer.write(b"world\n")
                    if not (answer := await reader.readline()):
                        raise ConnectionError(f"{node} hung up")
                    print(node, "says", answer.decode().strip(), flush=True)
                    await asyncio.sleep(PAUSE)
        except (NoRouteError, OSError) as error:
            print("not connected:", error, flush=True)
            await asyncio.sleep(PAUSE)


async def main(node: str) -> None:
    """Ask as `node`, and tell what changes in the cluster, until SIGTERM or Ctrl-C."""
    main_task = asyncio.current_task()
    assert main_task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main_task.cancel)
    async with Registrar(Options.from_env(), node=node) as registrar, asyncio.TaskGroup() as tasks:
        tasks.create_task(ask(registrar))
        async for event in registrar.subscribe(NodeJoined, NodeLeft, ConfigUpdate, replay=True):
            match event:
                case NodeJoined():
                    print(event.name, "joined", flush=True)
                case NodeLeft():
                    print(event.name, "left", flush=True)
                case ConfigUpdate():
                    print(event.item, "is", repr(event.value), flush=True)


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1]))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("has left", flush=True)
