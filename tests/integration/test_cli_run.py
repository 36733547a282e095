"""`ergo-registrar run`, through its entry point: what others see in etcd while a program lives, stops and dies."""

import base64
import json
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from socket import socket

import pytest
from anyio.from_thread import start_blocking_portal

from ergo_registrar import ApplicationRoute, Route
from ergo_registrar.core.edf import decode_application_route, decode_routes
from ergo_registrar.etcd.server import LocalEtcd
from tests.integration.test_cli import Command, etcdctl, linux, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")

# Programs, for sh: each says when it is up, and what it is told.
WAITS = 'trap "echo got TERM; exit 3" TERM; trap "echo got INT; exit 4" INT; trap "echo got HUP" HUP; '
WAITS += "echo up; while :; do sleep 0.05; done"

Start = Callable[..., Command]


class Cluster:
    """A cluster of the test's own, as etcdctl shows it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.name = f"run-{uuid.uuid4().hex}"

    def keys(self) -> dict[str, bytes]:
        """Return what stands under `routes/`, but for departure markers."""
        prefix = f"services/ergo/cluster/{self.name}/routes/"
        found = json.loads(etcdctl(self.endpoint, "get", "--prefix", prefix, "-w", "json")).get("kvs", [])
        named = {
            base64.b64decode(kv["key"]).decode()[len(prefix) :]: base64.b64decode(kv.get("value", "")) for kv in found
        }
        return {key: value for key, value in named.items() if not key.startswith("leaving/")}

    def application(self, name: str = "web", node: str = "a@h") -> ApplicationRoute | None:
        value = self.keys().get(f"applications/{name}/{node}")
        return None if value is None else decode_application_route(value)

    def weight(self) -> int | None:
        return route.weight if (route := self.application()) else None


@pytest.fixture
def cluster(etcd: str) -> Cluster:
    return Cluster(etcd)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `run` in a cluster. What a failed test leaves of it is killed."""
    commands: list[Command] = []

    def begin(cluster: Cluster, options: str, *program: str, **environ: str) -> Command:
        where = ("--endpoints", cluster.endpoint, "--cluster", cluster.name, "--lease-ttl", "2")
        commands.append(Command("run", *where, *options.split(), "--", *program, **environ))
        return commands[-1]

    yield begin
    for command in commands:
        with command.process:
            command.process.kill()
        for left in command.left():
            os.kill(int(left.split()[0]), signal.SIGKILL)


WEB = "--node a@h --route h:8000 --app web"


def stderr_until(command: Command, words: str) -> str:
    assert command.process.stderr is not None
    read = ""
    for line in command.process.stderr:
        read += line
        if words in line:
            return read
    raise AssertionError(f"{words!r} was not said: {read}")


def test_what_others_see_while_it_runs(cluster: Cluster, start: Start) -> None:
    options = "--route [::1]:8001 --app db --weight 3 --mode transient --tag green --tag new"
    command = start(cluster, f"{WEB} {options}", "sh", "-c", WAITS)
    command.read_until("up")
    until(lambda: cluster.application("db"))
    keys = cluster.keys()
    assert keys.keys() == {"nodes/a@h", "applications/web/a@h", "applications/db/a@h"}
    assert decode_routes(keys["nodes/a@h"]) == [Route("h", 8000), Route("::1", 8001)]
    assert cluster.application() == ApplicationRoute("a@h", "web", 3, 2, 2, tags=("green", "new"))


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill $$", 143)])
def test_its_end_is_the_end(cluster: Cluster, start: Start, script: str, code: int) -> None:
    """However it ends: its exit code is ours, and its keys are gone when we are."""
    assert start(cluster, WEB, "sh", "-c", script).finish() == (code, "", "")
    assert cluster.keys() == {}


