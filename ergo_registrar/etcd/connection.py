"""One connection to etcd out of several endpoints: deadlines, failover, login, and the one place errors are translated.

At any time there is at most one client, to the endpoint that answered last. A call that finds it silent, refusing or
without a leader throws it away, and goes on at the next endpoint until the deadline. Whatever ran on the discarded
channel (the watch stream) ends with it and comes back over the next one. Repeating is safe because every write of this
package is guarded: it says in its compares what must hold before, and so does nothing the second time.
"""

import asyncio
import contextlib
import functools
import logging
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from enum import Enum
from typing import Any, TypeVar

import aetcd
import grpc

from ergo_registrar.clock import now
from ergo_registrar.core.backoff import delays
from ergo_registrar.errors import ConnectionFailedError
from ergo_registrar.etcd.client import Client
from ergo_registrar.etcd.shield import was_cancelled
from ergo_registrar.logs import Throttle, about, since
from ergo_registrar.options import Options
from ergo_registrar.stats import RequestListener, Stats

T = TypeVar("T")

_log = logging.getLogger(__name__)

# Seconds before a refused login is tried again, growing from the one to the other: each costs etcd a bcrypt, and may be
# one of many.
_LOGIN_PAUSE_FIRST, _LOGIN_PAUSE = 1.0, 30.0
_LOGIN_TIMEOUT = 10.0  # seconds, or `request_timeout` if that is longer: many may log in at once
_PATIENCE = 2.0  # seconds for one attempt in the first round, doubled each round
_LATE = 0.1  # seconds; an answer takes several turns of the event loop
_TURNS = 8  # of the event loop that an answer takes at most
_ROUND_PAUSE = 0.05  # seconds between two rounds over all endpoints, doubled each round up to the next
_ROUND_PAUSE_MOST = 0.5


class CompactedError(ConnectionFailedError):
    """The revision asked for is no longer kept: list again."""


class BrokenError(ConnectionFailedError):
    """etcd could not be asked, so nobody knows what it would have said, or did. Another time, or endpoint, may do."""


class TooLargeError(ConnectionFailedError):
    """The answer is larger than a message may be: ask for less."""


class LeaseGoneError(ConnectionFailedError):
    """etcd does not know this lease (any more)."""


class Verdict(Enum):
    """What an error of one attempt means for the next."""

    ELSEWHERE = "elsewhere"
    """This endpoint cannot serve: try the next."""
    LATE = "late"
    """No answer in time, but this side is slow: try the same once more."""
    LOG_IN = "log in"
    """The token is no good any more: log in once, and try once more."""
    COMPACTED = "compacted"
    TOO_LARGE = "too large"
    LEASE_GONE = "lease gone"
    FINAL = "final"
    """etcd understood, and will say the same again."""


_FAILURES = (aetcd.ClientError, grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError, OSError)

