"""A subscriber that never reads: it costs the room of its queue, and nobody else notices."""

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable

from ergo_registrar import ApplicationUpdated, EventsMissed, Registrar
from ergo_registrar.core.edf import encode_application_route
from tests.integration.support import Raw, running, waiting

Make = Callable[..., Awaitable[Registrar]]

APPLICATIONS, CHANGES = 100, 200  # 20,000 events
ROOM = 500


async def test_one_that_never_reads_keeps_what_has_room_and_holds_up_nobody(
    make_registrar: Make, raw: Raw, routes: str
) -> None:
    """20,000 events: `maxsize` are kept and the others counted, exactly; a reader beside it hears all, in order."""
    observer = await make_registrar()
    idle = observer.subscribe(ApplicationUpdated, maxsize=ROOM)
    heard = dict.fromkeys((f"app{n}" for n in range(APPLICATIONS)), 0)

    async def read() -> None:
        async with observer.subscribe(ApplicationUpdated) as events:
            async for event in events:
                assert isinstance(event, ApplicationUpdated)
                assert event.weight == heard[event.name] + 1
                heard[event.name] = event.weight
                if all(weight == CHANGES for weight in heard.values()):
                    return

    reading = asyncio.create_task(read())
    gc.collect()
    before = sys.getallocatedblocks()
    for weight in range(CHANGES + 1):
        await raw.put_many(
            (f"{routes}applications/{name}/a@h", encode_application_route(running(name, "a@h", weight)))
            for name in heard
        )
    await asyncio.wait_for(reading, 30)
    gc.collect()
    assert sys.getallocatedblocks() - before < APPLICATIONS * CHANGES  # each event is more than one block
    missed = APPLICATIONS * CHANGES - ROOM
    assert idle.missed == observer.stats.events_missed == missed
    *kept, last = waiting(idle)
    assert [(event.name, event.weight) for event in kept] == [
        (name, weight) for weight in range(1, 6) for name in sorted(heard)
    ]
    assert last == EventsMissed(count=missed)
