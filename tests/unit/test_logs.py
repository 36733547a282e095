"""How often what happens again and again is told: at first each time, then now and then, with how often it was."""

import logging

import pytest

from ergo_registrar.core.session import State
from ergo_registrar.errors import ConnectionFailedError
from ergo_registrar.logs import StateLog, Throttle, about

HOUR = 3600


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def states(clock: Clock, caplog: pytest.LogCaptureFixture) -> StateLog:
    caplog.set_level(logging.INFO)
    return StateLog(logging.getLogger("ergo_registrar.test"), lambda: about("state_changed", "c", "a@h"), clock)


def test_a_throttle_lets_the_first_through_and_then_one_in_a_while(clock: Clock) -> None:
    throttle = Throttle(2, 600, clock)
    told = []
    for clock.at in range(HOUR):
        told.append(throttle.note())
    assert {at: count for at, count in enumerate(told) if count} == {
        0: 1,
        1: 1,
        **dict.fromkeys(range(1200, HOUR, 600), 600),
        600: 599,
    }


def test_a_throttle_that_was_left_alone_lets_as_many_through_again(clock: Clock) -> None:
    throttle = Throttle(2, 600, clock)
    assert [throttle.note() for _ in range(4)] == [1, 1, None, None]
    assert throttle.due() is None
    clock.at = HOUR
    assert throttle.due() == 2
    assert throttle.due() is None
    assert [throttle.note() for _ in range(2)] == [1, None]


def test_nothing_is_told_of_nothing(clock: Clock) -> None:
    assert Throttle(2, 600, clock).due() is None


def test_a_state_that_changes_is_told_with_where_it_was(states: StateLog, caplog: pytest.LogCaptureFixture) -> None:
    states.changed(State.CONNECTING, None)
    states.changed(State.CONNECTED, None)
    states.changed(State.SUSPENDED, ConnectionFailedError("no answer"))
    states.catch_up()
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "new -> connecting"),
        ("INFO", "connecting -> connected"),
        ("WARNING", "connected -> suspended: no answer"),
    ]


def test_a_state_that_flaps_for_an_hour_is_told_once_a_minute_and_how_it_ended(
    states: StateLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for clock.at in range(HOUR):
        states.changed(State.CONNECTED if clock.at % 2 else State.LOST, None)
        states.catch_up()
    states.changed(State.LOST, None)
    clock.at = HOUR + 60
    states.catch_up()
    assert 60 <= len(caplog.records) <= 72
    assert sum(vars(record)["ergo_count"] for record in caplog.records) == HOUR + 1
    assert vars(caplog.records[-1])["ergo_state"] == "lost"
    assert "changes since the last line" in caplog.messages[-1]
    for one, following in zip(caplog.records, caplog.records[1:], strict=False):
        assert vars(one)["ergo_state"] == vars(following)["ergo_previous_state"]


def test_the_end_is_told_always(states: StateLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(100):
        states.changed(State.LOST, None)
    states.changed(State.CLOSING, None)
    states.changed(State.CLOSED, None)
    assert [r.getMessage() for r in caplog.records[-2:]] == ["lost -> closing", "closing -> closed"]
