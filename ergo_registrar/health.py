"""How a registrar is, at one moment."""

import msgspec

from ergo_registrar.core.session import State


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What `Registrar.health` answers, from memory alone."""

    ok: bool
    """Whether the state is `CONNECTED`: seen by others, and what is read here is current."""
    state: State
    reason: str | None
    """Why it is not connected, None while it is, and before the first try: the last error there was."""
    staleness: float
    """Seconds since etcd last proved that what is read here is all there is; infinite before the first time."""
    lease_left: float | None
    """Seconds until others may see this process leave, unless etcd confirms the lease before; None without a lease."""
    loop_lag: float
    """The most seconds that the event loop was late within the last lease period. A third of the lease is too much."""
    revision: int
    """The newest revision of etcd that is known here, 0 before the first."""
    revision_lag: int | None
    """How many revisions etcd had, when it last confirmed the lease, that are not proved to be known here yet.

    Others' writes count, so on a busy etcd it is seldom 0. One that only grows is a watch that stands still. None
    without a lease.
    """
    nodes: int
    """How many other nodes are known here."""
    applications: int
    """How many applications are known here, the own ones too."""
    instances: int
    """On how many nodes each of them is, summed up."""
    config_items: int
    """How many configuration items have an effective value."""
    endpoint: str
    """The etcd endpoint in use, empty while there is none."""
