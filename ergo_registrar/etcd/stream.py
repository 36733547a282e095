"""A watch stream of one client: watches are created on it one by one, their events read, and etcd asked how far it is.

Sources: etcd's api/etcdserverpb/rpc.proto, and what was measured (docs/explanation/etcd.md).
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Never

import grpc
from aetcd import rpc

from ergo_registrar.core.keys import prefix_end
from ergo_registrar.errors import ConnectionFailedError
from ergo_registrar.etcd.client import Client
from ergo_registrar.etcd.connection import BrokenError, CompactedError, Connection
from ergo_registrar.etcd.shield import was_cancelled

_PROXY = (
    "this is no member of etcd but a proxy, such as `etcd grpc-proxy`, which may leave changes out and cannot be asked"
    " (set endpoints to etcd's own members)"
)
_FAILURES = (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError, asyncio.CancelledError)
_ENDED_HERE = "watch: this side ended the stream"
PROGRESS = 0  # stands for the watch id -1, which is that of every watch on the stream


class ProxyError(ConnectionFailedError):
    """An endpoint is a proxy of etcd's, through which changes may be missing."""


class WatchRefusedError(ConnectionFailedError):
    """etcd denied or cancelled a watch."""


class Stream:
    """A watch stream of one client: watches are created on it, and their events read from it."""

    def __init__(
        self,
        connection: Connection,
        client: Client,
        call: Any,
        answers_last: bool,
        clock: Callable[[], float],
        *,
        log_in_anew: bool,
    ) -> None:
        self._connection = connection
        self._client = client
        self._call = call
        self._clock = clock
        self.opened: float = clock()
        self.heard: float = self.opened  # when anything came
        self.answers_last: bool = answers_last  # an answer comes behind all that it covers
        self.is_behind: bool = False  # there were changes before it began
        self.whole: bool = False  # it was shown that nothing is missing: where answers come last, each does
        self.answered: asyncio.Event = asyncio.Event()
        self.answered.set()  # no question is open
        self.asked_before: float = self.opened  # when the last question that was answered was asked
        self.answers: tuple[int, int] = (-1, 0)  # etcd's revision in the last two answers
        self.moved: asyncio.Event = asyncio.Event()  # something came that is held back
        self._asked: deque[float] = deque()  # when each request was sent that may still be answered
        self._log_in_anew = log_in_anew
        self._given_up: ConnectionFailedError | None = None
        self._waiting: deque[tuple[int, int, Sequence[Any]]] = deque()  # what came, and was not read yet
        self._fragments: dict[int, list[Any]] = {}

    async def create(self, number: int, prefix: bytes, revision: int, timeout: float) -> Any:
        """Create one watch and wait for etcd's word on it, at most `timeout` seconds; return the header of that.

        Raise `ProxyError` where a proxy of etcd's answers, and leave its endpoint.
        """
        try:
            async with asyncio.timeout(timeout) as deadline:
                with self._client.when_closed(lambda: _end(deadline)):
                    answer = await self._create(number, prefix, revision)
        except TimeoutError as error:
            raise await self._connection.failed(self._client, f"watch of {prefix.decode()!r}", error) from None
        if answer.watch_id != number:  # etcd takes the id that it is given, its proxy counts its own
            await self._connection.give_up(self._client, self._client.endpoint)
            raise ProxyError(f"watch at {self._client.endpoint}: {_PROXY}")
        return answer.header

    async def _create(self, number: int, prefix: bytes, revision: int) -> Any:
        request = rpc.WatchCreateRequest(
            key=prefix,
            range_end=prefix_end(prefix),
            start_revision=revision,
            watch_id=number,
            progress_notify=True,
            fragment=True,
        )
        await self._write(rpc.WatchRequest(create_request=request))
        while True:
            answer = await self._answer(prefix)
            if answer.created:
                return answer
            told = self._told(answer)
            if told is not None:
                self._waiting.append(told)

    async def read(self) -> tuple[int, int, Sequence[Any]]:
        """Return the number of a watch, the revision of the answer, and its events, fragments put together.

        The answer to `ask` is of watch `PROGRESS`, and has no events.
        """
        if self._waiting:
            return self._waiting.popleft()
        while (told := self._told(await self._answer(None))) is None:
            pass
        return told

    async def ask(self) -> None:
        """Ask etcd how far it has told of changes. Not while `create` waits."""
        self._asked.append(self._clock())
        question = rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())
        await self._write(question)

    def credit(self) -> float | None:
        """Return when the request was sent that an answer is to; `None` if it is to none.

        Answers come in order and carry no number, and etcd leaves requests unanswered. So it is to the oldest one out.
        """
        return self._asked.popleft() if self._asked else None

    def forget(self, before: float) -> None:
        """Expect no answer any more to what was asked before a time."""
        while self._asked and self._asked[0] < before:
            self._asked.popleft()

    async def give_up(self, why: str, *, read_anew: bool = False) -> None:
        """Leave the endpoint; whoever reads from the stream sees it break, with `CompactedError` to `read_anew`."""
        self._given_up = (CompactedError if read_anew else BrokenError)(f"watch at {self._client.endpoint}: {why}")
        await self._connection.give_up(self._client, self._client.endpoint)

    def leave(self, why: str) -> None:
        """End the stream and nothing else; whoever reads from it sees it break, with `CompactedError`."""
        self._given_up = CompactedError(f"watch at {self._client.endpoint}: {why}")
        self.cancel()

    def cancel(self) -> None:
        """End the stream. Idempotent."""
        call, self._call = self._call, None  # who still knows the stream, if only in a traceback, keeps no connection
        if call is not None:
            call.cancel()

    async def _answer(self, prefix: bytes | None) -> Any:
        call = self._call
        if call is None:
            raise self._given_up or BrokenError(_ENDED_HERE)
        try:
            answer = await call.read()
        except _FAILURES as error:
            await self._fail(error)
        if answer is grpc.aio.EOF:
            raise await self._failed(ConnectionError("etcd ended the stream"))
        if answer is None:  # what gRPC returns for bytes that it cannot read
            raise await self._failed(ConnectionError("etcd sent what is no answer of a watch"))
        self.heard, self._client.silent_since = self._clock(), math.inf
        if answer.canceled:  # before `created`: a refusal is both
            where = f"watch of {prefix.decode()!r}" if prefix else "watch"
            if answer.compact_revision:
                raise CompactedError(f"{where}: etcd keeps revisions from {answer.compact_revision} on")
            if self._log_in_anew and self._client.logs_in:  # a forgotten token looks like that, too
                await self.give_up("etcd refused a watch")
            raise WatchRefusedError(f"{where}: etcd refused it: {answer.cancel_reason or 'no reason given'}")
        return answer

    async def _write(self, request: Any) -> None:
        call = self._call
        if call is None:
            raise self._given_up or BrokenError(_ENDED_HERE)
        try:
            await call.write(request)
        except _FAILURES as error:
            await self._fail(error)

    async def _fail(self, error: BaseException) -> Never:
        """Raise what an error of the call means. A cancellation of this task stays one."""
        if isinstance(error, asyncio.CancelledError) and await was_cancelled():
            raise error
        raise await self._failed(error) from error

    async def _failed(self, error: BaseException) -> ConnectionFailedError:
        if self._given_up is not None:
            return self._given_up
        return await self._connection.failed(self._client, "watch", error)

    def _told(self, answer: Any) -> tuple[int, int, Sequence[Any]] | None:
        """Return what `read` does of an answer, None while more of it is to come."""
        number, events = answer.watch_id, answer.events
        if self._fragments or answer.fragment:
            events = [*self._fragments.pop(number, ()), *events]
            if answer.fragment:
                self._fragments[number] = events
                return None
        if number > 0:
            return number, answer.header.revision, events
        return None if events else (PROGRESS, answer.header.revision, events)


def _end(deadline: asyncio.Timeout) -> None:
    if not deadline.expired():
        deadline.reschedule(asyncio.get_running_loop().time())
