"""`python -m tests.benchmarks.putting ENDPOINT`: puts keys one by one, and says when.

It reads blocks, a line of JSON each. Before each put it pauses. After the last it
tells when each was sent, in nanoseconds by `time.perf_counter`, which is system-wide, and by `time.time`.
"""

import sys
import time
from itertools import count
from typing import Any

import grpc
import msgspec
from aetcd import rpc

from ergo_registrar import ApplicationMode, ApplicationRoute, ApplicationState
from ergo_registrar.core.edf import encode_application_route
from ergo_registrar.core.keys import application_key
from tests.benchmarks.programs import Program

NODE = "writer@bench"
TIMEOUT = 10.0  # seconds for one put

_serial = count()


class Block(msgspec.Struct, kw_only=True):
    """What to put: keys and values, and how many seconds to pause before each."""

    puts: list[tuple[str, bytes]]
    pause: float = 0.0


class Sent(msgspec.Struct, kw_only=True):
    """When each key was sent, by two clocks."""

    counter: list[int]
    clock: list[int]


async def write(writer: Program, block: Block, timeout: float) -> Sent:
    """Have a writer put a block, and return when."""
    return msgspec.convert(await writer.ask(msgspec.json.encode(block).decode(), timeout), Sent)


def fresh(cluster: str, count: int) -> list[tuple[str, str, bytes]]:
    """Return applications that never were, on a node of that cluster: the name, the key and the value of each."""
    names = [f"app{next(_serial)}" for _ in range(count)]
    mode, state = ApplicationMode.PERMANENT, ApplicationState.RUNNING
    routes = [ApplicationRoute(NODE, name, 100, mode, state) for name in names]
    keys = [application_key(cluster, name, NODE).decode() for name in names]
    return list(zip(names, keys, map(encode_application_route, routes), strict=True))


def main() -> None:
    lines = sys.stdin.buffer
    with grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_http_proxy", 0)]) as channel:
        put = rpc.KVStub(channel).Put
        while line := lines.readline():
            answer = _put(put, msgspec.json.decode(line, type=Block))
            sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            sys.stdout.buffer.flush()


def _put(put: Any, block: Block) -> Sent:
    requests = [rpc.PutRequest(key=key.encode(), value=value) for key, value in block.puts]
    answer = Sent(counter=[], clock=[])
    for request in requests:
        time.sleep(block.pause)
        answer.clock.append(time.time_ns())
        answer.counter.append(time.perf_counter_ns())
        put(request, timeout=TIMEOUT)
    return answer


if __name__ == "__main__":
    main()
