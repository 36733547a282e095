"""Cancelled at any await: a call is given up after every step of the event loop that it takes, one after the other.

A step is one round of the loop, and the loop goes round only when there is something to do. Whatever a call waits for,
and whatever has come and was not seen yet, there is a step at which the cancellation meets it. A call takes some 10 to
80 steps, so none need be left out.
"""

import asyncio
import dataclasses
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import anyio
import pytest

from ergo_registrar import NodeJoined, Options, Registrar, State
from ergo_registrar.core.edf import decode_application_route
from tests.integration.support import NO_ROUTES, Raw, eventually, next_event, running

Make = Callable[..., Awaitable[Registrar]]
How = Literal["once", "again and again", "by a scope"]

MANY = [running(f"app{n}", "a@h") for n in range(120)]  # more than one transaction takes
LATE = 3  # so often a cancellation must have come too late: a call does not always take the same steps


@pytest.fixture(params=["once", "again and again", "by a scope"])
def how(request: pytest.FixtureRequest) -> How:
    """How it is cancelled: by asyncio, once or after each step from then on, or by a scope of anyio's."""
    how: How = request.param
    return how


@pytest.fixture
def registrar_options(registrar_options: Options) -> Options:
    """Options with a lease that does not end by itself before a story has looked."""
    return dataclasses.replace(registrar_options, lease_ttl=60)


@contextmanager
def after(step: int, then: Callable[[], object], *, again: bool = False) -> Iterator[None]:
    """Do something after so many rounds of the loop, counted from here, and `again` after each round behind that."""
    loop: Any = asyncio.get_running_loop()
    once = loop._run_once
    rounds = itertools.count(1)

    def run_once() -> None:
        once()
        count = next(rounds)
        if count == step or (again and count > step):
            then()

    loop._run_once = run_once
    try:
        yield
    finally:
        del loop._run_once


@dataclasses.dataclass
class Cancellation:
    """One that comes after so many steps of a call."""

    step: int
    how: How
    came: bool = False  # before the call was done

    async def meets(self, call: Callable[[], Awaitable[None]]) -> bool:
        """Make a call, and cancel it; return whether it raised that."""
        if self.how == "by a scope":
            with anyio.CancelScope() as scope, after(self.step, scope.cancel):
                await call()
            self.came = scope.cancel_called
            return scope.cancelled_caught
        task = asyncio.ensure_future(call())
        with after(self.step, lambda: self._cancel(task), again=self.how == "again and again"):
            await asyncio.wait({task})
        if not task.cancelled():
            task.result()
        return task.cancelled()

    def _cancel(self, task: asyncio.Future[None]) -> None:
        self.came |= task.cancel()


async def at_every_step(how: How, story: Callable[[Cancellation], Awaitable[None]], *, stride: int = 1) -> None:
    """Tell a story with a cancellation after one step, after two and so on, until it comes too late.

    With a `stride` it leaves out steps between, and begins at a random one: pytest-randomly's seed brings that back.
    """
    late = 0
    for step in itertools.count(random.randint(1, stride), stride):
        print("cancelled after step", step)
        cancellation = Cancellation(step, how)
        await story(cancellation)
        late += not cancellation.came
        if late == LATE:
            assert step > 2 * LATE * stride, "it never came in time"
            return


class Traces:
    """What `a@h` may leave in etcd and in this process."""

    def __init__(self, raw: Raw, routes: str) -> None:
        self._raw = raw
        self._routes = routes
        self._leases: set[int] = set()
        self._tasks = 0

    async def remember(self) -> None:
        """Take what there is now for what may be left."""
        self._leases, self._tasks = await self._raw.leases(), len(asyncio.all_tasks())

    async def are_gone(self) -> None:
        """Fail if there is a key, a lease or a task more than there may be, but for a departure marker."""
        found = await self._raw.under(self._routes)
        assert all(key.startswith(f"{self._routes}leaving/") for key in found)
        assert await self._raw.leases() - self._leases <= {key.lease for key in found.values()}
        await self.tasks_are_gone()

    async def tasks_are_gone(self) -> None:
        await eventually(lambda: len(asyncio.all_tasks()) <= self._tasks, within=1)


@pytest.fixture
async def traces(raw: Raw, routes: str) -> Traces:
    traces = Traces(raw, routes)
    await traces.remember()
    return traces