# What etcd says (api/v3rpc/rpctypes/error.go) and what it means, the first match wins.
_BY_MESSAGE: tuple[tuple[str, Verdict], ...] = (
    ("invalid auth token", Verdict.LOG_IN),
    ("revision of auth store is old", Verdict.LOG_IN),
    ("required revision has been compacted", Verdict.COMPACTED),
    ("requested lease not found", Verdict.LEASE_GONE),
    ("no leader", Verdict.ELSEWHERE),
    ("request timed out", Verdict.ELSEWHERE),
    ("leader changed", Verdict.ELSEWHERE),
    ("server stopped", Verdict.ELSEWHERE),
    ("too many requests", Verdict.ELSEWHERE),
    ("not leader", Verdict.ELSEWHERE),
    ("message larger than max", Verdict.TOO_LARGE),
)
_BY_CODE: dict[grpc.StatusCode, Verdict] = {
    grpc.StatusCode.UNAVAILABLE: Verdict.ELSEWHERE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Verdict.ELSEWHERE,
    grpc.StatusCode.CANCELLED: Verdict.ELSEWHERE,
    grpc.StatusCode.ABORTED: Verdict.ELSEWHERE,
    grpc.StatusCode.INTERNAL: Verdict.ELSEWHERE,
    grpc.StatusCode.UNKNOWN: Verdict.ELSEWHERE,
    grpc.StatusCode.UNAUTHENTICATED: Verdict.LOG_IN,
    grpc.StatusCode.OUT_OF_RANGE: Verdict.COMPACTED,
}
_HINTS: tuple[tuple[str, str], ...] = (
    ("user name is empty", "etcd wants a login: set username and password"),
    ("authentication failed", "wrong username or password"),
    ("permission denied", "this user lacks a permission; docs/reference/keys.md lists the role a member needs"),
    ("database space exceeded", "etcd is out of space: compact, defragment and disarm its NOSPACE alarm"),
    # What gRPC, and `ssl`, say of an endpoint that cannot be talked to at all.
    ("Connection refused", "nothing listens there: is etcd running, and is this its port for clients?"),
    ("errors resolving", "no such host"),
    ("Socket closed", "it hung up: perhaps it wants TLS and this is none, or the other way round"),
    ("EOF occurred", "it hung up: perhaps it does not speak TLS"),
    ("] Connection reset by peer", "it hung up: perhaps it does not speak TLS"),  # the same, sooner; gRPC's has no "]"
    ("CERTIFICATE_VERIFY_FAILED", "the authority in tls.ca did not issue etcd's certificate"),
    ("BAD_CERTIFICATE", "etcd wants a certificate of the client's that its own authority issued: tls.cert and tls.key"),
    ("CERTIFICATE_REQUIRED", "etcd wants a certificate of the client's: set tls.cert and tls.key"),
    ("Hostname Verification Check failed", "etcd's certificate is for another name: tls.server_name says which"),
    (
        "security handshaker",
        "a file of tls.ca, tls.cert, tls.key is no such PEM, or the key is of another certificate",
    ),
)


def _no_lag() -> float:
    return 0.0


