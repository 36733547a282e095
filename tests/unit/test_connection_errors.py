"""What an error of etcd, gRPC or the network means: one pure function decides."""

import asyncio
import ssl

import aetcd
import grpc
import pytest

from ergo_registrar.errors import ConnectionFailedError
from ergo_registrar.etcd.connection import (
    CompactedError,
    LeaseGoneError,
    TooLargeError,
    Verdict,
    _AttemptFailed,
    _final,
    _judge,
)

Code = grpc.StatusCode


def said(code: grpc.StatusCode, details: str | None) -> grpc.aio.AioRpcError:
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, empty, empty, details)


# Code and message as etcd's api/v3rpc/rpctypes/error.go has them, and as gRPC makes them.
SAYINGS = [
    (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", Verdict.LOG_IN),
    (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", Verdict.LOG_IN),
    (Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password", Verdict.FINAL),
    (Code.INVALID_ARGUMENT, "etcdserver: user name is empty", Verdict.FINAL),
    (Code.PERMISSION_DENIED, "etcdserver: permission denied", Verdict.FINAL),
    (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Verdict.COMPACTED),
    (Code.NOT_FOUND, "etcdserver: requested lease not found", Verdict.LEASE_GONE),
    (Code.UNAVAILABLE, "etcdserver: no leader", Verdict.ELSEWHERE),
    (Code.UNAVAILABLE, "etcdserver: leader changed", Verdict.ELSEWHERE),
    (Code.UNAVAILABLE, "etcdserver: server stopped", Verdict.ELSEWHERE),
    (Code.UNAVAILABLE, "etcdserver: request timed out", Verdict.ELSEWHERE),
    (Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to previous leader failure", Verdict.ELSEWHERE),
    (Code.FAILED_PRECONDITION, "etcdserver: not leader", Verdict.ELSEWHERE),
    (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Verdict.ELSEWHERE),
    (Code.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (5 vs. 4)", Verdict.TOO_LARGE),
    (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Verdict.FINAL),
    (Code.INVALID_ARGUMENT, "etcdserver: request is too large", Verdict.FINAL),
    (Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request", Verdict.FINAL),
    (Code.UNAVAILABLE, "failed to connect to all addresses; last error: connection refused", Verdict.ELSEWHERE),
    (Code.UNAVAILABLE, None, Verdict.ELSEWHERE),
    (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", Verdict.ELSEWHERE),
    (Code.CANCELLED, "Channel closed!", Verdict.ELSEWHERE),
    (Code.INTERNAL, "Received RST_STREAM", Verdict.ELSEWHERE),
    (Code.UNKNOWN, "Stream removed", Verdict.ELSEWHERE),
    (Code.UNIMPLEMENTED, "unknown service etcdserverpb.KV", Verdict.FINAL),
]


@pytest.mark.parametrize(("code", "details", "verdict"), SAYINGS)
def test_what_etcd_says(code: grpc.StatusCode, details: str | None, verdict: Verdict) -> None:
    assert _judge(said(code, details)) == (verdict, details or code.name)


@pytest.mark.parametrize(("code", "details", "verdict"), SAYINGS)
def test_aetcd_says_the_same_in_other_words(code: grpc.StatusCode, details: str | None, verdict: Verdict) -> None:
    error = aetcd.ClientError("aetcd's own words")
    error.__cause__ = said(code, details)
    assert _judge(error) == (verdict, details or code.name)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "Connection refused"),
        ConnectionResetError(),
        ConnectionError("this member has no leader"),
        ssl.SSLError("CERTIFICATE_VERIFY_FAILED"),
        TimeoutError(),
        asyncio.CancelledError(),
        asyncio.InvalidStateError(),
        grpc.aio.UsageError("Channel is closed."),
    ],
    ids=repr,
)
def test_what_the_network_says_sends_elsewhere(error: BaseException) -> None:
    verdict, reason = _judge(error)
    assert verdict is Verdict.ELSEWHERE
    assert reason.strip()
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        (Verdict.COMPACTED, CompactedError),
        (Verdict.TOO_LARGE, TooLargeError),
        (Verdict.LEASE_GONE, LeaseGoneError),
        (Verdict.FINAL, ConnectionFailedError),
        (Verdict.ELSEWHERE, ConnectionFailedError),
        (Verdict.LOG_IN, ConnectionFailedError),
    ],
)
def test_what_the_caller_gets_is_of_this_package(verdict: Verdict, kind: type[Exception]) -> None:
    error = _final("claim", "h:1", _AttemptFailed(None, verdict, "the reason", ValueError()))
    assert isinstance(error, kind)
    assert "claim at h:1: the reason" in str(error)


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("etcdserver: user name is empty", "username and password"),
        ("etcdserver: authentication failed, invalid user ID or password", "wrong username or password"),
        ("etcdserver: permission denied", "role"),
        ("etcdserver: mvcc: database space exceeded", "compact"),
    ],
)
def test_it_says_what_would_be_right(reason: str, hint: str) -> None:
    message = str(_final("claim", "h:1", _AttemptFailed(None, Verdict.FINAL, reason, ValueError())))
    assert reason in message
    assert hint in message
