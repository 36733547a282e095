"""`ergo-registrar demo`: a cluster of three processes on an etcd of its own, from its start to its end."""

import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import typer

from ergo_registrar import (
    ApplicationLoaded,
    ApplicationStarted,
    ApplicationStopped,
    ApplicationStopping,
    Event,
    NodeJoined,
    NodeLeft,
    Options,
    Registrar,
    RegistrarError,
    Subscription,
)
from ergo_registrar.cli import demo_output as show
from ergo_registrar.cli.demo_node import (
    APPLICATION,
    CLUSTER,
    Changed,
    Explain,
    Explained,
    Follow,
    Following,
    Ready,
    Resolve,
    Resolved,
    Setup,
)
from ergo_registrar.cli.demo_processes import Node, describe_status, run_etcdctl, running_nodes
from ergo_registrar.cli.output import complain
from ergo_registrar.cli.running import run
from ergo_registrar.etcd.server import LocalEtcd

# The reference's own example (https://docs.ergo.services, "etcd Client", "Typed Configuration"), word for word.
CONFIGURATION = """\
etcdctl put services/ergo/cluster/production/config/web1/database.port "int:5432"
etcdctl put services/ergo/cluster/production/config/*/cache.ratio "float:0.75"
etcdctl put services/ergo/cluster/production/config/*/debug.enabled "bool:true"
etcdctl put services/ergo/cluster/production/config/web1/ssl.enabled "bool:false"
etcdctl put services/ergo/cluster/production/config/*/myapp.cache.size "int:256"
etcdctl put services/ergo/cluster/production/config/*/client.timeout "int:30"
etcdctl put services/ergo/config/global/log.level "info"
"""
ITEMS = ("database.port", "cache.ratio", "debug.enabled", "log.level")
CHANGE = 'etcdctl put services/ergo/cluster/production/config/web1/database.port "int:6432"'
CHANGED_ITEM = "database.port"

_LONGEST = 24.0  # seconds until it gives up; putting everything away takes at most some 5 more
_START_TIMEOUT = 15.0  # seconds for etcd; then its log says why
_LEASE_TTL = 3  # seconds; etcd grants no less than 2, and a machine may be busy
_TIMES = 10
_RUNNING_IT = {"web2": 3, "web3": 1}  # the nodes that run the application, and its weight there


def demo() -> None:
    """Show a cluster at work: three node processes on a local etcd, in some ten seconds.

    Nodes join and run an application; it is found, by weight; typed configuration is read and changes while they run;
    one node leaves, one is killed. Each step says what it does and shows what came of it.

    It needs no set-up, and leaves nothing behind. Ctrl-C ends it at any time. etcd and etcdctl are those that
    ERGO_REGISTRAR_ETCD names, else those on PATH, else those of the extra "embedded".
    """
    story = _Story()
    ended_by = run(story.run)
    if ended_by is not None:
        show.interrupted(signal.Signals(ended_by).name)
        raise typer.Exit(128 + ended_by)
    if story.failure is not None:
        complain(story.failure)
        raise typer.Exit(1)


