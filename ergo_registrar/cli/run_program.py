"""The life of a program that `ergo-registrar run` registers: started, published, drained, told to stop, taken out.

    claim the name -> start the program -> publish its applications -> asked to stop: drain, pass it on -> ended: leave

The program comes first. What etcd does never ends it, and its own end is never waited for longer than it takes.
"""

import asyncio
import errno
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from types import FrameType

import anyio
import anyio.abc

from ergo_registrar import (
    ApplicationRoute,
    ConnectionFailedError,
    NoRouteError,
    Options,
    Registrar,
    RegistrarConnected,
    RegistrarDisconnected,
    Route,
    children,
)
from ergo_registrar.cli.output import complain, say_nothing_of_the_session
from ergo_registrar.cli.running import handled

_RETRY = 1.0  # seconds until what etcd did not take is published again
_PROBE = 0.1  # seconds between two tries to connect to the program
_PROBE_TIMEOUT = 1.0  # seconds for one
_PATIENCE = 5.0  # seconds until somebody is told that the program accepts no connections
_GOES_ON = "The program goes on; still trying"
_KILL_AFTER = 5.0  # seconds from SIGTERM to SIGKILL, should a bug of ours end its registration


def _known(*names: str) -> list[signal.Signals]:
    return [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has few


_STOPS = _known("SIGTERM", "SIGINT", "SIGQUIT")
_OTHERS = _known("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH")


class CannotStartError(Exception):
    """The program cannot be started; `exit_code` is what shells report for that."""

    def __init__(self, name: str, why: str, exit_code: int) -> None:
        super().__init__(f"{name}: {why}")
        self.exit_code = exit_code


def find(command: Sequence[str]) -> list[str]:
    """Return the command with the path of its program. Raise `CannotStartError`."""
    name, *arguments = command
    path = shutil.which(name)
    if path is None:
        if shutil.which(name, mode=os.F_OK) or (os.path.dirname(name) and os.path.exists(name)):  # noqa: PTH110, PTH120  # text, as shells look at it
            raise CannotStartError(name, "it may not be executed", 126)
        raise CannotStartError(name, "there is no such program", 127)
    return [path, *arguments]


class Life:
    """One program, from its start to its end."""

    def __init__(
        self,
        command: Sequence[str],
        node: str,
        routes: Iterable[Route],
        applications: Iterable[ApplicationRoute],
        drain_time: float,
        ready_tcp: bool,
    ) -> None:
        self.exit_code: int | None = None  # once it ended
        self._command = command
        self._node = node
        self._routes = list(routes)
        self._applications = list(applications)
        self._drain_time = drain_time
        self._ready_tcp = ready_tcp
        self._early: list[int] | None = []  # the signals that came while the program was being started
        self._draining: anyio.CancelScope | None = None  # once it was asked to stop

    async def run(self, options: Options) -> None:
        """Live. Raise `RegistrarError` when it cannot be registered, `CannotStartError` when it cannot be started."""
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._signalled, number)

        say_nothing_of_the_session()  # it is told here
        async with Registrar(options, node=self._node, routes=self._routes) as self._registrar:
            self._publishing = anyio.CancelScope()
            with handled((*_STOPS, *_OTHERS), on_signal):
                with anyio.CancelScope(shield=True):  # else it might run, known to nobody
                    self._process = await self._started()
                try:
                    status = await self._until_ended()
                    self.exit_code = status if status >= 0 else 128 - status
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._put_away()

    async def _until_ended(self) -> int:
        """Keep it published until it ends; return its status."""
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._tell)
            self._tasks.start_soon(self._publish_when_ready)
            early, self._early = self._early, None
            for number in early or ():
                self._signalled(number)
            status = await self._process.wait()
            self._tasks.cancel_scope.cancel()
        return status

    async def _started(self) -> asyncio.subprocess.Process:
        try:
            return await children.start(self._command, start_new_session=True)  # Ctrl-C is for us, who drain first
        except OSError as error:
            code = 127 if error.errno == errno.ENOENT else 126
            raise CannotStartError(self._command[0], error.strerror or str(error), code) from None

    # Published

    async def _publish_when_ready(self) -> None:
        with self._publishing:
            if self._ready_tcp:
                with anyio.move_on_after(_PATIENCE) as patience:
                    await self._accepting()
                if patience.cancelled_caught:
                    where = ", ".join(f"{route.host}:{route.port}" for route in self._routes)
                    complain(f"not published: the program accepts no connections at {where}. Still trying")
                    await self._accepting()
        for route in self._applications:  # not cancelled by a stop: that would take back what is being published
            if self._draining is None:
                await self._insist(partial(self._registrar.register_application_route, route))

    async def _accepting(self) -> None:
        """Wait until the program accepts connections at each of its routes."""
        for route in self._routes:
            host = route.host or self._node.rpartition("@")[2]  # as Go nodes read it
            while True:
                with anyio.move_on_after(_PROBE_TIMEOUT), suppress(OSError):
                    await (await anyio.connect_tcp(host, route.port)).aclose()
                    break
                await anyio.sleep(_PROBE)

    async def _insist(self, call: Callable[[], Awaitable[None]]) -> None:
        """Have etcd told, however long that takes."""
        said = ""
        while True:
            try:
                return await call()
            except ConnectionFailedError as error:
                if str(error) != said:
                    said = str(error)
                    complain(f"{said}. {_GOES_ON}")
                await anyio.sleep(_RETRY)

    async def _tell(self) -> None:
        """Say when others do not see this node any more, and when they do again."""
        async with self._registrar.subscribe(RegistrarConnected, RegistrarDisconnected) as changes:
            async for change in changes:
                if isinstance(change, RegistrarDisconnected):
                    complain(f"{self._node} is not registered any more: {change.reason}. {_GOES_ON}")
                else:
                    complain(f"{self._node} is registered again")

    # Stopped

    def _signalled(self, number: int) -> None:
        if self._early is not None:
            self._early.append(number)
        elif number not in _STOPS:
            self._send(number)
        elif self._draining is None:
            self._draining = anyio.CancelScope()
            self._tasks.start_soon(self._stop, number, self._draining)
        elif self._draining.cancel_called:
            self._send(number)
        else:
            self._draining.cancel()

    async def _stop(self, number: int, draining: anyio.CancelScope) -> None:
        """Let nobody pick the program any more, for as long as draining lasts, then pass the signal on."""
        self._publishing.cancel()
        if self._applications and self._drain_time:
            self._tasks.start_soon(self._drain)
            draining.deadline = anyio.current_time() + self._drain_time
            with draining:
                await anyio.sleep_forever()
        draining.cancel()  # from now on signals are passed on at once
        self._send(number)

    async def _drain(self) -> None:
        for route in self._applications:
            with suppress(NoRouteError):  # it was not published yet
                await self._insist(partial(self._registrar.drain, route.name))

    def _send(self, number: int) -> None:
        if self._process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            if os.name == "nt":
                self._process.terminate()  # there is nothing gentler
            else:
                os.kill(self._process.pid, number)  # `send_signal` polls, and so takes the exit status from asyncio

    async def _put_away(self) -> None:
        """End the program, should a bug of ours have ended its registration before it."""
        self._send(signal.SIGTERM)
        with anyio.move_on_after(_KILL_AFTER):
            await self._process.wait()
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
