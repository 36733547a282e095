"""Child processes that do not outlive this one, even when it is killed. Linux alone can promise that."""

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

import anyio

# Runs in the new process, in front of the program: is killed when the thread that started it ends, the one that runs
# the event loop (prctl(2): 1 is PR_SET_PDEATHSIG, 9 SIGKILL). Not a `preexec_fn`: that runs Python between fork and
# exec, where locks that gRPC's threads held have nobody left to release them. The pipe is closed by the exec, or tells
# why there was none. Python ignores SIGPIPE and SIGXFSZ, which the program would inherit.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
pipe, parent = map(int, sys.argv[1:3])
os.set_inheritable(pipe, False)
ctypes.CDLL(None).prctl(1, 9)
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
if os.getppid() == parent:
    try:
        os.execv(sys.argv[3], sys.argv[3:])
    except OSError as error:
        os.write(pipe, b"%d" % error.errno)
"""


async def start(command: Sequence[str], **how: Any) -> asyncio.subprocess.Process:
    """Start a program; return once it runs. `command` begins with its path; `how` is for `create_subprocess_exec`.

    On Linux it is killed when the calling thread ends, so also when this process is. Cancelling may leave it running,
    known to nobody: shield this. Raise `OSError` when it cannot be run.
    """
    is_python = bool(sys.executable) and not getattr(sys, "frozen", False)  # a frozen program would start itself
    if sys.platform != "linux" or not is_python:
        return await asyncio.create_subprocess_exec(*command, **how)
    told, pipe = os.pipe()
    try:
        wrapped = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(pipe), str(os.getpid()), *command]
        try:
            process = await asyncio.create_subprocess_exec(*wrapped, pass_fds=(pipe,), **how)
        finally:
            os.close(pipe)
        failure = await anyio.to_thread.run_sync(os.read, told, 16)
    finally:
        os.close(told)
    if failure:
        await process.wait()
        raise OSError(int(failure), os.strerror(int(failure)), command[0])
    return process