@pytest.mark.parametrize(
    ("content", "mode", "code", "why"),
    [
        (None, 0, 127, "there is no such program"),
        ("#!/bin/sh\n", 0o644, 126, "it may not be executed"),
        ("no program\n", 0o755, 126, "Exec format error"),
        ("#!/no/such/shell\n", 0o755, 127, "No such file or directory"),
    ],
)
def test_what_cannot_be_started(
    cluster: Cluster, start: Start, tmp_path: Path, content: str | None, mode: int, code: int, why: str
) -> None:
    program = tmp_path / "program"
    if content is not None:
        program.write_text(content)
        program.chmod(mode)
    assert start(cluster, WEB, str(program)).finish() == (code, "", f"ergo-registrar: {program}: {why}\n")
    assert cluster.keys() == {}


def catches(command: Command, number: signal.Signals) -> bool:
    """Say whether a process has a handler for a signal."""
    status = Path(f"/proc/{command.process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@linux
def test_a_name_that_is_taken_starts_nothing(cluster: Cluster, start: Start, tmp_path: Path) -> None:
    start(cluster, WEB, "sh", "-c", WAITS).read_until("up")
    second = tmp_path / "second"
    code, _, err = start(cluster, WEB, "touch", str(second)).finish()
    assert code == 1
    assert err.startswith(f"ergo-registrar: node name 'a@h' is taken in cluster '{cluster.name}'")
    waiting = start(cluster, f"{WEB} --claim-timeout 60", "touch", str(second))
    until(lambda: catches(waiting, signal.SIGTERM))
    waiting.process.send_signal(signal.SIGTERM)
    # Under coverage, which has a handler of its own for it, the signal may come before ours is there.
    assert waiting.finish()[0] in (143, -signal.SIGTERM)
    assert not second.exists()


def test_a_crashed_predecessor_is_waited_for(cluster: Cluster, start: Start) -> None:
    first = start(cluster, WEB, "sh", "-c", WAITS)
    first.read_until("up")
    first.process.kill()
    assert start(cluster, f"{WEB} --claim-timeout 20", "echo", "second").finish() == (0, "second\n", "")


def test_a_stop_drains_first(cluster: Cluster, start: Start) -> None:
    """SIGTERM: nobody picks it any more, the program does not know yet; then it is told, and ends as it likes."""
    command = start(cluster, f"{WEB} --drain-time 2", "sh", "-c", WAITS)
    command.read_until("up")
    until(lambda: cluster.weight() == 1)
    command.process.send_signal(signal.SIGTERM)
    until(lambda: cluster.weight() == -1)
    assert command.process.poll() is None
    assert command.finish() == (3, "up\ngot TERM\n", "")
    assert cluster.keys() == {}


def test_a_second_stop_ends_the_waiting(cluster: Cluster, start: Start) -> None:
    """Ctrl-C twice, which a terminal sends to a whole group: the program hears of it once, without further delay."""
    command = start(cluster, f"{WEB} --drain-time 600", "sh", "-c", WAITS)
    command.read_until("up")
    until(lambda: cluster.weight() == 1)
    os.killpg(command.process.pid, signal.SIGINT)
    until(lambda: cluster.weight() == -1)
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.finish() == (4, "up\ngot INT\n", "")


def test_without_a_drain_time_a_stop_is_passed_on_at_once(cluster: Cluster, start: Start) -> None:
    command = start(cluster, f"{WEB} --drain-time 0", "sh", "-c", WAITS)
    command.read_until("up")
    command.process.send_signal(signal.SIGTERM)
    assert command.finish()[0] == 3


def test_other_signals_are_passed_on_and_change_nothing(cluster: Cluster, start: Start) -> None:
    command = start(cluster, WEB, "sh", "-c", WAITS)
    command.read_until("up")
    until(lambda: cluster.weight() == 1)
    command.process.send_signal(signal.SIGHUP)
    assert command.read_until("got") == "got HUP"
    assert cluster.weight() == 1
    assert command.process.poll() is None


def test_etcd_may_go_and_come_back(start: Start) -> None:
    """The program goes on; standard error tells of both; all is published again."""
    etcd = LocalEtcd()
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(etcd):
        cluster = Cluster(etcd.endpoint)
        command = start(cluster, WEB, "sh", "-c", WAITS)
        command.read_until("up")
        until(lambda: cluster.weight() == 1)
        portal.call(etcd.members[0].kill)
        assert "The program goes on" in stderr_until(command, "a@h is not registered any more: ")
        assert command.process.poll() is None
        portal.call(etcd.members[0].restart)
        stderr_until(command, "a@h is registered again")
        until(lambda: cluster.weight() == 1)
        command.process.send_signal(signal.SIGTERM)
        assert command.finish()[0] == 3
        assert cluster.keys() == {}


def test_a_stop_while_etcd_is_away_takes_the_drain_time_and_no_more(start: Start) -> None:
    etcd = LocalEtcd()
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(etcd):
        cluster = Cluster(etcd.endpoint)
        command = start(cluster, WEB, "sh", "-c", WAITS)
        command.read_until("up")
        until(lambda: cluster.weight() == 1)
        portal.call(etcd.members[0].kill)
        command.process.send_signal(signal.SIGTERM)
        assert command.read_until("got") == "got TERM"
        assert command.finish()[0] == 3


LISTENS = (
    "import pathlib, socket, sys, time\n"
    "print('up', flush=True)\n"
    "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.05)\n"
    "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
    "while True: listener.accept()[0].close()\n"
)


def test_it_can_wait_until_the_program_accepts_connections(cluster: Cluster, start: Start, tmp_path: Path) -> None:
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = f"--node a@h --route 127.0.0.1:{port} --app web --ready-tcp"
    command = start(cluster, options, sys.executable, "-c", LISTENS, port, str(tmp_path / "go"))
    command.read_until("up")
    assert "not published: the program accepts no connections" in stderr_until(command, "Still trying")
    assert cluster.keys().keys() == {"nodes/a@h"}
    (tmp_path / "go").touch()
    until(lambda: cluster.weight() == 1)


@linux
def test_what_kills_it_kills_the_program(cluster: Cluster, start: Start) -> None:
    """Nobody would be there to keep it registered."""
    command = start(cluster, WEB, "sleep", "600")
    until(lambda: cluster.weight() == 1)
    assert any("sleep" in process for process in command.left())
    command.process.kill()
    until(lambda: not command.left())
    until(lambda: cluster.keys() == {})  # when the lease has ended


@linux
def test_the_program_is_as_any_other(cluster: Cluster, start: Start) -> None:
    """It inherits the environment and no ignored signal."""
    script = "echo $ERGO_REGISTRAR_USERNAME; grep SigIgn /proc/self/status"
    environ = {"ERGO_REGISTRAR_USERNAME": "web", "ERGO_REGISTRAR_PASSWORD": "secret"}
    code, out, err = start(cluster, WEB, "sh", "-c", script, **environ).finish()
    assert (code, out.split(), err) == (0, ["web", "SigIgn:", "0000000000000000"], "")


@pytest.mark.parametrize(
    ("options", "right"),
    [
        ("--node a@h --route h", "must be HOST:PORT"),
        ("--node a@h --route h:70000", "must be HOST:PORT"),
        ("--node a/h --route h:1", "must be 1 to 255 bytes"),
        ("--node a@h --route h:1 --app a/b", "must be 1 to 255 bytes"),
        ("--node a@h", "--route"),
        ("--route h:1", "--node"),
        ("--node a@h --route h:1 --mode eternal", "'permanent'"),
        ("--node a@h --route h:1 --weight -1", "--weight"),
        ("--node a@h --route h:1 --claim-timeout -1", "claim_timeout"),
    ],
)
def test_a_wrong_option_says_what_is_right(
    cluster: Cluster, start: Start, tmp_path: Path, options: str, right: str
) -> None:
    code, out, err = start(cluster, options, "touch", str(tmp_path / "started")).finish()
    assert (code, out) == (2, "")
    assert right in err
    assert not (tmp_path / "started").exists()


def test_help_teaches() -> None:
    code, out, _ = Command("run", "--help").finish()
    assert code == 0
    for word in ("--drain-time", "weight -1", "--ready-tcp", "Windows", "Exit codes: the program's own, or 128 + N"):
        assert word in " ".join(out.split())
