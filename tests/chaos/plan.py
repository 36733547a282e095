"""What goes wrong, and when: a story drawn from a seed, in chapters. Pure.

A chapter is some steps that overlap, each a fault with what it hits and for how long, or a deed of daily life. At its
end everything is healed, and it is quiet until the checker is satisfied. A story is told to the end of a chapter, can
be kept as JSON, played again, and shortened.
"""

import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

MEMBERS = ("a@chaos", "b@chaos", "c@chaos", "d@chaos")
OBSERVER = "observer"
NODES = (*MEMBERS, OBSERVER)
APPLICATIONS = ("web", "db", "cache")
FOREIGN_APPLICATIONS = ("burst", "ghost")
ITEMS = ("item0", "item1", "item2")
ETCD_MEMBERS = 3

_HOLDS = (0.2, 1.5), (1.5, 2.8), (3.2, 4.8)  # seconds: the last is longer than a lease lives without its holder
_JUNK = ("nodes/", "nodes/two/parts", "nodes/ghost@chaos", "applications/web", "leaving/ghost@chaos", "else/where", "")
_BYTES = ("", "00", "ff", "67674168", "7b7d", "67674168" * 400)  # in hex; the fourth begins like a route
_VALUES = ("text", "int:7", "int:seven", "bool:true", "bool:false", "", "hex:ff")


class Step(msgspec.Struct, frozen=True):
    """One fault or deed: from when in the chapter, what, to whom, for how many seconds, and how exactly."""

    at: float
    fault: str
    target: str
    hold: float = 0.0
    details: dict[str, Any] = {}

    def __str__(self) -> str:
        how = "".join(f", {name} {value!r:.40}" for name, value in self.details.items() if value is not None)
        held = f" for {self.hold:g} s" if self.hold else ""
        return f"at {self.at:g} s: {self.fault} {self.target}{held}{how}"


Chapter = tuple[Step, ...]


class Story(msgspec.Struct, frozen=True):
    """All that was played. `seed` is where it came from, of which a shortened one is only a part."""

    seed: int
    chapters: tuple[Chapter, ...]

    def __str__(self) -> str:
        lines = [f"story of seed {self.seed}, {sum(map(len, self.chapters))} steps"]
        for number, chapter in enumerate(self.chapters, start=1):
            lines += [f"  chapter {number}:", *(f"    {step}" for step in chapter), "    then all is healed"]
        return "\n".join(lines)


def chapters(seed: int) -> Iterator[Chapter]:
    """Yield one chapter after the other, without end, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        faults = [_draw(rng, _weighted(rng, FAULTS)) for _ in range(rng.choice((1, 1, 2, 2, 3)))]
        end = max(step.at + step.hold for step in faults)
        faults = [_lasting(step, end) if rng.random() < 0.5 else step for step in faults]
        struck = [step.target for step in faults if step.target in MEMBERS]
        deeds = [_deed(rng, struck, end) for _ in range(rng.randint(2, 6))]
        yield tuple(sorted(_compatible([*faults, *deeds]), key=lambda step: step.at))


def _lasting(step: Step, end: float) -> Step:
    """Let a fault that lasts do so to the end of the chapter, so that all is well again everywhere at once."""
    return msgspec.structs.replace(step, hold=round(end - step.at, 2)) if step.hold else step


def _deed(rng: random.Random, struck: list[str], end: float) -> Step:
    """Draw a deed at any time before the end, rather of one whom a fault strikes."""
    step = _draw(rng, _weighted(rng, _DEEDS))
    target = rng.choice(struck) if struck and rng.random() < 0.5 else step.target
    return msgspec.structs.replace(step, at=round(rng.uniform(0, end), 2), target=target)


def _compatible(steps: list[Step]) -> list[Step]:
    """Keep only the first of several steps that would undo each other, such as two faults of etcd's processes."""
    kept: list[Step] = []
    for step in steps:
        group = category(step.fault)
        twice = group in ("member", "authentication") and any(category(other.fault) == group for other in kept)
        if not twice:
            kept.append(step)
    return kept


def category(fault: str) -> str:
    """Return what kind of fault a step is; "daily life" for a deed."""
    return _CATEGORIES[fault]


def _weighted(rng: random.Random, kinds: dict[str, int]) -> str:
    return rng.choices(list(kinds), list(kinds.values()))[0]


def _hold(rng: random.Random) -> float:
    return round(rng.uniform(*rng.choice(_HOLDS)), 2)


def _draw(rng: random.Random, fault: str) -> Step:
    at = round(rng.uniform(0, 1.5), 2)
    target, details = _DRAW[fault](rng)
    lasts = fault not in ("compact", "cut") and category(fault) not in ("lease", "daily life")
    hold = _hold(rng) if lasts or fault == "compact" else 0.0
    return Step(at, fault, target, hold, details)


Drawn = tuple[str, dict[str, Any]]


def _way(rng: random.Random) -> Drawn:
    """Between a node and one member of etcd, or all."""
    return rng.choice(NODES), {"member": rng.choice((None, None, *range(ETCD_MEMBERS)))}


def _slow_way(rng: random.Random) -> Drawn:
    target, details = _way(rng)
    return target, details | {"seconds": round(rng.uniform(0.02, 0.6), 2)}


def _narrow_way(rng: random.Random) -> Drawn:
    target, details = _way(rng)
    return target, details | {"rate": rng.choice((1_000, 5_000, 20_000))}


