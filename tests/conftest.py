"""Hygiene, as fixtures that every test has without asking.

A test fails when it blocks the event loop, when it leaves a task, a lease or a process behind, and when an error
reaches the event loop that nobody handled. That warnings fail and that no test hangs stands in `pyproject.toml`;
`unit/test_hygiene.py` shows all of it. The tests run in random order (pytest-randomly prints the seed).
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aetcd.rpc
import grpc
import grpc.aio
import hypothesis
import pytest
import pytest_asyncio
from blockbuster import BlockBuster, blockbuster_ctx

pytest_plugins = ["pytester"]

# Held for the whole run: freed between two tests, grpc.aio takes a lock in the loop and drops a socket unclosed.
grpc.aio.init_grpc_aio()

# A run that a shell started in the background ignores Ctrl-C, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TASK_GRACE = 1.0  # seconds in which tasks that are ending may end
LEASE_GRACE = 4.0  # the same for leases: a test may kill a process whose lease of 2 s, the shortest, then runs out

for name, examples in {"dev": 50, "ci": 200, "thorough": 5000}.items():
    # No deadline: two cores are shared with etcd, and a slow example is not a wrong one.
    hypothesis.settings.register_profile(name, max_examples=examples, deadline=None, print_blob=True, derandomize=False)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(scope="session", autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """Let a blocking call raise `blockbuster.BlockingError`, wherever an event loop runs in the calling thread."""
    with blockbuster_ctx() as detector:
        # When the last channel of a process is freed, grpc.aio joins its poller, a thread that is already ending. The
        # frames of grpc's own code are compiled and not to be seen, so the permission is for every join.
        detector.functions["threading.Lock.acquire"].can_block_in("/threading.py", "join")
        # Coverage takes a lock of its own when it meets a file for the first time, which another thread may hold.
        detector.functions["threading.Lock.acquire"].can_block_in("/coverage/collector.py", "lock_data")
        # A test that hung is told where, whatever reading the sources for that takes.
        for function in detector.functions.values():
            function.can_block_in("pytest_timeout.py", "timeout_sigalrm")
        yield detector


@pytest.fixture(scope="session", autouse=True)
def no_leaked_processes() -> Iterator[None]:
    """Fail the last test when, after everything has ended, a child of this process still runs (Linux only)."""
    yield
    left = [process for child in _children() if (process := _running(child))]
    assert not left, f"processes left behind: {left}"


@pytest.fixture(autouse=True)
def no_leaked_tasks(request: pytest.FixtureRequest) -> None:
    """Fail an async test that leaves tasks or unhandled errors in its event loop."""
    if pytest_asyncio.is_async_test(request.node):
        request.getfixturevalue("_clean_loop")  # set up before the test's own fixtures, so looking after they ended


@pytest.fixture
async def _clean_loop() -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=TASK_GRACE)
    assert not left, f"tasks left behind: {left}"
    unhandled = [context for context in unhandled if not _is_of_an_earlier_loop(context)]
    assert not unhandled, f"errors that reached the event loop: {unhandled}"


def _is_of_an_earlier_loop(context: dict[str, Any]) -> bool:
    """Say whether grpc's one poller, in this test's loop, met the end of a call of a test whose loop is closed."""
    error = context.get("exception")
    from_grpc = "PollerCompletionQueue" in str(context.get("message"))
    return from_grpc and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


@pytest.fixture(autouse=True)
def no_leaked_leases(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a lease in the etcd of the `etcd` fixture."""
    if "etcd" not in request.fixturenames:
        yield
        return
    with grpc.insecure_channel(request.getfixturevalue("etcd")) as channel:
        stub = aetcd.rpc.LeaseStub(channel)
        before = _leases(stub)
        yield
        deadline = time.monotonic() + LEASE_GRACE
        while (left := _leases(stub) - before) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not left, f"leases left behind: {[f'{lease:x}' for lease in left]}"


def _leases(stub: Any) -> set[int]:
    """Return the leases there are, but for those of departure markers, which outlive their process on purpose."""
    leases = (lease.ID for lease in stub.LeaseLeases(aetcd.rpc.LeaseLeasesRequest(), timeout=10).leases)
    return {lease for lease in leases if not _is_of_a_marker(stub, lease)}


def _is_of_a_marker(stub: Any, lease: int) -> bool:
    found = stub.LeaseTimeToLive(aetcd.rpc.LeaseTimeToLiveRequest(ID=lease, keys=True), timeout=10)
    return found.TTL <= 0 or (len(found.keys) > 0 and all(b"/routes/leaving/" in key for key in found.keys))


def _children() -> list[int]:
    children: list[int] = []
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that just ended
            children += map(int, task.read_text().split())
    return children


def _running(process: int) -> str:
    """Return the number and command line of a process, nothing for one that has ended."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
        command = Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""
    state = stat.rpartition(")")[2].split()[0]
    return "" if state in "ZX" else f"{process} {command}"
