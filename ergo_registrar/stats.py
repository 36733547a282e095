"""Counters that anyone may read, and who is told of each request to etcd."""

from collections.abc import Callable

import msgspec

RequestListener = Callable[[str, float, str], None]
"""Called with what was asked, the seconds it took, and how it ended."""


class Stats(msgspec.Struct):
    """What happened since the registrar was made. Each only grows."""

    keys_skipped: int = 0
    """Keys under the prefixes that were left out, because they or their values are not what belongs there."""
    events_published: int = 0
    """Events there were, each counted once, however many subscriptions wanted it."""
    events_by_type: dict[str, int] = {}
    """The same by the name of their class, such as `NodeJoined`; one that never came is not there."""
    events_missed: int = 0
    """Events that did not fit into a subscription's queue, counted for each subscription."""
    connections_replaced: int = 0
    """How often the connection to an etcd endpoint was given up for another."""
    listings: int = 0
    """How often everything was read: at the start, and after each gap that could not be closed otherwise."""
    watch_streams: int = 0
    """How often the watch stream was opened."""
    lease_renewals: int = 0
    """How often etcd confirmed the lease."""
    claims: int = 0
    """How often the name was claimed under a new lease: at the start, and after each lost session."""
    re_registrations: int = 0
    """How often it was needed to claim the name anew, because the lease was over: others saw this process leave."""
    repairs: int = 0
    """How often keys of this process were put back after someone else deleted or changed them."""

    def copy(self) -> "Stats":
        """Return the counters as they are now."""
        return msgspec.structs.replace(self, events_by_type=dict(self.events_by_type))