async def test_a_register_that_is_cancelled_leaves_nothing(
    registrar_options: Options, traces: Traces, how: How
) -> None:
    """The user sees a registrar that is `NEW`, and enters it again; etcd holds nothing of the first time."""

    async def story(cancellation: Cancellation) -> None:
        registrar = Registrar(registrar_options)
        if await cancellation.meets(lambda: registrar.register("a@h", applications=MANY)):
            assert registrar.state is State.NEW
            await traces.are_gone()
            await registrar.register("a@h")
        assert registrar.state is State.CONNECTED
        await registrar.close()
        await traces.are_gone()

    await at_every_step(how, story)


async def test_an_observer_whose_register_is_cancelled_goes_on(
    make_registrar: Make, raw: Raw, routes: str, traces: Traces, how: How
) -> None:
    """The user sees an observer that is `CONNECTED` and told of what happens; etcd holds nothing of the member."""

    async def story(cancellation: Cancellation) -> None:
        observer = await make_registrar()
        await observer.wait_revision(await raw.revision())  # all its tasks run
        await traces.remember()
        if await cancellation.meets(lambda: observer.register("a@h", applications=MANY)):
            await traces.are_gone()
            async with observer.subscribe(NodeJoined) as joined:
                await raw.put(f"{routes}nodes/b@h", NO_ROUTES)
                assert (await next_event(joined)).name == "b@h"
                await raw.delete(f"{routes}nodes/b@h")
        assert observer.state is State.CONNECTED
        await observer.close()

    await at_every_step(how, story, stride=3)


async def test_a_close_that_is_cancelled_goes_on_to_its_end(
    registrar_options: Options, traces: Traces, how: How
) -> None:
    """The user sees the cancellation after a registrar that is `CLOSED`; etcd holds nothing of it."""

    async def story(cancellation: Cancellation) -> None:
        registrar = Registrar(registrar_options, node="a@h", applications=MANY)
        await registrar.__aenter__()
        raised = await cancellation.meets(registrar.close)
        assert raised == (cancellation.came and how != "by a scope")  # a scope's comes with the next await
        assert registrar.state is State.CLOSED
        await traces.are_gone()

    await at_every_step(how, story)


@pytest.mark.parametrize("watch", ["quick", "slow"])
@pytest.mark.parametrize("published", [False, True])
async def test_a_change_of_an_application_that_is_cancelled_is_taken_back(
    make_registrar: Make,
    raw: Raw,
    routes: str,
    traces: Traces,
    how: How,
    published: bool,
    watch: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The user sees, in etcd and here, what there was before, be it published or withdrawn."""
    registrar = await make_registrar("a@h")
    await registrar.wait_revision(await raw.revision())  # all its tasks run
    await traces.remember()
    if watch == "slow":  # so that the call still waits for it when the change stands in etcd
        later, changed = asyncio.get_running_loop().call_later, registrar._runner.changed
        monkeypatch.setattr(registrar._runner, "changed", lambda *change: later(0.02, changed, *change))

    async def publish() -> None:
        await registrar.register_application_route(running("web", "a@h"))

    async def withdraw() -> None:
        await registrar.unregister_application_route("web")

    async def is_as_before() -> bool:
        return bool(await raw.under(f"{routes}applications/")) == published

    async def story(cancellation: Cancellation) -> None:
        await (publish if published else withdraw)()
        if await cancellation.meets(withdraw if published else publish):
            await eventually(is_as_before)
        else:
            assert not await is_as_before()
        await traces.tasks_are_gone()

    await at_every_step(how, story)


@pytest.mark.parametrize("drained", [False, True])
async def test_a_drain_or_its_end_that_is_cancelled_is_taken_back(
    make_registrar: Make, raw: Raw, routes: str, traces: Traces, how: How, drained: bool
) -> None:
    """The user sees the weight of before, and the one to come back to is not forgotten."""
    registrar = await make_registrar("a@h", applications=[running("web", "a@h", 5)])
    await registrar.wait_revision(await raw.revision())  # all its tasks run
    await traces.remember()

    async def weight() -> int:
        stored = await raw.get(f"{routes}applications/web/a@h")
        assert stored is not None
        return decode_application_route(stored.value).weight

    async def is_as_before() -> bool:
        return await weight() == (-1 if drained else 5)

    async def story(cancellation: Cancellation) -> None:
        await (registrar.drain if drained else registrar.undrain)("web")
        assert await is_as_before()
        if await cancellation.meets(lambda: (registrar.undrain if drained else registrar.drain)("web")):
            await eventually(is_as_before)
        else:
            assert not await is_as_before()
        await registrar.undrain("web")
        assert await weight() == 5
        await traces.tasks_are_gone()

    await at_every_step(how, story)
