"""Programs that fork, for test_fork.py: `python -m tests.faults.forking PROGRAM ENDPOINT CLUSTER`.

Not in pytest's own process: the child would be a copy of that, too. Each prints, as JSON, what the child saw and how
the parent went on.
"""

import asyncio
import inspect
import json
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from ergo_registrar import (
    ConfigLevel,
    NodeJoined,
    NodeLeft,
    Options,
    Registrar,
    RegistrarDisconnected,
    RegistrarError,
    Subscription,
    Version,
)
from tests.integration.support import eventually, next_event, running, short_options, waiting

Call = Callable[[Registrar, Subscription], Any]

HUNG = 2.0  # seconds for a call in the child that should wait for nothing

# Every public call but those that tell of the registrar what is known without looking (info, version), that whose
# listeners hear of no request then (on_request), and those that are refused always (proxies).
CALLS: dict[str, Call] = {
    "__aenter__": lambda r, _: r.__aenter__(),
    "__aexit__": lambda r, _: r.__aexit__(None, None, None),
    "bind": lambda r, _: r.bind(Version).__aenter__(),
    "close": lambda r, _: r.close(),
    "config": lambda r, _: r.config(),
    "config_item": lambda r, _: r.config_item("item"),
    "drain": lambda r, _: r.drain("web"),
    "explain": lambda r, _: r.explain("item"),
    "health": lambda r, _: r.health(),
    "nodes": lambda r, _: r.nodes(),
    "pick": lambda r, _: r.pick("web"),
    "register": lambda r, _: r.register("b@h"),
    "register_application_route": lambda r, _: r.register_application_route(running("web", "a@h")),
    "resolve": lambda r, _: r.resolve("a@h"),
    "resolve_application": lambda r, _: r.resolve_application("web"),
    "set_config": lambda r, _: r.set_config("item", 1, level=ConfigLevel.GLOBAL),
    "settings": lambda r, _: r.settings(Version),
    "subscribe": lambda r, _: r.subscribe(),
    "undrain": lambda r, _: r.undrain("web"),
    "unregister_application_route": lambda r, _: r.unregister_application_route("web"),
    "unset_config": lambda r, _: r.unset_config("item", level=ConfigLevel.GLOBAL),
    "wait_for": lambda r, _: r.wait_for("web"),
    "wait_revision": lambda r, _: r.wait_revision(1),
    "a subscription's __anext__": lambda _, s: anext(s),
    "a subscription's get": lambda _, s: s.get(),
    "a subscription's get_nowait": lambda _, s: s.get_nowait(),
}


async def answer(call: Call, registrar: Registrar, events: Subscription) -> str:
    """Return what a call raised or returned, or that it hangs."""
    try:
        async with asyncio.timeout(HUNG):
            answer = call(registrar, events)
            return repr(await answer if inspect.isawaitable(answer) else answer)
    except TimeoutError:
        return "hangs"
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent is told
        return type(error).__name__


async def forked(work: Callable[[], Awaitable[Any]]) -> Any:
    """Fork, run `work` in a loop of the child's own, and return what it returned. A child that hangs is killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        told = b"null"
        try:
            told = json.dumps(asyncio.run(_awaited(work))).encode()
        finally:
            os.write(writing, told)
            os._exit(0)
    os.close(writing)
    ending = threading.Timer(HUNG * (len(CALLS) + 2), os.kill, (child, signal.SIGKILL))
    ending.start()
    with os.fdopen(reading) as pipe:
        answer = await asyncio.to_thread(pipe.read)
    ending.cancel()
    await asyncio.to_thread(os.waitpid, child, 0)
    return json.loads(answer or "null")


async def _awaited(work: Callable[[], Awaitable[Any]]) -> Any:
    return await work()


async def with_a_registrar(
    options: Options, work: Callable[[Registrar, Subscription], Awaitable[Any]], *, children: int
) -> None:
    """Be a member, fork some times, and print what each child saw and how the parent went on."""
    async with Registrar(options, node="a@h") as parent, parent.subscribe() as events:
        told = [await forked(lambda: work(parent, events)) for _ in range(children)]
        renewals = parent.stats.lease_renewals
        await eventually(lambda: parent.stats.lease_renewals > renewals + 1)
        await parent.register_application_route(running("web", "a@h"))
        lost = [event for event in waiting(events) if isinstance(event, RegistrarDisconnected)]
        print(json.dumps({"children": told, "parent": {"ok": parent.health().ok, "lost": len(lost)}}))


async def copy(options: Options) -> None:
    """The child uses what it has inherited."""

    async def work(registrar: Registrar, events: Subscription) -> dict[str, str]:
        return {name: await answer(call, registrar, events) for name, call in CALLS.items()}

    await with_a_registrar(options, work, children=1)


async def new(options: Options) -> None:
    """The child makes a registrar of its own, long after its parent has used gRPC."""

    async def work(*_: object) -> str:
        try:
            await Registrar(options, node="b@h").__aenter__()
        except RegistrarError as error:
            return f"{type(error).__name__}: {error}"
        return "entered"

    await with_a_registrar(options, work, children=8)


def before(options: Options) -> None:
    """The child is forked before there is any registrar; then both have one, and the parent sees the child's live."""
    if (child := os.fork()) == 0:
        asyncio.run(live(options))
        os._exit(0)
    met = asyncio.run(meet(options))
    print(json.dumps({"child": os.waitpid(child, 0)[1], "parent": met}))


async def live(options: Options) -> None:
    """Be a member for some time."""
    async with Registrar(options, node="b@h") as registrar:
        await eventually(lambda: registrar.stats.lease_renewals > 1)


async def meet(options: Options) -> list[str]:
    """Be a member, and return what others do until one leaves."""
    parent = Registrar(options, node="a@h")
    async with parent.subscribe(NodeJoined, NodeLeft) as events, parent:
        return [type(await next_event(events)).__name__ for _ in range(2)]


if __name__ == "__main__":
    program, endpoint, cluster = sys.argv[1:]
    options = short_options(endpoint, cluster=cluster)
    if program == "before":
        before(options)
    else:
        asyncio.run({"copy": copy, "new": new}[program](options))
