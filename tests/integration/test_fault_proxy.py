"""The faults of `FaultProxy`, each seen from both of its sides. What they do to etcd is seen in the other stories."""

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from ergo_registrar.errors import RegistrarError, UnsupportedError, ValidationError
from ergo_registrar.testing.proxy import FaultProxy
from tests.integration.support import eventually

RATE = 100_000  # bytes per second, where something is to be slow
WHILE = 0.3  # seconds, where something is not to happen
SOON = 5.0  # seconds in which it would happen at once, if the machine were not slow


class End:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self, size: int, within: float = SOON) -> bytes:
        async with asyncio.timeout(within):
            return await self.reader.readexactly(size)

    async def hears(self, within: float = SOON) -> str:
        """Return what comes next: "data", "end", "reset", or "nothing"."""
        try:
            async with asyncio.timeout(within):
                return "data" if await self.reader.read(1) else "end"
        except ConnectionResetError:
            return "reset"
        except TimeoutError:
            return "nothing"

    def reset(self) -> None:
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Target:
    """A server whose ends of the connections are the test's."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.accepted: asyncio.Queue[End] = asyncio.Queue()
        self.ends: list[End] = []

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ends.append(End(reader, writer))
        self.accepted.put_nowait(self.ends[-1])

    async def connect(self, endpoint: str) -> End:
        """Return the near end of a new connection to an endpoint."""
        host, _, port = endpoint.rpartition(":")
        self.ends.append(End(*await asyncio.open_connection(host, int(port))))
        return self.ends[-1]

    async def both_ends(self, proxy: FaultProxy) -> tuple[End, End]:
        """Return the near and the far end of a new connection over the proxy that has passed something."""
        near = await self.connect(proxy.endpoint)
        await near.send(b"!")
        async with asyncio.timeout(SOON):
            far = await self.accepted.get()
        assert await far.receive(1) == b"!"
        return near, far


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    target = Target()
    server = await asyncio.start_server(target.accept, "127.0.0.1")
    host, port = server.sockets[0].getsockname()
    target.endpoint = f"{host}:{port}"
    yield target
    server.close()
    for end in target.ends:
        end.writer.transport.abort()


@pytest.fixture
async def proxy(target: Target) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(target.endpoint) as proxy:
        yield proxy


def connected_this_moment(proxy: FaultProxy) -> socket.socket:
    """Return a connection that the kernel has made and the proxy has not seen."""
    host, _, port = proxy.endpoint.rpartition(":")
    connection = socket.socket()
    connection.setblocking(False)
    connection.connect_ex((host, int(port)))  # within a machine it is made at once
    return connection


class TestWithoutAFault:
    async def test_everything_passes_in_both_directions(self, proxy: FaultProxy, target: Target) -> None:
        near, far = await target.both_ends(proxy)
        data = random.Random(3).randbytes(20_000_000)  # more than a direction holds

        async def through(one: End, other: End) -> bytes:
            sending = asyncio.create_task(one.send(data))
            received = await other.receive(len(data), within=20)
            await sending
            return received

        assert [*await asyncio.gather(through(near, far), through(far, near))] == [data, data]

    async def test_an_end_passes_and_the_other_direction_goes_on(self, proxy: FaultProxy, target: Target) -> None:
        near, far = await target.both_ends(proxy)
        near.writer.write(b"last words")
        near.writer.write_eof()
        assert await far.receive(10) == b"last words"
        assert await far.hears() == "end"
        await far.send(b"good bye")
        assert await near.receive(8) == b"good bye"
        far.writer.close()
        assert await near.hears() == "end"
        await eventually(lambda: proxy.open_connections == 0)

    @pytest.mark.parametrize("turn", [1, -1])
    async def test_a_reset_passes(self, proxy: FaultProxy, target: Target, turn: int) -> None:
        one, other = (await target.both_ends(proxy))[::turn]
        one.reset()
        assert await other.hears() == "reset"
        await eventually(lambda: proxy.open_connections == 0)

    async def test_connections_are_counted(self, proxy: FaultProxy, target: Target) -> None:
        assert (proxy.connections, proxy.open_connections) == (0, 0)
        near, _ = await target.both_ends(proxy)
        await target.both_ends(proxy)
        assert (proxy.connections, proxy.open_connections) == (2, 2)
        near.reset()
        await eventually(lambda: proxy.open_connections == 1)
        assert proxy.connections == 2

    async def test_a_target_that_is_not_there_breaks_the_connection_alone(self, proxy: FaultProxy) -> None:
        async with FaultProxy(proxy.endpoint) as outer:
            await proxy.refuse()
            for _ in range(2):
                end = await Target().connect(outer.endpoint)
                assert await end.hears() == "reset"
                end.writer.close()
            await eventually(lambda: outer.open_connections == 0)
            assert outer.connections == 2


class TestCut:
    async def test_breaks_what_is_open_and_accepts_what_comes(self, proxy: FaultProxy, target: Target) -> None:
        ends = [*await target.both_ends(proxy), *await target.both_ends(proxy)]
        await proxy.cut()
        assert proxy.open_connections == 0
        assert [await end.hears() for end in ends] == ["reset"] * 4
        near, far = await target.both_ends(proxy)
        await near.send(b"hello")
        assert await far.receive(5) == b"hello"

    async def test_breaks_what_was_connected_this_moment(self, proxy: FaultProxy) -> None:
        with connected_this_moment(proxy) as connection:
            await proxy.cut()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)

    async def test_breaks_what_a_black_hole_keeps(self, proxy: FaultProxy, target: Target) -> None:
        near, far = await target.both_ends(proxy)
        proxy.black_hole()
        await near.send(b"hello")
        await proxy.cut()
        assert await near.hears() == "reset"
        assert await far.hears() == "reset"
        later = await target.connect(proxy.endpoint)
        assert await later.hears(WHILE) == "nothing"  # it is a black hole still


class TestRefuse:
    async def test_breaks_and_refuses_until_healed(self, proxy: FaultProxy, target: Target) -> None:
        near, far = await target.both_ends(proxy)
        endpoint = proxy.endpoint
        for _ in range(2):  # the second does nothing
            await proxy.refuse()
            assert proxy.endpoint == endpoint
            with pytest.raises(ConnectionRefusedError):
                await target.connect(endpoint)
        assert await near.hears() == "reset"
        assert await far.hears() == "reset"
        await proxy.cut()
        with pytest.raises(ConnectionRefusedError):
            await target.connect(endpoint)
        for _ in range(2):
            await proxy.heal()
            assert proxy.endpoint == endpoint
            near, far = await target.both_ends(proxy)
            await near.send(b"hello")
            assert await far.receive(5) == b"hello"
        assert proxy.connections == 3

    async def test_breaks_what_was_connected_this_moment(self, proxy: FaultProxy) -> None:
        with connected_this_moment(proxy) as connection:
            await proxy.refuse()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)

    async def test_keeps_the_port_meanwhile(self, proxy: FaultProxy) -> None:
        await proxy.refuse()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", int(proxy.endpoint.rpartition(":")[2])))


class TestBlackHole:
    async def test_passes_nothing_and_breaks_nothing_until_healed(self, proxy: FaultProxy, target: Target) -> None:
        near, far = await target.both_ends(proxy)
        proxy.black_hole()
        await near.send(b"to the far end")
        await far.send(b"to the near end")
        assert [*await asyncio.gather(near.hears(WHILE), far.hears(WHILE))] == ["nothing", "nothing"]
        await proxy.heal()
        assert await far.receive(14) == b"to the far end"
        assert await near.receive(15) == b"to the near end"

    async def test_accepts_and_does_not_pass_new_connections(self, proxy: FaultProxy, target: Target) -> None:
        proxy.black_hole()
        near = await target.connect(proxy.endpoint)
        await near.send(b"hello")
        assert await near.hears(WHILE) == "nothing"
        assert proxy.open_connections == 1
        assert target.accepted.empty()
        await proxy.heal()
        far = await target.accepted.get()
        assert await far.receive(5) == b"hello"

    @pytest.mark.parametrize("way", ["end", "reset"])
    async def test_holds_back_that_one_side_is_gone(self, proxy: FaultProxy, target: Target, way: str) -> None:
        near, far = await target.both_ends(proxy)
        proxy.black_hole()
        if way == "end":
            near.writer.close()
        else:
            near.reset()
        assert await far.hears(WHILE) == "nothing"
        assert proxy.open_connections == 1
        await proxy.heal()
        assert await far.hears() == way

    async def test_holds_what_was_on_its_way(self, proxy: FaultProxy, target: Target) -> None:
        near, far = await target.both_ends(proxy)
        proxy.throttle(RATE)
        await near.send(b"x" * RATE)
        assert await far.hears() == "data"
        proxy.black_hole()
        await drained(far)
        assert await far.hears(WHILE) == "nothing"

    async def test_holds_no_more_than_it_may(self, proxy: FaultProxy, target: Target) -> None:
        near, far = await target.both_ends(proxy)
        proxy.black_hole()
        block = b"x" * 1_000_000
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                while True:
                    near.writer.write(block)
                    sent += len(block)
                    async with asyncio.timeout(WHILE):
                        await near.writer.drain()
        assert 16_000_000 < sent < 64_000_000  # beside the proxy, the kernel and asyncio hold some
        await proxy.heal()
        assert len(await far.receive(sent, within=20)) == sent


async def drained(end: End) -> None:
    """Read what has arrived, and what the kernel still has of it."""
    while await end.reader.read(1_000_000):
        try:
            async with asyncio.timeout(0.05):
                if not await end.reader.read(1_000_000):
                    return
        except TimeoutError:
            return


class TestDelay:
    DELAY = 0.4

    async def test_is_the_same_for_every_byte_of_each_direction(self, proxy: FaultProxy, target: Target) -> None:
        """A hundred pieces, one after the other, are all on their way at once."""
        ends = await target.both_ends(proxy)
        proxy.delay(self.DELAY)
        sent: dict[End, list[float]] = {end: [] for end in ends}

        async def send(end: End) -> None:
            for n in range(100):
                sent[end].append(time.monotonic())
                await end.send(bytes([n]))
                await asyncio.sleep(0.002)

        async def receive(end: End, sent: list[float]) -> None:
            for n in range(100):
                assert await end.receive(1) == bytes([n])
                late = time.monotonic() - sent[n]
                assert self.DELAY - 0.001 < late < 2 * self.DELAY + SOON / 2

        one, other = ends
        began = time.monotonic()
        await asyncio.gather(send(one), send(other), receive(one, sent[other]), receive(other, sent[one]))
        assert time.monotonic() - began < 20 * self.DELAY

    async def test_does_not_slow_down_what_is_much(self, proxy: FaultProxy, target: Target) -> None:
        near, far = await target.both_ends(proxy)
        proxy.delay(self.DELAY)
        data = random.Random(5).randbytes(10_000_000)
        began = time.monotonic()
        sending = asyncio.create_task(near.send(data))
        assert await far.receive(len(data), within=20) == data
        assert self.DELAY < time.monotonic() - began < self.DELAY + SOON
        await sending

    async def test_holds_for_an_end_too(self, proxy: FaultProxy, target: Target) -> None:
        near, far = await target.both_ends(proxy)
        proxy.delay(self.DELAY)
        began = time.monotonic()
        near.writer.close()
        assert await far.hears() == "end"
        assert time.monotonic() - began > self.DELAY - 0.001

    async def test_may_change_for_what_is_on_its_way(self, proxy: FaultProxy, target: Target) -> None:
        near, far = await target.both_ends(proxy)
        for end_it in (lambda: proxy.delay(0), proxy.heal):
            proxy.delay(1000)
            await near.send(b"hello")
            assert await far.hears(WHILE) == "nothing"
            if (healing := end_it()) is not None:
                await healing
            assert await far.receive(5) == b"hello"


class TestThrottle:
    async def test_is_for_each_direction_of_each_connection(self, proxy: FaultProxy, target: Target) -> None:
        ends = [*await target.both_ends(proxy), *await target.both_ends(proxy)]
        proxy.throttle(RATE)
        data = b"x" * (RATE // 2)

        async def received(end: End) -> float:
            began = time.monotonic()
            await end.receive(len(data))
            return time.monotonic() - began

        for end in ends:
            end.writer.write(data)
        took = await asyncio.gather(*map(received, ends))
        assert min(took) > 0.45
        assert max(took) < 1.6  # 2 s, if they shared it

    async def test_begins_for_what_comes(self, proxy: FaultProxy, target: Target) -> None:
        """What passed before at full speed is not held against the line."""
        near, far = await target.both_ends(proxy)
        await near.send(b"x" * RATE)
        await far.receive(RATE)
        proxy.throttle(1)
        await near.send(b"hello")
        assert await far.receive(1) == b"h"

    async def test_ends_for_what_is_on_its_way(self, proxy: FaultProxy, target: Target) -> None:
        near, far = await target.both_ends(proxy)
        proxy.throttle(0.001)
        await near.send(b"hello")
        assert await far.receive(1) == b"h"
        assert await far.hears(WHILE) == "nothing"
        await proxy.heal()
        assert await far.receive(4) == b"ello"

    async def test_adds_up_with_a_delay(self, proxy: FaultProxy, target: Target) -> None:
        near, far = await target.both_ends(proxy)
        proxy.delay(0.4)
        proxy.throttle(RATE)
        began = time.monotonic()
        await near.send(b"x" * (RATE // 2))
        await far.receive(1)
        assert time.monotonic() - began > 0.39
        await far.receive(RATE // 2 - 1)
        assert time.monotonic() - began > 0.85


class TestTheBlock:
    async def test_ends_with_every_connection(self, target: Target) -> None:
        async with FaultProxy(target.endpoint) as proxy:
            near, far = await target.both_ends(proxy)
            endpoint = proxy.endpoint
            connection = connected_this_moment(proxy)
        assert await near.hears() == "reset"
        assert await far.hears() == "reset"
        with connection, pytest.raises(ConnectionResetError):
            connection.recv(1)
        with pytest.raises(ConnectionRefusedError):
            await target.connect(endpoint)
        assert proxy.open_connections == 0

    @pytest.mark.parametrize("fault", ["refuse", "black_hole", "throttle", "delay"])
    async def test_may_end_and_begin_again_in_any_state(self, target: Target, fault: str) -> None:
        proxy = FaultProxy(target.endpoint)
        for _ in range(2):
            async with proxy:
                near, far = await target.both_ends(proxy)
                await near.send(b"hello")
                assert await far.receive(5) == b"hello"
                begun: Any = getattr(proxy, fault)(*[0.5] * (fault in ("delay", "throttle")))
                if begun is not None:
                    await begun

    async def test_is_needed(self, target: Target) -> None:
        proxy = FaultProxy(target.endpoint)
        for call in (proxy.cut, proxy.refuse, proxy.heal):
            with pytest.raises(RegistrarError, match="enter it with"):
                await call()
        with pytest.raises(RegistrarError, match="enter it with"):
            _ = proxy.endpoint
        async with proxy:
            with pytest.raises(RegistrarError, match="runs already"):
                await proxy.__aenter__()
            await target.both_ends(proxy)

    async def test_has_the_port_that_was_asked_for(self, proxy: FaultProxy, target: Target) -> None:
        port = int(proxy.endpoint.rpartition(":")[2])
        second = FaultProxy(target.endpoint, port=port)
        with pytest.raises(RegistrarError, match=f"127.0.0.1:{port}: .* in use"):
            await second.__aenter__()
        await proxy.__aexit__(None, None, None)
        async with second:
            assert second.endpoint == f"127.0.0.1:{port}"
            await target.both_ends(second)
        await proxy.__aenter__()

    async def test_needs_a_loop_that_can_watch_a_socket(self, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
        def add_reader(*_: object) -> None:
            raise NotImplementedError  # as ProactorEventLoop does

        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", add_reader)
        with pytest.raises(UnsupportedError, match="SelectorEventLoop"):
            await FaultProxy(target.endpoint).__aenter__()


class TestCancelling:
    @pytest.mark.parametrize("steps", range(6))
    @pytest.mark.parametrize("call", [FaultProxy.cut, FaultProxy.refuse, FaultProxy.heal])
    async def test_a_call_leaves_nothing_behind(
        self, proxy: FaultProxy, target: Target, call: Callable[[FaultProxy], Any], steps: int
    ) -> None:
        await target.both_ends(proxy)
        await target.connect(proxy.endpoint)
        calling = asyncio.create_task(call(proxy))
        for _ in range(steps):
            await asyncio.sleep(0)
        calling.cancel()
        await asyncio.wait({calling})
        await proxy.heal()
        await proxy.cut()
        assert proxy.open_connections == 0

    @pytest.mark.parametrize("steps", range(12))
    async def test_the_block_leaves_nothing_behind(self, target: Target, steps: int) -> None:
        """Whatever a connection was about to do: being accepted, being passed on, breaking."""

        async def block() -> None:
            async with FaultProxy(target.endpoint) as proxy:
                ends.append(connected_this_moment(proxy))
                for _ in range(5):
                    await asyncio.sleep(0)

        ends: list[socket.socket] = []
        task = asyncio.create_task(block())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        for end in ends:
            with end:
                await eventually(partial(is_broken, end))

    async def test_many_connections_in_a_storm_of_faults(self, proxy: FaultProxy, target: Target) -> None:
        chance = random.Random(7)

        async def client() -> None:
            while True:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    end = await target.connect(proxy.endpoint)
                    await end.send(b"x" * 100_000)
                    await end.reader.read(1)
                await asyncio.sleep(0)

        clients = [asyncio.create_task(client()) for _ in range(20)]
        for _ in range(200):
            fault: Any = chance.choice(
                [proxy.cut, proxy.refuse, proxy.heal, proxy.black_hole, lambda: proxy.delay(chance.random() / 100)]
            )
            if (begun := fault()) is not None:
                await begun
            for _ in range(chance.randrange(20)):
                await asyncio.sleep(0)
        for each in clients:
            each.cancel()
        await asyncio.wait(clients)
        await proxy.heal()
        await proxy.cut()
        assert proxy.open_connections == 0
        assert proxy.connections > 50


def is_broken(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: FaultProxy("nowhere"), "target"),
        (lambda: FaultProxy("host:"), "target"),
        (lambda: FaultProxy(":2379"), "target"),
        (lambda: FaultProxy("h:1", port=0), "port"),
        (lambda: FaultProxy("h:1").delay(-1), "seconds"),
        (lambda: FaultProxy("h:1").delay(float("nan")), "seconds"),
        (lambda: FaultProxy("h:1").throttle(0), "bytes_per_second"),
        (lambda: FaultProxy("h:1").throttle(float("nan")), "bytes_per_second"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], field: str) -> None:
    with pytest.raises(ValidationError) as raised:
        make()
    assert raised.value.field == field
