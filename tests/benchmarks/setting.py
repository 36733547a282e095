"""How a run of the benchmarks is to be made: in short or whole, and beside which peers."""

import os

import msgspec

ETCETRA = "ERGO_REGISTRAR_BENCH_ETCETRA"
GO_PEER = "ERGO_REGISTRAR_BENCH_GO_PEER"
QUICK = "ERGO_REGISTRAR_BENCH_QUICK"


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What every part of the benchmarks is told.

    `etcetra` is a Python in whose environment etcetra is installed: it wants another grpcio than aetcd, so it needs one
    of its own. `go_peer` is a program that joins clusters with Ergo's own registrar (docs/explanation/performance.md
    says how it is spoken to). Each is None where there is none.
    """

    quick: bool = False
    etcetra: str | None = None
    go_peer: str | None = None

    @property
    def rounds(self) -> int:
        """How many rounds to measure; in each, everything that is compared takes its turn."""
        return 5 if self.quick else 9

    @classmethod
    def from_env(cls, *, quick: bool) -> "Setting":
        """Return the setting that the environment describes."""
        return cls(quick=quick, etcetra=os.environ.get(ETCETRA), go_peer=os.environ.get(GO_PEER))
