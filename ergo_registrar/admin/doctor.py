"""Everything that can be wrong between a process and its cluster in etcd: looked at once, and nothing changed.

From the outside in, as far as one comes: the endpoints, the login, the permissions prefix by prefix, the keys. Each
look is bounded by `request_timeout`, those at the endpoints run at the same time.
"""

from collections.abc import Iterable

import anyio

from ergo_registrar.admin.connection import read
from ergo_registrar.admin.endpoints import aimed, compare, look_at_all
from ergo_registrar.admin.finding import Finding, error, note, ok, warning
from ergo_registrar.admin.keyspace import judge_config, judge_leases, judge_other_nodes, judge_routes, nodes_of
from ergo_registrar.core.keys import (
    application_key,
    config_prefixes,
    leaving_key,
    node_key,
    prefix_end,
    routes_prefix,
)
from ergo_registrar.core.records import Record
from ergo_registrar.errors import ConnectionFailedError
from ergo_registrar.etcd.client import Client
from ergo_registrar.etcd.connection import Connection, LeaseGoneError
from ergo_registrar.options import Options
from ergo_registrar.stats import Stats

_AT_ONCE = 16  # leases asked for at the same time
_ANY_APPLICATION = "doctor"  # stands for an application whose route the node may want to write
_ROLES = "Grant it to a role of the user's; docs/reference/keys.md has the commands"


async def examine(options: Options, node: str | None = None) -> list[Finding]:
    """Return what is found, as a member called `node` sees it, or an observer.

    Takes some `request_timeout` at most for each step where etcd does not answer. Raises `ValidationError` for a node
    name that is none, and nothing else.
    """
    if node is not None:
        node_key(options.cluster, node)
    looks = await look_at_all(options)
    findings = [*(finding for look in looks for finding in look.findings), *compare(looks)]
    first = next((look.cluster_id for look in looks if look.cluster_id is not None), None)
    endpoints = tuple(look.endpoint for look in looks if look.usable and look.cluster_id in (None, first))
    if not endpoints:
        return findings
    patient = _Patient(aimed(options, endpoints=endpoints), node)
    try:
        await patient.examine()
    except ConnectionFailedError as failure:
        patient.findings.append(
            error("unanswered", ", ".join(endpoints), str(failure), "Run this again; if it stays, look at etcd's log.")
        )
    finally:
        await patient.connection.close()
    return findings + patient.findings


