"""The door to aetcd: its client on a channel of our own, for one endpoint.

aetcd is the base for keys, leases and transactions. What it lacks is added here and nowhere else: TLS, gRPC's
settings, compares on a lease, reads in pages, a kept watch stream, and answers with their revision. Private names of
aetcd are touched in this file only.
"""

import contextlib
import math
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aetcd
import anyio
import grpc
from aetcd import rpc, transactions

from ergo_registrar.core.registration import MOST_BYTES
from ergo_registrar.errors import ConnectionFailedError
from ergo_registrar.options import TLS, Options

_WITH_LEADER = ("hasleader", "true")  # on every call: a member that lost its leader then says so, at once

_OPERATIONS = 100  # in one transaction; etcd takes 128 (--max-txn-ops)
_LOOKAHEAD = 64 * 1024  # bytes that etcd may send before they are read; what waits there, it puts together
MESSAGE_LIMIT = 32 * 1024 * 1024  # bytes; gRPC's own is 4 MiB, etcd's largest key-value pair is under 2 MiB


class _Keyed(Protocol):
    @property
    def key(self) -> bytes: ...


T = TypeVar("T", bound=_Keyed)


class _LeaseCompare(transactions.BaseCompare):  # type: ignore[misc]  # aetcd is untyped
    def build_compare(self, compare: Any) -> None:
        """Fill in the target, as aetcd's other compares do."""
        compare.target = rpc.Compare.LEASE
        compare.lease = int(self.value)


def hangs_on(key: bytes, lease: int) -> Any:
    """Return the compare that holds while `key` hangs on `lease`. 0 is a key without a lease."""
    return _LeaseCompare(key) == lease


def is_absent(key: bytes) -> Any:
    """Return the compare that holds while there is no `key`."""
    return transactions.Create(key) == 0


def progress_comes_last(version: str) -> bool:
    """Say whether an etcd answers a `WatchProgressRequest` behind all events that the answer covers.

    Since 3.4.25 and 3.5.8 (etcd's issue 15220). Before, the answer may overtake them.
    """
    numbers = [int(part) for part in re.findall(r"\d+", version)[:3]]
    return numbers >= [3, 5, 8] or [3, 4, 25] <= numbers < [3, 5]


def is_unchanged(key: bytes, since: int) -> Any:
    """Return the compare that holds while `key` is as a revision left it. 0 is a key that is not there."""
    return transactions.Mod(key) == since


