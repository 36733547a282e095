"""What a fork leaves in the child: a copy of a registrar without its tasks, and a gRPC that does not work there."""

import os

from ergo_registrar.errors import TerminatedError

_ADVICE = (
    "start the process with multiprocessing's 'spawn' or 'forkserver', or fork it before the first registrar is entered"
)
_grpc_used_in: list[int] = []  # the process that used gRPC first, which it stays in a copy of it


def refuse_copy(pid: int) -> None:
    """Raise `TerminatedError` in another process than that one."""
    if os.getpid() != pid:
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
