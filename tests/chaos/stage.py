"""Where a story is played: three members of etcd with logins, the registrars, and a breakable way for each to each.

The stage also keeps what the checker must know: which lives there were, how they ended, and what in etcd is foreign.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Coroutine, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import grpc

from ergo_registrar.etcd.server import LocalEtcd, Member
from ergo_registrar.testing.proxy import FaultProxy
from tests.chaos.etcd import Etcd, UnreachableError
from tests.chaos.history import History
from tests.chaos.node import Setup
from tests.chaos.plan import APPLICATIONS, ETCD_MEMBERS, FOREIGN_APPLICATIONS, MEMBERS, NODES
from tests.chaos.process import Ended, GoneError, Registrar
from tests.chaos.wire import CLUSTER, ROUTES, WITNESS, application_key, first_application, levels, write_application

TTL = 3
GRACE = {MEMBERS[3]: 1.0}  # one node believes in suspects for a while
OPTIONS: dict[str, Any] = {
    "cluster": CLUSTER,
    "dial_timeout": 5.0,
    "request_timeout": 3.0,
    "keep_alive": 5.0,
    "lease_ttl": float(TTL),
    "claim_timeout": 4.0 * TTL,
    "close_timeout": 2.0,
}
LOGIN_PAUSE = 30.0  # seconds at most before a refused login is tried again: docs/explanation/etcd.md
_PECULIAR: dict[str, dict[str, Any]] = {
    MEMBERS[1]: {"application_route_layout": "tags"},
    MEMBERS[2]: {"application_route_layout": "tags+version", "request_timeout": 1.5},  # a lease outlives a failed write
    MEMBERS[3]: {"suspect_grace": GRACE[MEMBERS[3]]},
}
_ROOT_PASSWORD, _PASSWORD = "root of all chaos", "one of many"
_LOOK = 0.1  # seconds between two looks at a member's status
_BEAT = 0.2  # seconds between two steps of the witness
_WAITING = 4  # every so manyth question is asked behind `wait_revision`
_QUESTIONS = 20  # at a time


class Stage:
    """Everything that runs, as an async context manager."""

    def __init__(self, directory: Path) -> None:
        # A cheap bcrypt: the faults here cost hundreds of logins a minute, and two cores are not the point.
        self.etcd = LocalEtcd(ETCD_MEMBERS, arguments=["--bcrypt-cost=4"])
        self.history = History()
        self.registrars: dict[str, Registrar] = {}
        self.lives: list[Registrar] = []
        self.ended: list[Ended] = []
        self.foreign: dict[bytes, bytes] = {}  # what the checker put under routes/ and left there
        self.garbled: dict[bytes, bytes] = {}  # applications' keys that it wrote over
        self.spent: list[int] = []  # leases of the checker's to be revoked
        self.refused: dict[str, float] = {}  # node -> when its password was right again
        self.changed_logins: set[str] = set()  # nodes whose login or role was touched in this chapter
        self.ways_back: dict[str, float] = {}  # node -> when its network was healed
        self.members_back = 0.0  # when the last member of etcd came back
        self.counts: Counter[str] = Counter()
        self.active: list[object] = []  # the steps under way
        self.begun = 0  # steps
        self.term = 0  # of raft
        self.led_since = time.monotonic()  # since when the same member leads, as a majority says
        self._directory = directory
        self._ways: dict[str, list[FaultProxy]] = {}
        self._starting = asyncio.Lock()
        self._witnessed: list[tuple[float, int]] = []  # when a count was surely written, and the count
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        try:
            await self._build()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        for task in self._tasks:
            task.cancel()
        for registrar in self.lives:
            await registrar.kill()
        return await self._stack.__aexit__(*error)

    async def _build(self) -> None:
        await self._stack.enter_async_context(self.etcd)
        self.raw = await self._stack.enter_async_context(Etcd(self.etcd.endpoints))
        roles = {name: self.permissions(name) for name in NODES}
        await self.raw.enforce_logins(_ROOT_PASSWORD, roles, _PASSWORD)
        for name in NODES:
            ways = [FaultProxy(endpoint) for endpoint in self.etcd.endpoints]
            self._ways[name] = [await self._stack.enter_async_context(way) for way in ways]
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        for work in (self._listen(), *map(self._look, range(ETCD_MEMBERS))):
            self.watch_over(work)
        await asyncio.gather(*map(self.start, NODES))

    def watch_over(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something run beside the story. Should it fail, the run does."""
        self._tasks.append(self._group.create_task(work))

    # The registrars

    @staticmethod
    def permissions(name: str) -> list[tuple[bytes, bool]]:
        """Return the prefixes that a node, or the observer, may read, and whether it may write there: no more."""
        node = name if name in MEMBERS else None
        return [(ROUTES.encode(), node is not None), *((prefix.encode(), False) for prefix in levels(node))]

    async def start(self, name: str) -> None:
        """Start a life of a node, unless it has one."""
        async with self._starting:
            if (before := self.registrars.get(name)) is not None and before.alive:
                return
            life = len(self.lives) + 1
            turn = NODES.index(name) % ETCD_MEMBERS
            endpoints = [way.endpoint for way in self._ways[name]]
            options = OPTIONS | {"endpoints": endpoints[turn:] + endpoints[:turn]}
            options |= {"username": name, "password": _PASSWORD} | _PECULIAR.get(name, {})
            node = name if name in MEMBERS else None
            if node:
                self.history.lives[life] = name
            known = (*APPLICATIONS, *FOREIGN_APPLICATIONS, WITNESS)
            registrar = Registrar(
                name, Setup(node=node, life=life, options=options, applications=known), self._directory
            )
            if node:
                application, weight, state = first_application(life)
                registrar.applications[application] = weight, state
            self.registrars[name] = registrar
            self.lives.append(registrar)
            await registrar.start()

    def living(self, name: str) -> Registrar:
        """Return the registrar of a node that has one. Raise `GoneError`."""
        if (registrar := self.registrars[name]).alive:
            return registrar
        raise GoneError

    def ways(self, name: str, member: int | None = None) -> list[FaultProxy]:
        """Return the way of a node to a member of etcd, or all of its ways."""
        return self._ways[name] if member is None else [self._ways[name][member]]

    async def heal(self, name: str, ways: Iterable[FaultProxy]) -> None:
        """End every fault of some of the ways of a node."""
        for way in ways:
            await way.heal()
        self.ways_back[name] = time.monotonic()

    async def leave(self, registrar: Registrar) -> None:
        """Let a registrar leave. Where nothing can be blamed for a delay, its keys must be gone when it has."""
        calm, begun = len(self.active) <= 1 and registrar.state == "connected", self.begun
        await registrar.close()
        self.ended.append(Ended(registrar.life, time.monotonic(), "close()"))
        if not calm or begun != self.begun:
            return
        leases = self.history.leases_of([registrar.life])
        _, keys = await self.raw.everything()
        if left := [key for key, kv in keys.items() if kv.lease in leases]:
            registrar.wrong(4, f"close() returned, and its keys are still there: {left}")
        self.counts["keys gone with close()"] += 1

    async def kill(self, registrar: Registrar) -> None:
        await registrar.kill()
        self.ended.append(Ended(registrar.life, time.monotonic(), "kill -9"))

    # etcd

    async def member(self, which: str) -> Member:
        """Return the member that leads, or one that does not."""
        leader = await self.etcd.leader()
        return leader if which == "leader" else next(each for each in self.etcd.members if each is not leader)

    async def change_password(self, name: str, *, right: bool) -> None:
        await self.raw.change_password(name, _PASSWORD if right else "another")
        self.changed_logins.add(name)

    async def restore_logins(self) -> None:
        """Make logins and roles right, once more: a member that stood still may have brought an old change about."""
        for name in self.changed_logins:
            await self.change_password(name, right=True)
            for prefix, write in self.permissions(name):
                await self.raw.permit(name, prefix, write)
        self.changed_logins.clear()

    async def lease_of(self, key: bytes) -> int:
        """Return the lease a key hangs on, 0 for none."""
        kv = await self.raw.get(key)
        return int(kv.lease) if kv is not None else 0

    async def grant(self, ttl: int) -> int:
        """Grant a lease of the checker's own."""
        lease = await self.raw.grant(ttl)
        self.history.foreign.add(lease)
        return lease

    async def caught_up(self) -> dict[bytes, Any]:
        """Return everything in etcd, once the history has heard all of it."""
        async with asyncio.timeout(20):
            while True:
                _, keys = await self.raw.everything()
                seen = {key: change.revision for key, change in self.history.keys.items()}
                if seen == {key: kv.mod_revision for key, kv in keys.items()}:
                    self.history.settle()
                    return keys
                await asyncio.sleep(0.02)

    async def _listen(self) -> None:
        async for change in self.raw.watch(1):
            self.history.take(change)

    async def _look(self, member: int) -> None:
        """Notice a change of the leader: the leases' clocks begin anew with it."""
        while True:
            await asyncio.sleep(_LOOK)
            try:
                status = await self.raw.status(member)
            except grpc.aio.AioRpcError:
                continue
            if status.raftTerm > self.term:
                self.term = status.raftTerm
                self.led_since = time.monotonic()

    # The witness

    async def witness(self, stop: asyncio.Event) -> None:
        """Count up, in the configuration and under the routes at once, and ask every registrar how far it knows.

        What was written before its last proof it must know, whatever fails at the time, and after `wait_revision` all.
        """
        config, key = f"services/ergo/config/global/{WITNESS}".encode(), application_key(WITNESS, "witness@chaos")
        asked: set[asyncio.Task[None]] = set()
        while not stop.is_set():
            count = self._witnessed[-1][1] + 1 if self._witnessed else 1
            route = write_application("witness@chaos", WITNESS, count, 2)
            try:
                revision = await self.raw.put_all([(config, f"int:{count}".encode()), (key, route)])
            except UnreachableError:
                continue
            self.foreign[key] = route
            self._witnessed.append((time.monotonic(), count))
            for registrar in self.registrars.values():
                if registrar.alive and not registrar.stopped and len(asked) < _QUESTIONS:
                    waits = revision if count % _WAITING == 0 else 0
                    asked.add(task := asyncio.create_task(self._question(registrar, waits, count)))
                    task.add_done_callback(asked.discard)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _BEAT)
        await asyncio.gather(*asked)

    async def _question(self, registrar: Registrar, revision: int, count: int) -> None:
        try:
            answer = await registrar.ask("witness", revision=revision)
        except GoneError:
            return
        if "error" in answer:
            return
        surely = count if revision else self._surely(answer["at"] - answer["staleness"])
        self.counts["views proved whole"] += 1
        for where, counted in answer["counted"].items():
            if counted < surely:
                what = f"knows count {counted} of the {where} and should know {surely}"
                registrar.wrong(1, f"{what} {f'after wait_revision({revision})' if revision else answer}")

    def _surely(self, at: float) -> int:
        """Return the last count that was written before a time."""
        return next((count for written, count in reversed(self._witnessed) if written <= at), 0)
