"""The keys of one cluster, as listed: can each be read, and does each belong to somebody who lives? Pure."""

from collections.abc import Iterable, Mapping, Sequence

from ergo_registrar.admin.finding import Finding, first_of, note, warning
from ergo_registrar.core.config import read_entries
from ergo_registrar.core.keys import ApplicationKey, LeavingKey, NodeKey, parse_route_key, routes_prefix
from ergo_registrar.core.mirror import Mirror
from ergo_registrar.core.records import Record, Skipped
from ergo_registrar.errors import DecodeError

_TYPES = ("int:", "float:", "bool:")


def judge_routes(cluster: str, records: Sequence[Record]) -> list[Finding]:
    """Return what is wrong with what stands under a cluster's `routes/`."""
    prefix = routes_prefix(cluster)
    parsed = {record.key: (record, _parsed(prefix, record.key)) for record in records}
    nodes = {key.node for _, key in parsed.values() if isinstance(key, NodeKey)}
    orphans = [
        f"{key.name} on {key.node}"
        for _, key in parsed.values()
        if isinstance(key, ApplicationKey) and key.node not in nodes
    ]
    no_lease = [_text(name) for name, (record, key) in parsed.items() if record.lease == 0 and _is_route(key)]
    markers = [_text(name) for name, (r, key) in parsed.items() if r.lease == 0 and isinstance(key, LeavingKey)]
    skipped = Mirror(cluster).snapshot(records, max((r.mod_revision for r in records), default=0), 0.0).skipped
    findings = [
        *_unknown([each.key for each in skipped if parsed[each.key][1] is None], prefix),
        *_undecodable([each for each in skipped if parsed[each.key][1] is not None], prefix),
    ]
    where = prefix.decode()
    if orphans:
        findings.append(
            warning(
                "application-orphaned",
                where,
                f"{_count(orphans, 'application')} on a node that is not there: {first_of(orphans)}",
                "Their lease will take them away, unless they have none; then delete .../applications/APP/NODE.",
            )
        )
    if no_lease:
        findings.append(
            warning(
                "key-without-lease",
                where,
                f"{_count(no_lease, 'key')} without a lease, so nothing ever takes them away: {first_of(no_lease)}",
                "Written by hand, or restored from a backup: delete them, and a process that lives puts its own back.",
            )
        )
    if markers:
        findings.append(
            warning(
                "marker-without-lease",
                where,
                f"{_count(markers, 'departure marker')} without a lease: {first_of(markers)}",
                "Delete them: a node of that name that crashes would count as one that left on purpose.",
            )
        )
    return findings


def judge_config(prefix: bytes, records: Iterable[Record]) -> list[Finding]:
    """Return what is wrong with one level of the configuration."""
    entries, skipped = read_entries(prefix, records)
    undecodable = [each for each in skipped if each.key[len(prefix) :] and b"/" not in each.key[len(prefix) :]]
    unknown = [each.key for each in skipped if each not in undecodable]
    untyped = [
        f"{item} = {entry.raw}"
        for item, entry in entries.items()
        if entry is not None and isinstance(entry.value, str) and entry.raw.startswith(_TYPES)
    ]
    findings = [*_unknown(unknown, prefix), *_undecodable(undecodable, prefix)]
    if untyped:
        findings.append(
            warning(
                "value-untyped",
                prefix.decode(),
                f"{_count(untyped, 'value')} not of the type in front, read as text: {first_of(untyped)}",
                "Write what the type takes, such as int:5432, float:0.5, bool:true; docs/reference/keys.md tells all.",
            )
        )
    return findings


def judge_other_nodes(prefix: bytes, records: Iterable[Record], nodes: Iterable[str]) -> list[Finding]:
    """Return which nodes are configured under `prefix`, which ends before the node's name, and are not there."""
    named = {_text(record.key[len(prefix) :].partition(b"/")[0]) for record in records}
    absent = sorted(named - set(nodes) - {"*"})
    if not absent:
        return []
    return [
        note(
            "config-of-absent-node",
            prefix.decode(),
            f"configuration for {_count(absent, 'node')} not there now: {first_of(absent)}",
            "Nothing, if they come back; else delete it.",
        )
    ]


def judge_leases(cluster: str, times: Mapping[str, tuple[int, int]]) -> list[Finding]:
    """Return which nodes do not renew their lease, of which the seconds left and granted are given by node."""
    late = [
        f"{node} ({left} s left of {granted} s)" for node, (left, granted) in times.items() if 0 <= left * 3 < granted
    ]
    if not late:
        return []
    return [
        warning(
            "lease-expiring",
            routes_prefix(cluster).decode() + "nodes/",
            f"{_count(late, 'node')} about to expire, since the lease was not renewed lately: {first_of(late)}",
            "A process that lives renews every third of its TTL: see whether it runs, is blocked, or is cut off.",
        )
    ]


def nodes_of(cluster: str, records: Iterable[Record]) -> dict[str, Record]:
    """Return the key of each node that is there, by name."""
    prefix = routes_prefix(cluster)
    found = ((_parsed(prefix, record.key), record) for record in records)
    return {key.node: record for key, record in found if isinstance(key, NodeKey)}


def _unknown(keys: Sequence[bytes], prefix: bytes) -> list[Finding]:
    if not keys:
        return []
    return [
        warning(
            "key-unknown",
            prefix.decode(),
            f"skipped, since they mean nothing here, {_count(keys, 'key')}: {first_of([_text(key) for key in keys])}",
            "Delete them, or correct their names; docs/reference/keys.md has the layout.",
        )
    ]


def _undecodable(skipped: Sequence[Skipped], prefix: bytes) -> list[Finding]:
    if not skipped:
        return []
    each = [f"{_text(one.key)} ({one.reason})" for one in skipped]
    return [
        warning(
            "value-undecodable",
            prefix.decode(),
            f"skipped, since they cannot be read, {_count(each, 'value')}: {first_of(each)}",
            "See who writes them: routes are base64 of EDF, configuration is UTF-8; else delete them.",
        )
    ]


def _parsed(prefix: bytes, key: bytes) -> NodeKey | ApplicationKey | LeavingKey | None:
    try:
        return parse_route_key(prefix, key)
    except DecodeError:
        return None


def _is_route(key: object) -> bool:
    return isinstance(key, NodeKey | ApplicationKey)


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}" + ("" if len(things) == 1 else "s")