class _Patient:
    """The part that takes a connection, and a login where etcd wants one."""

    def __init__(self, options: Options, node: str | None) -> None:
        self.findings: list[Finding] = []
        self.connection: Connection = Connection(options, Stats())
        self._options = options
        self._cluster = options.cluster
        self._node = node
        self._where = ", ".join(options.endpoints)

    async def examine(self) -> None:
        """Look at the login, the permissions and the keys. Raise `ConnectionFailedError` when etcd fails."""
        if not await self._log_in():
            return
        readable = await self._permissions()
        await self._keys(readable)

    async def _log_in(self) -> bool:
        user = self._options.username
        try:
            has_token = await self.connection.call("log in", _has_token)
            if user is None:
                await self.connection.call("read", lambda client: client.page(b"-", b"", limit=1, revision=0))
        except ConnectionFailedError as failure:
            if "user name is empty" in str(failure):
                self._add(
                    error(
                        "login-missing",
                        self._where,
                        "etcd wants a login, and there is none",
                        "Set --username and the password, better in ERGO_REGISTRAR_PASSWORD than in --password.",
                    )
                )
                return False
            if "authentication failed" in str(failure):
                self._add(
                    error(
                        "login-refused",
                        self._where,
                        f"etcd refuses the login of {user!r}: wrong username or password",
                        "`etcdctl user list` shows the users, `etcdctl user passwd NAME` sets a password.",
                    )
                )
                return False
            if "permission denied" not in str(failure):
                raise
            has_token = False
        if user is None:
            self._add(note("login-off", self._where, "etcd wants no login: whoever reaches it may change everything"))
        elif has_token:
            self._add(ok("login", self._where, f"{user!r} is logged in"))
        else:
            self._add(
                warning(
                    "login-unused",
                    self._where,
                    f"a username is given, {user!r}, and etcd's authentication is off: whoever reaches it may change "
                    "everything",
                    "Switch it on with `etcdctl auth enable`, once a user root exists; or leave the username out.",
                )
            )
        return True

    # Permissions

    async def _permissions(self) -> list[bytes]:
        """Return the prefixes that may be read."""
        routes = routes_prefix(self._cluster)
        readable = [prefix for prefix in self._prefixes() if await self._may_read(prefix)]
        may = len(readable) == len(self._prefixes())
        if self._node is not None and routes in readable:
            may = await self._may_write(self._node) and may
        if may:
            role = "an observer" if self._node is None else "a member"
            self._add(ok("permissions", self._where, f"all that {role} needs, in {len(readable)} prefixes"))
        return readable

    def _prefixes(self) -> list[bytes]:
        return [routes_prefix(self._cluster), *config_prefixes(self._cluster, self._node).values()]

    async def _may_read(self, prefix: bytes) -> bool:
        try:
            await self._read(prefix)
        except ConnectionFailedError as failure:
            if "permission denied" not in str(failure):
                raise
            self._add(
                error("permission-read", prefix.decode(), "this user may not read all that is there", f"{_ROLES}.")
            )
            return False
        return True

    async def _read(self, prefix: bytes) -> None:
        end = prefix_end(prefix)
        await self.connection.call(
            f"read {prefix.decode()!r}", lambda client: client.page(prefix, end, limit=1, revision=0)
        )

    async def _may_write(self, node: str) -> bool:
        """Try, by transactions that cannot succeed, the three kinds of keys that a member writes."""
        denied = [
            key
            for key in (
                node_key(self._cluster, node),
                leaving_key(self._cluster, node),
                application_key(self._cluster, _ANY_APPLICATION, node),
            )
            if await self._is_denied(key)
        ]
        if not denied:
            return True
        where, keys = routes_prefix(self._cluster).decode(), ", ".join(key.decode() for key in denied)
        if denied == [application_key(self._cluster, _ANY_APPLICATION, node)]:
            self._add(
                note(
                    "permission-write-applications",
                    where,
                    f"this user may write no application that the role does not name, such as {keys}",
                    "Nothing, if the role names each of its applications; else grant readwrite on the prefix.",
                )
            )
        else:
            self._add(error("permission-write", where, f"this user may not write {keys}", f"{_ROLES} (readwrite)."))
        return False

    async def _is_denied(self, key: bytes) -> bool:
        try:
            await self.connection.call(f"try {key.decode()!r}", lambda client: client.try_to_put(key))
        except ConnectionFailedError as failure:
            if "database space exceeded" in str(failure):  # which the alarm tells
                return False
            if "permission denied" not in str(failure):
                raise
            return True
        return False

    # Keys

    async def _keys(self, prefixes: list[bytes]) -> None:
        routes = routes_prefix(self._cluster)
        _, found = await read(self.connection, prefixes)
        findings = [
            finding for prefix in prefixes if prefix != routes for finding in judge_config(prefix, found[prefix])
        ]
        if routes in found:
            findings += judge_routes(self._cluster, found[routes])
            nodes = nodes_of(self._cluster, found[routes])
            times = await self._lease_times(nodes)
            findings += judge_leases(self._cluster, times)
            findings += await self._config_of_others(nodes)
            if self._node is not None:
                self._add(self._own_name(self._node, nodes, times))
        if not findings:
            count = sum(map(len, found.values()))
            findings = [ok("keys", self._cluster, f"{count} keys in {len(prefixes)} prefixes, and each can be read")]
        self.findings += findings

    def _own_name(self, node: str, nodes: dict[str, Record], times: dict[str, tuple[int, int]]) -> Finding:
        key = node_key(self._cluster, node).decode()
        if node not in nodes:
            return ok("node-free", key, f"nobody is registered as {node!r}")
        left, granted = times.get(node, (-1, 0))
        lease = f"its lease of {granted} s has {left} s left" if left >= 0 else "without a lease"
        return note(
            "node-registered",
            key,
            f"{node!r} is registered, {lease}",
            "Nothing, if that is the process you mean; a second one of that name will be turned away.",
        )

    async def _lease_times(self, nodes: dict[str, Record]) -> dict[str, tuple[int, int]]:
        """Return the seconds left and granted of the lease of each node that has one."""
        times: dict[str, tuple[int, int]] = {}
        limit = anyio.CapacityLimiter(_AT_ONCE)

        async def ask(node: str, lease: int) -> None:
            async with limit:
                try:
                    left, granted = await self.connection.call(
                        "look at a lease", lambda client: client.lease_times(lease)
                    )
                except LeaseGoneError:
                    return
                except ConnectionFailedError as failure:
                    if "permission denied" not in str(failure):
                        raise
                    return
            if left >= 0:
                times[node] = left, granted

        async with anyio.create_task_group() as tasks:
            for node, record in nodes.items():
                if record.lease:
                    tasks.start_soon(ask, node, record.lease)
        return times

    async def _config_of_others(self, nodes: Iterable[str]) -> list[Finding]:
        """Look at the configuration of all nodes, where the user may."""
        cluster = self._cluster
        findings: list[Finding] = []
        for prefix in (f"services/ergo/cluster/{cluster}/config/", f"services/ergo/config/{cluster}/"):
            if prefix == "services/ergo/config/global/":  # whose items would be taken for nodes
                continue
            try:
                _, found = await read(self.connection, [prefix.encode()])
            except ConnectionFailedError as failure:
                if "permission denied" not in str(failure):
                    raise
                continue
            findings += judge_other_nodes(prefix.encode(), found[prefix.encode()], nodes)
        return findings

    def _add(self, finding: Finding) -> None:
        self.findings.append(finding)


async def _has_token(client: Client) -> bool:
    return client.logged_in
