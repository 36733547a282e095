"""The example in docs/examples, as a stranger runs it: by one command, and without Docker."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ergo_registrar.etcd.server import find_etcdctl

LONGEST = 30.0  # seconds from one line that is waited for to the next; the longest is the end of a lease of 3 s
EXAMPLE = Path(__file__).parents[2] / "docs/examples"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")


class Example:
    """One run of `run.py`, and what it printed so far."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ERGO_REGISTRAR_")}
        if program := os.environ.get("ERGO_REGISTRAR_ETCD"):
            environment["ERGO_REGISTRAR_ETCD"] = program
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, EXAMPLE / "run.py"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment | {"PYTHONWARNINGS": "error"},
            start_new_session=True,
        )

    def read_until(self, *patterns: str) -> re.Match[str]:
        """Read on until every pattern was met, in any order, each by a whole line; return the last one's match."""
        assert self.process.stdout
        wanted = list(patterns)
        deadline = time.monotonic() + LONGEST
        for line in self.process.stdout:
            self.lines.append(re.sub(r" +\| ", " | ", line.rstrip("\n")))
            for pattern in wanted:
                if found := re.fullmatch(pattern, self.lines[-1]):
                    wanted.remove(pattern)
                    if not wanted:
                        return found
                    break
            if time.monotonic() > deadline:
                break
        raise AssertionError(f"no line is {wanted}:\n" + "\n".join(self.lines))

    def process_of(self, node: str) -> int:
        """The process that the node was started as last."""
        *_, last = re.findall(rf"^{node} \| process (\d+) started$", "\n".join(self.lines), re.MULTILINE)
        return int(last)

    def alive(self) -> list[str]:
        """Which of the processes that it started still run."""
        started = re.findall(r"process (\d+) started", "\n".join(self.lines))
        if not started:
            return []
        command = ["ps", "-o", "pid=,args=", "-p", ",".join(started)]
        ps = subprocess.run(command, check=False, capture_output=True, text=True)
        assert ps.stderr == ""
        return ps.stdout.splitlines()


@pytest.fixture
def example() -> Iterator[Example]:
    """What a failed test leaves of it is asked to end, as it would be by a user, and what it printed is shown."""
    example = Example()
    yield example
    with example.process:
        if example.process.poll() is None:
            example.process.terminate()
            rest, _ = example.process.communicate(timeout=20)
            print(*example.lines, rest, sep="\n")
        for left in example.alive():
            os.kill(int(left.split()[0]), signal.SIGKILL)


@pytest.mark.timeout(90)
def test_three_nodes_find_each_other_follow_the_configuration_and_outlive_one_that_dies(example: Example) -> None:
    endpoint = example.read_until(r"export ETCDCTL_ENDPOINTS=(.*)")[1]
    nodes = ["greeter1@localhost", "greeter2@localhost", "client@localhost"]
    example.read_until(*(rf"{node} \| {other} joined" for node in nodes for other in nodes if node != other))
    served = example.read_until(r"client@localhost \| (.*) says hello world")[1]

    key = "services/ergo/cluster/example/config/*/greeting"
    subprocess.run([find_etcdctl(), f"--endpoints={endpoint}", "put", key, "good evening"], check=True, timeout=20)
    example.read_until(r"client@localhost \| greeting is 'good evening'")
    example.read_until(rf"client@localhost \| {served} says good evening world")

    (other,) = {"greeter1@localhost", "greeter2@localhost"} - {served}
    os.kill(example.process_of(served), signal.SIGKILL)
    example.read_until(r"client@localhost \| not connected: .*")
    example.read_until(rf"client@localhost \| connected to {other}")
    example.read_until(rf"client@localhost \| {other} says good evening world")
    example.read_until(rf"client@localhost \| {served} left")  # its lease ended, and it gets its name back
    example.read_until(rf"client@localhost \| {served} joined", rf"{served} \| listens on port \d+")

    os.kill(example.process_of(other), signal.SIGKILL)
    example.read_until(rf"client@localhost \| {served} says good evening world")

    example.process.send_signal(signal.SIGINT)
    example.read_until(r"client@localhost \| has left", rf"{served} \| has left", "everything has ended")
    assert example.process.wait(timeout=10) == 0
    assert example.alive() == []
    host, port = endpoint.split(":")
    with pytest.raises(ConnectionRefusedError):  # etcd has ended too
        socket.create_connection((host, int(port)), timeout=5)
    assert not any("Traceback" in line for line in example.lines), "\n".join(example.lines)
