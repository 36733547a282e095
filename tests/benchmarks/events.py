"""What a burst costs: 20,000 application routes change, until the last event is in a subscriber's hands.

The row of the goal begins where the watch hands over: keys and values are there, and what is measured is decoding, the
mirror, the events, and a subscriber that takes each of them. They come as etcd tells of a burst, many revisions in an
answer. Beside it: one revision in each answer; and from the bytes of the answers on, as gRPC hands them to protobuf.

The yardstick is the least that Python can do with such a change: base64 and its numbers decoded, and into a queue and
out. CPU time is counted, in turns, each on a view of its own.
"""

import asyncio
import binascii
import gc
import struct
import time
from collections.abc import Awaitable, Callable

from aetcd import rpc

from ergo_registrar import ApplicationMode, ApplicationRoute, ApplicationState, Options
from ergo_registrar.core.edf import encode_application_route
from ergo_registrar.core.keys import application_key, routes_prefix
from ergo_registrar.core.records import Record
from ergo_registrar.etcd.watch import Change, _changes
from ergo_registrar.stats import Stats
from ergo_registrar.subscription import Hub, Subscription
from ergo_registrar.view import View
from tests.benchmarks.report import Figure
from tests.benchmarks.setting import Setting

ROW = "a burst of 20,000 application routes"
GOAL = 120_000.0  # events a second, of one core
EVENTS = 20_000
IN_AN_ANSWER = 200  # revisions
NODES = 1000
CLUSTER = "bench"
PREFIX = routes_prefix(CLUSTER)
TAIL = struct.Struct(">qqi")

Burst = list[list[Change]]
"""The changes of one answer after the other."""


def measure(setting: Setting) -> tuple[list[Figure], dict[str, str]]:
    """Measure the burst in all its forms."""
    seconds = asyncio.run(_measure(setting.rounds))
    least = seconds["the least"]
    figures = []
    for name, taken in seconds.items():
        rates = [EVENTS / each for each in taken]
        goal = GOAL if name == "burst" else None
        figures.append(Figure(row=ROW, name=name, unit="events/s", rounds=rates, goal=goal, better="higher"))
        if name != "the least":
            ratios = [each / floor for each, floor in zip(taken, least, strict=True)]
            figures.append(Figure(row=ROW, name=f"{name}, x the least", unit="x", rounds=ratios, relative=True))
    return figures, {}


async def _measure(rounds: int) -> dict[str, list[float]]:
    changes = _population()
    burst = [changes[at : at + IN_AN_ANSWER] for at in range(0, EVENTS, IN_AN_ANSWER)]
    single = [[change] for change in changes]
    answers = [_answer(part).SerializeToString() for part in burst]
    forms: dict[str, Callable[[], Awaitable[float]]] = {
        "burst": lambda: _through_the_view(burst),
        "burst, a revision in each answer": lambda: _through_the_view(single),
        "burst, from the bytes of the answers": lambda: _from_bytes(answers),
        "the least": lambda: _least(changes),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    gc.freeze()  # what was made to be measured with is no load of what is measured
    for _ in range(rounds):
        for name, form in forms.items():
            gc.collect()
            seconds[name].append(await form())
    gc.unfreeze()
    return seconds


def _population() -> list[Change]:
    changes: list[Change] = []
    for number in range(EVENTS):
        node, name = f"node{number % NODES}@host{number % NODES}.example.com", f"app{number // NODES}"
        route = ApplicationRoute(
            node, name, 1 + number % 5, ApplicationMode.PERMANENT, ApplicationState(1 + number % 3)
        )
        revision = number + 2
        key, value = application_key(CLUSTER, name, node), encode_application_route(route)
        changes.append((revision, [Record(key, value, revision, revision, 1 + number % NODES)]))
    return changes


def _answer(changes: list[Change]) -> "rpc.WatchResponse":
    answer = rpc.WatchResponse(watch_id=1)
    for _, records in changes:
        for record in records:
            kv = answer.events.add().kv
            kv.key, kv.value, kv.lease = record.key, record.value, record.lease
            kv.create_revision, kv.mod_revision = record.create_revision, record.mod_revision
    return answer


def _empty_view() -> tuple[View, Subscription]:
    hub = Hub(Stats())
    view = View(Options(cluster=CLUSTER), hub, Stats())
    view.listed(1, {prefix: [] for prefix in view.prefixes}, 0.0)
    return view, hub.subscribe((), EVENTS)


async def _through_the_view(burst: Burst) -> float:
    view, subscription = _empty_view()
    began = time.process_time()
    for changes in burst:
        view.changed(PREFIX, changes)
    return await _read_to_the_end(subscription, began)


async def _from_bytes(answers: list[bytes]) -> float:
    view, subscription = _empty_view()
    began = time.process_time()
    for data in answers:
        answer = rpc.WatchResponse.FromString(data)
        view.changed(PREFIX, _changes(answer.header.revision, answer.events))
    return await _read_to_the_end(subscription, began)


async def _read_to_the_end(subscription: Subscription, began: float) -> float:
    for _ in range(EVENTS):
        await subscription.get()
    seconds = time.process_time() - began
    assert (subscription.qsize(), subscription.missed) == (0, 0)
    return seconds


async def _least(changes: list[Change]) -> float:
    queue = asyncio.Queue[object](EVENTS)
    began = time.process_time()
    for _, records in changes:
        for record in records:
            edf = binascii.a2b_base64(record.value or b"")
            queue.put_nowait((record.key, TAIL.unpack_from(edf, len(edf) - TAIL.size)))
    for _ in range(EVENTS):
        await queue.get()
    return time.process_time() - began
