"""Finish what must not be left half done, although the caller is being cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


def cancelled() -> bool:
    """Whether the current task was asked to end. Other things raise CancelledError too: a channel that closes."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end and return what it returns; a cancellation meanwhile is raised after that.

    `work` needs a deadline of its own. It runs in a task of its own, so that neither asyncio's cancellation, which
    comes once, nor anyio's, which comes again at every await, reaches it.
    """
    task = asyncio.ensure_future(work)
    asked: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as error:
                asked = error
    if asked is not None:
        task.exception()  # it had its chance; the cancellation is what the caller must see
        raise asked
    return task.result()
