"""The endpoints: does each answer, over TLS, soon enough, with a leader, with room, and as the same cluster?"""

import asyncio
import dataclasses
import statistics
import time
import warnings
from collections.abc import Sequence
from typing import Any

import msgspec

from ergo_registrar.admin.finding import Finding, error, note, ok, warning
from ergo_registrar.clock import now
from ergo_registrar.core.keys import routes_prefix
from ergo_registrar.errors import ConnectionFailedError
from ergo_registrar.etcd.client import Client, progress_comes_last
from ergo_registrar.etcd.connection import BrokenError, Connection
from ergo_registrar.etcd.greeting import Fault, Greeting, greet
from ergo_registrar.etcd.stream import ProxyError, Stream
from ergo_registrar.options import Options
from ergo_registrar.stats import Stats

_CALLS = 5  # whose median is the latency
_SLOW = 0.2  # seconds: a change needs one such way to be seen, and a claim five
_SOON = 14 * 86400.0  # seconds until a certificate ends
_NEARLY = 0.8  # of the quota
_DEFAULT_QUOTA = 2 * 1024**3  # bytes: etcd's own, where it does not tell its

# What is wrong with the way to an endpoint: id, what, what to do about it.
_FAULTS: dict[Fault, tuple[str, str, str]] = {
    Fault.UNREACHABLE: (
        "endpoint-unreachable",
        "nobody answers there ({})",
        "Start etcd there, or take this endpoint out; look at the host, the port, and firewalls in between.",
    ),
    Fault.SILENT: (
        "endpoint-silent",
        "connections are accepted, and nothing is answered ({})",
        "Its process hangs, or something in between swallows what is sent: look at its log, restart it.",
    ),
    Fault.NO_LEADER: (
        "endpoint-no-leader",
        "it has no leader: most of its cluster is away, or cut off from it ({})",
        "Bring its other members back; `etcdctl endpoint status --cluster -w table` shows them.",
    ),
    Fault.FILES: (
        "tls-files",
        "the files for TLS cannot be used: {}",
        "--tls-ca, --tls-cert and --tls-key must name PEM files that can be read; the key must fit the certificate.",
    ),
    Fault.UNTRUSTED: (
        "tls-untrusted",
        "its certificate is not from an authority that is trusted here ({})",
        "Give the authority that issued it with --tls-ca.",
    ),
    Fault.OTHER_NAME: (
        "tls-other-name",
        "its certificate is for another name ({})",
        "Use a host that stands in the certificate in --endpoints, or name one that does with --tls-server-name.",
    ),
    Fault.EXPIRED: (
        "tls-expired",
        "its certificate is not valid now ({})",
        "Renew etcd's certificate; or put the clock of this machine right.",
    ),
    Fault.NO_TLS: (
        "tls-not-spoken",
        "it does not speak TLS ({})",
        "Leave out https:// and the --tls-* options, or give etcd --cert-file and --key-file, if it is etcd.",
    ),
    Fault.ONLY_TLS: (
        "tls-wanted",
        "it speaks TLS only{}",
        "Give its authority with --tls-ca, or write https:// in front of the endpoint.",
    ),
    Fault.WANTS_CERTIFICATE: (
        "tls-client-certificate",
        "it wants a certificate of its clients, and takes none that was shown ({})",
        "Give one that its --trusted-ca-file has issued with --tls-cert and --tls-key.",
    ),
}


class Look(msgspec.Struct, frozen=True):
    """What one endpoint showed.

    `status` is etcd's `StatusResponse`, None where it gave none. `usable` is whether it can be asked more.
    """

    endpoint: str
    findings: list[Finding]
    status: Any = None
    usable: bool = False

    @property
    def cluster_id(self) -> int | None:
        """The id of its cluster, as far as it told."""
        return None if self.status is None else int(self.status.header.cluster_id)


async def look_at_all(options: Options) -> list[Look]:
    """Look at every endpoint, at the same time, each for at most `request_timeout` seconds."""
    return list(await asyncio.gather(*(_look(endpoint, options) for endpoint in options.endpoints)))


def aimed(options: Options, **changes: Any) -> Options:
    """Return the options with some of them changed, without warning of `insecure_skip_verify` once more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dataclasses.replace(options, **changes)


async def _look(endpoint: str, options: Options) -> Look:
    ends = now() + options.request_timeout
    greeting = await greet(endpoint, options, options.request_timeout)
    if greeting.fault is not None:
        return Look(endpoint, [_fault(endpoint, greeting)])
    here = aimed(options, endpoints=(endpoint,))
    # Without a login first, which etcds before 3.7 do not want for this: a wrong password is not the endpoint's fault.
    for asked in (aimed(here, username=None, password=None), here):
        try:
            status, latency = await _measure(asked, ends)
        except BrokenError as failure:
            reason = failure.endpoints.get(endpoint, str(failure))
            fault = Fault.NO_LEADER if "no leader" in reason else Fault.SILENT
            return Look(endpoint, [_fault(endpoint, Greeting(fault, reason))])
        except ConnectionFailedError:  # it answers, and refuses
            continue
        findings = judge(endpoint, status, greeting, latency, time.time(), options)
        return Look(endpoint, [*findings, *await _proxied(here, ends)], status, usable=True)
    return Look(endpoint, [ok("endpoint", endpoint, "it answers, and tells no more without a login")], usable=True)


async def _measure(options: Options, ends: float) -> tuple[Any, float]:
    """Return etcd's status, and the median of the seconds that its answers took."""
    connection = Connection(options, Stats())
    took: list[float] = []

    async def ask() -> Any:
        began = now()
        status = await connection.call("status", lambda c: c.member_status(), timeout=max(0.01, ends - began))
        took.append(now() - began)
        return status

    try:
        status = await ask()
        took.clear()  # the first one made the connection
        for _ in range(_CALLS):
            await ask()
    finally:
        await connection.close()
    return status, statistics.median(took)


