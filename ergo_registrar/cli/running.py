"""How a command runs: a coroutine, until it is done or a signal asks it to end."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import anyio
import typer

from ergo_registrar.cli.output import complain
from ergo_registrar.errors import RegistrarError, ValidationError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(work: Callable[[], Awaitable[None]]) -> int | None:
    """Run `work` to its end. A SIGINT or SIGTERM cancels it, and waits until it has put everything away.

    Returns:
        The number of the signal that ended it, None when it came to its end by itself.

    Raises:
        typer.Exit: with 1, when `work` raised a `RegistrarError`; what it says is on standard error. With 2, when it
            refused a value.
    """
    try:
        return anyio.run(_until_signalled, work)
    except RegistrarError as error:
        complain(str(error))
        raise typer.Exit(2 if isinstance(error, ValidationError) else 1) from None


def run_to_end(work: Callable[[], Awaitable[None]]) -> None:
    """Run what is to come to its end, as `run`; raise `typer.Exit` with 128 + N if signal N ended it before."""
    ended_by = run(work)
    if ended_by is not None:
        raise typer.Exit(128 + ended_by)


async def _until_signalled(work: Callable[[], Awaitable[None]]) -> int | None:
    received: list[int] = []
    scope = anyio.CancelScope()
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        received.append(number)
        scope.cancel()

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stop, number)

    with _handled(on_signal), scope:
        await work()
    return received[0] if received and scope.cancelled_caught else None


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handler` have the signals. Unlike a loop's own handlers this works on Windows too."""
    before = [(number, signal.signal(number, handler)) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, previous in before:
            signal.signal(number, previous)
