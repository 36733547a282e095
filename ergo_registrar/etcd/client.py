"""The door to aetcd: its client on a channel of our own, for one endpoint.

aetcd is the base for keys, leases and transactions. What it lacks is added here and nowhere else: TLS, gRPC's
settings, compares on a lease, reads in pages, a kept watch stream, and answers with their revision. Private names of
aetcd are touched in this file only.
"""

import socket
import ssl
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aetcd
import anyio
import grpc
from aetcd import rpc, transactions

from ergo_registrar.errors import ConnectionFailedError
from ergo_registrar.options import TLS, Options

Metadata = tuple[tuple[str, str], ...]

MESSAGE_LIMIT = 32 * 1024 * 1024  # bytes; gRPC's own is 4 MiB, etcd's largest key-value pair is under 2 MiB


class Lease(transactions.BaseCompare):  # type: ignore[misc]  # aetcd is untyped
    """Compare the lease a key hangs on: `Lease(key) == 7587862099`. 0 is a key without a lease."""

    def build_compare(self, compare: Any) -> None:
        """Fill in the target, as aetcd's other compares do."""
        compare.target = rpc.Compare.LEASE
        compare.lease = int(self.value)


class Client(aetcd.Client):  # type: ignore[misc]  # aetcd is untyped
    """aetcd's client for one endpoint, with what aetcd lacks. Every call needs a deadline of its caller's."""

    def __init__(self, endpoint: str, options: Options) -> None:
        host, _, port = endpoint.removeprefix("https://").removeprefix("http://").rpartition(":")
        super().__init__(host, int(port), options.username, options.password, options=dict(_channel_options(options)))
        self.endpoint = endpoint
        self._setup = options
        self.watchstub: Any = None

    async def connect(self) -> None:
        """Make the channel and the stubs. Nothing is sent yet: gRPC connects with the first call."""
        if self._connected.is_set():
            return
        target = f"{self._host}:{self._port}"
        settings = dict(self._options)
        if self._setup.secure:
            tls = self._setup.tls or TLS()
            credentials, name = await _credentials(tls, self._host, self._port, self._setup.insecure_skip_verify)
            if name is not None:
                settings["grpc.ssl_target_name_override"] = name
            self.channel = rpc.secure_channel(target, credentials, options=list(settings.items()))
        else:
            self.channel = rpc.insecure_channel(target, options=list(settings.items()))
        self.metadata: Metadata = (("hasleader", "true"),)  # a member that lost its leader then says so, at once
        self.auth_stub = rpc.AuthStub(self.channel)
        self.kvstub = rpc.KVStub(self.channel)
        self.clusterstub = rpc.ClusterStub(self.channel)
        self.leasestub = rpc.LeaseStub(self.channel)
        self.maintenancestub = rpc.MaintenanceStub(self.channel)
        self.watchstub = rpc.WatchStub(self.channel)
        self._connected.set()

    async def authenticate(self) -> None:
        """Log in, and put the token on every later call. etcd without authentication is told nothing."""
        if self._username is None:
            return
        request = rpc.AuthenticateRequest(name=self._username, password=self._password)
        try:
            answer = await self.auth_stub.Authenticate(request, metadata=(("hasleader", "true"),))
        except grpc.aio.AioRpcError as error:
            if "authentication is not enabled" in (error.details() or ""):
                return
            raise
        self.metadata = (("hasleader", "true"), ("token", answer.token))

    async def member_status(self) -> Any:
        """Return the `StatusResponse` of this endpoint's member: cluster id, version, leader."""
        return await self.maintenancestub.Status(rpc.StatusRequest(), metadata=self.metadata)

    async def page(self, start: bytes, end: bytes, *, limit: int, revision: int) -> Any:
        """Return the `RangeResponse` of at most `limit` keys from `start` to before `end`, as of `revision`."""
        request = rpc.RangeRequest(key=start, range_end=end, limit=limit, revision=revision)
        return await self.kvstub.Range(request, metadata=self.metadata)

    async def commit(
        self, compare: Sequence[Any], success: Sequence[Any], failure: Sequence[Any] = ()
    ) -> tuple[bool, list[Any]]:
        """Run a transaction of aetcd's compares and operations; return whether they held, and the answers."""
        succeeded, answers = await self.transaction(compare, list(success), list(failure))
        return bool(succeeded), list(answers)

    async def keep_alive(self, lease_id: int) -> int:
        """Renew a lease; return the seconds it lives from now, 0 if it is gone.

        One request and one answer on a stream of its own, so that each has its own deadline and endpoint.
        """
        call = self.leasestub.LeaseKeepAlive(metadata=self.metadata)
        try:
            await call.write(rpc.LeaseKeepAliveRequest(ID=lease_id))
            answer = await call.read()
            if answer is grpc.aio.EOF:  # etcd ended the stream: ask the call why
                raise _ended(await call.code(), await call.details())
            return int(answer.TTL)
        finally:
            call.cancel()

    def watch_stream(self) -> Any:
        """Open the watch stream: a call with `write(WatchRequest)`, `read()` and `cancel()`."""
        return self.watchstub.Watch(metadata=self.metadata)


def _ended(code: grpc.StatusCode, details: str | None) -> grpc.aio.AioRpcError:
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE if code is grpc.StatusCode.OK else code, empty, empty, details or "stream ended"
    )


def _channel_options(options: Options) -> dict[str, Any]:
    """Return gRPC's settings. Sources: gRPC core's channel_arg_names.h; the figures were measured (design, section 6).

    A hung peer is found by pings: one every `keep_alive`, answered within 3 s. Without `ping_timeout_ms` it takes
    65 s; without `max_pings_without_data` gRPC stops pinging an idle stream. A channel that failed is thrown away and
    made anew, so its own back-off must not be shared with the next one.
    """
    return {
        "grpc.keepalive_time_ms": int(options.keep_alive * 1000),
        "grpc.keepalive_timeout_ms": 3000,
        "grpc.http2.ping_timeout_ms": 3000,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.use_local_subchannel_pool": 1,
        "grpc.max_receive_message_length": MESSAGE_LIMIT,
        "grpc.max_send_message_length": MESSAGE_LIMIT,
    }


async def _credentials(tls: TLS, host: str, port: int, skip_verify: bool) -> tuple[grpc.ChannelCredentials, str | None]:
    """Return the channel's credentials, and the name to expect in etcd's certificate (None: the host's)."""
    ca, cert, key = await _pem("ca", tls.ca), await _pem("cert", tls.cert), await _pem("key", tls.key)
    name = tls.server_name
    if skip_verify:
        warnings.warn(
            f"insecure_skip_verify: whoever answers first at {host}:{port} is trusted to be etcd", stacklevel=2
        )
        ca, name = await anyio.to_thread.run_sync(_pinned, host, port, tls, abandon_on_cancel=True)
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