def parts(operations: Iterable[T]) -> Iterator[list[T]]:
    """Cut what has a key, and may have a value, into as few transactions as etcd takes, by number and by bytes."""
    part: list[T] = []
    size = 0
    for operation in operations:
        added = len(operation.key) + len(getattr(operation, "value", None) or b"")
        if part and (len(part) == _OPERATIONS or size + added > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(operation)
        size += added
    yield part


class Client:
    """aetcd's client for one endpoint, with what aetcd lacks. Every call needs a deadline of its caller's.

    Calls raise `aetcd.ClientError` or `grpc.aio.AioRpcError`; `Connection` translates both.
    """

    def __init__(self, endpoint: str, options: Options) -> None:
        self.endpoint: str = endpoint
        self._host, _, port = endpoint.removeprefix("https://").removeprefix("http://").rpartition(":")
        self._port = int(port)
        self._options = options
        self._etcd: Any = aetcd.Client(self._host, self._port)
        self._closed = False
        self._when_closed: list[Callable[[], None]] = []
        self._answers_last: bool | None = None
        # When it was asked first of all since anything came, infinite if it was not.
        self.silent_since: float = math.inf
        self._renewals: Any = None  # a stream on which leases can be renewed, while nobody does

    async def connect(self) -> None:
        """Make the channel and the stubs. gRPC connects with the first call."""
        target, settings = f"{self._host}:{self._port}", _settings(self._options)
        if self._options.secure:
            credentials, name = await _credentials(self._options, self._host, self._port)
            if name is not None:
                settings["grpc.ssl_target_name_override"] = name
            channel = rpc.secure_channel(target, credentials, options=list(settings.items()))
        else:
            channel = rpc.insecure_channel(target, options=list(settings.items()))
        etcd = self._etcd
        etcd.channel = channel
        etcd.metadata = (_WITH_LEADER,)
        if self.logs_in:  # each stub is made of all its methods, which takes longer than a call
            etcd.auth_stub = rpc.AuthStub(channel)
        etcd.kvstub = rpc.KVStub(channel)
        etcd.leasestub = rpc.LeaseStub(channel)
        etcd.maintenancestub = rpc.MaintenanceStub(channel)
        etcd.watchstub = rpc.WatchStub(channel)  # aetcd has none to be used
        etcd._connected.set()  # what aetcd's own connect() does last

    async def close(self) -> None:
        """Close the channel; what still runs on it is cancelled."""
        self._closed = True
        for tell in list(self._when_closed):
            tell()
        self._end_renewals()
        await self._etcd.close()

    def _end_renewals(self) -> None:
        renewals, self._renewals = self._renewals, None
        if renewals is not None:
            renewals.cancel()

    @contextlib.contextmanager
    def when_closed(self, tell: Callable[[], None]) -> Iterator[None]:
        """Call `tell` should the client be closed within the block: grpc.aio does not wake who opens a stream."""
        self._when_closed.append(tell)
        try:
            yield
        finally:
            self._when_closed.remove(tell)

    @property
    def _open(self) -> Any:
        """The client of aetcd, which on its own would connect again, without TLS and login."""
        if self._closed:
            raise ConnectionError("the channel was closed")
        return self._etcd

    @property
    def logs_in(self) -> bool:
        """Whether calls carry a token, which etcd may forget."""
        return self._options.username is not None

    @property
    def token(self) -> object:
        """What calls carry to prove who they are. Another object after each login."""
        return self._etcd.metadata

    @property
    def logged_in(self) -> bool:
        """Whether etcd gave a token. It gives none where its authentication is off."""
        return any(name == "token" for name, _ in self._etcd.metadata)

    async def log_in(self) -> None:
        """Get a token for all later calls. Nothing where no username is set, or etcd wants no login."""
        if not self.logs_in:
            return
        request = rpc.AuthenticateRequest(name=self._options.username, password=self._options.password)
        try:
            answer = await self._open.auth_stub.Authenticate(request, metadata=(_WITH_LEADER,))
        except grpc.aio.AioRpcError as error:
            if "authentication is not enabled" in (error.details() or ""):
                return
            raise
        self._etcd.metadata = (_WITH_LEADER, ("token", _read(answer).token))
        self._end_renewals()  # they carry the token of before

    async def get(self, key: bytes) -> Any:
        """Return an `aetcd.Get` with value, lease and revisions of a key, None if there is no such key."""
        return await self._open.get(key)

    async def grant(self, lease: int, ttl: int) -> int:
        """Grant a lease under an id of the caller's; return its seconds, which may be more than `ttl`.

        The id is chosen here, so that a grant whose answer is lost can be repeated, and revoked.
        """
        try:
            return int((await self._open.lease(ttl, lease)).ttl)
        except aetcd.DuplicateLeaseError:  # an earlier try did it
            return ttl

    async def revoke(self, lease: int) -> None:
        """End a lease, and delete what hangs on it."""
        await self._open.revoke_lease(lease)

    async def remaining(self, lease: int) -> int:
        """Return the seconds a lease has left, -1 if it is gone."""
        return (await self.lease_times(lease))[0]

    async def lease_times(self, lease: int) -> tuple[int, int]:
        """Return the seconds a lease has left, -1 if it is gone, and those it was granted."""
        found = await self._open.get_lease_info(lease, keys=False)
        return int(found.TTL), int(found.grantedTTL)

    async def try_to_put(self, key: bytes) -> None:
        """Raise what putting a key would raise, and put nothing: there is no key that is absent and present.

        etcd looks at the permissions of a transaction before its compares (`checkTxnAuth` in its apply_auth.go).
        """
        await self.commit([is_absent(key), transactions.Create(key) > 0], [transactions.Put(key, b"")])

    async def member_status(self) -> Any:
        """Return the `StatusResponse` of this endpoint's member: cluster id, version, leader, alarms, size."""
        status = _read(await self._open.maintenancestub.Status(rpc.StatusRequest(), metadata=self._open.metadata))
        self._answers_last = progress_comes_last(status.version)
        return status

    async def answers_progress_last(self) -> bool:
        """Say whether a watch's answer to `WatchProgressRequest` comes behind all events that it covers."""
        if self._answers_last is None:
            await self.member_status()
        return bool(self._answers_last)

    async def youngest(self, start: bytes, end: bytes, *, revision: int) -> Any:
        """Return the `RangeResponse` of the youngest key in a range, and the count of all, as of `revision`.

        Never several in one transaction: one that only reads, and is cancelled, lets older etcds panic (issue 14110).
        """
        request = rpc.RangeRequest(
            key=start,
            range_end=end,
            limit=1,
            revision=revision,
            keys_only=True,
            sort_target=rpc.RangeRequest.MOD,
            sort_order=rpc.RangeRequest.DESCEND,
        )
        return _read(await self._open.kvstub.Range(request, metadata=self._open.metadata))

    async def page(self, start: bytes, end: bytes, *, limit: int, revision: int) -> Any:
        """Return the `RangeResponse` of at most `limit` keys from `start` to before `end`, as of `revision`."""
        request = rpc.RangeRequest(key=start, range_end=end, limit=limit, revision=revision)
        return _read(await self._open.kvstub.Range(request, metadata=self._open.metadata))

    async def commit(
        self, compare: Sequence[Any], success: Sequence[Any], failure: Sequence[Any] = ()
    ) -> tuple[bool, list[Any]]:
        """Run a transaction of aetcd's compares and operations; return whether they held, and the answers."""
        succeeded, answers = await self._open.transaction(compare, list(success), list(failure))
        return bool(succeeded), list(answers)

    async def keep_alive(self, lease_id: int) -> tuple[int, int]:
        """Renew a lease; return the seconds it lives from now, 0 if it is gone, and etcd's revision.

        The stream of a renewal that was answered serves the next one, too; any other is thrown away.
        """
        call, self._renewals = self._renewals, None
        if call is None or call.done():  # while nobody renewed, etcd may have ended it
            call = self._open.leasestub.LeaseKeepAlive(metadata=self._open.metadata)
        try:
            await call.write(rpc.LeaseKeepAliveRequest(ID=lease_id))
            answer = await call.read()
            if answer is grpc.aio.EOF:  # etcd ended the stream: ask the call why
                raise _ended(await call.code(), await call.details())
            renewed = int(_read(answer).TTL), int(answer.header.revision)
            if not self._closed and self._renewals is None:
                self._renewals, call = call, None
            return renewed
        finally:
            if call is not None:
                call.cancel()

    def watch_stream(self) -> Any:
        """Open the watch stream: a call with `write(WatchRequest)`, `read()` and `cancel()`."""
        return self._open.watchstub.Watch(metadata=self._open.metadata)


def _read(answer: Any) -> Any:
    """Return an answer, unless gRPC could not read it: then it returns None."""
    if answer is None:
        raise ConnectionError("etcd sent what is no answer to this")
    return answer


def _ended(code: grpc.StatusCode, details: str | None) -> grpc.aio.AioRpcError:
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE if code is grpc.StatusCode.OK else code, empty, empty, details or "stream ended"
    )


