"""Finish what must not be left half done, although the caller is being cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

T = TypeVar("T")


async def was_cancelled() -> bool:
    """Say, of a CancelledError just caught, whether the current task was asked to end.

    A channel that closes under a call raises it as well: then False. And where an anyio scope asked, grpc.aio puts an
    error of its own in the place of the scope's, which the scope would not know: then this raises the scope's.
    """
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        return False
    await anyio.lowlevel.checkpoint_if_cancelled()
    return True


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
