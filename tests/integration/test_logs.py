"""The log records: each as the reference page has it, with its fields, and an outage is a handful of lines."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from blockbuster import BlockBuster

from ergo_registrar import ConfigLevel, ConnectionFailedError, Options, Registrar, State
from ergo_registrar.etcd.client import Client
from ergo_registrar.etcd.server import LocalEtcd
from ergo_registrar.testing.proxy import FaultProxy
from tests.integration.metering import rows
from tests.integration.support import Raw, etcdctl, eventually, settled, short_options

Make = Callable[..., Awaitable[Registrar]]

RECORDS = {record: (level, fields) for record, level, fields, _ in rows("`ergo_record`")}

NATIVE = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class Settings(msgspec.Struct):
    port: int = 1


@pytest.fixture(autouse=True)
def may_stand_still(no_blocking_calls: BlockBuster) -> None:
    for function in no_blocking_calls.functions.values():
        function.can_block_in("integration/test_logs.py", "stand_still")


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ergo_registrar")


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the package's records. Fail where one is not as the page has it, or of whom it is, is not told."""
    records = [record for record in caplog.records if record.name.startswith("ergo_registrar")]
    for record in records:
        fields = fields_of(record)
        level, allowed = RECORDS[str(fields.pop("record"))]
        assert record.levelname in level.split(", ")
        assert fields.pop("cluster")
        assert set(fields) - {"node"} <= set(allowed.split(", ")), record
        assert all(isinstance(value, str | int | float) and value != "" for value in fields.values())
    return records


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    return {name.removeprefix("ergo_"): value for name, value in vars(record).items() if name.startswith("ergo_")}


def the(caplog: pytest.LogCaptureFixture, record: str) -> dict[str, object]:
    """Return the fields of the first record of this kind."""
    return next(fields for each in told(caplog) if (fields := fields_of(each))["record"] == record)


def test_no_field_is_one_of_logging_itself() -> None:
    names = {f"ergo_{name}" for _, fields in RECORDS.values() for name in fields.split(", ")}
    assert not names & NATIVE


async def test_an_outage_is_told_when_it_begins_and_when_it_ends(
    registrar_options: Options, relay: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Fifteen tries fail meanwhile and are told at DEBUG alone: so are those of an hour."""
    options = short_options(relay.endpoint, cluster=registrar_options.cluster)

    def at_debug() -> int:
        return sum(record.levelno == logging.DEBUG for record in told(caplog))

    async with Registrar(options, node="a@h") as registrar:
        await relay.refuse()
        await eventually(lambda: registrar.state is State.LOST)
        seen = len([record for record in told(caplog) if record.levelno > logging.DEBUG])
        await eventually(lambda: at_debug() >= 15, within=30)
        assert len([record for record in told(caplog) if record.levelno > logging.DEBUG]) == seen
        await relay.heal()
        await eventually(lambda: registrar.state is State.CONNECTED)
    lines = [record for record in told(caplog) if record.levelno > logging.DEBUG]
    states = [fields_of(line)["state"] for line in lines]
    assert states[:5] == ["connecting", "connected", "suspended", "lost", "connected"]
    assert states[5:-2] in ([], ["suspended"], ["suspended", "connected"])  # the lease may be back before the watch
    lost = fields_of(lines[3])
    assert (lost["cluster"], lost["node"]) == (options.cluster, "a@h")
    assert (lost["previous_state"], lost["count"]) == ("suspended", 1)
    assert "etcd did not answer" in str(lost["reason"])
    assert lines[3].levelname == "WARNING"
    connected = fields_of(lines[1])
    assert (connected["endpoint"], connected["revision"]) == (relay.endpoint, lost["revision"])
    assert {fields_of(record)["record"] for record in told(caplog)} >= {"watch_broken", "renewal_failed", "not_back"}


async def test_a_close_that_etcd_does_not_hear_says_what_is_left(
    registrar_options: Options, relay: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    options = short_options(relay.endpoint, cluster=registrar_options.cluster, close_timeout=1)
    async with Registrar(options, node="a@h"):
        await relay.refuse()
    assert the(caplog, "no_marker")["node"] == "a@h"
    assert re.fullmatch("[0-9a-f]+", str(the(caplog, "lease_not_revoked")["lease"]))


async def test_a_close_that_hangs_says_so(
    registrar_options: Options,
    make_registrar: Make,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registrar = await make_registrar("a@h", close_timeout=1)
    registration = registrar._runner.registration
    depart = registration.depart

    async def hang(timeout: float) -> None:
        await depart(timeout)
        await asyncio.Event().wait()

    monkeypatch.setattr(registration, "depart", hang)
    await registrar.close()
    assert the(caplog, "leave_timed_out")["node"] == "a@h"


async def test_settings_that_are_not_valid_say_whose(
    make_registrar: Make, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    registrar = await make_registrar("a@h")
    async with registrar.bind(Settings) as live:
        revision = await registrar.set_config("port", "many", level=ConfigLevel.CLUSTER_NODE)
        await eventually(lambda: live.problems)
        await registrar.unset_config("port", level=ConfigLevel.CLUSTER_NODE)
    fields = the(caplog, "settings_invalid")
    assert (fields["node"], fields["revision"], fields["settings"]) == ("a@h", revision, "Settings")
    assert fields["reason"] == "port: expected int, not 'many' of level 2; it is read as str"


async def test_a_key_that_is_skipped_says_which(
    make_registrar: Make, raw: Raw, routes: str, caplog: pytest.LogCaptureFixture
) -> None:
    registrar = await make_registrar("a@h")
    for _ in range(3):
        await raw.put(f"{routes}nodes/bad@h", b"garbage")
        await settled(raw, registrar)
    (skipped,) = [fields for record in told(caplog) if (fields := fields_of(record))["record"] == "key_skipped"]
    assert skipped["key"] == f"{routes}nodes/bad@h"
    assert "padding" in str(skipped["reason"])
    assert registrar.stats.keys_skipped == 3


async def test_a_loop_that_lags_is_told_twice_and_then_counted(
    make_registrar: Make, caplog: pytest.LogCaptureFixture
) -> None:
    registrar = await make_registrar(lease_ttl=2)

    def lags() -> int:
        return sum(fields_of(record)["record"] == "loop_lagged" for record in told(caplog))

    def stand_still() -> bool:
        time.sleep(0.7)
        return registrar._runner._lags_told._waiting > 2

    await eventually(stand_still, within=30)
    assert lags() == 2
    lagged = the(caplog, "loop_lagged")
    assert lagged["lease_ttl"] == 2
    assert 0.4 <= float(str(lagged["loop_lag"])) < 5


async def test_a_login_that_is_refused_is_told_twice_and_then_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with LocalEtcd() as etcd:
        for command in ("user add root:secret", "user grant-role root root", "auth enable"):
            await etcdctl(etcd.endpoint, *command.split())
        options = short_options(etcd.endpoint, username="root", password="wrong")
        for _ in range(2):
            with pytest.raises(ConnectionFailedError, match="wrong username or password"):
                async with Registrar(options):
                    pass
    refused = the(caplog, "login_refused")
    assert (refused["cluster"], refused["endpoint"], refused["count"]) == (options.cluster, etcd.endpoint, 1)


async def test_a_registrar_that_dies_of_a_bug_says_whose_it_was(
    make_registrar: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    registrar = await make_registrar("a@h")

    async def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Client, "keep_alive", broken)
    await eventually(lambda: registrar.state is State.FAILED)
    assert the(caplog, "crashed")["node"] == "a@h"
    assert "ZeroDivisionError" in caplog.text
