"""What the shell hands to core: key-value pairs as etcd has them, and what core hands back."""

import msgspec

from ergo_registrar.events import Event


class Record(msgspec.Struct, frozen=True, gc=False):
    """One key of etcd, at one revision.

    `value` is None when the key was deleted. `create_revision` is the revision at which this life of the key began
    (0 in a deletion), `mod_revision` that of the last change, `lease` the id of the lease it hangs on, 0 for none.
    Source: `mvccpb.KeyValue` in etcd's api/mvccpb/kv.proto.
    """

    key: bytes
    value: bytes | None
    create_revision: int = 0
    mod_revision: int = 0
    lease: int = 0


class Skipped(msgspec.Struct, frozen=True, gc=False):
    """A key that was left out because it, or its value, is not what belongs there."""

    key: bytes
    reason: str


class Step(msgspec.Struct, frozen=True, gc=False):
    """What one step of a mirror made of its input: what to tell, in order, and what was left out."""

    events: list[Event]
    skipped: list[Skipped]