def _settings(options: Options) -> dict[str, Any]:
    """Return gRPC's settings. Sources: gRPC core's channel_arg_names.h; the figures were measured (design, section 6).

    A hung peer is found by pings: one every `keep_alive`, answered within 3 s. Without `ping_timeout_ms` it takes
    65 s; without `max_pings_without_data` gRPC stops pinging an idle stream. A channel that failed is thrown away and
    made anew, so its own back-off must not be shared with the next one. gRPC's probing of the line for how much may be
    under way costs a ping for what is received, so it is off, and told instead: little, since it lets all of a message
    come that has begun.
    """
    return {
        "grpc.keepalive_time_ms": int(options.keep_alive * 1000),
        "grpc.keepalive_timeout_ms": 3000,
        "grpc.http2.ping_timeout_ms": 3000,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.http2.bdp_probe": 0,
        "grpc.http2.lookahead_bytes": _LOOKAHEAD,
        "grpc.use_local_subchannel_pool": 1,
        "grpc.enable_http_proxy": 0,
        "grpc.max_receive_message_length": MESSAGE_LIMIT,
        "grpc.max_send_message_length": MESSAGE_LIMIT,
    }


async def _credentials(options: Options, host: str, port: int) -> tuple[grpc.ChannelCredentials, str | None]:
    """Return the channel's credentials, and the name to expect in etcd's certificate (None: the host's)."""
    tls = options.tls or TLS()
    ca, cert, key = await _pem("ca", tls.ca), await _pem("cert", tls.cert), await _pem("key", tls.key)
    name = tls.server_name
    if options.insecure_skip_verify:
        ca, name = await anyio.to_thread.run_sync(_pinned, host.strip("[]"), port, tls, abandon_on_cancel=True)
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert), name


async def _pem(field: str, path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return await anyio.Path(path).read_bytes()
    except OSError as error:
        raise ConnectionFailedError(f"tls.{field}: cannot read {str(path)!r}: {error.strerror}") from error


def _pinned(host: str, port: int, tls: TLS) -> tuple[bytes, str | None]:
    """Fetch the certificate that answers, and a name in it. Two handshakes: names are told of verified ones only."""

    def handshake(context: ssl.SSLContext) -> ssl.SSLSocket:
        if tls.cert is not None:
            context.load_cert_chain(tls.cert, tls.key)
        return context.wrap_socket(socket.create_connection((host, port), timeout=10), server_hostname=host)

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with handshake(context) as connection:
        der = connection.getpeercert(binary_form=True)
        assert der is not None  # a TLS server always shows one
    pem = ssl.DER_cert_to_PEM_cert(der)
    context = ssl.create_default_context(cadata=pem)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    with handshake(context) as connection:
        seen: Any = connection.getpeercert() or {}
    names = [value for kind, value in seen.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    return pem.encode(), names[0] if names else None
