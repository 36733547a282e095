"""The session's table keeps its promises, on every way through it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ergo_registrar.core.session import TRANSITIONS, Announcement, Input, State, Transition, advance

CONNECTED, DISCONNECTED = Announcement.CONNECTED, Announcement.DISCONNECTED
FROM_ETCD = [Input.CLAIMED, Input.PROVEN, Input.SILENT, Input.EXPIRED, Input.STOLEN]
ENDED = {State.CLOSED, State.FAILED}
EVERY_PAIR = [(state, happened) for state in State for happened in Input]

# The whole table, said once more in short: the state an input leads to, + for "gained" and - for "lost".
EXPECTED = """
           start      refused   entered    claimed    proven     silent     expired    stolen     close   ended  crashed
new        connecting .         .          .          .          .          .          .          closed  .      .
connecting .          new       connected+ connecting connecting connecting connecting connecting closing .      failed
connected  .          connected connected+ connected  connected  suspended  lost-      lost-      closing .      failed
suspended  .          suspended connected+ connected  connected  suspended  lost-      lost-      closing .      failed
lost       .          lost      connected+ connected+ lost       lost       lost       lost-      closing .      failed
closing    .          closing   closing    closing    closing    closing    closing    closing    closing closed failed
closed     .          closed    closed     closed     closed     closed     closed     closed     closed  .      .
failed     .          failed    failed     failed     failed     failed     failed     failed     failed  .      .
"""


def expected() -> dict[tuple[State, Input], str]:
    head, *rows = [line.split() for line in EXPECTED.strip().splitlines()]
    return {(State(row[0]), Input(name)): cell for row in rows for name, cell in zip(head, row[1:], strict=True)}


@pytest.mark.parametrize(("state", "happened"), EVERY_PAIR, ids=lambda value: value.value)
def test_every_transition(state: State, happened: Input) -> None:
    cell = expected()[state, happened]
    if cell == ".":
        with pytest.raises(LookupError, match=f"{state.value} does not expect {happened.value}"):
            advance(state, happened)
        return
    announce = {"+": CONNECTED, "-": DISCONNECTED}.get(cell[-1], Announcement.NOTHING)
    assert advance(state, happened) == Transition(State(cell.rstrip("+-")), announce)


def test_the_table_has_a_row_for_every_state() -> None:
    assert set(TRANSITIONS) == set(State)


def test_a_session_is_gained_into_connected_and_lost_out_of_it_only() -> None:
    for row in TRANSITIONS.values():
        for transition in row.values():
            if transition.announce is CONNECTED:
                assert transition.state is State.CONNECTED
            if transition.announce is DISCONNECTED:
                assert transition.state is State.LOST


def test_nothing_but_close_and_a_bug_ends_a_registrar() -> None:
    for state, row in TRANSITIONS.items():
        for happened, transition in row.items():
            if transition.state in {*ENDED, State.CLOSING} and state not in {*ENDED, State.CLOSING}:
                assert happened in (Input.CLOSE, Input.CRASHED)


def test_nothing_leads_out_of_the_end() -> None:
    for state in ENDED:
        assert {transition.state for transition in TRANSITIONS[state].values()} == {state}


def test_close_is_possible_everywhere_and_a_bug_wherever_tasks_run() -> None:
    assert all(Input.CLOSE in row for row in TRANSITIONS.values())
    for state in set(State) - {State.NEW, *ENDED}:
        assert advance(state, Input.CRASHED).state is State.FAILED


def test_whatever_etcd_says_is_expected_wherever_tasks_run() -> None:
    for state in set(State) - {State.NEW, *ENDED}:
        assert set(FROM_ETCD) <= TRANSITIONS[state].keys()


def test_every_state_can_be_reached_and_can_end() -> None:
    reached, new = set(), {State.NEW}
    while new:
        reached |= new
        new = {transition.state for state in new for transition in TRANSITIONS[state].values()} - reached
    assert reached == set(State)
    assert all(advance(state, Input.CLOSE).state in {*ENDED, State.CLOSING} for state in State)


@given(st.data())
def test_gained_and_lost_are_told_once_each(data: st.DataObject) -> None:
    """On every way: nobody hears of a loss who was not told of a session, nor of a session lost twice.

    Two are said again on purpose. ENTERED may come a second time, when an observer becomes a member. And a session that
    expired, and whose name then proves to be in other hands, is lost for a second reason.
    """
    state, told = State.NEW, None
    for happened in data.draw(st.lists(st.sampled_from(Input), max_size=60)):
        if happened not in TRANSITIONS[state]:
            continue
        transition = advance(state, happened)
        if transition.announce is CONNECTED:
            assert told is not CONNECTED or happened is Input.ENTERED
            told = CONNECTED
        elif transition.announce is DISCONNECTED:
            assert told is CONNECTED or happened is Input.STOLEN
            told = DISCONNECTED
        state = transition.state
        if state in (State.CONNECTED, State.SUSPENDED):
            assert told is CONNECTED
        if state is State.LOST:
            assert told is DISCONNECTED


@given(st.lists(st.sampled_from([Input.PROVEN, Input.SILENT]), max_size=30))
def test_silence_that_ends_in_time_is_no_news(inputs: list[Input]) -> None:
    state = State.CONNECTED
    for happened in inputs:
        transition = advance(state, happened)
        assert transition.announce is Announcement.NOTHING
        state = transition.state
    assert state is (State.SUSPENDED if inputs and inputs[-1] is Input.SILENT else State.CONNECTED)


def test_what_is_not_in_the_table_is_a_bug_of_the_caller() -> None:
    with pytest.raises(LookupError, match="a registrar that is new does not expect proven"):
        advance(State.NEW, Input.PROVEN)