async def _proxied(options: Options, ends: float) -> list[Finding]:
    """Return what there is to say where a watch shows that this is a proxy. What else it may show, others ask for."""
    connection = Connection(options, Stats())

    async def open_stream(client: Client) -> Stream:
        return Stream(connection, client, client.watch_stream(), True, now, log_in_anew=False)

    try:
        stream = await connection.call("watch", open_stream, timeout=max(0.01, ends - now()))
        try:
            await stream.create(1, routes_prefix(options.cluster), 0, max(0.01, ends - now()))
        finally:
            stream.cancel()
    except ProxyError:
        what = "it is no member of etcd but a proxy, such as `etcd grpc-proxy`: no registrar enters through it"
        return [error("endpoint-proxy", options.endpoints[0], what, "Give the endpoints of etcd's own members.")]
    except ConnectionFailedError:
        pass
    finally:
        await connection.close()
    return []


def _fault(endpoint: str, greeting: Greeting) -> Finding:
    assert greeting.fault is not None
    id, what, cure = _FAULTS[greeting.fault]
    return error(id, endpoint, what.format(greeting.detail), cure)


def judge(
    endpoint: str, status: Any, greeting: Greeting, latency: float, today: float, options: Options
) -> list[Finding]:
    """Return what there is to say of an endpoint that answers. `today` is in seconds since 1970."""
    findings = [
        ok(
            "endpoint",
            endpoint,
            f"etcd {status.version}, {_size(status.dbSize)}, answers in {latency * 1000:.1f} ms (median of {_CALLS})",
        )
    ]
    if latency > _SLOW:
        findings.append(
            warning(
                "endpoint-slow",
                endpoint,
                f"it takes {latency:.2f} s to answer, where {_SLOW:g} s is much",
                "Look at its load, its disk and the way to it; a lease_ttl well above that keeps members registered.",
            )
        )
    if options.insecure_skip_verify:
        findings.append(
            warning(
                "tls-unverified",
                endpoint,
                "nobody proves that this is etcd: insecure_skip_verify is on",
                "Give the authority of its certificate with --tls-ca instead.",
            )
        )
    if greeting.expires is not None and greeting.expires - today < _SOON:
        findings.append(
            warning(
                "tls-expires-soon",
                endpoint,
                f"its certificate ends in {(greeting.expires - today) / 86400:.1f} days",
                "Renew it: from then on nobody can connect.",
            )
        )
    return [*findings, *_room(endpoint, status, greeting.quota), *_known_faults(endpoint, status)]


def _room(endpoint: str, status: Any, quota: int | None) -> list[Finding]:
    findings: list[Finding] = []
    alarms = " ".join(status.errors)
    if "NOSPACE" in alarms:
        findings.append(
            error(
                "alarm-nospace",
                endpoint,
                "etcd is out of space and takes no writes",
                "Run `etcdctl compact REVISION`, `etcdctl defrag` and `etcdctl alarm disarm`, or raise its quota.",
            )
        )
    if "CORRUPT" in alarms:
        findings.append(
            error(
                "alarm-corrupt",
                endpoint,
                "etcd found that the data of its members differ, and takes no writes",
                "Follow etcd's page on data corruption: replace the corrupt member, then `etcdctl alarm disarm`.",
            )
        )
    known = quota or _DEFAULT_QUOTA
    if status.dbSize > known * _NEARLY and "NOSPACE" not in alarms:
        told = "" if quota else ", if its quota is etcd's default"
        findings.append(
            warning(
                "database-nearly-full",
                endpoint,
                f"its database takes {_size(status.dbSize)} of {_size(known)}{told}; "
                f"{_size(status.dbSizeInUse)} are in use",
                "Let it compact by itself (--auto-compaction-retention) and defragment it, or raise its quota.",
            )
        )
    return findings


def _known_faults(endpoint: str, status: Any) -> list[Finding]:
    if progress_comes_last(status.version):
        return []
    return [
        note(
            "etcd-old-progress",
            endpoint,
            f"etcd {status.version} may prove on a watch what it has not told yet (its issue 15220)",
            "This package sees to it, at the price of more questions. Mended in 3.4.25 and 3.5.8.",
        )
    ]


def compare(looks: Sequence[Look]) -> list[Finding]:
    """Return what is wrong with the endpoints taken together."""
    told = [look for look in looks if look.cluster_id is not None]
    return [
        error(
            "endpoint-other-cluster",
            look.endpoint,
            f"it belongs to another etcd cluster than {told[0].endpoint}: nodes there do not see those here",
            "Take it out of the endpoints, or the other one.",
        )
        for look in told
        if look.cluster_id != told[0].cluster_id
    ]


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
