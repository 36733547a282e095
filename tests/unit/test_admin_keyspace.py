"""When a lease counts as not renewed: pure, since etcd lets nobody choose how much of one is left."""

import pytest

from ergo_registrar.admin.keyspace import judge_leases


@pytest.mark.parametrize(
    ("left", "granted", "late"),
    [(6, 6, False), (2, 6, False), (1, 6, True), (0, 2, True), (1, 2, False), (4, 10, False), (3, 10, True)],
)
def test_less_than_a_third_left_is_late(left: int, granted: int, late: bool) -> None:
    """Renewals are due every third: at one third, one was missed and the next is due."""
    found = judge_leases("c", {"a@h": (left, granted), "live@h": (granted, granted)})
    assert [finding.id for finding in found] == ["lease-expiring"] * late
    assert all(
        f"1 node about to expire, since the lease was not renewed lately: a@h ({left} s" in f.what for f in found
    )


def test_a_lease_that_has_ended_meanwhile_is_none() -> None:
    assert judge_leases("c", {"a@h": (-1, 0)}) == []
