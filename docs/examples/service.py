"""A service: it greets whoever connects, in the words that the cluster's configuration has for it.

`python service.py greeter1@localhost`, with ERGO_REGISTRAR_ENDPOINTS and the like in the environment.
"""

import asyncio
import contextlib
import signal
import sys

from ergo_registrar import (
    ApplicationMode,
    ApplicationRoute,
    ApplicationState,
    NodeJoined,
    NodeLeft,
    Options,
    Registrar,
    Route,
)


async def main(node: str) -> None:
    """Serve as `node`, a name with the host behind an @, until SIGTERM or Ctrl-C."""
    main_task = asyncio.current_task()
    assert main_task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main_task.cancel)

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.CancelledError):  # which is the service's end
            async for name in reader:
                config = await registrar.config("greeting")  # from memory: as cheap as a variable, and current
                writer.write(f"{config.get('greeting', 'hello')} {name.decode().strip()}\n".encode())
                await writer.drain()

    with contextlib.closing(await asyncio.start_server(greet, "0.0.0.0", 0)) as server:  # first listen, then say where
        here = Route(host=node.partition("@")[2], port=server.sockets[0].getsockname()[1])
        greeter = ApplicationRoute(node, "greeter", 1, ApplicationMode.PERMANENT, ApplicationState.RUNNING)
        async with Registrar(Options.from_env(), node=node, routes=[here], applications=[greeter]) as registrar:
            print("listens on port", here.port, flush=True)
            async for event in registrar.subscribe(NodeJoined, NodeLeft, replay=True):
                match event:
                    case NodeJoined():
                        print(event.name, "joined", flush=True)
                    case NodeLeft():
                        print(event.name, "left", flush=True)


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1]))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("has left", flush=True)
