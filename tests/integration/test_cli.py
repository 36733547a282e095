"""The command line, through its real entry point, as a process of its own; none may leave another one behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from socket import socket

import pytest

from ergo_registrar.cli.demo import CONFIGURATION
from ergo_registrar.etcd.server import find_etcd, find_etcdctl

SCRIPT = shutil.which("ergo-registrar", path=str(Path(sys.executable).parent))
COMMAND = [SCRIPT] if SCRIPT else [sys.executable, "-m", "ergo_registrar.cli"]
MARK = "ERGO_TEST_MARK"  # children inherit it: who has it was started here
LONGEST = 30.0  # seconds; what the demo promises

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and sessions as POSIX has them")
linux = pytest.mark.skipif(sys.platform != "linux", reason="what dies with its parent does so on Linux only")


class Command:
    """One run of `ergo-registrar`, in a session of its own, as in a terminal where nobody else is."""

    def __init__(self, *arguments: str, **environ: str) -> None:
        self.mark = uuid.uuid4().hex
        self.start = time.monotonic()
        self.read = ""
        base = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=base | {"COLUMNS": "80", "PYTHONUTF8": "1", MARK: self.mark} | environ,
            start_new_session=True,
        )

    def read_until(self, beginning: str) -> str:
        """Read its standard output to a line that begins like this, and return that line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.read += line
            if line.strip().startswith(beginning):
                return line.rstrip("\n")
        raise AssertionError(f"no line begins with {beginning!r}:\n{self.read}\n{self.finish()}")

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end; return the exit code and all it printed."""
        out, err = self.process.communicate(timeout=LONGEST)
        self.read += out
        return self.process.returncode, self.read, err

    def left(self) -> list[str]:
        """The processes that still run of all it started, and itself."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (place / "environ").read_bytes():
                    found.append(f"{place.name} " + (place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:  # it ended meanwhile, or is not ours
                continue
        return found


@pytest.fixture
def run() -> Iterator[Callable[..., Command]]:
    """Start a command. What a failed test leaves of it is killed."""
    commands: list[Command] = []

    def start(*arguments: str, **environ: str) -> Command:
        commands.append(Command(*arguments, **environ))
        return commands[-1]

    yield start
    for command in commands:
        with command.process:
            command.process.kill()
        for left in command.left():
            os.kill(int(left.split()[0]), signal.SIGKILL)


def until(condition: Callable[[], object], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def etcdctl(endpoint: str, *arguments: str) -> str:
    done = subprocess.run(
        [find_etcdctl(), f"--endpoints={endpoint}", *arguments], capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout


# demo


def unfolded(output: str) -> list[str]:
    """The lines, without their indentation; those that a backslash continues in one."""
    return [line.strip() for line in re.sub(r" \\\n +", " ", output).splitlines()]


def test_the_demo_shows_what_it_promises(run: Callable[..., Command]) -> None:
    demo = run("demo")
    code, out, err = demo.finish()
    assert (code, err) == (0, ""), out + err
    assert time.monotonic() - demo.start < LONGEST
    assert demo.left() == []

    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    lines = unfolded(out)
    told = [re.sub(r"^\d+\.\d\d s +(\w+) +", r"\1 ", line) for line in lines]
    for command in CONFIGURATION.splitlines():
        assert f"$ {command}" in lines
    assert len(set(re.findall(r"web[123] is (\d+)", out))) == 3
    for event in [
        *("NodeJoined web1 at 127.0.0.1:15001", "NodeJoined web2 at 127.0.0.1:15002"),
        *("NodeJoined web3 at 127.0.0.1:15003", "ApplicationLoaded web-server on web2, weight 3"),
        *("ApplicationStarted web-server on web2, weight 3", "ApplicationStarted web-server on web3, weight 1"),
        *("ConfigUpdate database.port: 5432 -> 6432, at level 2", "ApplicationStopping web-server on web2, weight 3"),
        *("NodeLeft web2", "ApplicationStopped web-server on web2, weight 3"),
        *("NodeLeft web3", "ApplicationStopped web-server on web3, weight 1"),
    ]:
        assert told.count(event) == 1, event
    assert "web2 web2 web3 web2 web2 web2 web3 web2 web2 web2" in lines
    rows = [re.split(r" {2,}", line) for line in lines]
    assert [row[:3] for row in rows if row[0] in ("web2", "web3") and len(row) == 4] == [
        ["web2", "3", "8"],
        ["web3", "1", "2"],
    ]
    for row in [
        ["database.port", "int:5432", "5432", "int", "2 cluster, this node"],
        ["cache.ratio", "float:0.75", "0.75", "float", "3 cluster-wide"],
        ["debug.enabled", "bool:true", "True", "bool", "3 cluster-wide"],
        ["log.level", "info", "'info'", "str", "4 global"],
    ]:
        assert row in rows
    assert '$ etcdctl put services/ergo/cluster/production/config/web1/database.port "int:6432"' in lines
    assert re.search(r"web2 was gone \d+ ms after it was asked \(its process: exit status 0\)", out)
    killed = re.search(r"web3 was gone (\d\.\d) s after the SIGKILL \(its process: ended by SIGKILL\)", out)
    assert killed is not None
    assert 1.5 < float(killed[1]) < 5.5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", ["1. Start etcd", "2. Configure", "Processes:", "8. Kill a node"])
def test_a_signal_ends_the_demo_and_all_it_started(
    run: Callable[..., Command], number: signal.Signals, step: str
) -> None:
    demo = run("demo")
    demo.read_until(step)
    demo.process.send_signal(number)
    code, out, err = demo.finish()
    assert (code, err) == (128 + number, "")
    assert out.splitlines()[-1] == f"Ended by {number.name}. Every process that the demo started has ended."
    assert demo.left() == []


@linux
@pytest.mark.parametrize("step", ["Processes:", "8. Kill a node"])
def test_nothing_survives_a_killed_demo(run: Callable[..., Command], step: str) -> None:
    demo = run("demo")
    demo.read_until(step)
    demo.process.kill()
    demo.finish()
    until(lambda: not demo.left())


def test_the_demo_ends_with_its_reader(run: Callable[..., Command]) -> None:
    demo = run("demo")
    demo.read_until("1. Start etcd")
    assert demo.process.stdout is not None
    demo.process.stdout.close()
    assert demo.process.wait(LONGEST) == 1
    assert demo.process.stderr is not None
    assert demo.process.stderr.read() == ""
    assert demo.left() == []


def test_a_step_that_fails_is_named(run: Callable[..., Command], tmp_path: Path) -> None:
    (tmp_path / "etcd").symlink_to(find_etcd())
    broken = tmp_path / "etcdctl"
    broken.write_text("#!/bin/sh\necho out of order >&2\nexit 7\n")
    broken.chmod(0o755)
    demo = run("demo", ERGO_REGISTRAR_ETCD=str(tmp_path / "etcd"))
    code, _, err = demo.finish()
    assert code == 1
    assert "ergo-registrar: step 2 (Configure the cluster) failed: 'etcdctl put " in err
    assert "ended with status 7:\nout of order" in err
    assert demo.left() == []


def test_a_node_that_dies_is_named(run: Callable[..., Command]) -> None:
    demo = run("demo")
    web1 = re.search(r"web1 is (\d+)", demo.read_until("Processes:"))
    assert web1 is not None
    os.kill(int(web1[1]), signal.SIGKILL)
    code, _, err = demo.finish()
    assert code == 1
    assert re.search(r"^ergo-registrar: step \d \(.*\) failed: node web1 ended with status -9$", err, re.MULTILINE)
    assert demo.left() == []


def test_without_an_etcd_the_demo_says_how_to_get_one(run: Callable[..., Command], tmp_path: Path) -> None:
    code, _, err = run("demo", ERGO_REGISTRAR_ETCD=str(tmp_path / "none")).finish()
    assert code == 1
    assert err.startswith("ergo-registrar: step 1 (Start etcd) failed: ERGO_REGISTRAR_ETCD must be the path of an etcd")


# etcd


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_etcd_answers_until_a_signal_ends_it(run: Callable[..., Command], number: signal.Signals) -> None:
    command = run("etcd")
    endpoint = command.read_until("endpoints:").removeprefix("endpoints: ")
    assert re.fullmatch(r"127\.0\.0\.1:\d+", endpoint)
    log = Path(command.read_until("log:").removeprefix("log: "))
    assert command.read_until("export ERGO") == f"export ERGO_REGISTRAR_ENDPOINTS={endpoint}"
    assert command.read_until("export ETCDCTL") == f"export ETCDCTL_ENDPOINTS={endpoint}"
    assert log.stat().st_size > 0
    assert etcdctl(endpoint, "put", "greeting", "hello") == "OK\n"
    command.process.send_signal(number)
    code, _, err = command.finish()
    assert (code, err) == (0, "")
    assert command.left() == []
    assert not log.exists()


def test_etcd_takes_a_port_and_keeps_its_data(run: Callable[..., Command], tmp_path: Path) -> None:
    with closing(socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    for expected in ["", "greeting\nhello\n"]:
        command = run("etcd", "--port", port, "--data", str(tmp_path / "kept"))
        assert command.read_until("endpoints:") == f"endpoints: 127.0.0.1:{port}"
        assert etcdctl(f"127.0.0.1:{port}", "get", "greeting") == expected
        etcdctl(f"127.0.0.1:{port}", "put", "greeting", "hello")
        command.process.send_signal(signal.SIGINT)
        assert command.finish()[0] == 0


def test_etcd_tells_of_members_that_end(run: Callable[..., Command]) -> None:
    command = run("etcd", "--members", "3")
    endpoints = command.read_until("endpoints:").removeprefix("endpoints: ").split(",")
    assert len(set(endpoints)) == 3
    command.read_until("Ctrl-C")
    members = [line for line in command.left() if "--initial-cluster" in line]
    assert len(members) == 3
    for member in members:
        os.kill(int(member.split()[0]), signal.SIGKILL)
    code, _, err = command.finish()
    assert code == 1
    for endpoint in endpoints:
        assert re.search(rf"ergo-registrar: etcd\d at {endpoint} ended with status -9; its log: /", err)
    assert err.splitlines()[-1] == "ergo-registrar: no etcd is left running"


def test_a_taken_port_is_said(run: Callable[..., Command]) -> None:
    with closing(socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        code, out, err = run("etcd", "--port", str(port)).finish()
    assert (code, out) == (1, "")
    assert err.startswith(f"ergo-registrar: port {port} of 127.0.0.1 is taken: ")


# the whole


def test_help_teaches(run: Callable[..., Command]) -> None:
    code, out, _ = run("--help").finish()
    assert code == 0
    for word in ["demo", "etcd", "Exit codes: 0 done; 1 it failed", "130 ended by Ctrl-C"]:
        assert word in " ".join(out.split())
    for name in ["demo", "etcd"]:
        code, out, _ = run(name, "--help").finish()
        assert code == 0
        assert "ERGO_REGISTRAR_ETCD" in out


def test_version(run: Callable[..., Command]) -> None:
    code, out, _ = run("--version").finish()
    assert code == 0
    assert re.fullmatch(r"ergo-registrar \d+\.\d+\.\d+\S*\n", out)


@pytest.mark.parametrize(
    ("arguments", "right"),
    [(["dmeo"], "'demo'"), (["etcd", "--members", "0"], "--members"), (["etcd", "--prot", "1"], "--port")],
)
def test_a_wrong_word_says_what_is_right(run: Callable[..., Command], arguments: list[str], right: str) -> None:
    code, out, err = run(*arguments).finish()
    assert (code, out) == (2, "")
    assert right in err


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ergo_registrar.cli", "--version"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.startswith("ergo-registrar ")


def test_without_the_extra_it_says_what_to_install() -> None:
    script = "import sys; sys.modules['typer'] = None; from ergo_registrar.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'ergo-registrar[cli]'" in done.stderr
