"""The quiet point: all is healed, and within its bound everything must be as it was promised.

What is expected comes from etcd, read by the checker itself, and from what each process was told to publish. The bounds
are those of section 7 of the design. Where they say "plus one reconnect", that is the longest pause of a broken watch
and one try at each endpoint. `SLACK` is for two loaded cores; how long the loops of checker and node did not run at all
is measured and comes on top.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import grpc

from tests.chaos.faults import sweep
from tests.chaos.follower import Stalls
from tests.chaos.history import Violation
from tests.chaos.node import SLACK
from tests.chaos.plan import NODES
from tests.chaos.process import Ended, GoneError, Registrar
from tests.chaos.stage import GRACE, LOGIN_PAUSE, OPTIONS, TTL, Stage
from tests.chaos.wire import (
    ROUTES,
    application_key,
    canonical,
    difference,
    host_of,
    node_key,
    read_application,
    read_routes,
    read_view,
    route_names,
)

RECONNECT = 1.0 + OPTIONS["request_timeout"]
CONVERGE = 2.0 + RECONNECT
REGISTER = 3.0
EXPIRE = TTL + 1.0
ELECTION = 1.0  # seconds that a new leader adds to every lease
_GIVE_UP = 30.0  # seconds beyond which nothing is waited for any more
_LOOK = 0.1  # seconds between two looks


MARKER = 60  # seconds: the lease of a departure marker, which a fault may have kept from being put


class Checker:
    """Judges a stage, and keeps the figures."""

    def __init__(self, stage: Stage) -> None:
        self.longest: dict[str, float] = {}  # what was measured -> the most seconds of it
        self.counts: Counter[str] = Counter()
        self._stage = stage
        self._stalls = Stalls()
        self._faults: set[str] = set()

    @property
    def stalled(self) -> float:
        """Seconds that the own loop did not run."""
        return self._stalls.total

    async def measure(self) -> None:
        """Measure the own loop for as long as this runs."""
        while True:
            await self._stalls.tick()

    async def quiet(self, faults: Iterable[str]) -> list[Violation]:
        """Heal everything, wait until all is well, and return what was wrong before, or took too long."""
        stage = self._stage
        self._faults = set(faults)
        await self._heal()
        healed, stalled = time.monotonic(), self._stalls.total
        seen: dict[str, set[str]] = {name: set() for name in NODES}
        known: dict[str, float] = {}
        wrong = ["nothing was looked at"]
        while wrong and time.monotonic() - healed < _GIVE_UP + max(self._pause(name, healed) for name in NODES):
            await asyncio.sleep(_LOOK)
            keys = await stage.caught_up()
            values = {key: kv.value for key, kv in keys.items()}
            await asyncio.gather(*map(_dump, stage.registrars.values()))
            wrong = self._unlike_published(values)
            for name, registrar in stage.registrars.items():
                expected = read_view(values, registrar.setup.node)
                seen[name].add(canonical(expected))
                differs = _unlike(expected, registrar)
                if not differs or canonical(registrar.last_dump.get("view")) in seen[name]:
                    known.setdefault(name, time.monotonic())
                wrong += differs
            wrong += [f"life {end.life}, ended by {end.how}, has keys" for end in stage.ended if self._stays(end)]
        found = [Violation(1, f"after {time.monotonic() - healed:.1f} s: {line}") for line in wrong[:10]]
        allowance = SLACK + self._stalls.total - stalled
        found += self._late(healed, known, allowance)
        found += await self._wrong_leases()
        found += await self._broken_etcd() if found else []
        self.counts["quiet points"] += 1
        return found + self.collected()

    async def end(self) -> list[Violation]:
        """Let everybody leave. Nothing may be left."""
        stage = self._stage
        await asyncio.gather(*(stage.leave(each) for each in stage.registrars.values() if each.alive))
        began, left = time.monotonic(), {0: (0, set[bytes]())}
        while left and time.monotonic() - began < EXPIRE + SLACK:
            await asyncio.sleep(_LOOK)
            leases = await stage.raw.leases()
            left = {
                lease: (ttl, keys)
                for lease, (ttl, keys) in leases.items()
                if not (keys or ttl == MARKER) or not all(route_names(key)[:1] == ["leaving"] for key in keys)
            }
        keys = await stage.caught_up()
        found = [Violation(7, f"leases are left: {left}")] if left else []
        found += [Violation(4, f"{key!r} is left") for key, kv in keys.items() if kv.lease and b"/leaving/" not in key]
        return found + self.collected() + await self._broken_etcd()

    def collected(self) -> list[Violation]:
        """Return what was found by the way, in the history and by the processes themselves."""
        found = list(self._stage.history.violations)
        self._stage.history.violations.clear()
        for registrar in self._stage.lives:
            found += registrar.violations
            registrar.violations.clear()
        return found

    async def _heal(self) -> None:
        stage = self._stage
        for name in NODES:
            for way in stage.ways(name):
                await way.heal()  # does nothing where nothing is broken
        for registrar in stage.registrars.values():
            if registrar.stopped:
                registrar.go_on()
        for member in stage.etcd.members:
            if member.returncode is not None:
                await member.restart(wait=False)
            else:
                member.resume()
        await stage.etcd.ready()
        await stage.restore_logins()
        await asyncio.gather(*map(stage.start, NODES))
        await sweep(stage)

    # What must be so

    def _unlike_published(self, values: dict[bytes, bytes]) -> list[str]:
        """Compare what stands under the routes with what everybody was told to publish."""
        expected: dict[str, Any] = {repr(key): value for key, value in self._stage.foreign.items()}
        found: dict[str, Any] = {}
        for registrar in self._stage.registrars.values():
            if node := registrar.setup.node:
                expected[repr(node_key(node))] = host_of(registrar.life)
                for name, (weight, state) in registrar.applications.items():
                    expected[repr(application_key(name, node))] = weight, state
        for key, value in values.items():
            if key in self._stage.foreign:
                found[repr(key)] = value
            elif key.startswith(ROUTES.encode()) and route_names(key)[:1] != ["leaving"]:
                found[repr(key)] = _content(value)
        self.counts["comparisons with what was published"] += 1
        missing = [f"etcd has {found.get(key)} at {key} instead of {expected.get(key)}" for key in expected | found]
        return [
            line for line, key in zip(missing, expected | found, strict=True) if expected.get(key) != found.get(key)
        ]

    def _stays(self, end: Ended) -> bool:
        return bool(self._stage.history.keys_of(end.life))

    def _late(self, healed: float, known: dict[str, float], allowance: float) -> list[Violation]:
        """Return what came in the end, and too late."""
        stage, found = self._stage, []
        for name, registrar in stage.registrars.items():
            extra = self._pause(name, healed)
            able = max(healed, registrar.up_at or 0.0)
            since = stage.history.held_since.get(registrar.life)
            if since is not None:
                able = max(able, stage.history.freed.get(registrar.life, 0.0))
                took = since - max(able, stage.led_since)
                found += self._judge(3, f"{name} registered again", took, REGISTER + extra, allowance)
                able = max(able, since)
            if name in known:
                took = known[name] - max(able, stage.led_since)
                limit = CONVERGE + GRACE.get(name, 0.0) + extra
                found += self._judge(1, f"{name} knew all", took, limit, allowance)
        for end in stage.ended:
            gone = stage.history.lost_at.get(end.life, 0.0)
            found += self._judge(4, f"keys gone after {end.how}", gone - end.at, self._due(end), allowance)
        stage.ended.clear()
        return found

    def _due(self, end: Ended) -> float:
        """Return how many seconds after its end the keys of a life may stand.

        A new leader lets every lease begin anew. Without a majority no lease ends. And what was under way in a network,
        or read by a member, that stood still is heard later, and renews the lease of a process that is dead by then.
        """
        stage = self._stage
        times = [end.at + EXPIRE, stage.led_since + ELECTION + EXPIRE, stage.members_back + EXPIRE]
        times.append(stage.ways_back.get(stage.lives[end.life - 1].name, 0.0) + EXPIRE)
        return max(times) - end.at

    def _judge(self, invariant: int, what: str, took: float, limit: float, allowance: float) -> list[Violation]:
        self.counts["bounds"] += 1
        kind = what.split(" ", 1)[1] if invariant != 4 else what
        for label in (kind, *(f"{kind}, with {fault}" for fault in self._faults if invariant == 1)):
            self.longest[label] = max(self.longest.get(label, 0.0), took)
        if took <= limit + allowance:
            return []
        return [
            Violation(invariant, f"{what} {took:.2f} s after it could: {limit:g} s + {allowance:.2f} s are allowed")
        ]

    def _pause(self, name: str, healed: float) -> float:
        """Return for how many seconds a registrar whose login may have been refused does not try again."""
        return max(0.0, LOGIN_PAUSE - (healed - self._stage.refused.get(name, healed - LOGIN_PAUSE)))

    async def _wrong_leases(self) -> list[Violation]:
        """Everything a node published hangs on one lease, with the seconds it asked for."""
        stage, found = self._stage, []
        leases, keys = await stage.raw.leases(), await stage.caught_up()
        for registrar in stage.registrars.values():
            node = registrar.setup.node
            if node is None or node_key(node) not in keys:
                continue
            lease = keys[node_key(node)].lease
            mine = {node_key(node), *(application_key(name, node) for name in registrar.applications)}
            self.counts["leases"] += 1
            if leases.get(lease) != (TTL, mine):
                found.append(Violation(3, f"lease {lease:x} of {node} is {leases.get(lease)}, not {(TTL, mine)}"))
        for lease in stage.spent:
            await stage.raw.revoke(lease)
        stage.spent.clear()
        return found

    async def _broken_etcd(self) -> list[Violation]:
        """Say whether the members differ among themselves: then nothing else that was found means anything."""
        revision, _ = await self._stage.raw.everything()
        try:
            hashes = await self._stage.raw.hashes(revision)
        except grpc.aio.AioRpcError as error:
            return [Violation(0, f"the members could not be compared: {error.details()}")]
        return [Violation(0, f"etcd itself is broken: its members differ, {hashes}")] if len(set(hashes)) > 1 else []


async def _dump(registrar: Registrar) -> None:
    try:
        registrar.last_dump = await registrar.ask("dump")
    except GoneError:
        registrar.last_dump = {"state": "gone", "entered": False}


def _unlike(expected: dict[str, Any], registrar: Registrar) -> list[str]:
    dump = registrar.last_dump
    who = f"{registrar.name}, life {registrar.life}"
    if dump["state"] != "connected" or not dump["entered"]:
        return [f"{who} is {dump['state']}, entered: {dump['entered']}"]
    return [f"{who} knows {line}" for line in difference(expected, dump["view"])]


def _content(value: bytes) -> Any:
    if routes := read_routes(value):
        return routes[0]["host"]
    application = read_application(value)
    return (application["weight"], application["state"]) if application else value