class _Story:
    """The steps, in order, and how far they came."""

    def __init__(self) -> None:
        self.failure: str | None = None
        self._step = 0
        self._title = ""
        self._start = time.monotonic()

    async def run(self) -> None:
        """Tell the whole story. Where a step fails, `failure` says which, and why."""
        try:
            with anyio.fail_after(_LONGEST):
                await self._tell()
        except TimeoutError:
            self._fail(f"it was not done {_LONGEST:g} s after the start of the demo. Is this machine very busy?")
        except Exception as error:  # noqa: BLE001  # whatever it is: which step it was must be said
            self._fail(_reason(error))
        else:
            show.done(self._elapsed())

    async def _tell(self) -> None:
        show.introduction()
        self._begin("Start etcd", "A real one, on a free port of this machine, for as long as the demo runs.")
        async with LocalEtcd(start_timeout=_START_TIMEOUT) as etcd:
            show.etcd_answers(etcd.endpoint, self._elapsed())
            await self._configure(etcd.endpoint)
            async with self._observer(etcd.endpoint) as events, running_nodes(_setups(etcd.endpoint)) as nodes:
                await self._see_them_join(events, nodes)
                await self._resolve(nodes["web1"])
                await self._read_configuration(nodes["web1"])
                await self._change_configuration(nodes["web1"], etcd.endpoint)
                await self._stop(nodes["web2"], events)
                await self._kill(nodes["web3"], events)
                self._begin("Put everything away", "web1 leaves, then etcd ends.")

    @asynccontextmanager
    async def _observer(self, endpoint: str) -> AsyncIterator[Subscription]:
        self._begin(
            "Start three nodes",
            f"Three processes join cluster {CLUSTER!r}. web2 and web3 run {APPLICATION!r}. This process observes: "
            "it gives no node name, so it watches and claims nothing.",
        )
        options = Options(endpoints=(endpoint,), cluster=CLUSTER, close_timeout=1)
        async with Registrar(options) as registrar:
            yield registrar.subscribe(
                NodeJoined, NodeLeft, ApplicationLoaded, ApplicationStarted, ApplicationStopping, ApplicationStopped
            )

    async def _configure(self, endpoint: str) -> None:
        self._begin("Configure the cluster", "Text, with the type in front. A key for one node wins over one for all.")
        for command in CONFIGURATION.splitlines():
            show.command(command)
            await run_etcdctl(command, endpoint)

    async def _see_them_join(self, events: Subscription, nodes: dict[str, Node]) -> None:
        show.processes({name: node.pid for name, node in nodes.items()})
        missing: set[tuple[type[Event], str]] = {(NodeJoined, name) for name in nodes}
        missing |= {(ApplicationStarted, name) for name in _RUNNING_IT}
        async with _all_of(*(node.hear(Ready) for node in nodes.values())):
            await self._watch(events, missing)

    async def _resolve(self, web1: Node) -> None:
        self._begin("Resolve an application", f"web1 asks {_TIMES} times where {APPLICATION!r} runs, from its memory.")
        picked = (await web1.ask(Resolve(_TIMES, frozenset(_RUNNING_IT)), Resolved)).nodes
        counts = Counter(picked)
        show.spread(picked, [(name, weight, counts[name]) for name, weight in _RUNNING_IT.items()])

    async def _read_configuration(self, web1: Node) -> None:
        self._begin("Read configuration", "What web1 sees, and the level that decides (1 to 4, the lower number wins).")
        show.configuration((await web1.ask(Explain(ITEMS), Explained)).sources)

    async def _change_configuration(self, web1: Node, endpoint: str) -> None:
        self._begin("Change configuration", "web1 subscribes to changes, and is told of this one.")
        await web1.ask(Follow(CHANGED_ITEM), Following)
        show.command(CHANGE)
        await run_etcdctl(CHANGE, endpoint)
        changed = await web1.hear(Changed)
        show.event(self._elapsed(), changed.event)

    async def _stop(self, web2: Node, events: Subscription) -> None:
        self._begin("Stop a node", "web2 is asked to leave: it takes its keys with it.")
        asked = time.monotonic()
        await web2.leave()
        await self._watch(events, {(NodeLeft, "web2"), (ApplicationStopped, "web2")})
        show.gone("web2", time.monotonic() - asked, "after it was asked", describe_status(await web2.ended()))

    async def _kill(self, web3: Node, events: Subscription) -> None:
        self._begin("Kill a node", f"web3 gets SIGKILL, so nobody says good-bye: its lease of {_LEASE_TTL} s must end.")
        killed = time.monotonic()
        web3.kill()
        await self._watch(events, {(NodeLeft, "web3"), (ApplicationStopped, "web3")})
        show.gone("web3", time.monotonic() - killed, "after the SIGKILL", describe_status(await web3.ended()))

    async def _watch(self, events: Subscription, missing: set[tuple[type[Event], str]]) -> None:
        """Show events as they come until none is missing of these, each a type and a node."""
        while missing:
            event = await events.get()
            show.event(self._elapsed(), event)
            missing.discard((type(event), show.node_of(event)))

    def _begin(self, title: str, explanation: str) -> None:
        self._step += 1
        self._title = title
        show.step(self._step, title, explanation)

    def _fail(self, reason: str) -> None:
        self.failure = f"step {self._step} ({self._title}) failed: {reason}"

    def _elapsed(self) -> float:
        return time.monotonic() - self._start


def _setups(endpoint: str) -> list[Setup]:
    return [
        Setup(name, endpoint, port, _LEASE_TTL, _RUNNING_IT.get(name))
        for port, name in enumerate(("web1", "web2", "web3"), 15001)
    ]


@asynccontextmanager
async def _all_of(*waits: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Await these beside the block, which ends when all are done; the first error ends all, and is raised as it is."""

    async def wait_for(one: Coroutine[Any, Any, object]) -> None:
        await one

    try:
        async with anyio.create_task_group() as tasks:
            for each in waits:
                tasks.start_soon(wait_for, each)
            yield
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _reason(error: Exception) -> str:
    """Return what an error says: the package's own in its words, others with their type."""
    return str(error) if isinstance(error, RegistrarError) else f"{type(error).__name__}: {error}"