class Connection:
    """Calls to etcd, each within its deadline, over whichever endpoint answers. Made inside the running loop."""

    def __init__(
        self,
        options: Options,
        stats: Stats,
        *,
        clock: Callable[[], float] = now,
        rng: random.Random | None = None,
        listeners: Sequence[RequestListener] = (),
        lag: Callable[[], float] = _no_lag,
    ) -> None:
        self._options = options
        self._stats = stats
        self._clock = clock
        self._client: Client | None = None
        self._index = 0
        self._login: asyncio.Task[None] | None = None  # the one that is, or was, under way
        self._refusal: grpc.aio.AioRpcError | None = None  # etcd's last word on the login
        self._refused_until = 0.0
        self._random = rng or random.Random()  # jitter is no secret
        self._login_pauses = self._pauses_of_logins()
        self._refusals = Throttle(2, 600.0, clock)
        self._lag = lag  # how late the event loop is: what is not answered in time then may be our own fault
        self._listeners = listeners  # who is told of every call; there may be more of them later
        self._closed = False

    @property
    def endpoint(self) -> str:
        """The endpoint in use, empty while there is none."""
        client = self._client
        return client.endpoint if client else ""

    @property
    def is_late(self) -> bool:
        """Whether the event loop is so slow that an answer may be there, and was not come to yet."""
        return self._lag() > _LATE

    def _is_too_late_for(self, client: Client | None) -> bool:
        """Whether this side is so slow that an answer of this client's may be there, and was not come to yet.

        A line that hangs is left in time to save the lease.
        """
        bound = max(_TURNS * self._lag(), self._options.lease_ttl / 2)
        return self.is_late and (client is None or self._clock() - client.silent_since < bound)

    async def look(self, *, timeout: float) -> None:
        """Go to an endpoint whose member answers and has a leader. Raise `ConnectionFailedError`."""
        await self.call("connect", _member_with_leader, timeout=timeout)

    async def call(
        self,
        what: str,
        operation: Callable[[Client], Awaitable[T]],
        *,
        key: bytes | None = None,
        timeout: float | None = None,
    ) -> T:
        """Return what `operation` returns, tried on one endpoint after the other for at most `timeout` seconds.

        `timeout` is `request_timeout` where none is given. `what` is one of few names, by which the listeners know the
        call; errors name it by the `key`, too. An operation may run more than once, and may have taken effect although
        it failed.

        Raises:
            ConnectionFailedError: no endpoint answered in time, or etcd refused for good.
            CompactedError, TooLargeError, LeaseGoneError: etcd said so.
        """
        total = self._options.request_timeout if timeout is None else timeout
        named = what if key is None else f"{what} {key.decode()!r}"
        if not self._listeners:
            return await self._call(named, operation, total)
        began, outcome = self._clock(), "ok"
        try:
            return await self._call(named, operation, total)
        except BaseException as error:
            outcome = _OUTCOMES.get(type(error), "error")
            raise
        finally:
            for listener in self._listeners:  # from the loop, to which an error of theirs goes
                asyncio.get_running_loop().call_soon(listener, what, self._clock() - began, outcome)

    async def _call(self, what: str, operation: Callable[[Client], Awaitable[T]], total: float) -> T:
        ends = self._clock() + total
        rounds = _rounds(len(self._options.endpoints), total)
        tried: dict[str, str] = {}
        stale: object = None
        spared = False  # the endpoint, once, since it was us who were slow
        while (left := ends - self._clock()) > 0:
            endpoint = self._options.endpoints[self._index]
            patience, pause = next(rounds)
            try:
                return await self._attempt(operation, min(patience, left), ends, stale)
            except _AttemptFailed as failed:
                if failed.verdict is Verdict.LOG_IN and stale is None and failed.client is not None:
                    stale = failed.token
                    continue
                if failed.verdict not in (Verdict.ELSEWHERE, Verdict.LATE):
                    cause = failed.cause.with_traceback(None)  # a traceback would keep the channel open
                    raise _final(what, endpoint, failed) from cause
                if endpoint not in tried or left >= patience:  # one cut short at the end has nothing better to say
                    tried[endpoint] = failed.reason
                if failed.hasty:
                    break
                if failed.verdict is Verdict.LATE and (not spared or len(self._options.endpoints) == 1):
                    spared = True
                else:
                    await self.give_up(failed.client, endpoint)
                await asyncio.sleep(min(pause, max(0.0, ends - self._clock())))
        raise self._unreachable(what, total, tried)

    async def failed(self, client: Client, what: str, error: BaseException) -> ConnectionFailedError:
        """Translate the error of a stream of `client`; if its endpoint is to blame, give that endpoint up."""
        verdict, reason = _judge(error)
        if isinstance(error, TimeoutError) and self.is_late:
            verdict = Verdict.LATE
        failed = _AttemptFailed(client, verdict, reason, error)
        if verdict in (Verdict.ELSEWHERE, Verdict.LOG_IN):  # the next client logs in
            await self.give_up(client, client.endpoint)
        return _final(what, client.endpoint, failed)

    async def close(self) -> None:
        """Close the channel; what still runs on it fails. Idempotent."""
        self._closed = True
        if self._login is not None:
            self._login.cancel()
            await asyncio.wait({self._login})
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _attempt(
        self, operation: Callable[[Client], Awaitable[T]], patience: float, ends: float, stale: object
    ) -> T:
        """Try once. With a `stale` token (that etcd refused), log in again first, unless someone else just did."""
        client: Client | None = None
        token: object = None
        seconds = ends - self._clock()
        try:
            async with asyncio.timeout(seconds):
                client = await self._connected(patience)
                while stale is not None and client.token is stale:
                    if client is not self._client:
                        raise ConnectionError("the connection was given up")
                    await self._log_in_alone(functools.partial(self._log_in, client))
            seconds = min(patience, ends - self._clock())
            client.silent_since = min(client.silent_since, self._clock())
            async with asyncio.timeout(seconds):
                token = client.token
                answer = await operation(client)
            client.silent_since = math.inf
            return answer
        except TimeoutError as error:
            reason, hasty = f"no answer within {seconds:.3g} s", seconds < patience / 2
            if self._is_too_late_for(client):
                raise _AttemptFailed(client, Verdict.LATE, f"{reason}, the event loop being slow", error) from None
            raise _AttemptFailed(client, Verdict.ELSEWHERE, reason, error, hasty=hasty) from None
        except _FAILURES as error:
            raise _AttemptFailed(client, *_judge(error), error, token) from None
        except asyncio.CancelledError as error:
            if await was_cancelled():
                raise error.with_traceback(None) from None  # a call in it would keep the channel open
            raise _AttemptFailed(client, Verdict.ELSEWHERE, "the channel was closed", error) from None

    async def _connected(self, patience: float) -> Client:
        """Return the current client, made and logged in if need be; one caller has it done, the others wait."""
        while self._client is None:
            self._refuse_closed()
            await self._log_in_alone(functools.partial(self._make, patience))
        return self._client

    async def _log_in_alone(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wait for the login that is under way, or else for this one.

        It goes on though all who wait for it give up: each costs etcd a bcrypt, and when many lost their tokens in one
        moment, who asks again and again is never answered.
        """
        if self._login is None or self._login.done():
            self._login = asyncio.create_task(work())
            self._login.add_done_callback(_seen)
        await asyncio.shield(self._login)

    async def _make(self, patience: float) -> None:
        """Make a client. An endpoint that is not there, or hangs, is found before the login, which may take long."""
        client = Client(self._options.endpoints[self._index], self._options)
        try:
            async with _within(patience):
                await client.connect()
                if client.logs_in:
                    await _answers(client)
            async with _within(max(_LOGIN_TIMEOUT, self._options.request_timeout)):
                await self._log_in(client)
            self._refuse_closed()
        except BaseException:  # also cancelled: a channel nobody knows would be left behind
            await client.close()
            raise
        self._client = client

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ConnectionFailedError("the connection to etcd is closed")

    async def _log_in(self, client: Client) -> None:
        """Log in. What etcd refused it will refuse again, so it is asked again only after a while."""
        if self._refusal is not None and self._clock() < self._refused_until:
            raise self._refusal.with_traceback(None)
        self._refusal = None
        try:
            await client.log_in()
        except grpc.aio.AioRpcError as error:
            if _judge(error)[0] is Verdict.FINAL:
                self._refusal, self._refused_until = error, self._clock() + next(self._login_pauses)
                self._tell_of_refusal(client, error.details() or "")
            raise
        self._login_pauses = self._pauses_of_logins()

    def _tell_of_refusal(self, client: Client, reason: str) -> None:
        count = self._refusals.note()
        if count is not None:
            fields = {"endpoint": client.endpoint, "reason": reason, "count": count}
            extra = about("login_refused", self._options.cluster, None, **fields)
            _log.error("etcd refuses the login of %r: %s%s", self._options.username, reason, since(count), extra=extra)

    def _pauses_of_logins(self) -> Iterator[float]:
        return delays(self._random, first=_LOGIN_PAUSE_FIRST, most=_LOGIN_PAUSE)

    def log_in_at_once(self) -> None:
        """Ask etcd anew with the next call, although it has just refused a login: for the last calls there are."""
        self._refusal = None

    async def give_up(self, client: Client | None, endpoint: str) -> None:
        """Throw a client away, or the endpoint that none could be made for, and turn to the next endpoint.

        Of several calls that failed there, the first one turns.
        """
        if client is None and self._login is not None and not self._login.done():
            return  # who gave up waits no longer, and that is all
        if client is self._client and (client or endpoint == self._options.endpoints[self._index]):
            self._client = None
            self._index = (self._index + 1) % len(self._options.endpoints)
            self._stats.connections_replaced += 1
        if client is not None:
            await client.close()

    def _unreachable(self, what: str, total: float, tried: dict[str, str]) -> BrokenError:
        each = "; ".join(f"{endpoint}: {reason}{_hint(reason)}" for endpoint, reason in tried.items())
        return BrokenError(
            f"{what}: etcd could not be reached within {round(total, 2):g} s ({each or 'no endpoint was tried'})", tried
        )


class _AttemptFailed(Exception):
    def __init__(
        self,
        client: Client | None,
        verdict: Verdict,
        reason: str,
        cause: BaseException,
        token: object = None,
        *,
        hasty: bool = False,
    ) -> None:
        super().__init__(reason)
        self.client = client
        self.verdict = verdict
        self.reason = reason
        self.cause = cause
        self.token = token
        self.hasty = hasty  # it had too little time to blame the endpoint


def _rounds(endpoints: int, total: float) -> Iterator[tuple[float, float]]:
    """Yield for each attempt how long to wait for its answer, and how long to pause should it fail.

    A connection that hangs is given up soon, and a slow etcd is given more time in the next round over the endpoints.
    Within a round there is no pause.
    """
    patience, pause = _PATIENCE, _ROUND_PAUSE
    while True:
        share = min(patience, total / endpoints)
        for _ in range(endpoints - 1):
            yield share, 0.0
        yield share, pause
        patience, pause = 2 * patience, min(2 * pause, _ROUND_PAUSE_MOST)


def _seen(task: asyncio.Task[None]) -> None:
    """Take note of how it ended, though nobody may wait for it any more."""
    if not task.cancelled():
        task.exception()


@contextlib.asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ConnectionError(f"no answer within {seconds:.3g} s") from None


async def _answers(client: Client) -> None:
    """Raise if nobody answers there; whatever is answered will do."""
    try:
        await client.member_status()
    except grpc.aio.AioRpcError as error:
        if _judge(error)[0] is Verdict.ELSEWHERE:
            raise


async def _member_with_leader(client: Client) -> None:
    status = await client.member_status()
    if status.leader == 0:
        raise ConnectionError("this member has no leader")


def _judge(error: BaseException) -> tuple[Verdict, str]:
    """Return what an error means, and its reason in one line."""
    if isinstance(error, asyncio.CancelledError | asyncio.InvalidStateError | grpc.aio.BaseError):
        return Verdict.ELSEWHERE, "the channel was closed"
    rpc_error = error.__cause__ if isinstance(error, aetcd.ClientError) else error
    if isinstance(error, TimeoutError):
        return Verdict.ELSEWHERE, "no answer in time"
    if not isinstance(rpc_error, grpc.aio.AioRpcError):
        return Verdict.ELSEWHERE if isinstance(error, OSError) else Verdict.FINAL, str(error) or repr(error)
    reason = rpc_error.details() or rpc_error.code().name
    for words, verdict in _BY_MESSAGE:
        if words in reason:
            return verdict, reason
    return _BY_CODE.get(rpc_error.code(), Verdict.FINAL), reason


def _final(what: str, endpoint: str, failed: _AttemptFailed) -> ConnectionFailedError:
    kind = _ERRORS.get(failed.verdict, ConnectionFailedError)
    return kind(f"{what} at {endpoint}: {failed.reason}{_hint(failed.reason)}", {endpoint: failed.reason})


def _hint(reason: str) -> str:
    """Return what would be right, to stand behind a reason."""
    return next((f" ({hint})" for words, hint in _HINTS if words in reason), "")


_OUTCOMES: dict[type[BaseException], str] = {
    BrokenError: "unreachable",
    ConnectionFailedError: "refused",
    CompactedError: "compacted",
    TooLargeError: "too large",
    LeaseGoneError: "lease gone",
    asyncio.CancelledError: "cancelled",
}
_ERRORS: dict[Verdict, type[ConnectionFailedError]] = {
    Verdict.ELSEWHERE: BrokenError,
    Verdict.LATE: BrokenError,
    Verdict.COMPACTED: CompactedError,
    Verdict.TOO_LARGE: TooLargeError,
    Verdict.LEASE_GONE: LeaseGoneError,
}
