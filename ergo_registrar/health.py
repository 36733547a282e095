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
    endpoint: str
    """The etcd endpoint in use, empty while there is none."""
