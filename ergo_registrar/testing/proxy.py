"""A TCP proxy whose faults are those of a network: `FaultProxy`, for the tests of services that use this package."""

import asyncio
import dataclasses
import functools
import math
import os
import socket
import struct
from types import TracebackType
from typing import Self

from ergo_registrar.errors import RegistrarError, UnsupportedError, ValidationError

__all__ = ["FaultProxy"]

_HOST = "127.0.0.1"
_BACKLOG = 128
_CHUNK = 65_536  # bytes read at once
_HELD = 16 * 1024 * 1024  # bytes that one direction holds before it stops reading
_TICK = 0.01  # seconds: how finely `throttle` slices
_RESET_ON_CLOSE = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # SO_LINGER of no time


@dataclasses.dataclass(frozen=True)
class _Faults:
    refusing: bool = False
    passing: bool = True
    delay: float = 0.0  # seconds
    rate: float = math.inf  # bytes per second


class FaultProxy:
    """A way to a TCP server that can be broken: an async context manager with an `endpoint` of its own on loopback.

        async with FaultProxy(etcd.endpoint) as proxy:
            options = Options(endpoints=(proxy.endpoint,))

    - `target`: HOST:PORT to pass connections to. Where nobody listens there, they are broken.
    - `port`: its own. None: any that is free.

    Faults last until `heal` and add up: a slow connection can be cut, delay and throttle hold together (a byte leaves
    when both allow it), and in a black hole both wait. They strike connections that are open as well as new ones. An
    end or a reset of one side travels like the bytes before it: delayed, and held in a black hole.

    Each direction of a connection holds at most 16 MiB and then stops reading, as a full network does; so with a delay
    no more than that is under way. Leaving the block breaks every connection. No call leaves anything behind when it
    is cancelled: it has done its work before it waits.

    It needs an event loop with `add_reader`: on Windows a `SelectorEventLoop`. Entering raises `UnsupportedError` in
    another one, and `RegistrarError` when `port` cannot be had.
    """

    def __init__(self, target: str, *, port: int | None = None) -> None:
        host, _, number = target.rpartition(":")
        if not host or not number.isdecimal():
            raise ValidationError("target", target, "must be HOST:PORT")
        if port is not None and not 0 < port <= 65535:
            raise ValidationError("port", port, "must be from 1 to 65535, or None for any free one")
        self.connections: int = 0  # accepted so far
        self._target = host.strip("[]"), int(number)
        self._wanted_port = port or 0
        self._listener: socket.socket | None = None  # bound as long as the block lasts, so the port stays ours
        self._open: set[asyncio.Task[None]] = set()
        self._faults = _Faults()
        self._changed = asyncio.Event()  # another one after each change

    async def __aenter__(self) -> Self:
        if self._listener is not None:
            raise RegistrarError("this FaultProxy runs already: make another one")
        try:
            listener = _bound(self._wanted_port)
        except OSError as error:
            raise RegistrarError(f"cannot listen on {_HOST}:{self._wanted_port}: {error.strerror}") from error
        try:
            self._listen(listener)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close(self._bound_listener)
        self._listener = None
        self._set(_Faults())
        await self._break()

    @property
    def endpoint(self) -> str:
        """Where it listens, HOST:PORT; the same as long as the block lasts. `RegistrarError` outside of it."""
        host, port = self._bound_listener.getsockname()
        return f"{host}:{port}"

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._open)

    async def cut(self) -> None:
        """Break every connection with a reset, those included that were made this moment; accept new ones as before.

        Returns when all are broken.
        """
        listener = self._bound_listener
        if not self._faults.refusing:
            self._accept(listener)
        await self._break()

    async def refuse(self) -> None:
        """Break every connection, and refuse new ones. Returns when all are broken."""
        listener = self._bound_listener
        if not self._faults.refusing:
            self._listener = None
            port = listener.getsockname()[1]
            self._close(listener)
            self._listener = _bound(port)  # without listening, which refuses, and nobody else gets the port
            self._set(dataclasses.replace(self._faults, refusing=True))
        await self._break()

    def black_hole(self) -> None:
        """Let nothing through in either direction, and break nothing. New connections are accepted and led nowhere.

        What was held until `heal` goes through then.
        """
        self._set(dataclasses.replace(self._faults, passing=False))

    def delay(self, seconds: float) -> None:
        """Let every byte arrive so much later, in each direction. As many pass as before, in the same order."""
        if not 0 <= seconds < math.inf:
            raise ValidationError("seconds", seconds, "must be 0 or more")
        self._set(dataclasses.replace(self._faults, delay=seconds))

    def throttle(self, bytes_per_second: float) -> None:
        """Let each direction of each connection be no faster than that."""
        if not bytes_per_second > 0:
            raise ValidationError("bytes_per_second", bytes_per_second, "must be more than 0")
        self._set(dataclasses.replace(self._faults, rate=bytes_per_second))

    async def heal(self) -> None:
        """End every fault: accept, and pass at once what is held and what comes. Does nothing where there is none."""
        listener = self._bound_listener
        if self._faults.refusing:
            self._listen(listener)
        self._set(_Faults())

    @property
    def _bound_listener(self) -> socket.socket:
        if self._listener is None:
            raise RegistrarError("this FaultProxy does not run: enter it with `async with` first")
        return self._listener

    def _set(self, faults: _Faults) -> None:
        self._faults = faults
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self, until: float = math.inf) -> None:
        """Wait until another fault holds, or until a time of the loop."""
        try:
            async with asyncio.timeout_at(until if until < math.inf else None):
                await self._changed.wait()
        except TimeoutError:
            pass  # the time has come

    # Not asyncio.Server: what that has taken from the kernel and not yet told of would escape `cut`, and it cannot be
    # closed in that moment without leaving a socket behind.

    def _listen(self, listener: socket.socket) -> None:
        try:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)
        except NotImplementedError:
            raise UnsupportedError("FaultProxy needs an event loop with add_reader: a SelectorEventLoop") from None
        listener.listen(_BACKLOG)

    def _close(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()

    def _accept(self, listener: socket.socket) -> None:
        """Accept whatever the kernel has for us."""
        while True:
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            connection.setblocking(False)
            self.connections += 1
            task = asyncio.create_task(self._serve(connection))
            self._open.add(task)
            task.add_done_callback(functools.partial(self._ended, connection))

    def _ended(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        _reset_on_close(connection)
        connection.close()  # a task that was cancelled before it began has not done it

    async def _break(self) -> None:
        broken = set(self._open)
        for task in broken:
            task.cancel()
        if broken:
            await asyncio.wait(broken)

    async def _serve(self, connection: socket.socket) -> None:
        writers: list[asyncio.StreamWriter] = []
        try:
            reader, writer = await asyncio.open_connection(sock=connection)
            writers.append(writer)
            while not self._faults.passing:
                await self._change()
            back, there = await asyncio.open_connection(*self._target)
            writers.append(there)
            async with asyncio.TaskGroup() as tasks:
                for direction in (_Direction(self, reader, there), _Direction(self, back, writer)):
                    tasks.create_task(direction.receive())
                    tasks.create_task(direction.send())
            for each in writers:  # both sides ended in good order
                each.close()
                await each.wait_closed()
        except* OSError:
            pass  # one side is gone: the other learns it by the reset
        finally:
            for each in writers:
                _reset_on_close(each.get_extra_info("socket"))
                each.transport.abort()


class _Direction:
    """One direction of a connection: what was read and may not be written yet, each with the time it was read."""

    def __init__(self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._held: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue()
        self._size = 0
        self._room = asyncio.Event()
        # For `throttle`: the last slice was due at that time, and occupies the line from then on.
        self._last_due = 0.0
        self._last_size = 0
        self._last_rate = math.inf

    async def receive(self) -> None:
        """Read until the end, b"", or a reset, None."""
        data: bytes | None = b"-"
        while data:
            try:
                data = await self._reader.read(_CHUNK)
            except OSError:
                data = None
            self._held.put_nowait((asyncio.get_running_loop().time(), data))
            self._size += len(data or b"")
            while self._size > _HELD:
                self._room.clear()
                await self._room.wait()

    async def send(self) -> None:
        """Write what was read, when the faults allow it."""
        while True:
            arrived, data = await self._held.get()
            await self._allowed(arrived)
            if data is None:
                raise ConnectionResetError
            if not data:
                self._writer.write_eof()
                return
            while data:
                now = await self._allowed(arrived)
                self._last_due = max(self._due(arrived), now - _TICK)  # a tick late is caught up with
                self._last_rate = self._proxy._faults.rate
                self._last_size = size = max(1, int(min(len(data), self._last_rate * _TICK)))
                self._writer.write(data[:size])
                await self._writer.drain()
                data = data[size:]
                self._size -= size
                self._room.set()

    async def _allowed(self, arrived: float) -> float:
        """Return the time of the loop, once it is one at which what arrived then may leave."""
        while (due := self._due(arrived)) > (now := asyncio.get_running_loop().time()):
            await self._proxy._change(due)
        return now

    def _due(self, arrived: float) -> float:
        faults = self._proxy._faults
        free = self._last_due + self._last_size / max(self._last_rate, faults.rate)
        return max(arrived + faults.delay, free) if faults.passing else math.inf


def _bound(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setblocking(False)
        if os.name == "posix":  # old connections do not occupy the port. Elsewhere it means another thing
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, port))
    except BaseException:
        listener.close()
        raise
    return listener


def _reset_on_close(connection: socket.socket) -> None:
    if connection.fileno() != -1:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
