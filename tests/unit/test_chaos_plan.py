"""The pure parts of the chaos runner: stories are drawn, kept and shortened, and a broken promise is found."""

import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.chaos import plan, wire
from tests.chaos.etcd import Change
from tests.chaos.history import History
from tests.chaos.plan import Story

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/edf.json").read_text())
MODES, STATES = ("temporary", "transient", "permanent"), ("loaded", "running", "stopping")
A, WEB = wire.node_key("a@chaos"), wire.application_key("web", "a@chaos")


def drawn(seed: int, chapters: int) -> Story:
    return Story(seed, tuple(itertools.islice(plan.chapters(seed), chapters)))


class TestAStory:
    def test_is_the_same_for_the_same_seed(self) -> None:
        assert drawn(7, 20) == drawn(7, 20)
        assert drawn(7, 20) != drawn(8, 20)

    def test_begins_as_a_longer_one_does(self) -> None:
        assert drawn(7, 5).chapters == drawn(7, 20).chapters[:5]

    def test_survives_being_kept(self) -> None:
        story = drawn(7, 20)
        assert msgspec.json.decode(msgspec.json.encode(story), type=Story) == story

    def test_has_every_kind_of_fault_in_the_end(self) -> None:
        steps = [step for chapter in drawn(7, 400).chapters for step in chapter]
        assert {step.fault for step in steps} >= plan.FAULTS.keys()

    def test_breaks_the_members_of_etcd_in_one_way_at_a_time(self) -> None:
        for chapter in drawn(7, 400).chapters:
            kinds = [plan.category(step.fault) for step in chapter]
            assert kinds.count("member") <= 1
            assert kinds.count("authentication") <= 1

    def test_can_be_read(self) -> None:
        text = str(drawn(7, 2))
        assert text.startswith("story of seed 7, ")
        assert text.count("then all is healed") == 2


class TestShortening:
    @pytest.mark.parametrize("guilty", [(0,), (3, 17), (5, 6, 30)])
    async def test_finds_the_steps_that_matter(self, guilty: tuple[int, ...]) -> None:
        story = drawn(7, 8)
        steps = [step for chapter in story.chapters for step in chapter]
        wanted = [steps[number] for number in guilty]
        tried = 0

        async def fails(candidate: Story) -> bool:
            nonlocal tried
            tried += 1
            left = [step for chapter in candidate.chapters for step in chapter]
            return all(step in left for step in wanted)

        shortest = await plan.shortest(story, fails, lambda: True)
        assert [step for chapter in shortest.chapters for step in chapter] == wanted
        assert tried < 100

    async def test_ends_with_the_time_for_it(self) -> None:
        left = iter([True, True, False])
        story = drawn(7, 8)

        async def fails(candidate: Story) -> bool:
            return False

        assert await plan.shortest(story, fails, lambda: next(left)) == story

    def test_leaves_nothing_of_a_single_step(self) -> None:
        step = drawn(7, 1).chapters[0][0]
        assert list(plan.shorter(Story(7, ((step,),)))) == []


class TestTheBytes:
    """The reader of the chaos runner is another than that of the package, and agrees with Go, too."""

    @pytest.mark.parametrize("layout", VECTORS["random"])
    def test_are_read_as_go_wrote_them(self, layout: str) -> None:
        for vector in VECTORS["random"][layout]:
            wire_bytes, value = vector["wire"].encode(), vector["value"]
            if vector["kind"] == "routes":
                assert wire.read_routes(wire_bytes) == (value or [])
            else:
                read = wire.read_application(wire_bytes)
                assert read is not None
                numbers = {"mode": MODES.index(value["mode"]) + 1, "state": STATES.index(value["state"]) + 1}
                assert {key: each for key, each in read.items() if key in value} == value | numbers

    def test_are_written_so_that_they_can_be_read(self) -> None:
        routes = wire.read_routes(wire.write_routes("h", 5))
        assert routes is not None
        assert (routes[0]["host"], routes[0]["port"]) == ("h", 5)
        application = wire.read_application(wire.write_application("n@h", "web", -3, 2))
        assert application is not None
        assert (application["node"], application["name"], application["weight"]) == ("n@h", "web", -3)

    @pytest.mark.parametrize("junk", [b"", b"junk", b"gggg", wire.write_routes("h", 5)[:-4], b"\xff"])
    def test_that_are_none_are_nothing(self, junk: bytes) -> None:
        assert wire.read_routes(junk) is None
        assert wire.read_application(junk) is None


