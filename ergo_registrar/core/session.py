"""The life of a registrar as a table: states, inputs, and what each transition is announced as.

Rules the table keeps:

- A session is what etcd keeps of this process: for a member the lease its name and routes hang on, for an observer,
  who has no lease, the watch that keeps its view current.
- Only `CONNECTED` means that etcd proved, within the last lease period, that this process is seen by others.
- Silence is not loss. While etcd does not answer, the lease may still live, and others may still see this process:
  `SUSPENDED`. It is lost once etcd says so, or once its time is over by the own clock, which started before etcd's.
- Gaining a session and losing it are told once each. Coming back from silence in time is not news.
- A lost session is tried for again until `close()`. Nothing but `close()` and a bug ends a registrar.
- An observer may become a member: then `ENTERED` comes a second time, and the session is told of anew.
- What is not in the table is a bug in the caller, and is refused.

The diagram in `docs/explanation/session.md` is made from this table by `diagram()`.
"""

from enum import Enum

import msgspec


class State(Enum):
    """Where a registrar is in its life, and what that means to the caller."""

    NEW = "new"
    """Nothing was sent. Enter `async with`, or await `register`."""
    CONNECTING = "connecting"
    """Looking for etcd, claiming the name, reading the cluster. Wait."""
    CONNECTED = "connected"
    """Registered and seen by others; what is read here is current."""
    SUSPENDED = "suspended"
    """etcd does not answer. Others may still see this process; what is read here may be old. Writes will wait."""
    LOST = "lost"
    """The session is over: others saw this process leave. It is trying to come back; what is read here is old."""
    CLOSING = "closing"
    """`close()` is at work."""
    CLOSED = "closed"
    """Closed. Make a new registrar to begin again."""
    FAILED = "failed"
    """The registrar died of a bug: every call raises `TerminatedError` with the cause."""


class Input(Enum):
    """What can happen to a session."""

    START = "start"
    """The caller wants in."""
    REFUSED = "refused"
    """The name is taken, or etcd could not be used: this try is over."""
    ENTERED = "entered"
    """The name is held and the cluster was read (observer: the cluster was read)."""
    CLAIMED = "claimed"
    """A session that was lost is there again."""
    PROVEN = "proven"
    """etcd answered for the lease (observer: the watch)."""
    SILENT = "silent"
    """etcd did not answer in time."""
    EXPIRED = "expired"
    """The lease is over."""
    STOLEN = "stolen"
    """The name is in someone else's hands."""
    CLOSE = "close"
    """The caller wants out."""
    ENDED = "ended"
    """Everything is put away."""
    CRASHED = "crashed"
    """A task of the registrar ended by an exception that nobody expects: a bug."""


class Announcement(Enum):
    """What subscribers are told of a transition."""

    NOTHING = "nothing"
    CONNECTED = "RegistrarConnected"
    DISCONNECTED = "RegistrarDisconnected"


class Transition(msgspec.Struct, frozen=True):
    """Where an input leads, and what is told of it."""

    state: State
    announce: Announcement = Announcement.NOTHING


_CONNECTED = Transition(State.CONNECTED)
_GAINED = Transition(State.CONNECTED, Announcement.CONNECTED)
_SUSPENDED = Transition(State.SUSPENDED)
_LOST = Transition(State.LOST, Announcement.DISCONNECTED)
_CLOSING = Transition(State.CLOSING)
_CLOSED = Transition(State.CLOSED)
_FAILED = Transition(State.FAILED)

_FROM_ETCD = (Input.CLAIMED, Input.PROVEN, Input.SILENT, Input.EXPIRED, Input.STOLEN)

TRANSITIONS: dict[State, dict[Input, Transition]] = {
    State.NEW: {
        Input.START: Transition(State.CONNECTING),
        Input.CLOSE: _CLOSED,
    },
    State.CONNECTING: {
        **dict.fromkeys(_FROM_ETCD, Transition(State.CONNECTING)),
        Input.ENTERED: _GAINED,
        Input.REFUSED: Transition(State.NEW),
        Input.CLOSE: _CLOSING,
        Input.CRASHED: _FAILED,
    },
    State.CONNECTED: {
        Input.ENTERED: _GAINED,
        Input.REFUSED: _CONNECTED,
        Input.CLAIMED: _CONNECTED,
        Input.PROVEN: _CONNECTED,
        Input.SILENT: _SUSPENDED,
        Input.EXPIRED: _LOST,
        Input.STOLEN: _LOST,
        Input.CLOSE: _CLOSING,
        Input.CRASHED: _FAILED,
    },
    State.SUSPENDED: {
        Input.ENTERED: _GAINED,
        Input.REFUSED: _SUSPENDED,
        Input.CLAIMED: _CONNECTED,
        Input.PROVEN: _CONNECTED,
        Input.SILENT: _SUSPENDED,
        Input.EXPIRED: _LOST,
        Input.STOLEN: _LOST,
        Input.CLOSE: _CLOSING,
        Input.CRASHED: _FAILED,
    },
    State.LOST: {
        Input.ENTERED: _GAINED,
        Input.REFUSED: Transition(State.LOST),
        Input.CLAIMED: _GAINED,
        Input.PROVEN: Transition(State.LOST),
        Input.SILENT: Transition(State.LOST),
        Input.EXPIRED: Transition(State.LOST),
        Input.STOLEN: _LOST,
        Input.CLOSE: _CLOSING,
        Input.CRASHED: _FAILED,
    },
    State.CLOSING: {
        **dict.fromkeys((*_FROM_ETCD, Input.ENTERED, Input.REFUSED, Input.CLOSE), _CLOSING),
        Input.ENDED: _CLOSED,
        Input.CRASHED: _FAILED,
    },
    State.CLOSED: dict.fromkeys((*_FROM_ETCD, Input.ENTERED, Input.REFUSED, Input.CLOSE), _CLOSED),
    State.FAILED: dict.fromkeys((*_FROM_ETCD, Input.ENTERED, Input.REFUSED, Input.CLOSE), _FAILED),
}


def advance(state: State, happened: Input) -> Transition:
    """Return where `happened` leads from `state`. An input that has no place there is a `LookupError`."""
    try:
        return TRANSITIONS[state][happened]
    except KeyError:
        raise LookupError(f"a registrar that is {state.value} does not expect {happened.value}") from None


def diagram() -> str:
    """Return the table as a Mermaid state diagram, for the docs: every arrow that leads elsewhere, or is told of."""
    lines = ["stateDiagram-v2", "    [*] --> new"]
    for state, row in TRANSITIONS.items():
        arrows: dict[State, list[str]] = {}
        for happened, transition in row.items():
            if transition == Transition(state):
                continue  # nothing happens, and nobody is told
            told = "" if transition.announce is Announcement.NOTHING else f" / {transition.announce.value}"
            arrows.setdefault(transition.state, []).append(happened.value + told)
        lines += [f"    {state.value} --> {target.value}: {', '.join(labels)}" for target, labels in arrows.items()]
    return "\n".join([*lines, "    closed --> [*]", "    failed --> [*]"])
