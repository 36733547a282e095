"""What a fork leaves in the child: a copy of a registrar without its tasks, and a gRPC that does not work there."""

import os
from typing import Protocol
from weakref import WeakSet

from ergo_registrar.errors import TerminatedError

_ADVICE = (
    "start the process with multiprocessing's 'spawn' or 'forkserver', or fork it before the first registrar is entered"
)
_grpc_used_in: list[int] = []  # the process that used gRPC first, which it stays in a copy of it
_forgetful: "WeakSet[Forgetful]" = WeakSet()  # who is told in a child
_copies = 0  # how many forks lie between the first process that imported this and this one


class Forgetful(Protocol):
    """What must not be used in a forked child."""

    def forget(self) -> None:
        """Take note of being a copy that a fork made."""


def forget_in_copies(of: Forgetful) -> None:
    """Have `forget` called in every process that will be forked from this one, for as long as the object lives."""
    _forgetful.add(of)


def generation() -> int:
    """Return a number that is another one in a process that was forked from this one. Cheaper than its id."""
    return _copies


def refuse_copy(born: int) -> None:
    """Raise `TerminatedError` in a process that was forked since `generation` was `born`."""
    if _copies != born:
        raise TerminatedError(f"this is the copy that a fork made of a registrar: {_ADVICE}")


def refuse_copied_grpc() -> None:
    """Raise `TerminatedError` in a process that was forked after gRPC had been used; take note of the first use.

    gRPC has no fork support beside its asyncio one: a child would read its parent's wake-ups from a shared socket, and
    cost it its lease.
    """
    if not _grpc_used_in:
        _grpc_used_in.append(os.getpid())
    if _grpc_used_in[0] != os.getpid():
        raise TerminatedError(f"gRPC cannot be used in a process that was forked after its first use: {_ADVICE}")


def _copied() -> None:
    global _copies  # noqa: PLW0603  # what a module knows of its own process
    _copies += 1
    for each in _forgetful:
        each.forget()


if hasattr(os, "register_at_fork"):  # else there is no fork
    os.register_at_fork(after_in_child=_copied)