def _node(rng: random.Random) -> Drawn:
    return rng.choice(NODES), {}


def _member(rng: random.Random) -> Drawn:
    return rng.choice(MEMBERS), {}


def _of_etcd(rng: random.Random) -> Drawn:
    return rng.choice(("leader", "leader", "follower")), {}


def _two_of_etcd(rng: random.Random) -> Drawn:
    return "two members", {"how": rng.choice(("kill", "pause"))}


def _prefix(rng: random.Random) -> Drawn:
    return rng.choice(NODES), {"prefix": rng.choice(("routes", "routes", "config"))}


def _lease_of(rng: random.Random) -> str:
    return rng.choice(("none", "own", "foreign"))


def _garbled(rng: random.Random) -> Drawn:
    return rng.choice(MEMBERS), {"lease": _lease_of(rng), "hex": rng.choice((None, *_BYTES))}


def _garbled_application(rng: random.Random) -> Drawn:
    target, details = _garbled(rng)
    return target, details | {"application": rng.choice(APPLICATIONS)}


def _stolen(rng: random.Random) -> Drawn:
    return rng.choice(MEMBERS), {"let_go": rng.choice(("revoke", "expire"))}


def _junk(rng: random.Random) -> Drawn:
    return "routes", {"keys": rng.sample(_JUNK, 3), "hex": rng.choice(_BYTES)}


def _burst(rng: random.Random) -> Drawn:
    return "routes", {"count": rng.choice((5, 30, 100))}


def _item(rng: random.Random) -> Drawn:
    value = rng.choice((None, *_VALUES))
    return rng.choice(MEMBERS), {"level": rng.randint(1, 4), "item": rng.choice(ITEMS), "value": value}


def _published(rng: random.Random) -> Drawn:
    weight = rng.choice((1, -1)) if rng.random() < 0.2 else rng.randint(2, 99)
    return rng.choice(MEMBERS), {
        "application": rng.choice(APPLICATIONS),
        "weight": weight,
        "state": rng.choice((1, 2, 2, 3)),
    }


def _withdrawn(rng: random.Random) -> Drawn:
    return rng.choice(MEMBERS), {"application": rng.choice(APPLICATIONS)}


# Every kind: what it belongs to, how often it is drawn, and what it is drawn with.
_KINDS: dict[str, tuple[str, int, Callable[[random.Random], Drawn]]] = {
    "cut": ("network", 2, _way),
    "refuse": ("network", 4, _way),
    "black_hole": ("network", 5, _way),
    "delay": ("network", 2, _slow_way),
    "throttle": ("network", 2, _narrow_way),
    "kill": ("process", 4, _node),
    "stop": ("process", 4, _node),
    "block": ("process", 3, _node),
    "leave": ("process", 3, _node),
    "kill_member": ("member", 4, _of_etcd),
    "pause_member": ("member", 4, _of_etcd),
    "lose_majority": ("member", 2, _two_of_etcd),
    "forget_tokens": ("member", 2, _of_etcd),
    "revoke": ("lease", 4, _member),
    "compact": ("compaction", 6, _node),
    "change_password": ("authentication", 2, _node),
    "forbid": ("authentication", 3, _prefix),
    "delete_node": ("foreign writes", 2, _member),
    "delete_application": ("foreign writes", 2, _withdrawn),
    "garble_node": ("foreign writes", 3, _garbled),
    "garble_application": ("foreign writes", 3, _garbled_application),
    "steal": ("foreign writes", 4, _stolen),
    "junk": ("foreign writes", 2, _junk),
    "burst": ("foreign writes", 3, _burst),
    "configure": ("daily life", 4, _item),
    "publish": ("daily life", 5, _published),
    "withdraw": ("daily life", 2, _withdrawn),
}
_CATEGORIES = {fault: kind for fault, (kind, _, _) in _KINDS.items()}
_DRAW = {fault: draw for fault, (_, _, draw) in _KINDS.items()}
FAULTS = {fault: often for fault, (kind, often, _) in _KINDS.items() if kind != "daily life"}
_DEEDS = {fault: often for fault, (kind, often, _) in _KINDS.items() if kind == "daily life"}


# Shortening


def shorter(story: Story) -> Iterator[Story]:
    """Yield stories with less in them, those first that leave out most: single chapters, then parts of the steps."""
    if len(story.chapters) > 1:
        for chapter in reversed(story.chapters):
            yield Story(story.seed, (chapter,))
    steps = [(number, step) for number, chapter in enumerate(story.chapters) for step in chapter]
    size = (len(steps) + 1) // 2
    while size and len(steps) > 1:
        for start in range(0, len(steps), size):
            yield _of_steps(story, steps[:start] + steps[start + size :])
        size = size // 2


def _of_steps(story: Story, steps: list[tuple[int, Step]]) -> Story:
    numbered: dict[int, list[Step]] = {}
    for number, step in steps:
        numbered.setdefault(number, []).append(step)
    return Story(story.seed, tuple(map(tuple, numbered.values())))


async def shortest(story: Story, fails: Callable[[Story], Awaitable[bool]], more_time: Callable[[], bool]) -> Story:
    """Return a story that fails and of which, as far as time allows to try, no part fails by itself."""
    found = True
    while found:
        found = False
        for candidate in shorter(story):
            if not more_time():
                return story
            if await fails(candidate):
                story, found = candidate, True
                break
    return story
