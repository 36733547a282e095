"""Who is told what: a `Hub` hands events to bounded queues, a `Subscription` is one such queue.

A slow subscriber never blocks anyone. What does not fit into its queue is counted and dropped until it has read what
it has; then it is told `EventsMissed(count)` and goes on with what comes after. So delivered plus missed is exactly
what happened, in order.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self
from weakref import ref

from ergo_registrar.errors import TerminatedError, ValidationError
from ergo_registrar.events import Event, EventsMissed
from ergo_registrar.forks import generation, refuse_copy
from ergo_registrar.stats import Stats

DEFAULT_MAXSIZE = 10_000


class Subscription:
    """Events as they come. An async iterator, and an async context manager that closes itself.

    It begins with the call of `registrar.subscribe`, not with the first read. It ends when the registrar closes or
    when it is closed itself, after what was already queued; it raises `TerminatedError`, with the cause, when the
    registrar died of a bug. Several tasks may read one subscription; each event goes to one of them.
    """

    def __init__(self, hub: "Hub", types: tuple[type, ...], maxsize: int, replay: Iterable[Event] = ()) -> None:
        self._born = generation()
        self._hub = hub
        self._types = types
        self._replay = deque(event for event in replay if not types or isinstance(event, types))
        # What readers wait for: what was told at once is one item, and None only wakes one. What was taken out, and
        # what is told while nobody waits, is in `_ready`, from which it is read. One event has no list around it: with
        # hundreds of registrars in one process, that many lists at a time would wake the garbage collector.
        self._queue: asyncio.Queue[list[Event] | Event | None] = asyncio.Queue()
        self._ready: deque[Event] = deque()
        self._maxsize = maxsize
        self._room = maxsize  # for events, of those that wait in the queue and in `_ready`
        self._readers = 0  # how many wait for the queue
        self._missed = 0
        self._ended = False
        self._cause: BaseException | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self._take()
        if event is None:
            raise StopAsyncIteration
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def get(self) -> Event:
        """Return the next event, waiting for it. Cancelling it loses no event.

        Raises:
            TerminatedError: the subscription has ended and everything in it was read; with a cause, when the
                registrar died of a bug.
        """
        event = await self._take()
        if event is None:
            raise TerminatedError("this subscription has ended, and everything in it was read")
        return event

    def get_nowait(self) -> Event:
        """Return the next event, or raise `asyncio.QueueEmpty` when there is none now; else as `get`."""
        refuse_copy(self._born)
        event = self._next()
        if event is not None:
            return event
        if not self._ended:
            raise asyncio.QueueEmpty
        self._raise_cause()
        raise TerminatedError("this subscription has ended, and everything in it was read")

    def close(self) -> None:
        """End the subscription. What was queued can still be read. Idempotent."""
        self._hub.remove(self)
        self._end(None)

    @property
    def missed(self) -> int:
        """How many events were dropped since the last `EventsMissed`."""
        return self._missed

    def qsize(self) -> int:
        """Return how many events wait to be read."""
        return len(self._replay) + self._maxsize - self._room + (self._missed > 0)

    def __repr__(self) -> str:
        names = ", ".join(t.__name__ for t in self._types) or "every event"
        return f"<Subscription to {names}: {self.qsize()} waiting, {self._missed} missed>"

    async def _take(self) -> Event | None:
        """Return the next event, None at the end."""
        refuse_copy(self._born)
        while (event := self._next()) is None:
            if self._ended:
                self._wake()  # the next reader must not wait either
                self._raise_cause()
                return None
            self._readers += 1
            try:
                self._took(await self._queue.get())
            finally:
                self._readers -= 1
        return event

    def _next(self) -> Event | None:
        if self._replay:
            return self._replay.popleft()
        while not self._ready:
            if self._queue.empty():
                return self._tell_missed()
            self._took(self._queue.get_nowait())
        event = self._ready.popleft()
        self._room += 1
        if self._readers and (self._ready or self._missed or self._ended):
            self._wake()  # others wait for what comes behind this event
        return event

    def _took(self, item: list[Event] | Event | None) -> None:
        if isinstance(item, list):
            self._ready.extend(item)
        elif item is not None:
            self._ready.append(item)

    def _tell_missed(self) -> EventsMissed | None:
        if not self._missed:
            return None
        missed, self._missed = EventsMissed(count=self._missed), 0
        return missed

    def _put(self, events: list[Event]) -> int:
        """Queue those that are wanted; return how many of them had to be dropped."""
        if self._types:
            events = [event for event in events if isinstance(event, self._types)]
        room = 0 if self._missed else self._room  # what follows a missed one is missed until that was told
        missed = len(events) - room
        if missed > 0:
            self._missed += missed
            events = events[:room]
        if events:
            self._room -= len(events)
            if self._readers or not self._queue.empty():
                self._queue.put_nowait(events if len(events) > 1 else events[0])
            else:
                self._ready.extend(events)
        return max(0, missed)

    def _end(self, cause: BaseException | None) -> None:
        if not self._ended:
            self._ended = True
            self._cause = cause
            self._wake()

    def _wake(self) -> None:
        if self._queue.empty():  # someone may be waiting; with anything in it, nobody is
            self._queue.put_nowait(None)

    def _raise_cause(self) -> None:
        if self._cause is not None:
            raise TerminatedError(f"the registrar died of a bug: {self._cause!r}") from self._cause


class Hub:
    """Hands every event to every subscription that wants it."""

    def __init__(self, stats: Stats) -> None:
        self._subscriptions: dict[ref[Subscription], None] = {}  # one that nobody holds any more goes by itself
        self._stats = stats

    def subscribe(self, types: Sequence[Any], maxsize: object, replay: Iterable[Event] = ()) -> Subscription:
        """Return a new subscription to events of these types, to all of them when there are none."""
        for kind in types:
            if not (isinstance(kind, type) and kind.__module__ == EventsMissed.__module__):
                raise ValidationError("event_types", kind, "must be event classes, such as NodeJoined")
        if not isinstance(maxsize, int) or isinstance(maxsize, bool) or maxsize < 1:
            raise ValidationError("maxsize", maxsize, "must be a whole number of events, at least 1")
        subscription = Subscription(self, tuple(types), maxsize, replay)
        self._subscriptions[ref(subscription, self._forget)] = None
        return subscription

    def _forget(self, gone: ref[Subscription]) -> None:
        self._subscriptions.pop(gone, None)

    def remove(self, subscription: Subscription) -> None:
        """Forget a subscription. Idempotent."""
        self._forget(ref(subscription))

    def publish(self, events: list[Event]) -> None:
        """Hand out events, in order. Whatever they tell of must be committed before. Never blocks."""
        stats = self._stats
        stats.events_published += len(events)
        by_type = stats.events_by_type
        for event in events:
            name = type(event).__name__
            by_type[name] = by_type.get(name, 0) + 1
        for reference in tuple(self._subscriptions):
            subscription = reference()
            if subscription is not None:
                stats.events_missed += subscription._put(events)

    def end(self, cause: BaseException | None = None) -> None:
        """End every subscription; with a cause, they raise it once they are read to the end."""
        for reference in tuple(self._subscriptions):
            subscription = reference()
            if subscription is not None:
                subscription._end(cause)
        self._subscriptions.clear()
