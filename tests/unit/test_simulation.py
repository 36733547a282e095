"""The simulation of large clusters: nothing is lost in it, and it agrees with arithmetic where there is any."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.benchmarks.report import Figure, Machine, Report
from tests.benchmarks.simulation import figures, page
from tests.benchmarks.simulation.model import (
    REVOKES,
    Cluster,
    Outcome,
    Parameters,
    Station,
    loss,
    restart,
    simulate,
)

COSTS = Parameters(
    etcd_send=10e-6,
    client_event=100e-6,
    etcd_alone=0.0,
    etcd_node=250e-6,
    client_node=700e-6,
    etcd_read=5e-6,
    client_read=30e-6,
    client_join=5e-3,
    floor=1e-3,
    etcd_memory=30e6,
    etcd_memory_node=100e3,
    client_memory_key=500.0,
)
AT_REST_FREE = replace(COSTS, etcd_node=0.0, client_node=0.0)
ONE_MEMBER = Cluster(1000, rate=10.0, members=1, cores=2.0)


def simulated(parameters: Parameters, cluster: Cluster, seconds: float = 100.0, seed: int = 1) -> Outcome:
    return simulate(parameters, cluster, random.Random(seed), seconds)


class TestChanges:
    @pytest.mark.parametrize("members", [1, 3, 5])
    @pytest.mark.parametrize("relays", [0, 7])
    def test_reach_each_member_and_observer_once(self, members: int, relays: int) -> None:
        outcome = simulated(COSTS, Cluster(400, observers=101, rate=5.0, members=members, relays=relays))
        assert outcome.changes > 400
        assert outcome.delivered == outcome.changes * 501

    def test_of_one_part_reach_that_part_only(self) -> None:
        outcome = simulated(COSTS, Cluster(1000, rate=5.0, clusters=10))
        assert outcome.delivered == outcome.changes * 100

    def test_are_the_same_for_the_same_seed(self) -> None:
        assert simulated(COSTS, ONE_MEMBER, 10.0) == simulated(COSTS, ONE_MEMBER, 10.0)
        assert simulated(COSTS, ONE_MEMBER, 10.0) != simulated(COSTS, ONE_MEMBER, 10.0, seed=2)


class TestCores:
    def test_are_used_as_arithmetic_says(self) -> None:
        outcome = simulated(COSTS, ONE_MEMBER)
        sending = outcome.changes / 100 * 1000 * COSTS.etcd_send
        assert outcome.etcd == pytest.approx((sending + 1000 * COSTS.etcd_node) / 2.0)

    def test_are_used_twice_as_much_by_sends_of_twice_the_cost(self) -> None:
        once = simulated(AT_REST_FREE, ONE_MEMBER)
        twice = simulated(replace(AT_REST_FREE, etcd_send=2 * AT_REST_FREE.etcd_send), ONE_MEMBER)
        assert twice.etcd == pytest.approx(2 * once.etcd)

    def test_of_the_leader_renew_for_all(self) -> None:
        """Half of what 900 cost for all of them, and the other half for its 300."""
        outcome = simulated(replace(COSTS, etcd_alone=0.02), Cluster(900, rate=0.0, cores=1.0))
        assert outcome.etcd == pytest.approx(0.02 + COSTS.etcd_node / 2 * (900 + 300))


class TestDelay:
    def test_of_one_change_is_a_place_in_the_batch(self) -> None:
        """Half of 1,000 sends on two cores until the median client has it; then that takes it."""
        outcome = simulated(AT_REST_FREE, replace(ONE_MEMBER, rate=0.01), seconds=1000.0)
        batch = 1000 * COSTS.etcd_send / 2
        assert outcome.p50 == pytest.approx(batch / 2 + COSTS.client_event + COSTS.floor, rel=0.05)
        assert outcome.p99 <= batch + COSTS.client_event + COSTS.floor + 1e-9

    def test_is_that_of_a_queue_of_fixed_times(self) -> None:
        """Changes at random, each the same work, one after the other: M/D/1. Its mean wait is known."""
        load, work = 0.7, 5e-3
        station, rng, at, waited = Station(2.0), random.Random(1), 0.0, 0.0
        count = 50_000
        for _ in range(count):
            at += rng.expovariate(load / work)
            waited += station.take(at, 2.0 * work)[0] - at
        assert waited / count == pytest.approx(load * work / (2 * (1 - load)), rel=0.05)

    def test_grows_without_end_beyond_the_cores(self) -> None:
        busy = replace(ONE_MEMBER, rate=400.0)
        short, long = simulated(AT_REST_FREE, busy, 1.0), simulated(AT_REST_FREE, busy, 5.0)
        assert short.etcd > 1
        assert long.p99 > 3 * short.p99

    def test_is_longer_where_all_share_a_machine(self) -> None:
        alone, together = (simulated(COSTS, replace(ONE_MEMBER, rate=1.0, together=each)) for each in (False, True))
        assert together.p50 > 3 * alone.p50

    def test_is_shorter_through_relays_where_etcd_is_busy(self) -> None:
        busy = replace(ONE_MEMBER, rate=190.0)
        direct, relayed = (simulated(AT_REST_FREE, replace(busy, relays=count), 10.0) for count in (0, 10))
        assert relayed.etcd < direct.etcd / 50
        assert relayed.p99 < direct.p99


class TestARestartOfAll:
    def test_takes_the_square_of_their_number(self) -> None:
        costs = replace(AT_REST_FREE, client_join=0.0)
        seconds = [restart(costs, Cluster(nodes, together=True, cores=2.0)) for nodes in (2000, 4000)]
        assert seconds[1] == pytest.approx(4 * seconds[0], rel=0.01)

    def test_takes_longer_where_renewals_take_a_part_of_the_cores(self) -> None:
        """500 at rest take half of this machine, and 1,000 all of it."""
        cluster = Cluster(500, together=True, cores=1000 * (COSTS.etcd_node + COSTS.client_node))
        assert restart(COSTS, cluster) == pytest.approx(2 * restart(AT_REST_FREE, cluster), rel=0.01)
        assert restart(COSTS, replace(cluster, nodes=1000)) == math.inf

    def test_tells_observers_of_each_who_joins(self) -> None:
        few, many = (restart(COSTS, Cluster(500, observers=count)) for count in (0, 10_000))
        assert many > few + 500 * 10_000 / 3 * COSTS.etcd_send / 4.0


class TestALossOfHalf:
    def test_is_known_when_the_leases_have_ended(self) -> None:
        assert 9.5 < loss(COSTS, Cluster(500), random.Random(1)) < 10.5

    def test_waits_for_etcd_to_end_so_many_leases(self) -> None:
        assert loss(COSTS, Cluster(100_000, clusters=100), random.Random(1)) > 50_000 / REVOKES


# The report


def made_up(without: str = "") -> Report:
    """A report with every figure that is needed, but for one."""
    small, main = figures.SMALL, figures.MAIN
    values = {
        figures.ETCD_EVENT.format(nodes=main): 10.0,
        figures.CLIENT_EVENT.format(nodes=main): 100.0,
        figures.ETCD_REST.format(nodes=small): 4.3,
        figures.ETCD_REST.format(nodes=main): 25.0,
        figures.CLIENT_REST.format(nodes=main): 0.07,
        figures.ETCD_MEMORY.format(nodes=small): 40.0,
        figures.ETCD_MEMORY.format(nodes=main): 130.0,
        figures.UP.format(nodes=small): 1.5,
        figures.JOIN_P50.format(nodes=main): 0.08,
        figures.LIST.format(keys=figures.LISTED): 0.33,
        figures.LIST_RAW.format(keys=figures.LISTED): 0.055,
        figures.KEPT.format(keys=figures.LISTED): 5.5,
        figures.FLOOR: 1000.0,
    }
    found = [Figure(row="", name=name, unit="", rounds=[value]) for name, value in values.items() if name != without]
    machine = Machine(cpu="made up", cores=2, system="", python="", packages={}, etcd="3.5.1")
    return Report(quick=False, machine=machine, figures=found)


class TestParameters:
    def test_are_those_of_the_report(self) -> None:
        found = figures.parameters(made_up())
        assert found.etcd_send == pytest.approx(10e-6)
        assert found.client_event == pytest.approx(100e-6)
        assert found.etcd_node == pytest.approx(230e-6)
        assert found.etcd_alone == pytest.approx(0.02)
        assert found.etcd_memory_node == pytest.approx(100e3)
        assert found.etcd_memory == pytest.approx(30e6)
        assert found.client_memory_key == pytest.approx(500)
        assert 0 < found.client_join < 1.5 * 2 / 100

    @pytest.mark.parametrize("name", [f.name for f in made_up().figures if "a join seen" not in f.name])
    def test_need_every_figure_and_name_the_one_that_is_missing(self, name: str) -> None:
        with pytest.raises(figures.MissingFigureError) as raised:
            figures.parameters(made_up(without=name))
        assert name in str(raised.value)


class TestThePage:
    def test_shows_what_was_measured_beside_what_is_predicted_and_says_where_that_is_off(self) -> None:
        report = made_up()
        found = page.validation(report, figures.parameters(report))
        shown = {(what, nodes): (measured, predicted) for what, nodes, measured, predicted in found}
        assert shown["etcd at rest, % of a core", "1,000"][0] == 25.0
        assert shown["etcd at rest, % of a core", "1,000"][1] == pytest.approx(25.0)
        assert shown["all join at once, s", "100"][1] == pytest.approx(1.5, rel=0.05)
        assert shown["a join seen, p50, s", "3,000"][0] is None
        measured, predicted = shown["a join seen, p50, s", "1,000"]
        assert measured == 0.08
        assert predicted > 0

    @pytest.mark.parametrize(
        "change", [lambda c: c, lambda c: replace(c, cores=0.01)], ids=["large enough", "too small by far"]
    )
    def test_names_the_limits_that_are_passed(self, change: Callable[[Cluster], Cluster]) -> None:
        cluster = change(ONE_MEMBER)
        passed = page.limits(COSTS, cluster, simulated(COSTS, cluster), 1.0)
        assert passed == ([] if cluster == ONE_MEMBER else ["etcd's CPU", "delay", "renewals"])

    def test_is_written_between_its_markers_only(self) -> None:
        text = f"before\n{page.BEGIN}of yesterday\n{page.END}after\n"
        written = page.written(text, made_up())
        assert written.startswith(f"before\n{page.BEGIN}\nMeasured on made up")
        assert written.endswith(f"\n{page.END}after\n")
        assert "of yesterday" not in written

    def test_without_markers_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="tables of"):
            page.written("nothing", made_up())