class TestAView:
    def test_is_what_the_keys_say(self) -> None:
        keys = {
            A: wire.write_routes("h", 5),
            WEB: wire.write_application("a@chaos", "web", 1, 2),
            wire.application_key("web", "b@chaos"): wire.write_application("c@chaos", "web", 1, 2),  # of another node
            wire.application_key("db", "a@chaos"): wire.write_application("a@chaos", "db", -1, 2),  # not to be had
            wire.node_key("b@chaos"): b"junk",
            f"{wire.ROUTES}nodes/x/y".encode(): wire.write_routes("h", 5),
            b"services/ergo/config/global/level": b"int:4",
            b"services/ergo/config/chaos/a@chaos/level": b"bool:true",
            b"services/ergo/config/chaos/b@chaos/level": b"of another",
            b"services/ergo/cluster/chaos/config/*/broken": b"\xff",
            b"services/ergo/config/global/broken": b"int:x",
        }
        view = wire.read_view(keys, "a@chaos")
        assert list(view["nodes"]) == ["a@chaos"]
        assert list(view["applications"]) == ["web"]
        assert list(view["applications"]["web"]) == ["a@chaos"]
        assert view["config"] == {"level": True, "broken": "int:x"}
        assert wire.read_view(keys, None)["config"] == {"level": 4, "broken": "int:x"}

    def test_differs_where_it_does(self) -> None:
        one: dict[str, Any] = {"nodes": {"a": [1]}, "config": {"item": 1}}
        assert wire.difference(one, one) == []
        assert wire.difference(one, {"nodes": {"a": [1]}, "config": {"item": True}}) == [
            "/config/item: True instead of 1"
        ]
        assert wire.difference(one, {"nodes": {}, "config": {"item": 1}}) == ["/nodes/a: nothing instead of [1]"]


class Told(History):
    """A history that can be told in short: life 1 and 2 are of node a@chaos, lease 66 is the checker's."""

    def __init__(self) -> None:
        super().__init__()
        self.lives = {1: "a@chaos", 2: "a@chaos"}
        self.foreign = {66}
        self._now = 0

    def node(self, lease: int, life: int) -> None:
        self.tell((A, wire.write_routes(wire.host_of(life), 1), lease))

    def tell(self, *changes: tuple[bytes, bytes | None, int]) -> None:
        self._now += 1
        for key, value, lease in changes:
            self.take(Change(self._now, float(self._now), key, value, lease))

    def web(self, lease: int, life: int) -> tuple[bytes, bytes, int]:
        return WEB, wire.write_application("a@chaos", "web", wire.weight_of(life, 1), 2), lease

    @property
    def broken(self) -> list[int]:
        self.settle()
        return [violation.invariant for violation in self.violations]


class TestHistory:
    def test_of_a_life_that_moves_to_another_lease_is_good(self) -> None:
        history = Told()
        history.node(10, 1)
        history.node(11, 1)
        history.tell(history.web(11, 1))
        assert history.broken == []
        assert history.held_since == {1: 1.0}
        assert history.leases_of([1]) == {10, 11}
        assert sorted(history.keys_of(1)) == sorted([A, WEB])

    def test_of_a_successor_begins_when_the_name_is_free(self) -> None:
        history = Told()
        history.node(10, 1)
        history.tell((A, None, 0))
        history.node(20, 2)
        assert history.broken == []
        assert history.held_since == {2: 3.0}
        assert history.freed[2] == 2.0
        assert history.lost_at == {1: 2.0}

    def test_of_two_holders_is_broken(self) -> None:
        history = Told()
        history.node(10, 1)
        history.node(20, 2)
        assert history.broken == [5]

    def test_of_a_foreign_key_that_is_overwritten_is_broken(self) -> None:
        for lease in (66, 0):
            history = Told()
            history.tell((A, b"thief", lease))
            history.node(10, 1)
            assert history.broken == [3]

    def test_of_a_foreign_key_that_is_deleted_is_broken(self) -> None:
        for let_go in (False, True):
            history = Told()
            history.tell((A, b"thief", 66))
            if let_go:
                history.let_go.add(A)
            history.tell((A, None, 0))
            assert history.broken == ([] if let_go else [3])

    def test_of_an_application_under_another_s_name_is_broken(self) -> None:
        history = Told()
        history.node(10, 1)
        history.tell((A, b"thief", 66))
        history.tell(history.web(10, 1))
        assert history.broken == [3]

    def test_of_an_application_put_with_its_node_is_good_in_any_order(self) -> None:
        history = Told()
        history.tell(history.web(10, 1), (A, wire.write_routes(wire.host_of(1), 1), 10))
        assert history.broken == []

    def test_of_garbage_under_the_own_lease_is_mended_by_its_owner(self) -> None:
        history = Told()
        history.node(10, 1)
        history.tell((A, b"garbage", 10))
        history.node(10, 1)
        assert history.broken == []
        assert history.held_since == {1: 1.0}
